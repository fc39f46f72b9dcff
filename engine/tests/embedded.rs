//! The library against real replica servers, in this process and over loopback TCP.

mod servers;

use bytes::Bytes;
use servers::{Servers, wait_until};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::Duration;
use trivet_engine::volume::Standing;
use trivet_engine::{
    CloseError, Engine, EngineError, EngineOptions, IoError, IoReply, IoRequest, OpenOptions, Volume,
};
use trivet_model::{
    BLOCK_SIZE, BLOCK_SIZE_U64, Durability, RateLimit, SnapshotId, SnapshotOrder, SnapshotRecord, Stamp,
    VolumeSettings,
};

const PATIENCE: Duration = Duration::from_secs(30);

fn write(block: u64, fill: u8) -> IoRequest {
    let segments = vec![Bytes::from(vec![fill; BLOCK_SIZE])];
    IoRequest::Write { offset: block * BLOCK_SIZE_U64, segments, force_unit_access: false }
}

fn read(block: u64) -> IoRequest {
    IoRequest::Read { offset: block * BLOCK_SIZE_U64, length: 4096 }
}

fn fill_of(volume: &Volume, block: u64) -> u8 {
    match volume.request(read(block)).wait() {
        Ok(IoReply::Data(segments)) => {
            let data = segments.concat();
            assert!(data.iter().all(|byte| *byte == data[0]), "block {block} is torn");
            data[0]
        }
        other => panic!("block {block} read {other:?}"),
    }
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let servers = Servers::start(3);
    let volume = servers.open();
    for block in 0..64 {
        assert_eq!(volume.request(write(block, u8::try_from(block).unwrap())).wait(), Ok(IoReply::Done));
    }
    volume.request(IoRequest::Discard { offset: 0, length: 4 * BLOCK_SIZE_U64 }).wait().unwrap();
    let generation = volume.status().unwrap().generation;
    volume.close(PATIENCE).unwrap();
    assert_eq!(servers.record().owner, "");

    let volume = servers.open();
    assert_eq!(volume.status().unwrap().generation, generation + 1);
    for block in 0..64 {
        let expected = if block < 4 { 0 } else { u8::try_from(block).unwrap() };
        assert_eq!(fill_of(&volume, block), expected);
    }
}

#[test]
fn callbacks_may_submit_and_queues_are_bounded() {
    let servers = Servers::start(2);
    let volume = std::sync::Arc::new(servers.open());
    let (sender, outcomes) = channel();
    let chained = std::sync::Arc::clone(&volume);
    volume.submit(write(1, 7), move |first| {
        chained.submit(read(1), move |second| sender.send((first, second)).unwrap());
    });
    let (first, second) = outcomes.recv().unwrap();
    assert_eq!((first, second.is_ok()), (Ok(IoReply::Done), true));

    let queue = volume.queue(2).unwrap();
    queue.submit(10, write(2, 1)).unwrap();
    queue.submit(11, IoRequest::Flush).unwrap();
    let full = queue.submit(12, read(2)).unwrap_err();
    assert!(matches!(full.request, IoRequest::Read { .. }));
    let mut completions = Vec::new();
    while completions.len() < 2 {
        queue.wait(&mut completions, 1, PATIENCE);
    }
    queue.submit(12, full.request).unwrap();
}

#[test]
fn a_member_that_is_away_is_left_behind_and_brought_back() {
    let mut servers = Servers::start(3);
    let volume = servers.open();
    volume.request(write(0, 1)).wait().unwrap();
    servers.stop(1);
    wait_until("the volume to go on", || volume.status().unwrap().standing == Standing::Degraded);
    let reason = volume.status().unwrap().reason.unwrap();
    assert!(reason.contains(&servers.pool(1).to_string()), "{reason}");

    let writes: Vec<_> = (0..32).map(|block| volume.request(write(block, 9))).collect();
    assert_eq!(fill_of(&volume, 40), 0);
    for outcome in writes {
        assert_eq!(outcome.wait(), Ok(IoReply::Done));
    }
    servers.restart(1);
    wait_until("the member to be in sync", || volume.status().unwrap().standing == Standing::Open);
    assert_eq!(fill_of(&volume, 31), 9);
}

#[test]
fn closing_without_a_member_ends_in_time_and_says_so() {
    let mut servers = Servers::start(1);
    let volume = servers.open();
    servers.stop(0);
    wait_until("the volume to pause", || volume.status().unwrap().standing == Standing::Paused);
    let stuck = volume.request(write(0, 1));
    assert_eq!(volume.close(Duration::from_millis(100)), Err(CloseError::Unfinished));
    assert_eq!(stuck.wait(), Err(IoError::Closed));
}

#[test]
fn f20_a_newer_engine_fences_the_older() {
    let servers = Servers::start(2);
    let old = servers.open();
    old.request(write(0, 1)).wait().unwrap();
    let new = servers.open();
    assert_eq!(old.request(write(0, 2)).wait(), Err(IoError::Fenced));
    assert_eq!(old.request(read(0)).wait(), Err(IoError::Fenced));
    assert_eq!(fill_of(&new, 0), 1);
    new.request(write(0, 3)).wait().unwrap();
    assert_eq!(old.close(PATIENCE), Err(CloseError::Fenced));
    assert_eq!(fill_of(&new, 0), 3);
}

#[test]
fn who_only_looks_disturbs_nobody() {
    let servers = Servers::start(2);
    let writer = servers.open();
    writer.request(write(5, 5)).wait().unwrap();
    let looker = servers.open_read_only();
    assert_eq!(fill_of(&looker, 5), 5);
    assert!(matches!(looker.request(write(5, 6)).wait(), Err(IoError::Invalid(_))));
    assert_eq!(looker.request(IoRequest::Flush).wait(), Ok(IoReply::Done));
    looker.close(PATIENCE).unwrap();
    writer.request(write(5, 7)).wait().unwrap();
    assert_eq!(fill_of(&writer, 5), 7);
}

#[test]
fn a_volume_grows_while_it_is_used() {
    let servers = Servers::start(2);
    let volume = servers.open();
    let blocks = servers.record().blocks;
    assert!(matches!(volume.request(write(blocks, 1)).wait(), Err(IoError::Invalid(_))));
    assert_eq!(volume.blocks(), blocks);
    assert_eq!(volume.wait_for_growth(blocks, Some(Duration::ZERO)), blocks, "it has not grown");
    let growing = volume.grow(2 * blocks);
    assert_eq!(volume.wait_for_growth(blocks, Some(PATIENCE)), 2 * blocks);
    assert_eq!(growing.wait(), Ok(IoReply::Done));
    assert_eq!(volume.request(write(2 * blocks - 1, 1)).wait(), Ok(IoReply::Done));
    assert!(matches!(volume.grow(blocks).wait(), Err(IoError::Invalid(_))), "a volume cannot shrink");
    assert_eq!(servers.record().blocks, 2 * blocks);
}

#[test]
fn a_snapshot_is_read_while_its_volume_is_written() {
    let servers = Servers::start(2);
    let writer = servers.open();
    writer.request(write(5, 5)).wait().unwrap();
    let id = SnapshotId::from_bytes([7; 16]);
    let (name, cut) = ("before".to_owned(), Stamp::ZERO);
    let wanted = SnapshotRecord { id, name, cut, created: 1, labels: Default::default() };
    for _ in 0..2 {
        assert_eq!(writer.order_snapshot(SnapshotOrder::Create(wanted.clone())).wait(), Ok(IoReply::Done));
    }
    assert_eq!(servers.record().snapshots.len(), 1, "asking again changes nothing");
    let other = SnapshotRecord { id: SnapshotId::from_bytes([8; 16]), ..wanted };
    let taken = writer.order_snapshot(SnapshotOrder::Create(other)).wait();
    assert!(matches!(taken, Err(IoError::Invalid(_))), "the name is taken");
    writer.request(write(5, 7)).wait().unwrap();

    let looker = Volume::open(OpenOptions { snapshot: Some(id), ..servers.options(true) }).unwrap();
    assert_eq!((fill_of(&looker, 5), fill_of(&writer, 5)), (5, 7));
    for _ in 0..2 {
        assert_eq!(writer.order_snapshot(SnapshotOrder::Delete(id)).wait(), Ok(IoReply::Done));
    }
    assert_eq!(servers.record().snapshots, []);
    let is_told = || looker.request(read(5)).wait() == Err(IoError::Closed);
    wait_until("the members to let it go", is_told);
    assert_eq!(fill_of(&writer, 5), 7);
}

#[test]
fn an_engine_serves_nbd_and_its_status_until_it_is_stopped() {
    let servers = Servers::start(2);
    let (nbd, status, control) = (servers.path("nbd"), servers.path("status"), servers.path("control"));
    let engine = Engine::start(EngineOptions {
        volume: servers.options(false),
        export_name: None,
        nbd_socket: Some(nbd.clone()),
        nbd_address: None,
        status_socket: Some(status.clone()),
        control_socket: Some(control.clone()),
        stop_patience: PATIENCE,
    })
    .unwrap();
    let mut client = UnixStream::connect(&nbd).unwrap();
    let mut greeting = [0; 18];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");

    // Fixed newstyle, then the old way of naming the default export: answered with the size.
    client.write_all(&3u32.to_be_bytes()).unwrap();
    client.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
    let mut size = [0; 8];
    client.read_exact(&mut size).unwrap();
    assert_eq!(u64::from_be_bytes(size), servers.record().blocks * BLOCK_SIZE_U64);

    let mut report = String::new();
    UnixStream::connect(&status).unwrap().read_to_string(&mut report).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["state"], &report["serving"]), (&"open".into(), &true.into()));
    assert_eq!(report["connections"], 1);

    let say = |line: &str| {
        let mut answer = String::new();
        let mut caller = UnixStream::connect(&control).unwrap();
        caller.write_all(line.as_bytes()).unwrap();
        caller.write_all(b"\n").unwrap();
        caller.read_to_string(&mut answer).unwrap();
        answer
    };
    let scrub =
        |line: &str| serde_json::from_str::<serde_json::Value>(&say(line)).unwrap()["volume"]["scrub"].take();
    let counts = r#"{"compared":5,"repaired":0,"mismatched":0,"unrepairable":0,"unrepairable_blocks":[]}"#;
    let order =
        format!(r#"{{"scrub":{{"run":7,"position":1,"bytes_per_second":1073741824,"counts":{counts}}}}}"#);
    let blocks = servers.record().blocks;
    while scrub(&order)["finished"] != true {
        std::thread::yield_now();
    }
    assert_eq!(scrub(&order)["counts"]["compared"], blocks - 1 + 5, "it goes on where it was");
    assert_eq!(scrub(r#"{"scrub":null}"#), serde_json::Value::Null);
    assert_eq!(say("nonsense"), "");

    engine.stop_handle().stop();
    assert_eq!(engine.wait(), Ok(()));
    assert!(!nbd.exists() && !status.exists() && !control.exists(), "sockets are removed");
    assert_eq!(client.read(&mut [0; 200]).map(|_| ()).ok(), Some(()), "the client sees the end");
}

#[test]
fn an_engine_that_is_fenced_ends_and_says_so() {
    let servers = Servers::start(2);
    let engine = Engine::start(EngineOptions {
        volume: servers.options(false),
        export_name: None,
        nbd_socket: Some(servers.path("nbd")),
        nbd_address: None,
        status_socket: None,
        control_socket: None,
        stop_patience: PATIENCE,
    })
    .unwrap();
    engine.wait_open(Some(PATIENCE)).unwrap();
    let _newer = servers.open();
    assert_eq!(engine.wait(), Err(EngineError::Fenced));
}

#[test]
fn settings_are_in_force_once_they_are_changed() {
    let servers = Servers::start(2);
    let volume = servers.open();
    volume.request(write(0, 1)).wait().unwrap();
    let iops_limit = Some(RateLimit { per_second: 200, burst: 20 });
    let settings =
        VolumeSettings { durability: Durability::WriteThrough, iops_limit, ..VolumeSettings::default() };
    assert_eq!(volume.change_settings(settings.clone()).wait(), Ok(IoReply::Done));
    assert_eq!(servers.record().settings, settings);
    let status = volume.status().unwrap();
    assert_eq!(status.settings, settings);
    assert_eq!(status.stable, status.committed, "all that was written before is stable");

    let writes: Vec<_> = (0..60).map(|block| volume.request(write(block, 2))).collect();
    writes.into_iter().for_each(|write| assert_eq!(write.wait(), Ok(IoReply::Done)));
    let throttled = volume.status().unwrap().counters.throttled;
    assert!((1..=40).contains(&throttled), "{throttled} of 60 were held up, where 20 pass at once");

    // What others put into the record is followed when one is told to.
    servers.set(VolumeSettings::default());
    assert_eq!(volume.follow_settings().wait(), Ok(IoReply::Done));
    assert_eq!(volume.status().unwrap().settings, VolumeSettings::default());

    servers.set(settings.clone());
    let reader = servers.open_read_only();
    assert_eq!(reader.status().unwrap().settings, settings);
    assert!(matches!(reader.change_settings(VolumeSettings::default()).wait(), Err(IoError::Invalid(_))));
    assert_eq!(reader.follow_settings().wait(), Ok(IoReply::Done));
}

#[test]
fn closing_finishes_what_a_limit_holds() {
    let servers = Servers::start(1);
    servers.set(VolumeSettings {
        iops_limit: Some(RateLimit { per_second: 1, burst: 1 }),
        ..VolumeSettings::default()
    });
    let volume = servers.open();
    let writes: Vec<_> = (0..100).map(|block| volume.request(write(block, 3))).collect();
    volume.close(PATIENCE).unwrap();
    writes.into_iter().for_each(|write| assert_eq!(write.wait(), Ok(IoReply::Done)));
}
