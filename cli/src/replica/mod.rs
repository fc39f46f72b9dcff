//! `trivet replica`: the copies of a volume; without a subcommand, the process that serves a pool.

mod add;
mod remove;
mod replace;

use crate::args::{Output, Place, ReplicaName};
use crate::failure::Failure;
use crate::role::replica::ServerArgs;
use clap::{Args, Subcommand};

/// Add, remove and replace the copies of a volume; or serve one disk's pool
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Without a command it serves the pool in --dir at --listen, as `trivet up` has processes do.
`trivet status` shows the replica servers of a cluster: replica-1, replica-2, ..."
)]
pub(crate) struct ReplicaArgs {
    #[command(subcommand)]
    pub(crate) command: Option<ReplicaCommand>,
    #[command(flatten)]
    pub(crate) server: Option<ServerArgs>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum ReplicaCommand {
    /// Give a volume one more copy; its engine brings the copy in sync
    Add(AddArgs),
    /// Take a copy away from a volume
    Remove(RemoveArgs),
    /// Move a copy to another replica server: add one, wait until it is in sync, remove the old
    #[command(after_help = "\
The manager removes the old copy by itself once the new one is in sync: Ctrl-C only ends
the waiting. To give it up, remove the new copy:
trivet replica remove VOLUME --from replica-M")]
    Replace(ReplaceArgs),
}

#[derive(Args, Debug)]
pub(crate) struct AddArgs {
    /// Which volume
    volume: String,
    /// The replica server for the copy [default: the one with the most free space]
    #[arg(long, value_name = "REPLICA")]
    to: Option<ReplicaName>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct RemoveArgs {
    /// Which volume
    volume: String,
    /// The replica server that shall keep no copy any more
    #[arg(long, value_name = "REPLICA")]
    from: ReplicaName,
    /// Only say what would be lost
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
pub(crate) struct ReplaceArgs {
    /// Which volume
    volume: String,
    /// The replica server that shall keep no copy any more
    #[arg(long, value_name = "REPLICA")]
    from: ReplicaName,
    /// The replica server for the new copy [default: the one with the most free space]
    #[arg(long, value_name = "REPLICA")]
    to: Option<ReplicaName>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(command: &ReplicaCommand) -> Result<(), Failure> {
    match command {
        ReplicaCommand::Add(arguments) => add::run(arguments).await,
        ReplicaCommand::Remove(arguments) => remove::run(arguments).await,
        ReplicaCommand::Replace(arguments) => replace::run(arguments).await,
    }
}

/// The number that the manager takes; 0 leaves it the choice.
fn number(name: Option<ReplicaName>) -> u32 {
    name.map_or(0, |name| name.0)
}
