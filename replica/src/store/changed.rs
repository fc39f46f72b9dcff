//! What changed since a stamp: how a member that comes back finds what it lacks.
//!
//! The memtables' versions are collected when the request comes, the map is scanned afterwards, off
//! the store's thread and past the cache. A checkpoint may commit in between: then the map's version
//! is as new or newer, and stamps tell. So nothing is missed that was there when the request came.
//!
//! Regions in which no stamp is high enough are passed over: the cost follows what changed. Where a clone
//! has nothing of its own, what its ancestors show is looked at in the same way; their stamps are lower, so
//! "since" separates the clone's own changes from what it began with.

use std::collections::HashSet;
use std::ops::ControlFlow;

use trivet_model::{SnapshotId, Stamp, VolumeId};

use super::Store;
use super::checkpoint::CheckpointError;
use super::entry::{Entry, GROUP_BLOCKS};
use super::extents::append;
use super::lineage::Tie;
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
    look: Look,
    /// The volume's own versions, then those of its ancestors, the nearest first.
    levels: Vec<Level>,
    start: u64,
    until: u64,
    /// Whether the volume goes on behind `until`.
    goes_on: bool,
}

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    /// Versions above a stamp, as a snapshot shows them, or as they are now.
    Since { at: Option<SnapshotId>, since: Stamp },
    /// Data of ancestors that the volume or one of its snapshots shows; and discards that hide some, as far
    /// as they are in the memtables only, where nothing but the tie says that they leave a trace in the map.
    Inherited,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    slot: Slot,
    what: What,
}

/// One volume of a lineage.
#[derive(Debug)]
struct Level {
    slot: Slot,
    cut: Stamp,
    /// What the memtables had when this was asked.
    newer: Vec<(u64, Entry)>,
}

/// The answer to a [`ChangedScan`]: give it to `Store::changed_scanned`.
#[derive(Debug)]
pub struct ChangedScanned {
    id: RequestId,
    look: Look,
    lineage: Vec<Tie>,
    start: u64,
    result: Result<ChangedPage, CheckpointError>,
}

impl ChangedScan {
    /// Scans. Blocks for as long as the map's store takes.
    #[must_use]
    pub fn run(self, meta: &dyn MetaStore) -> ChangedScanned {
        let result = self.scan(meta);
        let ancestors = self.levels.iter().skip(1);
        let lineage = ancestors.map(|level| Tie { parent: level.slot, cut: level.cut }).collect();
        ChangedScanned { id: self.id, look: self.look, lineage, start: self.start, result }
    }

    fn scan(&self, meta: &dyn MetaStore) -> Result<ChangedPage, CheckpointError> {
        let own = self.level(meta, &self.levels[0])?;
        let mut inherited: Vec<Option<Entry>> = vec![None; own.len()];
        for ancestor in &self.levels[1..] {
            for (place, shown) in inherited.iter_mut().zip(self.level(meta, ancestor)?) {
                *place = place.or(shown);
            }
        }
        let recent: HashSet<u64> = self.levels[0].newer.iter().map(|(block, _)| *block).collect();
        let mut versions = Vec::new();
        for (block, (own, inherited)) in (self.start..).zip(own.into_iter().zip(inherited)) {
            // What an ancestor has discarded is just a hole here.
            let inherited = inherited.filter(|inherited| !inherited.is_tombstone());
            let Some(entry) = own.or(inherited) else { continue };
            let hides = entry.is_tombstone() && inherited.is_some() && recent.contains(&block);
            let wanted = match self.look.what {
                What::Since { since, .. } => entry.stamp > since,
                What::Inherited => own.is_none() || hides,
            };
            let told = !(entry.is_tombstone() && planted::is(PlantedFault::ForgetDiscards));
            if wanted && told {
                append(&mut versions, block, entry.stamp, entry.is_tombstone());
            }
        }
        Ok(ChangedPage { versions, next: self.goes_on.then_some(self.until) })
    }

    /// What a volume shows by itself, block by block.
    fn level(&self, meta: &dyn MetaStore, level: &Level) -> Result<Vec<Option<Entry>>, CheckpointError> {
        let index = |block: u64| usize::try_from(block - self.start).unwrap_or(usize::MAX);
        let mut found: Vec<Option<Entry>> = vec![None; index(self.until)];
        let (first, end) = (self.start / GROUP_BLOCKS, self.until.div_ceil(GROUP_BLOCKS));
        scan_groups(meta, level.slot, first, end, level.cut, &mut |group, stored, _| {
            for (block, entry) in (group * GROUP_BLOCKS..).zip(stored.0) {
                if entry.is_some() && (self.start..self.until).contains(&block) {
                    found[index(block)] = entry;
                }
            }
            ControlFlow::Continue(())
        })?;
        for (block, newer) in &level.newer {
            let place = &mut found[index(*block)];
            *place = Some(place.filter(|stored| stored.stamp >= newer.stamp).unwrap_or(*newer));
        }
        Ok(found)
    }
}

impl Store {
    pub(super) fn changed(
        &mut self,
        id: RequestId,
        volume: VolumeId,
        what: What,
        start: u64,
    ) -> Result<(), RequestError> {
        let look = Look { slot: self.find(volume)?, what };
        self.look_through(id, look, start)
    }

    fn look_through(&mut self, id: RequestId, look: Look, start: u64) -> Result<(), RequestError> {
        let Look { slot, what } = look;
        let (cut, since) = match what {
            What::Since { at, since } => (self.cut(slot, at)?, since),
            // What no cut parts from the beginning.
            What::Inherited => (self.lowest_cut(slot), Stamp::ZERO),
        };
        let blocks = self.volumes.get(slot).map_or(0, |volume| volume.blocks);
        let lineage = self.volumes.lineage(slot);
        let ancestors: Vec<(Slot, Stamp)> = lineage.iter().map(|tie| (tie.parent, tie.cut)).collect();
        // The volume's own changes are not what it has inherited.
        let own = std::iter::once(slot).filter(|_| what != What::Inherited);
        let slots = own.chain(ancestors.iter().map(|(ancestor, _)| *ancestor));
        let regions = slots.filter_map(|slot| self.volumes.get(slot)).map(|volume| &volume.regions);
        let first = regions.filter_map(|regions| regions.next_changed(start, since)).min();
        let Some(start) = first.filter(|start| *start < blocks) else {
            self.complete(id, Ok(Reply::Changed(ChangedPage::default())));
            return Ok(());
        };
        let until = blocks.min((start / WINDOW_BLOCKS + 1) * WINDOW_BLOCKS);
        let mut levels = Vec::with_capacity(1 + ancestors.len());
        for (slot, cut) in std::iter::once((slot, cut)).chain(ancestors) {
            let mut newer = Vec::new();
            for table in self.frozen.as_deref().into_iter().chain([&self.active]) {
                newer.extend(table.within(slot, start, until, cut));
            }
            levels.push(Level { slot, cut, newer });
        }
        self.scans += 1;
        let scan = ChangedScan { id, look, levels, start, until, goes_on: until < blocks };
        self.actions.push(Action::ScanChanged(Box::new(scan)));
        Ok(())
    }

    /// The lowest cut of a volume: what it shows, and no ancestor, every view of the volume shows.
    pub(super) fn lowest_cut(&self, slot: Slot) -> Stamp {
        let volume = self.volumes.get(slot);
        volume.and_then(|volume| volume.snapshots.cuts().next()).unwrap_or(Stamp::MAX)
    }

    /// The background thread has looked through what [`Action::ScanChanged`] asked for.
    pub fn changed_scanned(&mut self, scanned: ChangedScanned) {
        self.scans -= 1;
        let ChangedScanned { id, look, lineage, start, result } = scanned;
        // A snapshot that was deleted meanwhile may have been thinned out under the scan, and so may what
        // an ancestor showed that is one no more.
        if let What::Since { at, .. } = look.what
            && let Err(error) = self.cut(look.slot, at)
        {
            return self.complete(id, Err(error));
        }
        if self.volumes.lineage(look.slot) != lineage {
            if let Err(error) = self.look_through(id, look, start) {
                self.complete(id, Err(error));
            }
            return;
        }
        let result = result.map_err(|error| RequestError::Medium(error.to_string()));
        self.complete(id, result.map(Reply::Changed));
    }
}
