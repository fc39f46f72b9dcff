//! Block-aligned buffers for direct I/O, made without copying and without unsafe code.

use crate::BLOCK_SIZE;
use bytes::BytesMut;

/// Hands out buffers whose memory begins at a multiple of [`BLOCK_SIZE`], as O_DIRECT needs.
///
/// Buffers come out of large chunks one after the other, so that consecutive small ones lie next
/// to each other in memory and a batch of them goes to the device as few segments. A chunk's
/// memory is given back when its last buffer is dropped.
#[derive(Debug, Default)]
pub struct BlockArena {
    chunk: BytesMut,
}

const CHUNK_BYTES: usize = 256 * 1024;

impl BlockArena {
    /// An arena that has allocated nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty buffer with room for exactly `blocks` blocks, aligned to a block.
    pub fn allocate(&mut self, blocks: usize) -> BytesMut {
        let bytes = blocks * BLOCK_SIZE;
        if self.chunk.capacity() < bytes {
            self.refill(bytes);
        }
        let mut rest = self.chunk.split_off(bytes);
        std::mem::swap(&mut rest, &mut self.chunk);
        if self.chunk.capacity() == 0 {
            // Whoever gets a chunk's last buffer, and holds no other of it, owns its memory alone.
            self.chunk = BytesMut::new();
        }
        debug_assert_eq!(rest.capacity(), bytes);
        assert_eq!(rest.as_ptr().align_offset(BLOCK_SIZE), 0, "arena lost its alignment");
        rest
    }

    fn refill(&mut self, bytes: usize) {
        let mut chunk = BytesMut::with_capacity(bytes.max(CHUNK_BYTES) + BLOCK_SIZE);
        let skip = chunk.as_ptr().align_offset(BLOCK_SIZE);
        let mut aligned = chunk.split_off(skip);
        let usable = aligned.capacity() / BLOCK_SIZE * BLOCK_SIZE;
        drop(aligned.split_off(usable));
        self.chunk = aligned;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_sized_and_adjacent() {
        let mut arena = BlockArena::new();
        let mut previous_end = None;
        let mut adjacent = 0;
        let mut kept = Vec::new();
        for blocks in [1, 1, 1, 64, 1, 256, 3, 1] {
            let mut buffer = arena.allocate(blocks);
            assert_eq!(buffer.capacity(), blocks * BLOCK_SIZE);
            let start = buffer.as_ptr() as usize;
            assert_eq!(start % BLOCK_SIZE, 0);
            adjacent += usize::from(previous_end == Some(start));
            previous_end = Some(start + buffer.capacity());
            buffer.resize(blocks * BLOCK_SIZE, 7);
            assert_eq!(buffer.as_ptr() as usize, start, "filling must not move it");
            kept.push(buffer.freeze());
        }
        assert!(adjacent >= 3);
    }
}
