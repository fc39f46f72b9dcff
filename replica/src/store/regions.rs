//! Where a volume has changed: the highest stamp of each region, so that "what changed since" looks
//! only where something did.
//!
//! Invariant: no version of a block in memtables or map has a stamp above its region's. (A region's
//! may be higher than any: what was overwritten or left no trace counts too.)
//!
//! In the map, little-endian: a key a chunk of [`CHUNK_REGIONS`] regions, its value their stamps (8
//! bytes each).

use std::collections::BTreeSet;

use bytes::{Buf, BufMut};
use trivet_model::{BlockRange, Stamp};

/// Blocks in a region (64 MiB of a volume).
pub(crate) const REGION_BLOCKS: u64 = 1 << 14;
/// Regions in a chunk (32 GiB of a volume): a checkpoint writes those that changed.
const CHUNK_REGIONS: usize = 512;
const STAMP_BYTES: usize = 8;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Regions {
    /// By region; those behind the end have not changed.
    highest: Vec<Stamp>,
    dirty: BTreeSet<u32>,
}

impl Regions {
    /// Blocks got versions with consecutive stamps from `stamp` on.
    pub(crate) fn note(&mut self, range: BlockRange, stamp: Stamp) {
        let mut at = range.start;
        while at < range.end() {
            let region = at / REGION_BLOCKS;
            let until = range.end().min((region + 1) * REGION_BLOCKS);
            self.raise(index(region), stamp.plus(until - 1 - range.start));
            at = until;
        }
    }

    fn raise(&mut self, region: usize, stamp: Stamp) {
        if region >= self.highest.len() {
            self.highest.resize(region + 1, Stamp::ZERO);
        }
        if self.highest[region] < stamp {
            self.highest[region] = stamp;
            self.dirty.insert(chunk_of(region));
        }
    }

    /// The first block from `start` on whose region has changed since.
    pub(crate) fn next_changed(&self, start: u64, since: Stamp) -> Option<u64> {
        let first = index(start / REGION_BLOCKS);
        let region = (first..self.highest.len()).find(|region| self.highest[*region] > since)?;
        Some(start.max(region as u64 * REGION_BLOCKS))
    }

    /// Whether a version with this stamp is known of where the block lies.
    pub(crate) fn covers(&self, block: u64, stamp: Stamp) -> bool {
        self.highest.get(index(block / REGION_BLOCKS)).is_some_and(|highest| *highest >= stamp)
    }

    /// Everything noted so far is about to be written.
    pub(crate) fn forget_dirty(&mut self) {
        self.dirty.clear();
    }

    /// The chunks that changed, to be written.
    pub(crate) fn dirty_chunks(&self) -> impl Iterator<Item = (u32, Vec<u8>)> + '_ {
        self.dirty.iter().map(|chunk| {
            let first = *chunk as usize * CHUNK_REGIONS;
            let stamps = &self.highest[first..self.highest.len().min(first + CHUNK_REGIONS)];
            let mut value = Vec::with_capacity(stamps.len() * STAMP_BYTES);
            stamps.iter().for_each(|stamp| value.put_u64_le(stamp.as_u64()));
            (*chunk, value)
        })
    }

    /// Every chunk that may have been written.
    pub(crate) fn chunks(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.highest.len().div_ceil(CHUNK_REGIONS)).unwrap_or(u32::MAX)
    }

    /// Takes a chunk as read from the map; false when it makes no sense.
    #[must_use]
    pub(crate) fn load_chunk(&mut self, chunk: u32, mut value: &[u8]) -> bool {
        if !value.len().is_multiple_of(STAMP_BYTES) || value.len() > CHUNK_REGIONS * STAMP_BYTES {
            return false;
        }
        let first = chunk as usize * CHUNK_REGIONS;
        let count = value.len() / STAMP_BYTES;
        self.highest.resize(self.highest.len().max(first + count), Stamp::ZERO);
        for place in &mut self.highest[first..first + count] {
            *place = Stamp::from_u64(value.get_u64_le());
        }
        true
    }
}

fn index(region: u64) -> usize {
    usize::try_from(region).unwrap_or(usize::MAX)
}

fn chunk_of(region: usize) -> u32 {
    u32::try_from(region / CHUNK_REGIONS).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_stamp_a_block_and_survives_reloading(
            changes in prop::collection::vec((0u64..40_000, 1u32..40_000, 1u64..1000), 1..12),
            since in 0u64..45_000, start in 0u64..90_000)
        {
            let mut regions = Regions::default();
            let mut highest = [0u64; 90_000 / 16_384 + 1];
            let mut stored = std::collections::BTreeMap::new();
            for (start, count, stamp) in changes {
                regions.note(BlockRange::new(start, count), Stamp::from_u64(stamp));
                for at in 0..u64::from(count) {
                    let region = usize::try_from((start + at) / REGION_BLOCKS).unwrap();
                    highest[region] = highest[region].max(stamp + at);
                }
                stored.extend(regions.dirty_chunks());
                regions.forget_dirty();
            }
            let mut reloaded = Regions::default();
            for (chunk, value) in &stored {
                prop_assert!(reloaded.load_chunk(*chunk, value));
            }
            prop_assert_eq!(&reloaded, &regions);
            let expected = (start..90_000).find(|block| {
                highest[usize::try_from(block / REGION_BLOCKS).unwrap()] > since
            });
            prop_assert_eq!(regions.next_changed(start, Stamp::from_u64(since)), expected);
        }
    }

    #[test]
    fn chunks_are_written_apart_and_a_damaged_one_is_refused() {
        let mut regions = Regions::default();
        for region in [0, 511, 512, 1030] {
            regions.note(BlockRange::new(region * REGION_BLOCKS, 1), Stamp::from_u64(region + 1));
        }
        let written: Vec<(u32, usize)> =
            regions.dirty_chunks().map(|(chunk, value)| (chunk, value.len())).collect();
        assert_eq!(written, [(0, 4096), (1, 4096), (2, 7 * 8)]);
        assert_eq!(regions.chunks(), 0..3);
        assert!(!regions.load_chunk(0, &[0; 7]));
        assert!(!regions.load_chunk(0, &[0; 4104]));
        assert!(regions.covers(1030 * REGION_BLOCKS, Stamp::from_u64(1031)));
        assert!(!regions.covers(1030 * REGION_BLOCKS, Stamp::from_u64(1032)));
    }
}
