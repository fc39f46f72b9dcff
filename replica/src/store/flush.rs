//! Flushes: what is stable, and who waits for it.
//!
//! Invariants
//! - `stable <= completed <= head` of the journal, in blocks.
//! - One flush is in flight at a time; it covers what had completed when it was submitted. Those
//!   who come meanwhile share the next.
//! - A failed flush stops the pool: it is never tried again.

use trivet_disk::DiskOp;
use trivet_model::Stamp;

use super::Store;
use super::record::Slot;
use super::request::{Reply, RequestId};
use super::token::{Kind, token};
use crate::planted::{self, PlantedFault};

/// Journal blocks that may be unstable before the store flushes by itself: what recovery must
/// verify stays bounded.
const UNSTABLE_BLOCKS_MAX: u64 = 4096;

#[derive(Debug)]
struct Waiter {
    id: RequestId,
    /// Waits until everything before this journal block is stable.
    until: u64,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    Done,
    /// The stamp that the volume had completed when the request came.
    Stable(Stamp),
}

#[derive(Debug, Default)]
pub(super) struct Flushing {
    /// Everything recorded before this journal block is on the medium.
    pub(super) stable: u64,
    /// Everything recorded before this journal block is written, applied and acknowledged.
    pub(super) completed: u64,
    /// The journal block after the last completed one that records a change: marks of stability
    /// need not be stable themselves.
    pub(super) content: u64,
    in_flight: Option<u64>,
    /// A checkpoint waits for this much.
    pub(super) wanted: u64,
    waiters: Vec<Waiter>,
    submitted: u64,
}

impl Flushing {
    pub(super) fn starting_at(sequence: u64) -> Self {
        Self { stable: sequence, completed: sequence, content: sequence, wanted: sequence, ..Self::default() }
    }

    /// Only a planted fault does this: what the device could not write it has forgotten.
    pub(super) fn retry(&mut self) {
        self.in_flight = None;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.waiters.is_empty()
    }
}

impl Store {
    pub(super) fn flush(&mut self, id: RequestId, slot: Slot) {
        let last = self.volumes.get(slot).map_or(Stamp::ZERO, |volume| volume.last);
        if planted::is(PlantedFault::AnswerUnflushed) {
            return self.complete(id, Ok(Reply::Flushed { stable: last }));
        }
        let until = self.flushing.content;
        self.flushing.waiters.push(Waiter { id, until, answer: Answer::Stable(last) });
    }

    pub(super) fn wait_stable(&mut self, id: RequestId, until: u64, reply: Reply) {
        debug_assert_eq!(reply, Reply::Done);
        self.flushing.waiters.push(Waiter { id, until, answer: Answer::Done });
    }

    /// Answers who need not wait any longer, and starts a flush for those who do.
    pub(super) fn start_flush(&mut self) {
        self.answer_stable();
        let flushing = &mut self.flushing;
        let unstable = flushing.content.saturating_sub(flushing.stable);
        let needed = flushing.wanted > flushing.stable
            || (unstable > 0 && !flushing.waiters.is_empty())
            || unstable > UNSTABLE_BLOCKS_MAX;
        if flushing.in_flight.is_some() || !needed || self.failed.is_some() {
            return;
        }
        flushing.in_flight = Some(flushing.completed);
        flushing.submitted += 1;
        let number = flushing.submitted;
        self.submit_disk(token(Kind::Flush, number, 0), DiskOp::Flush);
    }

    pub(super) fn flush_completed(&mut self) {
        if let Some(covered) = self.flushing.in_flight.take() {
            self.flushing.stable = self.flushing.stable.max(covered);
        }
        self.answer_stable();
    }

    fn answer_stable(&mut self) {
        let stable = self.flushing.stable;
        if self.flushing.waiters.iter().all(|waiter| waiter.until > stable) {
            return;
        }
        let (ready, waiting) =
            std::mem::take(&mut self.flushing.waiters).into_iter().partition(|waiter| waiter.until <= stable);
        self.flushing.waiters = waiting;
        let ready: Vec<Waiter> = ready;
        for waiter in ready {
            let reply = match waiter.answer {
                Answer::Done => Reply::Done,
                Answer::Stable(stamp) => Reply::Flushed { stable: stamp },
            };
            self.complete(waiter.id, Ok(reply));
        }
    }

    /// Fails those who wait: the pool has stopped.
    pub(super) fn fail_flushes(&mut self) -> Vec<RequestId> {
        self.flushing.in_flight = None;
        std::mem::take(&mut self.flushing.waiters).into_iter().map(|waiter| waiter.id).collect()
    }
}
