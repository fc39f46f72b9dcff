//! Snapshots under crashes: power lost or process killed at any turn, in the middle of taking, deleting,
//! merging and thinning out.
//!
//! A snapshot that was answered is there, one whose deletion was answered is not, and each shows what the
//! volume held when it was taken: of every block its newest version that is sure to be there, or a later
//! one below the cut. What it showed after one crash it shows after all that follow.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod pool;

use std::collections::BTreeMap;

use pool::{Pool, Random, VOLUME, assert_image_sound, contents};
use trivet_disk::DiskImage;
use trivet_model::{BlockRange, SnapshotId, Stamp};
use trivet_replica::store::{Reply, Request, RequestId, Snapshot};

const BLOCKS: u64 = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    stamp: u64,
    /// 0: discarded, or never written.
    number: u64,
    acknowledged: bool,
    flushed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
    answered: bool,
    deleting: bool,
    /// What it showed after a crash.
    shown: Option<Vec<u64>>,
}

#[derive(Clone, Debug)]
enum Pending {
    Change(BlockRange, u64),
    Flush(Vec<(usize, u64)>),
    Snapshot(u64),
    Deletion(u64),
}

struct Oracle {
    blocks: Vec<Vec<Version>>,
    snapshots: BTreeMap<u64, Taken>,
    pending: BTreeMap<RequestId, Pending>,
    stamp: u64,
}

impl Oracle {
    fn new() -> Self {
        let hole = Version { stamp: 0, number: 0, acknowledged: true, flushed: true };
        let blocks = vec![vec![hole]; usize::try_from(BLOCKS).unwrap()];
        Self { blocks, snapshots: BTreeMap::new(), pending: BTreeMap::new(), stamp: 0 }
    }

    /// Whether the engine may write: nothing that overlaps, and no snapshot, is under way.
    fn may_change(&self, range: BlockRange) -> bool {
        !self.pending.values().any(|pending| match pending {
            Pending::Change(other, _) => other.overlaps(range),
            Pending::Snapshot(_) => true,
            Pending::Flush(_) | Pending::Deletion(_) => false,
        })
    }

    fn note_change(&mut self, id: RequestId, range: BlockRange, discard: bool) {
        let first = self.stamp + 1;
        self.stamp += u64::from(range.count);
        for (block, stamp) in range.blocks().zip(first..) {
            let number = if discard { 0 } else { stamp };
            let version = Version { stamp, number, acknowledged: false, flushed: false };
            self.blocks[usize::try_from(block).unwrap()].push(version);
        }
        self.pending.insert(id, Pending::Change(range, first));
    }

    fn answered(&mut self, id: RequestId) {
        match self.pending.remove(&id).unwrap() {
            Pending::Change(range, first) => {
                for (block, stamp) in range.blocks().zip(first..) {
                    let versions = &mut self.blocks[usize::try_from(block).unwrap()];
                    versions.iter_mut().find(|version| version.stamp == stamp).unwrap().acknowledged = true;
                }
            }
            Pending::Flush(versions) => {
                for (block, stamp) in versions {
                    let found = self.blocks[block].iter_mut().find(|version| version.stamp == stamp);
                    found.unwrap().flushed = true;
                }
            }
            Pending::Snapshot(cut) => self.snapshots.get_mut(&cut).unwrap().answered = true,
            Pending::Deletion(cut) => {
                self.snapshots.remove(&cut);
            }
        }
    }

    /// The numbers that a block may have below a cut after a crash.
    fn allowed(&self, block: usize, cut: u64, power_lost: bool) -> Vec<u64> {
        let below: Vec<&Version> = self.blocks[block].iter().filter(|version| version.stamp <= cut).collect();
        let sure = |version: &&&Version| if power_lost { version.flushed } else { version.acknowledged };
        let newest_sure = below.iter().rposition(|version| sure(&version)).unwrap();
        below[newest_sure..].iter().map(|version| version.number).collect()
    }
}

fn id(cut: u64) -> SnapshotId {
    SnapshotId::from_bytes(u128::from(cut).to_le_bytes())
}

fn step(pool: &mut Pool, oracle: &mut Oracle, random: &mut Random) {
    let start = random.below(BLOCKS);
    let most = if random.one_in(5) { 20 } else { 3 };
    let count = (1 + random.below(most)).min(BLOCKS - start);
    let range = BlockRange::new(start, u32::try_from(count).unwrap());
    match random.below(24) {
        0..8 if oracle.may_change(range) => {
            let first = oracle.stamp + 1;
            let numbers: Vec<u64> = (first..first + count).collect();
            let id = pool.write(start, &numbers, Stamp::from_u64(first), false);
            oracle.note_change(id, range, false);
        }
        8..10 if oracle.may_change(range) => {
            let stamp = Stamp::from_u64(oracle.stamp + 1);
            let id = pool.submit(Request::Discard { volume: VOLUME, range, stamp, stable: false });
            oracle.note_change(id, range, true);
        }
        10 => {
            let mut covered = Vec::new();
            for (at, versions) in oracle.blocks.iter().enumerate() {
                let acknowledged = versions.iter().filter(|version| version.acknowledged);
                covered.extend(acknowledged.map(|version| (at, version.stamp)));
            }
            let id = pool.submit(Request::Flush { volume: VOLUME });
            oracle.pending.insert(id, Pending::Flush(covered));
        }
        11 if random.one_in(3) => pool.store.request_checkpoint(),
        12 => pool.store.idle(),
        13 | 14 => {
            pool.background();
        }
        15 | 16 => {
            // The engine has had answers to all its writes, and a snapshot is given a stamp of its own.
            let still = oracle.pending.values().all(|pending| matches!(pending, Pending::Flush(_)));
            if still {
                oracle.stamp += 1;
                let cut = oracle.stamp;
                let snapshot = Snapshot { id: id(cut), cut: Stamp::from_u64(cut) };
                let asked = pool.submit(Request::CreateSnapshot { volume: VOLUME, snapshot });
                oracle.snapshots.insert(cut, Taken { answered: false, deleting: false, shown: None });
                oracle.pending.insert(asked, Pending::Snapshot(cut));
            }
        }
        17 if random.one_in(2) => {
            let at = usize::try_from(random.below(oracle.snapshots.len().max(1) as u64)).unwrap();
            let busy = oracle
                .pending
                .values()
                .any(|pending| matches!(pending, Pending::Snapshot(_) | Pending::Deletion(_)));
            if let Some((cut, taken)) = oracle.snapshots.iter_mut().nth(at).filter(|_| !busy) {
                taken.deleting = true;
                let asked = pool.submit(Request::DeleteSnapshot { volume: VOLUME, id: id(*cut) });
                oracle.pending.insert(asked, Pending::Deletion(*cut));
            }
        }
        _ => pool.turn(),
    }
    for (id, answer) in pool.answers.drain() {
        assert!(matches!(answer, Ok(Reply::Done | Reply::Flushed { .. })), "{answer:?}");
        oracle.answered(id);
    }
}

fn numbers(pool: &mut Pool, at: Option<SnapshotId>, allowed: &[Vec<u64>], context: &str) -> Vec<u64> {
    let range = BlockRange::new(0, u32::try_from(BLOCKS).unwrap());
    let found = pool.run(Request::Read { volume: VOLUME, at, range }).map(pool::blocks_of).unwrap();
    found
        .iter()
        .zip(allowed)
        .enumerate()
        .map(|(block, (found, allowed))| {
            let held = allowed.iter().rev().find(|number| contents(block as u64, **number) == *found);
            *held.unwrap_or_else(|| panic!("{context}: block {block} holds none of {allowed:?}"))
        })
        .collect()
}

/// Checks what the pool holds after a crash, and makes it what is known.
fn check(pool: &mut Pool, oracle: &mut Oracle, power_lost: bool, context: &str) {
    let found: Vec<u64> = pool.store.snapshots(VOLUME).iter().map(|snapshot| snapshot.cut.as_u64()).collect();
    for (cut, taken) in &oracle.snapshots {
        let is_there = found.contains(cut);
        assert!(is_there || taken.deleting || !taken.answered, "{context}: snapshot {cut} is lost");
    }
    assert!(found.iter().all(|cut| oracle.snapshots.contains_key(cut)), "{context}: a deleted one is back");
    oracle.snapshots.retain(|cut, _| found.contains(cut));
    let blocks = 0..usize::try_from(BLOCKS).unwrap();
    for cut in found {
        let allowed: Vec<Vec<u64>> = match &oracle.snapshots[&cut].shown {
            Some(shown) => shown.iter().map(|number| vec![*number]).collect(),
            None => blocks.clone().map(|block| oracle.allowed(block, cut, power_lost)).collect(),
        };
        let context = format!("{context}, snapshot {cut}");
        let shown = numbers(pool, Some(id(cut)), &allowed, &context);
        *oracle.snapshots.get_mut(&cut).unwrap() =
            Taken { answered: true, deleting: false, shown: Some(shown) };
    }
    let allowed: Vec<Vec<u64>> = blocks.map(|block| oracle.allowed(block, u64::MAX, power_lost)).collect();
    let held = numbers(pool, None, &allowed, context);
    for (versions, number) in oracle.blocks.iter_mut().zip(held) {
        let stamp = versions.iter().rev().find(|version| version.number == number).map_or(0, |v| v.stamp);
        *versions = vec![Version { stamp, number, acknowledged: true, flushed: true }];
    }
    oracle.pending.clear();
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let mut pool = Pool::with_volume(16 * 1024, BLOCKS, seed);
    let mut oracle = Oracle::new();
    for crash in 0..4 {
        for _ in 0..random.below(160) {
            step(&mut pool, &mut oracle, &mut random);
        }
        let power_lost = random.one_in(2);
        let image: DiskImage = if power_lost {
            pool.disk.crash().into_image()
        } else {
            let tokens: Vec<_> = pool.disk.in_flight().collect();
            for token in tokens {
                if random.one_in(2) {
                    pool.disk.release(token);
                }
            }
            pool.disk.image().clone()
        };
        let meta = (*pool.meta).clone();
        let boot = if power_lost { crash + 2 } else { 1 };
        pool = Pool::open(image, meta, random.next(), boot).unwrap();
        let context = format!("seed {seed}, crash {crash}");
        check(&mut pool, &mut oracle, power_lost, &context);
        if random.one_in(3) {
            pool.settle();
            pool.assert_sound();
        }
    }
    pool.store.request_checkpoint();
    let (image, meta) = pool.close();
    assert_image_sound(&image, &meta);
    let mut pool = Pool::open(image, meta, 1, 1).unwrap();
    check(&mut pool, &mut oracle, false, &format!("seed {seed}, in the end"));
}

#[test]
fn f03_f04_f05_seeded_crashes_lose_no_snapshot_and_change_none() {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || (thread..1500).step_by(usize::try_from(threads).unwrap()).for_each(run));
        }
    });
}
