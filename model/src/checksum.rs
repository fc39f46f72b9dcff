//! The block checksum: CRC-32 (IEEE), made once in the engine and checked at every hand-over.

use crate::BLOCK_SIZE;

/// CRC-32 (IEEE 802.3, reflected, as zlib computes it) of a block's stored bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct BlockCrc(pub u32);

/// The checksum of a block of zeros.
pub const ZERO_BLOCK_CRC: BlockCrc = BlockCrc(0xc71c_0011);

/// The checksum of one block.
///
/// # Panics
/// When `block` is not [`BLOCK_SIZE`] bytes long.
#[must_use]
pub fn block_crc(block: &[u8]) -> BlockCrc {
    assert_eq!(block.len(), BLOCK_SIZE, "a checksum is of exactly one block");
    BlockCrc(crc32fast::hash(block))
}

/// The checksums of consecutive blocks.
///
/// # Panics
/// When `data` is not a whole number of blocks.
pub fn block_crcs(data: &[u8]) -> impl ExactSizeIterator<Item = BlockCrc> {
    assert_eq!(data.len() % BLOCK_SIZE, 0, "checksums are of whole blocks");
    data.chunks_exact(BLOCK_SIZE).map(block_crc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
        assert_eq!(block_crc(&[0; BLOCK_SIZE]), ZERO_BLOCK_CRC);
    }
}
