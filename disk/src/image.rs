//! A device's contents in memory: sparse, cheap to clone, comparable.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64};

type Block = [u8; BLOCK_SIZE];

/// What is on a device. Blocks of zeros take no memory; clones share blocks until written, so that
/// a crash test may keep thousands. Equal images have equal length and bytes.
///
/// Invariants: no block of `blocks` is all zeros, and none lies beyond `length`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct DiskImage {
    length: u64,
    blocks: BTreeMap<u64, Arc<Block>>,
}

impl fmt::Debug for DiskImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskImage({} bytes, {} blocks not zero)", self.length, self.blocks.len())
    }
}

impl DiskImage {
    /// Zeros; `length` is of whole blocks.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn new(length: u64) -> Self {
        assert_eq!(length % BLOCK_SIZE_U64, 0, "a device's length is of whole blocks");
        Self { length, blocks: BTreeMap::new() }
    }

    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Appends zeros, or cuts the end off.
    ///
    /// # Panics
    /// When `length` is not of whole blocks.
    pub fn set_length(&mut self, length: u64) {
        assert_eq!(length % BLOCK_SIZE_U64, 0, "a device's length is of whole blocks");
        self.length = length;
        drop(self.blocks.split_off(&(length / BLOCK_SIZE_U64)));
    }

    /// Copies bytes out, from any offset.
    ///
    /// # Panics
    /// When the range goes beyond the end.
    pub fn read(&self, offset: u64, target: &mut [u8]) {
        for part in self.parts(offset, target.len()) {
            let target = &mut target[part.position..part.position + part.length];
            match self.blocks.get(&part.block) {
                Some(block) => target.copy_from_slice(&block[part.start..part.start + part.length]),
                None => target.fill(0),
            }
        }
    }

    /// Puts bytes in, at any offset.
    ///
    /// # Panics
    /// When the range goes beyond the end.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for part in self.parts(offset, data.len()) {
            let data = &data[part.position..part.position + part.length];
            let block = self.blocks.entry(part.block).or_insert_with(|| Arc::new([0; BLOCK_SIZE]));
            Arc::make_mut(block)[part.start..part.start + part.length].copy_from_slice(data);
            if **block == [0; BLOCK_SIZE] {
                self.blocks.remove(&part.block);
            }
        }
    }

    /// Turns one bit (0 to 7) of the byte at `offset` over, as a medium does that forgets.
    ///
    /// # Panics
    /// When `offset` lies beyond the end, or `bit` above 7.
    pub fn flip_bit(&mut self, offset: u64, bit: u8) {
        assert!(bit < 8, "a byte has bits 0 to 7");
        let mut byte = [0];
        self.read(offset, &mut byte);
        self.write(offset, &[byte[0] ^ (1 << bit)]);
    }

    /// The numbers of the blocks that differ, blocks that only one of them has included.
    #[must_use]
    pub fn differing_blocks(&self, other: &Self) -> Vec<u64> {
        let numbers: std::collections::BTreeSet<_> =
            self.blocks.keys().chain(other.blocks.keys()).copied().collect();
        let differs = |number: &u64| self.blocks.get(number) != other.blocks.get(number);
        let shorter = self.length.min(other.length) / BLOCK_SIZE_U64;
        let longer = self.length.max(other.length) / BLOCK_SIZE_U64;
        numbers.into_iter().filter(|n| *n < shorter && differs(n)).chain(shorter..longer).collect()
    }

    /// Keeps equal blocks in memory once, until they are written.
    pub fn share_equal_blocks(&mut self) {
        let mut kept: HashSet<Arc<Block>> = HashSet::new();
        for block in self.blocks.values_mut() {
            match kept.get(block) {
                Some(equal) => *block = Arc::clone(equal),
                None => {
                    kept.insert(Arc::clone(block));
                }
            }
        }
    }

    /// Cuts a byte range at block boundaries.
    fn parts(&self, offset: u64, length: usize) -> impl Iterator<Item = Part> + use<> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.length);
        assert!(end.is_some(), "{length} bytes at {offset} go beyond the image's {} bytes", self.length);
        let mut position = 0;
        std::iter::from_fn(move || {
            if position == length {
                return None;
            }
            let at = offset + position as u64;
            let start = usize::try_from(at % BLOCK_SIZE_U64).expect("below the block size");
            let part = Part {
                block: at / BLOCK_SIZE_U64,
                start,
                position,
                length: (BLOCK_SIZE - start).min(length - position),
            };
            position += part.length;
            Some(part)
        })
    }
}

/// The share of one block in a byte range.
struct Part {
    block: u64,
    /// Where in the block.
    start: usize,
    /// Where in the range.
    position: usize,
    length: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_blocks_are_kept_once_until_they_are_written() {
        let mut image = DiskImage::new(4 * BLOCK_SIZE_U64);
        image.write(0, &[7; 3 * BLOCK_SIZE]);
        let before = image.clone();
        image.share_equal_blocks();
        assert_eq!(image, before);
        assert!(Arc::ptr_eq(&image.blocks[&0], &image.blocks[&2]));
        image.write(0, &[8]);
        assert_eq!(image.differing_blocks(&before), [0]);
    }

    const LENGTH: usize = 4 * BLOCK_SIZE;

    proptest! {
        #[test]
        fn behaves_like_an_array(
            writes in proptest::collection::vec((0..LENGTH, 0..2 * BLOCK_SIZE, any::<bool>(), any::<u8>()), 0..12),
        ) {
            let mut array = vec![0; LENGTH];
            let mut image = DiskImage::new(LENGTH as u64);
            for (offset, length, zeros, seed) in writes {
                let length = length.min(LENGTH - offset);
                let before = (image.clone(), array.clone());
                let data: Vec<u8> = (0..length).zip(seed..=u8::MAX)
                    .map(|(_, b)| if zeros { 0 } else { b }).collect();
                image.write(offset as u64, &data);
                array[offset..offset + data.len()].copy_from_slice(&data);
                let mut read = vec![1; LENGTH];
                image.read(0, &mut read);
                prop_assert!(read == array);
                let differing: Vec<u64> = (0..4).zip(array.chunks(BLOCK_SIZE).zip(before.1.chunks(BLOCK_SIZE)))
                    .filter(|(_, (a, b))| a != b).map(|(n, _)| n).collect();
                prop_assert_eq!(image == before.0, differing.is_empty());
                prop_assert_eq!(image.differing_blocks(&before.0), differing);
            }
        }
    }

    #[test]
    fn a_length_changed_there_and_back_leaves_zeros() {
        let mut image = DiskImage::new(BLOCK_SIZE_U64);
        let short = image.clone();
        image.set_length(3 * BLOCK_SIZE_U64);
        assert_eq!(image.differing_blocks(&short), [1, 2]);
        image.flip_bit(2 * BLOCK_SIZE_U64 + 5, 3);
        let mut byte = [0];
        image.read(2 * BLOCK_SIZE_U64 + 5, &mut byte);
        assert_eq!(byte, [8]);
        image.set_length(BLOCK_SIZE_U64);
        assert_eq!(image, short);
    }
}
