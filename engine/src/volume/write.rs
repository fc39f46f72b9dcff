//! Writes and discards: sent to every member, acknowledged when each has answered.
//!
//! **No space.** A member without space refuses a write whole and keeps what it had. When every
//! required member refuses, nothing has changed anywhere that counts, and the consumer gets the error.
//! When some took the write, those that refused have no place among the in-sync members any more: they
//! are dropped, and brought back when they have space.
//!
//! Invariants:
//! - a write with a log slot has been sent to every member that was receiving;
//! - it is settled once no required member is awaited, and either none or all of them refused it.

use super::log::{Fate, LogSlot};
use super::operation::{Operation, Outcome, Owner, Phase};
use super::planted::PlantedFault as Planted;
use super::seal::{Ciphers, Mistake};
use super::segments::{checksums, whole_blocks};
use super::{MemberFault, MemberIndex, MemberSet, OperationId, VolumeCore, VolumeState};
use crate::request::IoError;
use bytes::Bytes;
use std::time::Duration;
use trivet_model::{BlockRange, Stamp};
use trivet_wire::frame::Progress;
use trivet_wire::{BlockData, ErrorCode, Message};

/// How long until a write of the engine's own, for which nobody had space, is offered again.
const RETRY_FULL: Duration = Duration::from_secs(1);

/// A write or discard on its way.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) range: BlockRange,
    content: Content,
    force_unit_access: bool,
    sent: Option<Sent>,
}

#[derive(Debug)]
enum Content {
    Data(BlockData),
    /// To be sealed when its stamps are known.
    Plain(Vec<Bytes>),
    Zeros,
}

#[derive(Debug)]
struct Sent {
    slot: LogSlot,
    first: Stamp,
    /// When, to those who are still awaited.
    at: Duration,
    awaiting: MemberSet,
    refused: MemberSet,
}

/// Writes of the engine's own that no member has space for: they must be made.
#[derive(Debug, Default)]
pub(super) struct Full {
    unsettled: Vec<OperationId>,
    retry_at: Duration,
}

impl Full {
    pub(super) const fn is_empty(&self) -> bool {
        self.unsettled.is_empty()
    }
}

impl Writing {
    /// A write. Its checksums are made once, of the very bytes that are sent: here, unless it is to be
    /// encrypted.
    pub(super) fn data(
        range: BlockRange,
        segments: Vec<Bytes>,
        force_unit_access: bool,
        encrypts: bool,
    ) -> Self {
        let segments = whole_blocks(segments);
        let bytes: usize = segments.iter().map(Bytes::len).sum();
        assert_eq!(bytes as u64, range.bytes(), "a write's data covers its blocks");
        let content = if encrypts {
            Content::Plain(segments)
        } else {
            let crcs = checksums(&segments, range.count as usize);
            Content::Data(BlockData { crcs, tags: Vec::new(), segments })
        };
        Self { range, content, force_unit_access, sent: None }
    }

    /// Encrypts what is to be, under the stamps that it has now.
    fn seal(&mut self, ciphers: &Ciphers, first: Stamp, mistake: Option<Mistake>) {
        if let Content::Plain(segments) = &self.content {
            self.content = Content::Data(ciphers.seal(self.range.start, first, segments, mistake));
        }
    }

    pub(super) const fn discard(range: BlockRange, force_unit_access: bool) -> Self {
        Self { range, content: Content::Zeros, force_unit_access, sent: None }
    }

    fn message(&self, stamp: Stamp, progress: Progress, write_through: bool) -> Message {
        let force_unit_access = self.force_unit_access || write_through;
        match &self.content {
            Content::Data(data) => {
                let (start, data) = (self.range.start, data.clone());
                Message::Write { start, stamp, progress, force_unit_access, data }
            }
            Content::Plain(_) => unreachable!("what is sent has its stamps, and is sealed"),
            Content::Zeros => Message::Discard { range: self.range, stamp, progress, force_unit_access },
        }
    }

    fn last(&self, first: Stamp) -> Stamp {
        first.plus(u64::from(self.range.count) - 1)
    }
}

impl VolumeCore {
    /// Whether writes may be sent: all who must acknowledge are there to take them.
    pub(super) fn may_write(&self) -> bool {
        let serving =
            matches!(self.state, VolumeState::Open | VolumeState::Closing | VolumeState::Reconciling);
        let held = self.renewing || self.is_cutting() || self.is_rekeying();
        serving && !held && self.required_are_ready()
    }

    /// Gives a write its stamps and sends it to everyone, or holds it until everyone is there.
    pub(super) fn send_write(&mut self, now: Duration, id: OperationId) {
        if self.state == VolumeState::Open && self.may_write() && self.log.is_used_up() {
            self.renewing = true;
        }
        let too_early = self.state == VolumeState::Reconciling && !self.operations[&id].reconciles();
        // Whoever still owes an answer to a read of this operation would take the write for the same request.
        let late = !self.late_with(id).intersection(self.receiving()).is_empty();
        if too_early || late || !self.may_write() {
            self.held_writes.push_back(id);
            return self.renew_when_drained(now);
        }
        let everyone = self.receiving();
        let mistake = self.sealing_mistake();
        let writing = writing_mut(&mut self.operations, id);
        let (slot, first) = self.log.append(id, writing.range.count);
        if let Some(ciphers) = &self.ciphers {
            writing.seal(ciphers, first, mistake);
        }
        writing.sent = Some(Sent { slot, first, at: now, awaiting: everyone, refused: MemberSet::EMPTY });
        self.transmit(now, everyone, id, first);
    }

    fn sealing_mistake(&self) -> Option<Mistake> {
        let planted = |fault, mistake| self.has_planted(fault).then_some(mistake);
        planted(Planted::SealUnderFirstStamp, Mistake::FirstStamp)
            .or_else(|| planted(Planted::SealWithoutPlace, Mistake::NoPlace))
            .or_else(|| planted(Planted::SealUnderParentsKey, Mistake::ParentsKey))
    }

    /// Sends a write. Only those who are required learn of the progress with it: one that is being
    /// brought back would take it for a word about itself (`docs/adr/0007`).
    fn transmit(&mut self, now: Duration, to: MemberSet, id: OperationId, first: Stamp) {
        let told = to.intersection(self.required());
        let through =
            self.is_write_through() && !self.has_planted(super::planted::PlantedFault::SkipWriteThrough);
        for (to, progress) in [(told, self.progress_told()), (to.without(told), Progress::default())] {
            if !to.is_empty() {
                let message = writing_mut(&mut self.operations, id).message(first, progress, through);
                if to == told {
                    self.tell(to, progress);
                }
                self.send(now, to, id.0, message);
            }
        }
    }

    /// A member has carried a write out.
    pub(super) fn write_answered(
        &mut self,
        now: Duration,
        member: MemberIndex,
        id: OperationId,
    ) -> Result<(), MemberFault> {
        let hasty = self.has_planted(super::planted::PlantedFault::AcknowledgeFirstAnswer);
        let (sent, last) = awaited(&mut self.operations, member, id)?;
        sent.awaiting.remove(member);
        let latency = now.saturating_sub(sent.at);
        if hasty {
            sent.awaiting = MemberSet::EMPTY;
        }
        let held = &mut self.members[member.0].held;
        *held = (*held).max(last);
        self.members[member.0].latency.note(now, latency);
        self.settle_write(now, id);
        Ok(())
    }

    /// A member has refused an operation.
    pub(super) fn operation_refused(
        &mut self,
        now: Duration,
        member: MemberIndex,
        id: OperationId,
        code: ErrorCode,
        detail: String,
    ) -> Result<(), MemberFault> {
        let writes = matches!(self.operations.get(&id), Some(Operation { phase: Phase::Writing(_), .. }));
        match code {
            ErrorCode::NoSpace | ErrorCode::TailTooLong if writes => {
                self.counters.no_space += 1;
                let (sent, _) = awaited(&mut self.operations, member, id)?;
                sent.awaiting.remove(member);
                sent.refused.insert(member);
                self.end_attempt(now, member, "it has no space");
                self.settle_write(now, id);
                Ok(())
            }
            ErrorCode::ChecksumOnMedium | ErrorCode::ChecksumOnWire | ErrorCode::Medium if !writes => {
                self.counters.count_bad_read(code);
                self.ask_another(now, member, id, code != ErrorCode::ChecksumOnWire, detail)
            }
            ErrorCode::NoSuchSnapshot if !writes => Err(self.member_lacks_viewed()),
            code => Err(MemberFault::Refused { code, detail }),
        }
    }

    /// Acknowledges a write if everyone who must has answered it.
    fn settle_write(&mut self, now: Duration, id: OperationId) {
        let required = self.required();
        let Some(Operation { owner, phase: Phase::Writing(writing), .. }) = self.operations.get(&id) else {
            return;
        };
        let Some(sent) = writing.sent.as_ref() else { return };
        if !sent.awaiting.intersection(required).is_empty() {
            return;
        }
        let (mine, bytes) = (*owner == Owner::Engine && !self.reseals(id), writing.range.bytes());
        let (at, slot, late, refused) =
            (sent.at, sent.slot, sent.awaiting, sent.refused.intersection(required));
        if refused.is_empty() {
            self.full.unsettled.retain(|&unsettled| unsettled != id);
            if !late.is_empty() {
                self.stragglers.insert(id, (at, late));
            }
            self.log.settle(slot, Fate::Held);
            self.wrote(now, bytes);
            self.settled(now, id, Outcome::Done);
        } else if refused != required {
            for member in refused {
                let link = &mut self.members[member.0];
                if !link.is_expelled_for(|fault| *fault == MemberFault::NoSpace) {
                    link.expel(now, MemberFault::NoSpace);
                }
            }
            self.review_members(now);
        } else if mine {
            if !self.full.unsettled.contains(&id) {
                self.full.unsettled.push(id);
            }
            self.full.retry_at = now + RETRY_FULL;
        } else {
            // Nobody who counts has it; one that is being brought back and took it must begin anew.
            self.log.settle(slot, Fate::Refused);
            self.settled(now, id, Outcome::Failed(IoError::NoSpace));
            for member in self.receiving().without(required) {
                self.end_attempt(now, member, "it took a write that others had no space for");
            }
        }
    }

    /// When a write was sent, and who has not answered it.
    pub(super) fn write_awaits(&self, id: OperationId) -> Option<(Duration, MemberSet)> {
        match &self.operations.get(&id)?.phase {
            Phase::Writing(Writing { sent: Some(sent), .. }) => Some((sent.at, sent.awaiting)),
            _ => None,
        }
    }

    /// Looks at every write again: someone is required no more.
    pub(super) fn settle_writes(&mut self, now: Duration) {
        for id in self.log.unsettled().collect::<Vec<_>>() {
            self.settle_write(now, id);
        }
    }

    /// A member takes part in what is on its way no more.
    pub(super) fn forget_in_writes(&mut self, member: MemberIndex) {
        for id in self.log.unsettled().collect::<Vec<_>>() {
            if let Some(sent) = writing_mut(&mut self.operations, id).sent.as_mut() {
                sent.awaiting.remove(member);
                sent.refused.remove(member);
            }
        }
        self.stragglers.retain(|_, (_, late)| {
            late.remove(member);
            !late.is_empty()
        });
        // Should it be required again before the round ends, it has been flushed by itself.
        self.flushing.forget(member);
    }

    /// Takes a late answer to a write that is acknowledged already. Whether it was one.
    pub(super) fn straggler_answered(
        &mut self,
        now: Duration,
        member: MemberIndex,
        id: OperationId,
        message: &Message,
    ) -> bool {
        let Some((at, late)) = self.stragglers.get_mut(&id).filter(|(_, late)| late.contains(member)) else {
            return false;
        };
        late.remove(member);
        self.members[member.0].latency.note(now, now.saturating_sub(*at));
        if late.is_empty() {
            self.stragglers.remove(&id);
        }
        if matches!(message, Message::Done) {
            self.advance_attempts(now);
        } else {
            self.end_attempt(now, member, "it refuses a write");
        }
        self.pump(now);
        true
    }

    fn settled(&mut self, now: Duration, id: OperationId, outcome: Outcome) {
        self.finish(now, id, outcome);
        self.copied(now);
        self.advance_attempts(now);
        self.record_taken();
        self.settle_settings(now);
        self.renew_when_drained(now);
    }

    /// Offers the engine's own writes again to members that had no space for them.
    pub(super) fn retry_full(&mut self, now: Duration) {
        if self.full.is_empty() || now < self.full.retry_at {
            return;
        }
        self.full.retry_at = now + RETRY_FULL;
        for id in self.full.unsettled.clone() {
            let writing = writing_mut(&mut self.operations, id);
            let sent = writing.sent.as_mut().expect("only what was sent is refused");
            sent.awaiting = sent.awaiting.union(sent.refused);
            let again = std::mem::take(&mut sent.refused);
            self.send_again(now, again, id);
        }
    }

    /// Sends a member that has come back what it has not answered, in stamp order.
    pub(super) fn resend_writes(&mut self, now: Duration, member: MemberIndex) {
        let unsettled: Vec<OperationId> = self.log.unsettled().collect();
        for id in unsettled {
            let writing = writing_mut(&mut self.operations, id);
            if writing.sent.as_ref().is_some_and(|sent| sent.awaiting.contains(member)) {
                self.send_again(now, MemberSet::of(member), id);
            }
        }
    }

    fn send_again(&mut self, now: Duration, to: MemberSet, id: OperationId) {
        let to = to.intersection(self.ready_members());
        if to.is_empty() {
            return;
        }
        let writing = writing_mut(&mut self.operations, id);
        let sent = writing.sent.as_mut().expect("only what was sent is sent again");
        sent.at = now;
        let first = sent.first;
        self.transmit(now, to, id, first);
    }

    /// Sends what was held while a member was away.
    pub(super) fn release_held_writes(&mut self, now: Duration) {
        if self.may_write() {
            for id in std::mem::take(&mut self.held_writes) {
                self.send_write(now, id);
            }
        }
    }
}

fn writing_mut(operations: &mut hashbrown::HashMap<OperationId, Operation>, id: OperationId) -> &mut Writing {
    match operations.get_mut(&id) {
        Some(Operation { phase: Phase::Writing(writing), .. }) => writing,
        other => panic!("{id:?} is not a write: {other:?}"),
    }
}

/// The write that `member` answers, with its last stamp, or the fault of answering something else.
fn awaited(
    operations: &mut hashbrown::HashMap<OperationId, Operation>,
    member: MemberIndex,
    id: OperationId,
) -> Result<(&mut Sent, Stamp), MemberFault> {
    let Some(Operation { phase: Phase::Writing(writing), .. }) = operations.get_mut(&id) else {
        return Err(MemberFault::Protocol("it answers a read as a write"));
    };
    let last = writing.sent.as_ref().map(|sent| writing.last(sent.first));
    match (writing.sent.as_mut(), last) {
        (Some(sent), Some(last)) if sent.awaiting.contains(member) => Ok((sent, last)),
        _ => Err(MemberFault::Protocol("it answers a write twice")),
    }
}
