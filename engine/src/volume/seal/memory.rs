//! Memory for what is sealed or opened, used again once nobody holds what lay there: fresh memory would cost the
//! kernel a page fault for every block.
//!
//! Pieces come out of chunks one after the other. A chunk is free again when all its pieces are dropped; those
//! that were used first are free first.

use bytes::BytesMut;
use std::collections::VecDeque;
use trivet_model::BLOCK_SIZE;
use trivet_model::geometry::IO_BLOCKS_MAX;

/// The largest operation's.
const CHUNK_BYTES: usize = IO_BLOCKS_MAX as usize * BLOCK_SIZE;
/// More than a queue of eight large writes holds. Of what is asked for beyond, the memory is fresh.
const CHUNKS_MAX: usize = 12;

#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Pieces come out of the last.
    chunks: VecDeque<BytesMut>,
}

impl Memory {
    /// An empty piece with room for exactly so many bytes.
    pub(super) fn take(&mut self, bytes: usize) -> BytesMut {
        let has_room = |chunk: &mut BytesMut| chunk.capacity() >= bytes;
        let mut chunk = match self.chunks.pop_back_if(has_room) {
            Some(chunk) => chunk,
            None => self.free_chunk(bytes.max(CHUNK_BYTES)),
        };
        // Of more chunks than are kept, those stay that were used first: they are free first.
        self.chunks.truncate(CHUNKS_MAX);
        let rest = chunk.split_off(bytes);
        self.chunks.push_back(rest);
        chunk
    }

    fn free_chunk(&mut self, bytes: usize) -> BytesMut {
        // Ciphers are faster where nothing lies across the lines of a cache.
        let with_alignment = bytes + BLOCK_SIZE;
        let free = self.chunks.iter_mut().position(|chunk| chunk.try_reclaim(with_alignment));
        let free = free.and_then(|at| self.chunks.remove(at));
        let mut chunk = free.unwrap_or_else(|| BytesMut::with_capacity(with_alignment));
        let skip = chunk.as_ptr().align_offset(BLOCK_SIZE);
        chunk.split_off(skip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Takes and drops pieces, at most so many held at once; how many different chunks they came out of.
    fn chunks(pieces: usize, bytes: usize, held: usize) -> usize {
        let (mut memory, mut holding, mut addresses) = (Memory::default(), VecDeque::new(), HashSet::new());
        for _ in 0..pieces {
            let mut piece = memory.take(bytes);
            assert_eq!((piece.len(), piece.capacity()), (0, bytes));
            assert_eq!(piece.as_ptr().align_offset(BLOCK_SIZE), 0);
            piece.resize(bytes, 1);
            addresses.insert(piece.as_ptr() as usize / CHUNK_BYTES);
            holding.push_back(piece.freeze());
            if holding.len() > held {
                holding.pop_front();
            }
        }
        addresses.len()
    }

    #[test]
    fn chunks_are_used_again_once_their_pieces_are_gone() {
        // A chunk may lie in two of the places that are counted.
        assert!(chunks(10_000, BLOCK_SIZE, 32) <= 2 * 3);
        assert!(chunks(1000, CHUNK_BYTES, 8) <= 2 * 10);
    }

    #[test]
    fn what_is_held_for_ever_is_not_kept_for_reuse() {
        let mut memory = Memory::default();
        let held: Vec<BytesMut> = (0..100).map(|_| memory.take(CHUNK_BYTES)).collect();
        assert!(memory.chunks.len() <= CHUNKS_MAX + 1 && held.len() == 100);
    }
}
