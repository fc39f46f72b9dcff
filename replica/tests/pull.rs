//! A member that comes back, pulling from a source while both are written: two real stores on
//! simulated devices, and the real walk between them.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod pool;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use pool::{Pool, Random, VOLUME, contents};
use proptest::prelude::*;
use trivet_model::{BlockRange, Generation, Stamp};
use trivet_replica::pull::{Output, Pace, Pull, PullOrder};
use trivet_replica::store::{FetchedBlocks, Reply, Request, RequestId, TailExtent};
use trivet_wire::{BlockData, Message, PullState, TailEntry};

const BLOCKS: u64 = 20_000;

/// A write or discard; contents are numbered by stamps.
#[derive(Clone, Copy, Debug)]
struct Change {
    range: BlockRange,
    stamp: u64,
    discard: bool,
}

fn submit(pool: &mut Pool, change: Change) -> RequestId {
    let Change { range, stamp, discard } = change;
    let first = Stamp::from_u64(stamp);
    if discard {
        return pool.submit(Request::Discard { volume: VOLUME, range, stamp: first, stable: false });
    }
    let numbers: Vec<u64> = (stamp..).take(range.count as usize).collect();
    pool.write(range.start, &numbers, first, false)
}

struct World {
    random: Random,
    source: Pool,
    target: Pool,
    next_stamp: u64,
    /// Sent and not yet received: the links are slow, and not equally so.
    to_source: VecDeque<Change>,
    to_target: VecDeque<Change>,
    pull: Option<Pull>,
    pace: Pace,
    now: Duration,
    since: u64,
    floor: u64,
    asked: BTreeMap<RequestId, u64>,
    submitted: BTreeMap<RequestId, u64>,
    /// Versions that only the target ever had: block and stamp.
    lost: BTreeSet<(u64, u64)>,
    reported: BTreeSet<u64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let tagged = seed % 2 == 1;
        Self {
            source: Pool::with_volume_that(1 << 16, BLOCKS, random.next(), tagged),
            target: Pool::with_volume_that(1 << 16, BLOCKS, random.next(), tagged),
            random,
            next_stamp: 1,
            to_source: VecDeque::new(),
            to_target: VecDeque::new(),
            pull: None,
            pace: Pace::default(),
            now: Duration::ZERO,
            since: 0,
            floor: 0,
            asked: BTreeMap::new(),
            submitted: BTreeMap::new(),
            lost: BTreeSet::new(),
            reported: BTreeSet::new(),
        }
    }

    fn change(&mut self) -> Change {
        let discard = self.random.one_in(4);
        let most = if discard { 600 } else { 30 };
        let count = if self.random.one_in(2) { 1 } else { 1 + self.random.below(most) };
        let span = if self.random.one_in(2) { BLOCKS } else { 100 };
        let start = self.random.below(span);
        let range = BlockRange::new(start, u32::try_from(count.min(BLOCKS - start)).unwrap());
        let stamp = self.next_stamp;
        self.next_stamp += u64::from(range.count);
        Change { range, stamp, discard }
    }

    fn settle(&mut self) {
        for pool in [&mut self.source, &mut self.target] {
            pool.settle();
            assert!(pool.answers.values().all(Result::is_ok));
            pool.answers.clear();
            if self.random.one_in(2) {
                pool.store.request_checkpoint();
                pool.settle();
            }
        }
    }

    /// What both have, what only the source has, what only the target has and nobody acknowledged.
    fn history(&mut self) {
        if self.random.one_in(4) {
            // A new replica: it has nothing.
            for _ in 0..60 {
                let change = self.change();
                submit(&mut self.source, change);
            }
            self.settle();
        } else {
            for _ in 0..40 {
                let change = self.change();
                submit(&mut self.source, change);
                submit(&mut self.target, change);
            }
            self.settle();
            self.since = self.next_stamp - 1;
            for _ in 0..self.random.below(40) {
                let change = self.change();
                let (on_source, on_target) = [(true, false), (true, true), (false, true)]
                    [usize::try_from(self.random.below(3)).unwrap()];
                if on_source {
                    submit(&mut self.source, change);
                }
                if on_target {
                    submit(&mut self.target, change);
                }
                if !on_source {
                    self.lost.extend(change.range.blocks().zip(change.stamp..));
                }
                if self.random.one_in(4) {
                    self.settle();
                }
            }
            self.settle();
        }
        self.next_stamp += self.random.below(5);
        self.floor = self.next_stamp;
    }

    fn begin(&mut self) {
        self.target.store.begin_pull(VOLUME, Stamp::from_u64(self.floor));
        self.pull = Some(Pull::new(
            PullOrder {
                volume: VOLUME,
                blocks: BLOCKS,
                since: Stamp::from_u64(self.since),
                floor: Stamp::from_u64(self.floor),
                generation: Generation::ZERO,
            },
            &self.target.store.snapshots(VOLUME),
        ));
    }

    fn end(&mut self) {
        self.pull = None;
        self.asked.clear();
        self.submitted.clear();
        self.target.store.end_pull(VOLUME);
    }

    fn live(&mut self) {
        let change = self.change();
        self.to_source.push_back(change);
        self.to_target.push_back(change);
    }

    fn drive(&mut self) {
        let Some(pull) = &mut self.pull else { return };
        self.now += Duration::from_micros(self.random.below(2000));
        if self.random.one_in(3) {
            self.pace.note_foreground(self.now);
        }
        let mut out = Vec::new();
        pull.poll(self.now, &mut self.pace, || self.target.store.snapshots(VOLUME), &mut out);
        for output in out {
            match output {
                Output::Ask(id, message) => {
                    let request = match message {
                        Message::Changed { since, start } => {
                            Request::Changed { volume: VOLUME, at: None, since, start }
                        }
                        Message::Fetch { range } => Request::Fetch { volume: VOLUME, at: None, range },
                        other => panic!("{other:?}"),
                    };
                    let request = self.source.submit(request);
                    self.asked.insert(request, id);
                }
                Output::Submit(id, request) => {
                    let request = self.target.submit(request);
                    self.submitted.insert(request, id);
                }
            }
        }
        for (request, answer) in std::mem::take(&mut self.source.answers) {
            let reply = answer.unwrap();
            if let Some(id) = self.asked.remove(&request) {
                pull.source_answered(id, message(reply));
            }
        }
        for (request, answer) in std::mem::take(&mut self.target.answers) {
            let reply = answer.unwrap();
            if let Some(id) = self.submitted.remove(&request) {
                pull.store_answered(id, Ok(reply));
            }
        }
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0..2 if self.next_stamp < self.floor + 4000 => self.live(),
            2..7 => {
                if let Some(change) = self.to_source.pop_front() {
                    submit(&mut self.source, change);
                }
            }
            7..12 => {
                if let Some(change) = self.to_target.pop_front() {
                    submit(&mut self.target, change);
                }
            }
            12..16 => {
                self.source.background();
            }
            16..20 => {
                self.target.background();
            }
            20..25 => self.source.turn(),
            25..30 => self.target.turn(),
            30 if self.random.one_in(4) => self.source.store.request_checkpoint(),
            31 if self.random.one_in(4) => self.target.store.request_checkpoint(),
            _ => self.drive(),
        }
        if let Some(pull) = &mut self.pull
            && self.random.one_in(20)
        {
            let report = pull.report();
            self.reported.extend(report.diverged.iter().flat_map(|range| range.blocks()));
        }
    }

    /// Goes on until the pull says that it has finished.
    fn run(&mut self) {
        self.begin();
        let mut attempts = 0;
        for step in 0.. {
            assert!(step < 200_000, "the pull does not end");
            self.step();
            let Some(pull) = &mut self.pull else { unreachable!() };
            if pull.is_over() {
                let report = pull.report();
                self.reported.extend(report.diverged.iter().flat_map(|range| range.blocks()));
                if report.state == PullState::Finished {
                    assert_eq!((report.position, report.detail.as_str()), (BLOCKS, ""));
                    break;
                }
                assert_eq!(report.state, PullState::Running, "{report:?}");
            }
            if attempts < 2 && self.random.one_in(3000) {
                // Broken off in the middle, and begun anew; at times the target was restarted.
                attempts += 1;
                self.end();
                if self.random.one_in(2) {
                    let (seed, boot) = (self.random.next(), 1);
                    self.target.settle();
                    let pool = std::mem::replace(&mut self.target, Pool::with_volume(1 << 14, 1, 0));
                    let (image, meta) = pool.close();
                    self.target = Pool::open(image, meta, seed, boot).unwrap();
                }
                self.begin();
            }
        }
        self.end();
        for change in std::mem::take(&mut self.to_source) {
            submit(&mut self.source, change);
        }
        for change in std::mem::take(&mut self.to_target) {
            submit(&mut self.target, change);
        }
        self.settle();
    }

    fn check(&mut self) {
        // In the memtables, even a discard of nothing can be seen.
        for pool in [&mut self.source, &mut self.target] {
            pool.store.request_checkpoint();
            pool.settle();
            pool.assert_sound();
        }
        for start in (0..BLOCKS).step_by(250) {
            let range = BlockRange::new(start, 250);
            let (source, target) = (versions(&mut self.source, range), versions(&mut self.target, range));
            for block in range.blocks() {
                let (ours, theirs) = (target.get(&block), source.get(&block));
                if ours == theirs || (theirs.is_none() && ours.is_some_and(|(_, discard)| *discard)) {
                    continue;
                }
                let context = format!(
                    "block {block}: {ours:?}, not {theirs:?}, since {}, floor {}",
                    self.since, self.floor
                );
                // A live discard of what the source never had may have left no trace here.
                let gone =
                    ours.is_none() && theirs.is_some_and(|(stamp, discard)| *discard && *stamp >= self.floor);
                assert!(!gone, "{context}: no trace");
                assert!(ours.is_some_and(|(stamp, _)| self.lost.contains(&(block, *stamp))), "{context}");
                assert!(self.reported.contains(&block), "{context}: not reported");
            }
        }
    }
}

fn message(reply: Reply) -> Message {
    match reply {
        Reply::Changed(page) => Message::ChangedReply { entries: entries(page.versions), next: page.next },
        Reply::Fetched(FetchedBlocks { versions, crcs, tags, segments }) => {
            Message::FetchReply { versions: entries(versions), data: BlockData::new(crcs, tags, segments) }
        }
        other => panic!("{other:?}"),
    }
}

fn entries(versions: Vec<TailExtent>) -> Vec<TailEntry> {
    let entry = |run: TailExtent| TailEntry { range: run.range, stamp: run.stamp, discard: run.discard };
    versions.into_iter().map(entry).collect()
}

/// Stamp and kind of every block that has a version; its contents are right.
fn versions(pool: &mut Pool, range: BlockRange) -> BTreeMap<u64, (u64, bool)> {
    let reply = pool.run(Request::Fetch { volume: VOLUME, at: None, range }).unwrap();
    let Reply::Fetched(FetchedBlocks { versions, segments, .. }) = reply else { panic!("{reply:?}") };
    let data = segments.concat();
    let mut data = data.chunks_exact(4096);
    let mut found = BTreeMap::new();
    for run in versions {
        for (block, stamp) in run.range.blocks().zip(run.stamp.as_u64()..) {
            found.insert(block, (stamp, run.discard));
            assert!(run.discard || data.next().unwrap() == contents(block, stamp), "block {block}");
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn both_sides_are_equal_but_for_what_diverged_and_was_told(seed in any::<u64>()) {
        let mut world = World::new(seed);
        world.history();
        world.run();
        world.check();
    }
}
