//! A volume that is imported while it is used: what it does not have yet is read from its source.
//!
//! The volume is cut into chunks. Nothing is asked of a chunk by consumers before it is *hydrated*: what
//! the volume does not have of it has been fetched from the source and written. So consumers' requests
//! and hydration never meet in a chunk, and need no order between them. Only what a request writes whole is
//! left to that request: nothing is fetched there, and nobody else comes there before it has ended.
//!
//! ```text
//!            asked for, or its turn        something is missing          all has come
//! untouched ───────────────────────▶ Asking ────────────────────▶ Fetching ─────────▶ Writing ──▶ hydrated
//!      ▲ │                             │ ▲                           │                  │           ▲ ▲
//!      │ │                             │ └── Pausing ◀── the source fails ──────────────┘           │ │
//!      │ │                             └── the volume has all of it ────────────────────────────────┘ │
//!      │ └── a consumer writes all of it ──▶ overwritten ── that is done ─────────────────────────────┘
//!      └──────────── it failed ───────────────────┘
//! ```
//!
//! Of an encrypted volume all members are asked what it has: `hearing.rs`.
//! A chunk for which the source answers with errors is fetched block by block, *sifted*: `lost.rs`.
//!
//! Which chunks are hydrated is known only to this engine. The next one begins at the cursor in the record, and
//! asks the volume what it has. So that it finds there what it must:
//!
//! Invariants:
//! - below the recorded cursor everything is the volume's, stable on every in-sync member before the cursor
//!   was recorded;
//! - above it, a block is the volume's if the volume *has* it, even as zeros; a block that it does not have
//!   is the source's. Hence until the cursor has passed, discards of what the source has are written as zeros
//!   (`read.rs` for parts of blocks), and a block that once was the volume's never becomes the source's again;
//! - a request waits for chunks, a chunk for a request only that has been taken and waits for none, so there is
//!   no deadlock. Nor do limits hold hydration up (`throttle.rs`): it goes into the window ahead of what they hold.
//!
//! No snapshot is taken meanwhile, and the volume is not opened for reading only: both would see holes where
//! the source has data.

mod chunks;
mod feeding;
mod fetching;
mod hearing;
mod lost;
mod recording;
mod zeroing;

use super::control::Purpose;
use super::pieces::check_bounds;
use super::planted::PlantedFault as Planted;
use super::status::SyncStatus;
use super::{Tag, VolumeCore, VolumeState};
use crate::request::{IoError, IoReply, IoRequest};
pub(super) use chunks::Hydration;
use chunks::{Blocked, CHUNK_BLOCKS, Job, OWN_TAGS, PART_TAGS, Step, Trouble};
pub(super) use feeding::Feeding;
use feeding::PART_BYTES;
pub use lost::SourceError;
use lost::Verdict;
use std::ops::Range;
use std::time::Duration;
use zeroing::zeroes;

/// How long until the source, or a pool without space, is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether a request is made here: hydration's, or a part of a consumer's.
pub(super) const fn is_made_here(tag: Tag) -> bool {
    tag.0 >= PART_TAGS
}

/// Whether a request is hydration's.
pub(super) const fn is_own(tag: Tag) -> bool {
    tag.0 >= OWN_TAGS
}

/// Whether it is a part of a consumer's.
const fn is_part(tag: Tag) -> bool {
    is_made_here(tag) && !is_own(tag)
}

/// The bytes of a request that has some; how many they are.
fn span(request: &IoRequest) -> Option<(u64, u64)> {
    match request {
        IoRequest::Read { offset, length } => Some((*offset, u64::from(*length))),
        IoRequest::Write { offset, segments, .. } => {
            Some((*offset, segments.iter().map(|segment| segment.len() as u64).sum()))
        }
        IoRequest::Discard { offset, length }
        | IoRequest::WriteZeroes { offset, length, .. }
        | IoRequest::Allocation { offset, length } => Some((*offset, *length)),
        // It asks about snapshots, and there are none.
        IoRequest::Flush | IoRequest::Changed { .. } => None,
    }
}

impl VolumeCore {
    /// The volume is open: its import goes on, if it has one.
    pub(super) fn begin_hydration(&mut self, now: Duration) {
        let import = self.record.as_ref().and_then(|(record, _)| record.import.as_ref());
        if let (None, Some(import)) = (&self.hydration, import) {
            self.hydration = Some(Box::new(Hydration::new(import, now)));
        }
    }

    /// Takes a consumer's request: at once, or when its chunks are hydrated.
    pub(super) fn take(&mut self, now: Duration, tag: Tag, request: IoRequest) {
        let skips = self.has_planted(Planted::SkipHydration);
        let Some(hydration) = self.hydration.as_deref().filter(|_| !skips) else {
            return self.accept(now, tag, request);
        };
        let Some((offset, length)) = span(&request) else { return self.accept(now, tag, request) };
        if check_bounds(offset, length, self.blocks).is_err() {
            // It is refused there.
            return self.accept(now, tag, request);
        }
        if matches!(request, IoRequest::Allocation { .. }) {
            // What is still at the source may hold data or not: nobody has looked.
            return self.complete(tag, Ok(IoReply::Allocation(vec![(length, true)])));
        }
        let bytes = offset..offset + length;
        let undecided = hydration.undecided();
        let is_undecided = bytes.start < undecided.end && undecided.start < bytes.end;
        if let Some(force_unit_access) = zeroes(&request).filter(|_| length > PART_BYTES && is_undecided) {
            self.counters.count(&request);
            self.feeding.add(tag, bytes, force_unit_access);
        } else if self.take_or_block(now, tag, request, &bytes) {
            return;
        }
        self.advance_hydration(now);
    }

    /// Takes a request, or refuses it, unless chunks are to be hydrated first. Whether that was so.
    fn take_or_block(&mut self, now: Duration, tag: Tag, request: IoRequest, bytes: &Range<u64>) -> bool {
        if let Some(hydration) = &mut self.hydration {
            let wanted = hydration.wanted(bytes.start, bytes.end, !matches!(request, IoRequest::Read { .. }));
            match hydration.verdict(&wanted) {
                Verdict::Take => hydration.taken(tag, &wanted),
                Verdict::Wait => {
                    hydration.blocked.push(Blocked { tag, request, wanted });
                    return false;
                }
                Verdict::Fail(error) => {
                    self.complete(tag, Err(error));
                    return true;
                }
            }
        }
        self.accept(now, tag, request);
        true
    }

    /// Whether it is imported while it is used.
    #[must_use]
    pub const fn is_hydrating(&self) -> bool {
        self.hydration.is_some()
    }

    /// Whether it can go on at once.
    pub(super) fn is_hydration_stirred(&self) -> bool {
        self.feeding.is_stirred() || self.hydration.as_ref().is_some_and(|hydration| hydration.is_stirred)
    }

    /// Whether consumers wait for chunks.
    pub(super) fn waits_for_source(&self) -> bool {
        self.hydration.as_ref().is_some_and(|hydration| !hydration.blocked.is_empty())
    }

    /// How far it is: blocks of the source that are hydrated, and those that this engine has hydrated.
    pub(super) fn hydration_status(&self, now: Duration) -> Option<SyncStatus> {
        let hydration = self.hydration.as_deref()?;
        Some(SyncStatus {
            position: (hydration.chunks_done * CHUNK_BLOCKS)
                .min(hydration.source_blocks())
                .saturating_sub(hydration.lost.len() as u64),
            copied_blocks: hydration.chunks_since * CHUNK_BLOCKS,
            since_ms: u64::try_from(now.saturating_sub(hydration.began).as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// What keeps it from going on.
    pub(super) fn hydration_trouble(&self) -> Option<String> {
        let hydration = self.hydration.as_ref()?;
        let first = hydration.troubles.first_key_value();
        let waits =
            first.map(|(_, trouble)| format!("what is not imported yet cannot be had: {}", trouble.cause));
        let troubles: Vec<String> = waits.into_iter().chain(hydration.lost.trouble()).collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }

    /// Forgets what waits, and who.
    pub(super) fn take_blocked_tags(&mut self) -> Vec<Tag> {
        let mut tags = self.feeding.take_tags();
        let blocked = self.hydration.take().map_or_else(Vec::new, |hydration| hydration.blocked);
        tags.extend(blocked.iter().map(|blocked| blocked.tag).filter(|tag| !is_made_here(*tag)));
        tags
    }

    /// A consumer's request has ended, and with it what it did to whole chunks.
    pub(super) fn consumer_ended(&mut self, tag: Tag, result: &Result<IoReply, IoError>) {
        let done = result.is_ok() || self.has_planted(Planted::BelieveFailedOverwrites);
        if let Some(hydration) = &mut self.hydration {
            hydration.overwrite_ended(tag, done);
        }
    }

    /// A request that was made here has ended; [`VolumeCore::advance_hydration`] takes it from there.
    pub(super) fn own_ended(&mut self, tag: Tag, result: Result<IoReply, IoError>) {
        if is_part(tag) {
            self.consumer_ended(tag, &result);
            self.feeding.part_ended(tag, result);
        } else if let Some(hydration) = &mut self.hydration {
            hydration.ended.push_back((tag.0 & !OWN_TAGS, result));
            hydration.is_stirred = true;
        }
    }

    /// Goes on with all that can go on.
    pub(super) fn advance_hydration(&mut self, now: Duration) {
        if self.is_feeding() && !self.state.is_over() {
            self.feed(now);
        }
        let Some(hydration) = self.hydration.as_mut().filter(|_| !self.state.is_over()) else { return };
        hydration.is_stirred = false;
        while let Some((job, result)) =
            self.hydration.as_mut().and_then(|hydration| hydration.ended.pop_front())
        {
            self.job_ended(now, job, result);
        }
        self.decide_heard(now);
        self.release_blocked(now);
        self.start_chunks(now);
        self.retry_lost(now);
        self.make_stable(now);
    }

    /// A chunk is begun anew after a pause.
    fn pause_chunk(&mut self, now: Duration, chunk: u64, trouble: String) {
        let Some(hydration) = &mut self.hydration else { return };
        if hydration.troubles.is_empty() {
            tracing::warn!(volume = %self.options.volume, %trouble, "the import waits");
        }
        hydration.under_way.insert(chunk, Step::Pausing { until: now + PAUSE });
        hydration.troubles.insert(chunk, Trouble { cause: trouble, refused_since: None });
    }

    fn job_ended(&mut self, now: Duration, job: u64, result: Result<IoReply, IoError>) {
        let open = self.state == VolumeState::Open;
        let Some(hydration) = &mut self.hydration else { return };
        match (hydration.jobs.remove(&job), result) {
            (Some(Job::Ask { chunk }), Ok(IoReply::Allocation(extents))) => {
                self.chunk_answered(now, chunk, &extents);
            }
            (Some(Job::Ask { .. }), Ok(_)) => unreachable!("a question is answered as one"),
            (Some(Job::Ask { chunk }), Err(error)) => self.pause_chunk(now, chunk, error.to_string()),
            (Some(Job::Write { chunk }), result) => {
                if let Some(trouble) = hydration.written(chunk, result) {
                    // What has been written meanwhile is found to be there.
                    self.pause_chunk(now, chunk, trouble);
                }
            }
            (Some(Job::Flush { cursor }), Ok(_)) => {
                hydration.flushing = false;
                if open {
                    hydration.stable = Some(cursor);
                    self.run_errand(Purpose::Hydration);
                }
            }
            (Some(Job::Flush { .. }), Err(_)) => hydration.flushing = false,
            (Some(Job::AskAgain { block }), result) => self.lost_answered(block, result),
            (Some(Job::WriteLost), result) => hydration.overwrite_ended(Tag(OWN_TAGS | job), result.is_ok()),
            (None, _) => {}
        }
    }

    /// Takes requests whose chunks are hydrated.
    fn release_blocked(&mut self, now: Duration) {
        let Some(hydration) = &mut self.hydration else { return };
        let mut index = 0;
        let mut released = Vec::new();
        while index < hydration.blocked.len() {
            let verdict = hydration.verdict(&hydration.blocked[index].wanted);
            if verdict == Verdict::Wait {
                index += 1;
                continue;
            }
            let blocked = hydration.blocked.remove(index);
            if verdict == Verdict::Take {
                hydration.taken(blocked.tag, &blocked.wanted);
            }
            released.push((blocked, verdict));
        }
        for (Blocked { tag, request, .. }, verdict) in released {
            match verdict {
                Verdict::Fail(error) => self.complete(tag, Err(error)),
                Verdict::Take | Verdict::Wait => self.accept(now, tag, request),
            }
        }
    }

    /// Begins with chunks: those that are waited for first.
    fn start_chunks(&mut self, now: Duration) {
        let serving = matches!(self.state, VolumeState::Open | VolumeState::Closing);
        let in_background = self.state == VolumeState::Open;
        let Some(hydration) = self.hydration.as_deref_mut().filter(|_| serving) else { return };
        let feeding = &self.feeding;
        for chunk in hydration.due(now, in_background, |chunk| feeding.will_zero(chunk)) {
            if let Some(hydration) = &mut self.hydration {
                hydration.lost.forget(chunk);
            }
            if self.ciphers.is_some() && !self.has_planted(Planted::HydrateOnOneWord) {
                self.hear_of_chunk(now, chunk);
            } else {
                self.ask_for_chunk(now, chunk, None, Vec::new());
            }
        }
    }
}
