//! Members that are slow or hang: their peers' answers decide, never a constant alone.
//!
//! - A member that owes an answer for [`HANG_MAX`] to something that a peer has answered *hangs*, whatever
//!   else it says: it is dropped. When nobody answers, nobody is dropped.
//! - One that takes many times as long as its fastest peer, on an average over the time spent waiting for
//!   it, for [`OUTLIER_MAX`], is an *outlier*: it is dropped, and is not let in again while it is one.
//! - A read that takes too long is asked of another member too; the first answer counts.

use super::control::IDLE;
use super::member::Role;
use super::operation::{Operation, Phase};
use super::{MemberFault, MemberIndex, MemberSet, OperationId, VolumeCore, VolumeState};
use std::time::Duration;

/// How long an answer may be owed that a peer has given.
const HANG_MAX: Duration = Duration::from_secs(2);
/// How many times its fastest peer's latency makes a member slow,
const OUTLIER_FACTOR: u32 = 8;
/// if it is also this much above that,
const OUTLIER_ABOVE: Duration = Duration::from_millis(20);
/// and for how long it may be.
const OUTLIER_MAX: Duration = Duration::from_secs(5);
/// How long a read may take before another member is asked as well.
const HEDGE_AFTER: Duration = Duration::from_millis(50);
/// Acknowledged writes that a member being brought back may be behind.
const STRAGGLERS_MAX: usize = 256;

/// After so long, what was measured before counts half.
const HALF_LIFE: Duration = Duration::from_secs(1);

/// How long a member takes to answer, averaged over the time that was spent waiting for it: of answers
/// that took long, few weigh more than many quick ones between them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latency {
    /// Sum of the samples, and of their squares, in seconds.
    waited: f64,
    squares: f64,
    halved: Duration,
    /// Since when it has been an outlier.
    slow_since: Option<Duration>,
}

impl Latency {
    pub(super) fn note(&mut self, now: Duration, sample: Duration) {
        while now >= self.halved + HALF_LIFE {
            self.halved = if self.waited < 1e-9 { now } else { self.halved + HALF_LIFE };
            (self.waited, self.squares) = (self.waited / 2.0, self.squares / 2.0);
        }
        let seconds = sample.as_secs_f64();
        self.waited += seconds;
        self.squares += seconds * seconds;
    }

    /// Zero before the first answer.
    pub(super) fn average(&self) -> Duration {
        if self.waited > 0.0 { Duration::from_secs_f64(self.squares / self.waited) } else { Duration::ZERO }
    }

    /// Whether it is slow beside its fastest peer.
    fn is_outlier(&self, fastest: Duration) -> bool {
        let average = self.average();
        average > fastest * OUTLIER_FACTOR && average > fastest + OUTLIER_ABOVE
    }
}

impl VolumeCore {
    /// Looks for members that hang or are slow, and for reads that take too long.
    pub(super) fn check_slowness(&mut self, now: Duration) {
        if !matches!(self.state, VolumeState::Open | VolumeState::Closing) || self.options.read_only {
            return;
        }
        self.hedge_reads(now);
        let hanging = self.hanging(now);
        for member in self.in_sync().without(hanging) {
            let link = &mut self.members[member.0];
            if link.is_expelled_for(|fault| matches!(fault, MemberFault::Hangs(_))) {
                link.expelled = None;
            }
        }
        for member in hanging {
            self.slow_member(now, member, MemberFault::Hangs(HANG_MAX));
        }
        self.look_for_outliers(now);
        for member in self.receiving().without(self.required()) {
            let behind = self.stragglers.values().filter(|(_, late)| late.contains(member)).count();
            if behind > STRAGGLERS_MAX {
                self.end_attempt(now, member, "it cannot keep up with what is written");
            }
        }
    }

    fn slow_member(&mut self, now: Duration, member: MemberIndex, fault: MemberFault) {
        // Of several the first leaves; the next may follow when that is on record, and never the last.
        let others = self.in_sync().intersection(self.ready_members()).without(MemberSet::of(member));
        let one_stays = others.into_iter().any(|other| self.members[other.0].expelled.is_none());
        let link = &mut self.members[member.0];
        match link.role {
            Role::InSync if link.expelled.is_none() && one_stays => {
                tracing::warn!(volume = %self.options.volume, member = %link.replica, %fault, "member is slow");
                link.expel(now, fault);
                self.review_members(now);
            }
            Role::Syncing { .. } => self.end_attempt(now, member, &fault.to_string()),
            Role::InSync | Role::Stale { .. } | Role::Removed => {}
        }
    }

    /// Those who have owed an answer for too long that a peer has given.
    fn hanging(&self, now: Duration) -> MemberSet {
        let mut hanging = MemberSet::EMPTY;
        let required = self.required();
        let mut judge = |sent: Duration, awaiting: MemberSet| {
            let late = awaiting.intersection(required);
            if now >= sent + HANG_MAX && late != required {
                hanging = hanging.union(late);
            }
        };
        for id in self.log.unsettled() {
            if let Some((sent, awaiting)) = self.write_awaits(id) {
                judge(sent, awaiting);
            }
        }
        if let Some((sent, awaiting)) = self.flushing.awaits() {
            judge(sent, awaiting);
        }
        let owes = |member: &MemberIndex| {
            let asked = self.members[member.0].unwanted.first().map(|&(_, asked)| asked);
            asked.is_some_and(|asked| now >= asked + HANG_MAX)
        };
        for member in required.into_iter().filter(owes) {
            hanging.insert(member);
        }
        hanging.intersection(self.ready_members())
    }

    fn look_for_outliers(&mut self, now: Duration) {
        let known = |member: &MemberIndex| self.members[member.0].latency.average() > Duration::ZERO;
        let fastest =
            self.in_sync().into_iter().filter(known).map(|m| self.members[m.0].latency.average()).min();
        let Some(fastest) = fastest else { return };
        for index in 0..self.members.len() {
            let latency = &mut self.members[index].latency;
            if !latency.is_outlier(fastest) {
                latency.slow_since = None;
                let link = &mut self.members[index];
                if link.is_expelled_for(|fault| matches!(fault, MemberFault::Slow { .. })) {
                    link.expelled = None;
                }
                continue;
            }
            let since = *latency.slow_since.get_or_insert(now);
            let average = latency.average();
            if now >= since + OUTLIER_MAX && matches!(self.members[index].role, Role::InSync) {
                self.slow_member(now, MemberIndex(index), MemberFault::Slow { average, fastest });
            }
        }
    }

    /// Whether a member is too slow to be counted on.
    pub(super) fn is_slow(&self, member: MemberIndex) -> bool {
        self.members[member.0].latency.slow_since.is_some()
    }

    /// Asks another member too where a read takes long.
    fn hedge_reads(&mut self, now: Duration) {
        let late = |operation: &Operation| match &operation.phase {
            Phase::Reading(reading) => {
                reading.hedge.is_none() && reading.asked.is_some_and(|asked| now >= asked + HEDGE_AFTER)
            }
            Phase::Blocked(_) | Phase::Writing(_) | Phase::Querying(_) | Phase::Scrubbing => false,
        };
        let mut late: Vec<OperationId> =
            self.operations.iter().filter(|(_, operation)| late(operation)).map(|(&id, _)| id).collect();
        late.sort_unstable();
        for id in late {
            self.hedge_read(now, id);
        }
    }

    /// How soon slowness must be looked for again.
    pub(super) fn slowness_within(&self) -> Option<Duration> {
        (!self.operations.is_empty() || !self.stragglers.is_empty()).then_some(IDLE / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second of answers: one that took `long`, and quick ones between.
    fn answers(latency: &mut Latency, second: u64, long: Duration, quick: u32) {
        let now = Duration::from_secs(second);
        latency.note(now, long);
        for _ in 0..quick {
            latency.note(now, Duration::from_millis(1));
        }
    }

    #[test]
    fn who_stops_again_and_again_is_slow_however_quick_between() {
        let mut latency = Latency::default();
        for second in 0..10 {
            answers(&mut latency, second, Duration::from_millis(250), 400);
            assert!(latency.is_outlier(Duration::from_millis(1)), "{:?}", latency.average());
        }
    }

    #[test]
    fn who_was_slow_is_forgiven_in_time() {
        let mut latency = Latency::default();
        for second in 0..10 {
            answers(&mut latency, second, Duration::from_millis(200), 0);
        }
        for second in 10..30 {
            answers(&mut latency, second, Duration::from_millis(1), 0);
        }
        assert!(!latency.is_outlier(Duration::from_millis(1)), "{:?}", latency.average());
    }

    #[test]
    fn a_hiccup_is_forgotten_at_once_among_quick_answers() {
        let mut latency = Latency::default();
        answers(&mut latency, 5, Duration::from_millis(100), 2000);
        assert!(!latency.is_outlier(Duration::from_millis(1)), "{:?}", latency.average());
    }
}
