//! Connections between engines and replica servers.
//!
//! Each direction of a connection is a pipe: what goes in comes out in order, later, or never. A
//! direction of a link that is *blocked* keeps what is in its pipes, as TCP does, until it is open
//! again. A connection that is reset still delivers a part of what was on its way. The two ends of a
//! connection end on their own: one side may long have a new connection while the other still hears
//! the old one's frames.

use crate::host::landed;
use crate::swarm::Fault;
use crate::trace::Happening;
use crate::world::{Event, Node, World};
use std::collections::VecDeque;
use std::time::Duration;
use trivet_engine::volume::MemberIndex;
use trivet_replica::session::ConnectionId;
use trivet_wire::{DecodeError, Decoder, Encoder, Frame};

/// One in so many frames is damaged, where frames are.
const DAMAGE_ONE_IN: u64 = 60;
/// How long a replica server listens to a connection that it has closed.
pub(crate) const LINGER: Duration = Duration::from_secs(2);

/// Which end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Engine,
    Host,
}

#[derive(Debug)]
enum Item {
    Frame(Frame),
    /// A frame's bytes, one bit of them turned over.
    Damaged(Vec<u8>),
    End,
}

#[derive(Debug, Default)]
struct Pipe {
    items: VecDeque<(Duration, Item)>,
    /// Whether a delivery is on its way.
    scheduled: bool,
    last: Duration,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) engine: usize,
    pub(crate) engine_incarnation: u64,
    pub(crate) member: MemberIndex,
    pub(crate) host: usize,
    pub(crate) host_incarnation: u64,
    pub(crate) engine_open: bool,
    pub(crate) host_open: bool,
    /// As the replica server knows it.
    pub(crate) peer: Option<ConnectionId>,
    to_host: Pipe,
    to_engine: Pipe,
}

impl Connection {
    fn pipe(&mut self, to: Side) -> &mut Pipe {
        match to {
            Side::Host => &mut self.to_host,
            Side::Engine => &mut self.to_engine,
        }
    }

    fn is_open(&self, side: Side) -> bool {
        match side {
            Side::Host => self.host_open,
            Side::Engine => self.engine_open,
        }
    }
}

/// Every connection that there ever was, and which links pass nothing.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) connections: Vec<Connection>,
    hosts: usize,
    /// By engine, host and direction: how many faults block it.
    blocked: Vec<[u32; 2]>,
    /// How long a frame takes at least.
    pub(crate) latency: Duration,
}

impl Network {
    pub(crate) fn new(engines: usize, hosts: usize) -> Self {
        let latency = Duration::from_micros(40);
        Self { connections: Vec::new(), hosts, blocked: vec![[0; 2]; engines * hosts], latency }
    }

    pub(crate) fn node(&self, connection: usize, side: Side) -> Node {
        let connection = &self.connections[connection];
        match side {
            Side::Host => Node::Host(connection.host),
            Side::Engine => Node::Engine(connection.engine),
        }
    }

    pub(crate) fn is_blocked(&self, engine: usize, host: usize, to: Side) -> bool {
        self.blocked[engine * self.hosts + host][to as usize] > 0
    }

    /// The connections of a host or engine with an end that is open there.
    pub(crate) fn open_at(&self, node: Node) -> Vec<usize> {
        let open = |connection: &Connection| match node {
            Node::Host(host) => connection.host == host && connection.host_open,
            Node::Engine(engine) => connection.engine == engine && connection.engine_open,
        };
        let all = self.connections.iter().enumerate();
        all.filter(|(_, connection)| open(connection)).map(|(index, _)| index).collect()
    }
}

impl World {
    pub(crate) fn block(&mut self, engine: usize, host: usize, to: Side) {
        self.network.blocked[engine * self.network.hosts + host][to as usize] += 1;
    }

    pub(crate) fn unblock(&mut self, engine: usize, host: usize, to: Side, all: bool) {
        let count = &mut self.network.blocked[engine * self.network.hosts + host][to as usize];
        *count = if all { 0 } else { count.saturating_sub(1) };
        if *count > 0 {
            return;
        }
        for index in 0..self.network.connections.len() {
            let connection = &self.network.connections[index];
            if connection.engine == engine && connection.host == host {
                self.schedule_delivery(index, to);
            }
        }
    }

    /// Sees to it that the first item of a pipe is delivered.
    fn schedule_delivery(&mut self, index: usize, to: Side) {
        let now = self.now;
        let connection = &mut self.network.connections[index];
        let (engine, host) = (connection.engine, connection.host);
        let pipe = connection.pipe(to);
        let Some((at, _)) = pipe.items.front() else { return };
        let after = at.saturating_sub(now);
        if pipe.scheduled || self.network.is_blocked(engine, host, to) {
            return;
        }
        self.network.connections[index].pipe(to).scheduled = true;
        self.schedule(after, Event::Deliver { connection: index, to });
    }

    fn push(&mut self, index: usize, to: Side, item: Item) {
        let mean = self.network.latency;
        let delay = mean + self.random.exponential(mean);
        let now = self.now;
        let pipe = self.network.connections[index].pipe(to);
        pipe.last = pipe.last.max(now + delay);
        let at = pipe.last;
        pipe.items.push_back((at, item));
        self.schedule_delivery(index, to);
    }

    /// Sends a frame to the other end.
    pub(crate) fn transmit(&mut self, index: usize, to: Side, frame: Frame) {
        if self.profile.has(Fault::CorruptFrame) && self.is_striking() && self.random.one_in(DAMAGE_ONE_IN) {
            let mut encoder = Encoder::new();
            encoder.push(&frame);
            let mut bytes = encoder.take().concat();
            let at = self.random.index(bytes.len());
            bytes[at] ^= 1 << self.random.below(8);
            self.note(Happening::Note("a frame is damaged"));
            self.count(Fault::CorruptFrame);
            return self.push(index, to, Item::Damaged(bytes));
        }
        self.push(index, to, Item::Frame(frame));
    }

    /// Closes one's own end: what was sent before still arrives, then the other end hears of it.
    pub(crate) fn hang_up(&mut self, index: usize, side: Side) {
        let connection = &mut self.network.connections[index];
        let to = match side {
            Side::Engine => {
                connection.engine_open = false;
                Side::Host
            }
            Side::Host => {
                connection.host_open = false;
                Side::Engine
            }
        };
        self.push(index, to, Item::End);
    }

    /// The end at `side` vanishes; with `word`, the other end gets to know, and what was on its way
    /// there may be cut short.
    pub(crate) fn vanish(&mut self, index: usize, side: Side, word: bool) {
        let connection = &mut self.network.connections[index];
        let to = match side {
            Side::Engine => {
                connection.engine_open = false;
                Side::Host
            }
            Side::Host => {
                connection.host_open = false;
                Side::Engine
            }
        };
        self.cut_short(index, to);
        if word {
            self.push(index, to, Item::End);
        }
    }

    /// Both ends lose the connection, each after a part of what is on its way to it.
    pub(crate) fn reset(&mut self, index: usize) {
        for to in [Side::Host, Side::Engine] {
            self.cut_short(index, to);
            self.push(index, to, Item::End);
        }
    }

    fn cut_short(&mut self, index: usize, to: Side) {
        let length = self.network.connections[index].pipe(to).items.len();
        let kept = if self.random.one_in(3) { length } else { self.random.index(length + 1) };
        self.network.connections[index].pipe(to).items.truncate(kept);
    }

    pub(crate) fn deliver(&mut self, index: usize, to: Side) {
        let connection = &mut self.network.connections[index];
        connection.pipe(to).scheduled = false;
        let (engine, host) = (connection.engine, connection.host);
        if self.network.is_blocked(engine, host, to) {
            return;
        }
        let Some((_, item)) = self.network.connections[index].pipe(to).items.pop_front() else { return };
        self.schedule_delivery(index, to);
        if !self.network.connections[index].is_open(to) {
            return self.refuse(index, to, &item);
        }
        match (to, item) {
            (Side::Host, Item::Frame(frame)) => {
                self.note(Happening::frame(index, true, &frame));
                self.host_received(index, Ok(frame));
            }
            (Side::Engine, Item::Frame(frame)) => {
                self.note(Happening::frame(index, false, &frame));
                self.engine_received(index, Ok(frame));
            }
            (Side::Host, Item::Damaged(bytes)) => self.host_received(index, decode(&bytes)),
            (Side::Engine, Item::Damaged(bytes)) => self.engine_received(index, decode(&bytes)),
            (Side::Host, Item::End) => {
                self.note(Happening::Ended { connection: index, at_host: true });
                self.network.connections[index].host_open = false;
                self.forget(index);
            }
            (Side::Engine, Item::End) => {
                self.note(Happening::Ended { connection: index, at_host: false });
                self.engine_lost(index, "the connection ended");
            }
        }
    }

    /// Nobody listens any more: whoever is there answers with a reset, which the sender hears.
    fn refuse(&mut self, index: usize, to: Side, item: &Item) {
        let connection = &self.network.connections[index];
        let (there, back) = match to {
            Side::Host => (self.hosts[connection.host].powered, Side::Engine),
            Side::Engine => (true, Side::Host),
        };
        if there && !matches!(item, Item::End) && connection.is_open(back) {
            self.push(index, back, Item::End);
        }
    }

    pub(crate) fn accept(&mut self, index: usize) {
        let (host, incarnation) = {
            let connection = &self.network.connections[index];
            (connection.host, connection.host_incarnation)
        };
        if self.hosts[host].incarnation != incarnation || !self.network.connections[index].host_open {
            return;
        }
        if let Some(process) = &mut self.hosts[host].process {
            let peer = process.sessions.connected();
            process.peers.push((peer, index));
            self.network.connections[index].peer = Some(peer);
        }
    }

    /// The replica server forgets a connection.
    pub(crate) fn forget(&mut self, index: usize) {
        let connection = &mut self.network.connections[index];
        let (host, incarnation) = (connection.host, connection.host_incarnation);
        let Some(peer) = connection.peer.take() else { return };
        if self.hosts[host].incarnation == incarnation
            && let Some(process) = &mut self.hosts[host].process
        {
            process.peers.retain(|(known, _)| *known != peer);
            process.sessions.disconnected(peer);
        }
    }

    fn host_received(&mut self, index: usize, result: Result<Frame, DecodeError>) {
        let connection = &self.network.connections[index];
        let (host, Some(peer)) = (connection.host, connection.peer) else { return };
        if let Ok(frame) = &result {
            self.note_asked(host, index, frame);
        }
        let known = &mut self.hosts[host];
        let result = result.map(|frame| landed(&mut known.arena, frame));
        let Some(process) = &mut known.process else { return };
        let mut outputs = std::mem::take(&mut process.outputs);
        match result {
            Ok(frame) => process.sessions.received(peer, frame, &process.store, &mut outputs),
            Err(error) => process.sessions.malformed(peer, error, &mut outputs),
        }
        self.perform_outputs(host, outputs);
    }
}

/// What a receiver makes of a damaged frame.
fn decode(bytes: &[u8]) -> Result<Frame, DecodeError> {
    let mut decoder = Decoder::new();
    let mut rest = bytes;
    loop {
        if let Some(frame) = decoder.next()? {
            return Ok(frame);
        }
        let mut buffer = decoder.buffer();
        let (now, later) = rest.split_at(rest.len().min(buffer.capacity()));
        buffer.extend_from_slice(now);
        decoder.filled(buffer);
        assert!(!now.is_empty(), "a header that says a wrong length is refused by its checksum");
        rest = later;
    }
}

impl Connection {
    /// Between an engine's incarnation and member, and a host's incarnation.
    pub(crate) fn new(
        (engine, engine_incarnation, member): (usize, u64, MemberIndex),
        (host, host_incarnation): (usize, u64),
    ) -> Self {
        Self {
            engine,
            engine_incarnation,
            member,
            host,
            host_incarnation,
            engine_open: true,
            host_open: true,
            peer: None,
            to_host: Pipe::default(),
            to_engine: Pipe::default(),
        }
    }
}
