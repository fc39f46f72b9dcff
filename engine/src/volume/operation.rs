//! Requests, the operations they are cut into, and the window. (`throttle.rs`: limits, at its door.)
//!
//! Invariants:
//! - `window_bytes` is the sum of `window` over all operations;
//! - an operation that is `ordered` is registered in the ordering, no other is;
//! - an operation of a request is one of the `remaining` parts of that request.

use super::hydration::{is_made_here, is_own};
use super::ordering::Span;
use super::pieces::{self, Piece};
use super::query::{Querying, Question};
use super::read::{Reading, Then};
use super::state::READ_ONLY;
use super::write::Writing;
use super::{MemberSet, OperationId, Tag, VolumeCore, VolumeState};
use crate::request::{IoError, IoReply, IoRequest};
use bytes::Bytes;
use std::time::Duration;
use trivet_model::BlockRange;

/// Most bytes in flight in a volume.
const WINDOW_BYTES_MAX: usize = 32 << 20;
/// Most operations in flight in a volume; a replica takes 1024 of one connection.
const OPERATIONS_MAX: usize = 512;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct RequestId(u64);

/// A consumer's request that is not answered yet.
#[derive(Debug)]
pub(super) struct Request {
    tag: Tag,
    remaining: usize,
    error: Option<IoError>,
    /// What was read, by part; empty for a write.
    parts: Vec<Vec<Bytes>>,
    reads: bool,
}

/// A piece that waits for the window.
#[derive(Debug)]
pub(super) struct Waiting {
    request: RequestId,
    part: usize,
    piece: Piece,
    /// It is hydration's.
    own: bool,
}

impl Waiting {
    /// What it takes of the window, and of the limits.
    pub(super) const fn bytes(&self) -> usize {
        self.piece.window_bytes()
    }
}

/// Who wants an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// A part of a consumer's request.
    Request { id: RequestId, part: usize },
    /// An allocation query, answered as a whole.
    Query { tag: Tag },
    /// The engine itself: it makes members alike.
    Engine,
}

#[derive(Debug)]
pub(super) struct Operation {
    pub(super) owner: Owner,
    pub(super) window: usize,
    pub(super) ordered: bool,
    pub(super) phase: Phase,
}

/// How far an operation is.
#[derive(Debug)]
pub(super) enum Phase {
    /// Earlier operations on the same blocks come first.
    Blocked(Piece),
    Reading(Reading),
    Writing(Writing),
    Querying(Querying),
    /// It keeps its place while members are asked (`scrub.rs`).
    Scrubbing,
}

/// What a finished part brings.
pub(super) enum Outcome {
    Done,
    Data(Vec<Bytes>),
    Failed(IoError),
}

impl Operation {
    /// Whether it makes members alike while the volume opens.
    pub(super) fn reconciles(&self) -> bool {
        self.owner == Owner::Engine && !self.ordered
    }

    /// One of the engine's own that takes its place among overlapping I/O.
    pub(super) const fn ordered_by_engine(phase: Phase) -> Self {
        Self { owner: Owner::Engine, window: 0, ordered: true, phase }
    }
}

impl VolumeCore {
    pub(super) fn accept(&mut self, now: Duration, tag: Tag, request: IoRequest) {
        match request {
            IoRequest::Flush => return self.flush_requested(now, tag),
            IoRequest::Allocation { offset, length } => {
                return self.query(now, tag, Question::Allocation, offset, length);
            }
            IoRequest::Changed { since, offset, length } => {
                return self.query_changes(now, tag, since, offset, length);
            }
            IoRequest::Read { .. } => {}
            IoRequest::Write { .. } | IoRequest::Discard { .. } | IoRequest::WriteZeroes { .. } => {
                if self.options.read_only {
                    return self.complete(tag, Err(READ_ONLY));
                }
            }
        }
        let own = is_own(tag);
        if !is_made_here(tag) {
            self.counters.count(&request);
        }
        let pieces = match pieces::cut(request, self.blocks, &self.zeroed_by_writing()) {
            Ok(pieces) => pieces,
            Err(error) => return self.complete(tag, Err(error)),
        };
        if pieces.is_empty() {
            return self.complete(tag, Ok(IoReply::Done));
        }
        let id = RequestId(self.new_id());
        let reads = !pieces[0].changes();
        let parts = if reads { vec![Vec::new(); pieces.len()] } else { Vec::new() };
        self.requests.insert(id, Request { tag, remaining: pieces.len(), error: None, parts, reads });
        let waiting = pieces.into_iter().enumerate();
        let waiting = waiting.map(|(part, piece)| Waiting { request: id, part, piece, own });
        if own {
            // No limit holds it, nor what a limit holds.
            waiting.for_each(|waiting| self.waiting.push_front(waiting));
        } else {
            self.waiting.extend(waiting);
        }
        self.pump(now);
    }

    /// Lets waiting pieces into the window, first come first served.
    pub(super) fn pump(&mut self, now: Duration) {
        if self.renewing || !matches!(self.state, VolumeState::Open | VolumeState::Closing) {
            return;
        }
        while let Some(first) = self.waiting.front() {
            let bytes = first.bytes();
            let operations = self.operations.len() + self.stragglers.len();
            let full = self.window_bytes + bytes > WINDOW_BYTES_MAX || operations >= OPERATIONS_MAX;
            if full && (self.window_bytes > 0 || !self.stragglers.is_empty()) {
                return;
            }
            if self.throttle.is_some() && !first.own && self.is_throttled(now, bytes) {
                if self.has_planted(super::planted::PlantedFault::ForgetThrottled) {
                    self.waiting.pop_front();
                }
                return;
            }
            if let Some(waiting) = self.waiting.pop_front() {
                self.admit(now, waiting, bytes);
            }
        }
    }

    fn admit(&mut self, now: Duration, waiting: Waiting, window: usize) {
        let Waiting { request, part, piece, own: _ } = waiting;
        let id = OperationId(self.new_id());
        let range = piece.range();
        let span = Span { start: range.start, end: range.end() };
        let ordered = !self.has_planted(super::planted::PlantedFault::IgnoreOverlaps);
        let ready = !ordered || self.ordering.register(id, span, piece.changes());
        let owner = Owner::Request { id: request, part };
        self.operations.insert(id, Operation { owner, window, ordered, phase: Phase::Blocked(piece) });
        self.window_bytes += window;
        if ready {
            self.start(now, id);
        }
    }

    /// Starts an operation that nothing blocks any more.
    pub(super) fn start(&mut self, now: Duration, id: OperationId) {
        let everyone = MemberSet::ALL;
        let encrypts = self.ciphers.is_some();
        let operation = self.operations.get_mut(&id).expect("started operations exist");
        let Phase::Blocked(piece) = &mut operation.phase else { panic!("{id:?} started twice") };
        let empty = Piece::Discard { range: BlockRange::default(), force_unit_access: false };
        match std::mem::replace(piece, empty) {
            Piece::Read { range, skip, length } => {
                operation.phase =
                    Phase::Reading(Reading::new(range, everyone, Then::Answer { skip, length }));
                self.send_read(now, id);
            }
            Piece::Patch { block, at, segments, force_unit_access } => {
                let then = Then::Patch { at, segments, force_unit_access };
                operation.phase = Phase::Reading(Reading::new(BlockRange::new(block, 1), everyone, then));
                self.send_read(now, id);
            }
            Piece::Rewrite { block } => {
                let range = BlockRange::new(block, 1);
                operation.phase = Phase::Reading(Reading::new(range, everyone, Then::Rewrite));
                self.send_read(now, id);
            }
            Piece::Mend { block } => {
                let range = BlockRange::new(block, 1);
                operation.phase = Phase::Reading(Reading::new(range, everyone, Then::Mend));
                self.send_read(now, id);
            }
            Piece::Restore { range } => self.start_restoring(now, id, range),
            Piece::Reseal { range } => self.start_resealing(now, id, range),
            Piece::Scrub { block } => {
                operation.phase = Phase::Scrubbing;
                self.scrub_ordered(now, id, block);
            }
            Piece::Write { range, segments, force_unit_access } => {
                operation.phase = Phase::Writing(Writing::data(range, segments, force_unit_access, encrypts));
                self.send_write(now, id);
            }
            Piece::Zeros { range, force_unit_access } => {
                self.start_zeroing(now, id, range, force_unit_access)
            }
            Piece::Discard { range, force_unit_access } => {
                operation.phase = Phase::Writing(Writing::discard(range, force_unit_access));
                self.send_write(now, id);
            }
        }
    }

    /// Adds an operation of the engine's own, outside window and ordering: there is no other I/O
    /// while members are made alike.
    pub(super) fn add_engine_operation(&mut self, phase: Phase) -> OperationId {
        self.add_unordered(Owner::Engine, phase)
    }

    pub(super) fn add_unordered(&mut self, owner: Owner, phase: Phase) -> OperationId {
        let id = OperationId(self.new_id());
        self.operations.insert(id, Operation { owner, window: 0, ordered: false, phase });
        id
    }

    /// Ends an operation: answers its part, and starts what waited for it.
    pub(super) fn finish(&mut self, now: Duration, id: OperationId, outcome: Outcome) {
        let operation = self.operations.remove(&id).expect("an operation finishes once");
        self.window_bytes -= operation.window;
        match operation.owner {
            Owner::Request { id: request, part } => self.part_finished(request, part, outcome),
            Owner::Engine => {
                self.rewritten(now, id);
                self.mending.ended(id);
                self.resealing_ended(now, id, &outcome);
                let done = !matches!(outcome, Outcome::Failed(_));
                self.scrub_operation_ended(now, id, done);
                self.revert_operation_ended(now, id, done);
            }
            Owner::Query { .. } => {}
        }
        if operation.ordered {
            let mut released = Vec::new();
            self.ordering.finish(id, &mut released);
            for next in released {
                self.start(now, next);
            }
        }
        self.pump(now);
        self.check_closing(now);
    }

    fn part_finished(&mut self, id: RequestId, part: usize, outcome: Outcome) {
        let request = self.requests.get_mut(&id).expect("a request outlives its parts");
        match outcome {
            Outcome::Done => {}
            Outcome::Data(data) => request.parts[part] = data,
            Outcome::Failed(error) => {
                request.error.get_or_insert(error);
            }
        }
        request.remaining -= 1;
        if request.remaining > 0 {
            return;
        }
        let request = self.requests.remove(&id).expect("just found");
        let result = match request.error {
            Some(error) => Err(error),
            None if request.reads => Ok(IoReply::Data(joined(request.parts))),
            None => Ok(IoReply::Done),
        };
        self.complete(request.tag, result);
    }

    /// Answers everything that waits with one error, and forgets it.
    pub(super) fn answer_all(&mut self, error: &IoError) {
        let mut tags: Vec<Tag> = self.early.drain(..).map(|(tag, _)| tag).collect();
        tags.extend(self.unleased.drain(..).map(|(tag, _)| tag));
        self.stragglers.clear();
        tags.extend(self.requests.drain().map(|(_, request)| request.tag));
        tags.extend(self.operations.drain().filter_map(|(_, operation)| match operation.owner {
            Owner::Query { tag } => Some(tag),
            Owner::Request { .. } | Owner::Engine => None,
        }));
        tags.extend(self.flushing.take_waiters());
        tags.extend(self.growing.take().map(|growing| growing.tag));
        tags.extend(self.take_snapshot_tags());
        tags.extend(self.take_changing_tag());
        tags.extend(self.take_blocked_tags());
        tags.extend(self.rekeying.take().map(|rekeying| rekeying.tag));
        tags.sort_unstable();
        for tag in tags {
            self.complete(tag, Err(error.clone()));
        }
        self.waiting.clear();
        self.held_reads.clear();
        self.held_writes.clear();
        self.ordering = super::Ordering::default();
        self.window_bytes = 0;
        self.log.abandon();
        self.full = super::write::Full::default();
        self.reconcile = None;
        self.scrub = None;
        self.mending.clear();
        self.revert = None;
        self.resealing = None;
    }

    /// Whether a consumer waits for anything.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.ordering.is_empty() && self.operations.is_empty()
    }

    /// The operations that wait for an answer of `member` and can as well ask another.
    pub(super) fn asked_of(&self, member: super::MemberIndex) -> Vec<OperationId> {
        let asked = |phase: &Phase| match phase {
            Phase::Reading(reading) => {
                let answers = [reading.from, reading.hedge].contains(&Some(member));
                answers || reading.verifying.as_ref().is_some_and(|verifying| verifying.awaits(member))
            }
            Phase::Querying(querying) => querying.from == Some(member),
            Phase::Blocked(_) | Phase::Writing(_) | Phase::Scrubbing => false,
        };
        let of_member = self.operations.iter().filter(|(_, operation)| asked(&operation.phase));
        let mut ids: Vec<OperationId> = of_member.map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids
    }
}

fn joined(mut parts: Vec<Vec<Bytes>>) -> Vec<Bytes> {
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    parts.into_iter().flatten().collect()
}
