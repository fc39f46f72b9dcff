//! The server over real sockets, with a real pool in a temporary directory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;

use client::{Client, Server, VOLUME, blocks, fills, options, stamp, write};
use std::collections::HashMap;
use std::io::Write;
use tempfile::TempDir;
use trivet_model::{BlockRange, SnapshotId, Stamp, VolumeId};
use trivet_replica::server::{ServerError, StopHandle, run};
use trivet_wire::{ErrorCode, Message, Progress, PullState};

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn error(message: Message) -> ErrorCode {
    match message {
        Message::Error { code, .. } => code,
        other => panic!("not an error: {other:?}"),
    }
}

#[test]
fn a_volume_is_made_written_read_flushed_and_deleted() {
    let directory = directory();
    let server = Server::start(directory.path());
    let (mut client, reply) = server.open(1, 7);
    assert_eq!(reply.blocks, 1 << 20);
    assert_eq!(client.write(10, 1, &[1, 2, 3]), Message::Done);
    assert_eq!(client.read(9, 5), [None, Some(1), Some(2), Some(3), None]);
    assert!(client.flush() >= stamp(1, 3));
    assert_eq!(client.write(11, 4, &[9]), Message::Done);
    let discard = Message::Discard {
        range: BlockRange::new(12, 1),
        stamp: stamp(1, 5),
        progress: Progress::default(),
        force_unit_access: true,
    };
    assert_eq!(client.call(discard), Message::Done);
    assert_eq!(client.read(10, 3), [Some(1), Some(9), None]);
    let Message::TailReply { entries, more } = client.call(Message::Tail { since: stamp(1, 3), skip: 0 })
    else {
        panic!("no tail")
    };
    let tail: Vec<(u64, bool)> = entries.iter().map(|entry| (entry.range.start, entry.discard)).collect();
    assert_eq!((tail.as_slice(), more), ([(11, false), (12, true)].as_slice(), false));
    let Message::AllocationReply { extents } =
        client.call(Message::Allocation { range: BlockRange::new(8, 8) })
    else {
        panic!("no extents")
    };
    let extents: Vec<(u32, bool)> = extents.iter().map(|e| (e.count, e.allocated)).collect();
    assert_eq!(extents, [(2, false), (2, true), (4, false)]);

    let mut administrator = server.connect();
    assert_eq!(error(administrator.call(Message::DeleteVolume { volume: VOLUME })), ErrorCode::Busy);
    let progress = Progress { committed: stamp(1, 5), stable: stamp(1, 3) };
    assert_eq!(client.call(Message::Close { progress }), Message::Done);
    assert_eq!(administrator.call(Message::ResizeVolume { volume: VOLUME, blocks: 2 << 20 }), Message::Done);
    let Message::PoolReport(report) = administrator.call(Message::PoolStatus) else { panic!("no report") };
    assert_eq!((report.volumes.len(), report.volumes[0].blocks), (1, 2 << 20));
    assert_eq!(report.volumes[0].last, stamp(1, 5));
    assert_eq!(administrator.call(Message::DeleteVolume { volume: VOLUME }), Message::Done);
    assert_eq!(error(client.open(2, 7)), ErrorCode::NoSuchVolume);
    server.stop();
}

#[test]
fn a_deep_queue_of_writes_of_all_sizes_comes_back_right() {
    let directory = directory();
    let server = Server::start(directory.path());
    let (mut client, _) = server.open(1, 7);
    let mut expected: Vec<Option<u8>> = vec![None; 4096];
    let mut sequence = 1;
    let mut in_flight = 0;
    for round in 0..200_usize {
        let count = [1, 1, 2, 16, 100, 256][round % 6];
        let start = round * 977 % (4096 - count);
        let fill = u8::try_from(round % 251).unwrap();
        client.send(write(1, start as u64, sequence, &vec![fill; count]));
        expected[start..start + count].fill(Some(fill));
        sequence += count as u64;
        in_flight += 1;
        // Overlapping writes are the engine's to order: here the stamps do.
        if in_flight == 8 {
            for _ in 0..std::mem::take(&mut in_flight) {
                assert_eq!(client.receive().unwrap().message, Message::Done);
            }
        }
    }
    for (start, expected) in (0..).step_by(256).zip(expected.chunks(256)) {
        assert_eq!(client.read(start, 256), expected, "from {start}");
    }
}

#[test]
fn f25_what_arrives_changed_is_refused_and_the_session_goes_on() {
    let directory = directory();
    let server = Server::start(directory.path());
    let (mut client, _) = server.open(1, 7);
    let mut bytes = client.bytes(write(1, 0, 1, &[5, 6]));
    *bytes.last_mut().unwrap() ^= 1;
    client.stream.write_all(&bytes).unwrap();
    assert_eq!(error(client.receive().unwrap().message), ErrorCode::ChecksumOnWire);
    assert_eq!(client.read(0, 2), [None, None]);
    assert_eq!(client.write(0, 3, &[7]), Message::Done);
}

#[test]
fn f24_a_connection_that_dies_mid_frame_harms_nobody() {
    let directory = directory();
    let server = Server::start(directory.path());
    let (mut survivor, _) = server.open(1, 7);
    assert_eq!(survivor.write(0, 1, &[1]), Message::Done);
    for cut in [1, 47, 60, 5000] {
        let mut dying = server.connect();
        let bytes = dying.bytes(write(1, 0, 9, &[9; 8]));
        dying.stream.write_all(&bytes[..cut]).unwrap();
        dying.hang_up();
    }
    assert_eq!(survivor.read(0, 1), [Some(1)]);

    // The writer itself dies in the middle of a write, with others in flight, and comes back.
    for sequence in 2..10 {
        survivor.send(write(1, sequence, sequence, &[2]));
    }
    let bytes = survivor.bytes(write(1, 0, 10, &[9; 8]));
    survivor.stream.write_all(&bytes[..9000]).unwrap();
    survivor.hang_up();
    let (mut back, reply) = server.open(1, 7);
    assert_eq!(back.read(0, 1), [Some(1)], "the write cut off has not happened");
    assert!(reply.last < stamp(1, 10));
    assert_eq!(back.write(0, 11, &[3]), Message::Done);
}

#[test]
fn f26_garbage_gets_its_reason_and_is_cut_off() {
    let directory = directory();
    let server = Server::start(directory.path());
    let mut web = Client::raw(server.address);
    web.stream.write_all(b"GET / HTTP/1.1\r\nHost: replica.example.com:7001\r\nAccept: */*\r\n\r\n").unwrap();
    assert_eq!(web.closed_for(), ErrorCode::Malformed);

    let mut rude = Client::raw(server.address);
    rude.send(Message::PoolStatus);
    assert_eq!(rude.closed_for(), ErrorCode::Unexpected);

    let mut flood = server.connect();
    let bytes = flood.bytes(Message::PoolStatus);
    // A reason must arrive even when much lies behind the frame that is refused.
    let mut huge = bytes.clone();
    huge[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
    let crc = crc32fast::hash(&huge[..44]);
    huge[44..48].copy_from_slice(&crc.to_le_bytes());
    huge.extend(vec![0xa5; 100_000]);
    flood.stream.write_all(&huge).unwrap();
    assert_eq!(flood.closed_for(), ErrorCode::Malformed);

    let mut greedy = server.connect();
    greedy.call(Message::CreateVolume { volume: VOLUME, blocks: 100, parent: None, tagged: false });
    greedy.call(Message::Open { volume: VOLUME, writable: false, session: 0 });
    let mut many = Vec::new();
    for _ in 0..3000 {
        many.extend(greedy.bytes(Message::Allocation { range: BlockRange::new(0, 1) }));
    }
    greedy.stream.write_all(&many).unwrap();
    for _ in 0..3000 {
        assert!(matches!(greedy.receive().unwrap().message, Message::AllocationReply { .. }));
    }
    assert!(matches!(server.connect().call(Message::PoolStatus), Message::PoolReport(_)));
}

#[test]
fn f20_a_second_engine_fences_the_first() {
    let directory = directory();
    let server = Server::start(directory.path());
    let (mut first, _) = server.open(1, 7);
    assert_eq!(first.write(0, 1, &[1]), Message::Done);
    let (mut second, reply) = server.open(2, 8);
    assert_eq!(reply.last, stamp(1, 1));
    assert_eq!(first.closed_for(), ErrorCode::Fenced);
    let mut again = server.connect();
    assert_eq!(error(again.open(1, 7)), ErrorCode::Fenced);
    assert_eq!(error(again.open(2, 7)), ErrorCode::Fenced);
    assert_eq!(second.write(0, 1, &[2]), Message::Done);
    assert_eq!(second.read(0, 1), [Some(2)]);
}

#[test]
fn a_restart_keeps_promises_and_data() {
    let directory = directory();
    let server = Server::start(directory.path());
    let (mut client, _) = server.open(5, 77);
    for index in 0..100 {
        assert_eq!(client.write(index * 3, 1 + index * 2, &[7, u8::try_from(index).unwrap()]), Message::Done);
    }
    assert!(client.flush() >= stamp(5, 200));
    drop(client);
    server.stop();

    let server = Server::start(directory.path());
    let mut client = server.connect();
    assert_eq!(error(client.open(4, 77)), ErrorCode::Fenced);
    assert_eq!(error(client.open(5, 78)), ErrorCode::Fenced);
    let Message::OpenReply(reply) = client.open(5, 77) else { panic!("a reconnect must be let in") };
    assert_eq!((reply.last, reply.intact), (stamp(5, 200), Stamp::MAX));
    for index in 0..100 {
        assert_eq!(client.read(index * 3, 3), [Some(7), Some(u8::try_from(index).unwrap()), None]);
    }
    let (mut newer, _) = server.open(6, 1);
    assert_eq!(newer.write(0, 1, &[1]), Message::Done);
}

#[test]
fn a_stop_answers_what_is_in_flight() {
    let directory = directory();
    let server = Server::start(directory.path());
    let (mut client, _) = server.open(1, 7);
    let mut sent = Vec::new();
    for index in 0..64 {
        sent.push(client.send(write(1, index, 1 + index, &[4])));
    }
    server.ask_to_stop();
    let mut done = Vec::new();
    let reason = loop {
        let frame = client.receive().expect("a reason before the end");
        match frame.message {
            Message::Done => done.push(frame.request),
            Message::Error { code: ErrorCode::Stopping, .. } if frame.request == 0 => {
                break ErrorCode::Stopping;
            }
            Message::Error { code, .. } => assert_eq!(code, ErrorCode::Stopping),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(reason, ErrorCode::Stopping);
    client.hang_up();
    server.stop();

    let server = Server::start(directory.path());
    let (mut client, _) = server.open(2, 1);
    let found = client.read(0, 64);
    for (index, request) in sent.iter().enumerate() {
        assert!(!done.contains(request) || found[index] == Some(4), "acknowledged block {index} is lost");
    }
}

#[test]
fn a_peer_that_asks_and_does_not_listen_stops_being_heard_and_loses_nothing() {
    let directory = directory();
    let server = Server::start(directory.path());
    let (mut client, _) = server.open(1, 7);
    assert_eq!(client.write(0, 1, &[8; 256]), Message::Done);
    let mut expected = HashMap::new();
    let mut sender = client.stream.try_clone().unwrap();
    let mut requests = Vec::new();
    for _ in 0..300 {
        requests.extend(client.bytes(Message::Read { range: BlockRange::new(0, 256) }));
        expected.insert(client.frame(Message::Done).request - 1, ());
    }
    let writer = std::thread::spawn(move || sender.write_all(&requests).unwrap());
    // Another client is served while this one does not listen.
    let mut other = server.connect();
    assert!(matches!(other.call(Message::PoolStatus), Message::PoolReport(_)));
    while !expected.is_empty() {
        let frame = client.receive().unwrap();
        assert_eq!(expected.remove(&frame.request), Some(()), "{:?}", frame.message);
        let Message::ReadReply { present, data, .. } = frame.message else { panic!("{frame:?}") };
        assert_eq!(fills(&present, &data, 256), [Some(8); 256]);
    }
    writer.join().unwrap();
}

#[test]
fn several_volumes_are_apart() {
    let directory = directory();
    let server = Server::start(directory.path());
    let mut clients: Vec<Client> = (0..4_u8)
        .map(|index| {
            let volume = VolumeId::from_bytes([index; 16]);
            let mut client = server.connect();
            client.generation = 1;
            assert_eq!(
                client.call(Message::CreateVolume { volume, blocks: 64, parent: None, tagged: false }),
                Message::Done
            );
            let opened = client.call(Message::Open { volume, writable: true, session: 1 });
            assert!(matches!(opened, Message::OpenReply(_)), "{opened:?}");
            client
        })
        .collect();
    for (index, client) in (1..).zip(&mut clients) {
        assert_eq!(client.write(0, 1, &[index; 4]), Message::Done);
    }
    for (index, client) in (1..).zip(&mut clients) {
        assert_eq!(client.read(0, 5), [Some(index), Some(index), Some(index), Some(index), None]);
    }
    assert_eq!(
        error(clients[0].call(Message::Read { range: BlockRange::new(60, 5) })),
        ErrorCode::OutOfRange
    );
    let beyond = Message::Write {
        start: 64,
        stamp: stamp(1, 9),
        progress: Progress::default(),
        force_unit_access: false,
        data: blocks(&[1]),
    };
    assert_eq!(error(clients[0].call(beyond)), ErrorCode::OutOfRange);
}

#[test]
fn a_directory_or_port_in_use_is_named_with_its_holder() {
    let directory = directory();
    let server = Server::start(directory.path());
    let again = run(&options(directory.path()), &StopHandle::new(), |_| panic!("must not start"));
    let text = again.unwrap_err().to_string();
    assert!(text.contains(&std::process::id().to_string()), "{text}");

    let elsewhere = tempfile::tempdir().unwrap();
    let mut occupied = options(elsewhere.path());
    occupied.listen = server.address;
    let refused = run(&occupied, &StopHandle::new(), |_| panic!("must not start")).unwrap_err();
    assert!(matches!(refused, ServerError::Listen(_)), "{refused}");
    assert!(refused.to_string().contains(&server.address.to_string()), "{refused}");
}

#[test]
fn a_directory_of_something_else_is_left_alone() {
    let directory = directory();
    std::fs::write(directory.path().join("thesis.tex"), "\\begin{document}").unwrap();
    let refused = run(&options(directory.path()), &StopHandle::new(), |_| panic!("must not start"));
    assert!(matches!(refused, Err(ServerError::Pool(_))), "{refused:?}");
    let names: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["thesis.tex"]);
}

#[test]
fn a_clone_is_made_read_and_flattened() {
    let directory = directory();
    let server = Server::start(directory.path());
    let (mut client, _) = server.open(1, 7);
    let (clone, snapshot) = (VolumeId::from_bytes([5; 16]), SnapshotId::from_bytes([6; 16]));
    for at in 0..200 {
        assert_eq!(client.write(at * 40, 1 + at * 2, &[1, 2]), Message::Done);
    }
    let cut = stamp(1, 1000);
    assert_eq!(client.call(Message::CreateSnapshot { id: snapshot, cut }), Message::Done);
    let mut administrator = server.connect();
    let mut create = |of| {
        let parent = Some((VOLUME, of));
        administrator.call(Message::CreateVolume { volume: clone, blocks: 1 << 20, parent, tagged: false })
    };
    assert_eq!(error(create(SnapshotId::from_bytes([7; 16]))), ErrorCode::NoSuchSnapshot);
    assert_eq!(create(snapshot), Message::Done);
    assert_eq!(create(snapshot), Message::Done);
    assert_eq!(client.call(Message::DeleteSnapshot { id: snapshot }), Message::Done);
    assert_eq!(client.call(Message::Close { progress: Progress::default() }), Message::Done);
    assert_eq!(administrator.call(Message::DeleteVolume { volume: VOLUME }), Message::Done);

    let mut writer = server.connect();
    writer.generation = 2;
    let Message::OpenReply(reply) = writer.call(Message::Open { volume: clone, writable: true, session: 1 })
    else {
        panic!("not opened")
    };
    assert_eq!((reply.last, reply.progress.stable, reply.snapshots.len()), (cut, cut, 0));
    assert_eq!(writer.write(40, 1, &[9]), Message::Done);
    assert_eq!(writer.read(39, 4), [None, Some(9), Some(2), None]);
    // Under way, it is in use; asked again, it says how far it is.
    let report = loop {
        match administrator.call(Message::Flatten { volume: clone }) {
            Message::PullReport(report) if report.state == PullState::Running => {}
            Message::PullReport(report) => break report,
            other => panic!("no report: {other:?}"),
        }
    };
    assert_eq!((report.state, report.position), (PullState::Finished, 1 << 20), "{}", report.detail);
    assert_eq!(writer.read(39, 4), [None, Some(9), Some(2), None]);
    assert_eq!(writer.read(199 * 40, 3), [Some(1), Some(2), None]);
    let Message::PoolReport(report) = administrator.call(Message::PoolStatus) else { panic!("no report") };
    assert_eq!((report.volumes.len(), report.volumes[0].tied), (1, false));
    let nowhere = administrator.call(Message::Flatten { volume: VOLUME });
    let Message::PullReport(report) = nowhere else { panic!("no report: {nowhere:?}") };
    assert_eq!(report.state, PullState::Failed);
    server.stop();
}
