//! Flushes, one round at a time over all members.
//!
//! A round covers every write that was acknowledged before it began; requests that arrive while one
//! runs share the next. The engine begins rounds by itself when much is unflushed and when the
//! volume falls idle, without holding anything up, so that the tail which members would compare
//! after a crash stays short.
//!
//! Invariants:
//! - a flush request is answered by a round that began after it arrived, or at once when nothing was
//!   acknowledged since the last round began and none runs;
//! - `stable` moves only when a round has ended on every member, to what was committed as it began.

use super::member::Control;
use super::{MemberFault, MemberIndex, MemberSet, Tag, VolumeCore, VolumeState};
use crate::request::IoReply;
use std::time::Duration;
use trivet_model::Stamp;
use trivet_wire::Message;

/// The engine flushes by itself above this many unflushed bytes,
const UNFLUSHED_BYTES_MAX: u64 = 64 << 20;
/// or this many unflushed writes,
const UNFLUSHED_WRITES_MAX: u64 = 4096;
/// or when nothing has been asked for this long.
const IDLE_FLUSH: Duration = Duration::from_secs(1);

/// What is to be flushed, and the round that runs.
#[derive(Debug, Default)]
pub(super) struct Flushing {
    round: Option<Round>,
    waiters: Vec<Tag>,
    /// A round is due although nobody waits for it.
    wanted: bool,
    /// How many rounds have begun, and the last one that has ended.
    begun: u64,
    ended: u64,
    unflushed_bytes: u64,
    unflushed_writes: u64,
}

#[derive(Debug)]
struct Round {
    id: u64,
    number: u64,
    covers: Stamp,
    awaiting: MemberSet,
    sent: Duration,
    waiters: Vec<Tag>,
}

impl Flushing {
    pub(super) const fn is_running(&self) -> bool {
        self.round.is_some()
    }

    /// Since when the present round has been under way, and who has not answered it.
    pub(super) fn awaits(&self) -> Option<(Duration, MemberSet)> {
        self.round.as_ref().map(|round| (round.sent, round.awaiting))
    }

    /// The present round does not wait for this member any more.
    pub(super) fn forget(&mut self, member: MemberIndex) {
        if let Some(round) = &mut self.round {
            round.awaiting.remove(member);
        }
    }

    pub(super) const fn is_due(&self) -> bool {
        self.unflushed_writes > 0 || self.wanted
    }

    pub(super) const fn unflushed_bytes(&self) -> u64 {
        self.unflushed_bytes
    }

    /// Takes everyone who waits, also for the round that runs.
    pub(super) fn take_waiters(&mut self) -> Vec<Tag> {
        let mut waiters = std::mem::take(&mut self.waiters);
        waiters.extend(self.round.take().map(|round| round.waiters).unwrap_or_default());
        waiters
    }

    /// Gives up the round that runs, since its members are opened anew; who waits for it waits on.
    pub(super) fn abandon(&mut self) {
        if let Some(round) = self.round.take() {
            self.waiters.extend(round.waiters);
            self.wanted = true;
        }
    }

    pub(super) const fn want(&mut self) {
        self.wanted = true;
    }

    /// Has another round run; which covers all that is acknowledged now.
    pub(super) const fn want_another(&mut self) -> u64 {
        self.wanted = true;
        self.begun + 1
    }

    /// Whether such a round has ended.
    pub(super) const fn has_ended(&self, round: u64) -> bool {
        self.ended >= round
    }
}

impl VolumeCore {
    pub(super) fn flush_requested(&mut self, now: Duration, tag: Tag) {
        self.counters.flushes += 1;
        if self.options.read_only {
            return self.complete(tag, Ok(IoReply::Done));
        }
        if self.has_planted(super::planted::PlantedFault::SkipFlush) {
            return self.complete(tag, Ok(IoReply::Done));
        }
        self.await_flush(now, tag);
    }

    /// Answers when everything acknowledged by now is stable.
    pub(super) fn await_flush(&mut self, now: Duration, tag: Tag) {
        self.flushing.waiters.push(tag);
        self.begin_flush(now);
    }

    /// A write has been acknowledged.
    pub(super) fn wrote(&mut self, now: Duration, bytes: u64) {
        self.flushing.unflushed_bytes += bytes;
        self.flushing.unflushed_writes += 1;
        let much = self.flushing.unflushed_bytes >= UNFLUSHED_BYTES_MAX
            || self.flushing.unflushed_writes >= UNFLUSHED_WRITES_MAX;
        if much && !self.flushing.is_running() {
            self.counters.background_flushes += 1;
            self.flushing.wanted = true;
            self.begin_flush(now);
        }
    }

    /// Begins a round if one is due, none runs, and all members are there.
    pub(super) fn begin_flush(&mut self, now: Duration) {
        if self.flushing.is_running() || (self.flushing.waiters.is_empty() && !self.flushing.wanted) {
            return;
        }
        if !self.flushing.is_due() {
            for tag in std::mem::take(&mut self.flushing.waiters) {
                self.complete(tag, Ok(IoReply::Done));
            }
            return;
        }
        if !self.may_write() {
            return;
        }
        let id = self.new_id();
        let progress = self.log.progress();
        let everyone = self.required();
        let waiters = std::mem::take(&mut self.flushing.waiters);
        self.flushing.begun += 1;
        let (number, covers) = (self.flushing.begun, progress.committed);
        self.flushing.round = Some(Round { id, number, covers, awaiting: everyone, sent: now, waiters });
        self.flushing.wanted = false;
        self.flushing.unflushed_bytes = 0;
        self.flushing.unflushed_writes = 0;
        self.send_flush(now, everyone, id);
    }

    fn send_flush(&mut self, now: Duration, to: MemberSet, id: u64) {
        let progress = self.progress_told();
        for member in to {
            self.members[member.0].expect(now, id, Control::Flush);
        }
        self.tell(to, progress);
        self.send(now, to, id, Message::Flush { progress });
    }

    /// Asks a member that has come back for what it has not answered.
    pub(super) fn resend_flush(&mut self, now: Duration, member: MemberIndex) {
        let asked = self.flushing.round.as_mut().filter(|round| round.awaiting.contains(member));
        if let Some(round) = asked {
            round.sent = now;
            let id = round.id;
            self.send_flush(now, MemberSet::of(member), id);
        }
    }

    pub(super) fn flush_answered(&mut self, now: Duration, member: MemberIndex) -> Result<(), MemberFault> {
        let Some(round) = &mut self.flushing.round else {
            return Err(MemberFault::Protocol("it answers a flush that nobody waits for"));
        };
        round.awaiting.remove(member);
        self.settle_flush(now);
        Ok(())
    }

    /// Ends the round if nobody who counts is awaited.
    pub(super) fn settle_flush(&mut self, now: Duration) {
        let required = self.required();
        let ended = |round: &Round| round.awaiting.intersection(required).is_empty();
        if !self.flushing.round.as_ref().is_some_and(ended) {
            return;
        }
        if let Some(round) = self.flushing.round.take() {
            self.log.flushed(round.covers);
            self.flushing.ended = round.number;
            for tag in round.waiters {
                self.complete(tag, Ok(IoReply::Done));
            }
        }
        if self.state == VolumeState::Reconciling {
            self.copied(now);
        }
        self.begin_flush(now);
        self.renew_when_drained(now);
        self.advance_revert(now);
        self.advance_resealing(now);
        self.check_closing(now);
    }

    /// Makes a tail short that nobody adds to.
    pub(super) fn flush_when_idle(&mut self, now: Duration) {
        let idle = now.saturating_sub(self.active_at) >= IDLE_FLUSH;
        if self.state == VolumeState::Open && idle && self.flushing.unflushed_writes > 0 {
            self.flushing.wanted = true;
            self.begin_flush(now);
        }
    }
}
