//! The store under crashes: power lost or process killed at any turn, in recovery too.
//!
//! After a loss of power each block holds its newest flushed version or a later one; after a kill,
//! its newest acknowledged version or a later one. What recovery found must stay found. Of placed
//! versions, later means a higher stamp, not a later moment.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod pool;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use pool::{Pool, Random, VOLUME, assert_image_sound, blocks_of, contents};
use trivet_disk::{CompletionOrder, DiskImage, Fault, FaultyDisk};
use trivet_model::{BLOCK_SIZE, BlockRange, Epoch, Generation, Stamp, VolumeId};
use trivet_replica::meta::{MemoryMeta, MetaStore};
use trivet_replica::store::{Reply, Request, RequestError, RequestId, TailExtent, VolumeProgress};

const BLOCKS: u64 = 48;

/// A version that a block may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    /// 0: a hole.
    number: u64,
    stamp: Stamp,
    acknowledged: bool,
    flushed: bool,
    /// Copied from elsewhere: no promise of the engine's covers it before the copy is over.
    placed: bool,
}

const HOLE: Version =
    Version { number: 0, stamp: Stamp::ZERO, acknowledged: true, flushed: true, placed: false };

#[derive(Clone, Copy, Debug)]
enum Pending {
    Change(BlockRange, Stamp),
    Place,
    /// Covers what was acknowledged when it was asked for.
    Flush,
    Promise(u32),
}

/// What is known of the volume from outside.
struct Oracle {
    /// Per block, in the order of stamps.
    blocks: Vec<Vec<Version>>,
    /// With the block versions that a place or flush covers.
    pending: BTreeMap<RequestId, (Pending, Vec<(usize, Stamp)>)>,
    /// The next; every version has its own.
    stamp: u64,
    /// Stamps left free, for places.
    free_stamps: Vec<u64>,
    /// Places have higher stamps: what the source had before is settled.
    settled: u64,
    promised: u32,
    promised_durable: u32,
    power_was_lost: bool,
}

impl Oracle {
    fn new() -> Self {
        Self {
            blocks: vec![vec![HOLE]; usize::try_from(BLOCKS).unwrap()],
            pending: BTreeMap::new(),
            stamp: 1,
            free_stamps: Vec::new(),
            settled: 0,
            promised: 0,
            promised_durable: 0,
            power_was_lost: false,
        }
    }

    fn is_busy(&self, range: BlockRange) -> bool {
        self.pending
            .values()
            .any(|(pending, _)| matches!(pending, Pending::Change(r, _) if r.overlaps(range)))
    }

    fn acknowledged(&mut self, id: RequestId, stable: bool) {
        let Some((pending, versions)) = self.pending.remove(&id) else { return };
        match pending {
            Pending::Change(range, stamp) => {
                for (at, block) in range.blocks().enumerate() {
                    let version = self.version(usize::try_from(block).unwrap(), stamp.plus(at as u64));
                    version.acknowledged = true;
                    version.flushed |= stable;
                }
            }
            Pending::Place => {
                for (block, stamp) in versions {
                    self.version(block, stamp).acknowledged = true;
                }
            }
            Pending::Flush => {
                for (block, stamp) in versions {
                    self.version(block, stamp).flushed = true;
                }
            }
            Pending::Promise(generation) => self.promised_durable = self.promised_durable.max(generation),
        }
    }

    /// Stamps for a change of the engine's, some left free before them.
    fn take_stamps(&mut self, count: u64, random: &mut Random) -> Stamp {
        let first = self.stamp + random.below(4);
        self.free_stamps.extend(self.stamp..first);
        self.stamp = first + count;
        Stamp::from_u64(first)
    }

    fn version(&mut self, block: usize, stamp: Stamp) -> &mut Version {
        self.blocks[block].iter_mut().find(|version| version.stamp == stamp).unwrap()
    }

    /// The versions that a block may hold after a crash.
    fn allowed(&self, block: usize, power_lost: bool) -> &[Version] {
        let versions = &self.blocks[block];
        let sure = |version: &Version| if power_lost { version.flushed } else { version.acknowledged };
        &versions[versions.iter().rposition(sure).unwrap()..]
    }
}

/// How the process or the host ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    Power,
    Kill,
}

fn crash_image(pool: &mut Pool, crash: Crash, random: &mut Random) -> DiskImage {
    match crash {
        Crash::Power => pool.disk.crash().into_image(),
        Crash::Kill => {
            // What the kernel has taken goes on to the device, or not.
            let tokens: Vec<_> = pool.disk.in_flight().collect();
            for token in tokens {
                if random.one_in(2) {
                    pool.disk.release(token);
                }
            }
            pool.disk.image().clone()
        }
    }
}

/// Opens after a crash; at times recovery itself is cut short, as often as it takes.
fn reopen(mut image: DiskImage, meta: MemoryMeta, boot: u8, random: &mut Random) -> Pool {
    while random.one_in(3) {
        let mut disk = FaultyDisk::new(image, random.next());
        let fault = if random.one_in(2) { Fault::WriteError } else { Fault::FlushError };
        disk.inject(fault, random.below(2));
        let attempt = meta.clone();
        let outcome = trivet_replica::store::Store::open(
            &mut disk,
            &attempt,
            &Default::default(),
            trivet_model::BootId::from_bytes([boot; 16]),
        );
        assert!(outcome.is_err(), "recovery does not write and flush twice");
        image = disk.crash().into_image();
    }
    Pool::open(image, meta, random.next(), boot).unwrap()
}

fn step(pool: &mut Pool, oracle: &mut Oracle, random: &mut Random) {
    let start = random.below(BLOCKS);
    let count = (1 + random.below(4)).min(BLOCKS - start);
    let range = BlockRange::new(start, u32::try_from(count).unwrap());
    let stable = random.one_in(6);
    match random.below(22) {
        0..8 if !oracle.is_busy(range) => {
            let stamp = oracle.take_stamps(count, random);
            let numbers: Vec<u64> = (0..count).map(|at| stamp.as_u64() + at).collect();
            let id = pool.write(start, &numbers, stamp, stable);
            note_change(oracle, id, range, stamp, |at| numbers[at]);
        }
        8..10 if !oracle.is_busy(range) => {
            let stamp = oracle.take_stamps(count, random);
            let id = pool.submit(Request::Discard { volume: VOLUME, range, stamp, stable });
            note_change(oracle, id, range, stamp, |_| 0);
        }
        10 => {
            let id = pool.submit(Request::Flush { volume: VOLUME });
            let acknowledged = |(at, versions): (usize, &Vec<Version>)| {
                let acknowledged = versions.iter().filter(|version| version.acknowledged);
                acknowledged.map(|version| (at, version.stamp)).collect::<Vec<_>>()
            };
            let now = oracle.blocks.iter().enumerate().flat_map(acknowledged).collect();
            oracle.pending.insert(id, (Pending::Flush, now));
        }
        11 if random.one_in(4) => pool.store.request_checkpoint(),
        12 if random.one_in(3) => {
            oracle.promised += 1;
            let generation = Generation::new(oracle.promised).unwrap();
            let promise = Request::Promise { volume: VOLUME, generation, epoch: Epoch(1), session: 1 };
            let id = pool.submit(promise);
            oracle.pending.insert(id, (Pending::Promise(oracle.promised), Vec::new()));
        }
        13 => pool.store.idle(),
        14 => {
            let committed = oracle.blocks.iter().flatten().filter(|v| !v.acknowledged).map(|v| v.stamp).min();
            let committed = committed.map_or(oracle.stamp - 1, |stamp| stamp.as_u64() - 1);
            let unflushed = oracle.blocks.iter().flatten().filter(|v| !v.flushed).map(|v| v.stamp).min();
            let stable = unflushed.map_or(oracle.stamp - 1, |stamp| stamp.as_u64() - 1);
            let progress = VolumeProgress {
                committed: Stamp::from_u64(committed),
                stable: Stamp::from_u64(stable.min(committed)),
            };
            pool.store.note_progress(VOLUME, progress);
            oracle.settled = oracle.settled.max(progress.stable.as_u64());
        }
        15 => {
            pool.background();
        }
        16..18 => place(pool, oracle, range, random),
        _ => pool.turn(),
    }
    collect(pool, oracle);
}

/// Places versions between the engine's stamps, or repairs blocks with the version they have.
fn place(pool: &mut Pool, oracle: &mut Oracle, range: BlockRange, random: &mut Random) {
    let repair = random.one_in(4);
    let discard = !repair && random.one_in(3);
    let mut runs = Vec::new();
    let mut placed = Vec::new();
    for number in range.blocks() {
        let block = usize::try_from(number).unwrap();
        let stamp = if repair {
            let newest = oracle.blocks[block].last().copied().unwrap();
            if newest.number == 0 || newest.number != newest.stamp.as_u64() {
                continue;
            }
            newest.stamp
        } else {
            let settled = oracle.settled;
            oracle.free_stamps.retain(|stamp| *stamp > settled);
            if oracle.free_stamps.is_empty() {
                break;
            }
            let at = random.below(oracle.free_stamps.len() as u64);
            Stamp::from_u64(oracle.free_stamps.swap_remove(usize::try_from(at).unwrap()))
        };
        if !repair {
            let number = if discard { 0 } else { stamp.as_u64() };
            let version = Version { number, stamp, acknowledged: false, flushed: false, placed: true };
            let versions = &mut oracle.blocks[block];
            versions.insert(versions.partition_point(|version| version.stamp < stamp), version);
            placed.push((block, stamp));
        }
        runs.push(TailExtent { range: BlockRange::new(number, 1), stamp, discard });
    }
    if !runs.is_empty() {
        let id = pool.place(runs, repair);
        oracle.pending.insert(id, (Pending::Place, placed));
    }
}

fn note_change(
    oracle: &mut Oracle,
    id: RequestId,
    range: BlockRange,
    stamp: Stamp,
    number: impl Fn(usize) -> u64,
) {
    for (at, block) in range.blocks().enumerate() {
        oracle.blocks[usize::try_from(block).unwrap()].push(Version {
            number: number(at),
            stamp: stamp.plus(at as u64),
            acknowledged: false,
            flushed: false,
            placed: false,
        });
    }
    oracle.pending.insert(id, (Pending::Change(range, stamp), Vec::new()));
}

fn collect(pool: &mut Pool, oracle: &mut Oracle) {
    for (id, answer) in pool.answers.drain() {
        let reply = answer.unwrap();
        // Stable writes are counted as flushed only through flushes: a weaker demand, never a wrong one.
        oracle.acknowledged(id, false);
        assert!(matches!(reply, Reply::Done | Reply::Flushed { .. }), "{reply:?}");
    }
}

/// Checks what the pool holds after a crash, and makes it what is known.
fn check(pool: &mut Pool, oracle: &mut Oracle, crash: Crash, context: &str) {
    let volume = pool.store.volume(VOLUME).unwrap();
    assert!(volume.generation.get() >= oracle.promised_durable, "{context}: a durable promise was forgotten");
    assert!(volume.generation.get() <= oracle.promised);
    let found = pool.read_now(0, u32::try_from(BLOCKS).unwrap()).unwrap();
    for (block, found) in found.iter().enumerate() {
        let allowed = oracle.allowed(block, crash == Crash::Power);
        let held = allowed.iter().rev().find(|version| contents(block as u64, version.number) == *found);
        let Some(held) = held.copied() else {
            panic!("{context}: block {block} holds none of {allowed:?}");
        };
        // What lies at or below the intact stamp and was acknowledged must be there.
        let lost = oracle.blocks[block].iter().any(|v| {
            let promised = v.acknowledged && !v.placed && v.stamp <= volume.intact;
            promised && v.stamp > held.stamp && v.number != held.number
        });
        assert!(!lost, "{context}: block {block} is older than the intact stamp {} promises", volume.intact);
        oracle.blocks[block] = vec![Version { acknowledged: true, flushed: true, ..held }];
    }
    // A limit from an earlier loss of power stays until the engine has made up for it.
    if crash == Crash::Kill && !oracle.power_was_lost {
        assert_eq!(volume.intact, Stamp::MAX, "{context}: a kill loses nothing");
    }
    oracle.power_was_lost |= crash == Crash::Power;
    oracle.pending.clear();
    oracle.promised = volume.generation.get();
    oracle.promised_durable = oracle.promised;
    oracle.settled = oracle.stamp.max(volume.last.as_u64());
    oracle.free_stamps = (oracle.settled + 1..oracle.settled + 20).collect();
    oracle.stamp = oracle.settled + 20;
    pool.store.begin_pull(VOLUME, Stamp::ZERO);
    check_tail(pool, oracle, volume.progress.stable, context);
}

/// The tail names every block whose version lies above `since`, and no other data.
fn check_tail(pool: &mut Pool, oracle: &Oracle, since: Stamp, context: &str) {
    let Ok(Reply::Tail(tail)) = pool.run(Request::Tail { volume: VOLUME, since }) else { panic!("no tail") };
    let mut stamps = BTreeMap::new();
    for TailExtent { range, stamp, discard } in tail {
        for (at, block) in range.blocks().enumerate() {
            stamps.insert(usize::try_from(block).unwrap(), (stamp.plus(at as u64), discard));
        }
    }
    for (block, versions) in oracle.blocks.iter().enumerate() {
        let held = versions[0];
        match stamps.get(&block) {
            Some((stamp, false)) => assert_eq!(*stamp, held.stamp, "{context}: block {block}"),
            Some((_, true)) => assert_eq!(held.number, 0, "{context}: block {block}"),
            None => assert!(
                held.number == 0 || held.stamp <= since || held.placed,
                "{context}: block {block} is not in the tail"
            ),
        }
    }
}

/// A pool of one zone, nearly filled by another volume, so that freed blocks are soon reused.
fn crowded_pool(seed: u64) -> Pool {
    static TEMPLATE: OnceLock<(DiskImage, MemoryMeta)> = OnceLock::new();
    let (image, meta) = TEMPLATE.get_or_init(|| {
        let filler = VolumeId::from_bytes([2; 16]);
        let mut pool = Pool::with_volume(1024, BLOCKS, 0);
        pool.run(Request::CreateVolume { volume: filler, blocks: 930, parent: None, tagged: false }).unwrap();
        for start in (0..930).step_by(93) {
            pool.write_to(filler, start, &[1; 93], Stamp::from_u64(start + 1), false);
        }
        pool.settle();
        pool.store.request_checkpoint();
        pool.close()
    });
    Pool::open(image.clone(), meta.clone(), seed, 1).unwrap()
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let mut pool = crowded_pool(random.next());
    pool.store.begin_pull(VOLUME, Stamp::ZERO);
    let mut oracle = Oracle::new();
    let mut boot = 1;
    for round in 0..4 {
        for _ in 0..random.below(150) {
            step(&mut pool, &mut oracle, &mut random);
        }
        let crash = if random.one_in(2) { Crash::Power } else { Crash::Kill };
        boot += u8::from(crash == Crash::Power);
        let image = crash_image(&mut pool, crash, &mut random);
        let meta = (*pool.meta).clone();
        assert_image_readable(&image, &meta, seed);
        pool = reopen(image, meta, boot, &mut random);
        check(&mut pool, &mut oracle, crash, &format!("seed {seed}, round {round}, {crash:?}"));
    }
    pool.settle();
    pool.assert_sound();
}

/// The offline check finds nothing wrong after any crash: what is torn is not corrupt.
fn assert_image_readable(image: &DiskImage, meta: &MemoryMeta, seed: u64) {
    if seed.is_multiple_of(16) {
        assert_image_sound(image, meta);
    }
}

/// `TRIVET_CRASH_SEEDS` says how many; a failing seed is in the message.
#[test]
fn f03_f04_f05_seeded_crashes_lose_nothing_that_was_promised() {
    let seeds: u64 =
        std::env::var("TRIVET_CRASH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4000);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || (thread..seeds).step_by(usize::try_from(threads).unwrap()).for_each(run));
        }
    });
}

/// Seeds that found something once.
#[test]
fn regression_seeds() {
    let seeds = [3118];
    for seed in seeds {
        run(seed);
    }
}

/// Short traces; for each, at every turn, every subset of the unflushed writes with every tear of
/// one of them into 512-byte sectors; recovery; and a crash in recovery, then recovery again.
#[test]
fn f03_f04_f05_every_crash_of_short_traces() {
    let mut crashes = 0u64;
    for trace in 0..3u64 {
        let mut turns = 0;
        loop {
            let (pool, oracle) = short_trace(trace, turns);
            let ended = pool.store.is_quiescent() && pool.disk.in_flight().next().is_none();
            let choices: Vec<Vec<bool>> = pool.disk.every_tear().collect();
            for choice in choices {
                crashes += 1;
                let image = pool.disk.crash_with(&choice).into_image();
                let context = format!("trace {trace}, turn {turns}, choice {choice:?}");
                let in_recovery = crash_in_recovery(&image, &pool.meta, crashes);
                for image in [Some(image), in_recovery].into_iter().flatten() {
                    let mut reopened = Pool::open(image, (*pool.meta).clone(), 1, 2).unwrap();
                    let mut known = Oracle {
                        blocks: oracle.blocks.clone(),
                        pending: BTreeMap::new(),
                        free_stamps: Vec::new(),
                        ..oracle
                    };
                    check(&mut reopened, &mut known, Crash::Power, &context);
                }
            }
            if ended {
                break;
            }
            turns += 1;
        }
        assert!(turns >= 2, "the trace ended before anything happened");
    }
    assert!(crashes > 1000, "only {crashes} crashes tried");
}

/// Runs a short trace for so many turns, one device operation completing a turn.
fn short_trace(trace: u64, turns: u64) -> (Pool, Oracle) {
    let mut pool = Pool::with_volume(16 * 1024, BLOCKS, trace);
    let mut oracle = Oracle::new();
    for (at, block) in [0u64, 1, 2].into_iter().enumerate() {
        let stamp = Stamp::from_u64(oracle.stamp);
        oracle.stamp += 1;
        let id = pool.write(block, &[at as u64 + 1], stamp, false);
        note_change(&mut oracle, id, BlockRange::new(block, 1), stamp, |_| at as u64 + 1);
        pool.settle();
        collect(&mut pool, &mut oracle);
    }
    pool.run(Request::Flush { volume: VOLUME }).unwrap();
    for versions in &mut oracle.blocks {
        versions.iter_mut().for_each(|version| version.flushed |= version.acknowledged);
    }
    pool.disk.set_completion_order(CompletionOrder::Held);
    // One write; two writes in one batch; two batches, both in flight.
    let blocks: &[u64] = if trace == 0 { &[0] } else { &[0, 9] };
    for block in blocks {
        let stamp = Stamp::from_u64(oracle.stamp);
        oracle.stamp += 1;
        let number = 100 + block;
        let id = pool.write(*block, &[number], stamp, false);
        note_change(&mut oracle, id, BlockRange::new(*block, 1), stamp, |_| number);
        if trace == 2 {
            pool.act();
        }
    }
    pool.submit(Request::Flush { volume: VOLUME });
    for _ in 0..turns {
        pool.act();
        let oldest = pool.disk.in_flight().next();
        if let Some(token) = oldest {
            pool.disk.release(token);
        }
        pool.turn();
        pool.background();
        collect(&mut pool, &mut oracle);
    }
    pool.act();
    (pool, oracle)
}

/// A recovery cut short after some of its writes and flushes: what the device holds then.
fn crash_in_recovery(image: &DiskImage, meta: &MemoryMeta, salt: u64) -> Option<DiskImage> {
    let mut disk = FaultyDisk::new(image.clone(), salt);
    disk.inject(if salt.is_multiple_of(2) { Fault::WriteError } else { Fault::FlushError }, salt / 2 % 2);
    let meta = meta.clone();
    let boot = trivet_model::BootId::from_bytes([2; 16]);
    let outcome = trivet_replica::store::Store::open(&mut disk, &meta, &Default::default(), boot);
    outcome.is_err().then(|| disk.crash().into_image())
}

#[test]
fn f06_a_failed_flush_stops_the_pool_and_is_not_retried() {
    let mut pool = Pool::with_volume(16 * 1024, BLOCKS, 1);
    pool.write(0, &[1], Stamp::from_u64(1), false);
    pool.settle();
    pool.answers.clear();
    pool.disk.inject(Fault::FlushError, 0);
    let first = pool.run(Request::Flush { volume: VOLUME });
    assert!(matches!(first, Err(RequestError::PoolFailed(_))), "{first:?}");
    let second = pool.run(Request::Flush { volume: VOLUME });
    assert!(matches!(second, Err(RequestError::PoolFailed(_))), "{second:?}");
    let id = pool.write(1, &[1], Stamp::from_u64(2), false);
    pool.settle();
    assert!(matches!(pool.answers.remove(&id), Some(Err(RequestError::PoolFailed(_)))));
    assert_eq!(pool.read_now(0, 1).unwrap(), [contents(0, 1)], "reads go on");
    assert!(pool.store.statistics().failed.is_some());
}

#[test]
fn f06_a_failed_write_stops_the_pool_and_is_not_visible() {
    let mut pool = Pool::with_volume(16 * 1024, BLOCKS, 1);
    pool.disk.inject(Fault::WriteError, 0);
    let id = pool.write(0, &[1], Stamp::from_u64(1), false);
    pool.settle();
    assert!(matches!(pool.answers.remove(&id), Some(Err(RequestError::PoolFailed(_)))));
    assert_eq!(pool.read_now(0, 1).unwrap(), [contents(0, 0)]);
}

#[test]
fn f10_f12_misdirected_and_flipped_reads_are_never_returned_as_data() {
    for seed in 0..200 {
        let mut pool = Pool::with_volume(16 * 1024, BLOCKS, seed);
        for block in 0..BLOCKS {
            pool.write(block, &[block + 1], Stamp::from_u64(block + 1), false);
        }
        pool.settle();
        pool.answers.clear();
        let faults = [Fault::MisdirectedRead, Fault::ReadError, Fault::MisdirectedWrite, Fault::FlippedBit];
        let fault = faults[usize::try_from(seed % 4).unwrap()];
        pool.disk.inject(fault, 0);
        if seed % 4 >= 2 {
            pool.write(seed % BLOCKS, &[500], Stamp::from_u64(1000), false);
            pool.settle();
            pool.answers.clear();
        }
        let mut wrong = 0;
        for block in 0..BLOCKS {
            let id = pool.read(block, 1);
            pool.settle();
            match pool.answers.remove(&id).unwrap() {
                Ok(reply) => {
                    let expected = if seed % 4 >= 2 && block == seed % BLOCKS { 500 } else { block + 1 };
                    assert_eq!(blocks_of(reply), [contents(block, expected)], "seed {seed} block {block}");
                }
                Err(RequestError::Checksum { .. } | RequestError::Medium(_)) => wrong += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(wrong <= 2, "one fault spoils at most two blocks");
    }
}

/// Flips each byte of the live journal in turn: the pool opens with everything stable, or says
/// that the journal is damaged; it never opens with less.
#[test]
fn f11_a_damaged_journal_is_never_cut_away() {
    let mut pool = Pool::with_volume(16 * 1024, BLOCKS, 1);
    for block in 0..8 {
        let id = pool.write(block, &[block + 1], Stamp::from_u64(block + 1), true);
        pool.settle();
        assert_eq!(pool.answers.remove(&id), Some(Ok(Reply::Done)));
    }
    pool.store.idle();
    pool.settle();
    let (image, meta) = (pool.disk.image().clone(), (*pool.meta).clone());
    let mut refused = 0;
    for journal_block in 2..12u64 {
        for byte in (0..BLOCK_SIZE as u64).step_by(211) {
            let mut damaged = image.clone();
            damaged.flip_bit(journal_block * BLOCK_SIZE as u64 + byte, 3);
            match Pool::open(damaged, meta.clone(), 1, 1) {
                Ok(mut pool) => {
                    for block in 0..8 {
                        assert!(
                            pool.read_now(block, 1).unwrap() == [contents(block, block + 1)],
                            "journal block {journal_block} byte {byte}: block {block} was cut away"
                        );
                    }
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains("journal"), "{error}");
                }
            }
        }
    }
    assert!(refused > 100, "only {refused} damaged journals were refused");
}

#[test]
fn f13_a_map_or_pool_file_of_another_time_is_refused() {
    let pool = Pool::with_volume(16 * 1024, BLOCKS, 1);
    let (old_image, old_meta) = pool.close();
    let (mut image, mut meta) = (old_image.clone(), old_meta.clone());
    for _ in 0..3 {
        (image, meta) = Pool::open(image, meta, 1, 1).unwrap().close();
    }
    for (image, meta) in [(old_image, meta), (image, old_meta)] {
        let error = Pool::open(image, meta, 1, 1).err().expect("a mix of times must not open");
        assert!(error.to_string().contains("same time"), "{error}");
    }
    assert!(MemoryMeta::new().get(b"c").unwrap().is_none());
}
