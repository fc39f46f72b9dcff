//! Free space: which data blocks may be written next.
//!
//! Invariants
//! - A block is exactly one of free, taken (referenced by a map or a write in flight), quarantined
//!   (no longer referenced, but not yet safe to overwrite).
//! - A quarantined block becomes free only when the record that freed it is stable and every read
//!   that began before has ended.
//!
//! Blocks are handed out zone by zone, the emptiest zone first, in runs as long as there are, so
//! that a batch of random writes becomes few device writes, mostly one.

use std::collections::{BTreeMap, VecDeque};

use super::layout::{Geometry, ZONE_BLOCKS};
use crate::planted::{self, PlantedFault};

const WORDS: usize = 16;
const _: () = assert!(WORDS as u64 * 64 == ZONE_BLOCKS);

/// One bit a block of a zone.
pub(crate) type ZoneBits = [u64; WORDS];

/// Number of classes that zones are sorted into by free blocks.
const CLASSES: usize = 17;

#[derive(Debug, Clone)]
struct Zone {
    /// Set: taken or quarantined.
    taken: ZoneBits,
    free: u32,
    class: u8,
}

/// A run of blocks that waits to become free.
#[derive(Debug)]
struct Quarantined {
    physical: u64,
    /// Journal sequence that must be stable.
    sequence: u64,
    /// Reads numbered below this must have ended.
    read_barrier: u64,
}

#[derive(Debug)]
pub(crate) struct Allocator {
    geometry: Geometry,
    /// Zones within the pool file's present length.
    zones: Vec<Zone>,
    /// Zones with free blocks by class; stale entries are passed over.
    candidates: [Vec<u32>; CLASSES],
    current: Option<u32>,
    cursor: u64,
    free: u64,
    quarantine: VecDeque<Quarantined>,
    /// Freed by a checkpoint, whose record is stable: these wait for reads only.
    quarantined_zones: VecDeque<(u64, BTreeMap<u32, ZoneBits>)>,
    quarantined: u64,
}

impl Allocator {
    /// All blocks of the `zones` zones within the file are free, then `taken` are marked.
    pub(crate) fn new(geometry: Geometry, zones: u64, taken: &BTreeMap<u32, ZoneBits>) -> Self {
        let mut allocator = Self {
            geometry,
            zones: Vec::new(),
            candidates: Default::default(),
            current: None,
            cursor: 0,
            free: 0,
            quarantine: VecDeque::new(),
            quarantined_zones: VecDeque::new(),
            quarantined: 0,
        };
        allocator.grow(zones, taken);
        allocator
    }

    fn grow(&mut self, zones: u64, taken: &BTreeMap<u32, ZoneBits>) {
        assert!(zones <= self.geometry.zones(), "the pool file is longer than its capacity");
        let from = self.zones.len();
        for index in from..usize::try_from(zones).unwrap_or(usize::MAX) {
            let taken = taken.get(&index_u32(index)).copied().unwrap_or_default();
            let free = count_free(&taken);
            self.zones.push(Zone { taken, free, class: 0 });
            self.free += u64::from(free);
        }
        // Later zones first, so that the lowest of a class is taken first.
        for index in (from..self.zones.len()).rev() {
            self.classify(index);
        }
    }

    /// The pool file has grown; the new zones are free.
    pub(crate) fn extend(&mut self, zones: u64) {
        self.grow(zones, &BTreeMap::new());
    }

    pub(crate) fn zones(&self) -> u64 {
        self.zones.len() as u64
    }

    /// Blocks that can be handed out now.
    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    pub(crate) fn quarantined(&self) -> u64 {
        self.quarantined
    }

    /// Blocks taken by data.
    pub(crate) fn taken(&self) -> u64 {
        self.zones.len() as u64 * ZONE_BLOCKS - self.free - self.quarantined
    }

    /// Takes a run of 1 to `want` consecutive blocks: first block and length. `None` when no block
    /// is free.
    pub(crate) fn allocate(&mut self, want: u32) -> Option<(u64, u32)> {
        assert!(want > 0, "nothing is asked for");
        loop {
            if let Some(index) = self.current
                && let Some((at, length)) = self.next_run(index, want)
            {
                self.take(index, at, length);
                self.cursor = at + u64::from(length);
                return Some((self.geometry.data_start + u64::from(index) * ZONE_BLOCKS + at, length));
            }
            // What was freed behind the cursor makes the zone a candidate again.
            if let Some(index) = self.current.take() {
                self.classify(index as usize);
            }
            self.current = Some(self.choose_zone()?);
            self.cursor = 0;
        }
    }

    fn choose_zone(&mut self) -> Option<u32> {
        for class in (1..CLASSES).rev() {
            while let Some(index) = self.candidates[class].pop() {
                let zone = &mut self.zones[index as usize];
                if usize::from(zone.class) == class {
                    zone.class = 0;
                    return Some(index);
                }
            }
        }
        None
    }

    /// The first free run at or after the cursor in the zone.
    fn next_run(&self, index: u32, want: u32) -> Option<(u64, u32)> {
        let taken = &self.zones[index as usize].taken;
        let is_taken = |at: u64| taken[(at / 64) as usize] >> (at % 64) & 1 == 1;
        let mut at = self.cursor;
        while at < ZONE_BLOCKS {
            let word = !taken[(at / 64) as usize] >> (at % 64);
            if word == 0 {
                at = (at / 64 + 1) * 64;
                continue;
            }
            at += u64::from(word.trailing_zeros());
            let mut length = 1;
            while length < want && at + u64::from(length) < ZONE_BLOCKS && !is_taken(at + u64::from(length)) {
                length += 1;
            }
            return Some((at, length));
        }
        None
    }

    fn take(&mut self, index: u32, at: u64, length: u32) {
        let zone = &mut self.zones[index as usize];
        for block in at..at + u64::from(length) {
            zone.taken[(block / 64) as usize] |= 1 << (block % 64);
        }
        zone.free -= length;
        self.free -= u64::from(length);
    }

    /// A block is no longer referenced, by a record in journal block `sequence`.
    pub(crate) fn quarantine(&mut self, physical: u64, sequence: u64, read_barrier: u64) {
        self.quarantine.push_back(Quarantined { physical, sequence, read_barrier });
        self.quarantined += 1;
    }

    /// Blocks are no longer referenced, by a stable checkpoint.
    pub(crate) fn quarantine_zones(&mut self, freed: BTreeMap<u32, ZoneBits>, read_barrier: u64) {
        self.quarantined += freed.values().map(|bits| u64::from(count_set(bits))).sum::<u64>();
        self.quarantined_zones.push_back((read_barrier, freed));
    }

    /// Frees what is safe to overwrite: everything before journal block `stable` is stable, and
    /// every read numbered below `oldest_read` has ended.
    pub(crate) fn release(&mut self, stable: u64, oldest_read: u64) {
        while let Some(front) = self.quarantine.front() {
            let unstable = front.sequence >= stable && !planted::is(PlantedFault::ReuseUnstable);
            if unstable || front.read_barrier > oldest_read {
                break;
            }
            let physical = front.physical;
            self.quarantine.pop_front();
            self.quarantined -= 1;
            self.free_block(physical);
        }
        while self.quarantined_zones.front().is_some_and(|(barrier, _)| *barrier <= oldest_read) {
            let Some((_, freed)) = self.quarantined_zones.pop_front() else { break };
            for (index, bits) in freed {
                self.free_bits(index, &bits);
            }
        }
    }

    fn free_bits(&mut self, index: u32, bits: &ZoneBits) {
        let zone = &mut self.zones[index as usize];
        for (taken, freed) in zone.taken.iter_mut().zip(bits) {
            assert_eq!(*taken & freed, *freed, "a block was freed twice in zone {index}");
            *taken &= !freed;
        }
        let freed = count_set(bits);
        zone.free += freed;
        self.free += u64::from(freed);
        self.quarantined -= u64::from(freed);
        self.classify(index as usize);
    }

    fn free_block(&mut self, physical: u64) {
        let (index, at) = self.geometry.zone_of(physical);
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let zone = &mut self.zones[index];
        let bit = 1 << (at % 64);
        assert_ne!(zone.taken[(at / 64) as usize] & bit, 0, "pool block {physical} was freed twice");
        zone.taken[(at / 64) as usize] &= !bit;
        zone.free += 1;
        self.free += 1;
        self.classify(index);
    }

    /// Makes a zone a candidate of the class that its free blocks put it in.
    fn classify(&mut self, index: usize) {
        let zone = &mut self.zones[index];
        let class = u8::try_from(zone.free.div_ceil(64)).unwrap_or(u8::MAX);
        if class > zone.class && self.current != Some(index_u32(index)) {
            zone.class = class;
            self.candidates[usize::from(class)].push(index_u32(index));
        }
    }
}

fn index_u32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

pub(crate) fn count_set(bits: &ZoneBits) -> u32 {
    bits.iter().map(|word| word.count_ones()).sum()
}

fn count_free(taken: &ZoneBits) -> u32 {
    taken.iter().map(|word| word.count_zeros()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const ZONES: u64 = 3;

    fn allocator(taken: &BTreeMap<u32, ZoneBits>) -> Allocator {
        Allocator::new(Geometry::for_capacity(ZONES * ZONE_BLOCKS), ZONES, taken)
    }

    #[test]
    fn an_empty_pool_gives_one_run_and_then_the_rest() {
        let mut allocator = allocator(&BTreeMap::new());
        let first = allocator.allocate(256).unwrap();
        let second = allocator.allocate(1000).unwrap();
        assert_eq!((first.1, second), (256, (first.0 + 256, 768)));
        assert_eq!(allocator.free(), 2 * ZONE_BLOCKS);
    }

    #[test]
    fn the_emptiest_zone_is_chosen() {
        let taken = BTreeMap::from([(0, [u64::MAX >> 1; WORDS]), (1, [u64::MAX; WORDS]), (2, [1; WORDS])]);
        let mut allocator = allocator(&taken);
        let (first, length) = allocator.allocate(100).unwrap();
        assert_eq!((first, length), (allocator.geometry.data_start + 2 * ZONE_BLOCKS + 1, 63));
    }

    proptest! {
        /// Against a set of free blocks.
        #[test]
        fn never_hands_out_a_block_that_is_not_free(
            operations in prop::collection::vec((0u8..4, 1u32..300, any::<prop::sample::Index>()), 1..200))
        {
            let mut allocator = allocator(&BTreeMap::new());
            let start = allocator.geometry.data_start;
            let mut free: BTreeSet<u64> = (start..start + ZONES * ZONE_BLOCKS).collect();
            let mut taken: Vec<u64> = Vec::new();
            let mut waiting: VecDeque<(u64, u64)> = VecDeque::new();
            let (mut sequence, mut stable) = (0, 0);
            for (kind, count, index) in operations {
                match kind {
                    0 => match allocator.allocate(count) {
                        Some((physical, length)) => {
                            prop_assert!(length <= count);
                            for block in physical..physical + u64::from(length) {
                                prop_assert!(free.remove(&block));
                                taken.push(block);
                            }
                        }
                        None => prop_assert!(free.is_empty()),
                    },
                    1 => for _ in 0..count.min(u32::try_from(taken.len()).unwrap()) {
                        let block = taken.swap_remove(index.index(taken.len()));
                        allocator.quarantine(block, sequence, 0);
                        waiting.push_back((block, sequence));
                    },
                    2 => { sequence += 1; stable = sequence - u64::from(count % 2); }
                    _ => {
                        allocator.release(stable, 0);
                        while waiting.front().is_some_and(|(_, sequence)| *sequence < stable) {
                            free.insert(waiting.pop_front().unwrap().0);
                        }
                    }
                }
                prop_assert_eq!(allocator.free(), free.len() as u64);
                prop_assert_eq!(allocator.quarantined(), waiting.len() as u64);
                prop_assert_eq!(allocator.taken(), taken.len() as u64);
            }
        }
    }
}
