//! The sessions against scripted results of a store.

use super::*;
use crate::store::{AllocationExtent, ReadBlocks, TailExtent};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use trivet_model::{BLOCK_SIZE, BlockRange, Epoch, Generation, Stamp, ZERO_BLOCK_CRC};
use trivet_wire::frame::TAIL_ENTRIES_MAX;
use trivet_wire::{BlockData, Hello, HelloReply, OpenReply, PROTOCOL_VERSION, Progress, TailEntry};

/// What the store would say of its volumes.
#[derive(Default)]
struct Facts(BTreeMap<VolumeId, VolumeStatistics>);

impl PoolFacts for Facts {
    fn volume(&self, volume: VolumeId) -> Option<VolumeStatistics> {
        self.0.get(&volume).cloned()
    }

    fn volumes(&self) -> Vec<VolumeStatistics> {
        self.0.values().cloned().collect()
    }

    fn statistics(&self) -> PoolStatistics {
        PoolStatistics { blocks_total: 100, blocks_used: 7, checksum_errors: 0, failed: None }
    }
}

/// The sessions, the facts, and what has come out and not been looked at.
struct Server {
    sessions: Sessions,
    facts: Facts,
    submitted: Vec<(RequestId, Request)>,
    sent: Vec<(ConnectionId, u64, Message)>,
    closed: Vec<(ConnectionId, CloseReason)>,
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
            blocks_used: 7,
            generation: Generation::ZERO,
            epoch: Epoch(0),
            session: 0,
            last: stamp(1, 5),
            intact: stamp(1, 4),
            progress: VolumeProgress { committed: stamp(1, 3), stable: stamp(1, 2) },
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

#[test]
fn a_version_in_common_is_agreed_or_refused() {
    let mut server = Server::new();
    let connection = server.sessions.connected();
    assert!(!server.sessions.has_greeted(connection));
    server.say(connection, 1, 0, Message::Hello(Hello { version_min: 0, version_max: 9 }));
    let pool = PoolId::from_bytes([8; 16]);
    assert_eq!(server.answer(), Message::HelloReply(HelloReply { version: PROTOCOL_VERSION, pool }));
    assert!(server.sessions.has_greeted(connection));

    let connection = server.sessions.connected();
    server.say(connection, 1, 0, Message::Hello(Hello { version_min: 2, version_max: 3 }));
    assert_eq!(server.close_code(), (connection, ErrorCode::Version));
}

#[test]
fn messages_out_of_place_close_the_connection() {
    let hello = || Message::Hello(Hello { version_min: 1, version_max: 1 });
    let read = || Message::Read { range: BlockRange::new(0, 1) };
    let mut server = Server::new();
    let fresh = server.sessions.connected();
    server.say(fresh, 1, 0, read());
    assert_eq!(server.close_code(), (fresh, ErrorCode::Unexpected));
    for message in
        [hello(), read(), write(1, 1), Message::Done, Message::Close { progress: Progress::default() }]
    {
        let ready = server.greeted();
        server.say(ready, 2, 0, message);
        assert_eq!(server.close_code(), (ready, ErrorCode::Unexpected));
    }
    for (of, message) in [(1, hello()), (1, open(7)), (1, Message::PoolStatus), (2, write(1, 1))] {
        let mut server = Server::new();
        let open = server.opened(1, 7);
        server.say(open, 3, of, message);
        assert_eq!(server.close_code(), (open, ErrorCode::Unexpected));
    }
    for message in [write(1, 1), Message::Flush { progress: Progress::default() }] {
        let reader = server.greeted();
        server.say(reader, 2, 0, look());
        assert!(matches!(server.answer(), Message::OpenReply(_)));
        server.say(reader, 3, 1, message);
        assert_eq!(server.close_code(), (reader, ErrorCode::Unexpected));
    }
    assert!(server.submitted.is_empty());
}

#[test]
fn the_answer_to_open_comes_only_when_the_promise_is_durable() {
    let mut server = Server::new();
    let connection = server.greeted();
    server.say(connection, 2, 5, open(77));
    assert!(server.sent.is_empty());
    let Some((_, Request::Promise { generation: promised, session: 77, .. })) = server.submitted.first()
    else {
        panic!("no promise: {:?}", server.submitted)
    };
    assert_eq!(*promised, generation(5));
    server.promise();
    let Message::OpenReply(reply) = server.answer() else { panic!("no reply") };
    let expected = OpenReply {
        blocks: 1000,
        last: stamp(1, 5),
        intact: stamp(1, 4),
        progress: Progress { committed: stamp(1, 3), stable: stamp(1, 2) },
        boot: BootId::from_bytes([9; 16]),
    };
    assert_eq!(reply, expected);
}

#[test]
fn lower_generations_are_refused_for_ever() {
    let mut server = Server::new();
    server.opened(5, 77);
    let late = server.greeted();
    for (of, session) in [(4, 77), (5, 78), (1, 0)] {
        server.say(late, 3, of, open(session));
        assert_eq!(server.error(), ErrorCode::Fenced);
    }
    server.receive(late, Frame { request: 4, generation: generation(9), epoch: Epoch(0), message: open(1) });
    assert_eq!(server.error(), ErrorCode::Fenced, "an epoch that goes back");
    assert!(server.submitted.is_empty() && server.closed.is_empty());
    server.say(late, 5, 0, open(0));
    assert_eq!(server.close_code(), (late, ErrorCode::Malformed));
}

#[test]
fn a_newer_open_ends_the_older_session_at_once() {
    let mut server = Server::new();
    let old = server.opened(5, 77);
    server.say(old, 3, 5, write(5, 1));
    let in_flight = server.submitted.pop().unwrap().0;
    let new = server.greeted();
    server.say(new, 2, 6, open(1));
    assert_eq!(server.close_code(), (old, ErrorCode::Fenced));

    server.say(old, 4, 5, write(5, 2));
    assert!(!server.sessions.may_receive(old));
    assert_eq!(server.submitted.len(), 1, "only the promise: nothing of the old session follows it");
    server.complete(in_flight, Ok(Reply::Done));
    assert!(server.sent.is_empty());
    server.promise();
    assert!(matches!(server.answer(), Message::OpenReply(_)));
    server.sessions.disconnected(old);
    server.say(new, 3, 6, write(6, 1));
    assert_eq!(server.submitted.len(), 1, "the old one's end takes nothing from the new one");
}

#[test]
fn a_promise_on_its_way_refuses_what_is_below() {
    let mut server = Server::new();
    let (first, second, third) = (server.greeted(), server.greeted(), server.greeted());
    server.say(first, 2, 6, open(1));
    server.say(second, 2, 5, open(2));
    assert_eq!(server.error(), ErrorCode::Fenced);
    server.say(third, 2, 7, open(3));
    assert_eq!(server.close_code(), (first, ErrorCode::Fenced));
    server.promise();
    assert!(server.sent.is_empty(), "the first opener is superseded");
    server.say(second, 3, 6, open(1));
    assert_eq!(server.error(), ErrorCode::Fenced);
    server.promise();
    assert_eq!(server.sent.len(), 1);
    assert!(matches!(server.sent[0], (to, 2, Message::OpenReply(_)) if to == third));
}

#[test]
fn the_same_opening_reconnects_and_drains_its_older_connection() {
    let mut server = Server::new();
    let old = server.opened(5, 77);
    let new = server.greeted();
    server.say(new, 2, 5, open(77));
    assert_eq!(server.close_code(), (old, ErrorCode::Fenced));
    server.promise();
    assert!(matches!(server.answer(), Message::OpenReply(_)));
    server.sessions.disconnected(old);
    let administrator = server.greeted();
    server.say(administrator, 2, 0, Message::DeleteVolume { volume: VOLUME });
    assert_eq!(server.error(), ErrorCode::Busy);
}

#[test]
fn a_promise_that_fails_leaves_the_connection_ready() {
    let mut server = Server::new();
    let connection = server.greeted();
    server.say(connection, 2, 5, open(77));
    let id = server.submitted.pop().unwrap().0;
    server.complete(id, Err(RequestError::PoolFailed("EIO".into())));
    assert_eq!(server.error(), ErrorCode::PoolFailed);
    server.say(connection, 3, 0, Message::DeleteVolume { volume: VOLUME });
    assert_eq!(server.submitted.len(), 1, "not busy: nobody writes");
}

#[test]
fn a_volume_deleted_while_it_is_opened_is_not_opened() {
    let mut server = Server::new();
    let connection = server.greeted();
    server.say(connection, 2, 5, open(77));
    let id = server.submitted.pop().unwrap().0;
    server.facts.0.remove(&VOLUME);
    server.complete(id, Ok(Reply::Done));
    assert_eq!(server.error(), ErrorCode::NoSuchVolume);
    server.say(connection, 3, 5, open(77));
    assert_eq!(server.error(), ErrorCode::NoSuchVolume);
    server.say(connection, 4, 5, look());
    assert_eq!(server.error(), ErrorCode::NoSuchVolume);
}

#[test]
fn completions_out_of_order_answer_their_own_requests() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    for request in 10..14 {
        server.say(connection, request, 5, write(5, request));
    }
    let ids: Vec<RequestId> = server.submitted.drain(..).map(|(id, _)| id).collect();
    for index in [2, 0, 3, 1] {
        server.complete(ids[index], Ok(Reply::Done));
        let (to, request, message) = server.sent.pop().unwrap();
        assert_eq!((to, request, message), (connection, 10 + index as u64, Message::Done));
    }
    assert!(server.sessions.is_drained());
}

#[test]
fn a_request_id_in_flight_cannot_be_used_again() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    server.say(connection, 10, 5, write(5, 1));
    let id = server.submitted.pop().unwrap().0;
    server.complete(id, Ok(Reply::Done));
    server.sent.clear();
    server.say(connection, 10, 5, write(5, 2));
    assert!(server.closed.is_empty(), "answered: free again");
    server.say(connection, 10, 5, write(5, 3));
    assert_eq!(server.close_code(), (connection, ErrorCode::Unexpected));
    let connection = server.greeted();
    server.say(connection, 0, 0, Message::PoolStatus);
    assert_eq!(server.close_code(), (connection, ErrorCode::Malformed));
}

#[test]
fn changed_blocks_never_reach_the_store() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    let Message::Write { start, stamp, progress, force_unit_access, mut data } = write(5, 1) else {
        panic!()
    };
    data.crcs = vec![ZERO_BLOCK_CRC];
    server.say(connection, 3, 5, Message::Write { start, stamp, progress, force_unit_access, data });
    assert_eq!(server.error(), ErrorCode::ChecksumOnWire);
    assert!(server.submitted.is_empty() && server.closed.is_empty());
    server.say(connection, 4, 5, write(6, 1));
    assert_eq!(server.close_code(), (connection, ErrorCode::Malformed), "a stamp of the future");
}

#[test]
fn frames_of_a_lower_generation_on_an_open_session_are_fenced() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    server.say(connection, 3, 4, write(4, 1));
    assert_eq!(server.error(), ErrorCode::Fenced);
    assert!(server.submitted.is_empty());
}

#[test]
fn close_waits_for_what_is_in_flight() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    server.say(connection, 3, 5, write(5, 1));
    let id = server.submitted.pop().unwrap().0;
    let progress = Progress { committed: stamp(5, 1), stable: stamp(5, 1) };
    server.say(connection, 4, 5, Message::Close { progress });
    assert_eq!(server.progress, [(VOLUME, VolumeProgress { committed: stamp(5, 1), stable: stamp(5, 1) })]);
    assert!(server.sent.is_empty());
    server.complete(id, Ok(Reply::Done));
    let answers: Vec<u64> = server.sent.drain(..).map(|(_, request, _)| request).collect();
    assert_eq!(answers, [3, 4]);
    server.say(connection, 5, 0, Message::DeleteVolume { volume: VOLUME });
    assert_eq!(server.submitted.len(), 1, "nobody writes any more");
}

#[test]
fn frames_after_the_end_are_ignored() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    server.say(connection, 3, 5, Message::Error { code: ErrorCode::Stopping, detail: "bye".into() });
    assert!(matches!(server.closed.pop(), Some((_, CloseReason::Peers { .. }))));
    assert!(server.sent.is_empty());
    server.say(connection, 4, 5, write(5, 1));
    server.sessions.disconnected(connection);
    server.say(connection, 5, 5, write(5, 1));
    assert!(server.submitted.is_empty() && server.sent.is_empty() && server.closed.is_empty());
    let reused = server.greeted();
    assert_eq!((reused.index(), reused.serial()), (connection.index(), connection.serial() + 1));
    server.say(connection, 6, 5, write(5, 1));
    assert!(server.sent.is_empty() && server.closed.is_empty(), "an old name never means a new connection");
}

#[test]
fn answers_to_a_connection_that_is_gone_are_dropped() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    server.say(connection, 3, 5, write(5, 1));
    let id = server.submitted.pop().unwrap().0;
    server.sessions.disconnected(connection);
    let reused = server.greeted();
    assert_eq!(reused.index(), connection.index());
    assert!(!server.sessions.is_drained());
    server.complete(id, Ok(Reply::Done));
    assert!(server.sent.is_empty() && server.sessions.is_drained());
}

#[test]
fn receiving_pauses_at_half_of_what_closes_the_connection() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    for request in 0..REQUESTS_MAX as u64 {
        let expected = request < REQUESTS_MAX as u64 / 2;
        assert_eq!(server.sessions.may_receive(connection), expected, "{request} in flight");
        server.say(connection, 10 + request, 5, Message::Allocation { range: BlockRange::new(0, 1) });
    }
    assert!(server.closed.is_empty());
    let ids: Vec<RequestId> = server.submitted.drain(..).map(|(id, _)| id).collect();
    server.say(connection, 5, 5, write(5, 1));
    assert_eq!(server.close_code(), (connection, ErrorCode::TooMuch));
    for id in ids {
        server.complete(id, Ok(Reply::Allocation(vec![AllocationExtent { count: 1, allocated: true }])));
    }
    assert!(server.sent.is_empty() && server.sessions.is_drained());
}

#[test]
fn bytes_in_flight_pause_receiving_too() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    let mut requests = 0_u64;
    while server.sessions.may_receive(connection) {
        requests += 1;
        server.say(connection, 10 + requests, 5, Message::Read { range: BlockRange::new(0, 256) });
    }
    assert_eq!(requests, (REQUEST_BYTES_MAX / 2) as u64 >> 20);
    let id = server.submitted.pop().unwrap().0;
    server.complete(id, Err(RequestError::Medium("EIO".into())));
    assert_eq!(server.error(), ErrorCode::Medium);
    assert!(server.sessions.may_receive(connection));
}

#[test]
fn memory_of_all_connections_together_is_bounded() {
    let mut server = Server::new();
    let mut requests = 0_usize;
    let mut paused = Vec::new();
    for _ in 0..16 {
        let connection = server.greeted();
        server.say(connection, 2, 0, look());
        while server.sessions.may_receive(connection) {
            requests += 1;
            server.say(connection, 10 + requests as u64, 0, Message::Read { range: BlockRange::new(0, 256) });
        }
        paused.push(connection);
    }
    assert_eq!(requests, 256, "of a mebibyte each");
    for (id, _) in std::mem::take(&mut server.submitted) {
        server.complete(id, Err(RequestError::Medium("EIO".into())));
    }
    assert!(paused.iter().all(|&connection| server.sessions.may_receive(connection)));
}

#[test]
fn holes_and_blocks_of_a_read_are_told_apart() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    let data = block(1);
    let (crc, segment) = (data.crcs[0], data.segments[0].clone());
    let cases = [
        (vec![Some(crc)], vec![1], 1),
        (vec![None], vec![0], 0),
        (vec![None, Some(crc), None, None, None, None, None, None, Some(crc)], vec![2, 1], 2),
    ];
    for (crcs, expected, blocks) in cases {
        let range = BlockRange::new(0, u32::try_from(crcs.len()).unwrap());
        server.say(connection, 3, 5, Message::Read { range });
        let id = server.submitted.pop().unwrap().0;
        let segments = vec![segment.clone(); blocks];
        server.complete(id, Ok(Reply::Blocks(ReadBlocks { crcs, segments })));
        let Message::ReadReply { present, data } = server.answer() else { panic!("no blocks") };
        assert_eq!((present.as_ref(), data.blocks()), (expected.as_slice(), blocks));
        assert_eq!(data.verify(), Ok(()));
    }
}

#[test]
fn tails_come_in_pages() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    let all: Vec<TailExtent> = (0..TAIL_ENTRIES_MAX as u64 + 3)
        .map(|i| TailExtent { range: BlockRange::new(i * 2, 1), stamp: stamp(5, i), discard: i % 2 == 1 })
        .collect();
    let mut found = Vec::new();
    let mut more = true;
    while more {
        let skip = u32::try_from(found.len()).unwrap();
        server.say(connection, 3, 5, Message::Tail { since: stamp(5, 0), skip });
        let id = server.submitted.pop().unwrap().0;
        server.complete(id, Ok(Reply::Tail(all.clone())));
        let Message::TailReply { entries, more: remain } = server.answer() else { panic!("no tail") };
        found.extend(entries);
        more = remain;
    }
    let expected: Vec<TailEntry> =
        all.iter().map(|e| TailEntry { range: e.range, stamp: e.stamp, discard: e.discard }).collect();
    assert_eq!(found, expected);
    server.say(connection, 3, 5, Message::Tail { since: stamp(5, 0), skip: u32::MAX });
    let id = server.submitted.pop().unwrap().0;
    server.complete(id, Ok(Reply::Tail(all)));
    assert_eq!(server.answer(), Message::TailReply { entries: Vec::new(), more: false });
}

#[test]
fn neighbouring_extents_alike_are_one() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    server.say(connection, 3, 5, Message::Allocation { range: BlockRange::new(0, 9) });
    let id = server.submitted.pop().unwrap().0;
    let extents =
        [(2, true), (3, true), (4, false)].map(|(count, allocated)| AllocationExtent { count, allocated });
    server.complete(id, Ok(Reply::Allocation(extents.to_vec())));
    let Message::AllocationReply { extents } = server.answer() else { panic!("no extents") };
    let found: Vec<(u32, bool)> = extents.iter().map(|e| (e.count, e.allocated)).collect();
    assert_eq!(found, [(5, true), (4, false)]);
}

#[test]
fn the_pool_is_administered_without_a_volume_open() {
    let mut server = Server::new();
    let connection = server.greeted();
    server.say(connection, 2, 0, Message::PoolStatus);
    let Message::PoolReport(report) = server.answer() else { panic!("no report") };
    assert_eq!((report.blocks_total, report.blocks_used, report.volumes.len()), (100, 7, 2));
    let third = VolumeId::from_bytes([3; 16]);
    for message in [
        Message::CreateVolume { volume: third, blocks: 10 },
        Message::ResizeVolume { volume: third, blocks: 20 },
        Message::DeleteVolume { volume: third },
    ] {
        server.say(connection, 3, 0, message);
        let id = server.submitted.pop().unwrap().0;
        server.complete(id, Ok(Reply::Done));
        assert_eq!(server.answer(), Message::Done);
    }
}

#[test]
fn stopping_answers_what_is_in_flight_and_takes_nothing_more() {
    let mut server = Server::new();
    let idle = server.greeted();
    let busy = server.opened(5, 77);
    server.say(busy, 3, 5, write(5, 1));
    let id = server.submitted.pop().unwrap().0;
    let mut out = Vec::new();
    server.sessions.stop(&mut out);
    server.collect(out);
    assert_eq!(server.close_code(), (idle, ErrorCode::Stopping));
    server.say(busy, 4, 5, write(5, 2));
    assert_eq!(server.error(), ErrorCode::Stopping);
    server.complete(id, Ok(Reply::Done));
    assert!(matches!(server.sent.remove(0), (_, 3, Message::Done)));
    assert_eq!(server.close_code(), (busy, ErrorCode::Stopping));
    assert!(server.sessions.is_drained());
}

/// A step of a random history; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    Connect,
    Disconnect(usize),
    Open { connection: usize, generation: u32, session: u64 },
    Write { connection: usize, request: u64 },
    Close { connection: usize },
    Complete { index: usize, fails: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Connect),
        1 => (0..8usize).prop_map(Step::Disconnect),
        4 => (0..8usize, 1..6u32, 0..2u64)
            .prop_map(|(connection, generation, session)| Step::Open { connection, generation, session }),
        6 => (0..8usize, 10..20u64).prop_map(|(connection, request)| Step::Write { connection, request }),
        1 => (0..8usize).prop_map(|connection| Step::Close { connection }),
        8 => (0..8usize, prop::bool::weighted(0.1)).prop_map(|(index, fails)| Step::Complete { index, fails }),
    ];
    prop::collection::vec(step, 1..120)
}

/// What a naive observer keeps of a history, to hold the sessions to.
#[derive(Default)]
struct Observer {
    connections: Vec<ConnectionId>,
    /// Generation that each connection asked for last.
    generations: HashMap<ConnectionId, u32>,
    /// (connection, request) that is owed an answer.
    owed: HashSet<(ConnectionId, u64)>,
    seen: usize,
}

impl Observer {
    fn after(&mut self, server: &mut Server) -> Result<(), TestCaseError> {
        for (connection, _) in server.closed.drain(..) {
            self.connections.retain(|&c| c != connection);
            self.owed.retain(|&(c, _)| c != connection);
            server.sessions.disconnected(connection);
        }
        for (to, request, _) in server.sent.drain(..) {
            prop_assert!(request == 0 || self.owed.remove(&(to, request)), "an answer nobody is owed");
        }
        let durable = &server.facts.0[&VOLUME];
        let mut floor = (durable.generation.get(), durable.session);
        for (index, (_, request)) in server.submitted.iter().enumerate() {
            match request {
                Request::Promise { generation, session, .. } => {
                    let promise = (generation.get(), *session);
                    prop_assert!(promise.0 > floor.0 || promise == floor, "{floor:?} then {promise:?}");
                    floor = promise;
                }
                Request::Write { stamp, .. } if index >= self.seen => {
                    prop_assert_eq!(stamp.generation().get(), floor.0, "a fenced write");
                }
                Request::Write { .. } => {}
                other => prop_assert!(false, "never asked for {:?}", other),
            }
        }
        self.seen = server.submitted.len();
        Ok(())
    }

    fn take(&mut self, server: &mut Server, step: Step) {
        let pick = |connections: &[ConnectionId], index: usize| {
            (!connections.is_empty()).then(|| connections[index % connections.len()])
        };
        match step {
            Step::Connect => {
                let connection = server.greeted();
                self.connections.push(connection);
            }
            Step::Disconnect(index) => {
                if let Some(connection) = pick(&self.connections, index) {
                    server.sessions.disconnected(connection);
                    self.connections.retain(|&c| c != connection);
                    self.owed.retain(|&(c, _)| c != connection);
                }
            }
            Step::Open { connection, generation, session } => {
                if let Some(connection) = pick(&self.connections, connection) {
                    self.owed.insert((connection, 2));
                    self.generations.insert(connection, generation);
                    server.say(connection, 2, generation, open(session));
                }
            }
            Step::Write { connection, request } => {
                if let Some(connection) = pick(&self.connections, connection)
                    && let Some(&of) = self.generations.get(&connection)
                {
                    self.owed.insert((connection, request));
                    server.say(connection, request, of, write(of, request));
                }
            }
            Step::Close { connection } => {
                if let Some(connection) = pick(&self.connections, connection)
                    && let Some(&of) = self.generations.get(&connection)
                {
                    self.owed.insert((connection, 3));
                    server.say(connection, 3, of, Message::Close { progress: Progress::default() });
                }
            }
            Step::Complete { index, fails } => self.complete(server, index, fails),
        }
    }

    /// Completes one request; a promise only when nothing older is in flight, as the store does.
    fn complete(&mut self, server: &mut Server, index: usize, fails: bool) {
        if server.submitted.is_empty() {
            return;
        }
        let mut index = index % server.submitted.len();
        if matches!(server.submitted[index].1, Request::Promise { .. }) {
            index = 0;
        }
        self.seen -= 1;
        if !fails && matches!(server.submitted[index].1, Request::Promise { .. }) {
            return server.promise();
        }
        let id = server.submitted.remove(index).0;
        server.complete(id, if fails { Err(RequestError::Medium("EIO".into())) } else { Ok(Reply::Done) });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_any_history_the_fenced_never_write_and_everyone_is_answered_once(steps in steps()) {
        let mut server = Server::new();
        let mut observer = Observer::default();
        for step in steps {
            observer.take(&mut server, step);
            observer.after(&mut server)?;
        }
        while !server.submitted.is_empty() {
            observer.complete(&mut server, 0, false);
            observer.after(&mut server)?;
        }
        prop_assert!(server.sessions.is_drained());
        prop_assert_eq!(&observer.owed, &HashSet::new(), "unanswered");
    }
}
