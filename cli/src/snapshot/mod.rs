//! `trivet snapshot`.

mod change;
mod diff;
mod export;
mod freeze;
mod revert;
mod show;
mod size;

use crate::args::{Output, Place};
use crate::failure::Failure;
use crate::volume::key::KeyArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Take, list, show, export, compare and delete snapshots, and revert to them
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
    /// Take a snapshot of an attached volume, or of several at one moment
    #[command(after_help = "\
With --volume, any number of times, it takes one of all these volumes at one moment, of all or
of none: trivet snapshot create --volume data --volume journal before-upgrade")]
    Create(CreateArgs),
    /// Freeze file systems when told to, and thaw them when standard input ends
    #[command(hide = true)]
    Guard(GuardArgs),
    /// List the snapshots of a volume, or of all
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show a snapshot
    Show(NameArgs),
    /// Change what is said of a snapshot
    Label(LabelArgs),
    /// Serve a snapshot over NBD for reading, beside its volume, and print its URI
    Export(ExportArgs),
    /// Stop serving a snapshot
    Unexport(NameArgs),
    /// List what was written or discarded between a snapshot and a later one, or now
    Diff(DiffArgs),
    /// Make a detached volume again what a snapshot shows; all snapshots stay
    #[command(after_help = "\
Writes back what has changed since the snapshot. What the volume is before is kept as a
snapshot, unless you say otherwise. Nobody can use the volume until it is done; it goes on
after a crash of anything, and Ctrl-C only ends the waiting. Reverting to another snapshot
meanwhile takes the place of the first. An encrypted volume needs its key, as for attaching it;
where that was lost on the way, the same command with the key goes on.")]
    Revert(RevertArgs),
    /// Delete a snapshot; what it alone keeps is freed in the background
    Delete(DeleteArgs),
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// Which volume, and the snapshot's name: 1 to 63 of a-z, 0-9, '-', '_', '.' [default: the time, as in
    /// 20261124-150405]; with --volume, only the name
    #[arg(value_names = ["VOLUME", "SNAPSHOT"], num_args = 0..=2, required_unless_present = "volumes")]
    names: Vec<String>,
    /// One of several volumes
    #[arg(long = "volume", value_name = "VOLUME")]
    volumes: Vec<String>,
    /// Say something of it, as in --label reason=upgrade; any number of times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Freeze this mounted file system meanwhile (as root, by fsfreeze), for 30 s at most; any number of times
    #[arg(long, value_name = "PATH")]
    freeze: Vec<PathBuf>,
    /// Run this before, by a shell; when it fails, no snapshot is taken
    #[arg(long, value_name = "COMMAND")]
    pre: Option<String>,
    /// Run this afterwards, by a shell, whatever has happened
    #[arg(long, value_name = "COMMAND")]
    post: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct GuardArgs {
    /// The mounted file systems
    paths: Vec<PathBuf>,
    /// Run this afterwards
    #[arg(long)]
    post: Option<String>,
}

#[derive(Args, Debug)]
struct ListArgs {
    /// Which volume [default: all]
    volume: Option<String>,
    /// Say too what deleting each would free; takes a while where much has changed
    #[arg(long)]
    sizes: bool,
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
struct LabelArgs {
    /// Which volume
    volume: String,
    /// Which snapshot
    snapshot: String,
    /// What to say of it, as in reason=upgrade
    #[arg(value_name = "KEY=VALUE", value_parser = label, required_unless_present = "removed")]
    labels: Vec<(String, String)>,
    /// Say no more what is said under this key; any number of times
    #[arg(long = "remove", value_name = "KEY")]
    removed: Vec<String>,
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
struct RevertArgs {
    /// Which volume
    volume: String,
    /// Which snapshot
    snapshot: String,
    /// Name of the snapshot that keeps what the volume is now [default: before-revert- and the time]
    #[arg(long, value_name = "NAME")]
    safety_snapshot: Option<String>,
    /// Take none: what has changed since the snapshot is lost
    #[arg(long, conflicts_with = "safety_snapshot")]
    no_safety_snapshot: bool,
    /// Only say what would be changed
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    key: KeyArgs,
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
        SnapshotCommand::Guard(arguments) => freeze::guard(arguments),
        SnapshotCommand::List(arguments) => show::list(arguments).await,
        SnapshotCommand::Show(arguments) => show::show(arguments).await,
        SnapshotCommand::Label(arguments) => change::label(arguments).await,
        SnapshotCommand::Export(arguments) => export::export(arguments).await,
        SnapshotCommand::Unexport(arguments) => export::unexport(arguments).await,
        SnapshotCommand::Diff(arguments) => diff::run(arguments).await,
        SnapshotCommand::Revert(arguments) => revert::run(arguments).await,
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
