//! What becomes of blocks that were read.

use super::answer::{Run, with_zeros};
use super::{Reading, reading_mut};
use crate::volume::operation::{Outcome, Phase};
use crate::volume::segments::{patched, trim};
use crate::volume::write::Writing;
use crate::volume::{MemberSet, OperationId, VolumeCore};
use bytes::Bytes;
use std::time::Duration;
use trivet_model::{BlockRange, Stamp};

/// What the blocks are read for.
#[derive(Debug)]
pub(in crate::volume) enum Then {
    /// `length` bytes from byte `skip` of the blocks, for a consumer.
    Answer { skip: usize, length: usize },
    /// To lay a consumer's bytes over the one block, from byte `at`, and write it.
    Patch { at: usize, segments: Vec<Bytes>, force_unit_access: bool },
    /// To write the block on every member again, a hole as a discard.
    Rewrite,
    /// The same, given up when nobody can be read from.
    Mend,
    /// To write the blocks on every member, holes as discards.
    Copy,
    /// To write the blocks on every member, as a snapshot shows them.
    Restore,
    /// To write those blocks anew that have a stamp up to `until`: all that are read but for the `newer` ones.
    Reseal { until: Stamp, newer: Vec<u64> },
}

impl VolumeCore {
    pub(super) fn blocks_read(&mut self, now: Duration, id: OperationId, runs: Vec<Run>) {
        let reading = reading_mut(&mut self.operations, id);
        let range = reading.range;
        let encrypts = self.ciphers.is_some();
        let then = std::mem::replace(&mut reading.then, Then::Copy);
        self.counters.blocks_rewritten += u64::from(matches!(then, Then::Rewrite));
        match then {
            Then::Answer { skip, length } => {
                let segments = with_zeros(runs);
                let whole = skip == 0 && length as u64 == range.bytes();
                let segments = if whole { segments } else { trim(segments, skip, length) };
                self.finish(now, id, Outcome::Data(segments));
            }
            Then::Patch { at, segments, force_unit_access } => {
                let merged = patched(&with_zeros(runs), at, &segments);
                let writing = if merged.iter().all(|&byte| byte == 0) && !self.keeps_zeros(range.start) {
                    Writing::discard(range, force_unit_access)
                } else {
                    Writing::data(range, vec![merged], force_unit_access, encrypts)
                };
                self.operations.get_mut(&id).expect("it was reading").phase = Phase::Writing(writing);
                self.send_write(now, id);
            }
            Then::Rewrite | Then::Mend => {
                let writing = match runs.into_iter().find_map(|run| run.data) {
                    Some(segments) => Writing::data(range, segments, false, encrypts),
                    None => Writing::discard(range, false),
                };
                self.operations.get_mut(&id).expect("it was reading").phase = Phase::Writing(writing);
                self.send_write(now, id);
            }
            Then::Restore => {
                let writing = Writing::data(range, with_zeros(runs), false, encrypts);
                self.operations.get_mut(&id).expect("it was reading").phase = Phase::Writing(writing);
                self.send_write(now, id);
            }
            Then::Reseal { newer, .. } => self.reseal(now, id, runs, &newer),
            Then::Copy => {
                self.operations.remove(&id);
                if let Some(reconcile) = &mut self.reconcile {
                    reconcile.trouble = None;
                }
                let mut start = range.start;
                for run in runs {
                    let part = BlockRange::new(start, run.count);
                    start = part.end();
                    self.copy(now, part, run.data);
                }
            }
        }
    }

    fn copy(&mut self, now: Duration, range: BlockRange, data: Option<Vec<Bytes>>) {
        self.counters.blocks_reconciled += u64::from(range.count);
        let writing = match data {
            Some(segments) => Writing::data(range, segments, false, self.ciphers.is_some()),
            None => Writing::discard(range, false),
        };
        let id = self.add_engine_operation(Phase::Writing(writing));
        self.send_write(now, id);
    }

    /// Rewrites blocks on every member as `among` have them.
    pub(in crate::volume) fn copy_from(
        &mut self,
        now: Duration,
        range: BlockRange,
        among: MemberSet,
        discard: bool,
    ) {
        if discard {
            return self.copy(now, range, None);
        }
        let reading = Phase::Reading(Reading::new(range, among, Then::Copy));
        let id = self.add_engine_operation(reading);
        self.send_read(now, id);
    }

    /// Nothing else is in flight on these blocks: they become again what the snapshot shows.
    pub(in crate::volume) fn start_restoring(&mut self, now: Duration, id: OperationId, range: BlockRange) {
        if !self.is_reverting() {
            // The volume is being closed: whoever opens it next goes on.
            return self.finish(now, id, Outcome::Done);
        }
        let reading = Reading { at: self.reverts_to(), ..Reading::new(range, MemberSet::ALL, Then::Restore) };
        self.operations.get_mut(&id).expect("it has its place").phase = Phase::Reading(reading);
        self.send_read(now, id);
    }
}
