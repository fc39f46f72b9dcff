//! A pool with volumes and clones, and all that is done to them.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{BlockRange, SnapshotId, Stamp};
use trivet_replica::pull::{Flatten, Output, Pace};
use trivet_replica::store::{
    ANCESTORS_MAX, ChangedPage, FetchedBlocks, Parent, Reply, Request, RequestError, RequestId, Snapshot,
    TailExtent,
};

use super::oracle::{Oracle, Volume, name};
use super::pool::{self, Pool, Random, contents};
use super::{BLOCKS, BLOCKS_MAX, VOLUMES_MAX};

/// A clone being flattened.
struct Flattening {
    index: usize,
    job: Flatten,
    asked: HashMap<RequestId, u64>,
}

pub(crate) struct World {
    pub(crate) pool: Pool,
    pub(crate) oracle: Oracle,
    pub(crate) random: Random,
    flattening: Option<Flattening>,
    /// The volumes are encrypted: half of all seeds say so.
    pub(crate) tagged: bool,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let (image, meta) = pool::formatted(1 << 16);
        let pool = Pool::open(image, meta, seed, 1).unwrap();
        let mut world = Self {
            pool,
            oracle: Oracle::default(),
            random: Random(seed),
            flattening: None,
            tagged: seed % 2 == 1,
        };
        world.create(None);
        world
    }

    pub(crate) fn create(&mut self, parent: Option<(usize, u64, SnapshotId)>) {
        let index = self.oracle.volumes.len();
        let blocks = parent.map_or(BLOCKS, |(of, ..)| self.oracle.volumes[of].blocks);
        let of = parent.map(|(of, _, snapshot)| Parent { volume: name(of), snapshot });
        let (volume, tagged) = (name(index), self.tagged);
        let create = Request::CreateVolume { volume, blocks, parent: of, tagged };
        assert_eq!(self.pool.run(create), Ok(Reply::Done));
        // As the record does it: the clone's generation is above the cut's.
        let above = |(_, cut, _)| {
            let generation = Stamp::from_u64(cut).generation().next().unwrap();
            Stamp::new(generation, 0).unwrap().as_u64()
        };
        self.oracle.volumes.push(Volume {
            blocks,
            versions: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            stamp: parent.map_or(0, above),
            tie: parent.map(|(of, cut, _)| (of, cut)),
            alive: true,
            half_flat: false,
        });
    }

    pub(crate) fn settle(&mut self) {
        self.pool.settle();
        let asked = self.flattening.as_ref().map(|flattening| &flattening.asked);
        let jobs = |id: &RequestId| asked.is_some_and(|asked| asked.contains_key(id));
        self.pool.answers.retain(|id, answer| {
            assert!(
                jobs(id) || *answer == Ok(Reply::Done),
                "what was asked is done: {:?}",
                answer.as_ref().err()
            );
            jobs(id)
        });
    }

    pub(crate) fn read(
        &mut self,
        index: usize,
        at: Option<SnapshotId>,
        range: BlockRange,
    ) -> Result<Reply, RequestError> {
        self.pool.run(Request::Read { volume: name(index), at, range })
    }

    fn assert_shows(&mut self, index: usize, cut: u64, range: BlockRange) {
        let at = self.oracle.volumes[index].snapshots.get(&cut).copied();
        let blocks: Vec<u64> = range.blocks().collect();
        for blocks in blocks.chunks(IO_BLOCKS_MAX as usize) {
            let range = BlockRange::new(blocks[0], u32::try_from(blocks.len()).unwrap());
            let read = self.read(index, at, range).unwrap();
            if let Reply::Blocks(read) = &read {
                let present = read.crcs.iter().flatten().count();
                assert_eq!(read.tags.len(), if self.tagged { present } else { 0 }, "volume {index}");
            }
            for (block, found) in blocks.iter().zip(pool::blocks_of(read)) {
                let number = self.oracle.shown(index, *block, cut).map_or(0, |(_, number)| number);
                assert!(found == contents(*block, number), "volume {index} block {block} as of {cut}");
            }
        }
    }

    /// The versions that are told are those that are shown.
    fn assert_tells(&mut self, index: usize, cut: u64, range: BlockRange) {
        let at = self.oracle.volumes[index].snapshots.get(&cut).copied();
        let fetch = Request::Fetch { volume: name(index), at, range };
        let Reply::Fetched(FetchedBlocks { versions, .. }) = self.pool.run(fetch).unwrap() else {
            panic!("a fetch answers versions");
        };
        let found = data_stamps(&versions);
        let shown = self.shown_data(index, cut, range, 0);
        assert_eq!(found, shown, "volume {index} as of {cut}");
    }

    /// What changed since a stamp, across the whole lineage.
    fn assert_changed(&mut self, index: usize, cut: u64, since: u64) {
        let changed = self.changed(index, cut, since);
        let found = data_stamps(&changed);
        let whole = self.whole(index);
        assert_eq!(
            found,
            self.shown_data(index, cut, whole, since),
            "volume {index} as of {cut} since {since}"
        );
    }

    /// The versions newer than a stamp that a cut shows, discards among them.
    fn changed(&mut self, index: usize, cut: u64, since: u64) -> Vec<TailExtent> {
        let at = self.oracle.volumes[index].snapshots.get(&cut).copied();
        let (volume, since) = (name(index), Stamp::from_u64(since));
        let mut found = Vec::new();
        let mut next = Some(0);
        while let Some(start) = next {
            let changed = Request::Changed { volume, at, since, start };
            let Reply::Changed(ChangedPage { versions, next: after }) = self.pool.run(changed).unwrap()
            else {
                panic!("not what Changed is answered by");
            };
            assert!(versions.iter().all(|run| run.stamp > since));
            found.extend(versions);
            next = after;
        }
        found
    }

    fn whole(&self, index: usize) -> BlockRange {
        BlockRange::new(0, u32::try_from(self.oracle.volumes[index].blocks).unwrap())
    }

    fn shown_data(&self, index: usize, cut: u64, range: BlockRange, since: u64) -> BTreeMap<u64, u64> {
        let shown = |block| Some((block, self.oracle.shown(index, block, cut)?));
        let data =
            range.blocks().filter_map(shown).filter(|(_, (stamp, number))| *number > 0 && *stamp > since);
        data.map(|(block, (stamp, _))| (block, stamp)).collect()
    }

    pub(crate) fn change(&mut self, index: usize, range: BlockRange, discard: bool) {
        let mut number = || {
            self.oracle.written += 1;
            if discard { 0 } else { self.oracle.written }
        };
        let numbers: Vec<u64> = range.blocks().map(|_| number()).collect();
        self.put(index, range, &numbers);
    }

    /// Writes these contents under the next stamps; 0 discards, all of them or none.
    fn put(&mut self, index: usize, range: BlockRange, numbers: &[u64]) {
        let oracle = &mut self.oracle.volumes[index];
        let first = oracle.stamp + 1;
        oracle.stamp += u64::from(range.count);
        let places = range.blocks().zip(first..);
        oracle.versions.extend(places.zip(numbers.iter().copied()));
        let (volume, stamp) = (name(index), Stamp::from_u64(first));
        if numbers.iter().all(|number| *number == 0) {
            self.pool.submit(Request::Discard { volume, range, stamp, stable: false });
        } else {
            self.pool.write_to(volume, range.start, numbers, stamp, false);
        }
    }

    /// Writes what a snapshot shows over what has changed since, as an engine reverts a volume.
    fn revert(&mut self, index: usize, cut: u64) {
        let changed = self.changed(index, u64::MAX, cut);
        for range in changed.iter().map(|run| run.range) {
            self.assert_shows(index, cut, range);
            for block in range.blocks() {
                let number = self.oracle.shown(index, block, cut).map_or(0, |(_, number)| number);
                self.put(index, BlockRange::new(block, 1), &[number]);
            }
        }
        self.settle();
        for block in 0..self.oracle.volumes[index].blocks {
            let number = |cut| self.oracle.shown(index, block, cut).map_or(0, |(_, number)| number);
            assert_eq!(number(u64::MAX), number(cut), "volume {index} block {block}: a change was not told");
        }
    }

    fn grow(&mut self, index: usize) {
        let blocks = (self.oracle.volumes[index].blocks + self.random.below(40)).min(BLOCKS_MAX);
        self.oracle.volumes[index].blocks = blocks;
        assert_eq!(self.pool.run(Request::ResizeVolume { volume: name(index), blocks }), Ok(Reply::Done));
        let smaller = Request::ResizeVolume { volume: name(index), blocks: blocks - 1 };
        assert!(matches!(self.pool.run(smaller), Err(RequestError::BadSize { .. })));
    }

    pub(crate) fn snapshot(&mut self, index: usize) -> (u64, SnapshotId) {
        self.oracle.snapshots_taken += 1;
        let id = SnapshotId::from_bytes(u128::from(self.oracle.snapshots_taken).to_be_bytes());
        let volume = &mut self.oracle.volumes[index];
        volume.stamp += 1;
        volume.snapshots.insert(volume.stamp, id);
        let snapshot = Snapshot { id, cut: Stamp::from_u64(volume.stamp) };
        let cut = volume.stamp;
        let create = Request::CreateSnapshot { volume: name(index), snapshot };
        assert_eq!(self.pool.run(create), Ok(Reply::Done));
        (cut, id)
    }

    pub(crate) fn delete_snapshot(&mut self, index: usize, cut: u64) {
        let id = self.oracle.volumes[index].snapshots.remove(&cut).unwrap();
        let volume = name(index);
        assert_eq!(self.pool.run(Request::DeleteSnapshot { volume, id }), Ok(Reply::Done));
        let gone = self.read(index, Some(id), BlockRange::new(0, 1));
        assert_eq!(gone, Err(RequestError::NoSuchSnapshot(id)));
    }

    pub(crate) fn delete(&mut self, index: usize) {
        if self.oracle.volumes[index].half_flat {
            self.flatten(index);
        }
        self.oracle.volumes[index].alive = false;
        assert_eq!(self.pool.run(Request::DeleteVolume { volume: name(index) }), Ok(Reply::Done));
        let gone = self.read(index, None, BlockRange::new(0, 1));
        assert_eq!(gone, Err(RequestError::NoSuchVolume(name(index))));
    }

    fn begin_flattening(&mut self, index: usize) {
        self.oracle.volumes[index].half_flat = true;
        let job = Flatten::new(name(index), self.oracle.volumes[index].blocks);
        self.flattening = Some(Flattening { index, job, asked: HashMap::new() });
    }

    /// Goes on flattening a little; true at its end.
    fn pump(&mut self) -> bool {
        let Some(Flattening { index, job, asked }) = &mut self.flattening else { return true };
        let ready: Vec<RequestId> =
            asked.keys().copied().filter(|id| self.pool.answers.contains_key(id)).collect();
        for id in ready {
            job.store_answered(asked.remove(&id).unwrap(), self.pool.answers.remove(&id).unwrap());
        }
        assert_eq!(job.failure(), None);
        let mut out = Vec::new();
        job.poll(Duration::ZERO, &mut Pace::default(), &mut out);
        for output in out {
            let Output::Submit(id, request) = output else { panic!("it has nobody to ask") };
            asked.insert(self.pool.submit(request), id);
        }
        if job.is_over() {
            let index = *index;
            self.flattening = None;
            self.oracle.flattened(index);
            return true;
        }
        false
    }

    pub(crate) fn flatten(&mut self, index: usize) {
        if self.flattening.as_ref().is_some_and(|flattening| flattening.index != index) {
            self.end_flattening();
        }
        if self.flattening.is_none() {
            self.begin_flattening(index);
        }
        self.end_flattening();
    }

    fn end_flattening(&mut self) {
        while !self.pump() {
            self.settle();
        }
    }

    fn some_range(&mut self, blocks: u64) -> BlockRange {
        let span = if self.random.one_in(2) { 40 } else { blocks };
        let start = self.random.below(span);
        let count = 1 + if self.random.one_in(4) { self.random.below(60) } else { self.random.below(4) };
        BlockRange::new(start, u32::try_from(count.min(blocks - start)).unwrap())
    }

    pub(crate) fn operate(&mut self) {
        let alive = self.oracle.alive();
        let index = alive[usize::try_from(self.random.below(alive.len() as u64)).unwrap()];
        let range = self.some_range(self.oracle.volumes[index].blocks);
        let whole = self.whole(index);
        let cut = self.oracle.any_snapshot(index, &mut self.random.clone());
        let cut = cut.map_or(u64::MAX, |(cut, _)| cut);
        match self.random.below(100) {
            0..34 => self.change(index, range, false),
            34..44 => self.change(index, range, true),
            44 => self.change(index, whole, true),
            45..51 => drop(self.snapshot(index)),
            51..55 if cut < u64::MAX => self.delete_snapshot(index, cut),
            55..63 if alive.len() < VOLUMES_MAX && self.oracle.depth(index) < ANCESTORS_MAX => {
                let at = if cut < u64::MAX && self.random.one_in(2) {
                    (cut, self.oracle.volumes[index].snapshots[&cut])
                } else {
                    self.snapshot(index)
                };
                self.create(Some((index, at.0, at.1)));
                if self.random.one_in(3) {
                    self.delete_snapshot(index, at.0);
                }
            }
            63..66 if alive.len() > 2 => self.delete(index),
            66..69 => {
                let tied = self.oracle.volumes[index].tie.is_some();
                if tied && self.flattening.is_none() {
                    self.begin_flattening(index);
                }
            }
            69..79 => self.assert_shows(index, cut, range),
            79..82 => self.assert_tells(index, cut, range),
            82..84 => {
                let since = self.random.below(self.oracle.volumes[index].stamp + 1);
                let tie = self.oracle.volumes[index].tie.map_or(since, |(_, cut)| cut);
                let since = if self.random.one_in(2) { since } else { self.random.below(tie + 1) };
                self.assert_changed(index, cut, since);
            }
            84 => self.grow(index),
            85 if cut < u64::MAX => self.revert(index, cut),
            86..89 => self.pool.store.request_checkpoint(),
            89..92 => drop(self.pool.background()),
            92 => self.pool.store.idle(),
            _ => {
                self.pump();
            }
        }
    }

    pub(crate) fn restart(&mut self) {
        let power_lost = self.random.one_in(3);
        if power_lost {
            // What was done for users is stable; what is done for a clone that is flattened need not be.
            let first = name(self.oracle.alive()[0]);
            self.pool.run(Request::Flush { volume: first }).unwrap();
            for _ in 0..self.random.below(40) {
                self.pump();
                self.pool.turn();
                if self.random.one_in(3) {
                    self.pool.background();
                }
            }
        }
        self.flattening = None;
        let mut pool = self.take_pool();
        let meta = (*pool.meta).clone();
        let image = if power_lost { pool.disk.crash().into_image() } else { pool.disk.image().clone() };
        self.pool = Pool::open(image, meta, self.random.next(), if power_lost { 2 } else { 1 }).unwrap();
        // Whether the tie was cut before the end, the pool knows.
        for index in self.oracle.alive() {
            let known = self.pool.store.volume(name(index)).unwrap();
            if self.oracle.volumes[index].tie.is_some() && !known.tied {
                assert!(self.oracle.volumes[index].half_flat, "volume {index} has lost its parent");
                self.oracle.flattened(index);
            }
        }
    }

    /// The pool; an empty one stays.
    pub(crate) fn take_pool(&mut self) -> Pool {
        let (image, meta) = pool::formatted(1 << 16);
        std::mem::replace(&mut self.pool, Pool::open(image, meta, 1, 1).unwrap())
    }

    /// Everything that every volume and snapshot shows, and that nothing else is in use.
    pub(crate) fn check(&mut self) {
        self.settle();
        for round in 0..2 {
            for index in self.oracle.alive() {
                let cuts: Vec<u64> = self.oracle.volumes[index].snapshots.keys().copied().collect();
                for cut in cuts.into_iter().chain([u64::MAX]) {
                    self.assert_shows(index, cut, self.whole(index));
                }
            }
            if round == 0 {
                self.pool.store.request_checkpoint();
                self.settle();
                self.pool.assert_sound();
            }
        }
        if !self.oracle.volumes.iter().any(|volume| volume.half_flat) {
            assert_eq!(self.pool.store.statistics().blocks_used, self.oracle.used(), "blocks leaked");
        }
    }
}

fn data_stamps(versions: &[TailExtent]) -> BTreeMap<u64, u64> {
    let data = versions.iter().filter(|run| !run.discard);
    data.flat_map(|run| run.range.blocks().zip(run.stamp.as_u64()..)).collect()
}
