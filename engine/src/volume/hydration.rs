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
mod hearing;
mod lost;

use super::control::Purpose;
use super::operation::Phase;
use super::pieces::check_bounds;
use super::planted::PlantedFault as Planted;
use super::segments::push_zeros;
use super::status::SyncStatus;
use super::write::Writing;
use super::{Action, OperationId, Tag, VolumeCore, VolumeState};
use crate::request::{IoError, IoReply, IoRequest};
use bytes::Bytes;
pub(super) use chunks::Hydration;
use chunks::{Blocked, CHUNK_BLOCKS, Job, OWN_TAGS, PART_TAGS, Step, Trouble};
pub(super) use feeding::Feeding;
use feeding::PART_BYTES;
pub use lost::SourceError;
use lost::{Sifting, Verdict};
use std::ops::Range;
use std::time::Duration;
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64, BlockRange, VolumeRecord};

/// How long until the source, or a pool without space, is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// For how long the source may answer for a chunk with errors until its blocks are asked for one by one.
const REFUSED_FOR: Duration = Duration::from_secs(30);
/// How often the cursor is recorded, at most.
const RECORD_EVERY: Duration = Duration::from_secs(2);

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

/// Whether what a request zeroes must be stable when it is answered; nothing if it does not zero.
const fn zeroes(request: &IoRequest) -> Option<bool> {
    match request {
        IoRequest::Discard { .. } => Some(false),
        IoRequest::WriteZeroes { force_unit_access, .. } => Some(*force_unit_access),
        _ => None,
    }
}

/// A block of the source, as it is written: whole; nothing if it is zeros.
fn segments_of(data: Bytes) -> Option<Vec<Bytes>> {
    if data.iter().all(|&byte| byte == 0) {
        return None;
    }
    let rest = BLOCK_SIZE.saturating_sub(data.len());
    let mut segments = vec![data];
    push_zeros(&mut segments, rest);
    Some(segments)
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

    /// The blocks in which zeros must stay something that the volume has: those that may still be the source's.
    fn kept_blocks(&self) -> Range<u64> {
        let kept = |hydration: &Hydration| hydration.recorded..hydration.source_blocks();
        self.hydration.as_deref().map_or(0..0, kept)
    }

    /// Those that a discard is to write zeros to.
    pub(super) fn zeroed_by_writing(&self) -> Range<u64> {
        if self.has_planted(Planted::DiscardWhileHydrating) { 0..0 } else { self.kept_blocks() }
    }

    /// Whether zeros that are written to a block must stay something that the volume has.
    pub(super) fn keeps_zeros(&self, block: u64) -> bool {
        self.kept_blocks().contains(&block) && !self.has_planted(Planted::ZeroPartsWhileHydrating)
    }

    /// Nothing else is in flight on blocks that are to be zeroed, and were the source's when that was asked.
    pub(super) fn start_zeroing(
        &mut self,
        now: Duration,
        id: OperationId,
        range: BlockRange,
        force_unit_access: bool,
    ) {
        let kept = self.kept_blocks();
        let writing = if range.start < kept.end && kept.start < range.end() {
            let mut segments = Vec::new();
            push_zeros(&mut segments, range.count as usize * BLOCK_SIZE);
            Writing::data(range, segments, force_unit_access, self.ciphers.is_some())
        } else {
            Writing::discard(range, force_unit_access)
        };
        self.operations.get_mut(&id).expect("it has its place").phase = Phase::Writing(writing);
        self.send_write(now, id);
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

    /// The answer to [`Action::FetchSource`]: all the bytes asked for, or why not.
    pub fn source_fetched(&mut self, now: Duration, chunk: u64, result: Result<Bytes, SourceError>) {
        self.now = now;
        let Some(hydration) = self.hydration.as_deref_mut().filter(|_| !self.state.is_over()) else { return };
        let is_waited_for = hydration.is_waited_for(chunk);
        match hydration.under_way.get_mut(&chunk) {
            Some(Step::Fetching { .. } | Step::Sifting(_))
                if self.state == VolumeState::Closing && !is_waited_for =>
            {
                // Members are about to be told that nothing more comes.
                hydration.under_way.remove(&chunk);
                return;
            }
            Some(Step::Fetching { missing, since }) => {
                let (missing, took) = (std::mem::take(missing), now.saturating_sub(*since));
                self.chunk_fetched(now, chunk, &missing, took, result);
            }
            Some(Step::Sifting(_)) => self.sifted(now, chunk, result),
            _ => self.lost_fetched(now, chunk, result),
        }
        self.advance_hydration(now);
    }

    fn chunk_fetched(
        &mut self,
        now: Duration,
        chunk: u64,
        missing: &[Range<u64>],
        took: Duration,
        result: Result<Bytes, SourceError>,
    ) {
        let Some(hydration) = &mut self.hydration else { return };
        let wanted = hydration.bytes(chunk);
        let wanted = wanted.end - wanted.start;
        match result {
            Ok(data) if data.len() as u64 == wanted => {
                hydration.fetched_within(took);
                self.write_chunk(now, chunk, missing, &data);
            }
            Ok(data) => {
                let trouble = format!("its source sent {} bytes of {wanted}", data.len());
                self.pause_chunk(now, chunk, trouble);
            }
            Err(SourceError::Away(trouble)) => self.pause_chunk(now, chunk, trouble),
            Err(SourceError::Refused(cause)) => {
                let known = hydration.troubles.get(&chunk).and_then(|trouble| trouble.refused_since);
                let since = known.unwrap_or(now);
                if now >= since + REFUSED_FOR {
                    hydration.under_way.insert(chunk, Step::Sifting(Sifting::new(missing)));
                    return self.sift(now, chunk);
                }
                self.pause_chunk(now, chunk, cause);
                let trouble =
                    self.hydration.as_mut().and_then(|hydration| hydration.troubles.get_mut(&chunk));
                if let Some(trouble) = trouble {
                    trouble.refused_since = Some(since);
                }
            }
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

    /// Asks the volume what it has of a chunk, from a block on.
    fn ask_for_chunk(&mut self, now: Duration, chunk: u64, from: Option<u64>, missing: Vec<Range<u64>>) {
        let Some(hydration) = &mut self.hydration else { return };
        let blocks = hydration.blocks(chunk);
        let known_to = from.unwrap_or(blocks.start);
        hydration.under_way.insert(chunk, Step::Asking { known_to, missing });
        let tag = hydration.job(Job::Ask { chunk });
        let (offset, length) = (known_to * BLOCK_SIZE_U64, (blocks.end - known_to) * BLOCK_SIZE_U64);
        self.accept(now, tag, IoRequest::Allocation { offset, length });
    }

    fn chunk_answered(&mut self, now: Duration, chunk: u64, extents: &[(u64, bool)]) {
        let blindly = self.has_planted(Planted::HydrateOverWrites);
        let Some(hydration) = &mut self.hydration else { return };
        let Some(Step::Asking { known_to, missing }) = hydration.under_way.get_mut(&chunk) else { return };
        let (mut at, mut missing) = (*known_to, std::mem::take(missing));
        for &(bytes, there) in extents {
            let end = at + bytes / BLOCK_SIZE_U64;
            if !there || blindly {
                missing.push(at..end);
            }
            at = end;
        }
        if at < hydration.blocks(chunk).end {
            return self.ask_for_chunk(now, chunk, Some(at), missing);
        }
        self.chunk_known(now, chunk, missing);
    }

    /// What the volume does not have of a chunk is fetched.
    fn chunk_known(&mut self, now: Duration, chunk: u64, missing: Vec<Range<u64>>) {
        let Some(hydration) = &mut self.hydration else { return };
        if missing.is_empty() {
            return hydration.hydrated(chunk);
        }
        hydration.under_way.insert(chunk, Step::Fetching { missing, since: now });
        let Range { start, end } = hydration.bytes(chunk);
        let length = u32::try_from(end - start).unwrap_or(u32::MAX);
        self.actions.push(Action::FetchSource { chunk, offset: start, length });
    }

    /// Writes what the volume does not have of a chunk, and the source has.
    fn write_chunk(&mut self, now: Duration, chunk: u64, missing: &[Range<u64>], data: &Bytes) {
        let Some(hydration) = &mut self.hydration else { return };
        let first = hydration.blocks(chunk).start;
        let of_block = |block: u64| {
            let at = usize::try_from((block - first) * BLOCK_SIZE_U64).unwrap_or(usize::MAX);
            (block, data.slice(at.min(data.len())..at.saturating_add(BLOCK_SIZE).min(data.len())))
        };
        let blocks = missing.iter().cloned().flatten().map(of_block).collect();
        self.write_blocks(now, chunk, blocks);
    }

    /// Writes blocks of a chunk, and with them it is hydrated. Zeros need no writing.
    fn write_blocks(&mut self, now: Duration, chunk: u64, blocks: Vec<(u64, Bytes)>) {
        let Some(hydration) = &mut self.hydration else { return };
        let mut writes: Vec<(u64, Vec<Bytes>)> = Vec::new();
        let mut last = None;
        for (block, data) in blocks {
            let Some(mut segments) = segments_of(data) else { continue };
            match writes.last_mut() {
                Some((_, run)) if last == block.checked_sub(1) => run.append(&mut segments),
                _ => writes.push((block, segments)),
            }
            last = Some(block);
        }
        if writes.is_empty() {
            return hydration.hydrated(chunk);
        }
        // The volume is in use: it is flushed when the cursor is, not as an idle one.
        self.active_at = now;
        hydration.under_way.insert(chunk, Step::Writing { left: writes.len(), trouble: None });
        for (block, segments) in writes {
            let Some(hydration) = &mut self.hydration else { return };
            let tag = hydration.job(Job::Write { chunk });
            let offset = block * BLOCK_SIZE_U64;
            self.accept(now, tag, IoRequest::Write { offset, segments, force_unit_access: false });
        }
    }

    /// Has what is below the cursor made stable, to record it.
    fn make_stable(&mut self, now: Duration) {
        let open = self.state == VolumeState::Open;
        let early = self.has_planted(Planted::RecordUnstableHydration);
        let Some(hydration) = self.hydration.as_deref_mut().filter(|_| open) else { return };
        let block = hydration.cursor * CHUNK_BLOCKS;
        let done = hydration.cursor == hydration.end;
        let due = done || now.saturating_sub(hydration.recorded_at) >= RECORD_EVERY;
        let ahead = block > hydration.recorded || done;
        if !due || !ahead || hydration.flushing || hydration.stable.is_some() {
            return;
        }
        hydration.recorded_at = now;
        if early {
            hydration.stable = Some(block);
            return self.run_errand(Purpose::Hydration);
        }
        hydration.flushing = true;
        let tag = hydration.job(Job::Flush { cursor: block });
        self.await_flush(now, tag);
    }

    /// Whether a cursor is stable and not recorded.
    pub(super) fn awaits_hydration_record(&self) -> bool {
        self.hydration.as_ref().is_some_and(|hydration| hydration.stable.is_some())
    }

    /// The record with the cursor that is stable; nothing when it says so already.
    pub(super) fn with_hydration(&self, record: &VolumeRecord) -> Option<VolumeRecord> {
        let hydration = self.hydration.as_ref()?;
        let stable = hydration.stable?;
        let mut wanted = record.clone();
        let import = wanted.import.as_mut()?;
        if stable >= hydration.end * CHUNK_BLOCKS {
            wanted.import = None;
        } else if import.hydrated < stable {
            import.hydrated = stable;
        } else {
            return None;
        }
        Some(wanted)
    }

    /// The record says how far hydration is.
    pub(super) fn hydration_recorded(&mut self, now: Duration) {
        let Some(hydration) = &mut self.hydration else { return };
        let Some(stable) = hydration.stable.take() else { return };
        hydration.recorded = stable;
        if stable >= hydration.end * CHUNK_BLOCKS {
            assert!(hydration.blocked.is_empty(), "who waits for hydrated chunks is not blocked");
            self.hydration = None;
            tracing::info!(volume = %self.options.volume, "all of the volume's source is imported");
            self.actions.push(Action::StateChanged);
        }
        self.advance_hydration(now);
    }
}
