//! The world: one queue of events on a virtual clock, everything that lives in it, one owner.
//!
//! Nothing here knows threads, sockets or the wall clock; the same profile and seed give the same
//! events. Each mechanism has a file: `network.rs` the connections, `host.rs` replica servers,
//! `engine_host.rs` engines, `record_store.rs` the authority, `workload.rs` the clients, `faults.rs`
//! what goes wrong, `stages.rs` the run's course, `checkers/` what must hold.

use crate::checkers::oracle::Oracle;
use crate::engine_host::EngineHost;
use crate::groups::GroupAsked;
use crate::host::Host;
use crate::importing::Fetch;
use crate::network::{Network, Side};
use crate::past::Past;
use crate::random::Random;
use crate::record_store::{RecordAnswer, RecordRequest, RecordStore};
use crate::stages::Stage;
use crate::swarm::{Fault, Profile};
use crate::trace::{Happening, Trace};
use crate::workload::Clients;
use crate::{Check, Failure, Planted};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;
use trivet_disk::DiskToken;
use trivet_engine::volume::MemberIndex;
use trivet_model::{Durability, VolumeId};
use trivet_replica::session::ConnectionId;
use trivet_wire::Frame;

/// The volume that everything is about.
pub(crate) const VOLUME: VolumeId = VolumeId::from_bytes([9; 16]);

/// A run that has come to this many events has lost its way.
const EVENTS_MAX: u64 = 3_000_000;

/// What happens at a moment.
#[derive(Debug)]
pub(crate) enum Event {
    /// The first item of a connection's pipe arrives.
    Deliver {
        connection: usize,
        to: Side,
    },
    /// A replica server accepts a connection.
    Accept {
        connection: usize,
    },
    /// A replica server has lingered long enough on a connection that it closed.
    Forget {
        connection: usize,
    },
    /// An attempt to connect comes to its end.
    Dialed {
        engine: usize,
        incarnation: u64,
        member: MemberIndex,
        attempt: u64,
    },
    /// The pause before the next attempt is over, or the attempt has taken too long.
    Redial {
        engine: usize,
        incarnation: u64,
        member: MemberIndex,
        attempt: u64,
    },
    /// A replica server's turn of its loop.
    Turn {
        host: usize,
        incarnation: u64,
    },
    DiskDone {
        host: usize,
        incarnation: u64,
        token: DiskToken,
    },
    /// A background thread has done a job.
    Background {
        host: usize,
        incarnation: u64,
        job: usize,
    },
    /// Fifty milliseconds of quiet may be over.
    Quiet {
        host: usize,
        incarnation: u64,
    },
    HostTick {
        host: usize,
        incarnation: u64,
    },
    StartReplica {
        host: usize,
    },
    /// A question of a copy reaches its source.
    CopyAsks {
        host: usize,
        incarnation: u64,
        peer: ConnectionId,
        back: (usize, u64, u64),
        frame: Frame,
    },
    /// A source's answer reaches the copy.
    CopyAnswered {
        host: usize,
        incarnation: u64,
        number: u64,
        frame: Frame,
    },
    EngineTick {
        engine: usize,
        incarnation: u64,
        at: Duration,
    },
    RecordArrives {
        engine: usize,
        incarnation: u64,
        request: Box<RecordRequest>,
    },
    RecordAnswers {
        engine: usize,
        incarnation: u64,
        answer: Box<RecordAnswer>,
    },
    /// The source of an import answers an engine.
    SourceAnswers {
        engine: usize,
        incarnation: u64,
        fetch: Fetch,
    },
    /// A client may ask for something.
    Client {
        engine: usize,
    },
    /// A fault strikes; `again`, it has its next strike scheduled.
    Strike {
        fault: Fault,
        again: bool,
    },
    StartEngine {
        engine: usize,
    },
    /// What a strike has done is over, unless everything was mended meanwhile (`mended`).
    Mend {
        what: Mending,
        mended: u64,
    },
    /// A step of a snapshot over several volumes comes to its engine.
    Group(Box<GroupAsked>),
    /// Looks after what a supervisor looks after, and moves the run on.
    Watch,
}

/// The end of a fault's effect.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mending {
    Link { engine: usize, host: usize, to: Side },
    ResumeHost(usize),
    ResumeEngine(usize),
    Disk(usize),
    Record,
    RecordLink { engine: usize },
    Source,
}

/// A process that can be stopped and go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Node {
    Host(usize),
    Engine(usize),
}

#[derive(Debug)]
struct Scheduled {
    at: Duration,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Duration,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    pub(crate) profile: Profile,
    #[cfg(feature = "planted-faults")]
    pub(crate) planted: Option<Planted>,
    pub(crate) stage: Stage,
    /// Counts the times that everything was mended.
    pub(crate) mended: u64,
    /// A replica has come back, and was not looked at since.
    pub(crate) returned: bool,
    /// When a disk was last exchanged, or its metadata rotted.
    pub(crate) lost_disk_at: Option<Duration>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) engines: Vec<EngineHost>,
    /// The engine that is meant to have the volume open.
    pub(crate) desired: usize,
    /// How often the source of an import has gone away, and is not back.
    pub(crate) source_away: u32,
    /// It was said that what is acknowledged is stable.
    pub(crate) write_through: bool,
    /// Not what they were in the beginning, perhaps.
    pub(crate) limits_change: bool,
    /// The last stamps under each data key that the volume had before its present one.
    pub(crate) untils: Vec<trivet_model::Stamp>,
    pub(crate) network: Network,
    pub(crate) records: RecordStore,
    /// What each snapshot showed when it was taken.
    pub(crate) snapshots:
        std::collections::BTreeMap<trivet_model::SnapshotId, std::collections::BTreeMap<usize, u64>>,
    /// A revert that was done while nobody could be asked what its snapshot shows, and when.
    pub(crate) unseen_revert: Option<(trivet_model::SnapshotId, Duration)>,
    pub(crate) oracle: Oracle,
    pub(crate) clients: Clients,
    pub(crate) trace: Trace,
    pub(crate) failure: Option<Failure>,
    pub(crate) random: Random,
    pub(crate) disk_random: Random,
    pub(crate) client_random: Random,
    pub(crate) past: Past,
    pub(crate) strikes: BTreeMap<Fault, (Random, Duration)>,
    /// How often each fault has struck.
    pub(crate) struck: BTreeMap<Fault, u64>,
}

impl World {
    pub(crate) fn new(seed: u64, profile: Profile, planted: Option<Planted>, print: bool) -> Self {
        crate::planted::plant_in_replicas(planted);
        let mut random = Random::stream(seed, 2);
        let settings = crate::settings::draw(seed, &profile);
        let write_through = settings.durability == Durability::WriteThrough;
        let hosts: Vec<Host> =
            (0..profile.members).map(|index| Host::new(index, &profile, &mut random)).collect();
        let mut engines: Vec<EngineHost> =
            (0..profile.engines).map(|_| EngineHost::new(&profile, &mut random)).collect();
        if profile.has(Fault::Reader) {
            engines.push(EngineHost::new(&profile, &mut Random::stream(seed, 15)));
        }
        let mut records = RecordStore::new(&hosts, &profile, settings);
        if planted == Some(Planted::CloneInOldGeneration) {
            records.record.generation = trivet_model::Generation::ZERO;
        }
        let mut world = Self {
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            scheduled: 0,
            #[cfg(feature = "planted-faults")]
            planted,
            stage: Stage::Faults,
            mended: 0,
            returned: false,
            lost_disk_at: None,
            network: Network::new(engines.len(), profile.members),
            records,
            hosts,
            engines,
            desired: 0,
            source_away: 0,
            write_through,
            limits_change: false,
            untils: Vec::new(),
            snapshots: Default::default(),
            unseen_revert: None,
            oracle: Oracle::new(profile.blocks, |block| profile.begins_with_data(block)),
            clients: Clients::default(),
            trace: Trace::new(print),
            failure: None,
            disk_random: Random::stream(seed, 3),
            client_random: Random::stream(seed, 4),
            past: Past::new(seed),
            strikes: BTreeMap::new(),
            struck: BTreeMap::new(),
            random,
            profile,
        };
        for host in 0..world.hosts.len() {
            world.start_replica(host);
        }
        if world.engines.iter().any(EngineHost::drifts) {
            world.count(Fault::ClockDrift);
        }
        world.start_engine(0);
        world.begin_strikes(seed);
        for engine in 0..world.engines.len() {
            world.schedule(Duration::ZERO, Event::Client { engine });
        }
        world.schedule(crate::stages::WATCH, Event::Watch);
        world
    }

    pub(crate) fn schedule(&mut self, after: Duration, event: Event) {
        self.scheduled += 1;
        let at = self.now + after;
        self.queue.push(Reverse(Scheduled { at, number: self.scheduled, event }));
    }

    pub(crate) fn note(&mut self, happening: Happening) {
        self.trace.note(self.now, happening);
    }

    /// A fault has struck.
    pub(crate) fn count(&mut self, fault: Fault) {
        *self.struck.entry(fault).or_default() += 1;
    }

    /// The first failure counts.
    pub(crate) fn fail(&mut self, check: Check, detail: String) {
        let at = self.now;
        self.failure.get_or_insert(Failure { check, detail, at });
    }

    /// Runs until the run is over or something does not hold.
    pub(crate) fn run(&mut self) {
        while self.failure.is_none() && self.stage != Stage::Over {
            let Some(Reverse(Scheduled { at, event, .. })) = self.queue.pop() else {
                return self.fail(Check::Liveness, "nothing happens any more".to_owned());
            };
            self.now = at;
            self.trace.events += 1;
            if self.trace.events > EVENTS_MAX {
                return self.fail(Check::Liveness, format!("{EVENTS_MAX} events and no end"));
            }
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        if let Some(held) = self.held_back(&event) {
            return held.push(event);
        }
        match event {
            Event::Deliver { connection, to } => self.deliver(connection, to),
            Event::Accept { connection } => self.accept(connection),
            Event::Forget { connection } => self.forget(connection),
            Event::Dialed { engine, incarnation, member, attempt } => {
                self.dialed(engine, incarnation, member, attempt);
            }
            Event::Redial { engine, incarnation, member, attempt } => {
                self.redial(engine, incarnation, member, attempt);
            }
            Event::Turn { host, incarnation } => self.turn(host, incarnation),
            Event::DiskDone { host, incarnation, token } => self.disk_done(host, incarnation, token),
            Event::Background { host, incarnation, job } => self.background_done(host, incarnation, job),
            Event::Quiet { host, incarnation } => self.quiet(host, incarnation),
            Event::HostTick { host, incarnation } => self.host_tick(host, incarnation),
            Event::StartReplica { host } => self.start_replica(host),
            Event::CopyAsks { host, incarnation, peer, back, frame } => {
                self.copy_asks((host, incarnation, peer), back, frame);
            }
            Event::CopyAnswered { host, incarnation, number, frame } => {
                self.copy_answered((host, incarnation, number), frame);
            }
            Event::EngineTick { engine, incarnation, at } => self.engine_tick(engine, incarnation, at),
            Event::RecordArrives { engine, incarnation, request } => {
                self.record_arrives(engine, incarnation, *request);
            }
            Event::RecordAnswers { engine, incarnation, answer } => {
                self.record_answers(engine, incarnation, *answer);
            }
            Event::SourceAnswers { engine, incarnation, fetch } => {
                self.source_answers(engine, incarnation, fetch);
            }
            Event::Client { engine } => self.client(engine),
            Event::Strike { fault, again } => self.strike(fault, again),
            Event::StartEngine { engine } => self.start_engine(engine),
            Event::Mend { what, mended } if mended == self.mended => self.mend(what),
            Event::Mend { .. } => {}
            Event::Group(asked) => self.tell_group(*asked),
            Event::Watch => self.watch(),
        }
    }

    /// Where an event waits whose process is stopped.
    fn held_back(&mut self, event: &Event) -> Option<&mut Vec<Event>> {
        let node = match event {
            Event::Deliver { connection, to } => self.network.node(*connection, *to),
            Event::Accept { connection } | Event::Forget { connection } => {
                self.network.node(*connection, Side::Host)
            }
            Event::Turn { host, .. }
            | Event::DiskDone { host, .. }
            | Event::Background { host, .. }
            | Event::CopyAsks { host, .. }
            | Event::CopyAnswered { host, .. }
            | Event::Quiet { host, .. }
            | Event::HostTick { host, .. } => Node::Host(*host),
            Event::Dialed { engine, .. }
            | Event::Redial { engine, .. }
            | Event::EngineTick { engine, .. }
            | Event::SourceAnswers { engine, .. }
            | Event::RecordAnswers { engine, .. } => Node::Engine(*engine),
            Event::StartReplica { .. }
            | Event::RecordArrives { .. }
            | Event::Client { .. }
            | Event::Strike { .. }
            | Event::StartEngine { .. }
            | Event::Mend { .. }
            | Event::Group(_)
            | Event::Watch => return None,
        };
        match node {
            Node::Host(host) => self.hosts[host].held.as_mut(),
            Node::Engine(engine) => self.engines[engine].held.as_mut(),
        }
    }

    /// Lets a stopped process go on: all that waited for it happens now, in its order.
    pub(crate) fn resume(&mut self, node: Node) {
        let held = match node {
            Node::Host(host) => self.hosts[host].held.take(),
            Node::Engine(engine) => self.engines[engine].held.take(),
        };
        for event in held.into_iter().flatten() {
            self.schedule(Duration::ZERO, event);
        }
    }
}
