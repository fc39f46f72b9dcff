//! Placed versions against a naive oracle: of all versions that a block ever got, the one with the
//! highest stamp stands, whatever the order in which they came and were checkpointed.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod pool;

use std::collections::{BTreeMap, HashMap};

use pool::{Pool, Random, VOLUME, assert_image_sound, blocks_of, contents};
use proptest::prelude::*;
use trivet_disk::Fault;
use trivet_model::{BlockRange, Stamp};
use trivet_replica::store::{
    FetchedBlocks, Reply, Request, RequestError, RequestId, TailExtent, VerifiedBlocks, VolumeProgress,
};

const BLOCKS: u64 = 20_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Version {
    stamp: u64,
    discard: bool,
    /// Whether it may have left no trace: nothing was there when it was discarded live.
    faint: bool,
}

/// A change in flight.
struct Pending {
    range: BlockRange,
    live: bool,
    versions: Vec<(u64, Version)>,
}

/// Something asked for that does not overlap changes in flight, and what it must find.
enum Question {
    Read(BlockRange, Vec<Vec<u8>>),
    Fetch(BlockRange, Vec<Option<Version>>),
    /// What was acknowledged when it was asked.
    Changed {
        since: u64,
        start: u64,
        known: BTreeMap<u64, Version>,
    },
}

struct World {
    pool: Pool,
    random: Random,
    /// Of each block, the highest version submitted, and the highest acknowledged.
    newest: BTreeMap<u64, Version>,
    acknowledged: BTreeMap<u64, Version>,
    /// Every version ever submitted: is it a tombstone?
    history: HashMap<(u64, u64), bool>,
    next_stamp: u64,
    changes: HashMap<RequestId, Pending>,
    questions: HashMap<RequestId, Question>,
    pulled: bool,
    /// The stable stamp when the pull began: up to it the source has had every discard.
    stable_at_pull: u64,
    stable: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            pool: Pool::with_volume(1 << 16, BLOCKS, seed),
            random: Random(seed),
            newest: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            history: HashMap::new(),
            next_stamp: 1,
            changes: HashMap::new(),
            questions: HashMap::new(),
            pulled: false,
            stable_at_pull: 0,
            stable: 0,
        }
    }

    fn range(&mut self, count_max: u64) -> BlockRange {
        let count = if self.random.one_in(2) { 1 } else { 1 + self.random.below(count_max) };
        let span = if self.random.one_in(3) { BLOCKS } else { 64 };
        let start = self.random.below(span);
        BlockRange::new(start, u32::try_from(count.min(BLOCKS - start)).unwrap())
    }

    /// Whether changes in flight or questions forbid a live change here: the engine orders overlaps.
    fn is_busy(&self, range: BlockRange, with_places: bool) -> bool {
        let changed =
            self.changes.values().any(|change| (change.live || with_places) && change.range.overlaps(range));
        changed
            || self.questions.values().any(|question| match question {
                Question::Read(r, _) | Question::Fetch(r, _) => r.overlaps(range),
                Question::Changed { .. } => false,
            })
    }

    fn note(&mut self, id: RequestId, range: BlockRange, live: bool, versions: Vec<(u64, Version)>) {
        for (block, version) in &versions {
            self.history.insert((*block, version.stamp), version.discard);
            raise(&mut self.newest, *block, *version);
        }
        self.changes.insert(id, Pending { range, live, versions });
    }

    fn live(&mut self, discard: bool) {
        let range = self.range(if discard { 200 } else { 40 });
        if self.is_busy(range, false) {
            return;
        }
        let stamp = self.next_stamp;
        self.next_stamp += u64::from(range.count);
        let is_other =
            |(stamp, block)| self.history.get(&(block, stamp)).is_some_and(|known| *known != discard);
        if (stamp..).zip(range.blocks()).any(is_other) {
            return;
        }
        let versions = (stamp..)
            .zip(range.blocks())
            .map(|(stamp, block)| {
                let faint = discard && self.newest.get(&block).is_none_or(|old| old.faint);
                (block, Version { stamp, discard, faint })
            })
            .collect();
        let first = Stamp::from_u64(stamp);
        let id = if discard {
            self.pool.submit(Request::Discard { volume: VOLUME, range, stamp: first, stable: false })
        } else {
            let numbers: Vec<u64> = (stamp..).take(range.count as usize).collect();
            self.pool.write(range.start, &numbers, first, false)
        };
        self.note(id, range, true, versions);
    }

    /// Places what a source might have: older, the same, or newer than what is here.
    fn place(&mut self) {
        let range = self.range(40);
        if self.is_busy(range, false) {
            return;
        }
        let repair = self.random.one_in(4);
        let mut stamp = match self.random.below(4) {
            0 => self.next_stamp + self.random.below(30),
            _ => 1 + self.random.below(self.next_stamp),
        };
        let mut runs: Vec<TailExtent> = Vec::new();
        let mut versions = Vec::new();
        let discard_all = self.random.one_in(3);
        for block in range.blocks() {
            stamp += 1;
            let mut discard = discard_all;
            match self.newest.get(&block) {
                Some(newest) if newest.faint => {
                    // Without a pull, or below what it began with, the source has that discard too.
                    let known_aside = self.pulled && newest.stamp > self.stable_at_pull;
                    if stamp < newest.stamp && !known_aside {
                        continue;
                    }
                }
                _ => {}
            }
            if self.random.one_in(8)
                && let Some(newest) = self.newest.get(&block)
            {
                stamp = newest.stamp;
            }
            // A stamp names one version, for ever.
            if let Some(known) = self.history.get(&(block, stamp)) {
                discard = *known;
            }
            versions.push((block, Version { stamp, discard, faint: false }));
            let first = Stamp::from_u64(stamp);
            runs.push(TailExtent { range: BlockRange::new(block, 1), stamp: first, discard });
        }
        // Runs as long as there are.
        let mut joined: Vec<TailExtent> = Vec::new();
        for run in runs {
            match joined.last_mut() {
                Some(last)
                    if last.range.end() == run.range.start
                        && last.discard == run.discard
                        && last.stamp.plus(u64::from(last.range.count)) == run.stamp =>
                {
                    last.range.count += 1;
                }
                _ => joined.push(run),
            }
        }
        if !joined.is_empty() {
            let id = self.pool.place(joined, repair);
            self.note(id, range, false, versions);
        }
    }

    fn ask(&mut self) {
        let range = self.range(200);
        match self.random.below(3) {
            0 if !self.is_busy(range, true) => {
                let id = self.pool.read(range.start, range.count);
                let number = |block| match self.newest.get(&block) {
                    Some(version) if !version.discard => version.stamp,
                    _ => 0,
                };
                let expected = range.blocks().map(|block| contents(block, number(block))).collect();
                self.questions.insert(id, Question::Read(range, expected));
            }
            1 if !self.is_busy(range, true) => {
                let id = self.pool.submit(Request::Fetch { volume: VOLUME, at: None, range });
                let expected = range.blocks().map(|block| self.newest.get(&block).copied()).collect();
                self.questions.insert(id, Question::Fetch(range, expected));
            }
            2 => {
                let since = self.random.below(self.next_stamp);
                let start = self.random.below(BLOCKS);
                let (volume, stamp) = (VOLUME, Stamp::from_u64(since));
                let id = self.pool.submit(Request::Changed { volume, at: None, since: stamp, start });
                let known = self.acknowledged.clone();
                self.questions.insert(id, Question::Changed { since, start, known });
            }
            _ => {}
        }
    }

    fn collect(&mut self) {
        for (id, answer) in std::mem::take(&mut self.pool.answers) {
            let reply = answer.unwrap();
            if let Some(Pending { versions, .. }) = self.changes.remove(&id) {
                assert_eq!(reply, Reply::Done);
                for (block, version) in versions {
                    raise(&mut self.acknowledged, block, version);
                }
                continue;
            }
            match self.questions.remove(&id) {
                Some(Question::Read(range, expected)) => {
                    assert!(blocks_of(reply) == expected, "wrong data in {range}");
                }
                Some(Question::Fetch(range, expected)) => check_fetched(reply, range, &expected),
                Some(Question::Changed { since, start, known }) => {
                    self.check_changed(reply, since, start, &known);
                }
                None => {}
            }
        }
    }

    fn check_changed(&self, reply: Reply, since: u64, start: u64, known: &BTreeMap<u64, Version>) {
        let Reply::Changed(page) = reply else { panic!("{reply:?}") };
        let until = page.next.unwrap_or(BLOCKS);
        assert!(until > start && (page.next.is_none() || until < BLOCKS));
        let mut found = BTreeMap::new();
        let mut end = start;
        for run in &page.versions {
            assert!(run.range.start >= end && run.range.end() <= until, "out of order: {page:?}");
            end = run.range.end();
            for (at, block) in run.range.blocks().enumerate() {
                let stamp = run.stamp.plus(at as u64).as_u64();
                assert!(stamp > since);
                assert_eq!(self.history.get(&(block, stamp)), Some(&run.discard), "block {block} at {stamp}");
                found.insert(block, stamp);
            }
        }
        for (block, version) in known.range(start..until) {
            if version.stamp <= since || version.faint {
                continue;
            }
            let found = found.get(block).copied();
            assert!(
                found.is_some_and(|stamp| stamp >= version.stamp),
                "block {block}: {found:?}, not {version:?}"
            );
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..18 => self.live(false),
            18..28 => self.live(true),
            28..52 => self.place(),
            52..72 => self.ask(),
            72..75 => self.pool.store.request_checkpoint(),
            75 => self.pool.store.idle(),
            76 if self.random.one_in(3) => {
                if self.pulled {
                    self.settle();
                    self.pool.store.end_pull(VOLUME);
                } else {
                    self.stable_at_pull = self.stable;
                    self.pool.store.begin_pull(VOLUME, Stamp::ZERO);
                }
                self.pulled = !self.pulled;
            }
            77 if self.random.one_in(2) => {
                let pending = self.changes.values().filter(|change| change.live);
                let stamps = pending.flat_map(|change| &change.versions).map(|(_, version)| version.stamp);
                self.stable = self.stable.max(stamps.min().unwrap_or(self.next_stamp) - 1);
                let stable = Stamp::from_u64(self.stable);
                self.pool.store.note_progress(VOLUME, VolumeProgress { committed: stable, stable });
            }
            78 if self.random.one_in(3) => {
                self.settle();
                let seed = self.random.next();
                let pool = std::mem::replace(&mut self.pool, Pool::with_volume(1 << 14, 1, 0));
                let (image, meta) = pool.close();
                assert_image_sound(&image, &meta);
                self.pool = Pool::open(image, meta, seed, 1).unwrap();
                self.pulled = false;
            }
            79..86 => {
                self.pool.background();
            }
            _ => self.pool.turn(),
        }
        self.collect();
    }

    fn settle(&mut self) {
        self.pool.settle();
        self.collect();
        assert!(self.changes.is_empty() && self.questions.is_empty());
    }

    fn finish(&mut self) {
        self.settle();
        self.pool.store.request_checkpoint();
        self.settle();
        self.pool.assert_sound();
        let used = self.newest.values().filter(|version| !version.discard).count() as u64;
        assert_eq!(self.pool.store.volume(VOLUME).unwrap().blocks_used, used);
        assert_eq!(self.pool.store.statistics().blocks_used, used, "blocks leaked");
        for start in (0..BLOCKS).step_by(250) {
            let range = BlockRange::new(start, 250);
            let reply = self.pool.run(Request::Fetch { volume: VOLUME, at: None, range }).unwrap();
            let expected: Vec<_> = range.blocks().map(|block| self.newest.get(&block).copied()).collect();
            check_fetched(reply, range, &expected);
        }
    }
}

fn raise(versions: &mut BTreeMap<u64, Version>, block: u64, new: Version) {
    let present = versions.entry(block).or_insert(new);
    if new.stamp > present.stamp {
        *present = new;
    } else if new.stamp == present.stamp {
        present.faint &= new.faint;
    }
}

fn check_fetched(reply: Reply, range: BlockRange, expected: &[Option<Version>]) {
    let Reply::Fetched(FetchedBlocks { versions, crcs, segments, .. }) = reply else { panic!("{reply:?}") };
    let data = segments.concat();
    let mut data = data.chunks_exact(4096).zip(crcs);
    let mut found = BTreeMap::new();
    for run in versions {
        for (at, block) in run.range.blocks().enumerate() {
            let stamp = run.stamp.plus(at as u64).as_u64();
            assert!(found.insert(block, (stamp, run.discard)).is_none());
            if !run.discard {
                let (data, crc) = data.next().unwrap();
                assert_eq!(trivet_model::block_crc(data), crc);
                assert!(data == contents(block, stamp), "wrong data in block {block}");
            }
        }
    }
    assert!(data.next().is_none());
    for (block, expected) in range.blocks().zip(expected) {
        let found = found.get(&block).copied();
        let wanted = expected.map(|version| (version.stamp, version.discard));
        let may_be_gone = expected.is_some_and(|version| version.faint) && found.is_none();
        assert!(found == wanted || may_be_gone, "block {block}: {found:?}, not {expected:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_highest_stamp_stands_in_any_order(seed in any::<u64>()) {
        let mut world = World::new(seed);
        for _ in 0..1200 {
            world.step();
        }
        world.finish();
    }
}

fn run(start: u64, count: u32, stamp: u64, discard: bool) -> TailExtent {
    TailExtent { range: BlockRange::new(start, count), stamp: Stamp::from_u64(stamp), discard }
}

/// Where the device holds a block with these contents.
fn find(pool: &Pool, contents: &[u8]) -> u64 {
    let image = pool.disk.image();
    let mut block = [0; 4096];
    let holds = |offset: &u64| {
        image.read(*offset, &mut block);
        block == *contents
    };
    (0..image.length()).step_by(4096).find(holds).unwrap()
}

fn verify(pool: &mut Pool, range: BlockRange) -> VerifiedBlocks {
    verified(pool, range, false)
}

fn stamps(pool: &mut Pool, range: BlockRange) -> VerifiedBlocks {
    verified(pool, range, true)
}

fn verified(pool: &mut Pool, range: BlockRange, stamps_only: bool) -> VerifiedBlocks {
    match pool.run(Request::Verify { volume: VOLUME, at: None, range, stamps_only }) {
        Ok(Reply::Verified(found)) => found,
        other => panic!("{other:?}"),
    }
}

fn done(pool: &mut Pool, id: RequestId) {
    pool.settle();
    assert_eq!(pool.answers.remove(&id), Some(Ok(Reply::Done)));
}

#[test]
fn a_repair_takes_the_place_of_a_block_that_cannot_be_read() {
    for checkpointed in [false, true] {
        let mut pool = Pool::with_volume(1 << 14, 100, 1);
        pool.write(0, &[1, 2, 3, 4], Stamp::from_u64(1), false);
        pool.settle();
        if checkpointed {
            pool.store.request_checkpoint();
            pool.settle();
        }
        let offset = find(&pool, &contents(2, 3));
        pool.disk.flip_bit(offset + 77, 1);
        for request in [
            Request::Read { volume: VOLUME, at: None, range: BlockRange::new(0, 4) },
            Request::Fetch { volume: VOLUME, at: None, range: BlockRange::new(0, 4) },
        ] {
            let damaged = pool.run(request);
            assert!(matches!(damaged, Err(RequestError::Checksum { block: 2, .. })), "{damaged:?}");
        }
        let errors = pool.store.statistics().checksum_errors;
        let verified = verify(&mut pool, BlockRange::new(0, 100));
        assert_eq!((&verified.versions, verified.crcs.len()), (&vec![run(0, 4, 1, false)], 4));
        assert_eq!(verified.failed, [BlockRange::new(2, 1)], "the others are answered for");
        assert_eq!(pool.store.statistics().checksum_errors, errors + 1);
        let by_map = VerifiedBlocks { failed: Vec::new(), ..verified };
        assert_eq!(stamps(&mut pool, BlockRange::new(0, 100)), by_map, "nothing is read for stamps");
        assert_eq!(pool.store.statistics().checksum_errors, errors + 1);
        let ordinary = pool.place(vec![run(2, 1, 3, false)], false);
        done(&mut pool, ordinary);
        assert!(pool.read_now(2, 1).is_err(), "an equal stamp changes nothing");
        let repair = pool.place(vec![run(1, 3, 2, false)], true);
        done(&mut pool, repair);
        assert_eq!(pool.read_now(2, 1).unwrap(), [contents(2, 3)]);
        for _ in 0..2 {
            pool.store.request_checkpoint();
            pool.settle();
            assert_eq!(pool.read_now(2, 1).unwrap(), [contents(2, 3)]);
            assert_eq!(pool.store.statistics().blocks_used, 4);
            pool.assert_sound();
        }
        let verified = verify(&mut pool, BlockRange::new(0, 100));
        assert_eq!((verified.versions, verified.crcs.len()), (vec![run(0, 4, 1, false)], 4));
        assert_eq!(verified.failed, []);
    }
}

#[test]
fn a_scrub_is_told_every_block_that_is_bad_and_tombstones_too() {
    let mut pool = Pool::with_volume(1 << 14, 100, 1);
    pool.write(0, &[1, 2, 3, 4, 5, 6], Stamp::from_u64(1), false);
    pool.write(10, &[7], Stamp::from_u64(7), false);
    let range = BlockRange::new(1, 1);
    pool.submit(Request::Discard { volume: VOLUME, range, stamp: Stamp::from_u64(8), stable: false });
    pool.settle();
    for (block, fill) in [(3, 4), (4, 5), (10, 7)] {
        let offset = find(&pool, &contents(block, fill));
        pool.disk.flip_bit(offset + 5, 3);
    }
    let verified = verify(&mut pool, BlockRange::new(0, 20));
    let (first, rest) = (run(0, 1, 1, false), run(2, 4, 3, false));
    assert_eq!(verified.versions, [first, run(1, 1, 8, true), rest, run(10, 1, 7, false)]);
    assert_eq!(verified.failed, [BlockRange::new(3, 2), BlockRange::new(10, 1)]);
}

#[test]
fn a_device_error_fails_the_blocks_read_with_it_and_no_others() {
    let mut pool = Pool::with_volume(1 << 14, 100, 1);
    pool.write(0, &[1, 2], Stamp::from_u64(1), false);
    pool.settle();
    // Apart from the others in the pool.
    pool.write(50, &[9], Stamp::from_u64(3), false);
    pool.settle();
    pool.write(4, &[5], Stamp::from_u64(4), false);
    pool.settle();
    pool.disk.inject(Fault::ReadError, 0);
    let verified = verify(&mut pool, BlockRange::new(0, 20));
    assert_eq!(verified.versions, [run(0, 2, 1, false), run(4, 1, 4, false)]);
    assert_eq!(verified.failed, [BlockRange::new(0, 2)], "of what was read in one go");
    assert!(pool.store.statistics().failed.is_none(), "a read error stops no pool");
}

#[test]
fn a_discard_that_left_no_trace_stands_against_an_older_place() {
    let mut pool = Pool::with_volume(1 << 14, 1000, 1);
    pool.store.begin_pull(VOLUME, Stamp::ZERO);
    let range = BlockRange::new(0, 500);
    pool.submit(Request::Discard { volume: VOLUME, range, stamp: Stamp::from_u64(100), stable: false });
    pool.settle();
    pool.store.request_checkpoint();
    pool.settle();
    let place = pool.place(vec![run(10, 2, 5, false), run(600, 1, 7, false)], false);
    pool.settle();
    assert_eq!(pool.answers.remove(&place), Some(Ok(Reply::Done)));
    assert_eq!(pool.read_now(10, 2).unwrap(), [contents(10, 0), contents(11, 0)]);
    assert_eq!(pool.read_now(600, 1).unwrap(), [contents(600, 7)]);
    pool.store.end_pull(VOLUME);
    let (image, meta) = pool.close();
    let mut pool = Pool::open(image, meta, 1, 1).unwrap();
    assert_eq!(pool.read_now(10, 1).unwrap(), [contents(10, 0)], "not after a restart either");
    // What another member may hold an older version of has a trace from now on.
    let changed =
        pool.run(Request::Changed { volume: VOLUME, at: None, since: Stamp::ZERO, start: 0 }).unwrap();
    let Reply::Changed(page) = changed else { panic!("{changed:?}") };
    assert_eq!(page.versions, [run(10, 2, 110, true), run(600, 1, 7, false)]);
}

#[test]
fn a_discard_of_what_was_written_since_the_last_checkpoint_leaves_a_trace() {
    for count in [4, 500] {
        let mut pool = Pool::with_volume(1 << 14, 1000, 1);
        pool.write(1, &[1], Stamp::from_u64(1), false);
        pool.settle();
        let range = BlockRange::new(0, count);
        pool.submit(Request::Discard { volume: VOLUME, range, stamp: Stamp::from_u64(100), stable: false });
        pool.settle();
        pool.store.request_checkpoint();
        pool.settle();
        let changed = pool
            .run(Request::Changed { volume: VOLUME, at: None, since: Stamp::from_u64(1), start: 0 })
            .unwrap();
        let Reply::Changed(page) = changed else { panic!("{changed:?}") };
        assert_eq!(page.versions, [run(1, 1, 101, true)]);
    }
}

#[test]
fn a_full_pool_refuses_a_place_and_goes_on() {
    let mut pool = Pool::with_volume(1024, 4096, 3);
    let mut refused = 0;
    for block in (0..1400).step_by(100) {
        let id = pool.place(vec![run(block, 100, block + 1, false)], false);
        pool.settle();
        match pool.answers.remove(&id).unwrap() {
            Ok(_) => assert_eq!(refused, 0),
            Err(RequestError::NoSpace { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(refused, 4);
    let tombstones = pool.place(vec![run(0, 500, 3000, true)], false);
    done(&mut pool, tombstones);
    let again = pool.place(vec![run(1100, 100, 1101, false)], false);
    done(&mut pool, again);
    assert_eq!(pool.read_now(1100, 1).unwrap(), [contents(1100, 1101)]);
    pool.assert_sound();
}

#[test]
fn regions_that_have_not_changed_are_passed_over() {
    let blocks = 1 << 22;
    let mut pool = Pool::with_volume(1 << 14, blocks, 3);
    for (at, block) in [(1, 5), (2, 3_000_000), (3, 3_000_001)] {
        pool.write(block, &[at], Stamp::from_u64(at), false);
    }
    pool.settle();
    for _ in 0..2 {
        let mut start = Some(0);
        let (mut pages, mut found) = (0, Vec::new());
        while let Some(from) = start {
            let since = Stamp::from_u64(1);
            let changed =
                pool.run(Request::Changed { volume: VOLUME, at: None, since, start: from }).unwrap();
            let Reply::Changed(page) = changed else { panic!("{changed:?}") };
            found.extend(page.versions);
            start = page.next;
            pages += 1;
        }
        assert_eq!(found, [run(3_000_000, 2, 2, false)]);
        assert!(pages < 10, "{pages} pages for one region");
        pool.store.request_checkpoint();
        pool.settle();
        let (image, meta) = pool.close();
        pool = Pool::open(image, meta, 1, 1).unwrap();
    }
}
