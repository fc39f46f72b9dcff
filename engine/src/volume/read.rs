//! Reads: one member answers; its data is verified here; a bad answer sends the question to the next.
//!
//! A range that nobody can answer whole is read block by block: members may have lost different ones.
//! What a member could not read, it is told to repair (`repair.rs`).
//!
//! All in-sync members hold the same, so any may answer: one on this host where there is one, and of
//! several the one at home in that part of the volume, unless it has clearly more reads in flight than
//! another. Homes alternate, so that a stream is read from all members at once, and each member's device
//! is asked for a part of the volume that its caches can hold. Who looks at a volume as it is always asks
//! the first that is there, since without a writer nobody has made its members alike; snapshots are.

mod answer;
mod then;

use super::operation::{Operation, Outcome, Phase};
use super::planted::PlantedFault as Planted;
use super::seal::{self, Unopened};
use super::witness::{Answer, Verifying, stamps_of};
use super::{MemberFault, MemberIndex, MemberSet, OperationId, VolumeCore, VolumeState};
use crate::request::IoError;
pub(super) use answer::{Answered, Run, fits, is_present};
use answer::{is_intact, runs};
use std::time::Duration;
pub(super) use then::Then;
use trivet_model::{BlockRange, SnapshotId};
use trivet_wire::{ErrorCode, Message};

/// Consecutive blocks that have the same home (1 MiB).
pub(super) const HOME_BLOCKS: u64 = 256;
/// How many more reads than another member the one at home may have in flight and still be asked.
pub(super) const HOME_READS: usize = 8;

/// A read on its way.
#[derive(Debug)]
pub(super) struct Reading {
    /// All that is wanted, and what is there of it already.
    whole: BlockRange,
    collected: Vec<Run>,
    /// What is being asked for: the whole, or its blocks one by one.
    pub(super) range: BlockRange,
    /// Whose medium failed this range.
    bad: MemberSet,
    /// Blocks of it that a member gave back otherwise than they were encrypted.
    forged: Vec<u64>,
    /// Who holds what is wanted.
    among: MemberSet,
    /// As which snapshot shows it; as the volume is looked at without one.
    pub(super) at: Option<SnapshotId>,
    tried: MemberSet,
    pub(super) from: Option<MemberIndex>,
    /// When.
    pub(super) asked: Option<Duration>,
    /// Who was asked as well, because that takes long.
    pub(super) hedge: Option<MemberIndex>,
    pub(super) then: Then,
    pub(super) cause: String,
    /// Of a verified read.
    pub(super) verifying: Option<Box<Verifying>>,
}

impl Reading {
    pub(super) const fn new(range: BlockRange, among: MemberSet, then: Then) -> Self {
        Self {
            whole: range,
            collected: Vec::new(),
            range,
            bad: MemberSet::EMPTY,
            forged: Vec::new(),
            among,
            at: None,
            tried: MemberSet::EMPTY,
            from: None,
            asked: None,
            hedge: None,
            then,
            cause: String::new(),
            verifying: None,
        }
    }
}

impl VolumeCore {
    /// Sends a read to the nearest member that has not failed it, or holds it until one is there.
    pub(super) fn send_read(&mut self, now: Duration, id: OperationId) {
        let serving = match self.state {
            VolumeState::Open | VolumeState::Closing => true,
            VolumeState::Reconciling => self.operations[&id].reconciles(),
            _ => false,
        };
        let reading = reading_mut(&mut self.operations, id);
        let (among, tried) = (reading.among, reading.tried);
        let untried = among.intersection(self.readable()).without(tried);
        if untried.is_empty() {
            return self.nobody_can_answer(now, id);
        }
        let reading = reading_mut(&mut self.operations, id);
        let range = reading.range;
        match self.nearest(untried.without(self.late_with(id)), range.start).filter(|_| serving) {
            Some(member) => {
                let reading = reading_mut(&mut self.operations, id);
                (reading.from, reading.asked) = (Some(member), Some(now));
                let at = reading.at;
                self.look(now, member, at);
                self.members[member.0].reads_in_flight += 1;
                self.send(now, MemberSet::of(member), id.0, Message::Read { range });
                self.call_witness(now, id, member);
            }
            None => {
                reading_mut(&mut self.operations, id).verifying = None;
                self.held_reads.push_back(id);
            }
        }
    }

    /// Who has not answered an earlier question of the same number, whose answer nobody wants any more:
    /// the two answers could not be told apart.
    pub(super) fn late_with(&self, id: OperationId) -> MemberSet {
        self.members_that(|member| member.unwanted.iter().any(|&(request, _)| request == id.0))
    }

    /// Asks another member what `from` takes long to answer.
    pub(super) fn hedge_read(&mut self, now: Duration, id: OperationId) {
        let reading = reading_mut(&mut self.operations, id);
        let Some(from) = reading.from else { return self.call_another_witness(now, id) };
        let (range, among) =
            (reading.range, reading.among.without(reading.tried).without(MemberSet::of(from)));
        let witnesses =
            reading.verifying.as_ref().map_or(MemberSet::EMPTY, |verifying| verifying.witnesses());
        let among = among.intersection(self.readable()).without(self.late_with(id));
        // A witness answers itself only where there is nobody else.
        let other = self.nearest(among.without(witnesses), range.start);
        if let Some(member) = other.or_else(|| self.nearest(among, range.start)) {
            let reading = reading_mut(&mut self.operations, id);
            reading.hedge = Some(member);
            let at = reading.at;
            self.look(now, member, at);
            self.counters.hedged_reads += 1;
            self.members[member.0].reads_in_flight += 1;
            self.send(now, MemberSet::of(member), id.0, Message::Read { range });
        }
    }

    /// Who may be read from.
    pub(super) fn readable(&self) -> MemberSet {
        if self.has_planted(Planted::ReadFromSyncing) {
            return self.receiving().union(self.in_sync());
        }
        self.in_sync()
    }

    /// Whom to ask for what begins at a block.
    pub(super) fn nearest(&self, among: MemberSet, start: u64) -> Option<MemberIndex> {
        let leaving =
            if self.has_planted(Planted::ReadFromLeaving) { MemberSet::EMPTY } else { self.leaving() };
        let among = among.intersection(self.ready_members()).intersection(self.believable());
        let ready = among.without(leaving).into_iter();
        if self.options.read_only && self.options.snapshot.is_none() {
            return ready.into_iter().next();
        }
        let home = usize::try_from(start / HOME_BLOCKS).unwrap_or(0) % self.members.len();
        ready.min_by_key(|member| {
            let link = &self.members[member.0];
            let ahead = if member.0 == home { HOME_READS } else { 0 };
            let reads = link.reads_in_flight.saturating_sub(ahead);
            (!link.unwanted.is_empty(), !link.local, reads, member.0 != home)
        })
    }

    /// A member has sent what was read.
    pub(super) fn read_answered(
        &mut self,
        now: Duration,
        member: MemberIndex,
        id: OperationId,
        answered: Answered<'_>,
    ) -> Result<(), MemberFault> {
        let Answered { present, stamps, data } = answered;
        let Some(Operation { phase: Phase::Reading(reading), .. }) = self.operations.get_mut(&id) else {
            return Err(MemberFault::Protocol("it answers a write as a read"));
        };
        if reading.from != Some(member) && reading.hedge != Some(member) {
            return Err(MemberFault::Protocol("it answers a read that it was not asked"));
        }
        let has_seals = seal::fits(self.ciphers.is_some(), stamps, &data.tags, data.crcs.len());
        if !fits(present, &data, reading.range.count) || !has_seals {
            return Err(MemberFault::Protocol("a read's answer does not have the blocks asked for"));
        }
        let range = reading.range;
        let versions = reading.verifying.is_some().then(|| stamps_of(present, stamps, range.count));
        let opened = match &self.ciphers {
            None if is_intact(&data) => Ok(data.segments),
            None => Err(Unopened::Damaged),
            Some(ciphers) => {
                let there = (0..range.count).filter(|&block| is_present(present, block));
                ciphers.open(there.map(|block| range.start + u64::from(block)), stamps, data)
            }
        };
        let data = match opened {
            Ok(segments) => segments,
            Err(Unopened::Damaged) => {
                self.counters.count_bad_read(ErrorCode::ChecksumOnWire);
                let cause = "its answer does not match its checksums".to_owned();
                return self.ask_another(now, member, id, false, cause);
            }
            Err(Unopened::Forged(forged)) => return self.forged_read(now, member, id, forged),
        };
        let reading = reading_mut(&mut self.operations, id);
        if let Then::Reseal { until, newer } = &mut reading.then {
            let there = (0..range.count).filter(|&block| is_present(present, block));
            let there = there.map(|block| range.start + u64::from(block)).zip(stamps);
            newer.extend(there.filter(|(_, stamp)| *stamp > until).map(|(block, _)| block));
        }
        let asked = reading.asked.unwrap_or(now);
        let other = [reading.from.take(), reading.hedge.take()].into_iter().flatten().find(|&m| m != member);
        let runs = runs(present, data, range.count);
        self.members[member.0].reads_in_flight -= 1;
        if let Some(other) = other {
            self.members[other.0].unwanted.push((id.0, asked));
            self.members[other.0].reads_in_flight -= 1;
        }
        match versions {
            Some(stamps) => self.hold_for_witness(now, id, Answer { member, runs, stamps }),
            None => self.range_read(now, id, runs, member),
        }
        Ok(())
    }

    /// What is asked for now is there.
    pub(super) fn range_read(&mut self, now: Duration, id: OperationId, runs: Vec<Run>, member: MemberIndex) {
        let reading = reading_mut(&mut self.operations, id);
        let range = reading.range;
        let (mut bad, mut forged) = (std::mem::take(&mut reading.bad), std::mem::take(&mut reading.forged));
        if reading.at.is_some() {
            // What is repaired is what the volume is now.
            (bad, forged) = (MemberSet::EMPTY, Vec::new());
        }
        reading.collected.extend(runs);
        if reading.range.end() < reading.whole.end() {
            self.read_block(now, id, range.end());
        } else {
            let runs = std::mem::take(&mut reading.collected);
            reading.range = reading.whole;
            self.blocks_read(now, id, runs);
        }
        if !bad.is_empty() {
            self.repair(now, bad, range, member);
        }
        if !forged.is_empty() {
            self.mend(now, forged);
        }
    }

    /// What a member has sent is not what was written.
    fn forged_read(
        &mut self,
        now: Duration,
        member: MemberIndex,
        id: OperationId,
        forged: Vec<u64>,
    ) -> Result<(), MemberFault> {
        self.note_forged(member, &forged);
        let cause = format!(
            "block {} is not as it was encrypted: it was tampered with, and its checksum made to fit",
            forged.first().copied().unwrap_or_default()
        );
        reading_mut(&mut self.operations, id).forged.extend(forged);
        self.ask_another(now, member, id, false, cause)
    }

    /// `member` cannot answer a read or query, for its medium's fault or another: asks the next.
    pub(super) fn ask_another(
        &mut self,
        now: Duration,
        member: MemberIndex,
        id: OperationId,
        medium: bool,
        why: String,
    ) -> Result<(), MemberFault> {
        self.counters.read_fallbacks += 1;
        match self.operations.get_mut(&id).map(|operation| &mut operation.phase) {
            Some(Phase::Reading(reading))
                if reading.from == Some(member) || reading.hedge == Some(member) =>
            {
                let other =
                    [reading.from.take(), reading.hedge.take()].into_iter().flatten().find(|&m| m != member);
                reading.from = other;
                reading.tried.insert(member);
                if medium {
                    reading.bad.insert(member);
                }
                reading.cause = why;
                self.members[member.0].reads_in_flight -= 1;
                if other.is_none() {
                    self.send_read(now, id);
                }
                Ok(())
            }
            Some(Phase::Querying(querying)) if querying.from == Some(member) => {
                querying.from = None;
                querying.tried.insert(member);
                querying.cause = why;
                self.send_query(now, id);
                Ok(())
            }
            _ => Err(MemberFault::Protocol("it answers a read that it was not asked")),
        }
    }

    /// A member that was asked is gone: asks again, with a clean sheet for those that are there.
    pub(super) fn ask_again(&mut self, now: Duration, id: OperationId) {
        match &mut self.operations.get_mut(&id).expect("just listed").phase {
            Phase::Reading(reading) => {
                reading.verifying = None;
                // Of two that were asked, those that are left go on.
                let asked = [reading.from.take(), reading.hedge.take()].into_iter().flatten();
                let mut left = asked.filter(|&member| self.members[member.0].is_ready());
                (reading.from, reading.hedge) = (left.next(), left.next());
                match reading.from {
                    Some(member) => self.call_witness(now, id, member),
                    None => self.send_read(now, id),
                }
            }
            Phase::Querying(querying) => {
                querying.from = None;
                self.send_query(now, id);
            }
            Phase::Blocked(_) | Phase::Writing(_) | Phase::Scrubbing => {
                unreachable!("only questions are asked again")
            }
        }
    }

    /// Sends what was held for want of a member, or because all that hold a copy failed it.
    pub(super) fn retry_reads(&mut self, now: Duration) {
        for id in std::mem::take(&mut self.held_reads) {
            self.ask_again(now, id);
        }
    }

    /// Goes on with one block of a range.
    pub(super) fn read_block(&mut self, now: Duration, id: OperationId, block: u64) {
        let reading = reading_mut(&mut self.operations, id);
        reading.range = BlockRange::new(block, 1);
        (reading.tried, reading.bad) = (MemberSet::EMPTY, MemberSet::EMPTY);
        reading.forged.clear();
        reading.verifying = None;
        self.send_read(now, id);
    }

    pub(super) fn nobody_can_answer(&mut self, now: Duration, id: OperationId) {
        let reading = reading_mut(&mut self.operations, id);
        if reading.range.count > 1 {
            let first = reading.range.start;
            return self.read_block(now, id, first);
        }
        if matches!(reading.then, Then::Restore) {
            reading.tried = MemberSet::EMPTY;
            let cause = format!("no member can read {} of the snapshot: {}", reading.range, reading.cause);
            self.restore_waits(cause);
            return self.held_reads.push_back(id);
        }
        if matches!(reading.then, Then::Copy | Then::Rewrite) {
            // The only holders of the newest version cannot read it now. Choosing an older one could
            // take back what was acknowledged, so the volume stays closed and asks again.
            reading.tried = MemberSet::EMPTY;
            let cause = format!(
                "{} cannot be read from the member that has the newest version: {}",
                reading.range, reading.cause
            );
            if let Some(reconcile) = &mut self.reconcile {
                reconcile.trouble = Some(cause);
            }
            self.note_standing(now);
            return self.held_reads.push_back(id);
        }
        let (range, cause) = (reading.range, std::mem::take(&mut reading.cause));
        let error = IoError::Medium { start: range.start, end: range.end(), cause };
        self.finish(now, id, Outcome::Failed(error));
    }
}

fn reading_mut(operations: &mut hashbrown::HashMap<OperationId, Operation>, id: OperationId) -> &mut Reading {
    match operations.get_mut(&id) {
        Some(Operation { phase: Phase::Reading(reading), .. }) => reading,
        other => panic!("{id:?} is not a read: {other:?}"),
    }
}
