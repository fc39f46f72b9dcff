//! How far each chunk of a volume under import is, and which is next.

use super::super::Tag;
use crate::request::{IoError, IoReply, IoRequest};
use hashbrown::HashMap;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;
use trivet_model::{BLOCK_SIZE_U64, InstantImport};

/// Blocks of a chunk. The simulation's volumes have few.
pub(super) const CHUNK_BLOCKS: u64 = if cfg!(test) { 2 } else { 64 };
pub(super) const CHUNK_BYTES: u64 = CHUNK_BLOCKS * BLOCK_SIZE_U64;
/// Chunks under way that nobody waits for.
const BACKGROUND_MAX: usize = 8;
/// And in all.
const UNDER_WAY_MAX: usize = 32;
/// Chunks that failed and are tried again, beside which the background goes on: a source that is away is not
/// asked for everything, and one that has lost some of its sectors for the rest.
const PAUSING_MAX: usize = 64;
/// Tags of our own; consumers' have a front end's number above.
pub(super) const OWN_TAGS: u64 = 0xffff << 48;

/// How far a chunk is; the module draws it. `missing` are blocks that the volume does not have.
#[derive(Debug)]
pub(super) enum Step {
    Asking { known_to: u64, missing: Vec<Range<u64>> },
    Fetching { missing: Vec<Range<u64>> },
    Writing { left: usize, trouble: Option<String> },
    Pausing { until: Duration },
}

/// What a request of our own is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    Ask { chunk: u64 },
    Write { chunk: u64 },
    Flush { cursor: u64 },
}

/// A consumer's request that waits for chunks.
#[derive(Debug)]
pub(super) struct Blocked {
    pub(super) tag: Tag,
    pub(super) request: IoRequest,
    pub(super) chunks: Range<u64>,
}

/// An import under way.
#[derive(Debug)]
pub(in super::super) struct Hydration {
    pub(super) source_bytes: u64,
    /// The chunk behind the last.
    pub(super) end: u64,
    /// All chunks below are hydrated.
    pub(super) cursor: u64,
    /// Those above that are, a bit each.
    hydrated: Vec<u64>,
    pub(super) under_way: BTreeMap<u64, Step>,
    /// Where to look next for a chunk that is not.
    next: u64,
    pub(super) blocked: Vec<Blocked>,
    pub(super) jobs: HashMap<u64, Job>,
    next_job: u64,
    pub(super) ended: VecDeque<(u64, Result<IoReply, IoError>)>,
    /// The block up to which the record says that all is the volume's.
    pub(super) recorded: u64,
    /// The cursor that is being made stable, or is and is to be recorded.
    pub(super) flushing: bool,
    pub(super) stable: Option<u64>,
    pub(super) recorded_at: Duration,
    /// Why chunks could not be had, as long as they could not.
    pub(super) troubles: BTreeMap<u64, String>,
    /// Since when this engine hydrates, how many chunks are hydrated in all, and by this engine.
    pub(super) began: Duration,
    pub(super) chunks_done: u64,
    pub(super) chunks_since: u64,
}

impl Hydration {
    pub(super) fn new(import: &InstantImport, now: Duration) -> Self {
        let end = import.bytes.div_ceil(CHUNK_BYTES);
        let cursor = (import.hydrated / CHUNK_BLOCKS).min(end);
        let words = usize::try_from(end.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            source_bytes: import.bytes,
            end,
            cursor,
            hydrated: vec![0; words],
            under_way: BTreeMap::new(),
            next: cursor,
            blocked: Vec::new(),
            jobs: HashMap::new(),
            next_job: 0,
            ended: VecDeque::new(),
            recorded: import.hydrated,
            flushing: false,
            stable: None,
            recorded_at: now,
            troubles: BTreeMap::new(),
            began: now,
            chunks_done: cursor,
            chunks_since: 0,
        }
    }

    fn bit(chunk: u64) -> (usize, u64) {
        (usize::try_from(chunk / 64).unwrap_or(usize::MAX), 1 << (chunk % 64))
    }

    pub(super) fn is_hydrated(&self, chunk: u64) -> bool {
        let (word, bit) = Self::bit(chunk);
        chunk < self.cursor || chunk >= self.end || self.hydrated[word] & bit != 0
    }

    /// The chunks that are not hydrated among those of a run of bytes, or of none.
    pub(super) fn first_missing(&self, chunks: &Range<u64>) -> Option<u64> {
        (chunks.start.max(self.cursor)..chunks.end.min(self.end)).find(|&chunk| !self.is_hydrated(chunk))
    }

    pub(super) fn job(&mut self, job: Job) -> Tag {
        self.next_job += 1;
        self.jobs.insert(self.next_job, job);
        Tag(OWN_TAGS | self.next_job)
    }

    /// The blocks of a chunk that the source has.
    pub(super) fn blocks(&self, chunk: u64) -> Range<u64> {
        let end = self.source_bytes.div_ceil(BLOCK_SIZE_U64);
        chunk * CHUNK_BLOCKS..((chunk + 1) * CHUNK_BLOCKS).min(end)
    }

    /// The run of bytes of the source to which a chunk belongs.
    pub(super) fn bytes(&self, chunk: u64) -> Range<u64> {
        chunk * CHUNK_BYTES..((chunk + 1) * CHUNK_BYTES).min(self.source_bytes)
    }

    pub(super) fn is_waited_for(&self, chunk: u64) -> bool {
        self.blocked.iter().any(|blocked| blocked.chunks.contains(&chunk))
    }

    /// A write of a chunk has ended. Answers what went wrong once all of them have: begun anew earlier, the
    /// chunk could be taken for hydrated by what a single member has taken yet.
    pub(super) fn written(&mut self, chunk: u64, result: Result<IoReply, IoError>) -> Option<String> {
        let Step::Writing { left, trouble } = self.under_way.get_mut(&chunk)? else { return None };
        *left -= 1;
        if let Err(error) = result {
            *trouble = Some(error.to_string());
        }
        if *left > 0 {
            return None;
        }
        let trouble = trouble.take();
        if trouble.is_none() {
            self.hydrated(chunk);
        }
        trouble
    }

    pub(super) fn hydrated(&mut self, chunk: u64) {
        self.under_way.remove(&chunk);
        self.troubles.remove(&chunk);
        self.chunks_done += 1;
        self.chunks_since += 1;
        let (word, bit) = Self::bit(chunk);
        self.hydrated[word] |= bit;
        while self.cursor < self.end && self.is_hydrated(self.cursor) {
            self.cursor += 1;
        }
    }

    /// The chunks to begin with now: those that pause no more, those that are waited for, and as many others as
    /// the background may have.
    pub(super) fn due(&mut self, now: Duration, in_background: bool) -> Vec<u64> {
        let is_pausing = |step: &Step| matches!(step, Step::Pausing { .. });
        let is_over = |step: &Step| matches!(step, Step::Pausing { until } if now >= *until);
        let mut chunks: Vec<u64> =
            self.under_way.iter().filter(|(_, step)| is_over(step)).map(|(&chunk, _)| chunk).collect();
        let pausing = self.under_way.values().filter(|step| is_pausing(step)).count();
        let active = self.under_way.len() - pausing;
        let mut room = UNDER_WAY_MAX.saturating_sub(active + chunks.len());
        for blocked in &self.blocked {
            let wanted = blocked.chunks.start.max(self.cursor)..blocked.chunks.end.min(self.end);
            let fresh = |chunk: &u64| !self.is_hydrated(*chunk) && !self.under_way.contains_key(chunk);
            for chunk in wanted.filter(fresh) {
                if room == 0 {
                    break;
                }
                if !chunks.contains(&chunk) {
                    chunks.push(chunk);
                    room -= 1;
                }
            }
        }
        // While a consumer waits, the source is asked for nothing but what it waits for.
        let in_background = in_background && self.blocked.is_empty() && pausing < PAUSING_MAX;
        let mut background = BACKGROUND_MAX.saturating_sub(active + chunks.len());
        self.next = self.next.max(self.cursor);
        while in_background && background > 0 && self.next < self.end {
            if !self.is_hydrated(self.next) && !self.under_way.contains_key(&self.next) {
                chunks.push(self.next);
                background -= 1;
            }
            self.next += 1;
        }
        chunks
    }
}
