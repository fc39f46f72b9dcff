//! Where things lie in the pool file, and the superblock that says so.
//!
//! ```text
//! block 0            superblock, first copy
//! block 1            superblock, second copy
//! block 2 ..         journal ring
//! data_start ..      data, in zones of ZONE_BLOCKS blocks, up to capacity_end
//! ```
//!
//! Both copies say the same. Opening rewrites the first, flushes, then the second, so that one is
//! whole at every moment. Layout of a superblock, little-endian, zero-padded to a block:

use bytes::{Buf, BufMut, BytesMut};
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64, PoolId};

/// Blocks in a zone: the unit of free-space bookkeeping (4 MiB).
pub const ZONE_BLOCKS: u64 = 1024;
/// The one version of the pool's format there is.
pub const POOL_VERSION: u32 = 4;
/// Where the copies of the superblock lie.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, BLOCK_SIZE_U64];

const MAGIC: [u8; 8] = *b"TRVTPOOL";
const JOURNAL_START: u64 = 2;
const JOURNAL_BLOCKS_MIN: u64 = 1024;
const JOURNAL_BLOCKS_MAX: u64 = 16 * 1024;
const CRC_OFFSET: usize = BLOCK_SIZE - 4;

/// The regions of a pool file, in blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// First block of the journal ring.
    pub journal_start: u64,
    /// Blocks in the journal ring.
    pub journal_blocks: u64,
    /// First data block: a zone boundary.
    pub data_start: u64,
    /// The block after the last that the pool may grow to.
    pub capacity_end: u64,
}

impl Geometry {
    /// Regions for a pool that may hold `capacity_blocks` blocks of data.
    #[must_use]
    pub fn for_capacity(capacity_blocks: u64) -> Self {
        let journal_blocks = (capacity_blocks / 64).clamp(JOURNAL_BLOCKS_MIN, JOURNAL_BLOCKS_MAX);
        let data_start = (JOURNAL_START + journal_blocks).next_multiple_of(ZONE_BLOCKS);
        Self {
            journal_start: JOURNAL_START,
            journal_blocks,
            data_start,
            capacity_end: data_start + capacity_blocks.next_multiple_of(ZONE_BLOCKS),
        }
    }

    /// Byte offset of the journal block with this sequence number.
    #[must_use]
    pub fn journal_offset(&self, sequence: u64) -> u64 {
        (self.journal_start + sequence % self.journal_blocks) * BLOCK_SIZE_U64
    }

    /// Zones up to the capacity.
    #[must_use]
    pub fn zones(&self) -> u64 {
        (self.capacity_end - self.data_start) / ZONE_BLOCKS
    }

    /// The zone that a data block lies in, and its place there.
    #[must_use]
    pub fn zone_of(&self, physical: u64) -> (u64, u64) {
        let relative = physical - self.data_start;
        (relative / ZONE_BLOCKS, relative % ZONE_BLOCKS)
    }

    /// Whether `physical` is a data block.
    #[must_use]
    pub fn is_data(&self, physical: u64) -> bool {
        (self.data_start..self.capacity_end).contains(&physical)
    }

    fn is_sound(&self) -> bool {
        self.journal_start == JOURNAL_START
            && (JOURNAL_BLOCKS_MIN..=JOURNAL_BLOCKS_MAX).contains(&self.journal_blocks)
            && self.data_start == (JOURNAL_START + self.journal_blocks).next_multiple_of(ZONE_BLOCKS)
            && self.capacity_end > self.data_start
            && self.capacity_end < 1 << 40
            && (self.capacity_end - self.data_start).is_multiple_of(ZONE_BLOCKS)
    }
}

/// The pool's identity, geometry and boot epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Superblock {
    /// Which pool.
    pub(crate) pool: PoolId,
    /// Counts the openings of the pool.
    pub(crate) boot_epoch: u64,
    /// Its regions.
    pub(crate) geometry: Geometry,
}

/// Why a block is not a superblock.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// It does not begin as one.
    #[error("no superblock: this is not a Trivet pool")]
    NotAPool,
    /// Its checksum does not match.
    #[error("superblock checksum {found:#010x} where {expected:#010x} is stored")]
    Checksum {
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// Another program's.
    #[error("pool format version {found}; this program knows version {POOL_VERSION}")]
    Version {
        /// As stored.
        found: u32,
    },
    /// The checksum is right and the contents are impossible.
    #[error("superblock contradicts itself: {0}")]
    Contradiction(&'static str),
}

impl Superblock {
    /// Appends the block's 4096 bytes.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let begin = out.len();
        out.put_slice(&MAGIC);
        out.put_u32_le(POOL_VERSION);
        out.put_u32_le(u32::try_from(BLOCK_SIZE_U64).unwrap_or(u32::MAX));
        out.put_slice(self.pool.as_bytes());
        out.put_u64_le(self.boot_epoch);
        out.put_u64_le(self.geometry.journal_start);
        out.put_u64_le(self.geometry.journal_blocks);
        out.put_u64_le(self.geometry.data_start);
        out.put_u64_le(self.geometry.capacity_end);
        out.resize(begin + CRC_OFFSET, 0);
        let crc = crc32fast::hash(&out[begin..]);
        out.put_u32_le(crc);
    }

    /// Reads a block.
    ///
    /// # Errors
    /// Says what is wrong with it; a foreign version is told from damage.
    pub(crate) fn decode(block: &[u8]) -> Result<Self, SuperblockError> {
        assert_eq!(block.len(), BLOCK_SIZE, "a superblock is one block");
        let (body, mut stored) = block.split_at(CRC_OFFSET);
        let (magic, mut fields) = body.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(SuperblockError::NotAPool);
        }
        let (expected, found) = (stored.get_u32_le(), crc32fast::hash(body));
        if expected != found {
            return Err(SuperblockError::Checksum { expected, found });
        }
        let version = fields.get_u32_le();
        if version != POOL_VERSION {
            return Err(SuperblockError::Version { found: version });
        }
        if u64::from(fields.get_u32_le()) != BLOCK_SIZE_U64 {
            return Err(SuperblockError::Contradiction("block size"));
        }
        let mut pool = [0; 16];
        fields.copy_to_slice(&mut pool);
        let boot_epoch = fields.get_u64_le();
        let geometry = Geometry {
            journal_start: fields.get_u64_le(),
            journal_blocks: fields.get_u64_le(),
            data_start: fields.get_u64_le(),
            capacity_end: fields.get_u64_le(),
        };
        if !geometry.is_sound() {
            return Err(SuperblockError::Contradiction("regions"));
        }
        Ok(Self { pool: PoolId::from_bytes(pool), boot_epoch, geometry })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            pool: PoolId::from_bytes([7; 16]),
            boot_epoch: 3,
            geometry: Geometry::for_capacity(1 << 20),
        }
    }

    #[test]
    fn round_trip_and_golden_bytes() {
        let mut bytes = BytesMut::new();
        sample().encode(&mut bytes);
        assert_eq!(bytes.len(), BLOCK_SIZE);
        assert_eq!(Superblock::decode(&bytes), Ok(sample()));
        assert_eq!(&bytes[..16], b"TRVTPOOL\x04\0\0\0\0\x10\0\0");
        assert_eq!(&bytes[32..40], &3u64.to_le_bytes());
        assert!(bytes[72..CRC_OFFSET].iter().all(|&b| b == 0));
    }

    #[test]
    fn every_flipped_byte_is_refused() {
        let mut bytes = BytesMut::new();
        sample().encode(&mut bytes);
        for at in 0..BLOCK_SIZE {
            bytes[at] ^= 0x10;
            assert!(Superblock::decode(&bytes).is_err(), "byte {at}");
            bytes[at] ^= 0x10;
        }
    }

    #[test]
    fn a_foreign_version_is_named() {
        let mut bytes = BytesMut::new();
        sample().encode(&mut bytes);
        bytes[8] = 9;
        let crc = crc32fast::hash(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Superblock::decode(&bytes), Err(SuperblockError::Version { found: 9 }));
    }
}
