//! What changed since the last checkpoint: versions by block, and discarded ranges.
//!
//! The newest version of a block is a point, or lies in a range. What a newer one has come over and a
//! snapshot shows is kept aside, so that looking up the newest costs the same with any snapshots.
//!
//! Invariants
//! - A point within a range is not older than the range.
//! - Ranges do not overlap.
//! - Of the versions kept aside of a block, a snapshot parted each from the next newer one when it came.
//! - A tombstone that took the place of data in the same table leaves a trace in the map: the map
//!   has never seen that data, another member may have it.

use std::collections::BTreeMap;

use hashbrown::{HashMap, hash_map};
use trivet_model::{BlockRange, Stamp};

use super::entry::{BlockKey, Entry};
use super::record::Slot;
use super::snapshots::{Interval, Snapshots};
use super::tags::Tags;
use super::version::{Origin, Version};

#[derive(Debug, Default)]
pub(crate) struct Memtable {
    points: HashMap<BlockKey, Version>,
    ranges: BTreeMap<BlockKey, Range>,
    older: BTreeMap<(BlockKey, Stamp), Version>,
    /// Few: parts of ranges that were discarded again since a snapshot.
    older_ranges: Vec<(BlockKey, Range)>,
    /// Of the blocks that versions here name; some may be left of versions that are gone, until the pool
    /// block gets another owner.
    pub(crate) tags: Tags,
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
        self.points.len() + self.ranges.len() + self.older.len() + self.older_ranges.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn clear(&mut self) {
        self.points.clear();
        self.ranges.clear();
        self.older.clear();
        self.older_ranges.clear();
        self.tags.clear();
    }

    /// The newest version that changed here; `None` when the block did not change.
    pub(crate) fn lookup(&self, key: BlockKey) -> Option<Version> {
        self.points.get(&key).copied().or_else(|| covering(&self.ranges, key))
    }

    /// What a cut shows of a block, as far as it changed here.
    pub(crate) fn lookup_at(&self, key: BlockKey, cut: Stamp) -> Option<Version> {
        let newest = self.lookup(key);
        if newest.is_none_or(|newest| newest.stamp <= cut) {
            return newest;
        }
        let point =
            self.older.range((key, Stamp::ZERO)..=(key, cut)).next_back().map(|(_, version)| *version);
        let discarded = self.range_versions(key).filter(|version| version.stamp <= cut);
        discarded.chain(point).max_by_key(|version| version.stamp)
    }

    /// Every version of a block, in no order.
    pub(crate) fn versions_of(&self, key: BlockKey) -> impl Iterator<Item = Version> + '_ {
        let older = self.older.range((key, Stamp::ZERO)..=(key, Stamp::MAX)).map(|(_, version)| *version);
        self.points.get(&key).copied().into_iter().chain(older).chain(self.range_versions(key))
    }

    /// The tombstones that discarded ranges hold of a block.
    pub(crate) fn range_versions(&self, key: BlockKey) -> impl Iterator<Item = Version> + '_ {
        let older = self.older_ranges.iter().filter_map(move |(first, range)| range.version(*first, key));
        covering(&self.ranges, key).into_iter().chain(older)
    }

    /// Takes a version unless a newer one is there, of those that the same snapshots show.
    pub(crate) fn insert(&mut self, key: BlockKey, version: Version, snapshots: &Snapshots) -> Insertion {
        if !snapshots.is_empty()
            && let Some(newest) = self.lookup(key)
            && !version.replaces(&newest)
            && snapshots.part(version.stamp, newest.stamp)
        {
            return self.insert_older(key, version, snapshots.interval(version.stamp));
        }
        match self.points.entry(key) {
            hash_map::Entry::Occupied(mut present) => {
                let old = present.get_mut();
                if !version.replaces(old) {
                    old.leaves_trace |= old.is_tombstone() && version.leaves_trace;
                    return Insertion::Outdated;
                }
                let replaced = std::mem::replace(old, version.in_place_of(old));
                if snapshots.part(replaced.stamp, version.stamp) {
                    self.older.insert((key, replaced.stamp), replaced);
                    return Insertion::Newest { superseded: None };
                }
                Insertion::Newest { superseded: (!replaced.is_tombstone()).then_some(replaced.physical) }
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

    /// Takes a version below the newest one of its block.
    fn insert_older(&mut self, key: BlockKey, version: Version, interval: Interval) -> Insertion {
        let Interval { after, until } = interval;
        let point = self.older.range((key, after.next())..=(key, until)).next_back().map(|(_, point)| *point);
        let discarded = self.range_versions(key).filter(|old| after < old.stamp && old.stamp <= until);
        let Some(old) = discarded.chain(point).max_by_key(|old| old.stamp) else {
            self.older.insert((key, version.stamp), version);
            return Insertion::Newest { superseded: None };
        };
        if !version.replaces(&old) {
            if old.is_tombstone() && version.leaves_trace {
                self.older.insert((key, old.stamp), Version { leaves_trace: true, ..old });
            }
            return Insertion::Outdated;
        }
        let replaced = point.and_then(|point| self.older.remove(&(key, point.stamp)));
        self.older.insert((key, version.stamp), version.in_place_of(&old));
        let data = replaced.filter(|replaced| !replaced.is_tombstone());
        Insertion::Newest { superseded: data.map(|data| data.physical) }
    }

    /// Discards blocks; calls `superseded` with each pool block that is no longer referenced.
    /// Blocks with newer versions keep them.
    pub(crate) fn discard(
        &mut self,
        slot: Slot,
        range: BlockRange,
        stamp: Stamp,
        origin: Origin,
        snapshots: &Snapshots,
        mut superseded: impl FnMut(u64),
    ) {
        let tombstone = |block: u64| Version::new(Entry::tombstone(stamp.plus(block - range.start)), origin);
        if range.count < RANGE_BLOCKS_MIN {
            for block in range.blocks() {
                let outcome = self.insert(BlockKey { slot, block }, tombstone(block), snapshots);
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
            if snapshots.part(old.stamp, new.stamp) {
                self.older.insert((*key, old.stamp), *old);
            } else if !old.is_tombstone() {
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
        self.cut_ranges(slot, range, stamp, snapshots);
        let key = BlockKey { slot, block: range.start };
        self.ranges.insert(key, Range { end: range.end(), stamp, origin });
    }

    /// Removes everything of a volume; calls `superseded` with the pool blocks it held.
    pub(crate) fn remove_volume(&mut self, slot: Slot, mut superseded: impl FnMut(u64)) {
        let mut stays = |key: &BlockKey, version: &Version| {
            if key.slot == slot && !version.is_tombstone() {
                superseded(version.entry().physical);
            }
            key.slot != slot
        };
        self.points.retain(|key, version| stays(key, version));
        self.older.retain(|(key, _), version| stays(key, version));
        self.ranges.retain(|key, _| key.slot != slot);
        self.older_ranges.retain(|(key, _)| key.slot != slot);
    }

    /// Every version by block, in no order; those of ranges apart.
    pub(crate) fn points(&self) -> impl Iterator<Item = (BlockKey, Version)> + '_ {
        let newest = self.points.iter().map(|(key, version)| (*key, *version));
        newest.chain(self.older.iter().map(|((key, _), version)| (*key, *version)))
    }

    /// Every discarded range, in no order: volume, first block, block after the last.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (Slot, u64, u64)> + '_ {
        let older = self.older_ranges.iter().map(|(key, range)| (key, range));
        self.ranges.iter().chain(older).map(|(key, range)| (key.slot, key.block, range.end))
    }

    /// Whether something was discarded by ranges.
    pub(crate) fn has_ranges(&self) -> bool {
        !self.ranges.is_empty() || !self.older_ranges.is_empty()
    }

    /// What a cut shows of blocks `start..end` of a volume, as far as it changed here, in no order.
    pub(crate) fn within(&self, slot: Slot, start: u64, end: u64, cut: Stamp) -> Vec<(u64, Entry)> {
        if self.is_empty() {
            return Vec::new();
        }
        let near = self.ranges.range(..BlockKey { slot, block: end }).next_back();
        let has_range = near.is_some_and(|(first, range)| first.slot == slot && range.end > start);
        if !has_range && self.older_ranges.is_empty() && (self.points.len() as u64) < end - start {
            // Every block that has changed has a point.
            let in_span = |key: &&BlockKey| key.slot == slot && (start..end).contains(&key.block);
            let shown = |key: &BlockKey| Some((key.block, self.lookup_at(*key, cut)?.entry()));
            return self.points.keys().filter(in_span).filter_map(shown).collect();
        }
        let found = |block| Some((block, self.lookup_at(BlockKey { slot, block }, cut)?.entry()));
        (start..end).filter_map(found).collect()
    }

    /// Cuts a hole into the ranges where a new one goes; what snapshots show of it is kept aside.
    fn cut_ranges(&mut self, slot: Slot, hole: BlockRange, newer: Stamp, snapshots: &Snapshots) {
        let until = BlockKey { slot, block: hole.end() };
        while let Some((&first, &range)) = self.ranges.range(..until).next_back() {
            if first.slot != slot || range.end <= hole.start {
                return;
            }
            self.ranges.remove(&first);
            let from = |block: u64| {
                let stamp = range.stamp.plus(block - first.block);
                (BlockKey { slot, block }, Range { stamp, ..range })
            };
            if range.end > hole.end() {
                let (key, right) = from(hole.end());
                self.ranges.insert(key, right);
            }
            if snapshots.part(range.stamp, newer) {
                let (key, cut_out) = from(first.block.max(hole.start));
                self.older_ranges.push((key, Range { end: range.end.min(hole.end()), ..cut_out }));
            }
            if first.block < hole.start {
                self.ranges.insert(first, Range { end: hole.start, ..range });
            }
        }
    }
}

impl Range {
    /// The tombstone of a block, if it lies in this range, whose first block is `first`.
    fn version(&self, first: BlockKey, key: BlockKey) -> Option<Version> {
        if first.slot != key.slot || !(first.block..self.end).contains(&key.block) {
            return None;
        }
        let stamp = self.stamp.plus(key.block - first.block);
        Some(Version::new(Entry::tombstone(stamp), self.origin))
    }
}

fn covering(ranges: &BTreeMap<BlockKey, Range>, key: BlockKey) -> Option<Version> {
    if ranges.is_empty() {
        return None;
    }
    let (first, range) = ranges.range(..=key).next_back()?;
    range.version(*first, key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::snapshots::Snapshot;
    use proptest::prelude::*;
    use std::collections::BTreeMap as Oracle;
    use trivet_model::{BlockCrc, SnapshotId};

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
        /// Against one entry a block and interval, over random changes with mostly rising stamps.
        #[test]
        fn agrees_with_an_entry_a_block_and_interval(
            operations in prop::collection::vec((0u32..2, 0u64..120, 1u32..60, whats(), 0u64..3), 1..60),
            snapshots_after in prop::collection::btree_set(0usize..60, 0..4))
        {
            let mut table = Memtable::default();
            let mut snapshots = Snapshots::default();
            let mut oracle: Oracle<(BlockKey, Stamp), Entry> = Oracle::new();
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
                // Over newer ranges a range must not win, and none comes below a snapshot: the engine
                // orders what overlaps, and stands still while one is taken.
                let newer_range = versions.iter().any(|(key, entry)| table.lookup(*key)
                    .is_some_and(|old| old.is_tombstone() && old.stamp > entry.stamp
                        || snapshots.part(entry.stamp, old.stamp)));
                let mut freed = Vec::new();
                let mut expected_freed = Vec::new();
                for (key, entry) in &versions {
                    let place = (*key, snapshots.interval(entry.stamp).until);
                    let old = oracle.get(&place);
                    if old.is_none_or(|old| wins(what, *entry, *old)) {
                        let old = oracle.insert(place, *entry).filter(|old| !old.is_tombstone());
                        expected_freed.extend(old.map(|old| old.physical));
                        if !entry.is_tombstone() || what == What::PlaceTombstone {
                            was_data.insert(*key);
                        }
                    } else if what == What::PlaceTombstone && old.is_some_and(Entry::is_tombstone) {
                        was_data.insert(*key);
                    }
                }
                if what == What::Discard && !newer_range {
                    table.discard(slot, range, first, Origin::Live, &snapshots, |old| freed.push(old));
                } else {
                    for (key, entry) in versions {
                        let version = match what {
                            What::PlaceTombstone => Version::placed_tombstone(entry.stamp),
                            _ => Version::new(entry, origin),
                        };
                        if let Insertion::Newest { superseded: Some(old) } = table.insert(key, version, &snapshots) {
                            freed.push(old);
                        }
                    }
                }
                freed.sort_unstable();
                expected_freed.sort_unstable();
                prop_assert_eq!(&freed, &expected_freed);
                if snapshots_after.contains(&step) {
                    let cut = Stamp::from_u64((step as u64 + 1) * 1000 + 999);
                    // What stood at the end of the last interval stands below the new cut now.
                    let upper: Vec<_> = oracle.keys().filter(|(_, until)| *until == Stamp::MAX).copied().collect();
                    for place in upper {
                        let entry = oracle.remove(&place).unwrap();
                        oracle.insert((place.0, cut), entry);
                    }
                    let id = SnapshotId::from_bytes(u128::from(cut.as_u64()).to_le_bytes());
                    snapshots.insert(Snapshot { id, cut });
                }
            }
            let shown = |key: BlockKey, cut: Stamp| {
                let of_block = oracle.range((key, Stamp::ZERO)..=(key, Stamp::MAX)).map(|(_, entry)| *entry);
                of_block.filter(|entry| entry.stamp <= cut).max_by_key(|entry| entry.stamp)
            };
            let cuts = snapshots.iter().map(|snapshot| snapshot.cut);
            for (slot, cut) in cuts.chain([Stamp::MAX]).flat_map(|cut| [(Slot(0), cut), (Slot(1), cut)]) {
                for block in 0..200 {
                    let key = BlockKey { slot, block };
                    let found = table.lookup_at(key, cut);
                    prop_assert_eq!(found.map(|version| version.entry()), shown(key, cut), "block {}", block);
                    let of_block = oracle.range((key, Stamp::ZERO)..=(key, Stamp::MAX)).count();
                    if let Some(found) = found.filter(|found| found.is_tombstone() && of_block == 1) {
                        prop_assert_eq!(found.leaves_trace, was_data.contains(&key), "block {}", block);
                    }
                }
                for (start, end) in [(0, 200), (17, 90), (60, 61)] {
                    let mut within = table.within(slot, start, end, cut);
                    within.sort_unstable_by_key(|(block, _)| *block);
                    let expected: Vec<(u64, Entry)> = (start..end)
                        .filter_map(|block| Some((block, shown(BlockKey { slot, block }, cut)?)))
                        .collect();
                    prop_assert_eq!(within, expected);
                }
            }
        }
    }
}
