//! Blocks on their way, with the checksums that go with them from the engine to the medium and back.

use bytes::Bytes;
use trivet_model::checksum::block_crcs;
use trivet_model::{BLOCK_SIZE, BlockCrc};

/// Whole blocks and their checksums, made once in the engine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BlockData {
    /// One checksum a block.
    pub crcs: Vec<BlockCrc>,
    /// `crcs.len()` blocks. In segments, each of whole blocks, so that nobody needs to join them.
    pub segments: Vec<Bytes>,
}

impl BlockData {
    /// Takes blocks whose checksums are known already.
    ///
    /// # Panics
    /// When there is not exactly one checksum a block, or a segment is not of whole blocks.
    #[must_use]
    pub fn new(crcs: Vec<BlockCrc>, segments: Vec<Bytes>) -> Self {
        let data = Self { crcs, segments };
        assert!(data.is_consistent(), "{} checksums for {} segments", data.crcs.len(), data.segments.len());
        data
    }

    /// Takes blocks and makes their checksums.
    ///
    /// # Panics
    /// When a segment is not of whole blocks.
    #[must_use]
    pub fn checksummed(segments: Vec<Bytes>) -> Self {
        let crcs = segments.iter().flat_map(|segment| block_crcs(segment)).collect();
        Self { crcs, segments }
    }

    /// How many blocks.
    #[must_use]
    pub const fn blocks(&self) -> usize {
        self.crcs.len()
    }

    /// Length of the blocks in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.crcs.len() * BLOCK_SIZE
    }

    /// Whether every block still has the contents its checksum was made of.
    ///
    /// # Errors
    /// The index of the first block that has not.
    ///
    /// # Panics
    /// When there is not exactly one checksum a block.
    pub fn verify(&self) -> Result<(), usize> {
        assert!(self.is_consistent(), "{} checksums for {} segments", self.crcs.len(), self.segments.len());
        let found = self.segments.iter().flat_map(|segment| block_crcs(segment));
        match self.crcs.iter().zip(found).position(|(expected, found)| *expected != found) {
            Some(index) => Err(index),
            None => Ok(()),
        }
    }

    pub(crate) fn is_consistent(&self) -> bool {
        let bytes: usize = self.segments.iter().map(Bytes::len).sum();
        let whole = self.segments.iter().all(|segment| segment.len().is_multiple_of(BLOCK_SIZE));
        whole && bytes == self.bytes()
    }
}
