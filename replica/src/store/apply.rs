//! Carrying out what is journaled: the same for a live change and, record by record, for replay.

use trivet_model::{BlockCrc, BlockRange, BlockTag, Stamp};

use super::Store;
use super::entry::{BlockKey, Entry};
use super::memtable::{Insertion, Memtable};
use super::record::{Record, Slot};
use super::request::TailExtent;
use super::version::{Origin, Version};
use super::volume::{Volume, VolumeTable};
use crate::planted::{self, PlantedFault};

#[derive(Debug)]
pub(super) enum Change {
    /// Blocks `start..` now lie in these runs of pool blocks.
    Write {
        origin: Origin,
        slot: Slot,
        start: u64,
        stamp: Stamp,
        crcs: Vec<BlockCrc>,
        tags: Vec<BlockTag>,
        runs: Runs,
    },
    Record(Record),
}

/// Runs of pool blocks: first block and length. Nearly always one.
#[derive(Debug, Default)]
pub(super) struct Runs {
    first: (u64, u32),
    more: Vec<(u64, u32)>,
}

impl Runs {
    pub(super) fn push(&mut self, physical: u64, count: u32) {
        if self.first.1 == 0 { self.first = (physical, count) } else { self.more.push((physical, count)) }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u32)> {
        std::iter::once(self.first).chain(self.more.iter().copied())
    }
}

impl Store {
    /// Makes a change visible; journal block `sequence` and all before it are written.
    pub(super) fn apply(&mut self, change: Change, sequence: u64) {
        match change {
            Change::Write { origin, slot, start, stamp, crcs, tags, runs } => {
                let physical = runs.iter().flat_map(|(first, count)| first..first + u64::from(count));
                let Some(volume) = self.volumes.get_mut(slot).filter(|volume| volume.is_live()) else {
                    for block in physical {
                        self.allocator.quarantine(block, sequence, self.reads.next());
                    }
                    return;
                };
                let range = BlockRange::new(start, u32::try_from(crcs.len()).unwrap_or(u32::MAX));
                let origin = volume.note(TailExtent { range, stamp, discard: false }, origin);
                let forget = planted::is(PlantedFault::ForgetPlacedTags) && origin != Origin::Live;
                let tags = if forget { vec![BlockTag::default(); tags.len()] } else { tags };
                if !tags.is_empty() {
                    let mut tags = tags.as_slice();
                    for (first, count) in runs.iter() {
                        let (of_run, rest) = tags.split_at(count as usize);
                        self.active.tags.insert_run(first, of_run);
                        tags = rest;
                    }
                }
                for ((at, physical), crc) in physical.enumerate().zip(crcs) {
                    let key = BlockKey { slot, block: start + at as u64 };
                    let entry = Entry { stamp: stamp.plus(at as u64), physical, crc };
                    let version = Version::new(entry, origin);
                    let gone = match self.active.insert(key, version, &volume.snapshots) {
                        Insertion::Newest { superseded } => superseded,
                        Insertion::Outdated => Some(physical),
                    };
                    if let Some(gone) = gone {
                        self.active.tags.remove(gone);
                        self.allocator.quarantine(gone, sequence, self.reads.next());
                    }
                }
            }
            Change::Record(record) => {
                let (allocator, barrier) = (&mut self.allocator, self.reads.next());
                let quarantine = |gone| allocator.quarantine(gone, sequence, barrier);
                apply_record(&mut self.volumes, &mut self.active, &record, quarantine);
                // The space of what is deleted comes back with the next checkpoint.
                self.maintenance.requested |= matches!(
                    record,
                    Record::Delete { .. }
                        | Record::DeleteSnapshot { .. }
                        | Record::Reset { .. }
                        | Record::Untie { .. }
                );
            }
        }
    }
}

/// Carries out a record other than a write. Calls `superseded` with pool blocks that are no longer
/// referenced.
pub(super) fn apply_record(
    volumes: &mut VolumeTable,
    active: &mut Memtable,
    record: &Record,
    mut superseded: impl FnMut(u64),
) {
    match record {
        Record::Write { .. } => unreachable!("writes are applied block by block"),
        Record::Discard { slot, range, stamp } => {
            if let Some(volume) = volumes.get_mut(*slot).filter(|volume| volume.is_live()) {
                let extent = TailExtent { range: *range, stamp: *stamp, discard: true };
                let origin = volume.note(extent, Origin::Live);
                active.discard(*slot, *range, *stamp, origin, &volume.snapshots, superseded);
            }
        }
        Record::PlaceTombstones { slot, range, stamp } => {
            if let Some(volume) = volumes.get_mut(*slot).filter(|volume| volume.is_live()) {
                volume.note(TailExtent { range: *range, stamp: *stamp, discard: true }, Origin::Placed);
                for (at, block) in range.blocks().enumerate() {
                    let tombstone = Version::placed_tombstone(stamp.plus(at as u64));
                    let key = BlockKey { slot: *slot, block };
                    let outcome = active.insert(key, tombstone, &volume.snapshots);
                    if let Insertion::Newest { superseded: Some(old) } = outcome {
                        superseded(old);
                    }
                }
            }
        }
        Record::Create { slot, volume, blocks, tie, tagged } => {
            if volumes.get(*slot).is_none() {
                let empty = tie
                    .map_or_else(|| Volume::new(*volume, *blocks), |tie| Volume::tied(*volume, *blocks, tie));
                volumes.insert(*slot, Volume { tagged: *tagged, ..empty });
            }
        }
        Record::Delete { slot } => {
            volumes.delete(*slot);
            remove_deleted(volumes, active, *slot, superseded);
        }
        Record::Untie { slot } => volumes.untie(*slot),
        Record::Resize { slot, blocks } => {
            if let Some(volume) = volumes.get_mut(*slot) {
                volume.blocks = volume.blocks.max(*blocks);
            }
        }
        Record::Promise { slot, generation, epoch, session } => {
            if let Some(volume) = volumes.get_mut(*slot)
                && *generation >= volume.generation
            {
                (volume.generation, volume.epoch, volume.session) = (*generation, *epoch, *session);
            }
        }
        Record::Progress { slot, progress } => {
            if let Some(volume) = volumes.get_mut(*slot) {
                volume.note_progress(*progress);
                volume.progress_recorded = volume.progress;
            }
        }
        Record::Snapshot { slot, snapshot } => {
            if let Some(volume) = volumes.get_mut(*slot) {
                volume.add_snapshot(*snapshot);
            }
        }
        Record::Reset { slot, next } => {
            volumes.reset(*slot, *next);
            remove_deleted(volumes, active, *slot, superseded);
        }
        Record::DeleteSnapshot { slot, id } => volumes.remove_snapshot(*slot, *id),
    }
}

/// Drops what a deleted volume has in the memtable. (What an ancestor has there is merged as ever.)
fn remove_deleted(volumes: &VolumeTable, active: &mut Memtable, slot: Slot, superseded: impl FnMut(u64)) {
    if volumes.get(slot).is_none_or(Volume::is_deleted) {
        active.remove_volume(slot, superseded);
    }
}
