//! The faulty disk: what a crash may leave and may not, each fault, and that seeds repeat.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use trivet_disk::{
    CompletionOrder, Disk, DiskError, DiskImage, DiskOp, DiskToken, Fault, FaultRates, FaultyDisk, OneIn,
    extend_blocking, flush_blocking, read_blocking, write_blocking,
};
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64, BlockArena, SECTOR_SIZE};

const BLOCKS: u64 = 6;
const SECTORS: usize = 6 * BLOCK_SIZE / SECTOR_SIZE;
const SECTORS_PER_BLOCK: usize = BLOCK_SIZE / SECTOR_SIZE;

fn blocks(count: usize, byte: u8) -> Bytes {
    let mut buffer = BlockArena::new().allocate(count);
    buffer.resize(count * BLOCK_SIZE, byte);
    buffer.freeze()
}

fn disk(seed: u64) -> FaultyDisk {
    FaultyDisk::new(DiskImage::new(BLOCKS * BLOCK_SIZE_U64), seed)
}

/// The first byte of each sector: the tests fill sectors with one byte.
fn sectors(image: &DiskImage) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(image.length()).unwrap()];
    image.read(0, &mut bytes);
    let sectors = bytes.chunks(SECTOR_SIZE);
    sectors
        .inspect(|sector| assert!(sector.iter().all(|b| *b == sector[0]), "torn below a sector"))
        .map(|s| s[0])
        .collect()
}

/// What a sector may hold after a crash, by the contract alone.
#[derive(Clone)]
struct Candidates {
    stable: u8,
    /// Completed since, by number; and the completed flushes do not cover them.
    unflushed: Vec<(u64, u8)>,
}

/// The oracle: per sector, the last value known stable and every value written since.
struct Oracle {
    sectors: Vec<Candidates>,
    completed: u64,
    in_flight: HashMap<DiskToken, Started>,
}

enum Started {
    Write { start: u64, count: usize, byte: u8 },
    Flush { covers: u64 },
}

impl Oracle {
    fn new() -> Self {
        let empty = Candidates { stable: 0, unflushed: Vec::new() };
        Self { sectors: vec![empty; SECTORS], completed: 0, in_flight: HashMap::new() }
    }

    fn range(start: u64, count: usize) -> std::ops::Range<usize> {
        let first = usize::try_from(start).unwrap() * SECTORS_PER_BLOCK;
        first..first + count * SECTORS_PER_BLOCK
    }

    fn complete(&mut self, token: DiskToken) {
        match self.in_flight.remove(&token).unwrap() {
            Started::Write { start, count, byte } => {
                self.completed += 1;
                for sector in &mut self.sectors[Self::range(start, count)] {
                    sector.unflushed.push((self.completed, byte));
                }
            }
            Started::Flush { covers } => {
                for sector in &mut self.sectors {
                    if let Some((_, byte)) = sector.unflushed.iter().rfind(|(number, _)| *number <= covers) {
                        sector.stable = *byte;
                    }
                    sector.unflushed.retain(|(number, _)| *number > covers);
                }
            }
        }
    }

    fn allowed(&self) -> Vec<HashSet<u8>> {
        let mut allowed: Vec<HashSet<u8>> = self
            .sectors
            .iter()
            .map(|s| s.unflushed.iter().map(|(_, byte)| *byte).chain([s.stable]).collect())
            .collect();
        for started in self.in_flight.values() {
            if let Started::Write { start, count, byte } = started {
                for sector in &mut allowed[Self::range(*start, *count)] {
                    sector.insert(*byte);
                }
            }
        }
        allowed
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write { start: u64, count: usize },
    Flush,
    Reap { wait: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..BLOCKS, 1..=3_usize).prop_map(|(start, count)| {
            Step::Write { start, count: count.min(usize::try_from(BLOCKS - start).unwrap()) }
        }),
        1 => Just(Step::Flush),
        3 => any::<bool>().prop_map(|wait| Step::Reap { wait }),
    ]
}

fn run(disk: &mut FaultyDisk, oracle: &mut Oracle, steps: &[Step]) {
    for ((step, token), byte) in steps.iter().zip((0..).map(DiskToken)).zip(1..) {
        match *step {
            Step::Write { start, count } => {
                disk.submit(
                    token,
                    DiskOp::Write { offset: start * BLOCK_SIZE_U64, segments: vec![blocks(count, byte)] },
                );
                oracle.in_flight.insert(token, Started::Write { start, count, byte });
            }
            Step::Flush => {
                disk.submit(token, DiskOp::Flush);
                oracle.in_flight.insert(token, Started::Flush { covers: oracle.completed });
            }
            Step::Reap { wait } => {
                let mut completions = Vec::new();
                disk.reap(wait, &mut completions);
                for completion in completions {
                    completion.result.unwrap();
                    oracle.complete(completion.token);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn a_crash_keeps_what_is_flushed_and_leaves_old_or_new_elsewhere(
        seed: u64, steps in proptest::collection::vec(step(), 0..40),
    ) {
        let mut disk = disk(seed);
        let mut oracle = Oracle::new();
        run(&mut disk, &mut oracle, &steps);
        let allowed = oracle.allowed();
        for _ in 0..20 {
            for (found, allowed) in sectors(disk.crash().image()).iter().zip(&allowed) {
                prop_assert!(allowed.contains(found), "{found} is none of {allowed:?}");
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_trace(seed: u64, steps in proptest::collection::vec(step(), 0..40)) {
        let trace = || {
            let (mut disk, mut oracle) = (disk(seed), Oracle::new());
            disk.set_fault_rates(FaultRates { flipped_bit: OneIn(3), misdirected_write: OneIn(3), ..FaultRates::default() });
            run(&mut disk, &mut oracle, &steps);
            let waiting: Vec<_> = disk.in_flight().collect();
            (waiting, disk.unflushed(), disk.image().clone(), disk.crash().into_image())
        };
        prop_assert_eq!(trace(), trace());
    }
}

/// All outcomes that the enumeration yields, as sector values.
fn outcomes(disk: &FaultyDisk, choices: impl Iterator<Item = Vec<bool>>) -> Vec<Vec<u8>> {
    choices.map(|choice| sectors(disk.crash_with(&choice).image())).collect()
}

#[test]
fn the_enumeration_meets_every_allowed_state_once() {
    let mut disk = disk(1);
    disk.set_completion_order(CompletionOrder::Held);
    let offset = |block: u64| block * BLOCK_SIZE_U64;
    disk.submit(DiskToken(1), DiskOp::Write { offset: offset(0), segments: vec![blocks(1, 1)] });
    disk.release_all();
    flush_blocking_held(&mut disk);
    disk.submit(DiskToken(2), DiskOp::Write { offset: offset(0), segments: vec![blocks(1, 2)] });
    disk.release(DiskToken(2));
    disk.submit(DiskToken(3), DiskOp::Write { offset: offset(2), segments: vec![blocks(1, 3)] });
    let unflushed = disk.unflushed();
    assert_eq!(
        unflushed.iter().map(|w| (w.token.0, w.completed)).collect::<Vec<_>>(),
        [(2, true), (3, false)]
    );
    assert!(unflushed.iter().all(|w| w.sectors == SECTORS_PER_BLOCK));

    let all = outcomes(&disk, disk.every_subset());
    assert_eq!(all.len(), 1 << 16);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 1 << 16);
    for state in &all {
        assert!(state[..8].iter().all(|byte| [1, 2].contains(byte)));
        assert!(state[16..24].iter().all(|byte| [0, 3].contains(byte)));
        assert!(state[8..16].iter().chain(&state[24..]).all(|byte| *byte == 0));
    }

    // Four subsets of whole writes; each of the two torn in 254 ways, the other whole or not.
    let tears = outcomes(&disk, disk.every_tear());
    assert_eq!(tears.len(), 4 + 2 * 2 * 254);
    let distinct: HashSet<_> = tears.iter().collect();
    assert_eq!(distinct.len(), tears.len());
    assert!(distinct.is_subset(&all.iter().collect()));
}

fn flush_blocking_held(disk: &mut FaultyDisk) {
    let mut completions = Vec::new();
    disk.reap(false, &mut completions);
    disk.submit(DiskToken(100), DiskOp::Flush);
    disk.release(DiskToken(100));
    disk.reap(true, &mut completions);
    assert!(completions.iter().all(|completion| completion.result.is_ok()));
}

#[test]
fn tears_of_long_writes_are_prefixes_suffixes_and_single_sectors() {
    let mut disk = disk(1);
    disk.set_completion_order(CompletionOrder::Held);
    disk.submit(DiskToken(1), DiskOp::Write { offset: 0, segments: vec![blocks(2, 1)] });
    let tears = outcomes(&disk, disk.every_tear());
    assert_eq!(tears.len(), 2 + 15 + 15 + 14 + 14);
    assert_eq!(tears.iter().collect::<HashSet<_>>().len(), tears.len());
}

#[test]
fn random_crashes_meet_every_kind_of_outcome() {
    let mut disk = disk(3);
    disk.set_completion_order(CompletionOrder::Held);
    for (token, block) in [(1, 0), (2, 1), (3, 2)] {
        disk.submit(
            DiskToken(token),
            DiskOp::Write { offset: block * BLOCK_SIZE_U64, segments: vec![blocks(1, 7)] },
        );
    }
    disk.release(DiskToken(2));
    let mut seen = HashSet::new();
    for _ in 0..500 {
        let state = sectors(disk.crash().image());
        let kind = |block: usize| match state[8 * block..8 * block + 8].iter().filter(|b| **b == 7).count() {
            0 => "old",
            8 => "new",
            _ => "torn",
        };
        seen.insert([kind(0), kind(1), kind(2)]);
    }
    assert_eq!(seen.len(), 27, "{seen:?}");
}

#[test]
fn a_flush_covers_only_what_had_completed_when_it_was_submitted() {
    let mut disk = disk(1);
    disk.set_completion_order(CompletionOrder::Held);
    disk.submit(DiskToken(1), DiskOp::Write { offset: 0, segments: vec![blocks(1, 1)] });
    disk.submit(DiskToken(2), DiskOp::Flush);
    disk.release(DiskToken(1));
    disk.release(DiskToken(2));
    assert_eq!(disk.unflushed().len(), 1);
    disk.submit(DiskToken(3), DiskOp::Flush);
    assert_eq!(disk.unflushed().len(), 1);
    disk.release(DiskToken(3));
    assert!(disk.unflushed().is_empty());
    assert_eq!(disk.crash().image(), disk.image());
}

#[test]
fn after_a_failed_flush_later_ones_do_not_help() {
    let mut disk = disk(1);
    write_blocking(&mut disk, 0, &blocks(1, 1)).unwrap();
    disk.inject(Fault::FlushError, 0);
    assert!(matches!(flush_blocking(&mut disk), Err(DiskError::Io { operation: "flush", .. })));
    flush_blocking(&mut disk).unwrap();
    assert_eq!(read_blocking(&mut disk, 0, BLOCK_SIZE).unwrap(), blocks(1, 1));
    assert_eq!(disk.unflushed().len(), 1, "it may still be lost");
    // A newer write that is stable is not undone by the doomed one.
    write_blocking(&mut disk, 0, &blocks(1, 2)).unwrap();
    flush_blocking(&mut disk).unwrap();
    assert!(disk.unflushed().is_empty());
    assert_eq!(sectors(disk.crash().image())[..8], [2; 8]);
}

#[test]
fn a_failed_write_leaves_any_of_its_sectors() {
    let mut seen = HashSet::new();
    for seed in 0..200 {
        let mut disk = disk(seed);
        disk.inject(Fault::WriteError, 1);
        write_blocking(&mut disk, 0, &blocks(1, 1)).unwrap();
        flush_blocking(&mut disk).unwrap();
        assert!(write_blocking(&mut disk, 0, &blocks(1, 2)).is_err());
        flush_blocking(&mut disk).unwrap();
        for image in [disk.image().clone(), disk.crash().into_image()] {
            let state = sectors(&image);
            assert!(state[..8].iter().all(|byte| [1, 2].contains(byte)));
            seen.insert(state);
        }
    }
    assert!(seen.len() > 100);
}

#[test]
fn injected_faults_hit_the_operation_that_was_meant() {
    let mut disk = disk(5);
    for block in 0..BLOCKS {
        write_blocking(&mut disk, block * BLOCK_SIZE_U64, &blocks(1, u8::try_from(block + 1).unwrap()))
            .unwrap();
    }
    let before = disk.image().clone();
    let read = |disk: &mut FaultyDisk| read_blocking(disk, 0, BLOCK_SIZE);

    disk.inject(Fault::ReadError, 1);
    read(&mut disk).unwrap();
    assert!(matches!(read(&mut disk), Err(DiskError::Io { operation: "read", offset: 0, .. })));
    read(&mut disk).unwrap();

    disk.inject(Fault::MisdirectedRead, 0);
    let strayed: BytesMut = read(&mut disk).unwrap();
    assert!(strayed[0] > 1 && strayed.iter().all(|byte| *byte == strayed[0]));

    disk.inject(Fault::MisdirectedWrite, 0);
    write_blocking(&mut disk, 0, &blocks(1, 99)).unwrap();
    let changed = disk.image().differing_blocks(&before);
    assert!(changed.len() == 1 && changed[0] != 0);

    let before = disk.image().clone();
    disk.inject(Fault::FlippedBit, 0);
    write_blocking(&mut disk, 0, &blocks(1, 1)).unwrap();
    assert_eq!(disk.image().differing_blocks(&before), [0]);
    let (mut a, mut b) = (vec![0; BLOCK_SIZE], vec![0; BLOCK_SIZE]);
    before.read(0, &mut a);
    disk.image().read(0, &mut b);
    assert_eq!(a.iter().zip(&b).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>(), 1);

    disk.flip_bit(BLOCK_SIZE_U64 + 1, 0);
    assert_eq!(read_blocking(&mut disk, BLOCK_SIZE_U64, BLOCK_SIZE).unwrap()[..3], [2, 3, 2]);
}

#[test]
fn extensions_find_no_space_by_limit_and_by_fault_and_are_stable_at_once() {
    let length = BLOCKS * BLOCK_SIZE_U64;
    let mut disk = disk(1).with_length_max(2 * length);
    disk.inject(Fault::NoSpace, 0);
    assert_eq!(extend_blocking(&mut disk, 2 * length), Err(DiskError::NoSpace { length: 2 * length }));
    assert_eq!(disk.length(), length);
    extend_blocking(&mut disk, 2 * length).unwrap();
    assert!(extend_blocking(&mut disk, 3 * length).is_err());
    assert_eq!(disk.crash().length(), 2 * length);

    let mut survivor = FaultyDisk::new(disk.crash().into_image(), 2);
    survivor.set_completion_order(CompletionOrder::Held);
    survivor.submit(DiskToken(1), DiskOp::Extend { length: 3 * length, written: true });
    let lengths: HashSet<u64> = (0..50).map(|_| survivor.crash().length()).collect();
    assert_eq!(lengths, HashSet::from([2 * length, 3 * length]));
}

#[test]
fn rates_hit_about_as_often_as_they_say() {
    let mut disk = disk(11);
    disk.set_fault_rates(FaultRates { read_error: OneIn(10), ..FaultRates::default() });
    let failed = (0..5000).filter(|_| read_blocking(&mut disk, 0, BLOCK_SIZE).is_err()).count();
    assert!((350..650).contains(&failed), "{failed} of 5000");
    flush_blocking(&mut disk).unwrap();
    write_blocking(&mut disk, 0, &blocks(1, 1)).unwrap();
}

#[test]
#[should_panic(expected = "held back")]
fn waiting_for_held_operations_panics_instead_of_hanging() {
    let mut disk = disk(1);
    disk.set_completion_order(CompletionOrder::Held);
    disk.submit(DiskToken(1), DiskOp::Flush);
    disk.reap(true, &mut Vec::new());
}
