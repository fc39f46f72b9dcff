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
//! - that there is nothing, nobody can prove. It stands if most members say so;
//! - a newer version that a member says it has, and whose medium fails, is not passed over either, unless most
//!   members show what is older: the read fails.
//!
//! What stands answers the read, and is then written to everyone anew (`mend.rs`). With one member there is
//! no witness, and reads are as they would be otherwise.
//!
//! A witness that takes long does not hold up a read for whose answer there is another one (`slow.rs`), and who takes
//! long to answer may be passed over for the witness, and becomes the witness.

use super::member::Control;
use super::operation::{Operation, Phase};
use super::planted::PlantedFault as Planted;
use super::read::{Reading, Run, Then, fits, is_present};
use super::scrub::{Found, expand};
use super::seal::{self, Unopened};
use super::slow::HEDGE_AFTER;
use super::{MemberFault, MemberIndex, MemberSet, OperationId, VolumeCore, VolumeState};
use bytes::Bytes;
use std::time::Duration;
use trivet_model::{BlockRange, Stamp};
use trivet_wire::{BlockData, ErrorCode, Message};

/// How far a verified read is.
#[derive(Debug)]
pub(super) enum Verifying {
    /// What was read is kept until a witness has spoken.
    Asking(Asking),
    /// Everyone's word about the one block is waited for.
    Hearing(Hearing),
}

#[derive(Debug)]
pub(super) struct Asking {
    /// Who was asked for stamps, and who of them still owes them.
    witnesses: MemberSet,
    awaiting: MemberSet,
    /// When the last of them was.
    since: Duration,
    word: Option<Word>,
    answer: Option<Answer>,
}

/// What a witness has of the blocks; none if nobody can tell.
#[derive(Debug)]
enum Word {
    Of(MemberIndex, Vec<Stamp>),
    OfNobody,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) member: MemberIndex,
    pub(super) runs: Vec<Run>,
    /// Zero for holes.
    pub(super) stamps: Vec<Stamp>,
}

#[derive(Debug)]
pub(super) struct Hearing {
    /// Which versions the two say they have that differ.
    claims: [(MemberIndex, Stamp); 2],
    awaiting: MemberSet,
    since: Duration,
    said: Vec<(MemberIndex, Said)>,
}

/// What a member says of a block.
#[derive(Debug)]
enum Said {
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
            Self::Asking(asking) => asking.word.is_none() && asking.awaiting.contains(member),
            Self::Hearing(hearing) => hearing.awaiting.contains(member),
        }
    }

    /// Who should not answer the read itself.
    pub(super) const fn witnesses(&self) -> MemberSet {
        match self {
            Self::Asking(asking) => asking.witnesses,
            Self::Hearing(_) => MemberSet::EMPTY,
        }
    }

    /// Who owes it a word while others have given theirs, and since when.
    pub(super) fn owed(&self) -> Option<(Duration, MemberSet)> {
        match self {
            Self::Asking(asking) => {
                let waits = asking.word.is_none() && asking.answer.is_some();
                waits.then_some((asking.since, asking.awaiting))
            }
            Self::Hearing(hearing) => (!hearing.said.is_empty()).then_some((hearing.since, hearing.awaiting)),
        }
    }
}

impl VolumeCore {
    fn verifies(&self, reading: &Reading) -> bool {
        // While members are made alike, they may differ; and what a snapshot shows is read as it is.
        let alike = matches!(self.state, VolumeState::Open | VolumeState::Closing)
            && !matches!(reading.then, Then::Copy)
            && reading.at.is_none();
        // Who would give back what was before must not have it written to everyone.
        let wanted = self.settings.verified_reads || matches!(reading.then, Then::Reseal { .. });
        wanted && self.ciphers.is_some() && !self.options.read_only && alike
    }

    /// A member is asked for what is read: another one is asked for stamps.
    pub(super) fn call_witness(&mut self, now: Duration, id: OperationId, asked: MemberIndex) {
        if !self.settings.verified_reads && self.resealing.is_none() {
            return;
        }
        let Some(reading) = self.reading(id).filter(|reading| self.verifies(reading)) else { return };
        // A witness that is there stays, unless it is to answer itself now.
        if reading.verifying.as_ref().is_some_and(|verifying| !verifying.witnesses().contains(asked)) {
            return;
        }
        let witness = self.next_witness(id, MemberSet::of(asked));
        let Some(reading) = self.reading_mut(id) else { return };
        let (witnesses, awaiting) = (MemberSet::EMPTY, MemberSet::EMPTY);
        let asking = Asking { witnesses, awaiting, since: now, word: None, answer: None };
        reading.verifying = witness.map(|_| Box::new(Verifying::Asking(asking)));
        if let Some(witness) = witness {
            self.ask_witness(now, id, witness);
        }
    }

    /// The answer waits for a witness that takes long: one more is asked.
    pub(super) fn call_another_witness(&mut self, now: Duration, id: OperationId) {
        if let Some(asking) = self.asking(id)
            && let (None, Some(answer)) = (&asking.word, &asking.answer)
            && now >= asking.since + HEDGE_AFTER
            && let Some(witness) = self.next_witness(id, asking.witnesses.union(MemberSet::of(answer.member)))
        {
            self.ask_witness(now, id, witness);
        }
    }

    /// Each of the others in its turn, so that over many reads everyone is held against everyone.
    fn next_witness(&self, id: OperationId, without: MemberSet) -> Option<MemberIndex> {
        let others = self.hearable().without(without).into_iter();
        let turn = usize::try_from(id.0).unwrap_or(0).checked_rem(others.clone().count())?;
        others.into_iter().nth(turn)
    }

    /// Whose word counts.
    pub(super) fn hearable(&self) -> MemberSet {
        self.in_sync()
            .intersection(self.ready_members())
            .intersection(self.believable())
            .without(self.leaving())
    }

    fn ask_witness(&mut self, now: Duration, id: OperationId, witness: MemberIndex) {
        let Some(asking) = self.asking_mut(id) else { return };
        asking.since = now;
        asking.witnesses.insert(witness);
        asking.awaiting.insert(witness);
        let Some(range) = self.reading(id).map(|reading| reading.range) else { return };
        self.look(now, witness, None);
        let control = Control::Witness { operation: id, range };
        self.ask(now, witness, control, Message::Verify { range, stamps_only: true });
    }

    /// A witness has spoken.
    pub(super) fn witnessed(
        &mut self,
        now: Duration,
        member: MemberIndex,
        (id, range): (OperationId, BlockRange),
        message: Message,
    ) -> Result<(), MemberFault> {
        let stamps = match message {
            Message::VerifyReply { versions, crcs, failed } => {
                let found = expand(range, &versions, &crcs, &failed)?;
                Some(found.iter().map(stamp_of).collect())
            }
            _ => None,
        };
        let reading = self.reading(id);
        let (from, hedge) = reading.map_or((None, None), |reading| (reading.from, reading.hedge));
        if reading.is_none_or(|reading| reading.range != range) {
            return Ok(());
        }
        let Some(asking) = self.asking_mut(id).filter(|asking| asking.word.is_none()) else { return Ok(()) };
        if !asking.awaiting.remove(member) {
            return Ok(());
        }
        match stamps {
            Some(stamps) => asking.word = Some(Word::Of(member, stamps)),
            None => {
                // One that cannot tell what it has says nothing against the other.
                let answered = asking.answer.as_ref().map(|answer| answer.member);
                let mut others = asking.witnesses;
                [from, hedge, answered].into_iter().flatten().for_each(|member| others.insert(member));
                match self.next_witness(id, others) {
                    Some(another) => self.ask_witness(now, id, another),
                    None => self.no_witness_can_tell(id),
                }
            }
        }
        self.hold_against(now, id);
        Ok(())
    }

    fn no_witness_can_tell(&mut self, id: OperationId) {
        if let Some(asking) = self.asking_mut(id).filter(|asking| asking.awaiting.is_empty()) {
            asking.word = Some(Word::OfNobody);
        }
    }

    /// A member has sent what was read, and it is authentic.
    pub(super) fn hold_for_witness(&mut self, now: Duration, id: OperationId, answer: Answer) {
        // A witness that was asked for the blocks too, since the first took long, needs one itself.
        self.call_witness(now, id, answer.member);
        match self.asking_mut(id) {
            Some(asking) => {
                asking.answer = Some(answer);
                self.hold_against(now, id);
            }
            None => self.range_read(now, id, answer.runs, answer.member),
        }
    }

    /// Goes on if both have spoken.
    fn hold_against(&mut self, now: Duration, id: OperationId) {
        let trusting = self.has_planted(Planted::TrustFirstAnswer);
        let Some(asking) = self.asking_mut(id) else { return };
        if asking.word.is_none() {
            return;
        }
        let Some(answer) = asking.answer.take() else { return };
        let differs = match &asking.word {
            Some(Word::Of(witness, stamps)) if !trusting && *stamps != answer.stamps => {
                let of = |stamps: &[Stamp]| stamps.first().copied().unwrap_or_default();
                Some([(answer.member, of(&answer.stamps)), (*witness, of(stamps))])
            }
            _ => None,
        };
        let Some(reading) = self.reading_mut(id) else { return };
        reading.verifying = None;
        let range = reading.range;
        match differs {
            None => self.range_read(now, id, answer.runs, answer.member),
            Some(_) if range.count > 1 => self.read_block(now, id, range.start),
            Some(claims) => self.hear_everyone(now, id, claims),
        }
    }

    fn hear_everyone(&mut self, now: Duration, id: OperationId, claims: [(MemberIndex, Stamp); 2]) {
        let everyone = self.hearable();
        let Some(reading) = self.reading_mut(id) else { return };
        let range = reading.range;
        let hearing = Hearing { claims, awaiting: everyone, since: now, said: Vec::new() };
        reading.verifying = Some(Box::new(Verifying::Hearing(hearing)));
        for member in everyone {
            self.look(now, member, None);
            let control = Control::Hearing { operation: id, block: range.start };
            self.ask(now, member, control, Message::Read { range });
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
        let said = match message {
            Message::ReadReply { present, stamps, data } => {
                let has_seals = seal::fits(true, &stamps, &data.tags, data.crcs.len());
                if !fits(&present, &data, 1) || !has_seals {
                    return Err(MemberFault::Protocol("a read's answer does not have the blocks asked for"));
                }
                stamps.first().map_or(Said::Nothing, |&stamp| self.said_of_data(block, stamp, data))
            }
            _ => Said::Failed,
        };
        let range = BlockRange::new(block, 1);
        let reading = self.reading_mut(id).filter(|reading| reading.range == range);
        let Some(Verifying::Hearing(hearing)) = reading.and_then(|reading| reading.verifying.as_deref_mut())
        else {
            return Ok(());
        };
        if !hearing.awaiting.remove(member) {
            return Ok(());
        }
        let is_forged = matches!(said, Said::Forged);
        hearing.said.push((member, said));
        let all = hearing.awaiting.is_empty();
        if is_forged && !self.is_mending(block) {
            self.note_forged(member, &[block]);
        }
        if all {
            self.decide(now, id);
        }
        Ok(())
    }

    fn said_of_data(&mut self, block: u64, stamp: Stamp, data: BlockData) -> Said {
        let Some(ciphers) = &self.ciphers else { return Said::Failed };
        match ciphers.open(std::iter::once(block), &[stamp], data) {
            Ok(segments) => Said::Data(stamp, segments),
            Err(Unopened::Forged(_)) => Said::Forged,
            Err(Unopened::Damaged) => {
                self.counters.count_bad_read(ErrorCode::ChecksumOnWire);
                Said::Failed
            }
        }
    }

    /// Everyone has been heard.
    fn decide(&mut self, now: Duration, id: OperationId) {
        let Some(reading) = self.reading_mut(id) else { return };
        let (range, verifying) = (reading.range, reading.verifying.take());
        let Some(Verifying::Hearing(hearing)) = verifying.map(|verifying| *verifying) else { return };
        let stands = match hearing.verdict() {
            Ok(stands) => stands,
            Err(cause) => {
                cause.clone_into(&mut reading.cause);
                return self.nobody_can_answer(now, id);
            }
        };
        let differs = self.note_stale(range.start, &hearing.said, stands);
        let shows = hearing.said.into_iter().find(|(_, said)| said.version() == Some(stands));
        let Some((source, said)) = shows else { unreachable!("what stands, somebody has shown") };
        let data = if let Said::Data(_, segments) = said { Some(segments) } else { None };
        self.range_read(now, id, vec![Run { count: 1, data }], source);
        if differs {
            self.mend(now, vec![range.start]);
        }
    }

    /// Whether somebody does not have what stands. Who that is is counted and named once, until the block is
    /// written anew.
    fn note_stale(&mut self, block: u64, said: &[(MemberIndex, Said)], stands: Stamp) -> bool {
        let is_mending = self.is_mending(block);
        let mut differs = false;
        for (member, said) in said.iter().filter(|(_, said)| said.version() != Some(stands)) {
            differs = true;
            if let Some(has) = said.version().filter(|_| !is_mending) {
                self.counters.blocks_stale += 1;
                tracing::error!(volume = %self.options.volume, member = %self.members[member.0].replica, block,
                    %has, %stands, "a member has another version of a block than stands: writing it anew to all");
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

    fn asking(&self, id: OperationId) -> Option<&Asking> {
        match self.reading(id)?.verifying.as_deref() {
            Some(Verifying::Asking(asking)) => Some(asking),
            _ => None,
        }
    }

    fn asking_mut(&mut self, id: OperationId) -> Option<&mut Asking> {
        match self.reading_mut(id)?.verifying.as_deref_mut() {
            Some(Verifying::Asking(asking)) => Some(asking),
            _ => None,
        }
    }
}

impl Hearing {
    /// The version that stands, zero for a hole; or why none does.
    fn verdict(&self) -> Result<Stamp, &'static str> {
        let shown = || self.said.iter().filter_map(|(_, said)| said.version());
        let is_most = |version: Stamp| 2 * shown().filter(|&has| has == version).count() > self.said.len();
        let Some(newest) = shown().max() else {
            return Err("no member has it as it was encrypted");
        };
        if is_most(Stamp::ZERO) {
            return Ok(Stamp::ZERO);
        }
        let fails =
            |member| self.said.iter().any(|(who, said)| *who == member && matches!(said, Said::Failed));
        let is_unshown = self.claims.iter().any(|&(member, claimed)| claimed > newest && fails(member));
        if is_unshown && !is_most(newest) {
            return Err("a member that has a newer version than the others cannot read it");
        }
        Ok(newest)
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

/// Zero for a hole, whatever is known of its discard: members forget that at different times.
fn stamp_of(found: &Found) -> Stamp {
    found.crc.map_or(Stamp::ZERO, |_| found.stamp)
}

/// The stamps of an answer, block by block: zero for holes.
pub(super) fn stamps_of(present: &[u8], stamps: &[Stamp], count: u32) -> Vec<Stamp> {
    let mut stamps = stamps.iter();
    let each = (0..count).map(|block| if is_present(present, block) { stamps.next() } else { None });
    each.map(|stamp| stamp.copied().unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MemberIndex = MemberIndex(0);
    const B: MemberIndex = MemberIndex(1);

    fn stamp(version: u64) -> Stamp {
        Stamp::from_u64(version)
    }

    fn data(version: u64) -> Said {
        Said::Data(stamp(version), Vec::new())
    }

    /// Of members that say this, the first two of which say that they have these versions.
    fn verdict(said: Vec<Said>, claimed: [u64; 2]) -> Option<u64> {
        let claims = [(A, stamp(claimed[0])), (B, stamp(claimed[1]))];
        let said = said.into_iter().enumerate().map(|(member, said)| (MemberIndex(member), said)).collect();
        let hearing = Hearing { claims, awaiting: MemberSet::EMPTY, since: Duration::ZERO, said };
        hearing.verdict().ok().map(Stamp::as_u64)
    }

    #[test]
    fn the_newest_authentic_version_stands_and_a_hole_if_most_say_so() {
        use Said::{Failed, Forged, Nothing};
        let cases = [
            (vec![data(4), data(5), data(5)], [4, 5], Some(5)),
            (vec![data(5), data(4), data(4)], [5, 4], Some(5)),
            (vec![data(4), data(5)], [4, 5], Some(5)),
            // One hides what others have, or brings back what they have not.
            (vec![Nothing, data(5), data(5)], [0, 5], Some(5)),
            (vec![Nothing, data(5)], [0, 5], Some(5)),
            (vec![data(5), Nothing, Nothing], [5, 0], Some(0)),
            // A stamp that goes with nothing authentic is worth nothing.
            (vec![Forged, data(5), data(5)], [9, 5], Some(5)),
            (vec![Forged, data(5)], [9, 5], Some(5)),
            (vec![Forged, Nothing], [9, 0], Some(0)),
            (vec![Forged, Forged, Failed], [5, 4], None),
            (vec![Failed, Failed], [5, 4], None),
            // The medium of one fails: of two, nobody knows who is right.
            (vec![Failed, data(4)], [5, 4], None),
            (vec![Failed, Nothing], [5, 0], None),
            (vec![data(4), Failed, Failed], [4, 5], None),
            // Of three, most do; and an older version takes nothing from a newer one.
            (vec![Failed, data(4), data(4)], [5, 4], Some(4)),
            (vec![Failed, Nothing, Nothing], [5, 0], Some(0)),
            (vec![data(4), Failed, data(5)], [4, 5], Some(5)),
            (vec![Failed, data(5)], [4, 5], Some(5)),
        ];
        for (at, (said, claimed, expected)) in cases.into_iter().enumerate() {
            let words = format!("case {at}: {said:?}");
            assert_eq!(verdict(said, claimed), expected, "{words}");
        }
    }
}
