//! `trivet volume`.

mod change;
mod clone;
mod create;
mod delete;
mod flatten;
pub(crate) mod key;
mod rekey;
mod salvage;
mod scrub;
mod set;
mod show;

pub(crate) use create::check_name;

use crate::args::{Output, Place, ReplicaName, VolumeSize, scrub_interval, scrub_rate};
use crate::failure::Failure;
use clap::{Args, Subcommand};
use set::SettingsArgs;

/// Make, clone, list, show, set, delete, attach, detach, rekey, resize, scrub and salvage volumes
#[derive(Args, Debug)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Subcommand, Debug)]
enum VolumeCommand {
    /// Make a volume; thin, so that it takes space as it is written
    Create(CreateArgs),
    /// Make a volume that begins with what another one holds, at once and without copying it
    #[command(after_help = "\
The clone's copies lie beside the parent's, in the same pools, and take space as the clone is
written. Parent, snapshot and clone can each be used, changed and deleted as if the others were
not there: a pool keeps what a clone still reads. Without a snapshot, one is taken for the
clone alone: of a volume in use, what it holds at this moment.")]
    Clone(CloneArgs),
    /// Have a clone copy what it shares with its parent, in the background
    #[command(after_help = "\
Each copy of the clone copies within its pool, and gives way to whoever uses the pool. Follows
that until its end; Ctrl-C leaves it running. Afterwards nothing is shared: space that was kept
for the clone alone comes back.")]
    Flatten(FlattenArgs),
    /// Make a detached volume a golden image: it is read and cloned, and never changed
    Seal(NameArgs),
    /// Make a golden image a usual volume again
    Unseal(NameArgs),
    /// List all volumes
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show a volume and its copies
    Show(NameArgs),
    /// Change how durable writes are, how much I/O a volume takes, and how many copies it has
    #[command(after_help = "\
What is not named stays as it is. Done when the volume's engine follows: with write-through,
everything acknowledged before is stable then, too. Limits hold requests up in the order in
which they come, whoever asks; a flush, and what the cluster does by itself, is not counted.
A request counts as one I/O, and a large one as one for each MiB.")]
    Set(SetArgs),
    /// Delete a volume and all its data
    Delete(DeleteArgs),
    /// Serve a volume over NBD, and print its URI
    Attach(AttachArgs),
    /// Stop serving a volume
    Detach(NameArgs),
    /// Have another key unlock an encrypted volume, or encrypt its data anew
    #[command(after_help = "\
The volume's data key stays the same and is wrapped anew, so nothing is written again: it takes
no time, and who has had the data key itself keeps it. The old key opens nothing any more.

With --data the volume gets another data key. What is written is encrypted under it from then on,
and what was written before follows in the background. Snapshots stay as they are: the old data
key is kept for them, and destroyed with the last that needs it.")]
    Rekey(RekeyArgs),
    /// Grow a volume, while it is used or not
    #[command(after_help = "\
NBD has no word for a new size: clients that are connected go on with the old one, and whoever
connects from then on sees the new one (QEMU: `block_resize` after it has reconnected).
A volume does not shrink: no client asks for that safely. Copy it to a smaller one instead.")]
    Resize(ResizeArgs),
    /// Read and compare all copies of a volume, and mend what is bad
    #[command(after_help = "\
Reads every block of every copy that is in sync while the volume is served, and yields to its
users. Without an option it begins a scrub, or follows the one under way, until its end.
Ctrl-C leaves it running. --every and --never set the schedule, and begin nothing.
Ends with exit code 7 when blocks could not be mended.")]
    Scrub(ScrubArgs),
    /// Go on with one copy that may lack writes, when no copy that is in sync is left
    #[command(after_help = "\
The last resort, for a detached volume none of whose in-sync copies can be had any more.
The copy on REPLICA becomes the volume's only one. The others are deleted, each as soon as
its server answers: what they hold beyond it must not mix with what is written from now on.
So first try to bring their servers back; --dry-run says what each copy holds.
Afterwards new copies are made by themselves while the volume is attached.")]
    Salvage(SalvageArgs),
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// Its name: 1 to 63 of a-z, 0-9, '-', '_', '.'
    name: String,
    /// Its size, such as 10GiB, 512M or 1.5T
    #[arg(long, value_name = "SIZE")]
    size: VolumeSize,
    /// Copies, each on a replica server of its own [default: 3, or as many as there are servers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    copies: Option<u32>,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Attach it too
    #[arg(long)]
    attach: bool,
    /// Encrypt it in the engine, so that network, replicas and backups see nothing of it; say with what
    #[arg(long, requires = "key_source")]
    encrypt: bool,
    #[command(flatten)]
    key: key::NewKeyArgs,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct CloneArgs {
    /// What to clone: a volume, or its snapshot
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    of: Origin,
    /// The clone's name: 1 to 63 of a-z, 0-9, '-', '_', '.'
    #[arg(value_name = "NEW")]
    name: String,
    /// Copies [default: as many as the volume has in sync]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    copies: Option<u32>,
    /// Share nothing in the end: copy everything, in the background, in the same pools
    #[arg(long, conflicts_with = "to")]
    full: bool,
    /// Put a copy on this replica server, which shares nothing; any number of times. They are made
    /// once the clone is attached
    #[arg(long, value_name = "REPLICA", conflicts_with = "copies")]
    to: Vec<ReplicaName>,
    /// Attach it too
    #[arg(long)]
    attach: bool,
    #[command(flatten)]
    key: key::KeyArgs,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

/// `VOLUME` or `VOLUME@SNAPSHOT`.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Origin {
    volume: String,
    snapshot: Option<String>,
}

impl std::str::FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (volume, snapshot) = match text.split_once('@') {
            Some((volume, snapshot)) => (volume, Some(snapshot.to_owned())),
            None => (text, None),
        };
        if volume.is_empty() || snapshot.as_ref().is_some_and(String::is_empty) {
            return Err("name a volume, or a volume and its snapshot as in disk0@before".to_owned());
        }
        Ok(Self { volume: volume.to_owned(), snapshot })
    }
}

#[derive(Args, Debug)]
struct FlattenArgs {
    /// Which volume
    name: String,
    /// Do not wait for its end
    #[arg(long)]
    background: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct NameArgs {
    /// Which volume
    name: String,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
#[command(group(
    clap::ArgGroup::new("what")
        .args(["durability", "iops_limit", "bandwidth_limit", "snapshot_limit", "verified_reads", "copies"])
        .required(true)
        .multiple(true)
))]
struct SetArgs {
    /// Which volume
    name: String,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Copies, each on a replica server of its own; more are made while the volume is attached, and what
    /// is too many is removed once so many others are in sync
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    copies: Option<u32>,
    /// Change nothing, only say which copies would be lost
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before copies are removed
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct DeleteArgs {
    /// Which volume
    name: String,
    /// Only say what would be lost
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Delete it though a program that embeds the engine has not closed it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
struct AttachArgs {
    /// Which volume
    name: String,
    /// Listen on this loopback address too, such as 127.0.0.1:10809; port 0 picks one
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Serve it for reading only
    #[arg(long)]
    read_only: bool,
    /// Take it from a program that embeds the engine and has not closed it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    key: key::KeyArgs,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct RekeyArgs {
    /// Which volume
    name: String,
    #[command(flatten)]
    old: key::KeyArgs,
    #[command(flatten)]
    new: key::ReplacingKeyArgs,
    /// Encrypt all data anew, in the background, under a new data key; a new key need not be given then
    #[arg(long, help_heading = "New data key")]
    data: bool,
    /// Only say what would be done, and what stays readable under the old data key
    #[arg(long, requires = "data", help_heading = "New data key")]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct ResizeArgs {
    /// Which volume
    name: String,
    /// Its new size; not below the present one
    #[arg(long, value_name = "SIZE")]
    size: VolumeSize,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct ScrubArgs {
    /// Which volume
    name: String,
    /// What each copy's server may read a second, such as 100MiB; kept for later scrubs
    #[arg(long, value_name = "SIZE", value_parser = scrub_rate)]
    rate: Option<u64>,
    /// Scrub it by itself so long after the last scrub's end, such as 7d or 12h
    #[arg(long, value_name = "TIME", value_parser = scrub_interval)]
    every: Option<u64>,
    /// Scrub it only when asked
    #[arg(long, conflicts_with = "every")]
    never: bool,
    /// End the scrub under way
    #[arg(long, conflicts_with_all = ["every", "never", "rate"])]
    stop: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct SalvageArgs {
    /// Which volume
    name: String,
    /// The replica server whose copy to go on with
    #[arg(long, value_name = "REPLICA")]
    from: ReplicaName,
    /// Only say what may be lost
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Even though a copy that is in sync answers, or a program has not closed the volume
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
}

pub(crate) async fn run(arguments: &VolumeArgs) -> Result<(), Failure> {
    match &arguments.command {
        VolumeCommand::Create(arguments) => create::run(arguments).await,
        VolumeCommand::Clone(arguments) => clone::run(arguments).await,
        VolumeCommand::Flatten(arguments) => flatten::run(arguments).await,
        VolumeCommand::Seal(arguments) => clone::set_image(arguments, true).await,
        VolumeCommand::Unseal(arguments) => clone::set_image(arguments, false).await,
        VolumeCommand::List(arguments) => show::list(arguments).await,
        VolumeCommand::Show(arguments) => show::show(arguments).await,
        VolumeCommand::Set(arguments) => set::run(arguments).await,
        VolumeCommand::Delete(arguments) => delete::run(arguments).await,
        VolumeCommand::Attach(arguments) => change::attach(arguments).await,
        VolumeCommand::Detach(arguments) => change::detach(arguments).await,
        VolumeCommand::Rekey(arguments) => rekey::run(arguments).await,
        VolumeCommand::Resize(arguments) => change::resize(arguments).await,
        VolumeCommand::Scrub(arguments) => scrub::run(arguments).await,
        VolumeCommand::Salvage(arguments) => salvage::run(arguments).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_made_of_a_volume_or_a_snapshot() {
        let origin = |volume: &str, snapshot: Option<&str>| Origin {
            volume: volume.to_owned(),
            snapshot: snapshot.map(str::to_owned),
        };
        assert_eq!("disk0".parse(), Ok(origin("disk0", None)));
        assert_eq!("disk0@before".parse(), Ok(origin("disk0", Some("before"))));
        for text in ["", "@", "disk0@", "@before"] {
            assert!(text.parse::<Origin>().unwrap_err().contains("disk0@before"), "{text}");
        }
    }
}
