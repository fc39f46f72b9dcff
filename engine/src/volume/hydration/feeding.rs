//! Large discards and requests for zeros, while a volume is imported: taken in parts, a few MiB at a time.
//!
//! What may still be the source's is zeroed by writing zeros, which is as much work as writing so much data. Taken as
//! one, such a request would be ahead of whatever comes in the meantime, and have its chunks to itself until
//! the last of them is written. So it is cut where chunks begin, and a part is taken when few others of any such request
//! are under way: for hydration and all that follows a part is a request. What is surely the volume's, imported
//! already or beyond the source, is discarded in one part each. So is all that is left when the import is done.
//!
//! Who came first goes first; one whose part waits for a chunk is passed by. What others ask of the same bytes
//! meanwhile may come before or after a part, as with any requests that are in flight together.

use super::chunks::{CHUNK_BYTES, PART_TAGS};
use super::is_part;
use crate::request::{IoError, IoReply, IoRequest};
use crate::volume::{Tag, VolumeCore};
use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

/// What is zeroed at a time, at most; whole chunks.
pub(super) const PART_BYTES: u64 = if cfg!(test) { CHUNK_BYTES } else { 4 << 20 };
/// Parts of all requests that are taken at a time.
const PARTS_MAX: usize = 2;

const _: () = assert!(PART_BYTES.is_multiple_of(CHUNK_BYTES));

/// Requests that are taken in parts.
#[derive(Debug, Default)]
pub(in super::super) struct Feeding {
    feeds: VecDeque<Feed>,
    next_part: u64,
    ended: VecDeque<(u64, Result<IoReply, IoError>)>,
}

#[derive(Debug)]
struct Feed {
    tag: Tag,
    /// The bytes that no part has been made of.
    rest: Range<u64>,
    force_unit_access: bool,
    /// The one that is under way.
    part: Option<u64>,
}

impl Feeding {
    pub(super) fn add(&mut self, tag: Tag, rest: Range<u64>, force_unit_access: bool) {
        self.feeds.push_back(Feed { tag, rest, force_unit_access, part: None });
    }

    /// A part has ended; [`VolumeCore::feed`] takes it from there.
    pub(super) fn part_ended(&mut self, tag: Tag, result: Result<IoReply, IoError>) {
        self.ended.push_back((tag.0, result));
    }

    /// Whether it can go on at once.
    pub(super) fn is_stirred(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Forgets all, and answers whose they were.
    pub(super) fn take_tags(&mut self) -> Vec<Tag> {
        self.ended.clear();
        self.feeds.drain(..).map(|feed| feed.tag).collect()
    }

    /// Whether a chunk is about to be zeroed whole.
    pub(super) fn will_zero(&self, chunk: u64) -> bool {
        let bytes = chunk * CHUNK_BYTES..(chunk + 1) * CHUNK_BYTES;
        self.feeds.iter().any(|feed| feed.rest.start <= bytes.start && bytes.end <= feed.rest.end)
    }

    /// A request that is answered by its parts: all have ended, or one has failed; with what no part was made of.
    fn answered(&mut self) -> Option<(Tag, Result<IoReply, IoError>, Range<u64>)> {
        while let Some((part, result)) = self.ended.pop_front() {
            let Some(at) = self.feeds.iter().position(|feed| feed.part == Some(part)) else { continue };
            self.feeds[at].part = None;
            if result.is_err() || self.feeds[at].rest.is_empty() {
                let feed = self.feeds.remove(at)?;
                return Some((feed.tag, result, feed.rest));
            }
        }
        None
    }

    /// The next part to be taken, if few enough have been: `blocked` of those under way are not yet. What lies in
    /// `undecided` may be the source's.
    fn next_part(&mut self, undecided: &Range<u64>, blocked: usize) -> Option<(Tag, Range<u64>, bool)> {
        let under_way = self.feeds.iter().filter(|feed| feed.part.is_some()).count();
        if under_way.saturating_sub(blocked) >= PARTS_MAX {
            return None;
        }
        let feed = self.feeds.iter_mut().find(|feed| feed.part.is_none())?;
        self.next_part += 1;
        let tag = Tag(PART_TAGS | self.next_part);
        feed.part = Some(tag.0);
        let end = part_end(&feed.rest, undecided);
        let part = feed.rest.start..end;
        feed.rest.start = end;
        Some((tag, part, feed.force_unit_access))
    }
}

/// Where the first part of some bytes ends.
fn part_end(bytes: &Range<u64>, undecided: &Range<u64>) -> u64 {
    let Range { start, end } = *bytes;
    if start >= undecided.end {
        return end;
    }
    if start < undecided.start {
        return end.min(undecided.start);
    }
    let end = end.min(undecided.end);
    let next_chunk = (start + 1).next_multiple_of(CHUNK_BYTES);
    if !start.is_multiple_of(CHUNK_BYTES) || end < next_chunk {
        // A chunk that it does not zero whole is fetched first: nothing else is to wait for that.
        return end.min(next_chunk);
    }
    (end / CHUNK_BYTES * CHUNK_BYTES).min((start + 1).next_multiple_of(PART_BYTES))
}

impl VolumeCore {
    /// Whether large requests have parts that are to be taken still, or to end.
    pub(in super::super) fn is_feeding(&self) -> bool {
        !self.feeding.feeds.is_empty()
    }

    /// Answers requests whose parts have ended, and takes as many parts as may be.
    pub(super) fn feed(&mut self, now: Duration) {
        loop {
            while let Some((tag, result, rest)) = self.feeding.answered() {
                if let Some(hydration) = self.hydration.as_mut().filter(|_| !rest.is_empty()) {
                    hydration.look_again_from(rest.start / CHUNK_BYTES);
                }
                self.complete(tag, result);
            }
            let hydration = self.hydration.as_deref();
            let undecided = hydration.map_or(0..0, |hydration| hydration.undecided());
            let blocked = hydration.map_or(0, |hydration| {
                hydration.blocked.iter().filter(|blocked| is_part(blocked.tag)).count()
            });
            let Some((tag, part, force_unit_access)) = self.feeding.next_part(&undecided, blocked) else {
                return;
            };
            let (offset, length) = (part.start, part.end - part.start);
            let zeroes = IoRequest::WriteZeroes { offset, length, force_unit_access, may_unmap: true };
            self.take_or_block(now, tag, zeroes, &part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_are_small_where_the_source_may_count_and_whole_elsewhere(
            start in 0u64..200, sectors in 1u64..400, first in 0u64..30, chunks in 0u64..30)
        {
            let undecided = first * CHUNK_BYTES..(first + chunks) * CHUNK_BYTES;
            let mut rest = start * 512..(start + sectors) * 512;
            let mut parts = Vec::new();
            while !rest.is_empty() {
                let end = part_end(&rest, &undecided);
                prop_assert!(rest.start < end && end <= rest.end);
                parts.push(rest.start..end);
                rest.start = end;
            }
            let is_undecided = |part: &&Range<u64>| part.start.max(undecided.start) < part.end.min(undecided.end);
            for part in parts.iter().filter(is_undecided) {
                prop_assert!(undecided.start <= part.start && part.end <= undecided.end);
                let whole = part.start.is_multiple_of(CHUNK_BYTES) && part.end.is_multiple_of(CHUNK_BYTES);
                let most = if whole { PART_BYTES } else { CHUNK_BYTES - 1 };
                prop_assert!(part.end - part.start <= most);
            }
            prop_assert!(parts.iter().filter(|part| !is_undecided(part)).count() <= 2);
        }
    }

    #[test]
    fn the_first_goes_first_and_few_parts_are_taken_at_a_time() {
        let mut feeding = Feeding::default();
        (1..=3).for_each(|tag| feeding.add(Tag(tag), 0..3 * PART_BYTES, false));
        let undecided = 0..3 * PART_BYTES;
        let next = |feeding: &mut Feeding, blocked| feeding.next_part(&undecided, blocked);
        let first = next(&mut feeding, 0).unwrap();
        let second = next(&mut feeding, 0).unwrap();
        assert_eq!((first.1.clone(), second.1.clone()), (0..PART_BYTES, 0..PART_BYTES));
        assert_eq!(next(&mut feeding, 0), None);
        // The second waits for a chunk: the third need not.
        assert_eq!(next(&mut feeding, 1).unwrap().1, 0..PART_BYTES);
        feeding.part_ended(first.0, Ok(IoReply::Done));
        assert_eq!(feeding.answered(), None);
        assert_eq!(next(&mut feeding, 1).unwrap().1, PART_BYTES..2 * PART_BYTES);
        feeding.part_ended(second.0, Err(IoError::NoSpace));
        let rest = PART_BYTES..3 * PART_BYTES;
        assert_eq!(feeding.answered(), Some((Tag(2), Err(IoError::NoSpace), rest)));
        assert_eq!(feeding.take_tags(), [Tag(1), Tag(3)]);
    }
}
