//! What becomes of the blocks of a window that differed when it was compared: looked at again in their
//! place among other I/O, one after the other, and then mended.

use super::judge::Verdict;
use super::{Bad, Recheck, Step};
use crate::volume::operation::{Operation, Outcome, Phase};
use crate::volume::ordering::Span;
use crate::volume::pieces::Piece;
use crate::volume::planted::PlantedFault as Planted;
use crate::volume::read::{Reading, Then};
use crate::volume::write::Writing;
use crate::volume::{MemberIndex, MemberSet, OperationId, VolumeCore};
use std::time::Duration;
use trivet_model::BlockRange;

/// How often a window's blocks are looked at until one is given up.
const ROUNDS_MAX: u32 = 3;
/// Blocks that are named.
const NAMED_MAX: usize = 16;

impl VolumeCore {
    pub(super) fn next_suspect(&mut self, now: Duration) {
        let Some(window) = self.window_mut() else { return };
        window.recheck = None;
        let Some(block) = window.suspects.pop_front() else { return self.repair_window(now) };
        let id = OperationId(self.new_id());
        if let Some(window) = self.window_mut() {
            window.recheck = Some(Recheck { id, block, step: Step::Ordering });
        }
        let ready = self.ordering.register(id, Span { start: block, end: block + 1 }, true);
        let operation = Operation::ordered_by_engine(Phase::Blocked(Piece::Scrub { block }));
        self.operations.insert(id, operation);
        if ready {
            self.start(now, id);
        }
    }

    /// A block's place among other I/O has come: nothing on it is in flight.
    pub(in crate::volume) fn scrub_ordered(&mut self, now: Duration, id: OperationId, block: u64) {
        let stands = self.window_stands();
        let recheck = self.window_mut().and_then(|window| window.recheck.as_mut());
        match recheck.filter(|recheck| stands && recheck.id == id) {
            Some(recheck) => {
                recheck.step = Step::Comparing;
                self.compare(now, BlockRange::new(block, 1));
            }
            None => self.finish(now, id, Outcome::Done),
        }
    }

    pub(super) fn settle_block(&mut self, now: Duration, recheck: Recheck, verdict: Verdict) {
        let Recheck { id, block, .. } = recheck;
        match verdict {
            Verdict::Alike => {}
            Verdict::Bad { members, source } => self.note_bad(block, members, source),
            Verdict::Differs { newest, discard } => return self.write_newest(now, recheck, newest, discard),
            Verdict::Lost if self.looks_again(BlockRange::new(block, 1)) => {}
            Verdict::Lost => {
                tracing::error!(volume = %self.options.volume, block, "no member can read this block");
                self.count_unrepairable(BlockRange::new(block, 1));
            }
        }
        if let Some(window) = self.window_mut() {
            window.recheck = None;
        }
        self.finish(now, id, Outcome::Done);
        self.next_suspect(now);
    }

    fn note_bad(&mut self, block: u64, members: MemberSet, source: MemberIndex) {
        let Some(window) = self.window_mut() else { return };
        match window.bad.last_mut() {
            Some(last) if last.range.end() == block && last.members == members && last.source == source => {
                last.range.count += 1;
            }
            _ => window.bad.push(Bad { range: BlockRange::new(block, 1), members, source }),
        }
    }

    fn write_newest(&mut self, now: Duration, recheck: Recheck, newest: MemberSet, discard: bool) {
        let Recheck { id, block, .. } = recheck;
        tracing::error!(volume = %self.options.volume, block, ?newest,
            "members have different versions of a block: writing the newest to all");
        if let Some(scrub) = &mut self.scrub {
            scrub.counts.mismatched += 1;
            if let Some(window) = &mut scrub.window {
                window.recheck = Some(Recheck { step: Step::Rewriting, ..recheck });
            }
        }
        let range = BlockRange::new(block, 1);
        let operation = self.operations.get_mut(&id).expect("it has its place");
        if discard {
            operation.phase = Phase::Writing(Writing::discard(range, false));
            self.send_write(now, id);
        } else {
            operation.phase = Phase::Reading(Reading::new(range, newest, Then::Mend));
            self.send_read(now, id);
        }
    }

    /// An operation of the engine's own has ended.
    pub(in crate::volume) fn scrub_operation_ended(&mut self, now: Duration, id: OperationId, done: bool) {
        let recheck = self.window_mut().and_then(|window| window.recheck);
        let Some(recheck) = recheck.filter(|r| r.id == id && r.step == Step::Rewriting) else { return };
        if !done {
            self.count_unrepairable(BlockRange::new(recheck.block, 1));
        }
        self.next_suspect(now);
    }

    fn count_unrepairable(&mut self, range: BlockRange) {
        let Some(scrub) = &mut self.scrub else { return };
        scrub.counts.unrepairable += u64::from(range.count);
        let named = &mut scrub.counts.unrepairable_blocks;
        named.extend(range.blocks().take(NAMED_MAX.saturating_sub(named.len())));
    }

    /// All blocks have been judged: mend what is bad.
    fn repair_window(&mut self, now: Duration) {
        let skipping = self.has_planted(Planted::SkipScrubRepair);
        let Some(scrub) = self.scrub.as_mut() else { return };
        let Some(window) = scrub.window.as_mut() else { return };
        let bad = std::mem::take(&mut window.bad);
        for run in &bad {
            if skipping {
                scrub.counts.repaired += u64::from(run.range.count);
                continue;
            }
            window.repairs.extend(run.members.into_iter().map(|member| (member, run.range)));
        }
        if window.repairs.is_empty() {
            return self.end_round(now);
        }
        for run in bad {
            self.repair(now, run.members, run.range, run.source);
        }
    }

    /// A repair has ended.
    pub(in crate::volume) fn scrub_repair_ended(
        &mut self,
        now: Duration,
        member: MemberIndex,
        range: BlockRange,
        done: bool,
    ) {
        let Some(window) = self.window_mut() else { return };
        let mine = window.repairs.iter().position(|repair| *repair == (member, range));
        let Some(mine) = mine else { return };
        window.repairs.swap_remove(mine);
        let last = window.repairs.is_empty();
        if let (true, Some(scrub)) = (done, &mut self.scrub) {
            // What was placed anew is not stable yet, and no write says that there is something to flush.
            self.flushing.want();
            scrub.counts.repaired += u64::from(range.count);
        } else if !self.looks_again(range) {
            self.count_unrepairable(range);
        }
        if last {
            self.end_round(now);
        }
    }

    /// Whether blocks that could not be mended are to be looked at once more.
    fn looks_again(&mut self, range: BlockRange) -> bool {
        let Some(window) = self.window_mut().filter(|window| window.rounds < ROUNDS_MAX) else {
            return false;
        };
        window.again.extend(range.blocks());
        true
    }

    fn end_round(&mut self, now: Duration) {
        let Some(window) = self.window_mut() else { return };
        if window.again.is_empty() {
            return self.end_window(now);
        }
        window.rounds += 1;
        window.suspects = std::mem::take(&mut window.again);
        self.next_suspect(now);
    }

    /// Of a repair that nobody has in hand any more, there will be no word.
    pub(super) fn settle_lost_repairs(&mut self, now: Duration) {
        let Some(window) = self.scrub.as_ref().and_then(|scrub| scrub.window.as_ref()) else { return };
        let lost = |&(member, range): &(MemberIndex, BlockRange)| !self.has_repair(member, range);
        let lost: Vec<(MemberIndex, BlockRange)> = window.repairs.iter().copied().filter(lost).collect();
        for (member, range) in lost {
            self.scrub_repair_ended(now, member, range, false);
        }
    }
}
