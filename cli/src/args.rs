//! The command line's shape.

use crate::failure::EXIT_CODES;
use crate::{bench, check, completion, down, image, replica, role, snapshot, status, up, volume};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use trivet_model::size::ByteSize;
use trivet_model::{BLOCK_SIZE_U64, VOLUME_BLOCKS_MAX};

/// What `trivet --help` shows: the commands, sorted into what people and what processes use.
const TEMPLATE: &str = "\
{about}

{usage-heading} {usage}

Cluster:
  up          Start a local cluster with a volume served as a disk
  down        Stop the local cluster; its data stays
  status      Show the processes, pools and volumes of a cluster
Volumes:
  volume      Make, clone, list, show, set, delete, attach, detach, rekey, resize, scrub and salvage volumes
  snapshot    Take, list, show, export, compare and delete snapshots, and revert to them
  replica     Add, remove and replace the copies of a volume; or serve one disk's pool
  import      Copy a disk image into a volume
  export      Copy a volume or a snapshot into a disk image
  bench       Measure a volume
Care:
  check       Prove the invariants of a pool that is not running
  completion  Print completions for a shell
Processes (started by `trivet up`; run them yourself to see their logs):
  manager     Keep the records and watch the other processes
  engine      Serve one volume over NBD
  confine     Read an image in a jail

Options:
{options}{after-help}";

/// A replicated block store: volumes on two or three replicas, used as disks.
#[derive(Parser, Debug)]
#[command(
    name = "trivet",
    version,
    about,
    after_help = format!("{EXIT_CODES}\n\nLogs go to standard error; TRIVET_LOG sets their level (error, warn, info, debug, trace)."),
    help_template = TEMPLATE,
    propagate_version = false,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    Up(up::UpArgs),
    Down(down::DownArgs),
    Status(status::StatusArgs),
    Volume(volume::VolumeArgs),
    Snapshot(snapshot::SnapshotArgs),
    Import(image::ImportArgs),
    Export(image::ExportArgs),
    Bench(bench::BenchArgs),
    Check(check::CheckArgs),
    Completion(completion::CompletionArgs),
    Manager(role::manager::ManagerArgs),
    Replica(replica::ReplicaArgs),
    Engine(role::engine::EngineArgs),
    Confine(image::confine::ConfineArgs),
}

/// Where the cluster is.
#[derive(Args, Clone, Debug)]
pub(crate) struct Place {
    /// The cluster's folder [default: trivet in $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, value_name = "DIR", env = "TRIVET_DIR", hide_env = false)]
    pub(crate) dir: Option<PathBuf>,
}

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Format {
    // Not documentation comments: those would spread every option's help over five lines.
    Table,
    Json,
}

/// How to print.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Output {
    /// How to print: for people, or for programs
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
}

/// A volume's size in whole blocks, from 4 KiB to 64 TiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct VolumeSize {
    pub(crate) blocks: u64,
}

impl std::str::FromStr for VolumeSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = text.parse::<ByteSize>().map_err(|error| error.to_string())?;
        let largest = ByteSize(VOLUME_BLOCKS_MAX * BLOCK_SIZE_U64);
        if bytes.0 == 0 {
            return Err(format!("a volume's size cannot be zero; it is from 4 KiB to {largest}"));
        }
        if bytes > largest {
            return Err(format!("a volume's size cannot be above {largest}"));
        }
        if !bytes.0.is_multiple_of(BLOCK_SIZE_U64) {
            return Err(format!("{} bytes are not whole blocks of 4096 bytes", bytes.0));
        }
        Ok(Self { blocks: bytes.0 / BLOCK_SIZE_U64 })
    }
}

/// A replica server of the cluster, such as `replica-2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ReplicaName(pub(crate) u32);

impl std::str::FromStr for ReplicaName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("replica-").unwrap_or(text).parse().ok();
        let number = number.filter(|&number| number > 0);
        number.map(Self).ok_or_else(|| "a replica server is called replica-1, replica-2, ...".to_owned())
    }
}

/// A size in bytes.
pub(crate) fn byte_size(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.0).map_err(|error| error.to_string())
}

/// The slowest scrub; slower ones would not end.
const SCRUB_RATE_MIN: u64 = 64 << 10;

/// A scrub's rate in bytes a second.
pub(crate) fn scrub_rate(text: &str) -> Result<u64, String> {
    let rate = byte_size(text.strip_suffix("/s").unwrap_or(text))?;
    if rate < SCRUB_RATE_MIN {
        return Err(format!("a scrub's rate is at least {} a second", ByteSize(SCRUB_RATE_MIN)));
    }
    Ok(rate)
}

/// A time between scrubs in seconds, such as `7d`.
pub(crate) fn scrub_interval(text: &str) -> Result<u64, String> {
    let seconds = [("m", 60), ("h", 3600), ("d", 86400), ("w", 7 * 86400)]
        .iter()
        .find_map(|(unit, length)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*length));
    seconds
        .filter(|&seconds| seconds > 0)
        .ok_or_else(|| "a time between scrubs is a number with m, h, d or w, such as 7d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_shape_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_stands_in_the_help() {
        let help = Cli::command().render_help().to_string();
        for command in Cli::command().get_subcommands() {
            let about = command.get_about().expect("has a description").to_string();
            let line = help
                .lines()
                .find(|line| line.starts_with(&format!("  {} ", command.get_name())))
                .unwrap_or_else(|| panic!("{} is not in:\n{help}", command.get_name()));
            assert!(line.ends_with(&about), "'{line}' does not say '{about}'");
        }
    }

    #[test]
    fn replica_servers_have_names() {
        assert_eq!("replica-12".parse(), Ok(ReplicaName(12)));
        assert_eq!("3".parse(), Ok(ReplicaName(3)));
        for text in ["", "replica-", "replica-0", "replica-x", "-1", "server-1"] {
            assert!(text.parse::<ReplicaName>().unwrap_err().contains("replica-1"), "{text}");
        }
    }

    #[test]
    fn scrubs_have_rates_and_intervals() {
        assert_eq!((scrub_rate("100MiB"), scrub_rate("1GiB/s")), (Ok(100 << 20), Ok(1 << 30)));
        assert!(scrub_rate("1k").unwrap_err().contains("at least 64 KiB"));
        for (text, seconds) in [("30m", 1800), ("12h", 43200), ("7d", 604_800), ("2w", 1_209_600)] {
            assert_eq!(scrub_interval(text), Ok(seconds));
        }
        for text in ["", "d", "0d", "7", "-1d", "1.5d", "7 days", "99999999999999999w"] {
            assert!(scrub_interval(text).unwrap_err().contains("such as 7d"), "{text}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused_with_the_reason() {
        for (text, reason) in [
            ("0", "cannot be zero"),
            ("65TiB", "above 64 TiB"),
            ("5000", "not whole blocks"),
            ("ten", "is not a size"),
            ("", "is not a size"),
        ] {
            let error = text.parse::<VolumeSize>().unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        assert_eq!("64TiB".parse::<VolumeSize>().unwrap().blocks, VOLUME_BLOCKS_MAX);
        assert_eq!("4k".parse::<VolumeSize>().unwrap().blocks, 1);
    }
}
