//! Placing what another member holds, under the stamps that it came with.
//!
//! A version that is placed may be older than what was written or discarded here meanwhile. Versions
//! in memtables and map settle that by their stamps. One case needs more: a discard of blocks that
//! this replica has never had leaves no trace in the map, so an older version placed later would
//! appear again. Hence, while a volume is pulled, its discards are kept aside as well.
//!
//! Invariant: a place is journaled with what stands against all discards submitted before its batch
//! was started, whether they have been applied, merged, or left no trace. Discards submitted later
//! are journaled later, and find the placed version in the memtable or the map.

use bytes::Bytes;
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{BlockCrc, BlockRange, BlockTag, Stamp, VolumeId};

use super::Store;
use super::entry::BlockKey;
use super::extents::{append, blocks};
use super::memtable::Memtable;
use super::record::{Record, Slot};
use super::request::{Placement, RequestError, RequestId, TailExtent};
use super::snapshots::{NO_SNAPSHOTS, Snapshots};
use super::version::Origin;
use super::volume::TAIL_EXTENTS_MAX;
use crate::planted::{self, PlantedFault};

/// Runs in one place, and discarded blocks in it: what one journal record or memtable may get.
pub const PLACE_RUNS_MAX: usize = 256;
/// See [`PLACE_RUNS_MAX`].
pub const PLACE_TOMBSTONES_MAX: u32 = 4096;
/// Discards kept aside for one volume; a pull during which there are more begins anew.
const DISCARDS_MAX: usize = 1 << 18;

/// A place that waits for its batch.
#[derive(Debug)]
pub(super) struct QueuedPlace {
    pub(super) id: RequestId,
    pub(super) slot: Slot,
    pub(super) origin: Origin,
    pub(super) versions: Vec<TailExtent>,
    pub(super) crcs: Vec<BlockCrc>,
    pub(super) tags: Vec<BlockTag>,
    pub(super) segments: Vec<Bytes>,
}

impl QueuedPlace {
    /// Blocks that it places a tombstone on.
    pub(super) fn tombstones(&self) -> u32 {
        self.versions.iter().filter(|run| run.discard).map(|run| run.range.count).sum()
    }
}

/// The discards of a volume since a pull of it began, and those that may not have reached its
/// source before.
#[derive(Debug, Default)]
pub(super) struct Pulled {
    pulls: u32,
    /// Older ones have reached the source, or were never acknowledged and do not count.
    floor: Stamp,
    discards: Memtable,
    overflowed: bool,
}

/// What becomes of a run that is to be placed.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    /// In the place of the run's blocks, in their order.
    pub(super) standing: Vec<TailExtent>,
    /// Tombstones that stand besides: snapshots show what is below them.
    pub(super) above: Vec<TailExtent>,
}

impl Pulled {
    fn note(&mut self, slot: Slot, range: BlockRange, stamp: Stamp, snapshots: &Snapshots) {
        if stamp < self.floor {
            return;
        }
        if self.discards.len() >= DISCARDS_MAX {
            self.overflowed = true;
            return;
        }
        self.discards.discard(slot, range, stamp, Origin::Live, snapshots, |_| ());
    }

    /// What stands of a run that is to be placed, and the discards that came over it since a snapshot.
    pub(super) fn resolve(&self, slot: Slot, run: TailExtent, snapshots: &Snapshots) -> Resolved {
        if self.discards.is_empty() {
            return Resolved { standing: vec![run], above: Vec::new() };
        }
        let mut resolved = Resolved::default();
        for (block, stamp) in blocks(run) {
            let interval = snapshots.interval(stamp);
            let mut standing = (stamp, run.discard);
            for discard in self.discards.versions_of(BlockKey { slot, block }) {
                if discard.stamp > interval.until {
                    append(&mut resolved.above, block, discard.stamp, true);
                } else if discard.stamp >= standing.0 {
                    standing = (discard.stamp, true);
                }
            }
            append(&mut resolved.standing, block, standing.0, standing.1);
        }
        resolved
    }
}

impl Store {
    /// A pull or repair of a volume begins: from now on places of older versions than what is
    /// discarded here from `floor` on are told apart. To be ended by [`Store::end_pull`]; they may
    /// overlap, and then the highest floor counts.
    pub fn begin_pull(&mut self, volume: VolumeId, floor: Stamp) {
        let Some(slot) = self.volumes.find(volume) else { return };
        let pulls = match self.pulled.get_mut(&slot) {
            Some(pulled) if pulled.floor >= floor => {
                pulled.pulls += 1;
                return;
            }
            Some(pulled) => pulled.pulls + 1,
            None => 1,
        };
        // Up to the stable stamp, the source has had every discard before it is asked anything.
        let tail = self.volumes.get(slot).into_iter().flat_map(|volume| volume.tail.iter().copied());
        let mut discards: Vec<TailExtent> = tail.filter(|extent| extent.discard).collect();
        let queued = self.records.iter().map(|queued| &queued.record);
        let on_their_way = queued.chain(self.batches.iter().flat_map(|batch| batch.records()));
        discards.extend(on_their_way.filter_map(|record| match record {
            Record::Discard { slot: of, range, stamp } if *of == slot => {
                Some(TailExtent { range: *range, stamp: *stamp, discard: true })
            }
            _ => None,
        }));
        discards.sort_unstable_by_key(|extent| extent.stamp);
        let mut pulled = Pulled { pulls, floor, ..Pulled::default() };
        let snapshots = self.volumes.get(slot).map_or(&NO_SNAPSHOTS, |volume| &volume.snapshots);
        for extent in discards {
            pulled.note(slot, extent.range, extent.stamp, snapshots);
        }
        self.pulled.insert(slot, pulled);
    }

    /// All places of the pull have completed, or need not be right: the pull has failed.
    pub fn end_pull(&mut self, volume: VolumeId) {
        let Some(slot) = self.volumes.find(volume) else { return };
        if let Some(pulled) = self.pulled.get_mut(&slot) {
            pulled.pulls -= 1;
            if pulled.pulls == 0 {
                self.pulled.remove(&slot);
            }
        }
    }

    pub(super) fn note_discard(&mut self, slot: Slot, range: BlockRange, stamp: Stamp) {
        if let Some(pulled) = self.pulled.get_mut(&slot) {
            let snapshots = self.volumes.get(slot).map_or(&NO_SNAPSHOTS, |volume| &volume.snapshots);
            pulled.note(slot, range, stamp, snapshots);
        }
    }

    pub(super) fn accept_place(
        &mut self,
        id: RequestId,
        volume: VolumeId,
        placement: Placement,
    ) -> Result<(), RequestError> {
        let Placement { versions, crcs, tags, segments, repair } = placement;
        self.check_tags(volume, crcs.len(), tags.len())?;
        let slot = self.find(volume)?;
        let overflowed = self.pulled.get(&slot).is_some_and(|pulled| pulled.overflowed);
        let Some(known) = self.volumes.get_mut(slot) else {
            return Err(RequestError::NoSuchVolume(volume));
        };
        let (mut data, mut tombstones) = (0, 0u32);
        for run in &versions {
            let range = run.range;
            let sum = if run.discard { &mut tombstones } else { &mut data };
            *sum = sum.saturating_add(range.count);
            if !range.fits(known.blocks) || data > IO_BLOCKS_MAX || tombstones > PLACE_TOMBSTONES_MAX {
                return Err(RequestError::OutOfRange { range, blocks: known.blocks });
            }
        }
        assert!(versions.len() <= PLACE_RUNS_MAX, "a place of {} runs", versions.len());
        assert_eq!(data as usize, crcs.len(), "a checksum for each block that is not discarded");
        if known.tail.len() >= TAIL_EXTENTS_MAX || overflowed {
            return Err(RequestError::TailTooLong { extents: known.tail.len().max(DISCARDS_MAX) });
        }
        known.outstanding += 1;
        let origin = match repair {
            true => Origin::Repaired,
            false if known.tie.is_some() && planted::is(PlantedFault::FlattenOverNewer) => Origin::Live,
            false => Origin::Placed,
        };
        self.places.push_back(QueuedPlace { id, slot, origin, versions, crcs, tags, segments });
        Ok(())
    }
}
