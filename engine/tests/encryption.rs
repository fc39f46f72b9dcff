//! An encrypted volume on real replica servers that are tampered with: by somebody who can write whatever
//! he likes to them, checksums and all, but has no key.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod servers;

use bytes::{BufMut, Bytes};
use servers::{Servers, VOLUME, wait_until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use trivet_crypto::{BlockCipher, DataKey};
use trivet_engine::{Engine, EngineOptions, IoError, IoReply, IoRequest, OpenError, OpenOptions, Volume};
use trivet_model::{
    BLOCK_SIZE, BLOCK_SIZE_U64, BlockRange, BlockTag, Epoch, Generation, SnapshotId, SnapshotOrder,
    SnapshotRecord, Stamp, VolumeSettings,
};
use trivet_wire::{BlockData, Decoder, Frame, Hello, Message, PROTOCOL_VERSION, Progress};

const BLOCKS: u32 = 48;

fn key() -> DataKey {
    DataKey::take(&mut [0x42; 32])
}

fn contents(block: u64, version: u8) -> Vec<u8> {
    (0..BLOCK_SIZE).map(|at| version.wrapping_add(u8::try_from((at as u64 + block) % 251).unwrap())).collect()
}

fn write(volume: &Volume, block: u64, version: u8) {
    let segments = vec![Bytes::from(contents(block, version))];
    let request = IoRequest::Write { offset: block * BLOCK_SIZE_U64, segments, force_unit_access: false };
    assert_eq!(volume.request(request).wait(), Ok(IoReply::Done));
}

fn read(volume: &Volume, block: u64) -> Result<Vec<u8>, IoError> {
    let request = IoRequest::Read { offset: block * BLOCK_SIZE_U64, length: 4096 };
    volume.request(request).wait().map(|reply| match reply {
        IoReply::Data(segments) => segments.concat(),
        other => panic!("a read answers data, not {other:?}"),
    })
}

/// A block as it lies on a member.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Stored {
    stamp: Stamp,
    tag: BlockTag,
    bytes: Bytes,
}

impl Stored {
    /// What it says to who has the key.
    fn opened(&self, block: u64) -> Option<Vec<u8>> {
        self.opened_with(&key(), block)
    }

    fn opened_with(&self, key: &DataKey, block: u64) -> Option<Vec<u8>> {
        let mut out = self.bytes.to_vec();
        let cipher = BlockCipher::new(key, VOLUME);
        cipher.open(block, self.stamp, &mut out, &self.tag).ok().map(|()| out)
    }
}

/// Talks to one replica server, as who has broken in there can.
struct Intruder {
    socket: TcpStream,
    decoder: Decoder,
    generation: Generation,
    request: u64,
}

impl Intruder {
    fn enter(servers: &Servers, member: usize, writable: Option<Generation>) -> Self {
        let socket = TcpStream::connect(servers.address(member)).unwrap();
        let generation = writable.unwrap_or(Generation::ZERO);
        let mut intruder = Self { socket, decoder: Decoder::new(), generation, request: 0 };
        intruder.ask(Message::Hello(Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION }));
        let opened =
            intruder.ask(Message::Open { volume: VOLUME, writable: writable.is_some(), session: 0xbad });
        assert!(matches!(opened, Message::OpenReply(_)), "{opened:?}");
        intruder
    }

    fn ask(&mut self, message: Message) -> Message {
        self.request += 1;
        let (request, generation) = (self.request, self.generation);
        let mut segments = Vec::new();
        trivet_wire::encode(&Frame { request, generation, epoch: Epoch(1), message }, &mut segments);
        segments.iter().for_each(|segment| self.socket.write_all(segment).unwrap());
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return frame.message;
            }
            let mut buffer = self.decoder.buffer();
            let mut received = vec![0; buffer.capacity()];
            let count = self.socket.read(&mut received).unwrap();
            assert!(count > 0, "the server hangs up");
            buffer.put_slice(&received[..count]);
            self.decoder.filled(buffer);
        }
    }

    fn look(&mut self, block: u64) -> Stored {
        let reply = self.ask(Message::Read { range: BlockRange::new(block, 1) });
        let Message::ReadReply { stamps, data, .. } = reply else { panic!("no blocks: {reply:?}") };
        assert_eq!((stamps.len(), data.tags.len()), (1, 1), "a block of an encrypted volume has a tag");
        Stored { stamp: stamps[0], tag: data.tags[0], bytes: Bytes::from(data.segments.concat()) }
    }

    /// Whether it has data in a block.
    fn has(&mut self, block: u64) -> bool {
        let reply = self.ask(Message::Read { range: BlockRange::new(block, 1) });
        let Message::ReadReply { data, .. } = reply else { panic!("no blocks: {reply:?}") };
        data.blocks() > 0
    }

    /// Has it forget a block.
    fn hide(&mut self, block: u64) {
        let (stamp, progress) = (self.look(block).stamp, Progress::default());
        let range = BlockRange::new(block, 1);
        let discard = Message::Discard { range, stamp, progress, force_unit_access: true };
        assert_eq!(self.ask(discard), Message::Done);
        assert!(!self.has(block));
    }

    /// Puts a block in the place of what is there, with a checksum that fits.
    fn plant(&mut self, block: u64, planted: &Stored) {
        let mut data = BlockData::checksummed(vec![planted.bytes.clone()]);
        data.tags = vec![planted.tag];
        let (stamp, progress) = (planted.stamp, Progress::default());
        let write = Message::Write { start: block, stamp, progress, force_unit_access: true, data };
        assert_eq!(self.ask(write), Message::Done);
        assert_eq!(self.look(block), *planted);
    }
}

fn flipped(stored: &Stored) -> Stored {
    let mut bytes = stored.bytes.to_vec();
    bytes[1234] ^= 0x20;
    Stored { bytes: Bytes::from(bytes), ..stored.clone() }
}

/// Two versions of every block, written and stable; block 5 as each member had its first version.
fn prepared() -> (Servers, Stored) {
    let servers = Servers::start_with(3, Some(key()));
    let volume = servers.open();
    (0..u64::from(BLOCKS)).for_each(|block| write(&volume, block, 1));
    volume.request(IoRequest::Flush).wait().unwrap();
    let older = Intruder::enter(&servers, 0, None).look(5);
    assert_eq!(older.opened(5), Some(contents(5, 1)));
    assert_ne!(older.bytes, contents(5, 1), "what members hold is not what was written");
    (0..u64::from(BLOCKS)).for_each(|block| write(&volume, block, 2));
    volume.request(IoRequest::Flush).wait().unwrap();
    drop(volume);
    (servers, older)
}

fn tamper(servers: &mut Servers, members: &[usize], act: impl Fn(&mut Intruder)) {
    let generation = servers.claim();
    for &member in members {
        // What was written last has left the memory then, and anything older that is written stands.
        servers.stop(member);
        servers.restart(member);
        act(&mut Intruder::enter(servers, member, Some(generation)));
    }
}

fn forged(volume: &Volume) -> u64 {
    volume.status().unwrap().counters.blocks_forged
}

/// Every block is right, and after that on every member, too.
fn assert_mended(servers: &Servers, volume: &Volume) {
    for block in 0..u64::from(BLOCKS) {
        assert_eq!(read(volume, block).unwrap(), contents(block, 2), "block {block}");
    }
    for member in 0..3 {
        for block in 0..u64::from(BLOCKS) {
            let right = || {
                Intruder::enter(servers, member, None).look(block).opened(block) == Some(contents(block, 2))
            };
            // Whoever reads a forged block finds it; each member is read from in its turn.
            wait_until("a block to be mended", || right() || (read(volume, block).is_ok() && right()));
        }
    }
}

#[test]
fn flipped_and_swapped_blocks_of_one_member_are_served_from_another_and_mended() {
    let (mut servers, _) = prepared();
    tamper(&mut servers, &[0], |intruder| {
        let (three, seven, eight) = (intruder.look(3), intruder.look(7), intruder.look(8));
        intruder.plant(3, &flipped(&three));
        let swapped = |there: &Stored, here: &Stored| Stored { stamp: here.stamp, ..there.clone() };
        intruder.plant(7, &swapped(&eight, &seven));
        intruder.plant(8, &swapped(&seven, &eight));
        // Moved with its stamp, which is above that of the block that was there.
        let nine = intruder.look(9);
        intruder.plant(2, &nine);
    });
    let volume = servers.open();
    assert_mended(&servers, &volume);
    assert!(forged(&volume) >= 4, "{} blocks found", forged(&volume));
}

#[test]
fn blocks_that_every_member_has_forged_are_an_error_and_nothing_else_is() {
    let (mut servers, _) = prepared();
    tamper(&mut servers, &[0, 1, 2], |intruder| {
        let there = intruder.look(11);
        intruder.plant(11, &flipped(&there));
    });
    let volume = servers.open();
    let error = read(&volume, 11).unwrap_err();
    assert!(matches!(error, IoError::Medium { start: 11, end: 12, .. }), "{error}");
    assert!(error.to_string().contains("not as it was encrypted"), "{error}");
    for block in (0..u64::from(BLOCKS)).filter(|block| *block != 11) {
        assert_eq!(read(&volume, block).unwrap(), contents(block, 2));
    }
    // A part of it cannot be written, since the rest is not known; the whole can.
    let part = IoRequest::Write {
        offset: 11 * BLOCK_SIZE_U64,
        segments: vec![Bytes::from(vec![1; 512])],
        force_unit_access: false,
    };
    assert!(matches!(volume.request(part).wait(), Err(IoError::Medium { .. })));
    write(&volume, 11, 2);
    assert_mended(&servers, &volume);
}

#[test]
fn blocks_that_every_member_has_swapped_are_errors() {
    let (mut servers, _) = prepared();
    tamper(&mut servers, &[0, 1, 2], |intruder| {
        let (seven, eight) = (intruder.look(7), intruder.look(8));
        let swapped = |there: &Stored, here: &Stored| Stored { stamp: here.stamp, ..there.clone() };
        intruder.plant(7, &swapped(&eight, &seven));
        intruder.plant(8, &swapped(&seven, &eight));
    });
    let volume = servers.open();
    for block in 0..u64::from(BLOCKS) {
        match block {
            7 | 8 => assert!(matches!(read(&volume, block), Err(IoError::Medium { .. })), "block {block}"),
            _ => assert_eq!(read(&volume, block).unwrap(), contents(block, 2)),
        }
    }
}

fn verify_reads(servers: &Servers) {
    servers.set(VolumeSettings { verified_reads: true, ..VolumeSettings::default() });
}

fn stale(volume: &Volume) -> u64 {
    volume.status().unwrap().counters.blocks_stale
}

#[test]
fn an_older_version_or_a_hole_on_one_member_is_found_by_verified_reads_and_mended() {
    for member in 0..3 {
        let (mut servers, older) = prepared();
        verify_reads(&servers);
        tamper(&mut servers, &[member], |intruder| {
            intruder.plant(5, &older);
            intruder.hide(9);
        });
        let volume = servers.open();
        // Whoever is asked, and whoever is held against it: the answer is right. Each has its turn.
        wait_until("both to be found", || {
            assert_eq!(read(&volume, 5).unwrap(), contents(5, 2));
            assert_eq!(read(&volume, 9).unwrap(), contents(9, 2));
            stale(&volume) >= 2
        });
        for block in [5, 9] {
            wait_until("it to be mended", || {
                let mut intruder = Intruder::enter(&servers, member, None);
                intruder.has(block) && intruder.look(block).opened(block) == Some(contents(block, 2))
            });
        }
        for block in (0..u64::from(BLOCKS)).chain([5, 9, 5, 9, 5, 9]) {
            assert_eq!(read(&volume, block).unwrap(), contents(block, 2), "block {block}");
        }
        let whole = IoRequest::Read { offset: 0, length: BLOCKS * 4096 };
        let Ok(IoReply::Data(segments)) = volume.request(whole).wait() else { panic!("it can be read") };
        let expected: Vec<u8> = (0..u64::from(BLOCKS)).flat_map(|block| contents(block, 2)).collect();
        assert!(segments.concat() == expected);
        assert_eq!(stale(&volume), 2, "each is counted once");
        drop(volume);
        assert_eq!(scrubbed(&servers, 1), (0, 0));
    }
}

/// A part of a block is laid over what stands, not over what one member says.
#[test]
fn a_part_of_a_block_that_one_member_has_rolled_back_is_written_over_the_right_version() {
    let (mut servers, older) = prepared();
    verify_reads(&servers);
    tamper(&mut servers, &[0], |intruder| intruder.plant(5, &older));
    let volume = servers.open();
    let mut expected = contents(5, 2);
    for sector in 0..8 {
        let fill = u8::try_from(sector).unwrap();
        let write = IoRequest::Write {
            offset: 5 * BLOCK_SIZE_U64 + sector * 512,
            segments: vec![Bytes::from(vec![fill; 512])],
            force_unit_access: false,
        };
        assert_eq!(volume.request(write).wait(), Ok(IoReply::Done));
        let at = usize::try_from(sector * 512).unwrap();
        expected[at..at + 512].fill(fill);
        assert_eq!(read(&volume, 5).unwrap(), expected);
    }
}

/// What `docs/encryption.md` says is not noticed.
#[test]
fn an_older_version_on_every_member_is_not_found() {
    let (mut servers, older) = prepared();
    verify_reads(&servers);
    tamper(&mut servers, &[0, 1, 2], |intruder| intruder.plant(5, &older));
    assert_eq!(scrubbed(&servers, 1), (0, 0));
    let volume = servers.open();
    assert_eq!(read(&volume, 5).unwrap(), contents(5, 1));
    assert_eq!((stale(&volume), forged(&volume)), (0, 0));
}

#[test]
fn with_one_member_in_sync_reads_are_as_without_verifying() {
    let servers = Servers::start_with(1, Some(key()));
    verify_reads(&servers);
    let volume = servers.open();
    write(&volume, 3, 1);
    assert_eq!(read(&volume, 3).unwrap(), contents(3, 1));
    assert_eq!(read(&volume, 4).unwrap(), vec![0; BLOCK_SIZE]);
}

#[test]
fn an_older_version_on_one_member_is_found_by_a_scrub_and_mended() {
    let (mut servers, older) = prepared();
    tamper(&mut servers, &[1], |intruder| intruder.plant(5, &older));
    assert_eq!(scrubbed(&servers, 1), (1, 0));
    let volume = servers.open();
    assert_mended(&servers, &volume);
    drop(volume);
    assert_eq!(scrubbed(&servers, 2), (0, 0));
}

/// Scrubs the whole volume; answers how many blocks differed, and how many could not be mended.
fn scrubbed(servers: &Servers, run: u64) -> (u64, u64) {
    let control = servers.path(&format!("control-{run}"));
    let engine = Engine::start(EngineOptions {
        volume: servers.options(false),
        export_name: None,
        nbd_socket: None,
        nbd_address: None,
        status_socket: None,
        control_socket: Some(control.clone()),
        stop_patience: Duration::from_secs(30),
    })
    .unwrap();
    let counts = r#"{"compared":0,"repaired":0,"mismatched":0,"unrepairable":0,"unrepairable_blocks":[]}"#;
    let order = format!(
        "{{\"scrub\":{{\"run\":{run},\"position\":0,\"bytes_per_second\":1073741824,\"counts\":{counts}}}}}\n"
    );
    let scrub = || {
        let mut answer = String::new();
        let mut caller = UnixStream::connect(&control).unwrap();
        caller.write_all(order.as_bytes()).unwrap();
        caller.read_to_string(&mut answer).unwrap();
        serde_json::from_str::<serde_json::Value>(&answer).unwrap()["volume"]["scrub"].take()
    };
    wait_until("the scrub's end", || scrub()["finished"] == true);
    let counts = scrub()["counts"].take();
    engine.stop_handle().stop();
    engine.wait().unwrap();
    (counts["mismatched"].as_u64().unwrap(), counts["unrepairable"].as_u64().unwrap())
}

#[test]
fn a_wrong_key_is_refused_before_anything_is_claimed() {
    let servers = Servers::start_with(2, Some(key()));
    write(&servers.open(), 1, 1);
    let before = servers.record();
    let refused = |key: Option<DataKey>| {
        let error = Volume::open(OpenOptions { key, ..servers.options(false) }).unwrap_err();
        let OpenError::Failed(reason) = error else { panic!("{error}") };
        reason
    };
    assert!(refused(None).contains("no key was given"));
    let reason = refused(Some(DataKey::take(&mut [0x43; 32])));
    assert!(reason.contains("not the volume's"), "{reason}");
    assert_eq!(servers.record(), before);
    assert_eq!(read(&servers.open(), 1).unwrap(), contents(1, 1));

    let plain = Servers::start(2);
    let opened = Volume::open(OpenOptions { key: Some(key()), ..plain.options(false) });
    assert!(opened.unwrap_err().to_string().contains("not encrypted"));
}

#[test]
fn parts_of_blocks_discards_and_members_that_come_back() {
    let mut servers = Servers::start_with(3, Some(key()));
    let volume = servers.open();
    (0..8).for_each(|block| write(&volume, block, 1));
    let part = |offset, fill| IoRequest::Write {
        offset,
        segments: vec![Bytes::from(vec![fill; 512])],
        force_unit_access: false,
    };
    servers.stop(2);
    volume.request(part(3 * BLOCK_SIZE_U64 + 1024, 9)).wait().unwrap();
    volume.request(IoRequest::Discard { offset: 4 * BLOCK_SIZE_U64, length: BLOCK_SIZE_U64 }).wait().unwrap();
    write(&volume, 5, 2);
    servers.restart(2);
    let in_sync =
        || volume.status().unwrap().members.iter().all(|m| (m.role, m.state) == ("in-sync", "ready"));
    wait_until("the member to be brought back", in_sync);
    let mut expected = contents(3, 1);
    expected[1024..1536].fill(9);
    let theirs = Intruder::enter(&servers, 2, None).look(3);
    assert_eq!(theirs.opened(3), Some(expected.clone()), "what was copied keeps stamp and tag");
    assert_eq!(read(&volume, 3).unwrap(), expected);
    assert_eq!(read(&volume, 4).unwrap(), vec![0; BLOCK_SIZE]);
    assert_eq!(Intruder::enter(&servers, 2, None).look(5).opened(5), Some(contents(5, 2)));
    drop(volume);
    assert_eq!(scrubbed(&servers, 1), (0, 0));
}

#[test]
fn a_revert_opens_what_the_snapshot_shows_and_seals_it_anew() {
    let (mut servers, _) = prepared();
    // What the snapshot shows of it, the member that is asked first has forged.
    tamper(&mut servers, &[0], |intruder| {
        let there = intruder.look(3);
        intruder.plant(3, &flipped(&there));
    });
    let volume = servers.open();
    let id = SnapshotId::from_bytes([5; 16]);
    let (name, cut, created, labels) = ("before".to_owned(), Stamp::ZERO, 0, Default::default());
    let order = SnapshotOrder::Create(SnapshotRecord { id, name, cut, created, labels });
    assert_eq!(volume.order_snapshot(order).wait(), Ok(IoReply::Done));
    (0..u64::from(BLOCKS)).for_each(|block| write(&volume, block, 3));
    let beyond = u64::from(BLOCKS) + 5;
    write(&volume, beyond, 3);
    drop(volume);

    servers.revert_to(id);
    let volume = servers.open();
    for block in 0..u64::from(BLOCKS) {
        assert_eq!(read(&volume, block).unwrap(), contents(block, 2), "block {block}");
    }
    assert_eq!(read(&volume, beyond).unwrap(), vec![0; BLOCK_SIZE], "the snapshot has a hole there");
    assert_eq!(forged(&volume), 1);
    let record = servers.record();
    assert_eq!(record.reverting, None);
    for member in 0..3 {
        let mut intruder = Intruder::enter(&servers, member, None);
        for block in 0..u64::from(BLOCKS) {
            let stored = intruder.look(block);
            assert_eq!(stored.opened(block), Some(contents(block, 2)), "block {block} of member {member}");
            assert!(stored.stamp > record.snapshots[0].cut, "block {block} of member {member}");
        }
    }
}

#[test]
fn what_a_volume_shows_is_sealed_under_its_new_key_alone_and_what_snapshots_show_under_the_old() {
    let (mut servers, _) = prepared();
    let next = DataKey::take(&mut [0x43; 32]);
    let volume = servers.open();
    let refused = volume.rekey(next.clone()).wait();
    assert!(matches!(refused, Err(IoError::Invalid(_))), "the record knows of no other key: {refused:?}");
    let id = SnapshotId::from_bytes([5; 16]);
    let (name, cut, created, labels) = ("before".to_owned(), Stamp::ZERO, 0, Default::default());
    let order = SnapshotOrder::Create(SnapshotRecord { id, name, cut, created, labels });
    assert_eq!(volume.order_snapshot(order).wait(), Ok(IoReply::Done));
    servers.rekey_to(&next);
    assert_eq!(volume.rekey(next.clone()).wait(), Ok(IoReply::Done));
    assert_eq!(volume.rekey(next.clone()).wait(), Ok(IoReply::Done), "said again");
    // Beside what a consumer writes.
    (0..u64::from(BLOCKS)).step_by(3).for_each(|block| write(&volume, block, 3));
    wait_until("all to be sealed anew", || !servers.record().is_resealing());
    let version = |block: u64| if block.is_multiple_of(3) { 3 } else { 2 };
    let record = servers.record();
    let [older] = record.older_keys.as_slice() else { panic!("one older key: {record:?}") };
    assert_eq!((older.key, record.key, record.next_key), (key().id(), Some(next.id()), None));
    assert_eq!(record.snapshots_needing(older).count(), 1);
    for member in 0..3 {
        let mut intruder = Intruder::enter(&servers, member, None);
        for block in 0..u64::from(BLOCKS) {
            let stored = intruder.look(block);
            assert_eq!(
                stored.opened(block),
                None,
                "block {block} of member {member} opens under the old key"
            );
            assert_eq!(stored.opened_with(&next, block), Some(contents(block, version(block))));
            assert!(stored.stamp > older.until, "block {block} of member {member}");
        }
        intruder.ask(Message::View { at: Some(id) });
        let shown = intruder.look(7);
        assert_eq!(shown.opened(7), Some(contents(7, 2)), "what the snapshot shows stays as it was");
    }
    drop(volume);

    let viewed = OpenOptions { snapshot: Some(id), ..servers.options(true) };
    let snapshot = Volume::open(viewed).unwrap();
    (0..u64::from(BLOCKS)).for_each(|block| assert_eq!(read(&snapshot, block).unwrap(), contents(block, 2)));
    drop(snapshot);
    // Without the old key, the volume is there, and the snapshot is not.
    servers.destroy_older_keys();
    let volume = servers.open();
    for block in 0..u64::from(BLOCKS) {
        assert_eq!(read(&volume, block).unwrap(), contents(block, version(block)), "block {block}");
    }
    assert_eq!(forged(&volume), 0);
    let viewed = OpenOptions { snapshot: Some(id), ..servers.options(true) };
    assert!(read(&Volume::open(viewed).unwrap(), 7).is_err());
}
