//! How far each chunk of a volume under import is, and which is next.

use super::super::Tag;
use super::hearing::Hearing;
use super::lost::{Lost, Sifting, Verdict};
use crate::request::{IoError, IoReply, IoRequest};
use hashbrown::HashMap;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;
use trivet_model::{BLOCK_SIZE_U64, InstantImport};

/// Blocks of a chunk. The simulation's volumes have few.
pub(super) const CHUNK_BLOCKS: u64 = if cfg!(test) { 2 } else { 64 };
pub(super) const CHUNK_BYTES: u64 = CHUNK_BLOCKS * BLOCK_SIZE_U64;
/// Chunks under way that nobody waits for, at most.
const BACKGROUND_MAX: usize = 8;
/// And in all.
const UNDER_WAY_MAX: usize = 32;
/// What a fetch may take beyond twice what the quickest took: less says nothing about the source.
const HARDLY_LONGER: Duration = Duration::from_millis(5);
/// Chunks that failed and are tried again, beside which the background goes on: a source that is away is not
/// asked for everything, and one that has lost some of its sectors for the rest.
const PAUSING_MAX: usize = 64;
/// Tags of our own; consumers' have a front end's number there.
pub(super) const OWN_TAGS: u64 = 0xffff << 48;
/// And those of parts of consumers' requests.
pub(super) const PART_TAGS: u64 = 0xfffe << 48;

/// How far a chunk is; the module draws it. `missing` are blocks that the volume does not have.
#[derive(Debug)]
pub(super) enum Step {
    Asking { known_to: u64, missing: Vec<Range<u64>> },
    Hearing(Hearing),
    Fetching { missing: Vec<Range<u64>>, since: Duration },
    Sifting(Sifting),
    Writing { left: usize, trouble: Option<String> },
    Pausing { until: Duration },
}

/// What a request of our own is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    Ask {
        chunk: u64,
    },
    Write {
        chunk: u64,
    },
    Flush {
        cursor: u64,
    },
    /// What the volume has of a lost block, and to write it.
    AskAgain {
        block: u64,
    },
    WriteLost,
}

/// Why a chunk could not be had.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) cause: String,
    /// Since when the source has answered for it with errors, and with nothing else.
    pub(super) refused_since: Option<Duration>,
}

/// The chunks of a consumer's request. Those that it writes whole, `covered`, need not be hydrated before: they
/// are, by that. It is empty, at the end, where a request only reads or is small.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    all: Range<u64>,
    covered: Range<u64>,
    bytes: Range<u64>,
    changes: bool,
}

impl Wanted {
    /// Those that must be hydrated before.
    fn edges(&self) -> impl Iterator<Item = u64> + use<> {
        (self.all.start..self.covered.start).chain(self.covered.end..self.all.end)
    }
}

/// A consumer's request that waits for chunks.
#[derive(Debug)]
pub(super) struct Blocked {
    pub(super) tag: Tag,
    pub(super) request: IoRequest,
    pub(super) wanted: Wanted,
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
    /// Chunks that consumers' requests are writing whole. Those among them that are not hydrated are nobody else's.
    overwritten: Vec<(Tag, Range<u64>)>,
    /// How many chunks nobody waits for are to be under way, by how long fetches take: enough to keep the source
    /// busy, and not so many that who comes next waits long behind them.
    background: usize,
    quickest: Duration,
    /// Where to look next for a chunk that is not.
    next: u64,
    pub(super) blocked: Vec<Blocked>,
    pub(super) jobs: HashMap<u64, Job>,
    next_job: u64,
    pub(super) ended: VecDeque<(u64, Result<IoReply, IoError>)>,
    /// Something has ended since it was looked at what can go on.
    pub(super) is_stirred: bool,
    /// The block up to which the record says that all is the volume's.
    pub(super) recorded: u64,
    /// The cursor that is being made stable, or is and is to be recorded.
    pub(super) flushing: bool,
    pub(super) stable: Option<u64>,
    pub(super) recorded_at: Duration,
    /// Why chunks could not be had, as long as they could not.
    pub(super) troubles: BTreeMap<u64, Trouble>,
    pub(super) lost: Lost,
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
            overwritten: Vec::new(),
            background: 1,
            quickest: Duration::MAX,
            next: cursor,
            blocked: Vec::new(),
            jobs: HashMap::new(),
            next_job: 0,
            ended: VecDeque::new(),
            is_stirred: false,
            recorded: import.hydrated,
            flushing: false,
            stable: None,
            recorded_at: now,
            troubles: BTreeMap::new(),
            lost: Lost::default(),
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

    /// The chunks of a run of bytes of a request.
    pub(super) fn wanted(&self, offset: u64, end: u64, changes: bool) -> Wanted {
        let all = offset / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES);
        let holds_last = end >= self.source_bytes.next_multiple_of(BLOCK_SIZE_U64);
        let last = if holds_last { all.end } else { end / CHUNK_BYTES };
        let covered = offset.div_ceil(CHUNK_BYTES)..last;
        let covered = if changes && !covered.is_empty() { covered } else { all.end..all.end };
        Wanted { all, covered, bytes: offset..end, changes }
    }

    /// Whether a request may be taken now, or fails.
    pub(super) fn verdict(&self, wanted: &Wanted) -> Verdict {
        if self.may_take(wanted) { self.lost.verdict(&wanted.bytes, wanted.changes) } else { Verdict::Wait }
    }

    fn may_take(&self, wanted: &Wanted) -> bool {
        let is_free = |range: &Range<u64>| {
            self.under_way.range(range.clone()).all(|(_, step)| matches!(step, Step::Pausing { .. }))
                && self.overwritten.iter().all(|(_, other)| {
                    (other.start.max(range.start)..other.end.min(range.end))
                        .all(|chunk| self.is_hydrated(chunk))
                })
        };
        wanted.edges().all(|chunk| self.is_hydrated(chunk)) && is_free(&wanted.covered)
    }

    /// It is taken: chunks that it writes whole are its own until [`Hydration::overwrite_ended`].
    pub(super) fn taken(&mut self, tag: Tag, wanted: &Wanted) {
        if wanted.changes {
            self.lost.hold(tag, &wanted.bytes);
        }
        let covered = wanted.covered.start.max(self.cursor)..wanted.covered.end.min(self.end);
        if covered.is_empty() {
            return;
        }
        for chunk in self.under_way.range(covered.clone()).map(|(&chunk, _)| chunk).collect::<Vec<_>>() {
            self.under_way.remove(&chunk);
            self.troubles.remove(&chunk);
        }
        self.overwritten.push((tag, covered));
    }

    /// A request has ended. What it wrote whole is hydrated; if it failed, nobody knows what is there.
    pub(super) fn overwrite_ended(&mut self, tag: Tag, done: bool) {
        if self.lost.release(tag, done) {
            self.is_stirred = true;
            self.advance_cursor();
        }
        let Some(at) = self.overwritten.iter().position(|(other, _)| *other == tag) else { return };
        let (_, chunks) = self.overwritten.swap_remove(at);
        self.is_stirred = true;
        if !done {
            self.look_again_from(chunks.start);
            return;
        }
        for chunk in chunks {
            if !self.is_hydrated(chunk) {
                self.hydrated(chunk);
            }
        }
    }

    /// What was about to be overwritten was not: the background begins with it, if nobody else has.
    pub(super) fn look_again_from(&mut self, chunk: u64) {
        self.next = self.next.min(chunk);
    }

    fn is_overwritten(&self, chunk: u64) -> bool {
        self.overwritten.iter().any(|(_, chunks)| chunks.contains(&chunk))
    }

    /// How long a fetch took: the longer one takes than the quickest, the more wait at the source already.
    pub(super) fn fetched_within(&mut self, took: Duration) {
        self.quickest = self.quickest.min(took);
        self.background = if took <= self.quickest * 2 + HARDLY_LONGER {
            (self.background + 1).min(BACKGROUND_MAX)
        } else {
            (self.background - 1).max(1)
        };
    }

    pub(super) fn job(&mut self, job: Job) -> Tag {
        self.next_job += 1;
        self.jobs.insert(self.next_job, job);
        Tag(OWN_TAGS | self.next_job)
    }

    pub(super) const fn source_blocks(&self) -> u64 {
        self.source_bytes.div_ceil(BLOCK_SIZE_U64)
    }

    /// The blocks of a chunk that the source has.
    pub(super) fn blocks(&self, chunk: u64) -> Range<u64> {
        chunk * CHUNK_BLOCKS..((chunk + 1) * CHUNK_BLOCKS).min(self.source_blocks())
    }

    /// The bytes, in whole chunks, that may still be the source's.
    pub(super) const fn undecided(&self) -> Range<u64> {
        self.recorded * BLOCK_SIZE_U64..self.end * CHUNK_BYTES
    }

    /// The run of bytes of the source to which a chunk belongs.
    pub(super) fn bytes(&self, chunk: u64) -> Range<u64> {
        chunk * CHUNK_BYTES..((chunk + 1) * CHUNK_BYTES).min(self.source_bytes)
    }

    pub(super) fn is_waited_for(&self, chunk: u64) -> bool {
        self.blocked.iter().any(|blocked| blocked.wanted.all.contains(&chunk))
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
        self.advance_cursor();
    }

    fn advance_cursor(&mut self) {
        while self.cursor < self.end && self.is_hydrated(self.cursor) && !self.lost.are_in(self.cursor) {
            self.cursor += 1;
        }
    }

    /// A lost block is the volume's.
    pub(super) fn found(&mut self, block: u64) {
        self.lost.remove(block);
        self.is_stirred = true;
        self.advance_cursor();
    }

    /// Where a block begins at the source, and how many bytes of it the source has.
    pub(super) fn bytes_of(&self, block: u64) -> (u64, u32) {
        let offset = block * BLOCK_SIZE_U64;
        let length = self.source_bytes.saturating_sub(offset).min(BLOCK_SIZE_U64);
        (offset, u32::try_from(length).unwrap_or(u32::MAX))
    }

    /// The chunks to begin with now: those that pause no more, those that are waited for, and as many others as
    /// the background may have, but for those that will be overwritten.
    pub(super) fn due(
        &mut self,
        now: Duration,
        in_background: bool,
        will_be_overwritten: impl Fn(u64) -> bool,
    ) -> Vec<u64> {
        let is_pausing = |step: &Step| matches!(step, Step::Pausing { .. });
        let is_over = |step: &Step| matches!(step, Step::Pausing { until } if now >= *until);
        let mut chunks: Vec<u64> =
            self.under_way.iter().filter(|(_, step)| is_over(step)).map(|(&chunk, _)| chunk).collect();
        let pausing = self.under_way.values().filter(|step| is_pausing(step)).count();
        let active = self.under_way.len() - pausing;
        let again = chunks.len();
        let mut room = UNDER_WAY_MAX.saturating_sub(active + again);
        for blocked in &self.blocked {
            for chunk in blocked.wanted.edges().filter(|&chunk| self.is_untouched(chunk)) {
                if room == 0 {
                    break;
                }
                if !chunks.contains(&chunk) {
                    chunks.push(chunk);
                    room -= 1;
                }
            }
        }
        // While the source is busy with what a consumer waits for, it is asked for nothing else.
        let is_awaited = |(&chunk, step): (&u64, &Step)| !is_pausing(step) && self.is_waited_for(chunk);
        let awaited = chunks.len() > again || self.under_way.iter().any(is_awaited);
        let in_background = in_background && !awaited && pausing < PAUSING_MAX && !self.lost.are_too_many();
        let mut background = self.background.saturating_sub(active + chunks.len());
        self.next = self.next.max(self.cursor);
        while in_background && background > 0 && self.next < self.end {
            // What is about to be overwritten need not be fetched.
            let spared = will_be_overwritten(self.next)
                || self.blocked.iter().any(|blocked| blocked.wanted.covered.contains(&self.next));
            if self.is_untouched(self.next) && !spared {
                chunks.push(self.next);
                background -= 1;
            }
            self.next += 1;
        }
        chunks
    }

    /// Whether nobody has begun with a chunk.
    fn is_untouched(&self, chunk: u64) -> bool {
        !self.is_hydrated(chunk) && !self.under_way.contains_key(&chunk) && !self.is_overwritten(chunk)
    }
}
