//! Looking without promising: which members a reader may believe.
//!
//! Nobody tells a reader that a member has left the in-sync ones, or that its copy begins anew, empty. So
//! it reads from a member only while the record *vouches* for it: the record, read after the present
//! session with the member began, calls it in sync. A copy that begins anew, or is deleted, ends the
//! sessions of its readers first (`replica/src/session`), so what was vouched for holds as long as the
//! session does.
//!
//! The record decides too whether there is a snapshot to be looked at: a member that does not have it is
//! only a member that does not have it.

use super::control::Purpose;
use super::member::Control;
use super::planted::PlantedFault as Planted;
use super::{MemberFault, MemberIndex, MemberSet, VolumeCore, VolumeState};
use std::time::Duration;
use trivet_model::{SnapshotId, VolumeRecord};
use trivet_wire::Message;

/// What the record has been asked of, and has said, for the present sessions.
#[derive(Debug, Default)]
pub(super) struct Viewing {
    /// Members that were ready when the record was asked for.
    asked: MemberSet,
    vouched: MemberSet,
}

impl VolumeCore {
    /// Has a session look at what a snapshot shows from now on, or at what the volume is opened as.
    pub(super) fn look(&mut self, now: Duration, member: MemberIndex, at: Option<SnapshotId>) {
        let at = at.or(self.options.snapshot);
        let link = &mut self.members[member.0];
        if link.looks_at != at {
            link.looks_at = at;
            self.ask(now, member, Control::View, Message::View { at });
        }
    }

    /// Those that may be read from as far as this reader knows; a writer knows by itself.
    pub(super) fn believable(&self) -> MemberSet {
        if self.options.read_only && !self.has_planted(Planted::BelieveUnvouched) {
            self.viewing.vouched
        } else {
            MemberSet::ALL
        }
    }

    /// A session with a member has begun, or ended.
    pub(super) fn session_changed(&mut self, member: MemberIndex) {
        self.survey_forgets(member);
        self.viewing.asked.remove(member);
        self.viewing.vouched.remove(member);
    }

    /// The record is being asked for.
    pub(super) fn view_asks_record(&mut self) {
        self.viewing.asked = self.ready_members();
    }

    /// Whether a reader can read from anyone.
    pub(super) fn can_view(&self) -> bool {
        let ready = self.in_sync().intersection(self.ready_members());
        !ready.intersection(self.believable()).is_empty()
    }

    /// Whether a member could be read from if the record vouched for it.
    pub(super) fn needs_vouching(&self) -> bool {
        let ready = self.in_sync().intersection(self.ready_members());
        self.options.read_only && !self.state.is_over() && !ready.without(self.viewing.vouched).is_empty()
    }

    /// A member can be asked: may it be believed?
    pub(super) fn member_viewed(&mut self) {
        self.run_errand(Purpose::Refresh);
    }

    /// The record has answered a reader, and is followed.
    pub(super) fn record_vouches(&mut self, now: Duration, record: &VolumeRecord) {
        if !self.options.read_only || self.state.is_over() {
            return;
        }
        if self.lacks_viewed(record) {
            return self.snapshot_gone(now);
        }
        self.viewing.vouched = self.viewing.vouched.union(std::mem::take(&mut self.viewing.asked));
        if self.state == VolumeState::Connecting && self.can_view() {
            self.opened(now);
        }
        self.note_standing(now);
        if self.needs_vouching() {
            // It has come while the record was on its way.
            self.run_errand(Purpose::Refresh);
        }
    }

    /// Whether the snapshot that is looked at is not recorded.
    pub(super) fn lacks_viewed(&self, record: &VolumeRecord) -> bool {
        let viewed = self.options.snapshot;
        viewed.is_some_and(|viewed| record.snapshots.iter().all(|known| known.id != viewed))
    }

    /// A member says that it does not have the snapshot: whether there is one, the record knows.
    pub(super) fn member_lacks_viewed(&mut self) -> MemberFault {
        self.run_errand(Purpose::Refresh);
        self.options.snapshot.map_or(
            MemberFault::Protocol("it misses a snapshot that nobody looks at"),
            MemberFault::LacksSnapshot,
        )
    }
}
