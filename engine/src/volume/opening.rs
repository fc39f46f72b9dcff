//! Opening: claim the record, open every in-sync member, make them alike.
//!
//! The swap of `generation + 1` into the record comes first, and each member's durable promise of
//! that generation before anything is read from it: from then on no older engine can acknowledge a
//! write or serve a read.

use super::control::{Purpose, REFRESH};
use super::member::{Control, MemberLink, MemberState, Role};
use super::member_set::MEMBERS_MAX;
use super::planted::PlantedFault as Planted;
use super::seal::Ciphers;
use super::state::Failure;
use super::{Action, MemberFault, MemberIndex, VolumeCore, VolumeState};
use crate::request::IoError;
use std::time::Duration;
use trivet_crypto::DataKey;
use trivet_model::{AuthorityError, MemberState as Recorded, Revision, VolumeRecord};
use trivet_wire::frame::PROTOCOL_VERSION;
use trivet_wire::{ErrorCode, Hello, HelloReply, Message, OpenReply};

/// How often a claim that others keep disturbing is tried.
const CLAIM_ATTEMPTS_MAX: u32 = 100;

impl VolumeCore {
    /// The record has been read to be claimed.
    pub(super) fn claim(&mut self, now: Duration, result: Result<(VolumeRecord, Revision), AuthorityError>) {
        let (mut record, revision) = match result {
            Ok(read) => read,
            Err(AuthorityError::Unreachable(cause)) => {
                self.authority_trouble = Some(cause);
                self.note_standing(now);
                return self.read_record_again(now, false);
            }
            Err(error) => return self.fail(now, error.into()),
        };
        self.authority_trouble = None;
        if let Err(failure) = self.check_key(&record) {
            return self.fail(now, failure);
        }
        let ciphers = self.options.key.as_ref().map(|key| Ciphers::new(key, &record)).transpose();
        self.ciphers = match ciphers {
            Ok(ciphers) => ciphers,
            Err(older) => return self.fail(now, Failure::OlderKey(older)),
        };
        if self.generation.get() > 0 && record.generation > self.generation && !self.options.read_only {
            // While stamps were renewed, someone else opened the volume.
            return self.fenced(now);
        }
        if self.options.read_only && record.import.is_some() {
            return self.fail(now, Failure::Importing);
        }
        if self.options.read_only {
            if self.lacks_viewed(&record) {
                return self.fail(now, Failure::NoSnapshot);
            }
            if record.reverting.is_some() && self.options.snapshot.is_none() {
                return self.fail(now, Failure::Reverting);
            }
            self.errand = None;
            self.record = Some((record.clone(), revision));
            return self.claimed(now, record);
        }
        if record.is_image {
            return self.fail(now, Failure::IsImage);
        }
        if self.errand.as_ref().is_some_and(|errand| errand.attempts >= CLAIM_ATTEMPTS_MAX) {
            return self.fail(now, Failure::Contended);
        }
        let Some(generation) = record.generation.next() else {
            return self.fail(now, Failure::GenerationsUsedUp);
        };
        if self.generation.get() == 0 {
            self.was_owned = !record.owner.is_empty();
        }
        record.generation = generation;
        record.owner.clone_from(&self.options.owner);
        self.swap(now, revision, record);
    }

    /// Whether the key that was given is the volume's: known before anything is claimed.
    fn check_key(&self, record: &VolumeRecord) -> Result<(), Failure> {
        let given = self.options.key.as_ref().map(DataKey::id);
        match (record.key, given) {
            (Some(_), None) => Err(Failure::NoKey),
            (None, Some(_)) => Err(Failure::NotEncrypted),
            (Some(expected), Some(found)) if expected != found => Err(Failure::WrongKey { expected, found }),
            _ => Ok(()),
        }
    }

    /// The record is ours.
    pub(super) fn claimed(&mut self, now: Duration, record: VolumeRecord) {
        if !record.members.iter().any(|member| member.state == Recorded::InSync) {
            return self.fail(now, Failure::NoMember);
        }
        if record.members.len() > MEMBERS_MAX {
            return self.fail(now, Failure::TooManyMembers(record.members.len()));
        }
        self.generation = record.generation;
        self.epoch = record.epoch;
        self.blocks = record.blocks;
        self.waits_for_older_engines |= record.wait_owed;
        self.first_promise = None;
        self.undecided = None;
        for member in &mut self.members {
            (member.promised, member.expelled) = (false, None);
        }
        self.transition(now, VolumeState::Connecting);
        self.adopt(now, &record);
        for member in self.members_that(|member| member.state == MemberState::Opening) {
            self.open_member(now, member);
        }
        self.refresh_at = now + REFRESH;
        self.note_standing(now);
    }

    pub(super) fn fail(&mut self, now: Duration, failure: Failure) {
        self.errand = None;
        self.failure = Some(failure);
        self.transition(now, VolumeState::Failed);
        self.answer_all(&IoError::Closed);
    }

    /// The connection stands: say hello.
    pub(super) fn greet(&mut self, now: Duration, member: MemberIndex) {
        self.member_transition(now, member, MemberState::Greeting);
        let hello = Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION };
        self.ask(now, member, Control::Hello, Message::Hello(hello));
    }

    pub(super) fn greeted(
        &mut self,
        now: Duration,
        member: MemberIndex,
        reply: &HelloReply,
    ) -> Result<(), MemberFault> {
        if reply.pool != self.members[member.0].replica {
            return Err(MemberFault::WrongPool { found: reply.pool });
        }
        if reply.version != PROTOCOL_VERSION {
            return Err(MemberFault::Protocol("it chose a version that was not offered"));
        }
        self.member_transition(now, member, MemberState::Opening);
        if self.state != VolumeState::Claiming {
            self.open_member(now, member);
        }
        Ok(())
    }

    /// Asks for the promise of our generation, which must have been claimed before.
    fn open_member(&mut self, now: Duration, member: MemberIndex) {
        let (volume, session) = (self.options.volume, self.options.session);
        let open = Message::Open { volume, writable: !self.options.read_only, session };
        self.ask(now, member, Control::Open, open);
        self.members[member.0].looks_at = None;
        // Answered after the opening and before all that is read.
        self.look(now, member, None);
    }

    /// A member has promised our generation.
    pub(super) fn member_opened(
        &mut self,
        now: Duration,
        member: MemberIndex,
        reply: &OpenReply,
    ) -> Result<(), MemberFault> {
        let serving = matches!(self.state, VolumeState::Open | VolumeState::Closing);
        let trusting = self.has_planted(Planted::TrustReturningMember);
        let link = &mut self.members[member.0];
        let in_sync = matches!(link.role, Role::InSync);
        // The record may call it in sync by now: what it acknowledged counts.
        let counts = in_sync || link.is_complete();
        if reply.blocks < self.blocks && in_sync {
            return Err(MemberFault::TooSmall { expected: self.blocks, found: reply.blocks });
        }
        if counts
            && !self.options.read_only
            && let Some(lacking) = self.lacks_snapshot(&reply.snapshots)
        {
            return Err(MemberFault::LacksSnapshot(lacking));
        }
        let link = &mut self.members[member.0];
        link.snapshots.clone_from(&reply.snapshots);
        link.promised = true;
        (link.blocks, link.last) = (reply.blocks, reply.last);
        // On the same boot nothing that the device accepted is lost, whatever `intact` still says of an
        // earlier loss.
        let same_boot = link.boot == Some(reply.boot);
        let have = if same_boot { reply.last } else { reply.last.min(reply.intact) };
        if serving && counts && !self.options.read_only && have < link.held && !trusting {
            let fault = MemberFault::Lost { acknowledged: link.held, intact: have };
            tracing::error!(volume = %self.options.volume, member = %link.replica, %fault, "member lost writes");
            link.fault = Some(fault.clone());
            link.expel(now, fault);
            self.member_transition(now, member, MemberState::Lost);
            self.review_members(now);
            if self.is_reverting() && self.in_sync().intersection(self.ready_members()).is_empty() {
                // Nobody is served yet: the next opening makes members alike and goes on.
                self.hang_up(now);
                self.fail(now, Failure::LostWhileReverting);
            }
            return Ok(());
        }
        if !counts {
            link.held = reply.last;
        }
        link.held = link.held.max(reply.last);
        link.intact = reply.intact;
        link.boot = Some(reply.boot);
        link.known = reply.progress;
        link.told = reply.progress;
        link.fault = None;
        self.member_transition(now, member, MemberState::Ready);
        match self.state {
            _ if self.options.read_only => self.member_viewed(),
            VolumeState::Connecting => {
                if in_sync {
                    self.first_promise.get_or_insert(now);
                }
                self.check_connected(now);
            }
            VolumeState::Open | VolumeState::Closing if counts => self.member_is_back(now, member),
            VolumeState::Open => self.review_members(now),
            _ => {}
        }
        Ok(())
    }

    fn member_is_back(&mut self, now: Duration, member: MemberIndex) {
        self.resend_writes(now, member);
        self.resend_flush(now, member);
        self.resend_grow(now, member);
        self.resend_taking(now, member);
        self.let_go_everywhere(now);
        self.members_changed(now);
        self.review_members(now);
    }

    /// Members are alike: serve.
    pub(super) fn opened(&mut self, now: Duration) {
        self.reconcile = None;
        self.waits_for_older_engines = false;
        self.active_at = now;
        self.transition(now, VolumeState::Open);
        self.release_held_writes(now);
        self.retry_reads(now);
        self.begin_revert(now);
        if self.state != VolumeState::Open {
            return;
        }
        self.begin_hydration(now);
        if !self.is_reverting() {
            for (tag, request) in std::mem::take(&mut self.early) {
                self.take(now, tag, request);
            }
        }
        self.begin_resealing(now);
        self.pump(now);
        self.begin_flush(now);
        self.let_go_everywhere(now);
        self.next_order(now);
        self.advance_hydration(now);
    }

    /// The core finds fault with a member's connection.
    pub(super) fn fault(&mut self, now: Duration, member: MemberIndex, fault: MemberFault) {
        if matches!(fault, MemberFault::Refused { code: ErrorCode::Fenced, .. }) {
            return self.fenced(now);
        }
        self.actions.push(Action::Disconnect { member });
        self.member_failed(now, member, fault);
    }

    /// A member is gone; the volume waits for it.
    pub(super) fn member_failed(&mut self, now: Duration, member: MemberIndex, fault: MemberFault) {
        let link = &mut self.members[member.0];
        let was_connected = link.is_connected();
        if was_connected {
            tracing::warn!(volume = %self.options.volume, member = %link.replica, %fault, "member lost");
            link.disconnects += 1;
        }
        link.fault = Some(fault);
        if !was_connected {
            return self.note_standing(now);
        }
        let asked = self.asked_of(member);
        self.member_transition(now, member, MemberState::Disconnected);
        self.end_attempt(now, member, "its connection ended");
        let in_sync = matches!(self.members[member.0].role, Role::InSync);
        match self.state {
            VolumeState::Reconciling if in_sync => self.connect_all_again(now),
            VolumeState::Reconciling | VolumeState::Open | VolumeState::Closing => {
                for id in asked {
                    self.ask_again(now, id);
                }
                self.check_closing(now);
            }
            _ => {}
        }
    }

    /// A member failed while members were being made alike: what it holds is unknown again, and what
    /// the others have in flight must be settled before tails are compared. Opening a session
    /// settles it, so all are opened again.
    pub(super) fn connect_all_again(&mut self, now: Duration) {
        self.reconcile = None;
        self.drop_engine_operations();
        self.flushing.abandon();
        self.disconnect_all(now, &MemberFault::Restarted);
        self.transition(now, VolumeState::Connecting);
        self.first_promise = None;
    }

    fn disconnect_all(&mut self, now: Duration, fault: &MemberFault) {
        self.drop_attempts();
        for member in self.members_that(MemberLink::is_connected) {
            self.actions.push(Action::Disconnect { member });
            self.members[member.0].fault = Some(fault.clone());
            self.member_transition(now, member, MemberState::Disconnected);
        }
    }

    /// The stamps of this generation run out: once nothing is in flight, begin the next.
    pub(super) fn renew_when_drained(&mut self, now: Duration) {
        let drained = self.renewing && self.log.is_empty() && !self.flushing.is_running();
        let busy = self.growing.is_some() || self.has_snapshot_under_way() || self.errand.is_some();
        if !drained || self.state != VolumeState::Open || busy {
            return;
        }
        self.renewing = false;
        self.options.session = self.options.session.wrapping_add(1);
        let ready = self.ready_members().into_iter();
        let mut asked: Vec<_> = ready.flat_map(|member| self.asked_of(member)).collect();
        // One may have been asked of several.
        asked.sort_unstable();
        asked.dedup();
        self.disconnect_all(now, &MemberFault::Restarted);
        self.transition(now, VolumeState::Claiming);
        for id in asked {
            self.ask_again(now, id);
        }
        self.run_errand(Purpose::Claim);
    }

    /// A newer engine has the volume: this one is over.
    pub(super) fn fenced(&mut self, now: Duration) {
        tracing::error!(volume = %self.options.volume, generation = %self.generation, "fenced by a newer engine");
        self.disconnect_all(
            now,
            &MemberFault::Refused {
                code: ErrorCode::Fenced,
                detail: "a newer engine has opened the volume".to_owned(),
            },
        );
        self.transition(now, VolumeState::Fenced);
        self.answer_all(&IoError::Fenced);
    }

    /// Hangs up on everyone, for good.
    pub(super) fn hang_up(&mut self, now: Duration) {
        self.disconnect_all(now, &MemberFault::NotConnected);
    }
}
