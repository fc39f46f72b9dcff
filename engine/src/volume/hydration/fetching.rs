//! One chunk: what the volume does not have of it is fetched, and written.

use super::chunks::{Job, Step};
use super::lost::{Sifting, SourceError};
use crate::request::IoRequest;
use crate::volume::planted::PlantedFault as Planted;
use crate::volume::segments::push_zeros;
use crate::volume::{Action, VolumeCore, VolumeState};
use bytes::Bytes;
use std::ops::Range;
use std::time::Duration;
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64};

/// For how long the source may answer for a chunk with errors until its blocks are asked for one by one.
const REFUSED_FOR: Duration = Duration::from_secs(30);

/// A block of the source, as it is written: whole; nothing if it is zeros.
pub(super) fn segments_of(data: Bytes) -> Option<Vec<Bytes>> {
    if data.iter().all(|&byte| byte == 0) {
        return None;
    }
    let rest = BLOCK_SIZE.saturating_sub(data.len());
    let mut segments = vec![data];
    push_zeros(&mut segments, rest);
    Some(segments)
}

impl VolumeCore {
    /// Asks the volume what it has of a chunk, from a block on.
    pub(super) fn ask_for_chunk(
        &mut self,
        now: Duration,
        chunk: u64,
        from: Option<u64>,
        missing: Vec<Range<u64>>,
    ) {
        let Some(hydration) = &mut self.hydration else { return };
        let blocks = hydration.blocks(chunk);
        let known_to = from.unwrap_or(blocks.start);
        hydration.under_way.insert(chunk, Step::Asking { known_to, missing });
        let tag = hydration.job(Job::Ask { chunk });
        let (offset, length) = (known_to * BLOCK_SIZE_U64, (blocks.end - known_to) * BLOCK_SIZE_U64);
        self.accept(now, tag, IoRequest::Allocation { offset, length });
    }

    pub(super) fn chunk_answered(&mut self, now: Duration, chunk: u64, extents: &[(u64, bool)]) {
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
    pub(super) fn chunk_known(&mut self, now: Duration, chunk: u64, missing: Vec<Range<u64>>) {
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
    pub(super) fn write_chunk(&mut self, now: Duration, chunk: u64, missing: &[Range<u64>], data: &Bytes) {
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
    pub(super) fn write_blocks(&mut self, now: Duration, chunk: u64, blocks: Vec<(u64, Bytes)>) {
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

    pub(super) fn chunk_fetched(
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
}
