//! A volume's settings, as people and programs are shown them.

use serde::Serialize;
use trivet_model::settings::{Limited, SNAPSHOT_LIMIT_DEFAULT};
use trivet_model::size::ByteSize;
use trivet_model::{RateLimit, VolumeSettings};

#[derive(Serialize, Debug)]
pub(crate) struct SettingsView {
    /// `write-back` or `write-through`.
    pub(crate) durability: String,
    /// I/Os, reads and writes together; `null` without a limit.
    pub(crate) iops_limit: Option<RateLimit>,
    /// Bytes; `null` without a limit.
    pub(crate) bandwidth_limit: Option<RateLimit>,
    /// How many snapshots it may have.
    pub(crate) snapshot_limit: u32,
    /// Whether what one copy answers to a read is held against another's stamps.
    pub(crate) verified_reads: bool,
}

impl From<&VolumeSettings> for SettingsView {
    fn from(settings: &VolumeSettings) -> Self {
        Self {
            durability: settings.durability.to_string(),
            iops_limit: settings.iops_limit,
            bandwidth_limit: settings.bandwidth_limit,
            snapshot_limit: settings.snapshot_limit,
            verified_reads: settings.verified_reads,
        }
    }
}

impl SettingsView {
    /// The rates alone, in few words, if there are any.
    pub(crate) fn rates(&self) -> Option<String> {
        let iops = self.iops_limit.map(|limit| format!("{} I/Os/s", limit.per_second));
        let bandwidth = self.bandwidth_limit.map(|limit| format!("{}/s", ByteSize(limit.per_second)));
        let words: Vec<String> = iops.into_iter().chain(bandwidth).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// The limits in words, if there are any.
    pub(crate) fn limits(&self) -> Option<String> {
        let limits = [(Limited::Iops, self.iops_limit), (Limited::Bandwidth, self.bandwidth_limit)];
        let snapshots = (self.snapshot_limit < SNAPSHOT_LIMIT_DEFAULT)
            .then(|| format!("{} snapshots", self.snapshot_limit));
        let words: Vec<String> = limits
            .into_iter()
            .filter_map(|(limited, limit)| Some(limited.describe(limit?)))
            .chain(snapshots)
            .collect();
        (!words.is_empty()).then(|| words.join("; "))
    }
}
