//! What every implementation of the trait promises, checked on all of them with the same
//! operations against a plain array.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use proptest::prelude::*;
use std::collections::HashMap;
use trivet_disk::{
    Disk, DiskCompletion, DiskError, DiskImage, DiskOp, DiskToken, FaultyDisk, MemoryDisk, UringFile,
    extend_blocking, flush_blocking, read_blocking, write_blocking,
};
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64, BlockArena};
use trivet_reactor::{Options, Reactor};

const BLOCKS: u64 = 64;
const LENGTH: u64 = BLOCKS * BLOCK_SIZE_U64;

/// One of each kind, of this length and all zeros.
fn with_each_disk(mut test: impl FnMut(&mut dyn Disk)) {
    test(&mut MemoryDisk::new(LENGTH));
    test(&mut FaultyDisk::new(DiskImage::new(LENGTH), 1));
    let folder = tempfile::tempdir().unwrap();
    let reactor = Reactor::new(Options::default()).unwrap();
    let mut file = UringFile::create(&reactor, &folder.path().join("pool")).unwrap();
    assert_eq!(file.length(), 0);
    extend_blocking(&mut file, LENGTH).unwrap();
    test(&mut file);
}

fn filled(blocks: usize, seed: u8) -> Bytes {
    let mut buffer = BlockArena::new().allocate(blocks);
    for block in 0..blocks {
        buffer.extend(
            (0..BLOCK_SIZE).map(|i| seed.wrapping_add(u8::try_from((i / 512 + block) % 251).unwrap())),
        );
    }
    buffer.freeze()
}

fn reap_all(disk: &mut dyn Disk, count: usize) -> HashMap<DiskToken, DiskCompletion> {
    let mut completions = Vec::new();
    while completions.len() < count {
        let before = completions.len();
        disk.reap(true, &mut completions);
        assert!(completions.len() > before, "waiting must bring one");
    }
    completions.into_iter().map(|c| (c.token, c)).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Write { start: u64, blocks: u64, seed: u8 },
    Read { start: u64, blocks: u64 },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..BLOCKS).prop_flat_map(|start| (Just(start), 1..=(BLOCKS - start).min(20)));
    prop_oneof![
        4 => (range.clone(), any::<u8>()).prop_map(|((start, blocks), seed)| Step::Write { start, blocks, seed }),
        3 => range.prop_map(|(start, blocks)| Step::Read { start, blocks }),
        1 => Just(Step::Flush),
    ]
}

fn bytes_of(start: u64, blocks: u64) -> std::ops::Range<usize> {
    let at = |block: u64| usize::try_from(block).unwrap() * BLOCK_SIZE;
    at(start)..at(start + blocks)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Waves of operations that do not overlap, so that their order within a wave is free.
    #[test]
    fn reads_see_completed_writes(waves in proptest::collection::vec(proptest::collection::vec(step(), 1..8), 1..8)) {
        with_each_disk(|disk| {
            let mut array = vec![0; usize::try_from(LENGTH).unwrap()];
            for wave in &waves {
                let mut taken = vec![false; usize::try_from(BLOCKS).unwrap()];
                let mut expected = HashMap::new();
                for (token, step) in (0..).map(DiskToken).zip(wave) {
                    if let Step::Write { start, blocks, .. } | Step::Read { start, blocks } = step {
                        let range = usize::try_from(*start).unwrap()..usize::try_from(start + blocks).unwrap();
                        if taken[range.clone()].contains(&true) {
                            continue;
                        }
                        taken[range].fill(true);
                    }
                    match *step {
                        Step::Write { start, blocks, seed } => {
                            let data = filled(usize::try_from(blocks).unwrap(), seed);
                            array[bytes_of(start, blocks)].copy_from_slice(&data);
                            let cut = BLOCK_SIZE * (usize::try_from(blocks).unwrap() / 2);
                            let segments = vec![data.slice(..cut), data.slice(cut..)];
                            disk.submit(token, DiskOp::Write { offset: start * BLOCK_SIZE_U64, segments });
                            expected.insert(token, Vec::new());
                        }
                        Step::Read { start, blocks } => {
                            let buffer = BlockArena::new().allocate(usize::try_from(blocks).unwrap());
                            disk.submit(token, DiskOp::Read { offset: start * BLOCK_SIZE_U64, buffer });
                            expected.insert(token, array[bytes_of(start, blocks)].to_vec());
                        }
                        Step::Flush => {
                            disk.submit(token, DiskOp::Flush);
                            expected.insert(token, Vec::new());
                        }
                    }
                }
                let completions = reap_all(disk, expected.len());
                assert_eq!(completions.len(), expected.len());
                for (token, bytes) in expected {
                    assert!(completions[&token].result.as_ref().unwrap() == &bytes, "{token:?}");
                }
            }
        });
    }
}

#[test]
fn extending_appends_zeros_and_keeps_contents() {
    with_each_disk(|disk| {
        let data = filled(3, 9);
        write_blocking(disk, LENGTH - 3 * BLOCK_SIZE_U64, &data).unwrap();
        extend_blocking(disk, LENGTH + (5 << 20)).unwrap();
        assert_eq!(disk.length(), LENGTH + (5 << 20));
        extend_blocking(disk, LENGTH).unwrap();
        assert_eq!(disk.length(), LENGTH + (5 << 20), "extending never shrinks");
        assert_eq!(read_blocking(disk, LENGTH - 3 * BLOCK_SIZE_U64, 3 * BLOCK_SIZE).unwrap(), data);
        let new = read_blocking(disk, LENGTH, 5 << 20).unwrap();
        assert!(new.iter().all(|byte| *byte == 0));
        flush_blocking(disk).unwrap();
    });
}

#[test]
fn nothing_goes_beyond_the_end() {
    with_each_disk(|disk| {
        let data = filled(2, 1);
        for offset in [LENGTH - BLOCK_SIZE_U64, LENGTH, u64::MAX - BLOCK_SIZE_U64 + 1] {
            let error = write_blocking(disk, offset, &data).unwrap_err();
            assert!(matches!(error, DiskError::BeyondEnd { operation: "write", bytes: 8192, .. }), "{error}");
            let error = read_blocking(disk, offset, 2 * BLOCK_SIZE).unwrap_err();
            assert!(
                matches!(error, DiskError::BeyondEnd { operation: "read", length: LENGTH, .. }),
                "{error}"
            );
        }
        assert_eq!(disk.length(), LENGTH);
        let last = read_blocking(disk, LENGTH - BLOCK_SIZE_U64, BLOCK_SIZE).unwrap();
        assert!(last.iter().all(|byte| *byte == 0));
    });
}

#[test]
fn waiting_with_nothing_in_flight_returns() {
    with_each_disk(|disk| {
        let mut completions = Vec::new();
        disk.reap(true, &mut completions);
        disk.reap(false, &mut completions);
        assert!(completions.is_empty());
    });
}

#[test]
#[should_panic(expected = "block-aligned memory")]
fn unaligned_memory_is_refused_everywhere_so_that_tests_find_it() {
    let mut buffer = BlockArena::new().allocate(2);
    buffer.resize(2 * BLOCK_SIZE, 0);
    let misaligned = buffer.freeze().slice(512..512 + BLOCK_SIZE);
    MemoryDisk::new(LENGTH).submit(DiskToken(1), DiskOp::Write { offset: 0, segments: vec![misaligned] });
}
