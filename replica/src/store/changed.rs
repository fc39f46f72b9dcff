//! What changed since a stamp: how a member that comes back finds what it lacks.
//!
//! The memtables' versions are collected when the request comes, the map is scanned afterwards, off
//! the store's thread and past the cache. A checkpoint may commit in between: then the map's version
//! is as new or newer, and stamps tell. So nothing is missed that was there when the request came.
//!
//! Regions in which no stamp is high enough are passed over: the cost follows what changed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use trivet_model::{SnapshotId, Stamp, VolumeId};

use super::Store;
use super::checkpoint::CheckpointError;
use super::entry::{Entry, GROUP_BLOCKS};
use super::extents::append;
use super::map_scan::scan_groups;
use super::record::Slot;
use super::request::{Action, ChangedPage, Reply, RequestError, RequestId};
use crate::meta::MetaStore;
use crate::planted::{self, PlantedFault};

/// Most runs in an answer; no more than a message on the wire holds.
pub const CHANGED_RUNS_MAX: usize = 4096;
/// Blocks that an answer looks at (16 MiB of a volume): what the store's thread spends on one is
/// bounded, and so is the number of runs.
const WINDOW_BLOCKS: u64 = 4096;
const _: () = assert!(WINDOW_BLOCKS <= CHANGED_RUNS_MAX as u64);

/// A part of a volume to look through: give it to [`ChangedScan::run`] on a background thread.
#[derive(Debug)]
pub struct ChangedScan {
    id: RequestId,
    slot: Slot,
    since: Stamp,
    at: Option<SnapshotId>,
    cut: Stamp,
    start: u64,
    until: u64,
    /// Whether the volume goes on behind `until`.
    goes_on: bool,
    /// What the memtables had when this was asked.
    newer: BTreeMap<u64, Entry>,
}

/// The answer to a [`ChangedScan`]: give it to `Store::changed_scanned`.
#[derive(Debug)]
pub struct ChangedScanned {
    id: RequestId,
    slot: Slot,
    at: Option<SnapshotId>,
    result: Result<ChangedPage, CheckpointError>,
}

impl ChangedScan {
    /// Scans. Blocks for as long as the map's store takes.
    #[must_use]
    pub fn run(mut self, meta: &dyn MetaStore) -> ChangedScanned {
        let newer = std::mem::take(&mut self.newer);
        let result = self.scan(meta, newer);
        ChangedScanned { id: self.id, slot: self.slot, at: self.at, result }
    }

    fn scan(
        &self,
        meta: &dyn MetaStore,
        mut newer: BTreeMap<u64, Entry>,
    ) -> Result<ChangedPage, CheckpointError> {
        let mut versions = Vec::new();
        let mut add = |block: u64, entry: Entry| {
            let told = !(entry.is_tombstone() && planted::is(PlantedFault::ForgetDiscards));
            if entry.stamp > self.since && told {
                append(&mut versions, block, entry.stamp, entry.is_tombstone());
            }
        };
        let (first, end) = (self.start / GROUP_BLOCKS, self.until.div_ceil(GROUP_BLOCKS));
        scan_groups(meta, self.slot, first, end, self.cut, &mut |group, stored, _| {
            for (at, entry) in stored.0.into_iter().enumerate() {
                let block = group * GROUP_BLOCKS + at as u64;
                let Some(entry) = entry.filter(|_| (self.start..self.until).contains(&block)) else {
                    continue;
                };
                while let Some((earlier, found)) = first_before(&mut newer, block) {
                    add(earlier, found);
                }
                let found = newer.remove(&block).filter(|newer| newer.stamp > entry.stamp);
                add(block, found.unwrap_or(entry));
            }
            ControlFlow::Continue(())
        })?;
        for (block, entry) in newer {
            add(block, entry);
        }
        Ok(ChangedPage { versions, next: self.goes_on.then_some(self.until) })
    }
}

fn first_before(newer: &mut BTreeMap<u64, Entry>, block: u64) -> Option<(u64, Entry)> {
    let first = newer.first_entry().filter(|first| *first.key() < block)?;
    Some(first.remove_entry())
}

impl Store {
    pub(super) fn changed(
        &mut self,
        id: RequestId,
        volume: VolumeId,
        at: Option<SnapshotId>,
        since: Stamp,
        start: u64,
    ) -> Result<(), RequestError> {
        let slot = self.find(volume)?;
        let cut = self.cut(slot, at)?;
        let Some(known) = self.volumes.get(slot) else { return Err(RequestError::NoSuchVolume(volume)) };
        let blocks = known.blocks;
        let Some(start) = known.regions.next_changed(start, since).filter(|start| *start < blocks) else {
            self.complete(id, Ok(Reply::Changed(ChangedPage::default())));
            return Ok(());
        };
        let until = blocks.min((start / WINDOW_BLOCKS + 1) * WINDOW_BLOCKS);
        let mut newer: BTreeMap<u64, Entry> = BTreeMap::new();
        for table in self.frozen.as_deref().into_iter().chain([&self.active]) {
            for (block, entry) in table.within(slot, start, until, cut) {
                let place = newer.entry(block).or_insert(entry);
                if entry.stamp > place.stamp {
                    *place = entry;
                }
            }
        }
        let scan = ChangedScan { id, slot, at, since, cut, start, until, goes_on: until < blocks, newer };
        self.scans += 1;
        self.actions.push(Action::ScanChanged(Box::new(scan)));
        Ok(())
    }

    /// The background thread has looked through what [`Action::ScanChanged`] asked for.
    pub fn changed_scanned(&mut self, scanned: ChangedScanned) {
        self.scans -= 1;
        let found = scanned.result.map_err(|error| RequestError::Medium(error.to_string()));
        // A snapshot that was deleted meanwhile may have been thinned out under the scan.
        let result = self.cut(scanned.slot, scanned.at).and(found);
        self.complete(scanned.id, result.map(Reply::Changed));
    }
}
