//! Blocks, sectors and the limits that lengths are checked against.

use std::fmt;

/// Bytes in a block: the unit of mapping, checksum and encryption.
pub const BLOCK_SIZE: usize = 4096;
/// [`BLOCK_SIZE`] for offset arithmetic.
pub const BLOCK_SIZE_U64: u64 = BLOCK_SIZE as u64;
/// Bytes in a logical sector: the alignment of requests at the front ends.
pub const SECTOR_SIZE: usize = 512;
/// Blocks in the largest volume (64 TiB).
pub const VOLUME_BLOCKS_MAX: u64 = (64 << 40) / BLOCK_SIZE_U64;
/// Blocks of data in the largest single write or read on the wire (1 MiB). Front ends that accept
/// more (NBD: 32 MiB) split it.
pub const IO_BLOCKS_MAX: u32 = 256;

/// A run of consecutive blocks of a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BlockRange {
    /// The first block.
    pub start: u64,
    /// How many blocks.
    pub count: u32,
}

impl BlockRange {
    /// The run of `count` blocks that begins at block `start`.
    #[must_use]
    pub const fn new(start: u64, count: u32) -> Self {
        Self { start, count }
    }

    /// The block after the last one.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start + self.count as u64
    }

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.count as u64 * BLOCK_SIZE_U64
    }

    /// Whether the two runs share a block.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether the run is not empty, does not wrap, and lies within a volume of `blocks` blocks.
    #[must_use]
    pub const fn fits(self, blocks: u64) -> bool {
        match self.start.checked_add(self.count as u64) {
            Some(end) => self.count > 0 && end <= blocks,
            None => false,
        }
    }

    /// The block numbers, in order.
    pub fn blocks(self) -> impl ExactSizeIterator<Item = u64> {
        let start = self.start;
        (0..self.count).map(move |i| start + u64::from(i))
    }
}

impl fmt::Display for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}..{}", self.start, self.end())
    }
}
