//! A volume's state within the pool, and its image in a checkpoint.
//!
//! Value of a volume in the map, little-endian: id (16), blocks (8), blocks_used (8), generation
//! (4), epoch (8), session (8), last (8), highest placed (8), committed (8), stable (8), intact limit
//! (8; all ones for none), life (1), encrypted (1), then the tail: count (4) and per entry start (8), count
//! (4), stamp (8), discard (1). Then the highest cut that it ever had (8), its cuts: count (4) and per cut the
//! snapshot's id (16), cut (8), kept (1), and what is being thinned out: count (4) and per entry from (8), until
//! (8), group (8). At last, of a clone the parent's slot (4; all ones for none) and the cut that it is read as of
//! (8).

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut, TryGetError};
use hashbrown::HashMap;
use trivet_model::{BlockRange, Epoch, Generation, Stamp, VolumeId};

use super::lineage::Tie;
use super::record::Slot;
use super::regions::Regions;
use super::request::{TailExtent, VolumeProgress, VolumeStatistics};
use super::snapshots::{SNAPSHOTS_MAX, Snapshot, Snapshots};
use super::thinning::{THINNING_BYTES, Thinning};
use super::version::Origin;

/// Most writes that may be above the volume's stable stamp: what a hostile engine can make us keep.
pub(crate) const TAIL_EXTENTS_MAX: usize = 1 << 18;

/// Deleted snapshots that may wait to be thinned out.
pub(crate) const THINNINGS_MAX: usize = 4 * SNAPSHOTS_MAX;

const NO_LIMIT: u64 = u64::MAX;

/// ```text
/// Live ──deleted──► Ancestor ──no clone reads from it any more──► Deleted ──its blocks are freed──► gone
///   └────────────── deleted, and has no clones ──────────────────────►┘
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    Live,
    /// Has no name any more, and is kept for clones (`lineage.rs`).
    Ancestor,
    /// Its blocks are being freed.
    Deleted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) blocks: u64,
    /// Blocks referenced by the checkpointed map.
    pub(crate) blocks_used: u64,
    pub(crate) generation: Generation,
    pub(crate) epoch: Epoch,
    pub(crate) session: u64,
    pub(crate) last: Stamp,
    /// The highest stamp that was placed, not written live.
    pub(crate) placed_highest: Stamp,
    pub(crate) progress: VolumeProgress,
    /// After a loss of power: nothing above is known to be whole.
    pub(crate) intact_limit: Option<Stamp>,
    pub(crate) life: Life,
    /// A clone's: from where it is read where it has nothing of its own.
    pub(crate) tie: Option<Tie>,
    /// Encrypted: each of its blocks has a tag.
    pub(crate) tagged: bool,
    /// Writes and discards above the stable stamp, and above what the others hold for good, in the
    /// order they were carried out.
    pub(crate) tail: VecDeque<TailExtent>,
    pub(crate) snapshots: Snapshots,
    /// The highest cut that a snapshot ever had: no state of a group lies in a layer above it.
    pub(crate) layer_highest: Stamp,
    /// What deleted snapshots have left behind; the first is being thinned out.
    pub(crate) thinning: VecDeque<Thinning>,
    /// What the others hold for good. Not part of the image: a replay lists more, which is harmless.
    pub(crate) stable_elsewhere: Stamp,
    /// Has records of its own in the map. Not part of the image.
    pub(crate) regions: Regions,
    /// The progress that the journal knows. Not part of the image.
    pub(crate) progress_recorded: VolumeProgress,
    /// Writes and discards submitted and not completed. Not part of the image.
    pub(crate) outstanding: u32,
}

/// A volume's record in the map makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("volume record in the map makes no sense: {0}")]
pub struct VolumeDecodeError(&'static str);

impl From<TryGetError> for VolumeDecodeError {
    fn from(_: TryGetError) -> Self {
        Self("cut short")
    }
}

impl Volume {
    pub(crate) fn new(id: VolumeId, blocks: u64) -> Self {
        Self {
            id,
            blocks,
            blocks_used: 0,
            generation: Generation::ZERO,
            epoch: Epoch(0),
            session: 0,
            last: Stamp::ZERO,
            placed_highest: Stamp::ZERO,
            progress: VolumeProgress::default(),
            intact_limit: None,
            life: Life::Live,
            tie: None,
            tagged: false,
            tail: VecDeque::new(),
            snapshots: Snapshots::default(),
            layer_highest: Stamp::ZERO,
            thinning: VecDeque::new(),
            stable_elsewhere: Stamp::ZERO,
            regions: Regions::default(),
            progress_recorded: VolumeProgress::default(),
            outstanding: 0,
        }
    }

    /// A clone, which begins with what its parent shows: all of that is stable everywhere.
    pub(crate) fn tied(id: VolumeId, blocks: u64, tie: Tie) -> Self {
        let progress = VolumeProgress { committed: tie.cut, stable: tie.cut };
        Self { tie: Some(tie), progress, progress_recorded: progress, ..Self::new(id, blocks) }
    }

    pub(crate) fn statistics(&self) -> VolumeStatistics {
        VolumeStatistics {
            volume: self.id,
            blocks: self.blocks,
            tagged: self.tagged,
            blocks_used: self.blocks_used,
            generation: self.generation,
            epoch: self.epoch,
            session: self.session,
            last: self.last,
            intact: self.intact_limit.unwrap_or(Stamp::MAX),
            progress: self.progress,
            tied: self.tie.is_some(),
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.life == Life::Live
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.life == Life::Deleted
    }

    /// Notes versions before they are inserted, and answers how they stand against older tables: a
    /// live one that comes behind something placed is not known to be newer than all. What is placed
    /// below the stable stamp (as a replay would know it), all members hold: it is no part of the tail.
    pub(crate) fn note(&mut self, extent: TailExtent, origin: Origin) -> Origin {
        let last = last_stamp(extent);
        self.last = self.last.max(last);
        self.regions.note(extent.range, extent.stamp);
        if origin == Origin::Live {
            self.note_tail(extent);
            return if extent.stamp > self.placed_highest { Origin::Live } else { Origin::Placed };
        }
        self.placed_highest = self.placed_highest.max(last);
        if last > self.progress_recorded.stable {
            self.note_tail(extent);
        }
        origin
    }

    fn note_tail(&mut self, extent: TailExtent) {
        if last_stamp(extent) <= self.stable_elsewhere {
            return;
        }
        if let Some(back) = self.tail.back_mut()
            && back.discard == extent.discard
            && back.range.end() == extent.range.start
            && back.stamp.plus(u64::from(back.range.count)) == extent.stamp
            && let Some(count) = back.range.count.checked_add(extent.range.count)
        {
            back.range.count = count;
            return;
        }
        self.tail.push_back(extent);
    }

    pub(crate) fn add_snapshot(&mut self, snapshot: Snapshot) {
        self.snapshots.insert(snapshot);
        self.layer_highest = self.layer_highest.max(snapshot.cut);
    }

    /// Takes a cut away.
    pub(crate) fn remove_cut(&mut self, cut: Stamp) {
        if let Some(upper) = self.snapshots.remove(cut) {
            self.thinning.push_back(Thinning::of(upper));
        }
    }

    /// So much is left of what was being thinned out.
    pub(crate) fn thinned(&mut self, rest: Option<Thinning>) {
        match (self.thinning.front_mut(), rest) {
            (Some(begun), Some(rest)) => *begun = rest,
            (Some(_), None) => {
                self.thinning.pop_front();
            }
            (None, _) => {}
        }
    }

    pub(crate) fn note_progress(&mut self, progress: VolumeProgress) {
        self.progress.committed = self.progress.committed.max(progress.committed);
        self.progress.stable = self.progress.stable.max(progress.stable);
        let stable = self.progress.stable;
        if self.intact_limit.is_some_and(|limit| stable > limit) {
            self.intact_limit = None;
        }
        self.drop_from_tail(stable);
    }

    pub(crate) fn trim_tail(&mut self, stable: Stamp) {
        self.stable_elsewhere = self.stable_elsewhere.max(stable);
        self.drop_from_tail(stable);
    }

    fn drop_from_tail(&mut self, stable: Stamp) {
        while self.tail.pop_front_if(|front| last_stamp(*front) <= stable).is_some() {}
    }

    /// The newest version of each block in the tail above `since`, in order of blocks.
    pub(crate) fn tail_above(&self, since: Stamp) -> Vec<TailExtent> {
        let mut newest: BTreeMap<u64, TailExtent> = BTreeMap::new();
        let mut in_order: Vec<&TailExtent> = self.tail.iter().collect();
        in_order.sort_by_key(|extent| extent.stamp);
        for extent in in_order {
            overlay(&mut newest, *extent);
        }
        newest.into_values().filter_map(|extent| above(extent, since)).collect()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + self.tail.len() * 21);
        out.put_slice(self.id.as_bytes());
        out.put_u64_le(self.blocks);
        out.put_u64_le(self.blocks_used);
        out.put_u32_le(self.generation.get());
        out.put_u64_le(self.epoch.0);
        out.put_u64_le(self.session);
        out.put_u64_le(self.last.as_u64());
        out.put_u64_le(self.placed_highest.as_u64());
        out.put_u64_le(self.progress.committed.as_u64());
        out.put_u64_le(self.progress.stable.as_u64());
        out.put_u64_le(self.intact_limit.map_or(NO_LIMIT, Stamp::as_u64));
        out.put_u8(match self.life {
            Life::Live => 0,
            Life::Deleted => 1,
            Life::Ancestor => 2,
        });
        out.put_u8(u8::from(self.tagged));
        out.put_u32_le(u32::try_from(self.tail.len()).unwrap_or(u32::MAX));
        for extent in &self.tail {
            out.put_u64_le(extent.range.start);
            out.put_u32_le(extent.range.count);
            out.put_u64_le(extent.stamp.as_u64());
            out.put_u8(u8::from(extent.discard));
        }
        out.put_u64_le(self.layer_highest.as_u64());
        self.snapshots.encode(&mut out);
        out.put_u32_le(u32::try_from(self.thinning.len()).unwrap_or(u32::MAX));
        self.thinning.iter().for_each(|thinning| thinning.encode(&mut out));
        Tie::encode(self.tie, &mut out);
        out
    }

    pub(crate) fn decode(mut input: &[u8]) -> Result<Self, VolumeDecodeError> {
        let mut id = [0; 16];
        input.try_copy_to_slice(&mut id)?;
        let mut volume = Self::new(VolumeId::from_bytes(id), input.try_get_u64_le()?);
        volume.blocks_used = input.try_get_u64_le()?;
        volume.generation =
            Generation::new(input.try_get_u32_le()?).ok_or(VolumeDecodeError("generation"))?;
        volume.epoch = Epoch(input.try_get_u64_le()?);
        volume.session = input.try_get_u64_le()?;
        volume.last = Stamp::from_u64(input.try_get_u64_le()?);
        volume.placed_highest = Stamp::from_u64(input.try_get_u64_le()?);
        volume.progress.committed = Stamp::from_u64(input.try_get_u64_le()?);
        volume.progress.stable = Stamp::from_u64(input.try_get_u64_le()?);
        let limit = input.try_get_u64_le()?;
        volume.intact_limit = (limit != NO_LIMIT).then_some(Stamp::from_u64(limit));
        volume.life = match input.try_get_u8()? {
            0 => Life::Live,
            1 => Life::Deleted,
            2 => Life::Ancestor,
            _ => return Err(VolumeDecodeError("life")),
        };
        volume.tagged = input.try_get_u8()? != 0;
        let count = input.try_get_u32_le()? as usize;
        if count > TAIL_EXTENTS_MAX || input.len() < count * 21 {
            return Err(VolumeDecodeError("length of the tail"));
        }
        for _ in 0..count {
            volume.tail.push_back(TailExtent {
                range: BlockRange::new(input.try_get_u64_le()?, input.try_get_u32_le()?),
                stamp: Stamp::from_u64(input.try_get_u64_le()?),
                discard: input.try_get_u8()? != 0,
            });
        }
        volume.layer_highest = Stamp::from_u64(input.try_get_u64_le()?);
        volume.snapshots = Snapshots::decode(&mut input)?.ok_or(VolumeDecodeError("snapshots"))?;
        let count = input.try_get_u32_le()? as usize;
        // Every snapshot there was when the last was taken may have been deleted since.
        if count > THINNINGS_MAX + SNAPSHOTS_MAX || input.len() < count * THINNING_BYTES {
            return Err(VolumeDecodeError("length of what is thinned out"));
        }
        for _ in 0..count {
            volume.thinning.push_back(Thinning::decode(&mut input)?);
        }
        volume.tie = Tie::decode(&mut input)?;
        if input.has_remaining() { Err(VolumeDecodeError("what follows")) } else { Ok(volume) }
    }
}

fn last_stamp(extent: TailExtent) -> Stamp {
    extent.stamp.plus(u64::from(extent.range.count) - 1)
}

/// Puts an extent over older ones, cutting what it covers.
fn overlay(newest: &mut BTreeMap<u64, TailExtent>, extent: TailExtent) {
    while let Some((&start, &old)) = newest.range(..extent.range.end()).next_back() {
        if old.range.end() <= extent.range.start {
            break;
        }
        newest.remove(&start);
        if old.range.end() > extent.range.end() {
            let right = part(old, extent.range.end(), old.range.end());
            newest.insert(right.range.start, right);
        }
        if start < extent.range.start {
            newest.insert(start, part(old, start, extent.range.start));
        }
    }
    newest.insert(extent.range.start, extent);
}

/// The blocks `start..end` of an extent.
fn part(extent: TailExtent, start: u64, end: u64) -> TailExtent {
    let count = u32::try_from(end - start).unwrap_or(u32::MAX);
    TailExtent {
        range: BlockRange::new(start, count),
        stamp: extent.stamp.plus(start - extent.range.start),
        ..extent
    }
}

/// The part of an extent whose stamps are above `since`.
fn above(extent: TailExtent, since: Stamp) -> Option<TailExtent> {
    if extent.stamp > since {
        return Some(extent);
    }
    let covered = since.as_u64() - extent.stamp.as_u64() + 1;
    (covered < u64::from(extent.range.count))
        .then(|| part(extent, extent.range.start + covered, extent.range.end()))
}

/// Every volume of the pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct VolumeTable {
    by_slot: BTreeMap<Slot, Volume>,
    slots: HashMap<VolumeId, Slot>,
    next_slot: u32,
}

impl VolumeTable {
    pub(crate) fn with_next_slot(next_slot: u32) -> Self {
        Self { next_slot, ..Self::default() }
    }

    pub(crate) fn next_slot(&self) -> u32 {
        self.next_slot
    }

    pub(crate) fn take_slot(&mut self) -> Slot {
        let slot = Slot(self.next_slot);
        self.next_slot += 1;
        slot
    }

    pub(crate) fn insert(&mut self, slot: Slot, volume: Volume) {
        self.next_slot = self.next_slot.max(slot.0 + 1);
        if volume.is_live() {
            self.slots.insert(volume.id, slot);
        }
        self.by_slot.insert(slot, volume);
    }

    /// The volume in this slot is not found by its name any more.
    pub(crate) fn forget_name(&mut self, id: VolumeId, slot: Slot) {
        if self.slots.get(&id) == Some(&slot) {
            self.slots.remove(&id);
        }
    }

    pub(crate) fn remove(&mut self, slot: Slot) {
        self.by_slot.remove(&slot);
    }

    pub(crate) fn find(&self, id: VolumeId) -> Option<Slot> {
        self.slots.get(&id).copied()
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&Volume> {
        self.by_slot.get(&slot)
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Volume> {
        self.by_slot.get_mut(&slot)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, &Volume)> {
        self.by_slot.iter().map(|(slot, volume)| (*slot, volume))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut Volume)> {
        self.by_slot.iter_mut().map(|(slot, volume)| (*slot, volume))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use trivet_model::SnapshotId;

    fn extents() -> impl Strategy<Value = Vec<(u64, u32, bool)>> {
        prop::collection::vec((0u64..60, 1u32..20, any::<bool>()), 0..30)
    }

    proptest! {
        #[test]
        fn tail_agrees_with_a_stamp_a_block_and_round_trips(
            extents in extents(), since in 0u64..300, cuts in prop::collection::btree_set(1u64..300, 0..6))
        {
            let mut volume = Volume { tagged: since % 2 == 0, ..Volume::new(VolumeId::from_bytes([3; 16]), 100) };
            for cut in &cuts {
                let id = SnapshotId::from_bytes(u128::from(*cut).to_le_bytes());
                volume.add_snapshot(Snapshot { id, cut: Stamp::from_u64(*cut) });
            }
            let lowest = volume.snapshots.cuts().next();
            if let Some(cut) = lowest {
                volume.remove_cut(cut);
                volume.tie = Some(Tie { parent: Slot(2), cut });
                volume.life = Life::Ancestor;
            }
            let mut oracle = BTreeMap::new();
            let mut stamp = Stamp::from_u64(1);
            for (start, count, discard) in extents {
                let extent = TailExtent { range: BlockRange::new(start, count), stamp, discard };
                volume.note(extent, Origin::Live);
                for (at, block) in extent.range.blocks().enumerate() {
                    oracle.insert(block, (stamp.plus(at as u64), discard));
                }
                stamp = stamp.plus(u64::from(count));
            }
            let image = Volume { regions: Regions::default(), ..volume.clone() };
            prop_assert_eq!(Volume::decode(&volume.encode()), Ok(image));
            let since = Stamp::from_u64(since);
            let mut found = BTreeMap::new();
            for extent in volume.tail_above(since) {
                for (at, block) in extent.range.blocks().enumerate() {
                    prop_assert!(found.insert(block, (extent.stamp.plus(at as u64), extent.discard)).is_none());
                }
            }
            oracle.retain(|_, (stamp, _)| *stamp > since);
            prop_assert_eq!(&found, &oracle);
            volume.note_progress(VolumeProgress { committed: since, stable: since });
            let after: u64 = volume.tail_above(since).iter().map(|e| u64::from(e.range.count)).sum();
            prop_assert_eq!(after, oracle.len() as u64);
        }
    }

    #[test]
    fn what_others_hold_for_good_is_not_in_the_tail_however_much_is_placed() {
        let mut volume = Volume::new(VolumeId::from_bytes([3; 16]), 1 << 20);
        let extent = |block: u64, stamp: u64| TailExtent {
            range: BlockRange::new(block, 1),
            stamp: Stamp::from_u64(stamp),
            discard: false,
        };
        volume.note(extent(7, 50), Origin::Live);
        volume.trim_tail(Stamp::from_u64(100));
        for block in 0..1000 {
            volume.note(extent(2 * block, 100 - block % 90), Origin::Placed);
        }
        assert_eq!((volume.tail.len(), volume.last), (0, Stamp::from_u64(100)));
        volume.note(extent(3, 101), Origin::Placed);
        volume.note(extent(5, 200), Origin::Live);
        assert_eq!(volume.tail_above(Stamp::ZERO), [extent(3, 101), extent(5, 200)]);
        volume.trim_tail(Stamp::from_u64(150));
        assert_eq!(volume.tail_above(Stamp::ZERO), [extent(5, 200)]);
    }
}
