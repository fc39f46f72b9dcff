//! Verified reads: what one member answers is held against what another says of the same blocks.
//!
//! ```text
//!                 both have answered, and agree
//!  ┌────────┐────────────────────────────────────────────────────────▶ answered
//!  │ Asking │                                                              ▲
//!  └────────┘──▶ they differ: block by block ──▶ they differ: the hearing ─┘
//! ```
//!
//! A read has its place among other I/O: nothing is written meanwhile to what it reads, so that all members hold
//! the same, by its stamps. One that does not has lost a write, or was made to give back what it had before. The
//! witness is asked for stamps alone, which costs its disk nothing. Where the two differ, everyone is heard about the
//! block:
//! - of what is authentic, the newest stands: no member can make a version up, or give an old one a new stamp;
//! - that there is nothing, nobody can prove. It stands if most members say so.
//!
//! What stands answers the read, and is then written to everyone anew (`mend.rs`). With one member there is
//! no witness, and reads are as they would be otherwise.

use super::member::Control;
use super::operation::{Operation, Phase};
use super::planted::PlantedFault as Planted;
use super::read::{Reading, Run, Then, is_present};
use super::scrub::{Found, expand};
use super::seal::Unopened;
use super::{MemberFault, MemberIndex, MemberSet, OperationId, VolumeCore, VolumeState};
use bytes::Bytes;
use std::time::Duration;
use trivet_model::{BlockRange, Stamp};
use trivet_wire::{BlockData, Message};

/// How far a verified read is.
#[derive(Debug)]
pub(super) enum Verifying {
    /// The witness is asked. What was read is kept until it has spoken.
    Asking { witness: MemberIndex, word: Option<Vec<Found>>, answer: Option<Answer> },
    /// Everyone's word about the one block is waited for.
    Hearing { awaiting: MemberSet, said: Vec<(MemberIndex, Said)> },
}

#[derive(Debug)]
pub(super) struct Answer {
    member: MemberIndex,
    runs: Vec<Run>,
    /// Zero for holes.
    stamps: Vec<Stamp>,
}

/// What a member says of a block.
#[derive(Debug)]
pub(super) enum Said {
    Data(Stamp, Vec<Bytes>),
    /// It was never written, or has been discarded.
    Nothing,
    Forged,
    /// Its medium does not tell.
    Failed,
}

impl Verifying {
    /// Whether a member still owes it a word.
    pub(super) fn awaits(&self, member: MemberIndex) -> bool {
        match self {
            Self::Asking { witness, word, .. } => *witness == member && word.is_none(),
            Self::Hearing { awaiting, .. } => awaiting.contains(member),
        }
    }

    /// Who must not answer the read itself.
    pub(super) const fn witness(&self) -> MemberSet {
        match self {
            Self::Asking { witness, .. } => MemberSet::of(*witness),
            Self::Hearing { .. } => MemberSet::EMPTY,
        }
    }
}

impl VolumeCore {
    fn verifies(&self, reading: &Reading) -> bool {
        // While members are made alike, they may differ; and what a snapshot shows is read as it is.
        let alike = matches!(self.state, VolumeState::Open | VolumeState::Closing)
            && !matches!(reading.then, Then::Copy)
            && reading.at.is_none();
        self.settings.verified_reads && self.ciphers.is_some() && !self.options.read_only && alike
    }

    /// A member is asked for what is read: another one is asked for stamps.
    pub(super) fn call_witness(&mut self, now: Duration, id: OperationId, asked: MemberIndex) {
        if !self.settings.verified_reads {
            return;
        }
        let Some(reading) = self.reading(id).filter(|reading| self.verifies(reading)) else { return };
        let range = reading.range;
        // A witness that is there stays, unless it is to answer itself now.
        if reading.verifying.as_ref().is_some_and(|verifying| !verifying.witness().contains(asked)) {
            return;
        }
        let witness = self.next_witness(id, asked);
        let Some(reading) = self.reading_mut(id) else { return };
        reading.verifying =
            witness.map(|witness| Box::new(Verifying::Asking { witness, word: None, answer: None }));
        if let Some(member) = witness {
            self.look(now, member, None);
            let control = Control::Witness { operation: id, range };
            self.ask(now, member, control, Message::Verify { range, stamps_only: true });
        }
    }

    /// Each of the others in its turn, so that over many reads everyone is held against everyone.
    fn next_witness(&self, id: OperationId, asked: MemberIndex) -> Option<MemberIndex> {
        let others = self.hearable().without(MemberSet::of(asked)).into_iter();
        let turn = usize::try_from(id.0).unwrap_or(0).checked_rem(others.clone().count())?;
        others.into_iter().nth(turn)
    }

    /// Whose word counts.
    fn hearable(&self) -> MemberSet {
        self.in_sync()
            .intersection(self.ready_members())
            .intersection(self.believable())
            .without(self.leaving())
    }

    /// The witness has spoken.
    pub(super) fn witnessed(
        &mut self,
        now: Duration,
        member: MemberIndex,
        (id, range): (OperationId, BlockRange),
        message: Message,
    ) -> Result<(), MemberFault> {
        let reading = self.reading_mut(id).filter(|reading| reading.range == range);
        let Some(Verifying::Asking { witness, word, .. }) =
            reading.and_then(|reading| reading.verifying.as_deref_mut())
        else {
            return Ok(());
        };
        if *witness != member {
            return Ok(());
        }
        // One that cannot tell what it has says nothing against the other.
        let said = match message {
            Message::VerifyReply { versions, crcs, failed } => expand(range, &versions, &crcs, &failed)?,
            _ => Vec::new(),
        };
        *word = Some(said);
        self.hold_against(now, id);
        Ok(())
    }

    /// A member has sent what was read, and it is authentic.
    pub(super) fn hold_for_witness(
        &mut self,
        now: Duration,
        id: OperationId,
        (member, runs): (MemberIndex, Vec<Run>),
        stamps: Vec<Stamp>,
    ) {
        let reading = self.reading_mut(id);
        if let Some(Verifying::Asking { answer, .. }) = reading.and_then(|r| r.verifying.as_deref_mut()) {
            *answer = Some(Answer { member, runs, stamps });
        }
        self.hold_against(now, id);
    }

    /// Goes on if both have spoken.
    fn hold_against(&mut self, now: Duration, id: OperationId) {
        let trusting = self.has_planted(Planted::TrustFirstAnswer);
        let Some(reading) = self.reading_mut(id) else { return };
        let Some(Verifying::Asking { word: Some(word), answer: Some(answer), .. }) =
            reading.verifying.as_deref_mut()
        else {
            return;
        };
        let stamps = word.iter().map(|found| found.crc.map_or(Stamp::ZERO, |_| found.stamp));
        let agree = trusting || word.is_empty() || answer.stamps.iter().copied().eq(stamps);
        let (range, member, runs) = (reading.range, answer.member, std::mem::take(&mut answer.runs));
        reading.verifying = None;
        if agree {
            self.range_read(now, id, runs, member);
        } else if range.count > 1 {
            self.read_block(now, id, range.start);
        } else {
            self.hear_everyone(now, id);
        }
    }

    fn hear_everyone(&mut self, now: Duration, id: OperationId) {
        let everyone = self.hearable();
        let Some(reading) = self.reading_mut(id) else { return };
        let range = reading.range;
        reading.verifying = Some(Box::new(Verifying::Hearing { awaiting: everyone, said: Vec::new() }));
        for member in everyone {
            self.look(now, member, None);
            let control = Control::Hearing { operation: id, block: range.start };
            self.ask(now, member, control, Message::Fetch { range });
        }
        if everyone.is_empty() {
            self.ask_again(now, id);
        }
    }

    /// A member says what it has.
    pub(super) fn heard(
        &mut self,
        now: Duration,
        member: MemberIndex,
        (id, block): (OperationId, u64),
        message: Message,
    ) -> Result<(), MemberFault> {
        let range = BlockRange::new(block, 1);
        let said = match message {
            Message::FetchReply { versions, data } => match versions.as_slice() {
                [] => Said::Nothing,
                [version] if version.range != range => {
                    return Err(MemberFault::Protocol("it answers for blocks that it was not asked about"));
                }
                [version] if version.discard => Said::Nothing,
                [version] => self.said_of_data(block, version.stamp, data)?,
                _ => return Err(MemberFault::Protocol("it answers for a block twice")),
            },
            _ => Said::Failed,
        };
        let reading = self.reading_mut(id).filter(|reading| reading.range == range);
        let Some(Verifying::Hearing { awaiting, said: all }) =
            reading.and_then(|reading| reading.verifying.as_deref_mut())
        else {
            return Ok(());
        };
        if awaiting.remove(member) {
            all.push((member, said));
        }
        if awaiting.is_empty() {
            self.decide(now, id);
        }
        Ok(())
    }

    fn said_of_data(&self, block: u64, stamp: Stamp, data: BlockData) -> Result<Said, MemberFault> {
        let Some(ciphers) = self.ciphers.as_ref().filter(|_| data.tags.len() == 1) else {
            return Err(MemberFault::Protocol("a block of an encrypted volume comes without its tag"));
        };
        Ok(match ciphers.open(std::iter::once(block), &[stamp], data) {
            Ok(segments) => Said::Data(stamp, segments),
            Err(Unopened::Forged(_)) => Said::Forged,
            Err(Unopened::Damaged) => Said::Failed,
        })
    }

    /// Everyone has been heard.
    fn decide(&mut self, now: Duration, id: OperationId) {
        let Some(reading) = self.reading_mut(id) else { return };
        let (range, verifying) = (reading.range, reading.verifying.take());
        let Some(Verifying::Hearing { mut said, .. }) = verifying.map(|verifying| *verifying) else { return };
        let newest = said.iter().filter_map(|(_, said)| said.version()).max().unwrap_or_default();
        let nothing = said.iter().filter(|(_, said)| said.version() == Some(Stamp::ZERO)).count();
        let stands = if 2 * nothing > said.len() { Stamp::ZERO } else { newest };
        let Some(source) = said.iter().position(|(_, said)| said.version() == Some(stands)) else {
            reading.cause = "no member has it as it was encrypted".to_owned();
            return self.nobody_can_answer(now, id);
        };
        let differs = self.note_differing(range.start, &said, stands);
        let (source, said) = said.swap_remove(source);
        let data = if let Said::Data(_, segments) = said { Some(segments) } else { None };
        self.range_read(now, id, vec![Run { count: 1, data }], source);
        if differs {
            self.mend(now, vec![range.start]);
        }
    }

    /// Whether somebody does not have what stands. Who that is is counted and named once, until the block is
    /// written anew.
    fn note_differing(&mut self, block: u64, said: &[(MemberIndex, Said)], stands: Stamp) -> bool {
        let mut differing = said.iter().filter(|(_, said)| said.version() != Some(stands)).peekable();
        let differs = differing.peek().is_some();
        if self.is_mending(block) {
            return differs;
        }
        for (member, said) in differing {
            match said.version() {
                Some(has) => {
                    self.counters.blocks_stale += 1;
                    tracing::error!(volume = %self.options.volume, member = %self.members[member.0].replica, block,
                        %has, %stands, "a member has another version of a block than stands: writing it anew to all");
                }
                None if matches!(said, Said::Forged) => self.note_forged(*member, &[block]),
                None => {}
            }
        }
        differs
    }

    fn reading(&self, id: OperationId) -> Option<&Reading> {
        match self.operations.get(&id) {
            Some(Operation { phase: Phase::Reading(reading), .. }) => Some(reading),
            _ => None,
        }
    }

    fn reading_mut(&mut self, id: OperationId) -> Option<&mut Reading> {
        match self.operations.get_mut(&id) {
            Some(Operation { phase: Phase::Reading(reading), .. }) => Some(reading),
            _ => None,
        }
    }
}

impl Said {
    /// The version of authentic data, or zero for none.
    fn version(&self) -> Option<Stamp> {
        match self {
            Self::Data(stamp, _) => Some(*stamp),
            Self::Nothing => Some(Stamp::ZERO),
            Self::Forged | Self::Failed => None,
        }
    }
}

/// The stamps of an answer, block by block: zero for holes.
pub(super) fn stamps_of(present: &[u8], stamps: &[Stamp], count: u32) -> Vec<Stamp> {
    let mut stamps = stamps.iter();
    let each = (0..count).map(|block| if is_present(present, block) { stamps.next() } else { None });
    each.map(|stamp| stamp.copied().unwrap_or_default()).collect()
}
