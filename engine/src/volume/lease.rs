//! Read leases: an engine that newer ones may have passed over must find out before its clients do.
//!
//! Who opens a volume fences its in-sync members, and waits out the lease of an older engine when it
//! could not fence them all. So an engine whose every required member has answered it something sent
//! within [`LEASE`] knows that no newer one serves yet. Without that, whatever succeeds is not told
//! until the members have answered again; if they answer that a newer engine has them, it never is.

use super::hydration::is_made_here;
use super::{Action, MemberIndex, Tag, VolumeCore};
use crate::request::{IoError, IoReply};
use std::time::Duration;

/// How long an answer of every required member is good for.
pub(super) const LEASE: Duration = Duration::from_secs(3);
/// How often each is asked for one.
pub(super) const RENEW: Duration = Duration::from_secs(1);
/// What an opener waits that could not fence every member: clocks may differ by a quarter.
pub(super) const LEASE_OF_OTHERS: Duration = Duration::from_millis(3750);

impl VolumeCore {
    /// Whether no newer engine can be serving.
    pub(super) fn holds_lease(&self) -> bool {
        if self.has_planted(super::planted::PlantedFault::SkipLease) {
            return true;
        }
        self.options.read_only
            || self
                .required()
                .into_iter()
                .all(|member| self.members[member.0].lease.is_some_and(|sent| self.now < sent + LEASE))
    }

    /// Whether a member's lease is old enough to be renewed.
    pub(super) fn is_lease_due(&self, member: MemberIndex) -> bool {
        self.members[member.0].lease.is_none_or(|sent| self.now >= sent + RENEW)
    }

    /// Answers a request, as soon as that is safe.
    pub(super) fn complete(&mut self, tag: Tag, result: Result<IoReply, IoError>) {
        if is_made_here(tag) {
            // Nobody is told: what follows is written, which members refuse to an engine that was passed over.
            return self.own_ended(tag, result);
        }
        self.consumer_ended(tag, &result);
        if result.is_ok() && !self.holds_lease() {
            self.unleased.push((tag, result));
        } else {
            self.actions.push(Action::Complete { tag, result });
        }
    }

    /// Answers what waited for the lease.
    pub(super) fn release_unleased(&mut self) {
        if !self.unleased.is_empty() && self.holds_lease() {
            for (tag, result) in std::mem::take(&mut self.unleased) {
                self.actions.push(Action::Complete { tag, result });
            }
        }
    }

    /// An in-sync member was dropped at this opening that could not be fenced: an older engine may read
    /// from it until its lease is over.
    pub(super) fn wait_for_older_engines(&mut self) {
        self.waits_for_older_engines |= self.was_owned;
    }

    /// Whether an older engine may still be serving.
    pub(super) fn must_wait_for_older_engines(&self, now: Duration) -> bool {
        if self.has_planted(super::planted::PlantedFault::SkipLeaseWait) {
            return false;
        }
        self.waits_for_older_engines && self.first_promise.is_none_or(|first| now < first + LEASE_OF_OTHERS)
    }
}
