//! Writes and discards: sent to every member, acknowledged when each has answered.
//!
//! **No space.** A member without space refuses a write whole and keeps what it had. When every
//! member refuses, nothing has changed anywhere and the consumer gets the error. When some took the
//! write, the members differ, and must not stay so: the consumer gets the error (a failed write may
//! have happened or not), and the engine keeps the operation as its own, in its place in the order
//! of overlapping I/O, and offers the same write with the same stamp to the refusing members again,
//! each second, until they take it. It only goes forward: bringing back the old contents would need
//! the space just as much. Until they have, no other write is let in, all get the error at once, so
//! that few blocks are ever in that state; reads of other blocks, and discards, which make the
//! space, go on: a discard is cut around the blocks that wait, so that the rest of it makes room.
//!
//! Invariants:
//! - a write with a log slot has been sent to every member that was ready;
//! - it is settled once nobody is awaited and either nobody or everybody refused it.

use super::log::LogSlot;
use super::operation::{Operation, Outcome, Owner, Phase};
use super::segments::{checksums, whole_blocks};
use super::{MemberFault, MemberIndex, MemberSet, OperationId, VolumeCore, VolumeState};
use crate::request::IoError;
use bytes::Bytes;
use std::time::Duration;
use trivet_model::{BlockRange, Stamp};
use trivet_wire::frame::Progress;
use trivet_wire::{BlockData, ErrorCode, Message};

/// How long until a member that had no space is asked again.
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
    Zeros,
}

#[derive(Debug)]
struct Sent {
    slot: LogSlot,
    first: Stamp,
    awaiting: MemberSet,
    refused: MemberSet,
}

/// Writes that some members took and others had no space for.
#[derive(Debug, Default)]
pub(super) struct Full {
    unsettled: Vec<OperationId>,
    retry_at: Duration,
}

impl Full {
    /// Whether new writes are refused.
    pub(super) const fn is_latched(&self) -> bool {
        !self.unsettled.is_empty()
    }
}

impl Writing {
    /// A write. Its checksums are made here, once, of the very bytes that are sent.
    pub(super) fn data(range: BlockRange, segments: Vec<Bytes>, force_unit_access: bool) -> Self {
        let segments = whole_blocks(segments);
        let crcs = checksums(&segments, range.count as usize);
        assert_eq!(crcs.len(), range.count as usize, "a write's data covers its blocks");
        Self { range, content: Content::Data(BlockData { crcs, segments }), force_unit_access, sent: None }
    }

    pub(super) const fn discard(range: BlockRange, force_unit_access: bool) -> Self {
        Self { range, content: Content::Zeros, force_unit_access, sent: None }
    }

    fn message(&self, stamp: Stamp, progress: Progress) -> Message {
        let force_unit_access = self.force_unit_access;
        match &self.content {
            Content::Data(data) => {
                let (start, data) = (self.range.start, data.clone());
                Message::Write { start, stamp, progress, force_unit_access, data }
            }
            Content::Zeros => Message::Discard { range: self.range, stamp, progress, force_unit_access },
        }
    }

    fn last(&self, first: Stamp) -> Stamp {
        first.plus(u64::from(self.range.count) - 1)
    }
}

impl VolumeCore {
    /// Whether writes may be sent: all members are there to take them.
    pub(super) fn may_write(&self) -> bool {
        let serving =
            matches!(self.state, VolumeState::Open | VolumeState::Closing | VolumeState::Reconciling);
        serving && !self.renewing && self.all_ready()
    }

    /// Gives a write its stamps and sends it to everyone, or holds it until everyone is there.
    pub(super) fn send_write(&mut self, now: Duration, id: OperationId) {
        if self.state == VolumeState::Open && self.may_write() && self.log.is_used_up() {
            self.renewing = true;
        }
        if !self.may_write() {
            self.held_writes.push_back(id);
            return self.renew_when_drained(now);
        }
        let everyone = self.all_members();
        let progress = self.log.progress();
        let writing = writing_mut(&mut self.operations, id);
        let (slot, first) = self.log.append(id, writing.range.count);
        writing.sent = Some(Sent { slot, first, awaiting: everyone, refused: MemberSet::EMPTY });
        let message = writing.message(first, progress);
        self.tell(everyone, progress);
        self.send(now, everyone, id.0, message);
    }

    /// A member has carried a write out.
    pub(super) fn write_answered(
        &mut self,
        now: Duration,
        member: MemberIndex,
        id: OperationId,
    ) -> Result<(), MemberFault> {
        let (sent, last) = awaited(&mut self.operations, member, id)?;
        sent.awaiting.remove(member);
        let held = &mut self.members[member.0].held;
        *held = (*held).max(last);
        #[cfg(any(test, feature = "planted-faults"))]
        if self.planted == Some(super::PlantedFault::AcknowledgeFirstAnswer) {
            sent.awaiting = MemberSet::EMPTY;
        }
        if sent.awaiting.is_empty() {
            self.everyone_answered(now, id);
        }
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
                if sent.awaiting.is_empty() {
                    self.everyone_answered(now, id);
                }
                Ok(())
            }
            ErrorCode::ChecksumOnMedium | ErrorCode::ChecksumOnWire | ErrorCode::Medium if !writes => {
                self.counters.count_bad_read(code);
                self.ask_another(now, member, id, detail)
            }
            code => Err(MemberFault::Refused { code, detail }),
        }
    }

    fn everyone_answered(&mut self, now: Duration, id: OperationId) {
        let everyone = self.all_members();
        let mine = self.operations[&id].owner == Owner::Engine;
        let writing = writing_mut(&mut self.operations, id);
        let bytes = writing.range.bytes();
        let sent = writing.sent.as_ref().expect("only what was sent is answered");
        let (slot, refused) = (sent.slot, sent.refused);
        if refused.is_empty() {
            self.full.unsettled.retain(|&unsettled| unsettled != id);
            self.log.settle(slot);
            self.wrote(now, bytes);
            self.settled(now, id, Outcome::Done);
        } else if refused == everyone && !mine {
            self.log.settle(slot);
            self.settled(now, id, Outcome::Failed(IoError::NoSpace));
        } else {
            if !self.full.unsettled.contains(&id) {
                self.full.unsettled.push(id);
            }
            self.full.retry_at = now + RETRY_FULL;
            self.answer_early(now, id, IoError::NoSpace);
        }
    }

    fn settled(&mut self, now: Duration, id: OperationId, outcome: Outcome) {
        self.finish(now, id, outcome);
        self.copied(now);
        self.renew_when_drained(now);
    }

    /// The blocks of writes that wait for space.
    pub(super) fn full_ranges(&mut self) -> Vec<BlockRange> {
        let Self { full, operations, .. } = self;
        full.unsettled.iter().map(|&id| writing_mut(operations, id).range).collect()
    }

    /// Offers writes again to members that had no space for them.
    pub(super) fn retry_full(&mut self, now: Duration) {
        if !self.full.is_latched() || now < self.full.retry_at {
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
        let progress = self.log.progress();
        let writing = writing_mut(&mut self.operations, id);
        let first = writing.sent.as_ref().expect("only what was sent is sent again").first;
        let message = writing.message(first, progress);
        self.tell(to, progress);
        self.send(now, to, id.0, message);
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
