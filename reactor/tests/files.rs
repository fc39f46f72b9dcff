//! Files: direct I/O, short transfers, long vectors, more operations than the ring has entries.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::{Bytes, BytesMut};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use support::{Loop, pattern, pipe};
use trivet_reactor::{Handle, Options, Wait};

const BLOCK: usize = 4096;

fn open(path: &Path, flags: i32) -> Handle {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
    Handle::from(OwnedFd::from(options.open(path).unwrap()))
}

/// An empty buffer of this capacity, aligned for O_DIRECT.
fn aligned(length: usize) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(length + BLOCK);
    let mut rest = buffer.split_off(buffer.as_ptr().align_offset(BLOCK));
    drop(rest.split_off(length));
    assert_eq!(rest.capacity(), length);
    rest
}

fn aligned_copy(bytes: &[u8]) -> Bytes {
    let mut buffer = aligned(bytes.len());
    buffer.extend_from_slice(bytes);
    buffer.freeze()
}

#[test]
fn direct_writes_come_back() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let file = open(&folder.path().join("f"), libc::O_DIRECT);
    let mut l = Loop::new();
    let data = aligned_copy(&pattern(8 * BLOCK, 1));
    l.reactor.allocate(l.source, 1, &file, 0, 1 << 20);
    l.done(1);
    // Two runs with a gap in memory: a vectored write of two entries.
    let segments = vec![data.slice(..BLOCK), data.slice(BLOCK..3 * BLOCK), data.slice(5 * BLOCK..8 * BLOCK)];
    l.reactor.write_at(l.source, 2, &file, 4 * BLOCK as u64, segments);
    l.done(2);
    l.reactor.sync_data(l.source, 3, &file);
    l.done(3);
    l.reactor.read_at(l.source, 4, &file, 4 * BLOCK as u64, aligned(6 * BLOCK));
    let read = l.buffer(4);
    assert_eq!(read[..3 * BLOCK], data[..3 * BLOCK]);
    assert_eq!(read[3 * BLOCK..], data[5 * BLOCK..]);
}

#[test]
fn a_read_beyond_the_end_is_an_error_and_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("f"), pattern(100, 2)).unwrap();
    let file = open(&folder.path().join("f"), 0);
    let mut l = Loop::new();
    l.reactor.read_at(l.source, 1, &file, 0, BytesMut::with_capacity(101));
    assert_eq!(l.error(1).kind(), io::ErrorKind::UnexpectedEof);
    l.reactor.read_at(l.source, 2, &file, 1, BytesMut::with_capacity(99));
    assert_eq!(l.buffer(2)[..], pattern(100, 2)[1..]);
}

#[test]
fn thousands_of_operations_outgrow_ring_and_are_all_carried_out() {
    const COUNT: u64 = 5000;
    let folder = tempfile::tempdir().unwrap();
    let file = open(&folder.path().join("f"), 0);
    let mut l = Loop::with(Options { entries: 8, ..Options::default() });
    for i in 0..COUNT {
        let (offset, data) = (i * 16, pattern(16, i));
        l.reactor.write_at(l.source, i, &file, offset, vec![data.slice(..7), data.slice(7..)]);
    }
    // One turn submits them all, whatever the ring's size.
    l.reactor.poll(Wait::No).unwrap();
    for i in 0..COUNT {
        l.done(i);
    }
    for i in 0..COUNT {
        l.reactor.read_at(l.source, i, &file, i * 16, BytesMut::with_capacity(16));
    }
    for i in 0..COUNT {
        assert_eq!(l.buffer(i), pattern(16, i));
    }
}

#[test]
fn a_vector_longer_than_the_kernel_takes_is_written_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let file = open(&folder.path().join("f"), 0);
    let mut l = Loop::new();
    let data = pattern(3000 * 3, 3);
    let segments: Vec<_> = (0..3000).map(|i| data.slice(3 * i..3 * i + 2)).collect();
    let expected: Vec<u8> = segments.concat();
    l.reactor.write_at(l.source, 1, &file, 5, segments);
    l.done(1);
    l.reactor.read_at(l.source, 2, &file, 5, BytesMut::with_capacity(6000));
    assert_eq!(l.buffer(2), expected);
}

#[test]
fn short_writes_and_reads_are_continued() {
    // A pipe takes at most its 64 KiB at once, so that every transfer here is short.
    let (read_end, write_end) = pipe();
    let mut l = Loop::new();
    let data = pattern(1_000_000, 4);
    let segments =
        vec![data.slice(..100_001), data.slice(100_001..777_777), Bytes::from(data[777_777..].to_vec())];
    l.reactor.write_at(l.source, 1, &write_end, 0, segments);
    l.reactor.read_at(l.source, 2, &read_end, 0, BytesMut::with_capacity(data.len()));
    let read = l.buffer(2);
    assert_eq!(read.len(), data.len());
    assert!(read == data);
    l.done(1);
}

#[test]
fn errors_of_the_system_arrive_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    std::fs::write(&path, b"x").unwrap();
    let read_only = Handle::from(OwnedFd::from(std::fs::File::open(&path).unwrap()));
    let mut l = Loop::new();
    l.reactor.write_at(l.source, 1, &read_only, 0, vec![Bytes::from_static(b"y")]);
    assert_eq!(l.error(1).raw_os_error(), Some(libc::EBADF));
    let (_, write_end) = pipe();
    l.reactor.write_at(l.source, 2, &write_end, 0, vec![Bytes::from_static(b"y")]);
    assert_eq!(l.error(2).kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn empty_transfers_complete() {
    let (read_end, write_end) = pipe();
    let mut l = Loop::new();
    l.reactor.write_at(l.source, 1, &write_end, 0, vec![Bytes::new()]);
    l.reactor.read_at(l.source, 2, &read_end, 0, BytesMut::new());
    l.reactor.poll(Wait::Forever).unwrap();
    l.done(1);
    assert!(l.buffer(2).is_empty());
}
