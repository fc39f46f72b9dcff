//! Read repair: what one member could not read, it fetches from one that could.
//!
//! A repair is counted once; they are logged once a second at most, since a region that rots is found by many reads
//! at once. The servers keep repairs to the pace of copying (`replica/src/pull/repair.rs`). One that fails is not tried again until the next read of the
//! same blocks, which another member answers meanwhile.

use super::member::{Control, Role};
use super::{MemberIndex, MemberSet, VolumeCore};
use std::collections::VecDeque;
use std::time::Duration;
use trivet_model::BlockRange;
use trivet_wire::Message;

/// Repairs that wait; more bad reads than that are left to scrubbing.
const WAITING_MAX: usize = 1024;
/// How often it is said that there are any.
const SAID_EVERY: Duration = Duration::from_secs(1);

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
    /// At most one for each member; of those whose connections broke meanwhile, too.
    running: Vec<Repair>,
    /// Found since that was said.
    unsaid: u64,
    say_at: Duration,
}

impl VolumeCore {
    /// `source` has answered what the members of `bad` could not read.
    pub(super) fn repair(&mut self, now: Duration, bad: MemberSet, range: BlockRange, source: MemberIndex) {
        for member in bad {
            let known = |repair: &Repair| repair.member == member && repair.range == range;
            if self.repairs.waiting.len() < WAITING_MAX && !self.repairs.waiting.iter().any(known) {
                self.repairs.waiting.push_back(Repair { member, range, source });
                self.repairs.unsaid += 1;
                if now >= self.repairs.say_at {
                    self.repairs.say_at = now + SAID_EVERY;
                    tracing::warn!(volume = %self.options.volume, member = %self.members[member.0].replica,
                        %range, source = %self.members[source.0].replica, found = self.repairs.unsaid,
                        "repairing what could not be read");
                    self.repairs.unsaid = 0;
                }
            }
        }
        self.start_repairs(now);
    }

    /// Starts repairs, one at a time for each member.
    pub(super) fn start_repairs(&mut self, now: Duration) {
        if self.options.read_only {
            return self.repairs.waiting.clear();
        }
        self.repairs.running.retain(|repair| self.members[repair.member.0].expects(Control::Repair));
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
            self.repairs.running.push(repair);
        }
    }

    /// Whether a repair waits or is under way.
    pub(super) fn has_repair(&self, member: MemberIndex, range: BlockRange) -> bool {
        let Repairs { waiting, running, .. } = &self.repairs;
        let running = running.iter().filter(|repair| self.members[repair.member.0].expects(Control::Repair));
        waiting.iter().chain(running).any(|repair| repair.member == member && repair.range == range)
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
        let ended = self.repairs.running.iter().position(|repair| repair.member == member);
        let ended = ended.map(|at| self.repairs.running.swap_remove(at));
        self.start_repairs(now);
        if let Some(ended) = ended {
            self.scrub_repair_ended(now, member, ended.range, failure.is_none());
        }
    }
}
