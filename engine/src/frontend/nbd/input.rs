//! The receive buffer: lent to the shell, sliced without copying.
//!
//! Invariants:
//! - While the buffer is lent out, nothing is parsed: all that was there is a message's beginning.
//! - A lent buffer has room for the rest of the awaited bytes, next to those already there.
//! - Only a message's beginning is ever copied (into the next buffer), less than a block of a
//!   payload or one header; and an option's data, which is small.

use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;

/// Room of an ordinary receive buffer: a queue of 32 small writes fits.
pub(super) const CHUNK_BYTES: usize = 128 * 1024;
/// Room of the first buffer, which sees the handshake only.
const FIRST_BYTES: usize = 8192;
/// From here on a payload's rest gets a buffer of exactly its size.
const EXACT_BYTES_MIN: usize = 64 * 1024;
/// A buffer with less room than this is left when what must be copied is small too.
const ROOM_BYTES_MIN: usize = 4096;
/// Buffers kept to be used again once the requests that hold slices of them are done. Those that
/// were retired first are free first: a full list keeps what it has.
const RETIRED_MAX: usize = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Input {
    buffer: BytesMut,
    /// How much was in the buffer when it was lent out, if it is.
    lent: Option<usize>,
    retired: VecDeque<BytesMut>,
}

impl Input {
    pub(super) fn new() -> Self {
        Self { buffer: BytesMut::with_capacity(FIRST_BYTES), lent: None, retired: VecDeque::new() }
    }

    /// What is there, unless the buffer is lent.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    pub(super) fn is_lent(&self) -> bool {
        self.lent.is_some()
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.buffer.advance(count);
    }

    /// Takes the first `count` bytes as a slice of the buffer.
    pub(super) fn take(&mut self, count: usize) -> Bytes {
        self.buffer.split_to(count).freeze()
    }

    /// Throws up to `count` bytes away and returns how many there were.
    pub(super) fn skip(&mut self, count: u32) -> u32 {
        match u32::try_from(self.buffer.len()) {
            Ok(here) if here <= count => {
                // Clearing instead of advancing keeps the room: skipping needs no new buffer.
                self.buffer.clear();
                here
            }
            _ => {
                self.buffer.advance(count as usize);
                count
            }
        }
    }

    /// Whether `count` bytes, of which the first may be here, would fit without moving any.
    pub(super) fn fits(&self, count: usize) -> bool {
        count <= self.buffer.capacity()
    }

    /// Gives the buffer away, with room for `awaited` bytes counted from the first one in it.
    ///
    /// # Panics
    /// When it is lent out already.
    pub(super) fn lend(&mut self, awaited: usize) -> BytesMut {
        assert!(self.lent.is_none(), "the receive buffer is lent out already");
        assert!(self.buffer.len() < awaited, "nothing is awaited");
        let room = self.buffer.capacity() - self.buffer.len();
        let cheap = self.buffer.len() < ROOM_BYTES_MIN && awaited < EXACT_BYTES_MIN;
        if !self.fits(awaited) || (cheap && room < ROOM_BYTES_MIN) {
            self.move_to_buffer_of(if awaited >= EXACT_BYTES_MIN { awaited } else { CHUNK_BYTES });
        }
        self.lent = Some(self.buffer.len());
        std::mem::take(&mut self.buffer)
    }

    /// Takes the buffer back; returns whether anything was appended.
    ///
    /// # Panics
    /// When it was not lent out, or has become shorter.
    pub(super) fn give_back(&mut self, buffer: BytesMut) -> bool {
        let before = self.lent.take().expect("a receive buffer is lent out");
        assert!(buffer.len() >= before, "the receive buffer has lost what was in it");
        self.buffer = buffer;
        self.buffer.len() > before
    }

    fn move_to_buffer_of(&mut self, capacity: usize) {
        let additional = capacity - self.buffer.len();
        if self.buffer.len() < ROOM_BYTES_MIN && self.buffer.try_reclaim(additional) {
            return;
        }
        let mut next = self.recycled(capacity).unwrap_or_else(|| BytesMut::with_capacity(capacity));
        next.extend_from_slice(&self.buffer);
        let mut old = std::mem::replace(&mut self.buffer, next);
        old.clear();
        if self.retired.len() < RETIRED_MAX {
            self.retired.push_back(old);
        }
    }

    fn recycled(&mut self, capacity: usize) -> Option<BytesMut> {
        let found = self.retired.iter_mut().position(|old| old.try_reclaim(capacity))?;
        self.retired.remove(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_used_again_once_their_slices_are_gone() {
        let mut input = Input::new();
        let mut held = VecDeque::new();
        let mut addresses = std::collections::HashSet::new();
        for _ in 0..1000 {
            let mut buffer = input.lend(28);
            assert!(buffer.capacity() - buffer.len() >= ROOM_BYTES_MIN);
            if buffer.capacity() >= CHUNK_BYTES / 2 {
                addresses.insert(buffer.as_ptr() as usize / CHUNK_BYTES);
            }
            buffer.resize(buffer.capacity(), 1);
            assert!(input.give_back(buffer));
            while input.bytes().len() >= 4096 {
                held.push_back(input.take(4096));
                if held.len() > 32 {
                    held.pop_front();
                }
            }
            let rest = input.bytes().len();
            input.consume(rest);
        }
        assert!(addresses.len() < 16, "{} different buffers", addresses.len());
    }

    #[test]
    fn a_large_payload_gets_its_exact_size() {
        let mut input = Input::new();
        let mut buffer = input.lend(1 << 20);
        assert_eq!(buffer.capacity(), 1 << 20);
        buffer.extend_from_slice(b"some");
        let before = buffer.as_ptr();
        assert!(input.give_back(buffer));
        let mut buffer = input.lend(1 << 20);
        assert_eq!(buffer.as_ptr(), before, "a begun payload stays where it is");
        buffer.resize(1 << 20, 0);
        assert!(input.give_back(buffer));
        assert_eq!(input.take(1 << 20).as_ptr(), before);
    }

    #[test]
    fn skipping_needs_no_new_buffer() {
        let mut input = Input::new();
        let mut buffer = input.lend(1);
        let before = buffer.as_ptr();
        buffer.resize(1000, 7);
        assert!(input.give_back(buffer));
        assert_eq!(input.skip(5000), 1000);
        let mut buffer = input.lend(1);
        assert_eq!(buffer.as_ptr(), before);
        buffer.resize(1000, 7);
        assert!(input.give_back(buffer));
        assert_eq!(input.skip(400), 400);
        assert_eq!(input.bytes().len(), 600);
    }
}
