//! Taking and deleting snapshots, and making members agree on which there are.
//!
//! ```text
//!  taking:    writes held, a stamp taken as the cut ─► every member keeps it ─► writes go on
//!             all before the cut settled ─► the record
//!  deleting:  the record ─► every member lets it go
//! ```
//!
//! What is on its way when a snapshot is taken was sent before the cut, and each member carries it out
//! before it answers; what comes later waits for the last answer. So the cut is the same on all.
//!
//! The record decides which snapshots there are. A member with another one is told to let it go: the
//! engine that took it did not live to record it, or the member was away when it was deleted. One that
//! comes back is told of those that it lacks before it is sent any write, and copies what they show
//! (`replica/src/pull`).

use super::control::Purpose;
use super::member::Control;
use super::planted::PlantedFault as Planted;
use super::state::Failure;
use super::{MemberFault, MemberIndex, MemberSet, Tag, VolumeCore, VolumeState};
use crate::request::{IoError, IoReply};
use std::time::Duration;
use trivet_model::record::is_volume_name;
use trivet_model::{SNAPSHOTS_MAX, SnapshotId, SnapshotOrder, SnapshotRecord, Stamp, VolumeRecord};
use trivet_wire::frame::SnapshotEntry;
use trivet_wire::{ErrorCode, Message};

/// Most orders that wait for their turn.
const ORDERS_MAX: usize = 64;

/// A snapshot being taken.
#[derive(Debug)]
pub(super) struct Taking {
    /// Whom to tell, if it is somebody else who wants it.
    pub(super) tag: Option<Tag>,
    pub(super) snapshot: SnapshotRecord,
    /// Who has not answered yet; once nobody, it is to be recorded.
    awaiting: MemberSet,
}

/// A snapshot being deleted.
#[derive(Debug)]
pub(super) struct Deleting {
    tag: Tag,
    id: SnapshotId,
}

impl VolumeCore {
    /// Takes a snapshot, whose cut is set here, deletes one, or takes part in one over several volumes.
    /// Answered by an [`Action::Complete`](super::Action::Complete) once it is recorded; done already where
    /// the record says so. What is ordered meanwhile waits for its turn; all waits for members that are away.
    pub fn order_snapshot(&mut self, now: Duration, tag: Tag, order: SnapshotOrder) {
        self.now = now;
        let refused = self.check_changeable().and_then(|()| {
            if self.is_hydrating() {
                Err(IoError::Invalid("the volume is still being imported"))
            } else if self.orders.len() >= ORDERS_MAX {
                Err(IoError::Invalid("too many snapshots wait to be taken and deleted; try again"))
            } else {
                Ok(())
            }
        });
        if let Err(error) = refused {
            return self.complete(tag, Err(error));
        }
        match order {
            SnapshotOrder::Group { group, step } if self.goes_before(group, &step) => {
                self.group_step(now, tag, group, step);
            }
            order => {
                self.orders.push_back((tag, order));
                self.next_order(now);
            }
        }
    }

    /// Begins with what was ordered next, once nothing is under way.
    pub(super) fn next_order(&mut self, now: Duration) {
        while self.state == VolumeState::Open && !self.renewing && !self.has_snapshot_under_way() {
            let Some((tag, order)) = self.orders.pop_front() else { return };
            match order {
                SnapshotOrder::Create(snapshot) => self.take_snapshot(now, Some(tag), snapshot),
                SnapshotOrder::Delete(id) => {
                    self.deleting = Some(Deleting { tag, id });
                    self.run_errand(Purpose::Snapshots);
                }
                SnapshotOrder::Group { group, step } => self.group_step(now, tag, group, step),
            }
        }
    }

    /// As was chosen, and never more than a record holds.
    fn snapshot_limit(&self) -> usize {
        usize::try_from(self.settings.snapshot_limit).unwrap_or(usize::MAX).min(SNAPSHOTS_MAX)
    }

    /// Begins to take a snapshot, unless it is taken already or cannot be.
    pub(super) fn take_snapshot(&mut self, now: Duration, tag: Option<Tag>, mut snapshot: SnapshotRecord) {
        let recorded = self.recorded_snapshots();
        let refused = if recorded.iter().any(|known| known.id == snapshot.id) {
            return self.answer_order(tag, Ok(IoReply::Done));
        } else if !is_volume_name(&snapshot.name) {
            Some("not a name that a snapshot can have")
        } else if recorded.iter().any(|known| known.name == snapshot.name) {
            Some("the volume has a snapshot of this name")
        } else if recorded.len() >= self.snapshot_limit() {
            Some("the volume has as many snapshots as it may have")
        } else {
            None
        };
        if let Some(why) = refused {
            return self.answer_order(tag, Err(IoError::Invalid(why)));
        }
        snapshot.cut = self.log.take_cut();
        let awaiting = self.required().union(self.receiving());
        self.taking = Some(Taking { tag, snapshot, awaiting });
        for member in self.ready_members() {
            self.resend_taking(now, member);
        }
        self.copy_anew_what_diverges(now);
    }

    pub(super) fn answer_order(&mut self, tag: Option<Tag>, result: Result<IoReply, IoError>) {
        match (tag, result) {
            (Some(tag), result) => self.complete(tag, result),
            (None, Ok(_)) => {}
            (None, Err(error)) => {
                tracing::error!(volume = %self.options.volume, %error, "a snapshot cannot be taken");
            }
        }
    }

    /// What waits for its turn is not begun any more.
    pub(super) fn refuse_orders(&mut self) {
        for (tag, _) in std::mem::take(&mut self.orders) {
            self.complete(tag, Err(IoError::Closed));
        }
    }

    pub(super) fn recorded_snapshots(&self) -> &[SnapshotRecord] {
        self.record.as_ref().map_or(&[], |(record, _)| &record.snapshots)
    }

    /// Whether a snapshot shows what was written above this stamp, too.
    pub(super) fn has_cut_above(&self, stamp: Stamp) -> bool {
        let taken = self.taking.as_ref().map(|taking| &taking.snapshot);
        self.recorded_snapshots().iter().chain(taken).any(|snapshot| snapshot.cut > stamp)
    }

    /// Whether writes wait for members to keep a snapshot.
    pub(super) fn is_cutting(&self) -> bool {
        let cutting = self.taking.as_ref().is_some_and(|taking| !taking.awaiting.is_empty());
        (cutting || self.is_held()) && !self.has_planted(Planted::WriteWhileCutting)
    }

    /// Whether a snapshot is being taken or deleted, of this volume or of several.
    #[must_use]
    pub fn has_snapshot_under_way(&self) -> bool {
        self.taking.is_some() || self.deleting.is_some() || self.group.is_some()
    }

    pub(super) fn take_snapshot_tags(&mut self) -> Vec<Tag> {
        self.group = None;
        let mut tags: Vec<Tag> = self.orders.drain(..).map(|(tag, _)| tag).collect();
        tags.extend(self.taking.take().and_then(|taking| taking.tag));
        tags.extend(self.deleting.take().map(|deleting| deleting.tag));
        tags
    }

    /// Whether nothing is missing of a snapshot under way but the record.
    pub(super) fn awaits_snapshot_record(&self) -> bool {
        match &self.group {
            Some(_) => self.group_awaits_record(),
            None => self.deleting.is_some() || self.taken().is_some(),
        }
    }

    /// The snapshot being taken, if every member keeps it and it is the same on all: what was written
    /// before it is settled. (One that had no space for a write keeps the snapshot, too, but without that;
    /// it is in sync no more before the write is settled.)
    pub(super) fn taken(&self) -> Option<&Taking> {
        let early = self.has_planted(Planted::RecordSnapshotEarly);
        let settled = |taking: &&Taking| self.log.is_settled_to(taking.snapshot.cut) || early;
        self.taking.as_ref().filter(|taking| taking.awaiting.is_empty()).filter(settled)
    }

    /// A write is settled, or a member keeps a snapshot: it may be time to record it.
    pub(super) fn record_taken(&mut self) {
        let Some(cut) = self.taken().map(|taking| taking.snapshot.cut) else { return };
        if self.group.is_none() {
            return self.run_errand(Purpose::Snapshots);
        }
        // It is recorded together with the other volumes'.
        let tag = self.taking.as_mut().and_then(|taking| taking.tag.take());
        self.answer_order(tag, Ok(IoReply::Cut(cut)));
    }

    /// Asks a member that has not answered to keep the snapshot.
    pub(super) fn resend_taking(&mut self, now: Duration, member: MemberIndex) {
        let Some(taking) = self.taking.as_ref().filter(|taking| taking.awaiting.contains(member)) else {
            return;
        };
        let (id, cut) = (taking.snapshot.id, taking.snapshot.cut);
        self.ask(now, member, Control::CreateSnapshot { id, cut }, Message::CreateSnapshot { id, cut });
    }

    /// Those who have left need not keep it.
    pub(super) fn settle_taking(&mut self, now: Duration) {
        let taking_part = self.required().union(self.receiving());
        self.await_no_more(now, MemberSet::ALL.without(taking_part));
    }

    /// These need not be waited for.
    fn await_no_more(&mut self, now: Duration, these: MemberSet) {
        let early = self.has_planted(Planted::RecordSnapshotEarly);
        let Some(taking) = self.taking.as_mut().filter(|taking| !taking.awaiting.is_empty()) else { return };
        taking.awaiting = if early { MemberSet::EMPTY } else { taking.awaiting.without(these) };
        if taking.awaiting.is_empty() {
            self.record_taken();
            self.cutting_ended(now);
        }
    }

    /// Writes go on, and flushes that have waited.
    pub(super) fn cutting_ended(&mut self, now: Duration) {
        self.release_held_writes(now);
        self.begin_flush(now);
    }

    /// A member keeps a snapshot.
    pub(super) fn snapshot_kept(&mut self, now: Duration, member: MemberIndex, kept: SnapshotEntry) {
        let known = &mut self.members[member.0].snapshots;
        if let Err(at) = known.binary_search_by_key(&kept.cut, |known| known.cut) {
            known.insert(at, kept);
        }
        match &self.taking {
            Some(taking) if taking.snapshot.id == kept.id => self.await_no_more(now, MemberSet::of(member)),
            // One that was away when it was taken, or one that is wanted no more.
            _ => {
                self.let_go(now, member);
                self.begin_attempts(now);
            }
        }
    }

    /// A member does not take the snapshot: then it is not taken at all.
    pub(super) fn snapshot_refused(
        &mut self,
        now: Duration,
        member: MemberIndex,
        code: ErrorCode,
        detail: String,
    ) -> Result<(), MemberFault> {
        let asked = self.taking.as_ref().is_some_and(|taking| taking.awaiting.contains(member));
        if !asked || code != ErrorCode::BadSnapshot {
            return Err(MemberFault::Refused { code, detail });
        }
        if let Some(taking) = self.taking.take() {
            tracing::warn!(volume = %self.options.volume, %detail, "a member refuses a snapshot");
            self.group = None;
            self.answer_order(taking.tag, Err(IoError::Invalid("a member refuses the snapshot")));
        }
        self.cutting_ended(now);
        self.let_go_everywhere(now);
        self.next_order(now);
        Ok(())
    }

    pub(super) fn snapshot_let_go(&mut self, now: Duration, member: MemberIndex, id: SnapshotId) {
        self.members[member.0].snapshots.retain(|known| known.id != id);
        self.let_go(now, member);
        self.begin_attempts(now);
    }

    /// The record with what is under way; `None` when it says so already.
    pub(super) fn with_snapshots(&self, record: &VolumeRecord) -> Option<VolumeRecord> {
        if let Some(group) = &self.group {
            return self.with_group(group, record);
        }
        let mut wanted = record.clone();
        if let Some(taking) = self.taken()
            && record.snapshots.iter().all(|known| known.id != taking.snapshot.id)
        {
            wanted.snapshots.push(taking.snapshot.clone());
        }
        if let Some(deleting) = &self.deleting {
            wanted.snapshots.retain(|known| known.id != deleting.id);
        }
        (wanted != *record).then_some(wanted)
    }

    /// The record says what was under way.
    pub(super) fn snapshots_recorded(&mut self, now: Duration) {
        if self.is_taken_recorded()
            && let Some(taking) = self.taking.take()
        {
            self.answer_order(taking.tag, Ok(IoReply::Done));
        }
        self.group_recorded(now);
        if let Some(deleting) = self.deleting.take() {
            self.complete(deleting.tag, Ok(IoReply::Done));
        }
        self.let_go_everywhere(now);
        self.begin_attempts(now);
        self.next_order(now);
        self.advance_revert(now);
        self.check_closing(now);
    }

    /// Whether the snapshot under way is in the record.
    pub(super) fn is_taken_recorded(&self) -> bool {
        let is_recorded = |id| self.recorded_snapshots().iter().any(|known| known.id == id);
        self.taking.as_ref().is_some_and(|taking| is_recorded(taking.snapshot.id))
    }

    /// Whether a member that must have all that is recorded lacks a snapshot.
    pub(super) fn lacks_snapshot(&self, known: &[SnapshotEntry]) -> Option<SnapshotId> {
        let lacking = |recorded: &&SnapshotRecord| known.iter().all(|known| known.id != recorded.id);
        self.recorded_snapshots().iter().find(lacking).map(|recorded| recorded.id)
    }

    /// The snapshot that is looked at is not there: deleted, perhaps while it was read.
    pub(super) fn snapshot_gone(&mut self, now: Duration) {
        if matches!(self.state, VolumeState::Connecting | VolumeState::Open) {
            self.hang_up(now);
            self.fail(now, Failure::NoSnapshot);
        }
    }

    /// Tells every member that is ready to let go what the record does not have.
    pub(super) fn let_go_everywhere(&mut self, now: Duration) {
        for member in self.ready_members() {
            self.let_go(now, member);
        }
    }

    /// One at a time: a member that has many is to answer others meanwhile.
    fn let_go(&mut self, now: Duration, member: MemberIndex) {
        let Some((record, _)) = &self.record else { return };
        // One that a revert takes may have been taken before, at another cut, by an engine that did not live to
        // record it.
        let taken = self.taking.as_ref().map(|taking| &taking.snapshot);
        let is_wanted = |known: &SnapshotEntry| {
            let mut wanted = record.snapshots.iter().chain(taken);
            wanted.any(|wanted| (wanted.id, wanted.cut) == (known.id, known.cut))
        };
        let link = &self.members[member.0];
        let surplus = link.snapshots.iter().find(|known| !is_wanted(known)).map(|known| known.id);
        let serving = self.state == VolumeState::Open && !self.options.read_only;
        if let Some(id) = surplus.filter(|_| serving && link.is_ready() && !link.expects_snapshots()) {
            self.ask(now, member, Control::DeleteSnapshot { id }, Message::DeleteSnapshot { id });
        }
    }

    /// Tells a member that is to be brought back of the next snapshot that it lacks, or to let go one that
    /// there is no more. Whether it has just those that are recorded.
    pub(super) fn agrees_on_snapshots(&mut self, now: Duration, member: MemberIndex) -> bool {
        if self.has_planted(Planted::ForgetSnapshotsOfReturning) {
            return true;
        }
        let known = &self.members[member.0].snapshots;
        let next = self
            .recorded_snapshots()
            .iter()
            .find(|recorded| known.iter().all(|known| (known.id, known.cut) != (recorded.id, recorded.cut)));
        let next = next.map(|recorded| (recorded.id, recorded.cut));
        let agrees = next.is_none() && known.len() == self.recorded_snapshots().len();
        self.let_go(now, member);
        if let Some((id, cut)) = next
            && !self.members[member.0].expects_snapshots()
        {
            self.ask(now, member, Control::CreateSnapshot { id, cut }, Message::CreateSnapshot { id, cut });
        }
        agrees
    }
}
