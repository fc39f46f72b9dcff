//! Engine, members, authority and consumer, joined by links; one random event at a time.

mod judge;
mod script;

use super::client::{Client, SOURCE_BYTES, source_data};
use super::model_member::ModelMember;
use super::{PlantedFault, Random};
use crate::request::{IoError, IoReply};
use crate::volume::{
    Action, CoreOptions, MemberFault, MemberIndex, ScrubCounts, ScrubOrder, ScrubStatus, SourceError,
    Standing, Tag, VolumeCore,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use trivet_crypto::DataKey;
use trivet_model::{
    AuthorityError, BLOCK_SIZE_U64, BlockRange, Epoch, Generation, InstantImport, Member, MemberState,
    PoolId, Revision, VolumeId, VolumeRecord, VolumeSettings,
};
use trivet_wire::{ErrorCode, Frame, Message};

/// Blocks of the volume: few, so that operations overlap.
pub(super) const BLOCKS: u64 = 6;
const MEMBERS: usize = 3;

/// How often each fault comes: once in so many events; 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) disconnect: u32,
    /// A member cannot be reached for up to four seconds.
    pub(super) isolate: u32,
    pub(super) kill_member: u32,
    pub(super) crash_engine: u32,
    pub(super) member_power_loss: u32,
    pub(super) full: u32,
    pub(super) bad_read: u32,
    pub(super) second_engine: u32,
    pub(super) use_up_stamps: u32,
    /// A block changes on one member's medium while all have it right.
    pub(super) rot: u32,
    /// A scrub is begun.
    pub(super) scrub: u32,
    /// The volume is imported while it is used; a fetch fails once in so many.
    pub(super) source_fails: u32,
    pub(super) planted: Option<PlantedFault>,
    /// The volume is encrypted, and its reads are verified.
    pub(super) verified: bool,
}

#[derive(Debug, Default)]
struct Link {
    to_member: VecDeque<Frame>,
    to_engine: VecDeque<Frame>,
    wanted: bool,
    up: bool,
    /// Not before then.
    cut_until: u64,
}

#[derive(Debug)]
enum Asked {
    Read,
    Swap(Revision, Box<VolumeRecord>),
}

pub(super) struct World {
    pub(super) random: Random,
    faults: Faults,
    time: u64,
    pub(super) core: VolumeCore,
    pub(super) members: Vec<ModelMember>,
    links: Vec<Link>,
    record: (VolumeRecord, Revision),
    authority: VecDeque<Asked>,
    pub(super) client: Client,
    /// Reads the whole volume for the harness.
    image_tag: Option<u64>,
    pub(super) image: Option<Vec<u8>>,
    /// What has been asked of the source that the volume is imported from.
    fetches: VecDeque<(u64, u64, u32)>,
    /// Blocks for which it answers with an error.
    pub(super) source_lacks: BTreeSet<u64>,
    /// What came of requests that are not the consumer's (`ask`).
    answers: BTreeMap<u64, Result<IoReply, IoError>>,
    trace: DefaultHasher,
    openings: u64,
    scrubs: u64,
    /// A test has done damage on purpose.
    pub(super) expects_damage: bool,
}

impl World {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        let hydrates = faults.source_fails > 0;
        let members: Vec<ModelMember> = (0..3).map(|index| ModelMember::new(index, BLOCKS)).collect();
        let recorded = members.iter().map(|member| Member {
            replica: member.pool,
            address: "10.0.0.1:1".to_owned(),
            state: MemberState::InSync,
        });
        let record = VolumeRecord {
            id: VolumeId::from_bytes([9; 16]),
            name: "v".to_owned(),
            blocks: BLOCKS,
            generation: Generation::ZERO,
            owner: String::new(),
            epoch: Epoch(1),
            wait_owed: false,
            members: recorded.collect(),
            snapshots: Vec::new(),
            lineage: Vec::new(),
            sharing: trivet_model::Sharing::Nothing,
            is_image: false,
            settings: VolumeSettings { verified_reads: faults.verified, ..VolumeSettings::default() },
            copies: 0,
            key: faults.verified.then(|| data_key(FIRST_KEY).id()),
            next_key: None,
            older_keys: Vec::new(),
            reverting: None,
            import: hydrates.then(|| InstantImport {
                source: "nbd://source/x".to_owned(),
                bytes: SOURCE_BYTES,
                fingerprint: 0,
                hydrated: 0,
            }),
        };
        let mut world = Self {
            random: Random(seed),
            faults,
            time: 0,
            core: VolumeCore::new(options(0, &record), Duration::ZERO),
            members,
            links: (0..MEMBERS).map(|_| Link::default()).collect(),
            record: (record, Revision(1)),
            authority: VecDeque::new(),
            client: Client::new(BLOCKS, hydrates),
            image_tag: None,
            image: None,
            fetches: VecDeque::new(),
            source_lacks: BTreeSet::new(),
            answers: BTreeMap::new(),
            trace: DefaultHasher::new(),
            openings: 0,
            scrubs: 0,
            expects_damage: false,
        };
        world.open();
        world
    }

    /// A fresh engine opens the volume; the old one, if there was one, is gone without a word.
    pub(super) fn open(&mut self) {
        for index in 0..MEMBERS {
            let cut_until = self.links[index].cut_until;
            self.links[index] = Link { cut_until, ..Link::default() };
            self.members[index].disconnected();
        }
        self.authority.clear();
        self.fetches.clear();
        self.client.forget();
        self.image_tag = None;
        self.openings += 1;
        self.core = VolumeCore::new(options(self.openings, &self.record.0), self.now());
        self.core.plant(self.faults.planted);
        self.perform();
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.time)
    }

    pub(super) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// One random event, and perhaps a fault.
    pub(super) fn step(&mut self, depth: usize) {
        self.inject();
        self.time += 1 + self.random.below(8) as u64;
        let member = self.random.below(MEMBERS);
        self.pull(member);
        match self.random.below(10) {
            0 | 1 => self.deliver_to_member(member),
            2 | 3 => self.execute(member),
            4 | 5 => self.deliver_to_engine(member),
            6 => self.connect(member),
            7 if self.faults.source_fails > 0 && self.random.once_in(2) => self.fetch(),
            7 => self.authorize(),
            8 if self.client.in_flight() < depth => {
                let (tag, request) = self.client.ask(self.time, &mut self.random);
                self.core.submit(self.now(), Tag(tag), request);
            }
            _ => {
                self.time += 40;
                self.core.tick(self.now());
            }
        }
        self.perform();
        self.check_scrub().unwrap_or_else(|error| panic!("{error}"));
    }

    fn inject(&mut self) {
        let faults = self.faults;
        let member = self.random.below(MEMBERS);
        if self.random.once_in(faults.disconnect) {
            self.break_link(member);
        }
        if self.random.once_in(faults.isolate) {
            self.links[member].cut_until = self.time + 500 + self.random.below(3500) as u64;
            self.break_link(member);
        }
        if self.random.once_in(faults.kill_member) {
            self.members[member].killed();
            self.break_link(member);
        }
        if self.random.once_in(faults.member_power_loss) && self.others_keep_everything(member) {
            self.members[member].power_lost(&mut self.random);
            self.break_link(member);
        }
        if self.random.once_in(faults.full) {
            self.members[member].full = if self.members[member].full == 0 { 2 } else { 0 };
        }
        if self.random.once_in(faults.bad_read) {
            self.members[member].bad_read = if self.members[member].bad_read == 0 { 2 } else { 0 };
        }
        if self.random.once_in(faults.rot) {
            self.rot(member);
        }
        if self.random.once_in(faults.scrub) {
            self.scrub(0, u64::from(u32::MAX));
        }
        if self.random.once_in(faults.use_up_stamps) {
            self.core.log.use_up();
        }
        if self.random.once_in(faults.second_engine) {
            // Its swap is enough: this engine must find out before it acknowledges again.
            self.record.0.generation = self.record.0.generation.next().unwrap();
            self.record.1.0 += 1;
        }
        let lost = self.core.standing() == Standing::Paused
            && self.core.reason().is_some_and(|r| r.contains("lost power"));
        let lost = lost && self.random.once_in(20);
        if lost || self.core.state().is_over() || self.random.once_in(faults.crash_engine) {
            self.open();
        }
    }

    /// Changes a block on a member's medium, if all have the same and can read it: so it can be mended.
    pub(super) fn rot(&mut self, member: usize) {
        let block = self.random.below(6) as u64;
        let version = self.members[member].blocks.get(&block);
        let alike = |other: &ModelMember| other.blocks.get(&block) == version && !other.is_rotten(block);
        if self.record.0.members.iter().all(|member| member.state == MemberState::InSync)
            && self.members.iter().all(alike)
        {
            self.members[member].rot(block);
        }
    }

    /// Begins a scrub at a block, in place of the one before.
    pub(super) fn scrub(&mut self, position: u64, bytes_per_second: u64) {
        self.scrubs += 1;
        let (run, counts) = (self.scrubs, ScrubCounts::default());
        self.core.scrub(self.now(), ScrubOrder { run, position, bytes_per_second, counts });
        self.perform();
    }

    /// Scrubs the volume to its end, and answers what was found.
    pub(super) fn scrub_to_the_end(&mut self, position: u64) -> ScrubCounts {
        self.scrub(position, u64::from(u32::MAX));
        for _ in 0..200_000 {
            self.step(0);
            match self.core.scrub_status(self.now()) {
                Some(status) if status.run == self.scrubs && status.finished => return status.counts,
                Some(status) if status.run == self.scrubs => {}
                _ => self.scrub(position, u64::from(u32::MAX)),
            }
        }
        panic!("a scrub does not end: {:?}", self.core.status(self.now()));
    }

    /// Time passes without faults or requests; answers the scrub's state then.
    pub(super) fn wait_ms(&mut self, ms: u64) -> Option<ScrubStatus> {
        let until = self.time + ms;
        while self.time < until {
            self.step(0);
        }
        self.core.scrub_status(self.now())
    }

    /// Of what a scrub found in this opening, nothing may have differed for good.
    fn check_scrub(&self) -> Result<(), String> {
        match self.core.scrub_status(self.now()) {
            Some(ScrubStatus { counts, .. }) if counts.mismatched > 0 && !self.expects_damage => {
                Err(format!("a scrub finds differences where there are none: {counts:?}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether an in-sync member besides this one still has all that it was ever told to write.
    fn others_keep_everything(&self, member: usize) -> bool {
        let mut others = self.record.0.members.iter().zip(&self.members).enumerate();
        others.any(|(index, (recorded, other))| {
            index != member && recorded.state == MemberState::InSync && other.is_whole()
        })
    }

    pub(super) fn break_link(&mut self, member: usize) {
        let link = &mut self.links[member];
        if std::mem::take(&mut link.up) {
            link.to_member.clear();
            link.to_engine.clear();
            self.members[member].disconnected();
            let fault = MemberFault::Unreachable("cut".to_owned());
            self.core.disconnected(self.now(), MemberIndex(member), fault);
            self.perform();
        }
    }

    fn deliver_to_member(&mut self, member: usize) {
        if let Some(frame) = self.links[member].to_member.pop_front() {
            self.members[member].take(frame);
        }
    }

    fn execute(&mut self, member: usize) {
        if self.members[member].is_busy()
            && let Some(mut reply) = self.members[member].execute(&mut self.random)
        {
            if let Some((source, range)) = self.members[member].take_repair()
                && !self.repair(member, source, range)
            {
                let detail = "the source cannot read it".to_owned();
                reply.message = Message::Error { code: ErrorCode::Source, detail };
            }
            self.links[member].to_engine.push_back(reply);
        }
    }

    /// A member fetches blocks from another; whether the other could read them.
    fn repair(&mut self, member: usize, source: PoolId, range: BlockRange) -> bool {
        let source = self.members.iter().position(|other| other.pool == source).expect("it is known");
        let readable = range.blocks().all(|block| !self.members[source].is_rotten(block));
        for block in range.blocks().filter(|_| readable) {
            let version = self.members[source].blocks.get(&block).cloned();
            self.members[member].repaired(block, version);
        }
        readable
    }

    fn deliver_to_engine(&mut self, member: usize) {
        if let Some(frame) = self.links[member].to_engine.pop_front() {
            (member, frame.request, std::mem::discriminant(&frame.message)).hash(&mut self.trace);
            self.core.received(self.now(), MemberIndex(member), frame);
        }
    }

    /// A member that copies from another gets on.
    fn pull(&mut self, member: usize) {
        if let Some((source, block)) = self.members[member].pulls()
            && self.random.once_in(3)
        {
            let source = self.members.iter().position(|other| other.pool == source).expect("it is known");
            if self.random.once_in(self.faults.disconnect) {
                return self.members[member].pull_failed();
            }
            let version = self.members[source].blocks.get(&block).cloned();
            self.members[member].pull_block(version);
        }
    }

    fn connect(&mut self, member: usize) {
        let link = &mut self.links[member];
        if link.wanted && !link.up && link.cut_until <= self.time {
            link.up = true;
            self.core.connected(self.now(), MemberIndex(member));
        }
    }

    /// The source answers something that it was asked, in any order.
    fn fetch(&mut self) {
        if self.fetches.is_empty() {
            return;
        }
        let at = self.random.below(self.fetches.len());
        let Some((chunk, offset, length)) = self.fetches.remove(at) else { return };
        let blocks = offset / BLOCK_SIZE_U64..(offset + u64::from(length)).div_ceil(BLOCK_SIZE_U64);
        let result = if self.random.once_in(self.faults.source_fails) {
            Err(SourceError::Away("the source is away".to_owned()))
        } else if self.source_lacks.range(blocks).next().is_some() {
            Err(SourceError::Refused("a bad sector".to_owned()))
        } else {
            Ok(source_data(offset, length))
        };
        self.core.source_fetched(self.now(), chunk, result);
    }

    /// How much of the source is in the volume by the record; nothing once all is.
    pub(super) fn hydrated(&self) -> Option<u64> {
        self.record.0.import.as_ref().map(|import| import.hydrated)
    }

    fn authorize(&mut self) {
        let unreachable = || AuthorityError::Unreachable("away".to_owned());
        let lost = self.random.once_in(8);
        match self.authority.pop_front() {
            Some(Asked::Read) => {
                let answer = if lost { Err(unreachable()) } else { Ok(self.record.clone()) };
                self.core.record_read(self.now(), answer);
            }
            Some(Asked::Swap(expected, record)) => {
                let actual = self.record.1;
                let answer = if expected == actual {
                    self.record = (*record, Revision(actual.0 + 1));
                    // The answer may get lost after the swap took place.
                    if lost { Err(unreachable()) } else { Ok(self.record.1) }
                } else {
                    Err(AuthorityError::Conflict { volume: record.id, actual })
                };
                self.core.record_swapped(self.now(), answer);
            }
            None => {}
        }
    }

    /// Carries out the core's actions.
    fn perform(&mut self) {
        let mut actions = Vec::new();
        self.core.take_actions(&mut actions);
        for action in actions {
            match action {
                Action::Connect { member, .. } => self.links[member.0].wanted = true,
                Action::Send { to, frame } => {
                    for member in to {
                        let link = &mut self.links[member.0];
                        assert!(link.up, "sent to a member that is not connected");
                        link.to_member.push_back(frame.clone());
                    }
                }
                Action::Disconnect { member } => {
                    let link = &mut self.links[member.0];
                    assert!(link.up, "hung up on a member that is not connected");
                    (link.up, link.to_member, link.to_engine) = (false, VecDeque::new(), VecDeque::new());
                    self.members[member.0].disconnected();
                }
                Action::Forget { member } => self.links[member.0].wanted = false,
                Action::ReadRecord => self.authority.push_back(Asked::Read),
                Action::SwapRecord { expected, record } => {
                    self.authority.push_back(Asked::Swap(expected, record));
                }
                Action::FetchSource { chunk, offset, length } => {
                    self.fetches.push_back((chunk, offset, length));
                }
                Action::Complete { tag, result } => {
                    tag.hash(&mut self.trace);
                    if tag.0 >= script::ASKED {
                        self.answers.insert(tag.0, result);
                        continue;
                    }
                    if Some(tag.0) == self.image_tag
                        && let Ok(IoReply::Data(segments)) = &result
                    {
                        self.image = Some(segments.iter().flat_map(|segment| segment.to_vec()).collect());
                    }
                    self.client.answered(self.time, tag.0, result);
                }
                Action::StateChanged => {}
            }
        }
    }
}

/// Of an encrypted volume, as long as it has not got another.
const FIRST_KEY: u8 = 5;
const SECOND_KEY: u8 = 6;

fn data_key(byte: u8) -> DataKey {
    DataKey::take(&mut [byte; 32])
}

fn options(session: u64, record: &VolumeRecord) -> CoreOptions {
    let keys = [FIRST_KEY, SECOND_KEY].map(data_key);
    CoreOptions {
        volume: VolumeId::from_bytes([9; 16]),
        owner: "test".to_owned(),
        session,
        read_only: false,
        snapshot: None,
        key: keys.into_iter().find(|key| record.key == Some(key.id())),
    }
}
