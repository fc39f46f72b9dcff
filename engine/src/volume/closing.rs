//! Closing: what is in flight finishes, everything becomes stable, members and authority are told.
//!
//! ```text
//! Draining ──nothing in flight──▶ Flushing ──flushed──▶ Parting ──members answered──▶ Releasing ──▶ closed
//!     └──────────────────────────────┴── patience ends ─────┴───────────────────────────┴──────▶ closed
//! ```
//!
//! When patience ends because a member is away, what could not be finished is answered `Closed` and
//! was never acknowledged; the next opening settles what became of it.

use super::control::Purpose;
use super::member::Control;
use super::{MemberIndex, MemberSet, VolumeCore, VolumeState};
use crate::request::IoError;
use std::time::Duration;
use trivet_wire::Message;
use trivet_wire::frame::Progress;

/// How far closing is; the module draws it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Draining,
    Flushing,
    Parting(MemberSet),
    Releasing,
}

/// A volume being closed.
#[derive(Debug)]
pub(super) struct Closing {
    step: Step,
    until: Duration,
}

impl VolumeCore {
    /// Takes no more requests, finishes those in flight, and closes. What does not finish within
    /// `patience`, because a member is away, is answered [`IoError::Closed`].
    pub fn close(&mut self, now: Duration, patience: Duration) {
        self.now = now;
        match self.state {
            VolumeState::Open => {
                self.transition(now, VolumeState::Closing);
                self.closing = Some(Closing { step: Step::Draining, until: now + patience });
                self.renewing = false;
                if let Some(tag) = self.take_changing_tag() {
                    self.complete(tag, Err(IoError::Closed));
                }
                self.refuse_orders();
                self.give_up_revert();
                self.give_up_group(now);
                self.stop_scrub(now);
                for index in 0..self.members.len() {
                    self.end_attempt(now, MemberIndex(index), "the volume is being closed");
                }
                self.release_held_writes(now);
                self.pump(now);
                self.check_closing(now);
            }
            VolumeState::Claiming | VolumeState::Connecting | VolumeState::Reconciling => {
                self.unfinished = !self.early.is_empty() || !self.requests.is_empty();
                self.closed(now);
            }
            VolumeState::Closing | VolumeState::Closed | VolumeState::Fenced | VolumeState::Failed => {}
        }
    }

    /// Whether it is closed, with everything that was in flight finished and flushed.
    #[must_use]
    pub fn closed_cleanly(&self) -> bool {
        self.state == VolumeState::Closed && !self.unfinished
    }

    /// Takes the next step of closing if it is due.
    pub(super) fn check_closing(&mut self, now: Duration) {
        let Some(Closing { step, until }) = self.closing.as_ref().map(|c| Closing { ..*c }) else { return };
        if self.state != VolumeState::Closing {
            return;
        }
        if now >= until {
            // A record that still names an owner harms nobody: the next opening takes the volume over.
            self.unfinished = step != Step::Releasing;
            tracing::warn!(volume = %self.options.volume, ?step, "gave up closing in good order");
            return self.closed(now);
        }
        let drained = self.is_idle() && self.waiting.is_empty() && self.growing.is_none();
        let drained =
            drained && !self.has_snapshot_under_way() && !self.waits_for_source() && !self.is_feeding();
        match step {
            Step::Draining if drained => self.flush_at_last(now),
            Step::Flushing if drained && !self.flushing.is_running() => self.part(now),
            Step::Parting(awaiting) if awaiting.intersection(self.ready_members()).is_empty() => {
                self.release_record(now);
            }
            Step::Draining | Step::Flushing | Step::Parting(_) | Step::Releasing => {}
        }
    }

    /// Whether all that is left to do is to tell the authority.
    pub(super) fn is_releasing(&self) -> bool {
        matches!(self.closing, Some(Closing { step: Step::Releasing, .. }))
    }

    fn closing_step(&mut self, step: Step) {
        if let Some(closing) = &mut self.closing {
            closing.step = step;
        }
    }

    fn flush_at_last(&mut self, now: Duration) {
        self.closing_step(Step::Flushing);
        let progress = self.log.progress();
        if self.flushing.is_due() || (!self.options.read_only && progress.stable < progress.committed) {
            self.flushing.want();
            self.begin_flush(now);
        }
        if !self.flushing.is_due() && !self.flushing.is_running() {
            self.part(now);
        }
    }

    fn part(&mut self, now: Duration) {
        if self.flushing.is_due() {
            // A member is away: the flush begins when it is back, or patience ends.
            return;
        }
        let ready = self.ready_members();
        self.closing_step(Step::Parting(ready));
        let required = self.required();
        for member in ready {
            let told = required.contains(member);
            let progress = if told { self.log.progress() } else { Progress::default() };
            self.ask(now, member, Control::Close, Message::Close { progress });
        }
        self.check_closing(now);
    }

    /// A member has ended its session.
    pub(super) fn member_parted(&mut self, now: Duration, member: MemberIndex) {
        if let Some(Closing { step: Step::Parting(awaiting), .. }) = &mut self.closing {
            awaiting.remove(member);
        }
        self.check_closing(now);
    }

    fn release_record(&mut self, now: Duration) {
        if self.options.read_only {
            return self.closed(now);
        }
        self.closing_step(Step::Releasing);
        self.run_errand(Purpose::Release);
    }

    pub(super) fn closed(&mut self, now: Duration) {
        self.closing = None;
        self.errand = None;
        self.hang_up(now);
        self.transition(now, VolumeState::Closed);
        self.answer_all(&IoError::Closed);
    }
}
