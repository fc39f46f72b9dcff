//! Who is in sync, as the record says; how members leave, join, come and go.
//!
//! `docs/protocol.md` has the rules. A member's role changes only in [`VolumeCore::adopt`], which
//! follows the record; the record changes only by a swap that [`VolumeCore::wanted_record`] has
//! computed from a fresh reading of it. A swap whose answer was lost is thus found done, or done again.
//!
//! Invariants:
//! - a write is acknowledged, and a flush ended, only when no *required* member is awaited;
//! - a member leaves the in-sync ones only when the record says so, and never as the last of them;
//! - one whose promotion is on its way to the record is required until the record is known.

use super::control::Purpose;
use super::member::{MemberLink, MemberState, Role};
use super::member_set::MEMBERS_MAX;
use super::planted::PlantedFault as Planted;
use super::{Action, MemberFault, MemberIndex, MemberSet, VolumeCore, VolumeState};
use std::time::Duration;
use trivet_model::{Epoch, MemberState as Recorded, Stamp, VolumeRecord};

/// How long a member that was in sync may be away before it is dropped.
const AWAY_MAX: Duration = Duration::from_secs(1);
/// How long members may take to answer an opening once one of them has.
const OPEN_MAX: Duration = Duration::from_secs(2);
/// The same while all who have answered lost power before they had written everything: one that is away
/// may have what they lack.
const OPEN_UNSURE_MAX: Duration = Duration::from_secs(30);

impl VolumeCore {
    /// Those that the record calls in sync.
    pub(super) fn in_sync(&self) -> MemberSet {
        self.members_that(|member| matches!(member.role, Role::InSync))
    }

    /// Those whose acknowledgement a write needs.
    pub(super) fn required(&self) -> MemberSet {
        let hasty = self.has_planted(Planted::DropBeforeSwap);
        self.members_that(|member| match &member.role {
            Role::InSync => !hasty || member.is_ready(),
            Role::Syncing { attempt: Some(attempt), .. } => attempt.is_joined(),
            Role::Syncing { .. } | Role::Stale { .. } | Role::Removed => false,
        })
    }

    /// Those that get every write, and are connected.
    pub(super) fn receiving(&self) -> MemberSet {
        self.members_that(|member| {
            let takes_part = match &member.role {
                Role::InSync => true,
                Role::Syncing { attempt, .. } => attempt.is_some(),
                Role::Stale { .. } | Role::Removed => false,
            };
            takes_part && member.is_ready()
        })
    }

    /// Whether everyone who must acknowledge is there.
    pub(super) fn required_are_ready(&self) -> bool {
        self.required().without(self.ready_members()).is_empty()
    }

    /// Whether a member whose acknowledgement is needed is away, or is to leave.
    pub(super) fn any_at_fault(&self) -> bool {
        self.required().into_iter().any(|member| self.members[member.0].is_at_fault())
    }

    /// In-sync members that should be dropped, and may be: another remains that is ready and stays.
    fn to_drop(&self, now: Duration) -> MemberSet {
        let mut drop = MemberSet::EMPTY;
        let connecting = self.state == VolumeState::Connecting;
        let mut answered = self.in_sync().intersection(self.ready_members()).into_iter();
        let patience =
            if answered.any(|member| self.members[member.0].is_whole()) { OPEN_MAX } else { OPEN_UNSURE_MAX };
        for member in self.in_sync() {
            let link = &self.members[member.0];
            let overdue = match (link.away_since, self.first_promise) {
                (None, _) => false,
                (Some(since), Some(first)) if connecting => {
                    now >= first + patience && now >= since + AWAY_MAX
                }
                (Some(_), None) if connecting => false,
                (Some(since), _) => now >= since + AWAY_MAX,
            };
            if overdue || link.expelled.is_some() {
                drop.insert(member);
            }
        }
        let ready = self.in_sync().intersection(self.ready_members());
        if ready.without(drop).is_empty() {
            // When each has refused what another took, one stays all the same: what it refused fails.
            let full = |member: &MemberIndex| {
                self.members[member.0].is_expelled_for(|fault| *fault == MemberFault::NoSpace)
            };
            let Some(spared) = ready.into_iter().find(full) else { return MemberSet::EMPTY };
            drop.remove(spared);
        }
        // Whoever stays must have answered something asked since: a loss of power may have hit it too,
        // and nobody has noticed.
        let heard = ready.without(drop).into_iter().filter_map(|member| self.members[member.0].lease).max();
        let hasty = connecting || self.has_planted(Planted::DropUnwitnessed);
        let unsure = |member: &MemberIndex| {
            let due = self.drop_due(*member).filter(|_| !hasty);
            due.is_some_and(|due| heard.is_none_or(|heard| heard < due))
        };
        for member in drop.into_iter().filter(unsure) {
            drop.remove(member);
        }
        drop
    }

    /// Since when a member is to be dropped: who stays must be there later than that.
    fn drop_due(&self, member: MemberIndex) -> Option<Duration> {
        let link = &self.members[member.0];
        let away = link.away_since.map(|since| since + AWAY_MAX);
        let expelled = link.expelled.as_ref().map(|expulsion| expulsion.since);
        // What was heard before the authority failed may be long ago when it is back.
        away.max(expelled).max(self.authority_failed_at.filter(|_| link.is_at_fault()))
    }

    /// Whether a member is about to be dropped, and nobody has been asked since who would stay.
    pub(super) fn needs_witness(&self, now: Duration, witness: MemberIndex) -> bool {
        let lease = self.members[witness.0].lease;
        let due = self.in_sync().without(MemberSet::of(witness)).into_iter().filter_map(|m| self.drop_due(m));
        due.max().is_some_and(|due| now >= due && lease.is_none_or(|sent| sent < due))
    }

    /// Looks whether the record must change, and sees to it.
    pub(super) fn review_members(&mut self, now: Duration) {
        let may = !self.options.read_only
            && matches!(
                self.state,
                VolumeState::Connecting | VolumeState::Reconciling | VolumeState::Open | VolumeState::Closing
            );
        if !may {
            return;
        }
        self.begin_attempts(now);
        let promotes = self.members.iter().any(MemberLink::is_to_be_promoted);
        let waited = self.state == VolumeState::Open
            && self.record.as_ref().is_some_and(|(record, _)| record.wait_owed);
        if promotes || waited || !self.to_drop(now).is_empty() || self.wants_back(now) || self.must_lower() {
            self.run_errand(Purpose::Members);
        }
    }

    /// A member that is stale, connected, and due to be brought back.
    fn wants_back(&self, now: Duration) -> bool {
        self.state == VolumeState::Open && self.members.iter().any(|member| may_return(member, now))
    }

    /// What every ready in-sync member surely holds: what one that is dropped now is compared to.
    fn surely_held(&self) -> Stamp {
        let remaining = self.in_sync().intersection(self.ready_members());
        let members = || remaining.into_iter().map(|member| &self.members[member.0]);
        let committed = if self.state == VolumeState::Connecting {
            members().map(|member| member.known.committed).max().unwrap_or_default()
        } else {
            self.log.progress().committed
        };
        members().map(|member| member.intact).chain([committed]).min().unwrap_or_default()
    }

    /// Whether a stale member's `since` promises more than the in-sync members still hold: after they
    /// lost power. Only at an opening can that come to light.
    pub(super) fn must_lower(&self) -> bool {
        let bound = || {
            let remaining = self.in_sync().intersection(self.ready_members());
            let intact = remaining.into_iter().map(|member| self.members[member.0].intact);
            intact.min().unwrap_or_default()
        };
        self.state == VolumeState::Connecting
            && self.members.iter().any(|member| match member.role {
                Role::Stale { since } | Role::Syncing { since, .. } => since > bound(),
                Role::InSync | Role::Removed => false,
            })
    }

    /// The record as it should be, from the record as it is; `None` when it is right.
    pub(super) fn wanted_record(&self, now: Duration, record: &VolumeRecord) -> Option<VolumeRecord> {
        let mut wanted = record.clone();
        let drop = self.to_drop(now);
        let held = self.surely_held();
        let lower = self.must_lower();
        for recorded in &mut wanted.members {
            let found = self.members.iter().position(|link| link.replica == recorded.replica);
            let Some(index) = found else { continue };
            let link = &self.members[index];
            recorded.state = match (recorded.state, &link.role) {
                (Recorded::InSync, _) if drop.contains(MemberIndex(index)) => Recorded::Stale { since: held },
                (Recorded::Stale { since }, _) if lower => Recorded::Stale { since: since.min(held) },
                (Recorded::Syncing { since }, _) if lower => Recorded::Syncing { since: since.min(held) },
                (Recorded::Stale { since }, _)
                    if self.state == VolumeState::Open && may_return(link, now) =>
                {
                    // What it lost before it was dropped. Asked later, it would not know any more: the
                    // writes that it gets from now on make it forget that it ever lost power.
                    Recorded::Syncing { since: since.min(link.surely_has()) }
                }
                (Recorded::Syncing { .. }, _) if link.is_to_be_promoted() => Recorded::InSync,
                (state, _) => state,
            };
        }
        let unfenced = |member: MemberIndex| !self.members[member.0].promised;
        let serving = matches!(self.state, VolumeState::Open | VolumeState::Closing);
        let owes = self.was_owned && drop.into_iter().any(unfenced);
        let forgets = self.has_planted(Planted::ForgetWait);
        wanted.wait_owed = !serving && (record.wait_owed || owes) && !forgets;
        if wanted.members != record.members {
            wanted.epoch = Epoch(record.epoch.0 + 1);
        }
        (wanted != *record).then_some(wanted)
    }

    /// Follows the record. Those who come are in before anyone leaves: a reader may have missed the records
    /// in between, and must not find itself without members where there was always one.
    pub(super) fn adopt(&mut self, now: Duration, record: &VolumeRecord) {
        self.epoch = record.epoch;
        self.follow_settings(now, &record.settings);
        for recorded in &record.members {
            if self.members.iter().all(|link| link.replica != recorded.replica) {
                self.add_member(now, recorded);
            }
        }
        for in_sync in [true, false] {
            for index in 0..self.members.len() {
                let replica = self.members[index].replica;
                let recorded = record.members.iter().find(|recorded| recorded.replica == replica);
                if recorded.is_some_and(|recorded| recorded.state == Recorded::InSync) == in_sync {
                    self.follow(now, MemberIndex(index), recorded);
                }
            }
        }
        if let (Some(last), 1) = (self.in_sync().into_iter().next(), self.in_sync().into_iter().count()) {
            self.members[last.0].expelled = None;
        }
        self.note_standing(now);
    }

    fn follow(&mut self, now: Duration, member: MemberIndex, recorded: Option<&trivet_model::Member>) {
        match recorded {
            Some(recorded) => {
                self.follow_address(member, &recorded.address);
                self.follow_role(now, member, recorded.state);
            }
            None => self.removed(now, member),
        }
    }

    /// A member that the record has and we have not.
    pub(super) fn add_member(&mut self, now: Duration, recorded: &trivet_model::Member) {
        if self.members.len() >= MEMBERS_MAX {
            tracing::warn!(volume = %self.options.volume, member = %recorded.replica,
                "too many members have come and gone in this opening: attach the volume again to use it");
            return;
        }
        let role = match recorded.state {
            Recorded::InSync => Role::InSync,
            Recorded::Stale { since } => Role::Stale { since },
            Recorded::Syncing { since } => Role::Syncing { since, attempt: None },
        };
        let member = MemberIndex(self.members.len());
        self.members.push(MemberLink::new(now, recorded.replica, recorded.address.clone(), role));
        self.actions.push(Action::Connect { member, address: recorded.address.clone() });
    }

    fn follow_address(&mut self, member: MemberIndex, address: &str) {
        let link = &mut self.members[member.0];
        // One that was removed and is added again was forgotten meanwhile.
        let again = matches!(link.role, Role::Removed);
        if again {
            link.expelled = None;
        }
        if link.address != address || again {
            address.clone_into(&mut link.address);
            self.actions.push(Action::Connect { member, address: address.to_owned() });
        }
    }

    fn follow_role(&mut self, now: Duration, member: MemberIndex, recorded: Recorded) {
        let link = &mut self.members[member.0];
        match (recorded, &mut link.role) {
            (Recorded::InSync, Role::InSync) => {}
            (Recorded::InSync, _) => {
                tracing::info!(volume = %self.options.volume, member = %link.replica, "member in sync");
                (link.role, link.sync_failures) = (Role::InSync, 0);
                // Of what it was copied it has acknowledged nothing by itself, and must have it all the same.
                link.held = link.held.max(self.log.progress().committed);
                self.members_changed(now);
            }
            (Recorded::Stale { since } | Recorded::Syncing { since }, Role::InSync) => {
                self.left(now, member, since);
            }
            (Recorded::Stale { since }, Role::Stale { since: known }) => *known = since,
            (Recorded::Syncing { since }, Role::Syncing { since: known, .. }) => {
                *known = since;
                self.end_promotion(now, member);
            }
            (Recorded::Syncing { since }, _) => {
                link.role = Role::Syncing { since, attempt: None };
                self.begin_attempts(now);
            }
            (Recorded::Stale { since }, _) => {
                self.end_attempt(now, member, "the record calls it stale");
                self.members[member.0].role = Role::Stale { since };
            }
        }
    }

    /// A member is in sync no more: go on without it.
    fn left(&mut self, now: Duration, member: MemberIndex, since: Stamp) {
        let link = &mut self.members[member.0];
        let why = link.expelled.take().map(|expulsion| expulsion.fault).or_else(|| link.fault.clone());
        let why = why.map_or_else(|| "by the record".to_owned(), |fault| fault.to_string());
        tracing::warn!(volume = %self.options.volume, member = %link.replica, %since, why, "member dropped");
        link.role = Role::Stale { since };
        link.sync_after = now;
        let unfenced = !link.promised;
        if self.state != VolumeState::Open && unfenced {
            self.wait_for_older_engines();
        }
        self.counters.members_dropped += 1;
        self.forget_in_writes(member);
        // What it has been sent in this session counts no more; it begins again with a new one.
        if self.members[member.0].is_connected() {
            self.fault(now, member, MemberFault::Dropped(why));
        }
        if self.state == VolumeState::Reconciling {
            // It took part in the comparison.
            self.connect_all_again(now);
        }
        self.members_changed(now);
    }

    fn removed(&mut self, now: Duration, member: MemberIndex) {
        if matches!(self.members[member.0].role, Role::Removed) {
            return;
        }
        self.end_attempt(now, member, "it has been removed");
        self.forget_in_writes(member);
        let link = &mut self.members[member.0];
        tracing::info!(volume = %self.options.volume, member = %link.replica, "member removed");
        link.role = Role::Removed;
        if link.is_connected() {
            self.fault(now, member, MemberFault::Dropped("removed".to_owned()));
        }
        self.actions.push(Action::Forget { member });
        self.members_changed(now);
    }

    /// Someone is required no more, or ready again: settles what waited only for that.
    pub(super) fn members_changed(&mut self, now: Duration) {
        match self.state {
            VolumeState::Connecting => self.check_connected(now),
            VolumeState::Open | VolumeState::Closing => {
                self.settle_writes(now);
                self.settle_flush(now);
                self.settle_grow();
                self.settle_taking(now);
                self.release_held_writes(now);
                self.retry_reads(now);
                self.begin_flush(now);
                self.renew_when_drained(now);
                // Late answers that are waited for no more have made room in the window.
                self.pump(now);
                self.check_closing(now);
            }
            _ => {}
        }
    }

    /// All in-sync members have promised, or those that have not are dropped: go on opening.
    pub(super) fn check_connected(&mut self, now: Duration) {
        if self.state != VolumeState::Connecting || self.options.read_only {
            return;
        }
        self.expel_those_who_lost(now);
        let in_sync = self.in_sync();
        let ready = in_sync.without(self.ready_members()).is_empty();
        if ready && self.to_drop(now).is_empty() && !self.must_lower() {
            self.begin_reconcile(now);
        } else {
            self.review_members(now);
        }
    }

    /// A member below what others know to be stable on all has lost data, by an older copy of its disk
    /// for example. It is compared like one that was away.
    fn expel_those_who_lost(&mut self, now: Duration) {
        let ready = self.in_sync().intersection(self.ready_members());
        let stable = ready.into_iter().map(|member| self.members[member.0].known.stable).max();
        let stable = stable.unwrap_or_default();
        if !ready.into_iter().any(|member| self.members[member.0].last >= stable) {
            return;
        }
        for member in ready {
            let link = &mut self.members[member.0];
            if link.last < stable && link.expelled.is_none() {
                let fault = MemberFault::Lost { acknowledged: stable, intact: link.last };
                tracing::error!(volume = %self.options.volume, member = %link.replica, %fault, "member lost data");
                link.expel(now, fault);
            }
        }
        self.note_standing(now);
    }
}

fn may_return(member: &MemberLink, now: Duration) -> bool {
    matches!(member.role, Role::Stale { .. })
        && member.state == MemberState::Ready
        && now >= member.sync_after
}
