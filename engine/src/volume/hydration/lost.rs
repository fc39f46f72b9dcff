//! Blocks that the source has, and answers with an error for: a sector of its disk is lost, say.
//!
//! It fails a whole chunk for that, so it is asked for the chunk's blocks one by one: the chunk is *sifted*. With
//! what the source gives of it the chunk is hydrated, but for its lost blocks. A request over one of these fails, with
//! the source's words; one that writes it whole needs no source, and ends it. One at a time they are tried again,
//! slowly. The cursor does not pass them: so whoever serves the volume next finds them anew, and the import waits
//! for them when all else is done.
//!
//! ```text
//!        fetched after all, and being written
//!  lost ──────────────────────────────────────┐          done
//!  ▲ └─── being overwritten by a request ─────┴▶ held ─────────▶ the volume's
//!  └───────────────── it failed ─────────────────┘
//! ```
//!
//! While a block is held, requests over it wait. What was fetched of one that a request has begun to overwrite
//! meanwhile is dropped.

use super::chunks::{CHUNK_BLOCKS, Job, Step};
use super::fetching::segments_of;
use crate::request::{IoError, IoReply, IoRequest};
use crate::volume::{Action, Tag, VolumeCore, VolumeState};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;
use trivet_model::BLOCK_SIZE_U64;

/// How long until a lost block is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// With so many (256 MiB) the background begins with no other chunk.
const LOST_MAX: usize = 64 << 10;

/// Why bytes of a source could not be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be reached, or is not what the import began with: nothing can be had.
    #[error("{0}")]
    Away(String),
    /// It answers for these bytes with an error: others may be had.
    #[error("{0}")]
    Refused(String),
}

/// The lost blocks of an import.
#[derive(Debug, Default)]
pub(super) struct Lost {
    blocks: BTreeMap<u64, LostBlock>,
    /// Them, in the order in which they are tried again.
    order: BTreeSet<(Duration, u64)>,
    /// The one that is being tried again.
    trying: Option<u64>,
    /// Blocks that requests write whole.
    overwritten: Vec<(Tag, Vec<u64>)>,
}

#[derive(Debug)]
struct LostBlock {
    cause: String,
    again_at: Duration,
    is_held: bool,
}

/// Whether a request over lost blocks may be taken.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Take,
    Wait,
    Fail(IoError),
}

/// A chunk whose blocks are asked for one by one.
#[derive(Debug)]
pub(super) struct Sifting {
    /// Those to be asked for, the last first; the last of them is.
    left: Vec<u64>,
    found: Vec<(u64, Bytes)>,
    lost: Vec<(u64, String)>,
}

impl Sifting {
    pub(super) fn new(missing: &[Range<u64>]) -> Self {
        let mut left: Vec<u64> = missing.iter().cloned().flatten().collect();
        left.reverse();
        Self { left, found: Vec::new(), lost: Vec::new() }
    }
}

impl Lost {
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn are_too_many(&self) -> bool {
        self.blocks.len() >= LOST_MAX
    }

    fn add(&mut self, now: Duration, block: u64, cause: String) {
        self.remove(block);
        let again_at = now + TRY_AGAIN;
        self.order.insert((again_at, block));
        self.blocks.insert(block, LostBlock { cause, again_at, is_held: false });
    }

    /// It is lost no more. If it is being tried, it stays the one that is until the answer has come: answers have no
    /// name but their chunk's, and the next one's could not be told from it.
    pub(super) fn remove(&mut self, block: u64) {
        if let Some(lost) = self.blocks.remove(&block) {
            self.order.remove(&(lost.again_at, block));
        }
    }

    /// A chunk is begun with anew.
    pub(super) fn forget(&mut self, chunk: u64) {
        for block in self.of(chunk).collect::<Vec<_>>() {
            self.remove(block);
        }
    }

    fn of(&self, chunk: u64) -> impl Iterator<Item = u64> {
        self.blocks.range(chunk * CHUNK_BLOCKS..(chunk + 1) * CHUNK_BLOCKS).map(|(&block, _)| block)
    }

    /// Whether a chunk has some.
    pub(super) fn are_in(&self, chunk: u64) -> bool {
        self.of(chunk).next().is_some()
    }

    /// Whether a request over these bytes may be taken.
    pub(super) fn verdict(&self, bytes: &Range<u64>, changes: bool) -> Verdict {
        let touched = || self.blocks.range(bytes.start / BLOCK_SIZE_U64..bytes.end.div_ceil(BLOCK_SIZE_U64));
        if touched().any(|(_, lost)| lost.is_held) {
            return Verdict::Wait;
        }
        match touched().find(|(block, _)| !changes || !is_whole(**block, bytes)) {
            None => Verdict::Take,
            Some((&block, lost)) => {
                let cause = format!("the source that it is imported from answers: {}", lost.cause);
                Verdict::Fail(IoError::Medium { start: block, end: block + 1, cause })
            }
        }
    }

    /// A request is taken that writes over those among these bytes.
    pub(super) fn hold(&mut self, tag: Tag, bytes: &Range<u64>) {
        let touched = bytes.start / BLOCK_SIZE_U64..bytes.end.div_ceil(BLOCK_SIZE_U64);
        let held = self.blocks.range_mut(touched).map(|(&block, lost)| {
            lost.is_held = true;
            block
        });
        let held: Vec<u64> = held.collect();
        if !held.is_empty() {
            self.overwritten.push((tag, held));
        }
    }

    /// A request has ended. Whether it wrote over some.
    pub(super) fn release(&mut self, tag: Tag, done: bool) -> bool {
        let Some(at) = self.overwritten.iter().position(|(other, _)| *other == tag) else { return false };
        let (_, blocks) = self.overwritten.swap_remove(at);
        for block in blocks {
            if done {
                self.remove(block);
            } else if let Some(lost) = self.blocks.get_mut(&block) {
                lost.is_held = false;
            }
        }
        true
    }

    fn is_free(&self, block: u64) -> bool {
        self.blocks.get(&block).is_some_and(|lost| !lost.is_held)
    }

    /// The next to be tried again, if it is time and no other is.
    fn due(&mut self, now: Duration) -> Option<u64> {
        let &(again_at, block) = self.order.first().filter(|_| self.trying.is_none())?;
        if now < again_at {
            return None;
        }
        let lost = self.blocks.get_mut(&block)?;
        self.order.remove(&(again_at, block));
        lost.again_at = now + TRY_AGAIN;
        self.order.insert((lost.again_at, block));
        self.trying = self.is_free(block).then_some(block);
        self.trying
    }

    /// What people are told.
    pub(super) fn trouble(&self) -> Option<String> {
        let (block, LostBlock { cause, .. }) = self.blocks.first_key_value()?;
        let (which, they) = match self.blocks.len() - 1 {
            0 => (format!("block {block}"), "it is"),
            others => (format!("block {block} and {others} others"), "they are"),
        };
        Some(format!(
            "the source of the import does not give {which} ({cause}): I/O there fails, and the import does not \
             end, until {they} overwritten or discarded, or can be read again"
        ))
    }
}

const fn is_whole(block: u64, bytes: &Range<u64>) -> bool {
    bytes.start <= block * BLOCK_SIZE_U64 && (block + 1) * BLOCK_SIZE_U64 <= bytes.end
}

impl VolumeCore {
    /// Asks the source for the next block of a chunk that is sifted, or writes what it gave.
    pub(super) fn sift(&mut self, now: Duration, chunk: u64) {
        let Some(hydration) = &mut self.hydration else { return };
        let Some(Step::Sifting(sifting)) = hydration.under_way.get_mut(&chunk) else { return };
        if let Some(&block) = sifting.left.last() {
            let (offset, length) = hydration.bytes_of(block);
            return self.actions.push(Action::FetchSource { chunk, offset, length });
        }
        let (found, lost) = (std::mem::take(&mut sifting.found), std::mem::take(&mut sifting.lost));
        for (block, cause) in lost {
            tracing::warn!(volume = %self.options.volume, block, %cause, "its source does not give a block");
            hydration.lost.add(now, block, cause);
        }
        self.write_blocks(now, chunk, found);
    }

    /// The source has answered for a block of a chunk that is sifted.
    pub(super) fn sifted(&mut self, now: Duration, chunk: u64, result: Result<Bytes, SourceError>) {
        let Some(hydration) = &mut self.hydration else { return };
        let Some(Step::Sifting(sifting)) = hydration.under_way.get_mut(&chunk) else { return };
        let Some(block) = sifting.left.pop() else { return };
        match result {
            Ok(data) => sifting.found.push((block, data)),
            Err(SourceError::Refused(cause)) => sifting.lost.push((block, cause)),
            Err(SourceError::Away(trouble)) => return self.pause_chunk(now, chunk, trouble),
        }
        self.sift(now, chunk);
    }

    /// Begins with a lost block anew: the volume may have it by now, from a request that failed.
    pub(super) fn retry_lost(&mut self, now: Duration) {
        let open = self.state == VolumeState::Open;
        let Some(hydration) = self.hydration.as_deref_mut().filter(|_| open) else { return };
        let Some(block) = hydration.lost.due(now) else { return };
        if !hydration.is_hydrated(block / CHUNK_BLOCKS) {
            hydration.lost.trying = None;
            return;
        }
        let tag = hydration.job(Job::AskAgain { block });
        let (offset, length) = (block * BLOCK_SIZE_U64, BLOCK_SIZE_U64);
        self.accept(now, tag, IoRequest::Allocation { offset, length });
    }

    /// The volume has the block, or not.
    pub(super) fn lost_answered(&mut self, block: u64, result: Result<IoReply, IoError>) {
        let Some(hydration) = &mut self.hydration else { return };
        match result {
            Ok(IoReply::Allocation(extents)) if hydration.lost.is_free(block) => {
                if extents.first().is_some_and(|&(_, there)| there) {
                    hydration.lost.trying = None;
                    return hydration.found(block);
                }
                let (chunk, (offset, length)) = (block / CHUNK_BLOCKS, hydration.bytes_of(block));
                self.actions.push(Action::FetchSource { chunk, offset, length });
            }
            _ => hydration.lost.trying = None,
        }
    }

    /// The source has answered for a lost block, if it is of this chunk.
    pub(super) fn lost_fetched(&mut self, now: Duration, chunk: u64, result: Result<Bytes, SourceError>) {
        let Some(hydration) = &mut self.hydration else { return };
        let Some(block) = hydration.lost.trying.filter(|block| block / CHUNK_BLOCKS == chunk) else { return };
        hydration.lost.trying = None;
        if !hydration.lost.is_free(block) || self.state != VolumeState::Open {
            return;
        }
        let (offset, length) = hydration.bytes_of(block);
        match result {
            Ok(data) if data.len() == length as usize => match segments_of(data) {
                None => hydration.found(block),
                Some(segments) => {
                    let tag = hydration.job(Job::WriteLost);
                    hydration.lost.hold(tag, &(offset..offset + BLOCK_SIZE_U64));
                    let write = IoRequest::Write { offset, segments, force_unit_access: false };
                    self.accept(now, tag, write);
                }
            },
            Ok(_) => {}
            Err(error) => {
                if let Some(lost) = hydration.lost.blocks.get_mut(&block) {
                    lost.cause = error.to_string();
                }
            }
        }
    }
}
