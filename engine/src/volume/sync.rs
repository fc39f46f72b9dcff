//! Bringing a member back: the attempt, from the first write sent to it to its promotion.
//!
//! ```text
//!  recorded as Syncing, ready           what was sent before is settled    its walk is over,
//!            │                                      │                    diverged blocks rewritten
//!            ▼                                      ▼                               │
//!      ┌──────────┐                            ┌─────────┐                          ▼
//!      │ Settling │───────────────────────────▶│ Pulling │───────────────────▶┌──────────┐
//!      └──────────┘                            └─────────┘                    │ Draining │ joined: it must
//!                        ┌───────────┐ flushed ┌──────────┐ nothing awaited   │          │ acknowledge
//!      recorded InSync ◀─│ Promoting │◀────────│ Flushing │◀──────────────────└──────────┘
//!                        └───────────┘         └──────────┘
//! ```
//!
//! Any failure ends the attempt; another begins after a pause. Once the promotion may have reached the
//! record, only the record ends it.

use super::member::{Control, Role};
use super::operation::{Operation, Owner, Phase};
use super::ordering::Span;
use super::pieces::Piece;
use super::planted::PlantedFault as Planted;
use super::{MemberFault, MemberIndex, OperationId, VolumeCore, VolumeState};
use hashbrown::HashSet;
use std::time::Duration;
use trivet_model::{BootId, Stamp};
use trivet_wire::{Message, PullReport, PullState};

/// How often a member that pulls is asked how far it is.
pub(super) const POLL: Duration = Duration::from_millis(100);
/// The first pause after an attempt that failed; each in a row doubles it.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Settling,
    Pulling { finished: bool },
    Draining,
    Flushing,
    Promoting,
}

/// An attempt to bring a member back.
#[derive(Debug)]
pub(super) struct Attempt {
    step: Step,
    /// The last stamp handed out before it began to receive writes.
    before: Stamp,
    rewrites: HashSet<OperationId>,
    polled: Duration,
    pub(super) began: Duration,
    /// The block that its walk has reached, and blocks copied.
    pub(super) position: u64,
    pub(super) copied_blocks: u64,
}

impl Attempt {
    /// Whether its acknowledgement is needed.
    pub(super) fn is_joined(&self) -> bool {
        matches!(self.step, Step::Draining | Step::Flushing | Step::Promoting)
    }

    /// Whether it has everything.
    pub(super) fn is_complete(&self) -> bool {
        self.step == Step::Promoting
    }
}

impl VolumeCore {
    fn attempt(&mut self, member: MemberIndex) -> Option<&mut Attempt> {
        match &mut self.members[member.0].role {
            Role::Syncing { attempt, .. } => attempt.as_mut(),
            Role::InSync | Role::Stale { .. } | Role::Removed => None,
        }
    }

    pub(super) fn any_attempt(&self) -> bool {
        self.members.iter().any(|member| matches!(&member.role, Role::Syncing { attempt: Some(_), .. }))
    }

    /// Begins with every member that the record calls syncing and that is ready.
    pub(super) fn begin_attempts(&mut self, now: Duration) {
        let busy = self.growing.is_some() || self.has_snapshot_under_way();
        if self.state != VolumeState::Open || self.renewing || busy {
            return;
        }
        for index in 0..self.members.len() {
            let (member, link) = (MemberIndex(index), &self.members[index]);
            let due = matches!(link.role, Role::Syncing { attempt: None, .. })
                && link.is_ready()
                && now >= link.sync_after;
            if !due {
                continue;
            }
            if link.blocks < self.blocks {
                let blocks = self.blocks;
                if !link.expects(Control::Resize { blocks }) {
                    self.ask_to_grow(now, member, blocks);
                }
                continue;
            }
            if !self.agrees_on_snapshots(now, member) {
                continue;
            }
            let before = self.log.last();
            if let Role::Syncing { attempt, .. } = &mut self.members[index].role {
                *attempt = Some(Attempt {
                    step: Step::Settling,
                    before,
                    rewrites: HashSet::new(),
                    polled: now,
                    began: now,
                    position: 0,
                    copied_blocks: 0,
                });
            }
            self.note_standing(now);
        }
        self.advance_attempts(now);
    }

    /// Takes every attempt as far as it gets.
    pub(super) fn advance_attempts(&mut self, now: Duration) {
        for index in 0..self.members.len() {
            self.advance_attempt(now, MemberIndex(index));
        }
    }

    fn advance_attempt(&mut self, now: Duration, member: MemberIndex) {
        let drained = !self.stragglers.values().any(|(_, late)| late.contains(member))
            || self.has_planted(Planted::PromoteBeforeDrain);
        let early = self.has_planted(Planted::PullBeforeSettled);
        let unflushed = self.has_planted(Planted::PromoteBeforeFlush);
        let slow = self.is_slow(member);
        let stable = self.log.progress().stable;
        let Self { log, members, .. } = self;
        let Role::Syncing { attempt: Some(attempt), .. } = &mut members[member.0].role else { return };
        match attempt.step {
            Step::Settling if log.is_settled_to(attempt.before) || early => {
                attempt.step = Step::Pulling { finished: false };
                attempt.polled = now;
                self.pull(now, member);
            }
            Step::Pulling { finished: true } if attempt.rewrites.is_empty() && !slow => {
                attempt.step = Step::Draining;
                self.note_standing(now);
                self.advance_attempt(now, member);
            }
            Step::Pulling { finished: false } if now >= attempt.polled + POLL => {
                attempt.polled = now;
                let link = &self.members[member.0];
                let answers = [Control::PullStatus, Control::Pull, Control::Reset];
                if !answers.into_iter().any(|control| link.expects(control)) {
                    self.ask(now, member, Control::PullStatus, Message::PullStatus { stable });
                }
            }
            Step::Draining if drained && unflushed => {
                attempt.step = Step::Promoting;
                self.review_members(now);
            }
            Step::Draining if drained => {
                attempt.step = Step::Flushing;
                let progress = self.log.progress();
                self.ask(now, member, Control::JoinFlush, Message::Flush { progress });
            }
            Step::Settling | Step::Pulling { .. } | Step::Draining | Step::Flushing | Step::Promoting => {}
        }
    }

    fn pull(&mut self, now: Duration, member: MemberIndex) {
        let sources = self.in_sync().intersection(self.ready_members());
        let source = sources.into_iter().min_by_key(|source| self.members[source.0].reads_in_flight);
        let Some(source) = source else {
            return self.end_attempt(now, member, "no in-sync member is ready to copy from");
        };
        let Role::Syncing { since, attempt: Some(attempt) } = &self.members[member.0].role else { return };
        let link = &self.members[member.0];
        let floor = attempt.before.plus(1);
        let since = (*since).min(link.surely_has());
        let since = if self.has_planted(Planted::CopyTooLittle) { attempt.before } else { since };
        let source = &self.members[source.0];
        let boot = source.boot.unwrap_or(BootId::from_bytes([0; 16]));
        tracing::info!(volume = %self.options.volume, member = %link.replica, source = %source.replica, %since,
            "bringing a member back");
        // It may have lost power without our knowing: then it is no source.
        let (source, address) = (source.replica, source.address.clone());
        let stable = self.log.progress().stable;
        let message = Message::Pull { source, boot, address, since, floor, stable };
        self.ask(now, member, Control::Pull, message);
    }

    /// A member tells how far its walk is.
    pub(super) fn pull_reported(
        &mut self,
        now: Duration,
        member: MemberIndex,
        report: PullReport,
    ) -> Result<(), MemberFault> {
        let blocks = self.blocks;
        let Some(attempt) =
            self.attempt(member).filter(|attempt| matches!(attempt.step, Step::Pulling { .. }))
        else {
            return Err(MemberFault::Protocol("it reports a copy that nobody asked for"));
        };
        (attempt.position, attempt.copied_blocks) = (report.position, report.copied_blocks);
        if report.diverged.iter().any(|range| !range.fits(blocks)) {
            return Err(MemberFault::Protocol("it reports blocks beyond the volume"));
        }
        let before = attempt.before;
        if !report.diverged.is_empty() && self.has_cut_above(before) {
            self.copy_anew(now, member, "it wrote what nobody acknowledged below a snapshot taken since");
            return Ok(());
        }
        for range in report.diverged {
            for block in range.blocks() {
                self.rewrite(now, member, block);
            }
        }
        match report.state {
            PullState::Running => {}
            PullState::Failed => self.end_attempt(now, member, &report.detail),
            PullState::Hopeless => self.copy_anew(now, member, &report.detail),
            PullState::Finished => {
                if let Some(attempt) = self.attempt(member) {
                    attempt.step = Step::Pulling { finished: true };
                }
                self.advance_attempt(now, member);
            }
        }
        Ok(())
    }

    /// What a member has is of no use: it begins anew, empty, and its attempt ends with its answer.
    fn copy_anew(&mut self, now: Duration, member: MemberIndex, why: &str) {
        if let Some(attempt) = self.attempt(member) {
            attempt.step = Step::Pulling { finished: false };
        }
        let link = &self.members[member.0];
        tracing::warn!(volume = %self.options.volume, member = %link.replica, why,
            "a copy is of no use, and begins anew");
        self.ask(now, member, Control::Reset, Message::Reset);
    }

    /// A cut is made. Members whose diverged blocks are still to be written anew would show them below it.
    pub(super) fn copy_anew_what_diverges(&mut self, now: Duration) {
        for index in 0..self.members.len() {
            let member = MemberIndex(index);
            if self.attempt(member).is_some_and(|attempt| !attempt.rewrites.is_empty()) {
                self.copy_anew(now, member, "a snapshot is taken before it is like the others");
            }
        }
    }

    /// Writes the in-sync version of a block anew, to everyone, in its place among other I/O.
    fn rewrite(&mut self, now: Duration, member: MemberIndex, block: u64) {
        if self.has_planted(Planted::SkipDiverged) {
            return;
        }
        let id = OperationId(self.new_id());
        let piece = Piece::Rewrite { block };
        let range = piece.range();
        let ready = self.ordering.register(id, Span { start: range.start, end: range.end() }, true);
        let operation = Operation::ordered_by_engine(Phase::Blocked(piece));
        debug_assert_eq!(operation.owner, Owner::Engine);
        self.operations.insert(id, operation);
        if let Some(attempt) = self.attempt(member) {
            attempt.rewrites.insert(id);
        }
        if ready {
            self.start(now, id);
        }
    }

    /// An operation of the engine's own has ended.
    pub(super) fn rewritten(&mut self, now: Duration, id: OperationId) {
        for index in 0..self.members.len() {
            let member = MemberIndex(index);
            if self.attempt(member).is_some_and(|attempt| attempt.rewrites.remove(&id)) {
                self.advance_attempt(now, member);
            }
        }
    }

    /// The flush at the end of an attempt has ended: all that was ever acknowledged is there.
    pub(super) fn join_flushed(&mut self, now: Duration, member: MemberIndex) -> Result<(), MemberFault> {
        match self.attempt(member) {
            Some(attempt) if attempt.step == Step::Flushing => {
                attempt.step = Step::Promoting;
                self.review_members(now);
                Ok(())
            }
            _ => Err(MemberFault::Protocol("it answers a flush that nobody waits for")),
        }
    }

    /// Gives an attempt up. What the member has stays; the next finds it by its stamps.
    pub(super) fn end_attempt(&mut self, now: Duration, member: MemberIndex, why: &str) {
        let link = &mut self.members[member.0];
        let Role::Syncing { attempt, .. } = &mut link.role else { return };
        if attempt.as_ref().is_none_or(Attempt::is_complete) {
            return;
        }
        *attempt = None;
        let pause = PAUSE_MIN.saturating_mul(1 << link.sync_failures.min(6)).min(PAUSE_MAX);
        link.sync_failures += 1;
        link.sync_after = now + pause;
        tracing::warn!(volume = %self.options.volume, member = %link.replica, why, "bringing back ended early");
        self.forget_in_writes(member);
        if self.members[member.0].is_connected() {
            // Its session ends, and the walk with it.
            self.fault(now, member, MemberFault::SyncFailed(why.to_owned()));
        }
        self.members_changed(now);
    }

    /// The promotion did not come about, and the member is away: it begins anew.
    pub(super) fn end_promotion(&mut self, now: Duration, member: MemberIndex) {
        if !self.members[member.0].is_ready()
            && let Some(attempt) = self.attempt(member).filter(|attempt| attempt.is_complete())
        {
            attempt.step = Step::Flushing;
            self.end_attempt(now, member, "it was lost while it was promoted");
        }
    }

    /// Everyone's session ends: attempts end with it, without a word.
    pub(super) fn drop_attempts(&mut self) {
        for index in 0..self.members.len() {
            if let Role::Syncing { attempt, .. } = &mut self.members[index].role
                && attempt.take().is_some()
            {
                self.forget_in_writes(MemberIndex(index));
            }
        }
    }
}
