//! Memory for what is sealed, used again once nobody holds what lay there: fresh memory would cost the kernel a page
//! fault for every block, and memory that is copied to first would have to be waited for twice.
//!
//! Small pieces come from the allocator, which does the same for them.

use bytes::{Bytes, BytesMut};
use std::sync::{Arc, Mutex, PoisonError};
use trivet_model::BLOCK_SIZE;
use trivet_model::geometry::IO_BLOCKS_MAX;

/// Of a piece that is used again: room for the largest operation.
const PIECE_BYTES: usize = IO_BLOCKS_MAX as usize * BLOCK_SIZE;
/// From here on pieces are used again.
const LARGE_BYTES_MIN: usize = 128 << 10;
/// Pieces that are kept: more than a queue of eight large writes holds. Beyond that, memory is fresh.
const FREE_MAX: usize = 12;

/// Pieces that nobody holds. The last one that was given back is taken first: it may be in a cache still.
type Free = Arc<Mutex<Vec<Vec<u8>>>>;

#[derive(Debug, Default)]
pub(super) struct Memory(Free);

/// A large piece on loan.
struct Lent {
    bytes: Vec<u8>,
    length: usize,
    free: Free,
}

impl Memory {
    /// What `fill` writes to so many bytes, all of them.
    pub(super) fn filled(&self, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Bytes {
        if !(LARGE_BYTES_MIN..=PIECE_BYTES).contains(&bytes) {
            let mut small = BytesMut::zeroed(bytes);
            fill(&mut small);
            return small.freeze();
        }
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut piece = free.unwrap_or_else(|| vec![0; PIECE_BYTES]);
        fill(&mut piece[..bytes]);
        Bytes::from_owner(Lent { bytes: piece, length: bytes, free: Arc::clone(&self.0) })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < FREE_MAX {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pieces_are_used_again_once_nobody_holds_them() {
        let memory = Memory::default();
        let free = |memory: &Memory| memory.0.lock().unwrap().len();
        for bytes in [BLOCK_SIZE, LARGE_BYTES_MIN, 5 * BLOCK_SIZE, PIECE_BYTES, LARGE_BYTES_MIN] {
            let piece = memory.filled(bytes, |piece| piece.fill(7));
            assert_eq!((piece.len(), piece.iter().all(|&byte| byte == 7)), (bytes, true));
            let part = piece.slice(bytes - 1..);
            drop(piece);
            assert_eq!(free(&memory), 0, "a part of it is held");
            drop(part);
            let again = free(&memory);
            assert_eq!(again, usize::from(bytes >= LARGE_BYTES_MIN));
            memory.0.lock().unwrap().clear();
        }
        let take =
            |count: usize| -> Vec<Bytes> { (0..count).map(|_| memory.filled(PIECE_BYTES, |_| {})).collect() };
        let held = take(2 * FREE_MAX);
        let first = held[0].as_ptr();
        drop(held);
        assert_eq!(free(&memory), FREE_MAX, "no more than that are kept");
        assert!(take(FREE_MAX).iter().any(|piece| piece.as_ptr() == first));
    }
}
