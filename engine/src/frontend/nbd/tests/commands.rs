//! Every command, with the replies a client relies on, and every refusal.

use super::client::{
    self, BLOCK_STATUS, CACHE, DF, DISC, FAST_ZERO, FLUSH, FUA, NO_HOLE, READ, REQ_ONE, Reader, Reply, TRIM,
    WRITE, WRITE_ZEROES, command, write,
};
use super::harness::{Driver, Order, export, snapshots};
use crate::frontend::nbd::{CloseReason, ExportInfo, Violation};
use crate::request::{IoError, IoReply};
use std::collections::BTreeMap;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;
const MIB: u32 = 1 << 20;

fn connected(export: ExportInfo, structured: bool) -> Driver {
    let mut driver = Driver::new(export);
    driver.say(&client::hello(structured), &[]);
    driver
}

/// With two snapshots, since which something may have changed.
fn changing() -> ExportInfo {
    ExportInfo { changed_since: snapshots(), ..export(false) }
}

fn connected_to(export: ExportInfo, contexts: &[&str]) -> Driver {
    let mut driver = Driver::new(export);
    driver.say(&client::hello_with(contexts), &[]);
    driver
}

fn large() -> ExportInfo {
    ExportInfo { size_bytes: 40 << 20, ..export(false) }
}

/// Sends requests and returns the replies to them.
fn ask(driver: &mut Driver, bytes: &[u8], reads: &[(u64, (u64, u32))]) -> BTreeMap<u64, Reply> {
    let before = driver.sent.len();
    assert_eq!(driver.say(bytes, &[]), bytes.len());
    client::replies(Reader(&driver.sent[before..]), &reads.iter().copied().collect())
}

fn ask_one(driver: &mut Driver, flags: u16, kind: u16, offset: u64, length: u32) -> Reply {
    let mut bytes = command(flags, kind, 7, offset, length);
    if kind == WRITE {
        bytes.resize(bytes.len() + length as usize, 0x5a);
    }
    let read = (7, (offset, length));
    let reads = if kind == READ { std::slice::from_ref(&read) } else { &[] };
    ask(driver, &bytes, reads).remove(&7).expect("a reply")
}

fn error(driver: &mut Driver, flags: u16, kind: u16, offset: u64, length: u32) -> u32 {
    ask_one(driver, flags, kind, offset, length).error
}

#[test]
fn flags_reach_the_volume() {
    let mut driver = connected(export(false), true);
    for (flags, kind, offset, length) in [
        (0, WRITE, 512, 1024),
        (FUA, WRITE, 0, 4096),
        (0, FLUSH, 0, 0),
        (FUA, FLUSH, 0, 0),
        (0, TRIM, 0, 8192),
        (FUA, TRIM, 4096, 4096),
        (0, WRITE_ZEROES, 512, 512),
        (FUA | NO_HOLE, WRITE_ZEROES, 0, 4096),
        (FAST_ZERO, WRITE_ZEROES, 0, 8192),
        (FUA, READ, 0, 512),
        (FUA, BLOCK_STATUS, 0, 512),
    ] {
        assert_eq!(error(&mut driver, flags, kind, offset, length), 0);
    }
    let expected = [
        "write 512+1024 fua=false",
        "write 0+4096 fua=true",
        "flush",
        "flush",
        "discard 0+8192",
        "discard 4096+4096",
        "flush",
        "zero 512+512 fua=false unmap=true",
        "zero 0+4096 fua=true unmap=false",
        "zero 0+8192 fua=false unmap=true",
        "read 0+512",
        "allocation 0+512",
    ];
    assert_eq!(driver.volume.journal, expected);
}

#[test]
fn a_trim_that_must_be_stable_is_answered_after_its_flush() {
    let mut driver = connected(export(false), true);
    let mut buffer = driver.connection.buffer();
    buffer.extend_from_slice(&command(FUA, TRIM, 9, 0, 4096));
    driver.connection.received(buffer);
    let mut out = Vec::new();
    for _ in 0..2 {
        let (tag, _) = driver.connection.next_request().expect("discard, then flush");
        assert!(driver.connection.next_request().is_none());
        driver.connection.take_output(&mut out);
        assert!(out.is_empty(), "not stable yet");
        driver.connection.complete(tag, Ok(IoReply::Done));
    }
    driver.connection.take_output(&mut out);
    assert_eq!(out.concat().len(), 16);
    assert_eq!(driver.connection.requests_in_flight(), 0);
}

#[test]
fn what_is_not_allowed_is_refused_and_the_connection_goes_on() {
    let size = 2_u64 << 20;
    for structured in [false, true] {
        let mut driver = connected(export(false), structured);
        let oversized = if structured { EOVERFLOW } else { EINVAL };
        for (flags, kind, offset, length, errno) in [
            (0, READ, size, 512, EINVAL),
            (0, READ, size - 512, 1024, EINVAL),
            (0, READ, u64::MAX - 511, 512, EINVAL),
            (0, READ, 0, 0, EINVAL),
            (0, READ, 1, 512, EINVAL),
            (0, READ, 0, 511, EINVAL),
            (0, READ, 0, 32 * MIB + 512, oversized),
            (NO_HOLE, READ, 0, 512, EINVAL),
            (1 << 15, READ, 0, 512, EINVAL),
            (0, WRITE, size, 512, ENOSPC),
            (0, WRITE, u64::MAX - 511, 512, ENOSPC),
            (0, WRITE, 0, 0, EINVAL),
            (0, WRITE, 100, 512, EINVAL),
            (0, WRITE, 0, 100, EINVAL),
            (0, WRITE, 0, 32 * MIB + 512, EINVAL),
            (DF, WRITE, 0, 512, EINVAL),
            (0, FLUSH, 512, 0, EINVAL),
            (0, FLUSH, 0, 512, EINVAL),
            (0, TRIM, size - 512, 1024, EINVAL),
            (0, TRIM, 0, u32::MAX - 511, EINVAL),
            (FAST_ZERO, TRIM, 0, 512, EINVAL),
            (0, WRITE_ZEROES, size - 512, 1024, ENOSPC),
            (REQ_ONE, WRITE_ZEROES, 0, 512, EINVAL),
            (FAST_ZERO, WRITE_ZEROES, 512, 4096, ENOTSUP),
            (FAST_ZERO, WRITE_ZEROES, 4096, 512, ENOTSUP),
            (0, BLOCK_STATUS, size, 512, EINVAL),
            (DF, BLOCK_STATUS, 0, 512, EINVAL),
            (0, CACHE, 0, 512, EINVAL),
            (0, 8, 0, 512, EINVAL),
            (0, 0xffff, 0, 512, EINVAL),
        ] {
            let reply = ask_one(&mut driver, flags, kind, offset, length);
            assert_eq!(reply.error, errno, "{flags} {kind} {offset} {length}");
            assert_eq!(reply.message.is_empty(), !structured);
        }
        assert!(driver.volume.journal.is_empty(), "{:?}", driver.volume.journal);
        assert_eq!(error(&mut driver, 0, READ, 0, 512), 0);
    }
}

#[test]
fn a_read_only_export_refuses_changes() {
    let mut driver = connected(export(true), true);
    for kind in [WRITE, TRIM, WRITE_ZEROES] {
        assert_eq!(error(&mut driver, 0, kind, 0, 4096), EPERM);
    }
    for (kind, length) in [(READ, 4096), (FLUSH, 0), (BLOCK_STATUS, 4096)] {
        assert_eq!(error(&mut driver, 0, kind, 0, length), 0);
    }
}

#[test]
fn features_that_were_not_agreed_on_are_refused() {
    let mut driver = connected(export(false), false);
    assert_eq!(error(&mut driver, DF, READ, 0, 512), EINVAL);
    assert_eq!(error(&mut driver, 0, BLOCK_STATUS, 0, 512), EINVAL);
}

#[test]
fn reads_come_as_data_and_holes() {
    let mut driver = connected(export(false), true);
    driver
        .volume
        .execute(crate::request::IoRequest::Write {
            offset: 256 * 1024,
            segments: vec![vec![3; 8192].into()],
            force_unit_access: false,
        })
        .unwrap();
    let all = ask_one(&mut driver, 0, READ, 0, MIB);
    assert_eq!((all.data_chunks, all.hole_chunks), (1, 2));
    assert!(all.data == driver.volume.contents()[..MIB as usize]);
    let whole = ask_one(&mut driver, DF, READ, 0, MIB);
    assert_eq!((whole.data_chunks, whole.hole_chunks), (1, 0));
    assert!(whole.data == all.data);
    for flags in [0, DF] {
        let hole = ask_one(&mut driver, flags, READ, 512, 1024);
        assert_eq!((hole.data_chunks, hole.hole_chunks), (0, 1));
    }
}

#[test]
fn block_status_merges_and_honours_one_extent() {
    let mut driver = connected(export(false), true);
    assert_eq!(error(&mut driver, 0, WRITE, 8192, 8192), 0);
    let status = ask_one(&mut driver, 0, BLOCK_STATUS, 512, 65536);
    assert_eq!(status.extents, [(7680, 3), (8192, 0), (65536 - 7680 - 8192, 3)]);
    let one = ask_one(&mut driver, REQ_ONE, BLOCK_STATUS, 512, 65536);
    assert_eq!(one.extents, [(7680, 3)]);
    let one = ask_one(&mut driver, REQ_ONE, BLOCK_STATUS, 8192, 512);
    assert_eq!(one.extents, [(512, 0)]);
    assert_eq!(one.contexts, [1]);
}

#[test]
fn block_status_answers_each_context_that_was_selected() {
    let mut driver = connected_to(changing(), &["base:allocation", "qemu:dirty-bitmap:second"]);
    assert_eq!(error(&mut driver, 0, WRITE, 4096, 4096), 0);
    let status = ask_one(&mut driver, 0, BLOCK_STATUS, 0, 12288);
    assert_eq!(status.contexts, [1, 3]);
    // The volume of these tests says that blocks with odd numbers have changed.
    assert_eq!(status.extents[..3], [(4096, 3), (4096, 0), (4096, 3)]);
    assert_eq!(status.extents[3..], [(4096, 0), (4096, 1), (4096, 0)]);
    assert!(driver.volume.journal.iter().any(|line| line.starts_with("changed 0+12288")));
    driver.order = Order::LastFirst;
    let status = ask_one(&mut driver, REQ_ONE, BLOCK_STATUS, 0, 12288);
    assert_eq!((status.contexts, status.extents), (vec![3, 1], vec![(4096, 0), (4096, 3)]));
    let mut driver = connected_to(changing(), &["qemu:dirty-bitmap:first"]);
    assert_eq!(ask_one(&mut driver, 0, BLOCK_STATUS, 4096, 4096).contexts, [2]);
}

#[test]
fn extents_beyond_what_was_asked_are_cut() {
    let mut driver = connected(export(false), true);
    let mut buffer = driver.connection.buffer();
    buffer.extend_from_slice(&command(0, BLOCK_STATUS, 9, 4096, 8192));
    driver.connection.received(buffer);
    let (tag, _) = driver.connection.next_request().unwrap();
    let extents = vec![(1024, true), (1024, true), (u64::MAX, false), (4096, true)];
    driver.connection.complete(tag, Ok(IoReply::Allocation(extents)));
    let before = driver.sent.len();
    driver.turn();
    let replies = client::replies(Reader(&driver.sent[before..]), &BTreeMap::new());
    assert_eq!(replies[&9].extents, [(2048, 0), (6144, 3)]);
}

#[test]
fn large_requests_are_split_and_answered_once() {
    let data: Vec<u8> = (0..32 * MIB).map(|i| u8::try_from(i / 4096 % 251).unwrap()).collect();
    for (structured, order) in [(false, Order::AtOnce), (true, Order::AtOnce), (false, Order::LastFirst)] {
        let mut driver = connected(large(), structured);
        driver.order = order;
        let replies = ask(&mut driver, &write(FUA, 1, 512, &data), &[]);
        assert_eq!(replies.len(), 1);
        assert_eq!(replies[&1].error, 0);
        assert!(driver.volume.contents()[512..512 + data.len()] == data);
        assert!(driver.buffer_bytes_max <= MIB as usize, "{}", driver.buffer_bytes_max);
        assert_eq!(driver.volume.journal.len(), 33);
        for flags in if structured { vec![0, DF] } else { vec![0] } {
            let read = ask_one(&mut driver, flags, READ, 512, 32 * MIB);
            assert!(read.data == data);
        }
    }
}

#[test]
fn a_failed_part_fails_the_request() {
    for (structured, order) in
        [(false, Order::AtOnce), (true, Order::AtOnce), (false, Order::LastFirst), (true, Order::LastFirst)]
    {
        for bad in [0, 300, 1000] {
            let mut driver = connected(large(), structured);
            driver.order = order;
            driver.volume.unreadable_block = Some(bad);
            for flags in if structured { vec![0, DF] } else { vec![0] } {
                let reply = ask_one(&mut driver, flags, READ, 0, 5 * MIB);
                assert_eq!(reply.error, EIO);
                assert_eq!(reply.message.contains("scratched"), structured);
            }
            driver.volume.full_from_block = Some(bad);
            assert_eq!(error(&mut driver, 0, WRITE, 0, 5 * MIB), ENOSPC);
            assert_eq!(error(&mut driver, 0, READ, 8 << 20, 512), 0);
        }
    }
}

#[test]
fn a_fenced_or_closed_volume_is_shutting_down() {
    for volume_error in [IoError::Fenced, IoError::Closed] {
        let mut driver = connected(export(false), false);
        let mut buffer = driver.connection.buffer();
        buffer.extend_from_slice(&command(0, FLUSH, 9, 0, 0));
        driver.connection.received(buffer);
        let (tag, _) = driver.connection.next_request().unwrap();
        driver.connection.complete(tag, Err(volume_error));
        let before = driver.sent.len();
        driver.turn();
        let replies = client::replies(Reader(&driver.sent[before..]), &BTreeMap::new());
        assert_eq!(replies[&9].error, ESHUTDOWN);
    }
}

#[test]
fn write_segments_are_whole_blocks() {
    use crate::request::IoRequest;
    // Writes of every size from one sector, back to back, at block boundaries: wherever the receive
    // buffers end, a write's segments do so at block boundaries only.
    let mut stream = Vec::new();
    for sectors in 1..600_usize {
        stream.extend(write(0, sectors as u64, 4096, &vec![1; sectors * 512]));
    }
    let mut driver = connected(export(false), true);
    let (mut taken, mut several, mut writes) = (0, 0, 0);
    while taken < stream.len() {
        let mut buffer = driver.connection.buffer();
        let count = (buffer.capacity() - buffer.len()).min(stream.len() - taken);
        buffer.extend_from_slice(&stream[taken..taken + count]);
        taken += count;
        driver.connection.received(buffer);
        while let Some((tag, request)) = driver.connection.next_request() {
            let IoRequest::Write { segments, .. } = request else { panic!("only writes were sent") };
            let (_last, before) = segments.split_last().unwrap();
            assert!(before.iter().all(|segment| segment.len() % 4096 == 0));
            several += usize::from(!before.is_empty());
            writes += 1;
            driver.connection.complete(tag, Ok(IoReply::Done));
        }
    }
    assert_eq!(writes, 599);
    assert!(several > 10, "the case does occur");
}

#[test]
fn disconnecting_waits_for_what_is_in_flight() {
    let mut driver = connected(export(false), true);
    let mut buffer = driver.connection.buffer();
    buffer.extend_from_slice(&command(0, FLUSH, 9, 0, 0));
    buffer.extend_from_slice(&command(0, DISC, 0, 0, 0));
    buffer.extend_from_slice(b"whatever follows is not looked at");
    driver.connection.received(buffer);
    let (tag, _) = driver.connection.next_request().unwrap();
    assert!(driver.connection.next_request().is_none());
    assert!(!driver.connection.wants_input());
    assert_eq!(driver.connection.is_finished(), None);
    driver.connection.complete(tag, Ok(IoReply::Done));
    assert_eq!(driver.connection.is_finished(), Some(CloseReason::Disconnected));
}

#[test]
fn shutting_down_answers_what_is_in_flight_and_drops_half_sent_writes() {
    let mut driver = connected(large(), true);
    let mut buffer = driver.connection.buffer();
    buffer.extend_from_slice(&command(0, FLUSH, 9, 0, 0));
    buffer.extend_from_slice(&write(0, 10, 0, &[1; 8192])[..5000]);
    driver.connection.received(buffer);
    let (tag, _) = driver.connection.next_request().unwrap();
    assert!(driver.connection.next_request().is_none());
    driver.connection.shut_down();
    assert!(!driver.connection.wants_input());
    driver.connection.complete(tag, Ok(IoReply::Done));
    assert_eq!(driver.connection.is_finished(), Some(CloseReason::ShutDown));
    let before = driver.sent.len();
    driver.turn();
    let replies = client::replies(Reader(&driver.sent[before..]), &BTreeMap::new());
    assert_eq!(replies.keys().copied().collect::<Vec<_>>(), [9]);
}

#[test]
fn hanging_up_amid_a_long_write_waits_for_the_parts_under_way() {
    let mut driver = connected(large(), true);
    let stream = write(0, 10, 0, &vec![1; 3 << 20]);
    let mut taken = 0;
    let mut parts = Vec::new();
    while parts.len() < 2 {
        let mut buffer = driver.connection.buffer();
        let count = (buffer.capacity() - buffer.len()).min(stream.len() - taken);
        buffer.extend_from_slice(&stream[taken..taken + count]);
        taken += count;
        driver.connection.received(buffer);
        parts.extend(std::iter::from_fn(|| driver.connection.next_request()));
    }
    driver.connection.end_of_input();
    for (tag, _) in parts {
        assert_eq!(driver.connection.is_finished(), None);
        driver.connection.complete(tag, Ok(IoReply::Done));
    }
    assert_eq!(driver.connection.is_finished(), Some(CloseReason::HungUp));
}

#[test]
fn the_stream_may_end_while_the_buffer_is_lent_out() {
    let mut driver = connected(export(false), true);
    drop(driver.connection.buffer());
    driver.connection.end_of_input();
    assert!(driver.connection.next_request().is_none());
    assert_eq!(driver.connection.is_finished(), Some(CloseReason::HungUp));
}

#[test]
fn a_wrong_request_magic_closes() {
    let mut driver = connected(export(false), true);
    driver.say(&[0; 28], &[]);
    let reason = driver.connection.is_finished();
    assert_eq!(reason, Some(CloseReason::Protocol(Violation::RequestMagic(0))));
}
