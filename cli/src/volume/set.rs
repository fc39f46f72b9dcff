//! `trivet volume set`, and the options that it shares with `create`.

use super::SetArgs;
use crate::down::confirm;
use crate::explain;
use crate::failure::Failure;
use crate::output::{announce, say};
use crate::view::{self, VolumeView, size};
use clap::Args;
use std::cmp::Ordering;
use trivet_api::convert::{durability_to_wire, limit_to_wire};
use trivet_api::v1;
use trivet_model::settings::{LimitError, Limited, SNAPSHOT_LIMIT_DEFAULT};
use trivet_model::{Durability, RateLimit};

/// Settings, as far as they are named.
#[derive(Args, Clone, Debug)]
pub(super) struct SettingsArgs {
    /// write-back: a flush makes writes stable, as with any disk. write-through: each write is stable
    /// on every copy before it is acknowledged [default: write-back]
    #[arg(long, value_name = "HOW")]
    durability: Option<Durability>,
    /// I/Os a second, reads and writes together, such as 1000; with ",burst=5000" so many at once after
    /// a pause [default burst: what one second allows]; or none
    #[arg(long, value_name = "N[,burst=M]", value_parser = iops_limit)]
    iops_limit: Option<Limit>,
    /// The same in bytes, such as 100MiB or 100MiB,burst=1GiB; or none
    #[arg(long, value_name = "SIZE[,burst=SIZE]", value_parser = bandwidth_limit)]
    bandwidth_limit: Option<Limit>,
    /// How many snapshots it may have; those that it has stay [default: 1000, and no more]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(SNAPSHOT_LIMIT_DEFAULT)))]
    snapshot_limit: Option<u32>,
    /// Of an encrypted volume: hold what one copy answers to a read against the stamps that another has, so that
    /// one that gives back an older version of a block is found out. Each read waits for two copies
    /// [default: off]
    #[arg(long, value_name = "on|off")]
    verified_reads: Option<Switch>,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Switch {
    On,
    Off,
}

/// A limit to be set, or taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limit(Option<RateLimit>);

impl Limit {
    fn to_wire(self) -> v1::RateLimit {
        self.0.map_or(v1::RateLimit::default(), limit_to_wire)
    }
}

fn iops_limit(text: &str) -> Result<Limit, LimitError> {
    Limited::Iops.parse(text).map(Limit)
}

fn bandwidth_limit(text: &str) -> Result<Limit, LimitError> {
    Limited::Bandwidth.parse(text).map(Limit)
}

impl SettingsArgs {
    /// For a volume to be made.
    pub(super) fn to_wire(&self) -> v1::VolumeSettings {
        v1::VolumeSettings {
            durability: durability_to_wire(self.durability.unwrap_or_default()).into(),
            iops_limit: self.iops_limit.map(Limit::to_wire),
            bandwidth_limit: self.bandwidth_limit.map(Limit::to_wire),
            snapshot_limit: self.snapshot_limit.unwrap_or(0),
            verified_reads: self.verified_reads == Some(Switch::On),
        }
    }
}

pub(super) async fn run(arguments: &SetArgs) -> Result<(), Failure> {
    let (name, settings) = (&arguments.name, &arguments.settings);
    let (client, dir) = arguments.place.connect()?;
    let failed = |error| explain::api(&dir, format!("cannot set volume '{name}'"), &error);
    let present = client.get_volume(v1::GetVolumeRequest { name: name.clone() }).await.map_err(failed)?;
    let present = view::volume(present)?;
    let lost = arguments.copies.and_then(|copies| surplus(&present, copies));
    if arguments.dry_run {
        let nothing = || format!("nothing of volume '{name}' would be lost");
        say(&lost.map_or_else(nothing, |lost| format!("would remove {lost}")));
        return Ok(());
    }
    if let Some(lost) = lost {
        confirm(&format!("This removes {lost}."), arguments.yes)?;
    }
    let durability = settings.durability.map_or(v1::Durability::Unspecified, durability_to_wire);
    let request = v1::SetVolumeRequest {
        name: name.clone(),
        durability: durability.into(),
        iops_limit: settings.iops_limit.map(Limit::to_wire),
        bandwidth_limit: settings.bandwidth_limit.map(Limit::to_wire),
        copies: arguments.copies.unwrap_or(0),
        snapshot_limit: settings.snapshot_limit.unwrap_or(0),
        verified_reads: settings.verified_reads.map(|wanted| wanted == Switch::On),
    };
    let volume = view::volume(client.set_volume(request).await.map_err(failed)?)?;
    announce(arguments.output, &volume, &in_words(&volume));
    Ok(())
}

/// The copies that are too many then.
fn surplus(volume: &VolumeView, copies: u32) -> Option<String> {
    let wanted = usize::try_from(copies).unwrap_or(usize::MAX);
    let surplus = volume.members.len().checked_sub(wanted).filter(|surplus| *surplus > 0)?;
    let left = volume.members.len() - surplus;
    Some(format!(
        "{surplus} of the {} copies of volume '{}' ({} of data each), once {left} others are in sync",
        volume.members.len(),
        volume.name,
        size(volume.used_bytes),
    ))
}

fn in_words(volume: &VolumeView) -> String {
    let settings = &volume.settings;
    let limits = settings.limits().map_or("no limits".to_owned(), |limits| format!("at most {limits}"));
    let mut line = format!("{}: {}, {limits}", volume.name, settings.durability);
    if settings.verified_reads {
        line += ", reads verified";
    }
    match usize::try_from(volume.copies).unwrap_or(usize::MAX).cmp(&volume.members.len()) {
        _ if volume.copies == 0 => {}
        Ordering::Equal => line += &format!(", {} copies", volume.copies),
        Ordering::Less => {
            line += &format!(", {} copies: the surplus goes once so many are in sync", volume.copies);
        }
        Ordering::Greater if volume.attached && !volume.read_only => {
            line += &format!(", {} copies: what is missing is being made", volume.copies);
        }
        Ordering::Greater => {
            line += &format!(", {} copies: what is missing is made while it is attached", volume.copies);
        }
    }
    if !volume.attached && !volume.owner.is_empty() {
        line += &format!("; {} has it open, and follows within five seconds", volume.owner);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_said_on_the_wire() {
        let limit = iops_limit("1000,burst=2000").unwrap().to_wire();
        assert_eq!((limit.per_second, limit.burst), (1000, 2000));
        assert_eq!(bandwidth_limit("none").unwrap().to_wire().per_second, 0);
    }
}
