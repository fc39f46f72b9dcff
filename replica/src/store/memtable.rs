//! What changed since the last checkpoint: versions by block, and discarded ranges.
//!
//! Invariants
//! - A point within a range is not older than the range.
//! - Ranges do not overlap.
//! - A tombstone that took the place of data in the same table leaves a trace in the map: the map
//!   has never seen that data, another member may have it.

use std::collections::BTreeMap;

use hashbrown::{HashMap, hash_map};
use trivet_model::{BlockRange, Stamp};

use super::entry::{BlockKey, Entry};
use super::record::Slot;
use super::version::{Origin, Version};

#[derive(Debug, Default)]
pub(crate) struct Memtable {
    points: HashMap<BlockKey, Version>,
    ranges: BTreeMap<BlockKey, Range>,
}

/// Discarded blocks from the map's key on.
#[derive(Clone, Copy, Debug)]
struct Range {
    end: u64,
    /// The first block's; consecutive from there.
    stamp: Stamp,
    origin: Origin,
}

/// A shorter discard is kept as points.
const RANGE_BLOCKS_MIN: u32 = 16;

/// What became of a version that was inserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Insertion {
    /// It is the newest in this table; the pool block given, if any, is no longer referenced.
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
    pub(crate) fn lookup(&self, key: BlockKey) -> Option<Version> {
        self.points.get(&key).copied().or_else(|| covering(&self.ranges, key))
    }

    /// Takes a version unless a newer one is there.
    pub(crate) fn insert(&mut self, key: BlockKey, version: Version) -> Insertion {
        match self.points.entry(key) {
            hash_map::Entry::Occupied(mut present) => {
                let old = present.get_mut();
                if !version.replaces(old) {
                    old.leaves_trace |= old.is_tombstone() && version.leaves_trace;
                    return Insertion::Outdated;
                }
                let superseded = (!old.is_tombstone()).then_some(old.entry().physical);
                *old = version.in_place_of(old);
                Insertion::Newest { superseded }
            }
            hash_map::Entry::Vacant(place) => {
                let version = match covering(&self.ranges, key) {
                    Some(old) if !version.replaces(&old) => {
                        // Only a point can say that it leaves a trace.
                        if version.leaves_trace {
                            place.insert(Version { leaves_trace: true, ..old });
                        }
                        return Insertion::Outdated;
                    }
                    Some(old) => version.in_place_of(&old),
                    None => version,
                };
                place.insert(version);
                Insertion::Newest { superseded: None }
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
        origin: Origin,
        mut superseded: impl FnMut(u64),
    ) {
        let tombstone = |block: u64| Version::new(Entry::tombstone(stamp.plus(block - range.start)), origin);
        if range.count < RANGE_BLOCKS_MIN {
            for block in range.blocks() {
                let outcome = self.insert(BlockKey { slot, block }, tombstone(block));
                if let Insertion::Newest { superseded: Some(old) } = outcome {
                    superseded(old);
                }
            }
            return;
        }
        // Points that stay: newer ones, and tombstones that leave a trace where there was data.
        let mut kept = Vec::new();
        let mut cover = |key: &BlockKey, old: &Version| {
            let new = tombstone(key.block);
            if !new.replaces(old) {
                kept.push((*key, *old));
                return;
            }
            if !old.is_tombstone() {
                superseded(old.entry().physical);
            }
            let new = new.in_place_of(old);
            if new.leaves_trace {
                kept.push((*key, new));
            }
        };
        if (range.count as usize) < self.points.len() {
            for block in range.blocks() {
                let key = BlockKey { slot, block };
                if let Some(old) = self.points.remove(&key) {
                    cover(&key, &old);
                }
            }
        } else {
            self.points.retain(|key, old| {
                let covered = key.slot == slot && (range.start..range.end()).contains(&key.block);
                if covered {
                    cover(key, old);
                }
                !covered
            });
        }
        self.points.extend(kept);
        self.cut_ranges(slot, range);
        let key = BlockKey { slot, block: range.start };
        self.ranges.insert(key, Range { end: range.end(), stamp, origin });
    }

    /// Removes everything of a volume; calls `superseded` with the pool blocks it held.
    pub(crate) fn remove_volume(&mut self, slot: Slot, mut superseded: impl FnMut(u64)) {
        self.points.retain(|key, version| {
            if key.slot == slot && !version.is_tombstone() {
                superseded(version.entry().physical);
            }
            key.slot != slot
        });
        self.ranges.retain(|key, _| key.slot != slot);
    }

    /// Every point, in no order.
    pub(crate) fn points(&self) -> impl Iterator<Item = (BlockKey, Version)> + '_ {
        self.points.iter().map(|(key, version)| (*key, *version))
    }

    /// Every discarded range, in order: volume, first block, block after the last.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (Slot, u64, u64)> + '_ {
        self.ranges.iter().map(|(key, range)| (key.slot, key.block, range.end))
    }

    /// Every version of blocks `start..end` of a volume, in no order.
    pub(crate) fn within(&self, slot: Slot, start: u64, end: u64) -> Vec<(u64, Entry)> {
        if self.is_empty() {
            return Vec::new();
        }
        let near = self.ranges.range(..BlockKey { slot, block: end }).next_back();
        let has_range = near.is_some_and(|(first, range)| first.slot == slot && range.end > start);
        if !has_range && (self.points.len() as u64) < end - start {
            let in_span = |key: &BlockKey| key.slot == slot && (start..end).contains(&key.block);
            let points = self.points.iter().filter(|(key, _)| in_span(key));
            return points.map(|(key, version)| (key.block, version.entry())).collect();
        }
        let found = |block| self.lookup(BlockKey { slot, block }).map(|version| (block, version.entry()));
        (start..end).filter_map(found).collect()
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
                self.ranges.insert(key, Range { stamp, ..range });
            }
            if first.block < hole.start {
                self.ranges.insert(first, Range { end: hole.start, ..range });
            }
        }
    }
}

fn covering(ranges: &BTreeMap<BlockKey, Range>, key: BlockKey) -> Option<Version> {
    if ranges.is_empty() {
        return None;
    }
    let (first, range) = ranges.range(..=key).next_back()?;
    (first.slot == key.slot && key.block < range.end)
        .then(|| Version::new(Entry::tombstone(range.stamp.plus(key.block - first.block)), range.origin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap as Oracle;
    use trivet_model::BlockCrc;

    /// What an operation does to each of its blocks.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum What {
        Write,
        Discard,
        Place,
        PlaceTombstone,
        Repair,
    }

    fn whats() -> impl Strategy<Value = What> {
        prop::sample::select(vec![
            What::Write,
            What::Write,
            What::Discard,
            What::Place,
            What::PlaceTombstone,
            What::Repair,
        ])
    }

    /// The rule in its plainest form.
    fn wins(what: What, new: Entry, old: Entry) -> bool {
        match what {
            What::Write | What::Discard => new.stamp >= old.stamp,
            What::Place | What::PlaceTombstone => new.stamp > old.stamp,
            What::Repair if old.is_tombstone() => new.stamp > old.stamp,
            What::Repair => new.stamp >= old.stamp,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Against one entry a block, over random changes with mostly rising stamps.
        #[test]
        fn agrees_with_an_entry_a_block(
            operations in prop::collection::vec((0u32..2, 0u64..120, 1u32..60, whats(), 0u64..3), 1..60))
        {
            let mut table = Memtable::default();
            let mut oracle: Oracle<BlockKey, Entry> = Oracle::new();
            let mut was_data: std::collections::HashSet<BlockKey> = Default::default();
            let mut next_physical = 1;
            for (step, (slot, start, count, what, back)) in operations.into_iter().enumerate() {
                let slot = Slot(slot);
                let first = Stamp::from_u64((step as u64 + 1).saturating_sub(back).max(1) * 1000);
                let range = BlockRange::new(start, count);
                let is_tombstone = matches!(what, What::Discard | What::PlaceTombstone);
                let origin = match what {
                    What::Write | What::Discard => Origin::Live,
                    What::Place | What::PlaceTombstone => Origin::Placed,
                    What::Repair => Origin::Repaired,
                };
                let mut versions = Vec::new();
                for (at, block) in range.blocks().enumerate() {
                    let stamp = first.plus(at as u64);
                    next_physical += 1;
                    let entry = if is_tombstone { Entry::tombstone(stamp) } else {
                        Entry { stamp, physical: next_physical, crc: BlockCrc(0) }
                    };
                    versions.push((BlockKey { slot, block }, entry));
                }
                // Over newer ranges a range must not win: the engine orders what overlaps.
                let newer_range = versions.iter().any(|(key, entry)| table.lookup(*key)
                    .is_some_and(|old| old.is_tombstone() && old.stamp > entry.stamp));
                let mut freed = Vec::new();
                let mut expected_freed = Vec::new();
                for (key, entry) in &versions {
                    if oracle.get(key).is_none_or(|old| wins(what, *entry, *old)) {
                        let old = oracle.insert(*key, *entry).filter(|old| !old.is_tombstone());
                        expected_freed.extend(old.map(|old| old.physical));
                        if !entry.is_tombstone() || what == What::PlaceTombstone {
                            was_data.insert(*key);
                        }
                    } else if what == What::PlaceTombstone
                        && oracle.get(key).is_some_and(Entry::is_tombstone)
                    {
                        was_data.insert(*key);
                    }
                }
                if what == What::Discard && !newer_range {
                    table.discard(slot, range, first, Origin::Live, |old| freed.push(old));
                } else {
                    for (key, entry) in versions {
                        let version = match what {
                            What::PlaceTombstone => Version::placed_tombstone(entry.stamp),
                            _ => Version::new(entry, origin),
                        };
                        if let Insertion::Newest { superseded: Some(old) } = table.insert(key, version) {
                            freed.push(old);
                        }
                    }
                }
                freed.sort_unstable();
                expected_freed.sort_unstable();
                prop_assert_eq!(&freed, &expected_freed);
            }
            for slot in [Slot(0), Slot(1)] {
                for block in 0..200 {
                    let key = BlockKey { slot, block };
                    let found = table.lookup(key);
                    prop_assert_eq!(found.map(|version| version.entry()), oracle.get(&key).copied());
                    if let Some(found) = found.filter(Version::is_tombstone) {
                        prop_assert_eq!(found.leaves_trace, was_data.contains(&key), "block {}", block);
                    }
                }
                for (start, end) in [(0, 200), (17, 90), (60, 61)] {
                    let mut within = table.within(slot, start, end);
                    within.sort_unstable_by_key(|(block, _)| *block);
                    let expected: Vec<(u64, Entry)> = (start..end)
                        .filter_map(|block| oracle.get(&BlockKey { slot, block }).map(|e| (block, *e)))
                        .collect();
                    prop_assert_eq!(within, expected);
                }
            }
        }
    }
}
