//! The authority: one record under compare-and-swap, behind a network that delays, fails, and loses
//! answers of swaps that took place.

use crate::Check;
use crate::checkers::invariants;
use crate::encryption::data_key;
use crate::engine_host::address_of;
use crate::host::Host;
use crate::random::Random;
use crate::swarm::{Fault, Profile};
use crate::trace::Happening;
use crate::world::{Event, VOLUME, World};
use std::time::Duration;
use trivet_model::{
    AuthorityError, Epoch, Generation, Member, MemberState, Revision, VolumeRecord, VolumeSettings,
};

/// How long an engine waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// One in so many exchanges loses the request or the answer, where they are lost.
const LOST_ONE_IN: u64 = 4;
/// How old an engine's news of its members may be when it drops one, where nothing holds messages up;
const NEWS_QUICK: Duration = Duration::from_millis(250);
/// and where something does.
const NEWS_SLOW: Duration = Duration::from_secs(15);

#[derive(Clone, Debug)]
pub(crate) enum RecordRequest {
    Read,
    Swap { expected: Revision, record: Box<VolumeRecord>, proposed: Duration },
}

#[derive(Debug)]
pub(crate) enum RecordAnswer {
    Read(Box<Result<(VolumeRecord, Revision), AuthorityError>>),
    Swapped(Result<Revision, AuthorityError>),
}

#[derive(Debug)]
pub(crate) struct RecordStore {
    pub(crate) record: VolumeRecord,
    pub(crate) revision: Revision,
    pub(crate) away: u32,
    /// Engines that cannot reach it, as often as they were cut off.
    pub(crate) cut_off: Vec<usize>,
}

impl RecordStore {
    pub(crate) fn new(hosts: &[Host], profile: &Profile, settings: VolumeSettings) -> Self {
        let members = hosts.iter().enumerate().map(|(index, host)| Member {
            replica: host.pool,
            address: address_of(index, 0),
            state: MemberState::InSync,
        });
        let record = VolumeRecord {
            id: VOLUME,
            name: "simulated".to_owned(),
            blocks: profile.blocks,
            generation: Generation::ZERO,
            owner: String::new(),
            epoch: Epoch(1),
            wait_owed: false,
            members: members.collect(),
            snapshots: Vec::new(),
            lineage: Vec::new(),
            sharing: trivet_model::Sharing::Nothing,
            is_image: false,
            settings,
            copies: 0,
            key: profile.encrypted.then(|| data_key(0).id()),
            next_key: None,
            older_keys: Vec::new(),
            reverting: None,
            import: None,
        };
        let record = match profile {
            _ if profile.has(Fault::Cloned) => crate::cloning::record(record),
            _ if profile.has(Fault::Imported) => crate::importing::record(record),
            _ => record,
        };
        Self { record, revision: Revision(1), away: 0, cut_off: Vec::new() }
    }

    /// Whether an engine cannot reach the record.
    pub(crate) fn is_cut_off(&self, engine: usize) -> bool {
        self.cut_off.contains(&engine)
    }

    /// The hosts whose members the record calls in sync.
    pub(crate) fn in_sync(&self) -> Vec<usize> {
        let in_sync = self.record.members.iter().filter(|member| member.state == MemberState::InSync);
        in_sync.map(|member| crate::template::host_of(member.replica)).collect()
    }

    /// Somebody else changes what is no engine's business, or where a member is found.
    pub(crate) fn touch(&mut self, random: &mut Random) {
        let host = random.index(self.record.members.len());
        let member = &mut self.record.members[host];
        if random.one_in(2) {
            member.address = address_of(crate::template::host_of(member.replica), random.below(2));
        }
        self.revision.0 += 1;
    }

    fn swap(&mut self, expected: Revision, record: VolumeRecord) -> Result<Revision, AuthorityError> {
        if expected != self.revision {
            return Err(AuthorityError::Conflict { volume: VOLUME, actual: self.revision });
        }
        self.record = record;
        self.revision.0 += 1;
        Ok(self.revision)
    }
}

fn unreachable(request: &RecordRequest) -> RecordAnswer {
    let error = AuthorityError::Unreachable("no answer".to_owned());
    match request {
        RecordRequest::Read => RecordAnswer::Read(Box::new(Err(error))),
        RecordRequest::Swap { .. } => RecordAnswer::Swapped(Err(error)),
    }
}

impl World {
    pub(crate) fn ask_record(&mut self, engine: usize, incarnation: u64, request: RecordRequest) {
        let delay = self.random.log_between(Duration::from_micros(200), Duration::from_millis(30));
        let loses = self.profile.has(Fault::RecordLoss) && self.is_striking();
        let lost = loses && self.random.one_in(LOST_ONE_IN);
        if !lost {
            return self
                .schedule(delay, Event::RecordArrives { engine, incarnation, request: Box::new(request) });
        }
        self.count(Fault::RecordLoss);
        let answer = unreachable(&request);
        if self.random.one_in(2) {
            // It is slow rather than lost, and arrives when nobody waits for it any more.
            let late = self.random.log_between(Duration::from_millis(1), TIMEOUT * 3);
            let incarnation = u64::MAX;
            self.schedule(late, Event::RecordArrives { engine, incarnation, request: Box::new(request) });
        }
        self.schedule(TIMEOUT, Event::RecordAnswers { engine, incarnation, answer: Box::new(answer) });
    }

    pub(crate) fn record_arrives(&mut self, engine: usize, incarnation: u64, request: RecordRequest) {
        if self.records.away > 0 || self.records.is_cut_off(engine) {
            let answer = Box::new(unreachable(&request));
            return self.schedule(TIMEOUT, Event::RecordAnswers { engine, incarnation, answer });
        }
        let answer = match request {
            RecordRequest::Read => {
                RecordAnswer::Read(Box::new(Ok((self.records.record.clone(), self.records.revision))))
            }
            RecordRequest::Swap { expected, record, proposed } => {
                let before = self.records.record.clone();
                let in_sync = self.records.in_sync();
                let result = self.records.swap(expected, *record);
                let after = &self.records.record;
                let (generation, epoch) = (after.generation.get(), after.epoch.0);
                if result.is_ok() {
                    let stay = self.records.in_sync();
                    let knew = proposed.saturating_sub(self.news_takes());
                    in_sync
                        .iter()
                        .filter(|host| !stay.contains(host))
                        .for_each(|&host| self.oracle.member_left(host, knew));
                    let broken = invariants::record_step(&before, after).or_else(|| self.check_sizes());
                    self.note(Happening::Record { engine, what: "swapped", generation, epoch });
                    if stay.iter().any(|host| !in_sync.contains(host)) {
                        self.check_promoted();
                    }
                    self.keys_changed(&before);
                    let done = self.records.record.reverting.is_none();
                    if let Some(reverting) = before.reverting.as_ref().filter(|_| done) {
                        self.reverted(reverting.to);
                    }
                    if let Some(broken) = broken {
                        self.fail(
                            Check::Record,
                            format!("{broken}: {before:?} became {:?}", self.records.record),
                        );
                    }
                } else {
                    self.note(Happening::Record { engine, what: "conflict", generation, epoch });
                }
                RecordAnswer::Swapped(result)
            }
        };
        let delay = self.random.log_between(Duration::from_micros(200), Duration::from_millis(30));
        self.schedule(delay, Event::RecordAnswers { engine, incarnation, answer: Box::new(answer) });
    }

    /// How old at most what an engine must know of its members is: they were asked after it was due to
    /// drop one, and have answered.
    fn news_takes(&self) -> Duration {
        let held_up =
            [Fault::ClogLink, Fault::Partition, Fault::Isolation, Fault::PauseReplica, Fault::PauseEngine];
        let quick = !held_up.into_iter().any(|fault| self.profile.has(fault));
        if quick { NEWS_QUICK } else { NEWS_SLOW }
    }

    /// The record never promises more than the replicas in sync have.
    fn check_sizes(&self) -> Option<&'static str> {
        let small = |host: usize| {
            let process = self.hosts[host].process.as_ref();
            let replica = process.and_then(|process| process.store.volume(VOLUME));
            replica.is_some_and(|replica| replica.blocks < self.records.record.blocks)
        };
        self.records.in_sync().into_iter().any(small).then_some("a replica in sync is too small")
    }

    pub(crate) fn record_answers(&mut self, engine: usize, incarnation: u64, answer: RecordAnswer) {
        if self.engines[engine].incarnation != incarnation {
            return;
        }
        self.with_core(engine, |core, now| match answer {
            RecordAnswer::Read(result) => core.record_read(now, *result),
            RecordAnswer::Swapped(result) => core.record_swapped(now, result),
        });
    }
}
