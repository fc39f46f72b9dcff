//! Questions about ranges that are answered without reading any data: which parts hold data, and which have
//! changed since a snapshot. One member answers; when it cannot, the next is asked.
//!
//! They are not ordered with writes in flight: both the old and the new answer are right for these, and
//! acknowledged ones are on every member.

use super::operation::{Operation, Outcome, Owner, Phase};
use super::pieces::check_bounds;
use super::{MemberFault, MemberIndex, MemberSet, OperationId, Tag, VolumeCore, VolumeState};
use crate::request::{IoError, IoReply};
use std::time::Duration;
use trivet_model::{BLOCK_SIZE_U64, BlockRange, SnapshotId, SnapshotRecord, Stamp};
use trivet_wire::{Extent, Message, TailEntry};

/// Blocks in one query (4 GiB).
const QUERY_BLOCKS_MAX: u64 = 1 << 20;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Question {
    Allocation,
    Changed { since: Stamp },
}

/// A query on its way.
#[derive(Debug)]
pub(super) struct Querying {
    question: Question,
    offset: u64,
    length: u64,
    range: BlockRange,
    pub(super) tried: MemberSet,
    pub(super) from: Option<MemberIndex>,
    pub(super) cause: String,
}

impl VolumeCore {
    /// The snapshots that are older than what is looked at.
    pub fn older_snapshots(&self) -> impl Iterator<Item = &SnapshotRecord> {
        let recorded = self.recorded_snapshots();
        let viewed = recorded.iter().find(|known| Some(known.id) == self.options.snapshot);
        let until = viewed.map_or(Stamp::MAX, |viewed| viewed.cut);
        recorded.iter().filter(move |known| known.cut < until)
    }

    pub(super) fn query_changes(
        &mut self,
        now: Duration,
        tag: Tag,
        since: SnapshotId,
        offset: u64,
        length: u64,
    ) {
        let known = self.older_snapshots().find(|known| known.id == since).map(|known| known.cut);
        match known {
            Some(since) => self.query(now, tag, Question::Changed { since }, offset, length),
            None => {
                let why = "there is no such snapshot that is older than what is looked at";
                self.complete(tag, Err(IoError::Invalid(why)));
            }
        }
    }

    pub(super) fn query(&mut self, now: Duration, tag: Tag, question: Question, offset: u64, length: u64) {
        if let Err(error) = check_bounds(offset, length, self.blocks) {
            return self.complete(tag, Err(error));
        }
        let start = offset / BLOCK_SIZE_U64;
        let count = ((offset + length).div_ceil(BLOCK_SIZE_U64) - start).min(QUERY_BLOCKS_MAX);
        let range = BlockRange::new(start, u32::try_from(count).expect("bounded above"));
        let (tried, from, cause) = (MemberSet::EMPTY, None, String::new());
        let querying = Phase::Querying(Querying { question, offset, length, range, tried, from, cause });
        let id = self.add_unordered(Owner::Query { tag }, querying);
        self.send_query(now, id);
    }

    pub(super) fn send_query(&mut self, now: Duration, id: OperationId) {
        let everyone = self.readable();
        let querying = querying_mut(&mut self.operations, id);
        let untried = everyone.without(querying.tried);
        let range = querying.range;
        let message = match querying.question {
            Question::Allocation => Message::Allocation { range },
            Question::Changed { since } => Message::Changed { since, start: range.start },
        };
        if untried.is_empty() {
            let cause = std::mem::take(&mut querying.cause);
            let error = IoError::Medium { start: range.start, end: range.end(), cause };
            return self.query_finished(now, id, Err(error));
        }
        let serving = matches!(self.state, VolumeState::Open | VolumeState::Closing);
        match self.nearest(untried, range.start).filter(|_| serving) {
            Some(member) => {
                querying_mut(&mut self.operations, id).from = Some(member);
                self.send(now, MemberSet::of(member), id.0, message);
            }
            None => self.held_reads.push_back(id),
        }
    }

    /// The query that a member answers, or the fault of answering something else.
    fn asked_query(&mut self, member: MemberIndex, id: OperationId) -> Result<&Querying, MemberFault> {
        match self.operations.get_mut(&id) {
            Some(Operation { phase: Phase::Querying(querying), .. }) if querying.from == Some(member) => {
                Ok(querying)
            }
            _ => Err(MemberFault::Protocol("it answers a query that it was not asked")),
        }
    }

    /// A member says where data is.
    pub(super) fn allocation_answered(
        &mut self,
        now: Duration,
        member: MemberIndex,
        id: OperationId,
        extents: &[Extent],
    ) -> Result<(), MemberFault> {
        let querying = self.asked_query(member, id)?;
        let runs = extents.iter().map(|extent| (u64::from(extent.count), extent.allocated));
        let extents = in_bytes(runs, querying.offset, querying.length);
        if querying.question != Question::Allocation || extents.is_empty() {
            return Err(MemberFault::Protocol("an allocation query's answer covers nothing"));
        }
        self.query_finished(now, id, Ok(IoReply::Allocation(extents)));
        Ok(())
    }

    /// A member says what has changed.
    pub(super) fn changed_answered(
        &mut self,
        now: Duration,
        member: MemberIndex,
        id: OperationId,
        entries: &[TailEntry],
        next: Option<u64>,
    ) -> Result<(), MemberFault> {
        let querying = self.asked_query(member, id)?;
        let range = querying.range;
        let runs = changed_runs(range, entries, next);
        let extents = runs.map(|runs| in_bytes(runs.into_iter(), querying.offset, querying.length));
        match (querying.question, extents) {
            (Question::Changed { .. }, Some(extents)) if !extents.is_empty() => {
                self.query_finished(now, id, Ok(IoReply::Changed(extents)));
                Ok(())
            }
            _ => Err(MemberFault::Protocol("what it says has changed is out of order")),
        }
    }

    fn query_finished(&mut self, now: Duration, id: OperationId, result: Result<IoReply, IoError>) {
        if let Owner::Query { tag } = self.operations[&id].owner {
            self.complete(tag, result);
        }
        self.finish(now, id, Outcome::Done);
    }
}

fn querying_mut(
    operations: &mut hashbrown::HashMap<OperationId, Operation>,
    id: OperationId,
) -> &mut Querying {
    match operations.get_mut(&id) {
        Some(Operation { phase: Phase::Querying(querying), .. }) => querying,
        other => panic!("{id:?} is not a query: {other:?}"),
    }
}

/// Which blocks of a range, from its first on, have changed and which have not, as far as an answer goes;
/// `None` when it is not in order.
fn changed_runs(range: BlockRange, entries: &[TailEntry], next: Option<u64>) -> Option<Vec<(u64, bool)>> {
    let end = range.end().min(next.unwrap_or(u64::MAX));
    let mut runs = Vec::new();
    let mut at = range.start;
    let mut known = range.start;
    for entry in entries {
        if entry.range.start < known {
            return None;
        }
        known = entry.range.end();
        let (first, last) = (entry.range.start.min(end), known.min(end));
        if first > at {
            runs.push((first - at, false));
        }
        if last > first {
            runs.push((last - first, true));
        }
        at = at.max(last);
    }
    if end > at {
        runs.push((end - at, false));
    }
    Some(runs)
}

/// Runs of blocks as lengths in bytes, neighbours differing, cut to the run of bytes asked for.
fn in_bytes(runs: impl Iterator<Item = (u64, bool)>, offset: u64, length: u64) -> Vec<(u64, bool)> {
    let mut skip = offset % BLOCK_SIZE_U64;
    let mut rest = length;
    let mut lengths: Vec<(u64, bool)> = Vec::new();
    for (blocks, is) in runs {
        let bytes = (blocks * BLOCK_SIZE_U64).saturating_sub(skip).min(rest);
        skip = 0;
        rest -= bytes;
        match lengths.last_mut() {
            _ if bytes == 0 => {}
            Some((sum, same)) if *same == is => *sum += bytes,
            _ => lengths.push((bytes, is)),
        }
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(start: u64, count: u32) -> TailEntry {
        TailEntry { range: BlockRange::new(start, count), stamp: Stamp::from_u64(1), discard: false }
    }

    proptest! {
        #[test]
        fn changed_blocks_are_told_as_far_as_the_answer_goes(
            changed in prop::collection::vec(any::<bool>(), 1..60),
            start in 0u64..30, count in 1u32..60, next in prop::option::of(0u64..60))
        {
            let range = BlockRange::new(start, count);
            let end = range.end().min(next.unwrap_or(u64::MAX));
            let is_changed = |block: u64| changed.get(usize::try_from(block).unwrap()).copied().unwrap_or(false);
            let blocks = (start..changed.len() as u64).filter(|block| is_changed(*block));
            let entries: Vec<TailEntry> = blocks.map(|block| entry(block, 1)).collect();
            let runs = changed_runs(range, &entries, next).unwrap();
            let told: Vec<bool> = runs.iter().flat_map(|(count, is)| (0..*count).map(move |_| *is)).collect();
            prop_assert_eq!(told, (start..end).map(is_changed).collect::<Vec<_>>());
        }
    }

    #[test]
    fn answers_out_of_order_are_refused_and_bytes_are_cut() {
        let range = BlockRange::new(0, 10);
        assert_eq!(changed_runs(range, &[entry(4, 2), entry(5, 1)], None), None);
        let runs = changed_runs(range, &[entry(1, 2), entry(3, 1)], Some(8)).unwrap();
        assert_eq!(in_bytes(runs.into_iter(), 512, 8192), [(3584, false), (4608, true)]);
    }
}
