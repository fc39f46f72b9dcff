//! Members that are slow or hang: their peers' answers decide, never a constant alone.
//!
//! - A member that owes an answer for [`HANG_MAX`] to something that a peer has answered *hangs*, whatever
//!   else it says: it is dropped. When nobody answers, nobody is dropped.
//! - One that takes many times as long as its fastest peer, on the average or in its worst answer of every
//!   second, for [`OUTLIER_MAX`], is an *outlier*: it is dropped, and is not let in again while it is one.
//! - A read that takes too long is asked of another member too; the first answer counts. So it is with a witness
//!   (`witness.rs`).

use super::control::IDLE;
use super::member::Role;
use super::operation::{Operation, Phase};
use super::read::Reading;
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
pub(super) const HEDGE_AFTER: Duration = Duration::from_millis(50);
/// Acknowledged writes that a member being brought back may be behind.
const STRAGGLERS_MAX: usize = 256;

/// How long the worst answer of a span is looked for.
const SPAN: Duration = Duration::from_secs(1);
/// How much above that of its fastest peer makes the worst answer of every span slow.
const WORST_ABOVE: Duration = Duration::from_millis(100);

/// How long a member takes to answer.
///
/// An average over answers hides a member that stops again and again: between two stops come thousands
/// of quick answers. Its worst answer in each span of a second shows it, and is forgotten with the span.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latency {
    /// Moving average; zero before the first answer.
    average: Duration,
    noted: Duration,
    /// The worst answer of the present span, and of the one before.
    worst: [Duration; 2],
    span: Duration,
    /// Since when it has been an outlier.
    slow_since: Option<Duration>,
}

impl Latency {
    pub(super) fn note(&mut self, now: Duration, sample: Duration) {
        // Where answers are few each counts for more, or a hang long ago would be all that is known.
        let weight = if now >= self.noted + SPAN / 2 { 2 } else { 16 };
        self.average = match self.average {
            Duration::ZERO => sample,
            average => (average * (weight - 1) + sample) / weight,
        };
        self.noted = now;
        if now >= self.span + SPAN {
            (self.worst, self.span) = ([Duration::ZERO, self.worst[0]], now);
        }
        self.worst[0] = self.worst[0].max(sample);
    }

    /// Zero before the first answer.
    pub(super) const fn average(&self) -> Duration {
        self.average
    }

    fn recent_worst(&self) -> Duration {
        self.worst[0].max(self.worst[1])
    }

    /// What it takes and what the fastest peer does, when it is slow beside that.
    fn outlier_beside(&self, fastest: Duration, fastest_worst: Duration) -> Option<(Duration, Duration)> {
        let stands_out =
            |mine: Duration, peer: Duration, above| mine > peer * OUTLIER_FACTOR && mine > peer + above;
        if stands_out(self.average, fastest, OUTLIER_ABOVE) {
            return Some((self.average, fastest));
        }
        let worst = self.recent_worst();
        stands_out(worst, fastest_worst, WORST_ABOVE).then_some((worst, fastest_worst))
    }
}

impl VolumeCore {
    /// Looks for members that hang or are slow, and for reads that take too long.
    pub(super) fn check_slowness(&mut self, now: Duration) {
        if !matches!(self.state, VolumeState::Open | VolumeState::Closing) {
            return;
        }
        if !self.options.read_only || self.options.snapshot.is_some() {
            self.hedge_reads(now);
        }
        if self.options.read_only {
            return;
        }
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
        for operation in self.operations.values() {
            if let Phase::Reading(Reading { verifying: Some(verifying), .. }) = &operation.phase
                && let Some((asked, awaiting)) = verifying.owed()
            {
                judge(asked, awaiting);
            }
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
        let peers = || {
            let in_sync = self.in_sync().into_iter();
            in_sync.map(|m| self.members[m.0].latency).filter(|peer| peer.average > Duration::ZERO)
        };
        let fastest = peers().map(|peer| peer.average).min();
        let fastest_worst = peers().map(|peer| peer.recent_worst()).min();
        let (Some(fastest), Some(fastest_worst)) = (fastest, fastest_worst) else { return };
        for index in 0..self.members.len() {
            let link = &mut self.members[index];
            let Some((average, fastest)) = link.latency.outlier_beside(fastest, fastest_worst) else {
                link.latency.slow_since = None;
                if link.is_expelled_for(|fault| matches!(fault, MemberFault::Slow { .. })) {
                    link.expelled = None;
                }
                continue;
            };
            let since = *link.latency.slow_since.get_or_insert(now);
            if now >= since + OUTLIER_MAX && matches!(link.role, Role::InSync) {
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

    const QUICK: Duration = Duration::from_millis(1);

    fn is_outlier(latency: &Latency) -> bool {
        latency.outlier_beside(QUICK, QUICK).is_some()
    }

    #[test]
    fn who_stops_again_and_again_is_slow_however_quick_between() {
        let mut latency = Latency::default();
        for second in 1..10 {
            answers(&mut latency, second, Duration::from_millis(250), 4000);
            assert!(is_outlier(&latency), "{latency:?}");
        }
    }

    #[test]
    fn a_hiccup_is_forgotten_in_two_seconds_even_of_an_idle_member() {
        let mut latency = Latency::default();
        for second in 1..60 {
            answers(&mut latency, second, QUICK, 0);
        }
        answers(&mut latency, 60, Duration::from_millis(200), 0);
        assert!(is_outlier(&latency));
        for second in 61..64 {
            answers(&mut latency, second, QUICK, 0);
        }
        assert!(!is_outlier(&latency), "{latency:?}");
    }

    #[test]
    fn who_was_slow_for_long_is_forgiven_in_time() {
        let mut latency = Latency::default();
        for second in 1..60 {
            answers(&mut latency, second, Duration::from_millis(200), 0);
        }
        assert!(is_outlier(&latency));
        for second in 60..100 {
            answers(&mut latency, second, QUICK, 0);
        }
        assert!(!is_outlier(&latency), "{latency:?}");
    }
}
