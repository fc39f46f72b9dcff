//! The io_uring file: what the shared contract cannot show.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use trivet_disk::{
    Disk, DiskError, DiskOp, DiskToken, OpenError, UringFile, extend_blocking, flush_blocking, read_blocking,
    write_blocking,
};
use trivet_model::{BLOCK_SIZE, BlockArena};
use trivet_reactor::{Options, Reactor, Wait};

const MIB: u64 = 1 << 20;

fn reactor() -> Reactor {
    Reactor::new(Options::default()).unwrap()
}

fn block(byte: u8) -> Bytes {
    let mut buffer = BlockArena::new().allocate(1);
    buffer.resize(BLOCK_SIZE, byte);
    buffer.freeze()
}

#[test]
fn contents_and_length_are_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let reactor = reactor();
    let mut file = UringFile::create(&reactor, &path).unwrap();
    extend_blocking(&mut file, 3 * MIB).unwrap();
    write_blocking(&mut file, MIB, &block(5)).unwrap();
    flush_blocking(&mut file).unwrap();
    drop(file);
    let mut file = UringFile::open(&reactor, &path).unwrap();
    assert_eq!(file.length(), 3 * MIB);
    assert_eq!(read_blocking(&mut file, MIB, BLOCK_SIZE).unwrap(), block(5));
}

#[test]
fn an_extension_leaves_the_reserve_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let reactor = reactor();
    let mut file = UringFile::create(&reactor, &path).unwrap();
    file.keep_free(u64::MAX / 2);
    assert_eq!(extend_blocking(&mut file, MIB), Err(DiskError::NoSpace { length: MIB }));
    assert_eq!((file.length(), std::fs::metadata(&path).unwrap().len()), (0, 0));
    file.keep_free(1);
    extend_blocking(&mut file, MIB).unwrap();
    assert_eq!(file.length(), MIB);
}

#[test]
fn an_extension_is_allocated_and_lets_other_operations_through() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let reactor = reactor();
    let mut file = UringFile::create(&reactor, &path).unwrap();
    extend_blocking(&mut file, MIB).unwrap();
    file.submit(DiskToken(1), DiskOp::Extend { length: 64 * MIB, written: true });
    file.submit(DiskToken(2), DiskOp::Extend { length: 65 * MIB, written: true });
    file.submit(DiskToken(3), DiskOp::Extend { length: 2 * MIB, written: true });
    file.submit(DiskToken(4), DiskOp::Write { offset: 0, segments: vec![block(1)] });
    let mut order = Vec::new();
    while order.len() < 4 {
        // As a server does: its loop polls, the disk is reaped without waiting.
        reactor.poll(Wait::For(Duration::from_secs(10))).unwrap();
        let mut completions = Vec::new();
        file.reap(false, &mut completions);
        for completion in completions {
            completion.result.unwrap();
            order.push(completion.token.0);
        }
    }
    assert_eq!(order, [4, 1, 2, 3]);
    assert_eq!(file.length(), 65 * MIB);
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 65 * MIB);
    assert!(metadata.blocks() * 512 >= 65 * MIB, "the file has holes");
}

#[test]
fn a_failed_extension_leaves_the_old_length_and_a_later_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let mut file = UringFile::create(&reactor(), &path).unwrap();
    extend_blocking(&mut file, MIB).unwrap();
    // Above every file system's limit: refused like a full disk, without filling this one.
    let error = extend_blocking(&mut file, 1 << 62).unwrap_err();
    assert_eq!(error, DiskError::NoSpace { length: 1 << 62 });
    assert_eq!(file.length(), MIB);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), MIB);
    extend_blocking(&mut file, 2 * MIB).unwrap();
    write_blocking(&mut file, 2 * MIB - BLOCK_SIZE as u64, &block(1)).unwrap();
}

#[test]
fn thousands_of_writes_in_flight_all_land() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = UringFile::create(&reactor(), &folder.path().join("pool")).unwrap();
    extend_blocking(&mut file, 16 * MIB).unwrap();
    let count = 16 * MIB / BLOCK_SIZE as u64;
    for i in 0..count {
        let operation = DiskOp::Write {
            offset: i * BLOCK_SIZE as u64,
            segments: vec![block(u8::try_from(i % 251).unwrap())],
        };
        file.submit(DiskToken(i), operation);
    }
    let mut completions = Vec::new();
    while (completions.len() as u64) < count {
        file.reap(true, &mut completions);
    }
    assert!(completions.iter().all(|completion| completion.result.is_ok()));
    let read = read_blocking(&mut file, 0, usize::try_from(16 * MIB).unwrap()).unwrap();
    for (i, block) in read.chunks(BLOCK_SIZE).enumerate() {
        assert!(block.iter().all(|byte| usize::from(*byte) == i % 251), "block {i}");
    }
}

#[test]
fn a_file_dropped_with_operations_in_flight_harms_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let reactor = reactor();
    let path = folder.path().join("pool");
    let mut file = UringFile::create(&reactor, &path).unwrap();
    extend_blocking(&mut file, MIB).unwrap();
    for token in 0..64 {
        file.submit(DiskToken(token), DiskOp::Write { offset: 0, segments: vec![block(1)] });
    }
    file.submit(DiskToken(99), DiskOp::Extend { length: 4 * MIB, written: true });
    drop(file);
    let start = reactor.now();
    reactor.poll(Wait::For(Duration::from_millis(20))).unwrap();
    assert!(reactor.now() - start >= Duration::from_millis(20), "nobody is left to be woken for");
    drop(reactor);
    assert!(UringFile::open(&self::reactor(), &path).is_ok(), "the lock is gone with the last operation");
}

fn error_of(result: Result<UringFile, OpenError>) -> OpenError {
    match result {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

#[test]
fn opening_errors_name_cause_and_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let reactor = reactor();
    let path = folder.path().join("pool");
    assert!(matches!(error_of(UringFile::open(&reactor, &path)), OpenError::NotFound { .. }));
    let held = UringFile::create(&reactor, &path).unwrap();
    assert!(matches!(error_of(UringFile::open(&reactor, &path)), OpenError::InUse { .. }));
    drop(held);
    assert!(matches!(error_of(UringFile::create(&reactor, &path)), OpenError::Exists { .. }));
    assert!(matches!(error_of(UringFile::open(&reactor, folder.path())), OpenError::NotAFile { .. }));
    // procfs has no direct I/O on any kernel.
    let error = error_of(UringFile::open(&reactor, Path::new("/proc/self/comm")));
    assert!(matches!(error, OpenError::NoDirectIo { .. }), "{error}");
    assert!(error.to_string().contains("ext4"));
}
