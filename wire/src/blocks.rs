//! Blocks on their way, with the checksums that go with them from the engine to the medium and back, and
//! the tags of encrypted ones.

use bytes::Bytes;
use trivet_model::checksum::block_crcs;
use trivet_model::{BLOCK_SIZE, BlockCrc, BlockTag};

/// Whole blocks and their checksums, made once in the engine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BlockData {
    /// One checksum a block.
    pub crcs: Vec<BlockCrc>,
    /// One tag a block of an encrypted volume; none otherwise.
    pub tags: Vec<BlockTag>,
    /// `crcs.len()` blocks. In segments, each of whole blocks, so that nobody needs to join them.
    pub segments: Vec<Bytes>,
}

impl BlockData {
    /// Takes blocks whose checksums, and tags if they have such, are known already.
    ///
    /// # Panics
    /// When there is not exactly one checksum a block, or a tag for each or for none, or a segment is not of
    /// whole blocks.
    #[must_use]
    pub fn new(crcs: Vec<BlockCrc>, tags: Vec<BlockTag>, segments: Vec<Bytes>) -> Self {
        let data = Self { crcs, tags, segments };
        data.assert_consistent();
        data
    }

    /// Takes blocks and makes their checksums.
    ///
    /// # Panics
    /// When a segment is not of whole blocks.
    #[must_use]
    pub fn checksummed(segments: Vec<Bytes>) -> Self {
        let crcs = segments.iter().flat_map(|segment| block_crcs(segment)).collect();
        Self { crcs, tags: Vec::new(), segments }
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
    /// As [`BlockData::new`].
    pub fn verify(&self) -> Result<(), usize> {
        self.assert_consistent();
        let found = self.segments.iter().flat_map(|segment| block_crcs(segment));
        match self.crcs.iter().zip(found).position(|(expected, found)| *expected != found) {
            Some(index) => Err(index),
            None => Ok(()),
        }
    }

    pub(crate) fn assert_consistent(&self) {
        let Self { crcs, tags, segments } = self;
        let bytes: usize = segments.iter().map(Bytes::len).sum();
        let whole = segments.iter().all(|segment| segment.len().is_multiple_of(BLOCK_SIZE));
        let tagged = tags.is_empty() || tags.len() == crcs.len();
        assert!(
            whole && tagged && bytes == self.bytes(),
            "{} checksums and {} tags for {bytes} bytes in {} segments",
            crcs.len(),
            tags.len(),
            segments.len()
        );
    }
}
