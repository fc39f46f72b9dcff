//! The sessions against scripted results of a store.

mod copying;
mod history;
mod opening;
mod requests;

use super::*;
use bytes::Bytes;
use std::collections::BTreeMap;
use trivet_model::{BLOCK_SIZE, BlockRange, Epoch, Generation, Stamp};
use trivet_wire::{BlockData, Hello, PROTOCOL_VERSION, Progress};

/// What the store would say of its volumes.
#[derive(Default)]
struct Facts(BTreeMap<VolumeId, VolumeStatistics>, Vec<Snapshot>);

impl PoolFacts for Facts {
    fn volume(&self, volume: VolumeId) -> Option<VolumeStatistics> {
        self.0.get(&volume).cloned()
    }

    fn snapshots(&self, _volume: VolumeId) -> Vec<Snapshot> {
        self.1.clone()
    }

    fn volumes(&self) -> Vec<VolumeStatistics> {
        self.0.values().cloned().collect()
    }

    fn statistics(&self) -> PoolStatistics {
        PoolStatistics { blocks_total: 100, blocks_used: 7, blocks_kept: 0, checksum_errors: 0, failed: None }
    }
}

/// The sessions, the facts, and what has come out and not been looked at.
struct Server {
    sessions: Sessions,
    facts: Facts,
    submitted: Vec<(RequestId, Request)>,
    sent: Vec<(ConnectionId, u64, Message)>,
    closed: Vec<(ConnectionId, CloseReason)>,
    /// What concerns copying, as it came.
    copying: Vec<Output>,
    progress: Vec<(VolumeId, VolumeProgress)>,
}

const VOLUME: VolumeId = VolumeId::from_bytes([1; 16]);
const OTHER: VolumeId = VolumeId::from_bytes([2; 16]);

fn generation(value: u32) -> Generation {
    Generation::new(value).unwrap()
}

fn stamp(of: u32, sequence: u64) -> Stamp {
    Stamp::new(generation(of), sequence).unwrap()
}

fn block(fill: u8) -> BlockData {
    BlockData::checksummed(vec![Bytes::from(vec![fill; BLOCK_SIZE])])
}

fn write(of: u32, sequence: u64) -> Message {
    Message::Write {
        start: 3,
        stamp: stamp(of, sequence),
        progress: Progress::default(),
        force_unit_access: false,
        data: block(9),
    }
}

fn open(session: u64) -> Message {
    Message::Open { volume: VOLUME, writable: true, session }
}

fn look() -> Message {
    Message::Open { volume: VOLUME, writable: false, session: 0 }
}

impl Server {
    fn new() -> Self {
        let identity = Identity { pool: PoolId::from_bytes([8; 16]), boot: BootId::from_bytes([9; 16]) };
        let mut server = Self {
            sessions: Sessions::new(identity),
            facts: Facts::default(),
            submitted: Vec::new(),
            sent: Vec::new(),
            closed: Vec::new(),
            copying: Vec::new(),
            progress: Vec::new(),
        };
        for volume in [VOLUME, OTHER] {
            server.add(volume);
        }
        server
    }

    fn add(&mut self, volume: VolumeId) {
        let statistics = VolumeStatistics {
            volume,
            blocks: 1000,
            tagged: false,
            blocks_used: 7,
            generation: Generation::ZERO,
            epoch: Epoch(0),
            session: 0,
            last: stamp(1, 5),
            intact: stamp(1, 4),
            progress: VolumeProgress { committed: stamp(1, 3), stable: stamp(1, 2) },
            tied: false,
        };
        self.facts.0.insert(volume, statistics);
    }

    fn collect(&mut self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Submit(id, request) => self.submitted.push((id, request)),
                Output::Progress(volume, progress) => self.progress.push((volume, progress)),
                Output::Send(to, frame) => self.sent.push((to, frame.request, frame.message)),
                Output::Close(connection, reason) => self.closed.push((connection, reason)),
                copying => self.copying.push(copying),
            }
        }
    }

    fn receive(&mut self, from: ConnectionId, frame: Frame) {
        let mut out = Vec::new();
        self.sessions.received(from, frame, &self.facts, &mut out);
        self.collect(out);
    }

    fn say(&mut self, from: ConnectionId, request: u64, of: u32, message: Message) {
        self.receive(from, Frame { request, generation: generation(of), epoch: Epoch(1), message });
    }

    fn complete(&mut self, id: RequestId, result: Result<Reply, RequestError>) {
        let mut out = Vec::new();
        self.sessions.completed(id, result, &self.facts, &mut out);
        self.collect(out);
    }

    /// Carries out the oldest submitted request, which must be a promise, as the store does.
    fn promise(&mut self) {
        let (id, request) = self.submitted.remove(0);
        let Request::Promise { volume, generation, epoch, session } = request else {
            panic!("not a promise: {request:?}")
        };
        let known = self.facts.0.get_mut(&volume).unwrap();
        (known.generation, known.epoch, known.session) = (generation, epoch, session);
        self.complete(id, Ok(Reply::Done));
    }

    fn greeted(&mut self) -> ConnectionId {
        let connection = self.sessions.connected();
        let hello = Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION };
        self.say(connection, 1, 0, Message::Hello(hello));
        assert!(matches!(self.sent.pop(), Some((_, 1, Message::HelloReply(_)))));
        connection
    }

    /// A connection that has the volume open for writing.
    fn opened(&mut self, of: u32, session: u64) -> ConnectionId {
        let connection = self.greeted();
        self.say(connection, 2, of, open(session));
        self.promise();
        assert!(matches!(self.sent.pop(), Some((to, 2, Message::OpenReply(_))) if to == connection));
        connection
    }

    /// The one answer sent since the last look.
    fn answer(&mut self) -> Message {
        assert_eq!(self.sent.len(), 1, "one answer: {:?}", self.sent);
        self.sent.pop().unwrap().2
    }

    fn error(&mut self) -> ErrorCode {
        match self.answer() {
            Message::Error { code, .. } => code,
            other => panic!("not an error: {other:?}"),
        }
    }

    /// The one connection closed since the last look, and why; the peer has been told.
    fn close_code(&mut self) -> (ConnectionId, ErrorCode) {
        assert_eq!(self.closed.len(), 1, "one closed: {:?}", self.closed);
        let (connection, reason) = self.closed.pop().unwrap();
        let CloseReason::Ours { code, .. } = reason else { panic!("{reason}") };
        let told = self.sent.pop();
        assert!(
            matches!(&told, Some((to, 0, Message::Error { code: said, .. })) if *to == connection && *said == code),
            "the peer must be told before: {told:?}"
        );
        (connection, code)
    }
}
