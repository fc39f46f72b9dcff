//! `trivet snapshot`.

mod change;
mod diff;
mod export;
mod show;

use crate::args::{Output, Place};
use crate::failure::Failure;
use clap::{Args, Subcommand};

/// Take, list, show, export, compare and delete snapshots of volumes
#[derive(Args, Debug)]
#[command(after_help = "\
A snapshot keeps what a volume held at one moment, on all its copies, and costs only what is
written afterwards. `trivet snapshot export` serves one for reading, beside its volume.")]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Subcommand, Debug)]
enum SnapshotCommand {
    /// Take a snapshot of an attached volume
    Create(CreateArgs),
    /// List the snapshots of a volume, or of all
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show a snapshot
    Show(NameArgs),
    /// Serve a snapshot over NBD for reading, beside its volume, and print its URI
    Export(ExportArgs),
    /// Stop serving a snapshot
    Unexport(NameArgs),
    /// List what was written or discarded between a snapshot and a later one, or now
    Diff(DiffArgs),
    /// Delete a snapshot; what it alone keeps is freed in the background
    Delete(DeleteArgs),
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// Which volume
    volume: String,
    /// Its name: 1 to 63 of a-z, 0-9, '-', '_', '.' [default: the time, as in 20261124-150405]
    snapshot: Option<String>,
    /// Say something of it, as in --label reason=upgrade; any number of times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct ListArgs {
    /// Which volume [default: all]
    volume: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct NameArgs {
    /// Which volume
    volume: String,
    /// Which snapshot
    snapshot: String,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct ExportArgs {
    /// Which volume
    volume: String,
    /// Which snapshot
    snapshot: String,
    /// Listen on this loopback address too, such as 127.0.0.1:10809; port 0 picks one
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct DiffArgs {
    /// Which volume
    volume: String,
    /// The older snapshot
    since: String,
    /// The newer one [default: the volume as it is now]
    until: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct DeleteArgs {
    /// Which volume
    volume: String,
    /// Which snapshot
    snapshot: String,
    /// Only say what would be lost
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Though it is exported: its readers are hung up on
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
}

fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = pair.ok_or("a label is a key and a value, as in reason=upgrade")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(crate) async fn run(arguments: &SnapshotArgs) -> Result<(), Failure> {
    match &arguments.command {
        SnapshotCommand::Create(arguments) => change::create(arguments).await,
        SnapshotCommand::List(arguments) => show::list(arguments).await,
        SnapshotCommand::Show(arguments) => show::show(arguments).await,
        SnapshotCommand::Export(arguments) => export::export(arguments).await,
        SnapshotCommand::Unexport(arguments) => export::unexport(arguments).await,
        SnapshotCommand::Diff(arguments) => diff::run(arguments).await,
        SnapshotCommand::Delete(arguments) => change::delete(arguments).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_a_key_and_a_value() {
        assert_eq!(label("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(label("a="), Ok(("a".to_owned(), String::new())));
        assert!(label("=b").is_err() && label("a").is_err());
    }
}
