//! The client's requests in flight, in a slab: a tag is an index, no look-up and no allocation.

use super::command::Command;
use super::{BLOCK_BYTES, PART_BYTES_MAX};
use crate::request::IoError;
use bytes::Bytes;

/// Names one request to the volume until it is completed. Reads and writes longer than the volume
/// takes are several; each has its own tag.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag(pub(super) u64);

impl Tag {
    pub(super) fn new(slot: u32, part: u32) -> Self {
        Self(u64::from(part) << 32 | u64::from(slot))
    }

    #[allow(clippy::cast_possible_truncation, reason = "the slot is the lower half")]
    pub(super) const fn slot(self) -> u32 {
        self.0 as u32
    }

    #[allow(clippy::cast_possible_truncation, reason = "the part is the upper half")]
    pub(super) const fn part(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The tag as a number, for a shell that keeps it in a completion's user data.
    #[must_use]
    pub const fn into_u64(self) -> u64 {
        self.0
    }

    /// The inverse of [`Tag::into_u64`].
    #[must_use]
    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }
}

/// A client's request, from its header until its reply.
#[derive(Debug)]
pub(super) struct Request {
    /// The client's name for it, repeated in the reply.
    pub(super) cookie: u64,
    pub(super) command: Command,
    pub(super) offset: u64,
    pub(super) length: u32,
    /// Parts that the volume has.
    pub(super) parts_pending: u32,
    /// No more parts will be handed to the volume.
    pub(super) all_issued: bool,
    /// The client has gone in the middle of the request: no reply.
    pub(super) abandoned: bool,
    /// The first error of a part.
    pub(super) error: Option<IoError>,
    /// Parts of a read that must be answered as a whole, and are not all here.
    pub(super) gathered: Vec<(u32, Vec<Bytes>)>,
}

impl Request {
    pub(super) fn new(cookie: u64, command: Command, offset: u64, length: u32) -> Self {
        Self {
            cookie,
            command,
            offset,
            length,
            parts_pending: 0,
            all_issued: false,
            abandoned: false,
            error: None,
            gathered: Vec::new(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.all_issued && self.parts_pending == 0
    }

    /// Offset and length of a part, or `None` past the last. A part touches at most
    /// `IO_BLOCKS_MAX` blocks, and only the first and the last may touch less than whole ones.
    pub(super) fn part(&self, part: u32) -> Option<(u64, u32)> {
        let end = self.offset + u64::from(self.length);
        let base = self.offset / BLOCK_BYTES * BLOCK_BYTES + u64::from(part) * PART_BYTES_MAX;
        let start = base.max(self.offset);
        let part_end = end.min(base + PART_BYTES_MAX);
        let length = u32::try_from(part_end.checked_sub(start)?).ok()?;
        (length > 0).then_some((start, length))
    }
}

/// The slab.
#[derive(Debug, Default)]
pub(super) struct Requests {
    slots: Vec<Option<Request>>,
    free: Vec<u32>,
}

impl Requests {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, request: Request) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(request);
            return slot;
        }
        self.slots.push(Some(request));
        u32::try_from(self.slots.len() - 1).expect("requests in flight are bounded")
    }

    /// # Panics
    /// When the slot is free: the shell completed a request that it does not have.
    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Request {
        self.slots.get_mut(slot as usize).and_then(Option::as_mut).expect("the tag is in flight")
    }

    /// # Panics
    /// When the slot is free.
    pub(super) fn remove(&mut self, slot: u32) -> Request {
        let request = self.slots.get_mut(slot as usize).and_then(Option::take).expect("the tag is in flight");
        self.free.push(slot);
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(offset: u64, length: u32) -> Vec<(u64, u32)> {
        let request = Request::new(0, Command::Read { whole: false }, offset, length);
        (0..).map_while(|part| request.part(part)).collect()
    }

    #[test]
    fn parts_touch_no_more_blocks_than_the_volume_takes() {
        const MIB: u32 = 1 << 20;
        assert_eq!(parts(0, 512), [(0, 512)]);
        assert_eq!(parts(4096, MIB), [(4096, MIB)]);
        assert_eq!(parts(512, MIB), [(512, MIB - 512), (1 << 20, 512)]);
        assert_eq!(parts(4096, MIB + 512), [(4096, MIB), (4096 + (1 << 20), 512)]);
        let large = parts(1024, 32 << 20);
        assert_eq!(large.len(), 33);
        let mut next = 1024;
        for (start, length) in large {
            assert_eq!(start, next);
            next = start + u64::from(length);
            let blocks = next.div_ceil(BLOCK_BYTES) - start / BLOCK_BYTES;
            assert!(blocks <= u64::from(trivet_model::geometry::IO_BLOCKS_MAX));
        }
        assert_eq!(next, 1024 + (32 << 20));
    }

    #[test]
    fn tags_survive_the_way_through_a_number() {
        let tag = Tag::new(511, 32);
        assert_eq!(Tag::from_u64(tag.into_u64()), tag);
        assert_eq!((tag.slot(), tag.part()), (511, 32));
    }

    #[test]
    fn slots_are_used_again() {
        let mut requests = Requests::default();
        let new = |cookie| Request::new(cookie, Command::Flush, 0, 0);
        let first = requests.insert(new(1));
        let second = requests.insert(new(2));
        assert_eq!(requests.remove(first).cookie, 1);
        assert_eq!(requests.insert(new(3)), first);
        assert_eq!(requests.get_mut(second).cookie, 2);
        assert_eq!(requests.len(), 2);
    }
}
