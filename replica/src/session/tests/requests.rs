//! Requests and answers on what is open.

use super::*;
use crate::store::{AllocationExtent, ReadBlocks, TailExtent};
use trivet_model::{SnapshotId, ZERO_BLOCK_CRC};
use trivet_wire::TailEntry;
use trivet_wire::frame::TAIL_ENTRIES_MAX;

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
        server.complete(id, Ok(Reply::Blocks(ReadBlocks { crcs, segments, ..ReadBlocks::default() })));
        let Message::ReadReply { present, data, .. } = server.answer() else { panic!("no blocks") };
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
        Message::CreateVolume { volume: third, blocks: 10, parent: None, tagged: false },
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
fn a_writer_grows_its_own_volume_and_no_other() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    server.say(connection, 3, 5, Message::ResizeVolume { volume: VOLUME, blocks: 200 });
    let (id, request) = server.submitted.pop().unwrap();
    assert!(matches!(request, Request::ResizeVolume { volume: VOLUME, blocks: 200 }), "{request:?}");
    server.complete(id, Ok(Reply::Done));
    assert_eq!(server.answer(), Message::Done);
    let other = VolumeId::from_bytes([9; 16]);
    server.say(connection, 4, 5, Message::ResizeVolume { volume: other, blocks: 200 });
    assert_eq!(server.close_code(), (connection, ErrorCode::Unexpected));
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

#[test]
fn reads_are_of_what_was_viewed_when_they_came() {
    let mut server = Server::new();
    let id = SnapshotId::from_bytes([5; 16]);
    server.facts.1 = vec![Snapshot { id, cut: stamp(1, 1) }];
    let connection = server.opened(5, 77);
    let read = || Message::Read { range: BlockRange::new(0, 1) };
    server.say(connection, 10, 5, read());
    server.say(connection, 11, 5, Message::View { at: Some(id) });
    assert_eq!(server.answer(), Message::Done);
    server.say(connection, 12, 5, read());
    let missing = Some(SnapshotId::from_bytes([6; 16]));
    server.say(connection, 13, 5, Message::View { at: missing });
    assert_eq!(server.error(), ErrorCode::NoSuchSnapshot);
    server.say(connection, 14, 5, Message::Fetch { range: BlockRange::new(0, 1) });
    server.say(connection, 15, 5, Message::View { at: None });
    server.say(connection, 16, 5, read());
    let seen: Vec<Option<SnapshotId>> = server
        .submitted
        .iter()
        .map(|(_, request)| match request {
            Request::Read { at, .. } | Request::Fetch { at, .. } => *at,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seen, [None, Some(id), Some(id), None]);
}

#[test]
fn a_cut_of_a_generation_to_come_is_malformed() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    let id = SnapshotId::from_bytes([5; 16]);
    server.say(connection, 10, 5, Message::CreateSnapshot { id, cut: stamp(5, 9) });
    let asked = server.submitted.pop().unwrap().1;
    assert!(
        matches!(asked, Request::CreateSnapshot { snapshot, .. } if snapshot == Snapshot { id, cut: stamp(5, 9) })
    );
    server.say(connection, 11, 5, Message::CreateSnapshot { id, cut: stamp(6, 1) });
    assert_eq!(server.close_code(), (connection, ErrorCode::Malformed));
}
