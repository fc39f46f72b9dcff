//! What changed since the last checkpoint: entries by block, and discarded ranges.
//!
//! Invariants
//! - A point within a range is newer than the range: a discard removes the points it covers.
//! - Ranges do not overlap.

use std::collections::BTreeMap;

use hashbrown::{HashMap, hash_map};
use trivet_model::{BlockRange, Stamp};

use super::entry::{BlockKey, Entry};
use super::record::Slot;

#[derive(Debug, Default)]
pub(crate) struct Memtable {
    points: HashMap<BlockKey, Entry>,
    ranges: BTreeMap<BlockKey, Range>,
}

/// Discarded blocks from the map's key on.
#[derive(Clone, Copy, Debug)]
struct Range {
    end: u64,
    /// The first block's; consecutive from there.
    stamp: Stamp,
}

/// A shorter discard is kept as points.
const RANGE_BLOCKS_MIN: u32 = 16;

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Placed {
    /// It is the newest version; the pool block given, if any, is no longer referenced.
    Newest { superseded: Option<u64> },
    /// A newer version is there already.
    Outdated,
}

impl Memtable {
    /// Entries and ranges held: what bounds memory.
    pub(crate) fn len(&self) -> usize {
        self.points.len() + self.ranges.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.points.is_empty() && self.ranges.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.points.clear();
        self.ranges.clear();
    }

    /// The newest version that changed here; `None` when the block did not change.
    pub(crate) fn lookup(&self, key: BlockKey) -> Option<Entry> {
        self.points.get(&key).copied().or_else(|| covering(&self.ranges, key))
    }

    /// The tombstone of a discarded range that covers the block; points, which are newer, apart.
    pub(crate) fn lookup_range(&self, key: BlockKey) -> Option<Entry> {
        covering(&self.ranges, key)
    }

    /// Takes a version unless a newer one is there. An equal stamp is the same write sent again:
    /// the later copy takes the place of the earlier.
    pub(crate) fn insert(&mut self, key: BlockKey, entry: Entry) -> Placed {
        match self.points.entry(key) {
            hash_map::Entry::Occupied(present) if present.get().stamp > entry.stamp => Placed::Outdated,
            hash_map::Entry::Occupied(mut present) => {
                let old = present.insert(entry);
                Placed::Newest { superseded: (!old.is_tombstone()).then_some(old.physical) }
            }
            hash_map::Entry::Vacant(_)
                if covering(&self.ranges, key).is_some_and(|old| old.stamp > entry.stamp) =>
            {
                Placed::Outdated
            }
            hash_map::Entry::Vacant(place) => {
                place.insert(entry);
                Placed::Newest { superseded: None }
            }
        }
    }

    /// Discards blocks; calls `superseded` with each pool block that is no longer referenced.
    /// Blocks with newer versions keep them.
    pub(crate) fn discard(
        &mut self,
        slot: Slot,
        range: BlockRange,
        stamp: Stamp,
        mut superseded: impl FnMut(u64),
    ) {
        if range.count < RANGE_BLOCKS_MIN {
            for (at, block) in range.blocks().enumerate() {
                let tombstone = Entry::tombstone(stamp.plus(at as u64));
                if let Placed::Newest { superseded: Some(old) } =
                    self.insert(BlockKey { slot, block }, tombstone)
                {
                    superseded(old);
                }
            }
            return;
        }
        let mut kept = Vec::new();
        let mut drop_point = |key: &BlockKey, entry: &Entry| {
            if entry.stamp > stamp.plus(key.block - range.start) {
                kept.push((*key, *entry));
            } else if !entry.is_tombstone() {
                superseded(entry.physical);
            }
        };
        if (range.count as usize) < self.points.len() {
            for block in range.blocks() {
                let key = BlockKey { slot, block };
                if let Some(entry) = self.points.remove(&key) {
                    drop_point(&key, &entry);
                }
            }
        } else {
            self.points.retain(|key, entry| {
                let covered = key.slot == slot && (range.start..range.end()).contains(&key.block);
                if covered {
                    drop_point(key, entry);
                }
                !covered
            });
        }
        self.points.extend(kept);
        self.cut_ranges(slot, range);
        self.ranges.insert(BlockKey { slot, block: range.start }, Range { end: range.end(), stamp });
    }

    /// Removes everything of a volume; calls `superseded` with the pool blocks it held.
    pub(crate) fn remove_volume(&mut self, slot: Slot, mut superseded: impl FnMut(u64)) {
        self.points.retain(|key, entry| {
            if key.slot == slot && !entry.is_tombstone() {
                superseded(entry.physical);
            }
            key.slot != slot
        });
        self.ranges.retain(|key, _| key.slot != slot);
    }

    /// Every point, in no order.
    pub(crate) fn points(&self) -> impl Iterator<Item = (BlockKey, Entry)> + '_ {
        self.points.iter().map(|(key, entry)| (*key, *entry))
    }

    /// Every discarded range, in order: volume, first block, block after the last.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (Slot, u64, u64)> + '_ {
        self.ranges.iter().map(|(key, range)| (key.slot, key.block, range.end))
    }

    /// Cuts a hole into the ranges where a new one goes.
    fn cut_ranges(&mut self, slot: Slot, hole: BlockRange) {
        let until = BlockKey { slot, block: hole.end() };
        while let Some((&first, &range)) = self.ranges.range(..until).next_back() {
            if first.slot != slot || range.end <= hole.start {
                return;
            }
            self.ranges.remove(&first);
            if range.end > hole.end() {
                let key = BlockKey { slot, block: hole.end() };
                let stamp = range.stamp.plus(hole.end() - first.block);
                self.ranges.insert(key, Range { end: range.end, stamp });
            }
            if first.block < hole.start {
                self.ranges.insert(first, Range { end: hole.start, stamp: range.stamp });
            }
        }
    }
}

fn covering(ranges: &BTreeMap<BlockKey, Range>, key: BlockKey) -> Option<Entry> {
    if ranges.is_empty() {
        return None;
    }
    let (first, range) = ranges.range(..=key).next_back()?;
    (first.slot == key.slot && key.block < range.end)
        .then(|| Entry::tombstone(range.stamp.plus(key.block - first.block)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap as Oracle;
    use trivet_model::BlockCrc;

    proptest! {
        /// Against one entry a block, over random writes and discards with mostly rising stamps.
        #[test]
        fn agrees_with_an_entry_a_block(
            operations in prop::collection::vec((0u32..2, 0u64..120, 1u32..60, any::<bool>(), 0u64..3), 1..60))
        {
            let mut table = Memtable::default();
            let mut oracle: Oracle<BlockKey, Entry> = Oracle::new();
            let mut freed: Vec<u64> = Vec::new();
            let mut next_physical = 1;
            for (step, (slot, start, count, is_discard, back)) in operations.into_iter().enumerate() {
                let slot = Slot(slot);
                let stamp = Stamp::from_u64((step as u64 + 1) * 1000 - back * 1000);
                let mut taken = Vec::new();
                for at in 0..u64::from(count) {
                    let key = BlockKey { slot, block: start + at };
                    let stamp = stamp.plus(at);
                    let entry = if is_discard { Entry::tombstone(stamp) } else {
                        next_physical += 1;
                        Entry { stamp, physical: next_physical, crc: BlockCrc(0) }
                    };
                    taken.push((key, entry));
                    if oracle.get(&key).is_none_or(|old| old.stamp <= stamp)
                        && let Some(old) = oracle.insert(key, entry).filter(|old| !old.is_tombstone())
                    {
                        freed.push(old.physical);
                    }
                }
                let mut freed_here = Vec::new();
                if is_discard {
                    // A range that lies over newer points keeps them; over newer ranges it must not win.
                    let newer_range = taken.iter().any(|(key, entry)| table.lookup(*key)
                        .is_some_and(|old| old.stamp > entry.stamp));
                    if newer_range {
                        for (key, entry) in taken {
                            if let Placed::Newest { superseded: Some(old) } = table.insert(key, entry) {
                                freed_here.push(old);
                            }
                        }
                    } else {
                        table.discard(slot, BlockRange::new(start, count), stamp, |old| freed_here.push(old));
                    }
                } else {
                    for (key, entry) in taken {
                        if let Placed::Newest { superseded: Some(old) } = table.insert(key, entry) {
                            freed_here.push(old);
                        }
                    }
                }
                freed_here.sort_unstable();
                freed.sort_unstable();
                prop_assert_eq!(&freed_here, &freed);
                freed.clear();
                for slot in [Slot(0), Slot(1)] {
                    for block in 0..200 {
                        let key = BlockKey { slot, block };
                        prop_assert_eq!(table.lookup(key), oracle.get(&key).copied());
                    }
                }
            }
        }
    }
}
