//! The store against a naive oracle, over random operations on a well-behaved device whose
//! completions come in any order.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod pool;

use std::collections::BTreeMap;

use pool::{POOL, Pool, Random, VOLUME, assert_image_sound, blocks_of, contents};
use proptest::prelude::*;
use trivet_model::{BlockRange, Epoch, Generation, Stamp};
use trivet_replica::store::{AllocationExtent, Reply, Request, RequestError, RequestId};

const BLOCKS: u64 = 2000;

/// What a volume should hold: a version a block, 0 for a hole.
struct Oracle {
    versions: Vec<u64>,
    stamp: u64,
    version: u64,
}

impl Oracle {
    fn new() -> Self {
        Self { versions: vec![0; usize::try_from(BLOCKS).unwrap()], stamp: 1, version: 0 }
    }

    fn range(&self, random: &mut Random) -> BlockRange {
        let count = match random.below(10) {
            0..6 => 1,
            6..9 => 1 + random.below(20),
            _ => 1 + random.below(256),
        };
        // A hot part, so that blocks are overwritten often.
        let span = if random.one_in(2) { 64 } else { BLOCKS };
        let start = random.below(span);
        BlockRange::new(start, u32::try_from(count.min(BLOCKS - start)).unwrap())
    }

    fn take_stamp(&mut self, count: u32) -> Stamp {
        let stamp = Stamp::from_u64(self.stamp);
        self.stamp += u64::from(count);
        stamp
    }

    fn set(&mut self, range: BlockRange, version: impl Fn(usize) -> u64) {
        for (at, block) in range.blocks().enumerate() {
            self.versions[usize::try_from(block).unwrap()] = version(at);
        }
    }

    fn blocks(&self, range: BlockRange) -> Vec<Vec<u8>> {
        range.blocks().map(|block| contents(block, self.versions[usize::try_from(block).unwrap()])).collect()
    }
}

/// Ranges that changes in flight cover: the engine never sends overlapping ones.
fn overlaps(in_flight: &BTreeMap<RequestId, BlockRange>, range: BlockRange) -> bool {
    in_flight.values().any(|other| other.overlaps(range))
}

fn run(seed: u64, operations: u32) {
    let mut random = Random(seed);
    let mut pool = Pool::with_volume(1 << 16, BLOCKS, seed);
    let mut oracle = Oracle::new();
    let mut changes: BTreeMap<RequestId, BlockRange> = BTreeMap::new();
    let mut reads: BTreeMap<RequestId, (BlockRange, Vec<Vec<u8>>)> = BTreeMap::new();
    for _ in 0..operations {
        let range = oracle.range(&mut random);
        match random.below(100) {
            0..45
                if !overlaps(&changes, range) && !reads.values().any(|(other, _)| other.overlaps(range)) =>
            {
                let stamp = oracle.take_stamp(range.count);
                let first = oracle.version + 1;
                oracle.version += u64::from(range.count);
                let versions: Vec<u64> = (first..first + u64::from(range.count)).collect();
                oracle.set(range, |at| versions[at]);
                let id = pool.write(range.start, &versions, stamp, random.one_in(8));
                changes.insert(id, range);
            }
            45..55
                if !overlaps(&changes, range) && !reads.values().any(|(other, _)| other.overlaps(range)) =>
            {
                let stamp = oracle.take_stamp(range.count);
                oracle.set(range, |_| 0);
                let stable = random.one_in(8);
                let id = pool.submit(Request::Discard { volume: VOLUME, range, stamp, stable });
                changes.insert(id, range);
            }
            55..80 if !overlaps(&changes, range) => {
                let id = pool.read(range.start, range.count);
                reads.insert(id, (range, oracle.blocks(range)));
            }
            80..83 => {
                pool.submit(Request::Flush { volume: VOLUME });
            }
            83 => pool.store.request_checkpoint(),
            84 => pool.store.idle(),
            85 if random.one_in(4) => {
                pool.settle();
                settle_answers(&mut pool, &mut changes, &mut reads);
                let (image, meta) = pool.close();
                assert_image_sound(&image, &meta);
                pool = Pool::open(image, meta, random.next(), 1).unwrap();
            }
            86..90 => {
                pool.background();
            }
            _ => pool.turn(),
        }
        settle_answers(&mut pool, &mut changes, &mut reads);
    }
    pool.settle();
    settle_answers(&mut pool, &mut changes, &mut reads);
    assert!(changes.is_empty() && reads.is_empty());
    pool.store.request_checkpoint();
    pool.settle();
    pool.assert_sound();
    check_allocation(&mut pool, &oracle);
    let used = oracle.versions.iter().filter(|version| **version > 0).count() as u64;
    assert_eq!(pool.store.volume(VOLUME).unwrap().blocks_used, used);
    assert_eq!(pool.store.statistics().blocks_used, used, "blocks leaked");
}

fn settle_answers(
    pool: &mut Pool,
    changes: &mut BTreeMap<RequestId, BlockRange>,
    reads: &mut BTreeMap<RequestId, (BlockRange, Vec<Vec<u8>>)>,
) {
    for (id, answer) in pool.answers.drain() {
        let reply = answer.unwrap();
        if changes.remove(&id).is_some() {
            assert_eq!(reply, Reply::Done);
        } else if let Some((range, expected)) = reads.remove(&id) {
            assert!(blocks_of(reply) == expected, "wrong data in {range}");
        }
    }
}

fn check_allocation(pool: &mut Pool, oracle: &Oracle) {
    let range = BlockRange::new(0, u32::try_from(BLOCKS).unwrap());
    let Ok(Reply::Allocation(extents)) = pool.run(Request::Allocation { volume: VOLUME, at: None, range })
    else {
        panic!("allocation is answered")
    };
    assert!(extents.windows(2).all(|pair| pair[0].allocated != pair[1].allocated));
    let flat: Vec<bool> =
        extents.iter().flat_map(|e: &AllocationExtent| vec![e.allocated; e.count as usize]).collect();
    let expected: Vec<bool> = oracle.versions.iter().map(|version| *version > 0).collect();
    assert_eq!(flat, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_operations_agree_with_the_oracle(seed in any::<u64>()) {
        run(seed, 1500);
    }
}

#[test]
fn the_same_seed_gives_the_same_device() {
    let image = |_| {
        let mut pool = Pool::with_volume(1 << 16, BLOCKS, 5);
        for step in 1..200 {
            pool.write(step * 7 % BLOCKS, &[step], Stamp::from_u64(step), step % 3 == 0);
            pool.turn();
        }
        pool.close().0
    };
    assert_eq!(image(0).differing_blocks(&image(1)), Vec::<u64>::new());
}

#[test]
fn a_queue_of_random_writes_becomes_one_data_and_one_journal_write() {
    let mut pool = Pool::with_volume(1 << 16, BLOCKS, 1);
    for n in 0..32 {
        pool.write(n * 37 % BLOCKS, &[n + 1], Stamp::from_u64(n + 1), false);
    }
    pool.act();
    assert_eq!(pool.disk.in_flight().count(), 2);
}

#[test]
fn promises_are_kept_across_restarts_and_wait_for_what_is_in_flight() {
    let mut pool = Pool::with_volume(1 << 16, BLOCKS, 2);
    let write = pool.write(3, &[1], Stamp::from_u64(1), false);
    let (generation, epoch) = (Generation::new(7).unwrap(), Epoch(3));
    let promise = pool.submit(Request::Promise { volume: VOLUME, generation, epoch, session: 42 });
    while !pool.answers.contains_key(&promise) {
        pool.turn();
        assert!(!pool.answers.contains_key(&promise) || pool.answers.contains_key(&write));
    }
    // Not closed: whatever was not stable is gone.
    let image = pool.disk.crash().into_image();
    let meta = (*pool.meta).clone();
    let pool = Pool::open(image, meta, 3, 2).unwrap();
    let volume = pool.store.volume(VOLUME).unwrap();
    assert_eq!((volume.generation, volume.epoch, volume.session), (generation, epoch, 42));
}

#[test]
fn f09_a_full_pool_refuses_cleanly_reads_on_and_recovers_by_discard() {
    let capacity = 1024;
    let mut pool = Pool::with_volume(capacity, 4096, 3);
    let mut stamp = 1;
    let mut full = None;
    for block in 0..2000 {
        let id = pool.write(block, &[block + 1], Stamp::from_u64(stamp), false);
        stamp += 1;
        pool.settle();
        match pool.answers.remove(&id).unwrap() {
            Ok(_) => {}
            Err(RequestError::NoSpace { .. }) => {
                full = Some(block);
                break;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(full, Some(capacity), "every block of the capacity can be used");
    for block in 0..capacity {
        assert_eq!(pool.read_now(block, 1).unwrap(), [contents(block, block + 1)]);
    }
    let range = BlockRange::new(0, 300);
    let freed =
        pool.run(Request::Discard { volume: VOLUME, range, stamp: Stamp::from_u64(stamp), stable: false });
    assert_eq!(freed, Ok(Reply::Done));
    stamp += 300;
    for block in 2000..2300 {
        let id = pool.write(block, &[1], Stamp::from_u64(stamp), false);
        stamp += 1;
        pool.settle();
        assert_eq!(pool.answers.remove(&id).unwrap(), Ok(Reply::Done), "block {block}");
    }
    pool.assert_sound();
}

#[test]
fn overwriting_a_full_pool_goes_on() {
    let mut pool = Pool::with_volume(1024, 1000, 4);
    let mut stamp = 1;
    for round in 0..6u64 {
        for block in 0..1000 {
            pool.write(block, &[round * 1000 + block + 1], Stamp::from_u64(stamp), false);
            stamp += 1;
            if block % 16 == 15 {
                pool.settle();
            }
        }
        pool.settle();
        assert!(pool.answers.drain().all(|(_, answer)| answer == Ok(Reply::Done)), "round {round}");
    }
    pool.assert_sound();
}

#[test]
fn deleting_a_volume_gives_its_space_back() {
    let mut pool = Pool::with_volume(1 << 14, BLOCKS, 6);
    for block in 0..500 {
        pool.write(block, &[1], Stamp::from_u64(block + 1), false);
    }
    pool.settle();
    pool.store.request_checkpoint();
    pool.settle();
    assert_eq!(pool.store.statistics().blocks_used, 500);
    pool.run(Request::DeleteVolume { volume: VOLUME }).unwrap();
    pool.settle();
    assert_eq!(pool.store.statistics().blocks_used, 0);
    assert_eq!(pool.read_now(0, 1), Err(RequestError::NoSuchVolume(VOLUME)));
    pool.assert_sound();
    let (image, meta) = pool.close();
    let mut pool = Pool::open(image, meta, 1, 1).unwrap();
    assert_eq!(pool.report.pool, POOL);
    pool.run(Request::CreateVolume { volume: VOLUME, blocks: BLOCKS, parent: None, tagged: false }).unwrap();
    assert_eq!(pool.read_now(0, 1).unwrap(), [contents(0, 0)], "a new volume of the same name is empty");
}

#[test]
fn f24_a_write_sent_again_after_a_reconnect_changes_nothing() {
    let mut pool = Pool::with_volume(1 << 14, BLOCKS, 7);
    for _ in 0..3 {
        let id = pool.write(5, &[9], Stamp::from_u64(4), false);
        pool.settle();
        assert_eq!(pool.answers.remove(&id).unwrap(), Ok(Reply::Done));
    }
    pool.write(5, &[10], Stamp::from_u64(5), false);
    pool.settle();
    pool.write(5, &[9], Stamp::from_u64(4), false);
    pool.settle();
    assert_eq!(pool.read_now(5, 1).unwrap(), [contents(5, 10)], "a late duplicate does not win");
    pool.store.request_checkpoint();
    pool.settle();
    assert_eq!(pool.store.statistics().blocks_used, 1);
    pool.assert_sound();
}
