//! Snapshots in the store, against an oracle that keeps every version: writes, discards, placed
//! versions, snapshots and their deletion, over checkpoints, restarts and crashes.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod pool;

use std::collections::BTreeMap;

use pool::{Pool, Random, VOLUME, assert_image_sound, contents};
use proptest::prelude::*;
use trivet_model::{BlockRange, Epoch, Generation, SnapshotId, Stamp};
use trivet_replica::store::{Reply, Request, RequestError, SNAPSHOTS_MAX, Snapshot, TailExtent};

const BLOCKS: u64 = 300;

/// Every version of every block, by stamp; 0 for a discarded one.
#[derive(Default)]
struct Oracle {
    versions: BTreeMap<(u64, u64), u64>,
    snapshots: BTreeMap<u64, SnapshotId>,
    stamp: u64,
    /// Placed versions have higher stamps.
    settled: u64,
}

impl Oracle {
    /// What a cut shows of a block.
    fn shown(&self, block: u64, cut: u64) -> u64 {
        self.versions.range((block, 0)..=(block, cut)).next_back().map_or(0, |(_, version)| *version)
    }

    /// What a new pull brings is newer than all that is there: the source has had every discard before.
    fn settle(&mut self) {
        self.settled = self.stamp;
    }

    /// Pool blocks that the volume and its snapshots need.
    fn used(&self) -> u64 {
        let cuts: Vec<u64> = self.snapshots.keys().copied().chain([u64::MAX]).collect();
        let mut used = 0;
        for block in 0..BLOCKS {
            let mut seen: Vec<(u64, u64)> = cuts
                .iter()
                .filter_map(|cut| self.versions.range((block, 0)..=(block, *cut)).next_back())
                .map(|((_, stamp), version)| (*stamp, *version))
                .collect();
            seen.dedup();
            used += seen.iter().filter(|(_, version)| *version > 0).count() as u64;
        }
        used
    }

    fn any_snapshot(&self, random: &mut Random) -> Option<(u64, SnapshotId)> {
        let at = random.below(self.snapshots.len().max(1) as u64);
        let at = usize::try_from(at).unwrap();
        self.snapshots.iter().nth(at).map(|(cut, id)| (*cut, *id))
    }
}

fn id(number: u64) -> SnapshotId {
    SnapshotId::from_bytes(u128::from(number).to_le_bytes())
}

fn read_at(pool: &mut Pool, at: Option<SnapshotId>, range: BlockRange) -> Result<Vec<Vec<u8>>, RequestError> {
    pool.run(Request::Read { volume: VOLUME, at, range }).map(pool::blocks_of)
}

fn assert_shows(pool: &mut Pool, oracle: &Oracle, cut: u64, range: BlockRange) {
    let at = oracle.snapshots.get(&cut).copied();
    let found = read_at(pool, at, range).unwrap();
    for (block, found) in range.blocks().zip(found) {
        assert!(found == contents(block, oracle.shown(block, cut)), "block {block} as of {cut}");
    }
}

fn some_range(random: &mut Random) -> BlockRange {
    let span = if random.one_in(2) { 40 } else { BLOCKS };
    let start = random.below(span);
    let count = 1 + if random.one_in(4) { random.below(60) } else { random.below(4) };
    BlockRange::new(start, u32::try_from(count.min(BLOCKS - start)).unwrap())
}

/// Asks for one thing.
fn operate(pool: &mut Pool, oracle: &mut Oracle, random: &mut Random) {
    let range = some_range(random);
    let stamp = oracle.stamp + 1;
    match random.below(100) {
        0..40 => {
            oracle.stamp += u64::from(range.count);
            let versions: Vec<u64> = (stamp..=oracle.stamp).collect();
            for (block, version) in range.blocks().zip(&versions) {
                oracle.versions.insert((block, *version), *version);
            }
            pool.write(range.start, &versions, Stamp::from_u64(stamp), false);
        }
        40..52 => {
            oracle.stamp += u64::from(range.count);
            for (block, stamp) in range.blocks().zip(stamp..) {
                oracle.versions.insert((block, stamp), 0);
            }
            let stamp = Stamp::from_u64(stamp);
            pool.submit(Request::Discard { volume: VOLUME, range, stamp, stable: false });
        }
        // Versions of before, that another member held: they may belong below any snapshot.
        52..58 => {
            let mut runs = Vec::new();
            for block in range.blocks().take(5) {
                let since = oracle.stamp - oracle.settled;
                if since == 0 {
                    break;
                }
                let stamp = oracle.settled + 1 + random.below(since);
                let taken = oracle.versions.keys().any(|(_, other)| *other == stamp);
                let is_cut = oracle.snapshots.contains_key(&stamp);
                if taken || is_cut {
                    continue;
                }
                let discard = random.one_in(3);
                oracle.versions.insert((block, stamp), if discard { 0 } else { stamp });
                runs.push(TailExtent {
                    range: BlockRange::new(block, 1),
                    stamp: Stamp::from_u64(stamp),
                    discard,
                });
            }
            if !runs.is_empty() {
                pool.place(runs, false);
            }
        }
        58..66 => {
            oracle.stamp += 1;
            let snapshot = Snapshot { id: id(oracle.stamp), cut: Stamp::from_u64(oracle.stamp) };
            oracle.snapshots.insert(oracle.stamp, snapshot.id);
            let create = Request::CreateSnapshot { volume: VOLUME, snapshot };
            assert_eq!(pool.run(create), Ok(Reply::Done));
        }
        66..72 => {
            if let Some((cut, id)) = oracle.any_snapshot(random) {
                oracle.snapshots.remove(&cut);
                assert_eq!(pool.run(Request::DeleteSnapshot { volume: VOLUME, id }), Ok(Reply::Done));
                let gone = read_at(pool, Some(id), range);
                assert_eq!(gone, Err(RequestError::NoSuchSnapshot(id)));
            }
        }
        72..80 => {
            let cut = oracle.any_snapshot(random).map_or(u64::MAX, |(cut, _)| cut);
            assert_shows(pool, oracle, cut, range);
        }
        80..86 => assert_shows(pool, oracle, u64::MAX, range),
        86..90 => pool.store.request_checkpoint(),
        90..94 => {
            pool.background();
        }
        94 => pool.store.idle(),
        _ => pool.turn(),
    }
}

/// Everything that the volume and its snapshots show, and that nothing else is in use.
fn check(pool: &mut Pool, oracle: &Oracle) {
    let whole = [BlockRange::new(0, 256), BlockRange::new(256, u32::try_from(BLOCKS - 256).unwrap())];
    for cut in oracle.snapshots.keys().copied().chain([u64::MAX]) {
        whole.iter().for_each(|range| assert_shows(pool, oracle, cut, *range));
    }
    pool.store.request_checkpoint();
    pool.settle();
    pool.assert_sound();
    for cut in oracle.snapshots.keys().copied().chain([u64::MAX]) {
        whole.iter().for_each(|range| assert_shows(pool, oracle, cut, *range));
    }
    assert_eq!(pool.store.volume(VOLUME).unwrap().blocks_used, oracle.used(), "blocks of the volume");
    assert_eq!(pool.store.statistics().blocks_used, oracle.used(), "blocks leaked");
    let cuts: Vec<u64> = pool.store.snapshots(VOLUME).iter().map(|snapshot| snapshot.cut.as_u64()).collect();
    assert_eq!(cuts, oracle.snapshots.keys().copied().collect::<Vec<_>>());
}

fn run(seed: u64, operations: u32) {
    let mut random = Random(seed);
    let mut pool = Pool::with_volume(1 << 16, BLOCKS, seed);
    pool.store.begin_pull(VOLUME, Stamp::ZERO);
    let mut oracle = Oracle::default();
    for _ in 0..operations {
        operate(&mut pool, &mut oracle, &mut random);
        // The engine orders what overlaps; here everything is done one after the other now and then.
        pool.settle();
        assert!(pool.answers.drain().all(|(_, answer)| answer == Ok(Reply::Done)));
        if random.one_in(60) {
            let kill = random.one_in(2);
            let (image, meta) =
                if kill { (pool.disk.image().clone(), (*pool.meta).clone()) } else { pool.close() };
            assert_image_sound(&image, &meta);
            pool = Pool::open(image, meta, random.next(), 1).unwrap();
            pool.store.begin_pull(VOLUME, Stamp::ZERO);
            oracle.settle();
        }
    }
    check(&mut pool, &oracle);
    for (cut, id) in std::mem::take(&mut oracle.snapshots) {
        assert_eq!(pool.run(Request::DeleteSnapshot { volume: VOLUME, id }), Ok(Reply::Done), "{cut}");
    }
    check(&mut pool, &oracle);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn snapshots_agree_with_an_oracle_that_keeps_every_version(seed in any::<u64>()) {
        run(seed, 600);
    }
}

fn snapshot(pool: &mut Pool, cut: u64) -> Result<Reply, RequestError> {
    let snapshot = Snapshot { id: id(cut), cut: Stamp::from_u64(cut) };
    pool.run(Request::CreateSnapshot { volume: VOLUME, snapshot })
}

fn write_all(pool: &mut Pool, blocks: std::ops::Range<u64>, stamp: &mut u64) {
    for block in blocks {
        pool.write(block, &[*stamp], Stamp::from_u64(*stamp), false);
        *stamp += 1;
    }
    pool.settle();
    assert!(pool.answers.drain().all(|(_, answer)| answer == Ok(Reply::Done)));
}

#[test]
fn a_snapshot_writes_no_data_and_no_map() {
    let mut pool = Pool::with_volume(1 << 16, BLOCKS, 1);
    let mut stamp = 1;
    write_all(&mut pool, 0..BLOCKS, &mut stamp);
    pool.store.request_checkpoint();
    pool.settle();
    let used = pool.store.statistics().blocks_used;
    assert_eq!(snapshot(&mut pool, stamp), Ok(Reply::Done));
    assert_eq!(pool.store.statistics().blocks_used, used);
    assert!(pool.checkpoints.is_empty(), "nothing is merged for a snapshot");
}

#[test]
fn asking_again_changes_nothing_and_a_contradiction_is_refused() {
    let mut pool = Pool::with_volume(1 << 16, BLOCKS, 2);
    assert_eq!(snapshot(&mut pool, 7), Ok(Reply::Done));
    assert_eq!(snapshot(&mut pool, 7), Ok(Reply::Done));
    for (other, cut) in [(7, 8), (8, 7)] {
        let snapshot = Snapshot { id: id(other), cut: Stamp::from_u64(cut) };
        let answer = pool.run(Request::CreateSnapshot { volume: VOLUME, snapshot });
        assert!(matches!(answer, Err(RequestError::BadSnapshot { .. })), "{answer:?}");
    }
    assert!(snapshot(&mut pool, 0).is_err());
    assert_eq!(pool.store.snapshots(VOLUME).len(), 1);
    for _ in 0..2 {
        assert_eq!(pool.run(Request::DeleteSnapshot { volume: VOLUME, id: id(7) }), Ok(Reply::Done));
    }
    assert_eq!(pool.store.snapshots(VOLUME), []);
}

#[test]
fn the_number_of_snapshots_is_bounded() {
    let mut pool = Pool::with_volume(1 << 16, BLOCKS, 3);
    for cut in 1..=SNAPSHOTS_MAX as u64 {
        assert_eq!(snapshot(&mut pool, cut), Ok(Reply::Done));
    }
    let answer = snapshot(&mut pool, SNAPSHOTS_MAX as u64 + 1);
    assert!(matches!(answer, Err(RequestError::BadSnapshot { .. })), "{answer:?}");
}

#[test]
fn a_snapshot_is_taken_behind_what_was_asked_before() {
    let mut pool = Pool::with_volume(1 << 16, BLOCKS, 4);
    let write = pool.write(3, &[1], Stamp::from_u64(1), false);
    let snapshot = Snapshot { id: id(2), cut: Stamp::from_u64(2) };
    let create = pool.submit(Request::CreateSnapshot { volume: VOLUME, snapshot });
    while !pool.answers.contains_key(&create) {
        pool.turn();
        assert!(!pool.answers.contains_key(&create) || pool.answers.contains_key(&write));
    }
    // Answered, it is stable.
    let image = pool.disk.crash().into_image();
    let mut pool = Pool::open(image, (*pool.meta).clone(), 3, 2).unwrap();
    assert_eq!(pool.store.snapshots(VOLUME), [snapshot]);
    assert_eq!(read_at(&mut pool, Some(id(2)), BlockRange::new(3, 1)).unwrap(), [contents(3, 1)]);
}

#[test]
fn one_is_taken_while_another_is_still_being_deleted() {
    let mut pool = Pool::with_volume(1 << 16, BLOCKS, 9);
    assert_eq!(snapshot(&mut pool, 1), Ok(Reply::Done));
    let delete = pool.submit(Request::DeleteSnapshot { volume: VOLUME, id: id(1) });
    let kept = Snapshot { id: id(2), cut: Stamp::from_u64(2) };
    let create = pool.submit(Request::CreateSnapshot { volume: VOLUME, snapshot: kept });
    let again = pool.submit(Request::CreateSnapshot { volume: VOLUME, snapshot: kept });
    pool.settle();
    assert_eq!(pool.answers.remove(&delete), Some(Ok(Reply::Done)));
    assert_eq!(pool.answers.remove(&create), Some(Ok(Reply::Done)));
    let refused = pool.answers.remove(&again);
    assert!(matches!(refused, Some(Err(RequestError::BadSnapshot { .. }))), "{refused:?}");
    assert_eq!(pool.store.snapshots(VOLUME), [kept]);
}

#[test]
fn deleting_costs_as_many_checkpointed_groups_as_changed() {
    let mut pool = Pool::with_volume(1 << 16, 4096, 5);
    let mut stamp = 1;
    write_all(&mut pool, 0..4096, &mut stamp);
    assert_eq!(snapshot(&mut pool, stamp), Ok(Reply::Done));
    stamp += 1;
    write_all(&mut pool, 100..116, &mut stamp);
    pool.store.request_checkpoint();
    pool.settle();
    assert_eq!(pool.store.statistics().blocks_used, 4096 + 16);
    let before = (*pool.meta).clone();
    let id = pool.store.snapshots(VOLUME)[0].id;
    assert_eq!(pool.run(Request::DeleteSnapshot { volume: VOLUME, id }), Ok(Reply::Done));
    pool.settle();
    assert_eq!(pool.store.statistics().blocks_used, 4096);
    assert!(groups_that_differ(&before, &pool.meta) <= 2);
    pool.assert_sound();
}

#[test]
fn a_crash_does_not_keep_the_space_of_a_deleted_snapshot() {
    let mut pool = Pool::with_volume(1 << 16, BLOCKS, 8);
    let mut stamp = 1;
    write_all(&mut pool, 0..100, &mut stamp);
    assert_eq!(snapshot(&mut pool, stamp), Ok(Reply::Done));
    stamp += 1;
    write_all(&mut pool, 0..100, &mut stamp);
    pool.store.request_checkpoint();
    pool.settle();
    assert_eq!(pool.store.statistics().blocks_used, 200);
    let id = pool.store.snapshots(VOLUME)[0].id;
    let delete = pool.submit(Request::DeleteSnapshot { volume: VOLUME, id });
    while !pool.answers.contains_key(&delete) {
        pool.turn();
    }
    let image = pool.disk.crash().into_image();
    let mut pool = Pool::open(image, (*pool.meta).clone(), 3, 2).unwrap();
    pool.settle();
    assert_eq!(pool.store.statistics().blocks_used, 100, "nobody asks for a checkpoint");
    pool.assert_sound();
}

#[test]
fn a_reset_leaves_an_empty_volume_with_its_promise() {
    let mut pool = Pool::with_volume(1 << 16, BLOCKS, 6);
    let (generation, epoch) = (Generation::new(7).unwrap(), Epoch(3));
    pool.run(Request::Promise { volume: VOLUME, generation, epoch, session: 42 }).unwrap();
    let mut stamp = 1;
    write_all(&mut pool, 0..100, &mut stamp);
    assert_eq!(snapshot(&mut pool, stamp), Ok(Reply::Done));
    stamp += 1;
    write_all(&mut pool, 0..50, &mut stamp);
    assert_eq!(pool.run(Request::ResetVolume { volume: VOLUME }), Ok(Reply::Done));
    // Answered, it is stable.
    let image = pool.disk.crash().into_image();
    let mut pool = Pool::open(image, (*pool.meta).clone(), 3, 2).unwrap();
    let known = pool.store.volume(VOLUME).unwrap();
    assert_eq!((known.generation, known.epoch, known.session), (generation, epoch, 42));
    assert_eq!((known.blocks, known.last), (BLOCKS, Stamp::ZERO));
    assert_eq!(pool.store.snapshots(VOLUME), []);
    assert!(pool.read_now(0, 100).unwrap().iter().all(|block| *block == contents(0, 0)));
    pool.store.request_checkpoint();
    pool.settle();
    assert_eq!(pool.store.statistics().blocks_used, 0, "all space is back");
    pool.assert_sound();
}

fn groups_that_differ(
    before: &trivet_replica::meta::MemoryMeta,
    after: &trivet_replica::meta::MemoryMeta,
) -> usize {
    use trivet_replica::meta::MetaStore;
    let all = |meta: &trivet_replica::meta::MemoryMeta| {
        let mut all = BTreeMap::new();
        let visit = &mut |key: &[u8], value: &[u8]| {
            all.insert(key.to_vec(), value.to_vec());
            std::ops::ControlFlow::Continue(())
        };
        meta.scan(b"g", b"h", visit).unwrap();
        all
    };
    let (before, after) = (all(before), all(after));
    let changed = before.iter().filter(|(key, value)| after.get(*key) != Some(value)).count();
    changed + after.keys().filter(|key| !before.contains_key(*key)).count()
}
