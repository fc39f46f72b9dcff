//! Read repair: what one member could not read, it fetches from one that could.
//!
//! A repair is counted and logged once. One that fails is not tried again until the next read of the
//! same blocks, which another member answers meanwhile.

use super::member::{Control, Role};
use super::{MemberIndex, MemberSet, VolumeCore};
use std::collections::VecDeque;
use std::time::Duration;
use trivet_model::BlockRange;
use trivet_wire::Message;

/// Repairs that wait; more bad reads than that are left to scrubbing.
const WAITING_MAX: usize = 1024;

#[derive(Debug)]
struct Repair {
    member: MemberIndex,
    range: BlockRange,
    source: MemberIndex,
}

/// What is to be repaired.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    waiting: VecDeque<Repair>,
}

impl VolumeCore {
    /// `source` has answered what the members of `bad` could not read.
    pub(super) fn repair(&mut self, now: Duration, bad: MemberSet, range: BlockRange, source: MemberIndex) {
        for member in bad {
            let known = |repair: &Repair| repair.member == member && repair.range == range;
            if self.repairs.waiting.len() < WAITING_MAX && !self.repairs.waiting.iter().any(known) {
                let link = &self.members[member.0];
                tracing::warn!(volume = %self.options.volume, member = %link.replica, %range,
                    source = %self.members[source.0].replica, "repairing what could not be read");
                self.repairs.waiting.push_back(Repair { member, range, source });
            }
        }
        self.start_repairs(now);
    }

    /// Starts repairs, one at a time for each member.
    pub(super) fn start_repairs(&mut self, now: Duration) {
        if self.options.read_only {
            return self.repairs.waiting.clear();
        }
        for repair in std::mem::take(&mut self.repairs.waiting) {
            let in_sync = |member: MemberIndex| {
                let link = &self.members[member.0];
                matches!(link.role, Role::InSync) && link.is_ready()
            };
            if !in_sync(repair.member) || !in_sync(repair.source) {
                continue;
            }
            if self.members[repair.member.0].expects(Control::Repair) {
                self.repairs.waiting.push_back(repair);
                continue;
            }
            let source = &self.members[repair.source.0];
            let (source, address) = (source.replica, source.address.clone());
            let message = Message::Repair { range: repair.range, source, address };
            self.ask(now, repair.member, Control::Repair, message);
        }
    }

    pub(super) fn repaired(&mut self, now: Duration, member: MemberIndex, failure: Option<&str>) {
        match failure {
            None => self.counters.repairs += 1,
            Some(detail) => {
                self.counters.repairs_failed += 1;
                let replica = &self.members[member.0].replica;
                tracing::error!(volume = %self.options.volume, member = %replica, detail, "a repair failed");
            }
        }
        self.start_repairs(now);
    }
}
