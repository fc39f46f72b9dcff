//! Two real servers over real sockets: one copies from the other, or repairs itself from it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;

use client::{Client, Server, fills, stamp, write};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;
use trivet_model::{BLOCK_SIZE, BlockRange, BootId, PoolId, Stamp};
use trivet_wire::{ErrorCode, Message, Progress, PullReport, PullState, TailEntry};

/// Far more than are asked for while anything here is copied.
const REPORTS_MAX: u64 = 10_000_000;
const BLOCKS: u64 = 20_000;

/// A source and a target, each with a session open for writing.
struct Pair {
    _directories: [tempfile::TempDir; 2],
    source: Server,
    target: Server,
    to_source: Client,
    to_target: Client,
    /// The source's.
    boot: BootId,
    sequence: u64,
}

impl Pair {
    fn new() -> Self {
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [source, target] = [0, 1].map(|index| Server::start(directories[index].path()));
        let ((to_source, opened), (to_target, _)) = (source.open(1, 7), target.open(1, 7));
        let boot = opened.boot;
        Self { _directories: directories, source, target, to_source, to_target, boot, sequence: 1 }
    }

    /// Writes `count` blocks of one byte at `start`.
    fn write(&mut self, to: To, start: u64, count: usize) {
        let fill = u8::try_from(self.sequence % 251).unwrap();
        let message = write(1, start, self.sequence, &vec![fill; count]);
        self.send(to, &message, count as u64);
    }

    fn discard(&mut self, to: To, start: u64, count: u32) {
        let message = Message::Discard {
            range: BlockRange::new(start, count),
            stamp: stamp(1, self.sequence),
            progress: Progress::default(),
            force_unit_access: false,
        };
        self.send(to, &message, u64::from(count));
    }

    fn send(&mut self, to: To, message: &Message, count: u64) {
        self.sequence += count;
        if to != To::Target {
            assert_eq!(self.to_source.call(message.clone()), Message::Done);
        }
        if to != To::Source {
            assert_eq!(self.to_target.call(message.clone()), Message::Done);
        }
    }

    /// Writes and discards all over the volume.
    fn scatter(&mut self, to: To, changes: u64) {
        for change in 0..changes {
            let start = self.sequence * 7919 % (BLOCKS - 400);
            match change % 9 {
                8 => self.discard(to, start, 300),
                7 => self.write(to, start, 200),
                _ => self.write(to, start, 1 + usize::try_from(change % 5).unwrap()),
            }
        }
    }

    fn pull(&mut self, address: &str, since: Stamp) {
        let (source, boot, floor) = (self.source.pool(), self.boot, stamp(1, self.sequence));
        let pull =
            Message::Pull { source, boot, address: address.to_owned(), since, floor, stable: Stamp::ZERO };
        assert_eq!(self.to_target.call(pull), Message::Done);
    }

    fn direct(&self) -> String {
        self.source.address.to_string()
    }

    fn finish(&mut self) -> (PullReport, Vec<BlockRange>) {
        let report = followed(&mut self.to_target);
        assert_eq!(report.0.state, PullState::Finished, "{}", report.0.detail);
        report
    }

    fn assert_equal(&mut self) {
        assert!(image(&mut self.to_source) == image(&mut self.to_target), "the two sides differ");
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Source,
    Target,
    Both,
}

/// Asks until the pull is over; the last report, and all that diverged.
fn followed(client: &mut Client) -> (PullReport, Vec<BlockRange>) {
    let mut diverged = Vec::new();
    for _ in 0..REPORTS_MAX {
        let Message::PullReport(mut report) = client.call(Message::PullStatus { stable: Stamp::ZERO }) else {
            panic!("no report")
        };
        diverged.append(&mut report.diverged);
        if report.state != PullState::Running {
            return (report, diverged);
        }
    }
    panic!("the pull does not end")
}

/// Every block's stamp and fill; `None` for a tombstone.
fn image(client: &mut Client) -> BTreeMap<u64, (Stamp, Option<u8>)> {
    let mut image = BTreeMap::new();
    for start in (0..BLOCKS).step_by(250) {
        let range = BlockRange::new(start, 250);
        let Message::FetchReply { versions, data } = client.call(Message::Fetch { range }) else {
            panic!("nothing fetched")
        };
        let mut fills =
            fills(&vec![0xff; data.blocks().div_ceil(8)], &data, u32::try_from(data.blocks()).unwrap())
                .into_iter();
        for TailEntry { range, stamp, discard } in versions {
            for (at, block) in range.blocks().enumerate() {
                let fill = if discard { None } else { fills.next().unwrap() };
                image.insert(block, (stamp.plus(at as u64), fill));
            }
        }
    }
    image
}

#[test]
fn a_new_replica_gets_everything_while_both_are_written() {
    let mut pair = Pair::new();
    pair.scatter(To::Source, 300);
    pair.pull(&pair.direct(), Stamp::ZERO);
    pair.scatter(To::Both, 100);
    let (report, diverged) = pair.finish();
    assert!(report.copied_blocks > 1000 && diverged.is_empty(), "{report:?}");
    assert_eq!(report.position, 1 << 20);
    pair.scatter(To::Both, 20);
    pair.assert_equal();
}

#[test]
fn one_that_was_away_gets_what_changed_and_tells_what_nobody_acknowledged() {
    let mut pair = Pair::new();
    pair.scatter(To::Both, 300);
    let since = stamp(1, pair.sequence - 1);
    pair.write(To::Source, 100, 10);
    pair.write(To::Source, 19_000, 1);
    pair.discard(To::Source, 5000, 20);
    // Two that only the target got, one of them over what the source wrote later.
    pair.write(To::Target, 15_000, 3);
    pair.write(To::Target, 103, 1);
    pair.write(To::Source, 103, 1);
    let name = format!("localhost:{}", pair.source.address.port());
    pair.pull(&name, since);
    let (report, diverged) = pair.finish();
    assert_eq!(report.copied_blocks, 31);
    assert_eq!(diverged, [BlockRange::new(15_000, 3)]);
    pair.write(To::Both, 15_000, 3);
    pair.assert_equal();
    // What is there already is not copied again.
    pair.pull(&pair.direct(), since);
    let (report, diverged) = pair.finish();
    assert!(report.copied_blocks <= 20 && diverged.is_empty(), "{report:?}");
}

/// Passes a connection on until so many bytes have come from the far end, then cuts it.
fn cutting_proxy(to: SocketAddr, bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut near, _) = listener.accept().unwrap();
        let mut far = TcpStream::connect(to).unwrap();
        let (mut near_out, mut far_in) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ended = std::io::copy(&mut near, &mut far);
        });
        let mut left = bytes;
        let mut buffer = vec![0; 16 << 10];
        while left > 0 {
            let most = buffer.len().min(left);
            let got = far_in.read(&mut buffer[..most]).unwrap();
            near_out.write_all(&buffer[..got]).unwrap();
            left -= got;
        }
        near_out.shutdown(std::net::Shutdown::Both).unwrap();
        far_in.shutdown(std::net::Shutdown::Both).unwrap();
    });
    address
}

#[test]
fn a_pull_cut_off_harms_nothing_and_the_next_one_finishes() {
    let mut pair = Pair::new();
    for _ in 0..30 {
        let start = pair.sequence * 7919 % (BLOCKS - 400);
        pair.write(To::Source, start, 256);
    }
    for bytes in [100, 60_000, 3 << 20] {
        let proxy = cutting_proxy(pair.source.address, bytes);
        pair.pull(&proxy.to_string(), Stamp::ZERO);
        let (report, _) = followed(&mut pair.to_target);
        assert_eq!(report.state, PullState::Failed);
        assert!(report.detail.contains(&proxy.to_string()), "{}", report.detail);
        pair.scatter(To::Both, 10);
    }
    pair.pull(&pair.direct(), Stamp::ZERO);
    pair.finish();
    pair.assert_equal();
}

#[test]
fn a_source_whose_host_was_restarted_is_refused() {
    let mut pair = Pair::new();
    pair.write(To::Source, 5, 3);
    pair.boot = BootId::from_bytes([9; 16]);
    pair.pull(&pair.direct(), Stamp::ZERO);
    let (report, _) = followed(&mut pair.to_target);
    assert_eq!(report.state, PullState::Failed);
    assert!(report.detail.contains("restarted"), "{}", report.detail);
    assert_eq!(report.copied_blocks, 0);
}

#[test]
fn a_source_that_is_not_there_or_another_is_named() {
    let mut pair = Pair::new();
    let floor = stamp(1, 1);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let boot = pair.boot;
    for (source, address, told) in [
        (PoolId::from_bytes([9; 16]), pair.source.address, "is pool"),
        (pair.source.pool(), nobody, "refused"),
    ] {
        let pull = Message::Pull {
            source,
            boot,
            address: address.to_string(),
            since: Stamp::ZERO,
            floor,
            stable: Stamp::ZERO,
        };
        assert_eq!(pair.to_target.call(pull), Message::Done);
        let (report, _) = followed(&mut pair.to_target);
        assert_eq!(report.state, PullState::Failed);
        assert!(report.detail.contains(told), "{}", report.detail);
        let repair = Message::Repair { range: BlockRange::new(0, 1), source, address: address.to_string() };
        let Message::Error { code, detail } = pair.to_target.call(repair) else { panic!("not refused") };
        assert!(code == ErrorCode::Source && detail.contains(told), "{code:?} {detail}");
    }
    pair.scatter(To::Both, 5);
    pair.assert_equal();
}

#[test]
fn a_pull_ends_with_its_session() {
    let mut pair = Pair::new();
    // Nobody answers behind this address: the pull would wait.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    pair.pull(&silent.local_addr().unwrap().to_string(), Stamp::ZERO);
    let (mut connection, _) = silent.accept().unwrap();
    let Message::PullReport(report) = pair.to_target.call(Message::PullStatus { stable: Stamp::ZERO }) else {
        panic!("no report")
    };
    assert_eq!(report.state, PullState::Running);
    let (mut newer, _) = pair.target.open(2, 8);
    let mut rest = Vec::new();
    // A source that does not greet is given up after ten seconds anyhow.
    connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    connection.read_to_end(&mut rest).unwrap();
    assert!(!rest.is_empty(), "it has said Hello, and hung up");
    let Message::PullReport(report) = newer.call(Message::PullStatus { stable: Stamp::ZERO }) else {
        panic!("no report")
    };
    assert_eq!(report.state, PullState::Failed, "a session's pull is its own");
}

#[test]
fn a_flipped_byte_is_repaired_from_the_other_side() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let servers = [0, 1].map(|index| Server::start(directories[index].path()));
    for server in &servers {
        let (mut client, _) = server.open(1, 7);
        assert_eq!(client.write(10, 1, &[1, 2, 0xd7, 4]), Message::Done);
        client.flush();
    }
    let [source, target] = servers;
    target.stop();
    flip(&directories[1].path().join("pool"), 0xd7);

    let target = Server::start(directories[1].path());
    let (mut client, _) = target.open(2, 7);
    let code = |message| match message {
        Message::Error { code, .. } => code,
        other => panic!("{other:?}"),
    };
    let range = BlockRange::new(10, 4);
    assert_eq!(code(client.call(Message::Read { range })), ErrorCode::ChecksumOnMedium);
    let verify = |client: &mut Client| match client.call(Message::Verify { range, stamps_only: false }) {
        Message::VerifyReply { versions, crcs, failed } => {
            assert_eq!(versions, [TailEntry { range, stamp: stamp(1, 1), discard: false }]);
            assert_eq!(crcs.len(), 4);
            failed
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(verify(&mut client), [BlockRange::new(12, 1)]);
    let repair = Message::Repair { range, source: source.pool(), address: source.address.to_string() };
    assert_eq!(client.call(repair), Message::Done);
    assert_eq!(client.read(10, 4), [Some(1), Some(2), Some(0xd7), Some(4)]);
    assert_eq!(verify(&mut client), []);
    client.flush();
    drop(client);
    target.stop();
    let target = Server::start(directories[1].path());
    let (mut client, _) = target.open(3, 7);
    assert_eq!(client.read(10, 4), [Some(1), Some(2), Some(0xd7), Some(4)]);
}

/// Changes a byte of the block that is filled with `fill`.
fn flip(file: &std::path::Path, fill: u8) {
    let mut bytes = std::fs::read(file).unwrap();
    let at = bytes.chunks(BLOCK_SIZE).position(|block| block.iter().all(|&byte| byte == fill)).unwrap();
    bytes[at * BLOCK_SIZE + 99] ^= 1;
    std::fs::write(file, bytes).unwrap();
}
