//! An engine's host: the process with the volume's core and its links, whose loop is that of
//! `engine/src/event_loop.rs` without sockets, on a clock of its own.

use crate::checkers::oracle::OpeningId;
use crate::importing::Fetch;
use crate::network::{Connection, Side};
use crate::random::Random;
use crate::record_store::RecordRequest;
use crate::swarm::{Fault, Profile};
use crate::trace::{Happening, state_number};
use crate::world::{Event, Node, VOLUME, World};
use std::time::Duration;
use trivet_engine::IoRequest;
use trivet_engine::volume::{
    Action, CoreOptions, MemberFault, MemberIndex, Standing, Tag, VolumeCore, VolumeState,
};
use trivet_model::{Generation, SnapshotId};
use trivet_wire::{DecodeError, Frame};

/// As in `engine/src/link.rs`.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const CONNECT_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LinkState {
    Waiting,
    Dialing,
    Up(usize),
}

#[derive(Debug)]
struct Link {
    host: usize,
    state: LinkState,
    pause: Duration,
    /// Counts attempts; events of older ones count no more.
    attempt: u64,
}

/// A running engine.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) core: VolumeCore,
    /// The snapshot that it looks at, if it only looks.
    pub(crate) viewed: Option<SnapshotId>,
    links: Vec<Link>,
    pub(crate) opening: OpeningId,
    /// What its clock said when it started.
    pub(crate) began: Duration,
    /// I/Os that it has carried out.
    pub(crate) passed: u64,
    tick_at: Option<Duration>,
    shown: VolumeState,
    /// The generation in which it opened the volume last.
    served: Generation,
}

#[derive(Debug)]
pub(crate) struct EngineHost {
    pub(crate) engine: Option<Engine>,
    /// Counts the engine's starts.
    pub(crate) incarnation: u64,
    pub(crate) held: Option<Vec<Event>>,
    /// Its clock's pace against the world's.
    pace: f64,
    /// What its clock said when the world began.
    origin: Duration,
}

impl EngineHost {
    pub(crate) fn new(profile: &Profile, random: &mut Random) -> Self {
        let pace =
            if profile.has(Fault::ClockDrift) { random.pick(&[0.95, 0.98, 1.0, 1.03, 1.05]) } else { 1.0 };
        Self {
            engine: None,
            incarnation: 0,
            held: None,
            pace,
            origin: Duration::from_secs(random.below(1000)),
        }
    }

    /// Whether its clock runs fast or slow.
    pub(crate) fn drifts(&self) -> bool {
        self.pace != 1.0
    }

    /// What its clock says; it never goes back.
    fn clock(&self, now: Duration) -> Duration {
        self.origin + now.mul_f64(self.pace)
    }

    pub(crate) fn state(&self) -> Option<VolumeState> {
        self.engine.as_ref().map(|engine| engine.core.state())
    }

    /// Whether the volume is open here with all that the record counts on.
    pub(crate) fn is_whole(&self) -> bool {
        let engine = self.engine.as_ref();
        engine.is_some_and(|e| e.core.state() == VolumeState::Open && e.core.standing() == Standing::Open)
    }
}

/// Which host an address names.
fn host_at(address: &str) -> usize {
    let number = address.strip_prefix("10.0.0.").and_then(|rest| rest.split(':').next());
    number.and_then(|number| number.parse().ok()).expect("the record names hosts of this world")
}

pub(crate) fn address_of(host: usize, port: u64) -> String {
    format!("10.0.0.{host}:{}", 7000 + port)
}

impl World {
    /// Starts an engine process that opens the volume, if none runs there.
    pub(crate) fn start_engine(&mut self, index: usize) {
        self.start_engine_at(index, None);
    }

    /// The same; with a snapshot, one that only looks at it.
    pub(crate) fn start_engine_at(&mut self, index: usize, viewed: Option<SnapshotId>) {
        let now = self.engines[index].clock(self.now);
        let host = &mut self.engines[index];
        if host.engine.is_some() {
            return;
        }
        host.incarnation += 1;
        let incarnation = host.incarnation;
        let session = self.random.next();
        let options = CoreOptions {
            volume: VOLUME,
            owner: format!("engine-{index}"),
            session,
            read_only: viewed.is_some(),
            snapshot: viewed,
            key: self.present_key(),
        };
        let core = VolumeCore::new(options, now);
        #[cfg(feature = "planted-faults")]
        let core = {
            let mut core = core;
            core.plant(self.planted.and_then(crate::Planted::in_engine));
            core
        };
        let opening = self.oracle.new_opening();
        self.engines[index].engine = Some(Engine {
            core,
            viewed,
            links: Vec::new(),
            opening,
            began: now,
            passed: 0,
            tick_at: None,
            shown: VolumeState::Claiming,
            served: Generation::ZERO,
        });
        self.note(Happening::EngineStarts { engine: index, incarnation });
        self.perform(index);
    }

    /// The engine's process ends at once. `word`: whether its host lives to tell its peers.
    pub(crate) fn kill_engine(&mut self, index: usize, word: bool, why: &'static str) {
        if self.engines[index].engine.take().is_none() {
            return;
        }
        self.note(Happening::EngineEnds { engine: index, why });
        for connection in self.network.open_at(Node::Engine(index)) {
            self.vanish(connection, Side::Engine, word);
        }
        self.engines[index].incarnation += 1;
        self.resume(Node::Engine(index));
    }

    pub(crate) fn engine_clock(&self, index: usize) -> Duration {
        self.engines[index].clock(self.now)
    }

    /// Calls the core with its clock's time, and does what it says.
    pub(crate) fn with_core(&mut self, index: usize, call: impl FnOnce(&mut VolumeCore, Duration)) {
        let now = self.engines[index].clock(self.now);
        if let Some(engine) = &mut self.engines[index].engine {
            call(&mut engine.core, now);
            self.perform(index);
        }
    }

    pub(crate) fn submit(&mut self, index: usize, tag: Tag, request: IoRequest) {
        self.with_core(index, |core, now| core.submit(now, tag, request));
    }

    pub(crate) fn engine_tick(&mut self, index: usize, incarnation: u64, at: Duration) {
        let host = &mut self.engines[index];
        if host.incarnation != incarnation {
            return;
        }
        if let Some(engine) = &mut host.engine
            && engine.tick_at == Some(at)
        {
            engine.tick_at = None;
            self.with_core(index, VolumeCore::tick);
        }
    }

    /// Sees to it that the core is called again in time.
    fn schedule_tick(&mut self, index: usize) {
        let (now, incarnation, pace) = (self.now, self.engines[index].incarnation, self.engines[index].pace);
        let Some(engine) = &mut self.engines[index].engine else { return };
        let Some(within) = engine.core.tick_within() else { return };
        // A nanosecond more: the rounding of clocks must not make it early.
        let after = within.div_f64(pace) + Duration::from_nanos(100);
        let at = now + after;
        if engine.tick_at.is_none_or(|known| at < known) {
            engine.tick_at = Some(at);
            self.schedule(after, Event::EngineTick { engine: index, incarnation, at });
        }
    }

    /// Does what the core says, until nothing is left.
    pub(crate) fn perform(&mut self, index: usize) {
        let mut actions = Vec::new();
        loop {
            let Some(engine) = &mut self.engines[index].engine else { return };
            engine.core.take_actions(&mut actions);
            if actions.is_empty() {
                break;
            }
            for action in actions.drain(..) {
                self.perform_one(index, action);
            }
        }
        self.schedule_tick(index);
    }

    fn perform_one(&mut self, index: usize, action: Action) {
        let incarnation = self.engines[index].incarnation;
        let Some(engine) = &mut self.engines[index].engine else { return };
        match action {
            Action::Connect { member, address } => {
                let host = host_at(&address);
                if let Some(link) = engine.links.get_mut(member.0) {
                    link.host = host;
                    if link.state == LinkState::Waiting {
                        (link.pause, link.attempt) = (PAUSE_MIN, link.attempt + 1);
                        self.dial(index, member);
                    }
                } else {
                    let state = LinkState::Waiting;
                    engine.links.push(Link { host, state, pause: PAUSE_MIN, attempt: 0 });
                    self.dial(index, member);
                }
            }
            Action::Send { to, frame } => {
                let up: Vec<usize> = to
                    .into_iter()
                    .filter_map(|member| match engine.links[member.0].state {
                        LinkState::Up(connection) => Some(connection),
                        LinkState::Waiting | LinkState::Dialing => None,
                    })
                    .collect();
                for connection in up {
                    self.transmit(connection, Side::Host, frame.clone());
                }
            }
            Action::Disconnect { member } => self.drop_link(index, member),
            // The simulated records lose nobody.
            Action::Forget { member } => unreachable!("{member:?} was not removed"),
            Action::ReadRecord => self.ask_record(index, incarnation, RecordRequest::Read),
            Action::SwapRecord { expected, record } => {
                self.ask_record(
                    index,
                    incarnation,
                    RecordRequest::Swap { expected, record, proposed: self.now },
                );
            }
            Action::FetchSource { chunk, offset, length } => {
                self.fetch_from_source(index, Fetch { chunk, offset, length });
            }
            Action::Complete { tag, result } => self.completed(index, tag, result),
            Action::StateChanged => self.state_changed(index),
        }
    }

    fn state_changed(&mut self, index: usize) {
        let Some(engine) = &mut self.engines[index].engine else { return };
        let state = engine.core.state();
        if state == engine.shown {
            return;
        }
        engine.shown = state;
        let generation = engine.core.record().map_or(Generation::ZERO, |record| record.generation);
        let opening = engine.opening;
        let first = state == VolumeState::Open && generation > engine.served && engine.viewed.is_none();
        if first {
            engine.served = generation;
        }
        self.note(Happening::State {
            engine: index,
            generation: generation.get(),
            state: state_number(state),
        });
        if first {
            self.volume_opened(opening, generation);
        }
    }

    /// Ends the present connection of a link, and makes another after a pause.
    fn drop_link(&mut self, index: usize, member: MemberIndex) {
        let incarnation = self.engines[index].incarnation;
        let Some(engine) = &mut self.engines[index].engine else { return };
        let link = &mut engine.links[member.0];
        let old = std::mem::replace(&mut link.state, LinkState::Waiting);
        link.attempt += 1;
        let (pause, attempt) = (link.pause, link.attempt);
        link.pause = (pause * 2).min(PAUSE_MAX);
        let over = engine.core.state().is_over();
        if let LinkState::Up(connection) = old
            && self.network.connections[connection].engine_open
        {
            self.hang_up(connection, Side::Engine);
        }
        if !over {
            self.schedule(pause, Event::Redial { engine: index, incarnation, member, attempt });
        }
    }

    fn dial(&mut self, index: usize, member: MemberIndex) {
        let incarnation = self.engines[index].incarnation;
        let Some(engine) = &mut self.engines[index].engine else { return };
        let link = &mut engine.links[member.0];
        link.state = LinkState::Dialing;
        link.attempt += 1;
        let attempt = link.attempt;
        let delay = self.network.latency * 2 + self.random.exponential(self.network.latency);
        self.schedule(delay, Event::Dialed { engine: index, incarnation, member, attempt });
    }

    /// The pause is over: connect. Or the attempt has taken too long: give it up.
    pub(crate) fn redial(&mut self, index: usize, incarnation: u64, member: MemberIndex, attempt: u64) {
        if self.engines[index].incarnation != incarnation {
            return;
        }
        let Some(engine) = &self.engines[index].engine else { return };
        let link = &engine.links[member.0];
        if link.attempt != attempt || engine.core.state().is_over() {
            return;
        }
        match link.state {
            LinkState::Waiting => self.dial(index, member),
            LinkState::Dialing => self.link_broke(index, member, "no answer"),
            LinkState::Up(_) => {}
        }
    }

    pub(crate) fn dialed(&mut self, index: usize, incarnation: u64, member: MemberIndex, attempt: u64) {
        if self.engines[index].incarnation != incarnation {
            return;
        }
        let Some(engine) = &self.engines[index].engine else { return };
        let link = &engine.links[member.0];
        if link.attempt != attempt || link.state != LinkState::Dialing {
            return;
        }
        let host = link.host;
        let passes = [Side::Host, Side::Engine].iter().all(|to| !self.network.is_blocked(index, host, *to));
        if !passes || !self.hosts[host].powered {
            // Nothing comes back. Should the link be open again in time, the next attempt finds out.
            return self.schedule(CONNECT_MAX, Event::Redial { engine: index, incarnation, member, attempt });
        }
        if self.hosts[host].process.is_none() {
            return self.link_broke(index, member, "connection refused");
        }
        let connection = self.network.connections.len();
        self.network
            .connections
            .push(Connection::new((index, incarnation, member), (host, self.hosts[host].incarnation)));
        self.note(Happening::Connected { connection, engine: index, host });
        self.schedule(Duration::ZERO, Event::Accept { connection });
        if let Some(engine) = &mut self.engines[index].engine {
            engine.links[member.0].state = LinkState::Up(connection);
        }
        self.with_core(index, |core, now| core.connected(now, member));
    }

    fn link_broke(&mut self, index: usize, member: MemberIndex, cause: &'static str) {
        self.drop_link(index, member);
        let fault = MemberFault::Unreachable(cause.to_owned());
        self.with_core(index, |core, now| core.disconnected(now, member, fault));
    }

    /// The engine's end of a connection hears that it is over.
    pub(crate) fn engine_lost(&mut self, connection: usize, cause: &'static str) {
        let known = &mut self.network.connections[connection];
        known.engine_open = false;
        let (index, member) = (known.engine, known.member);
        if self.is_present(connection) {
            self.link_broke(index, member, cause);
        }
    }

    /// Whether every link of an engine leads to a server that runs: what has vanished without a word
    /// is noticed only later.
    pub(crate) fn is_connected(&self, index: usize) -> bool {
        let alive = |link: &Link| match link.state {
            LinkState::Up(connection) => self.network.connections[connection].host_open,
            LinkState::Waiting | LinkState::Dialing => false,
        };
        self.engines[index].engine.as_ref().is_some_and(|engine| engine.links.iter().all(alive))
    }

    /// Whether a connection is its link's present one.
    fn is_present(&self, connection: usize) -> bool {
        let known = &self.network.connections[connection];
        let host = &self.engines[known.engine];
        host.incarnation == known.engine_incarnation
            && host
                .engine
                .as_ref()
                .is_some_and(|engine| engine.links[known.member.0].state == LinkState::Up(connection))
    }

    pub(crate) fn engine_received(&mut self, connection: usize, result: Result<Frame, DecodeError>) {
        if !self.is_present(connection) {
            return;
        }
        let (index, member) =
            (self.network.connections[connection].engine, self.network.connections[connection].member);
        match result {
            Ok(frame) => {
                if let Some(engine) = &mut self.engines[index].engine {
                    engine.links[member.0].pause = PAUSE_MIN;
                }
                self.with_core(index, |core, now| core.received(now, member, frame));
            }
            Err(_) => {
                self.hang_up(connection, Side::Engine);
                self.link_broke(index, member, "not a frame");
            }
        }
    }
}
