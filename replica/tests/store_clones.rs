//! Clones in the store, against an oracle that keeps every version of every volume: clones of clones, of
//! volumes that are used on, flattened while they are written, whose parents, snapshots and selves are
//! deleted, over checkpoints, restarts and losses of power.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod pool;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use pool::{Pool, Random, assert_image_sound, contents};
use proptest::prelude::*;
use trivet_model::{BlockRange, Generation, SnapshotId, Stamp, VolumeId};
use trivet_replica::pull::{Flatten, Output, Pace};
use trivet_replica::store::{
    ANCESTORS_MAX, ChangedPage, FetchedBlocks, Parent, Reply, Request, RequestError, RequestId, Snapshot,
    TailExtent,
};

const BLOCKS: u64 = 300;
const VOLUMES_MAX: usize = 6;

/// A volume as it must be: every version of every block by stamp, 0 for a discarded one.
#[derive(Clone, Debug)]
struct Volume {
    versions: BTreeMap<(u64, u64), u64>,
    snapshots: BTreeMap<u64, SnapshotId>,
    stamp: u64,
    /// What it is a clone of, as of which cut.
    tie: Option<(usize, u64)>,
    alive: bool,
    /// Some of what it inherited may be its own already.
    half_flat: bool,
}

#[derive(Default)]
struct Oracle {
    volumes: Vec<Volume>,
    /// Numbers contents, so that no two versions are alike.
    written: u64,
    snapshots_taken: u64,
}

fn name(index: usize) -> VolumeId {
    VolumeId::from_bytes((index as u128 + 1).to_be_bytes())
}

impl Oracle {
    fn alive(&self) -> Vec<usize> {
        (0..self.volumes.len()).filter(|index| self.volumes[*index].alive).collect()
    }

    /// The version of a block that a cut shows: its stamp and number.
    fn shown(&self, index: usize, block: u64, cut: u64) -> Option<(u64, u64)> {
        let volume = &self.volumes[index];
        let own = volume.versions.range((block, 0)..=(block, cut)).next_back();
        own.map(|((_, stamp), number)| (*stamp, *number)).or_else(|| {
            let (parent, cut) = volume.tie?;
            self.shown(parent, block, cut)
        })
    }

    /// The volumes that read from this one, and as of which cuts.
    fn children(&self, index: usize) -> impl Iterator<Item = (usize, u64)> + '_ {
        let tied = self.volumes.iter().enumerate();
        let tied = tied.filter_map(move |(child, volume)| {
            volume.tie.filter(|(parent, _)| *parent == index).map(|(_, cut)| (child, cut))
        });
        tied.filter(|(child, _)| self.is_needed(*child))
    }

    /// Whether it is there, or a clone reads from it.
    fn is_needed(&self, index: usize) -> bool {
        self.volumes[index].alive || self.children(index).next().is_some()
    }

    /// The cuts that show something to somebody.
    fn cuts(&self, index: usize) -> BTreeSet<u64> {
        let volume = &self.volumes[index];
        let mut cuts: BTreeSet<u64> = self.children(index).map(|(_, cut)| cut).collect();
        if volume.alive {
            cuts.extend(volume.snapshots.keys());
            cuts.insert(u64::MAX);
        }
        cuts
    }

    /// Pool blocks that all volumes need.
    fn used(&self) -> u64 {
        let of_volume = |index: usize| {
            let (volume, cuts) = (&self.volumes[index], self.cuts(index));
            let mut seen = BTreeSet::new();
            for block in 0..BLOCKS {
                for cut in &cuts {
                    let own = volume.versions.range((block, 0)..=(block, *cut)).next_back();
                    seen.extend(own.filter(|(_, number)| **number > 0).map(|(place, _)| *place));
                }
            }
            seen.len() as u64
        };
        (0..self.volumes.len()).filter(|index| self.is_needed(*index)).map(of_volume).sum()
    }

    fn depth(&self, index: usize) -> usize {
        self.volumes[index].tie.map_or(0, |(parent, _)| 1 + self.depth(parent))
    }

    /// What the volume inherited is its own.
    fn flattened(&mut self, index: usize) {
        let lowest = self.cuts(index).into_iter().next().unwrap_or(u64::MAX);
        let (parent, cut) = self.volumes[index].tie.unwrap();
        for block in 0..BLOCKS {
            let own = self.volumes[index].versions.range((block, 0)..=(block, lowest)).next_back();
            if own.is_none()
                && let Some((stamp, number)) =
                    self.shown(parent, block, cut).filter(|(_, number)| *number > 0)
            {
                self.volumes[index].versions.insert((block, stamp), number);
            }
        }
        let volume = &mut self.volumes[index];
        (volume.tie, volume.half_flat) = (None, false);
    }

    fn any_snapshot(&self, index: usize, random: &mut Random) -> Option<(u64, SnapshotId)> {
        let snapshots = &self.volumes[index].snapshots;
        let at = usize::try_from(random.below(snapshots.len().max(1) as u64)).unwrap();
        snapshots.iter().nth(at).map(|(cut, id)| (*cut, *id))
    }
}

/// A clone being flattened.
struct Flattening {
    index: usize,
    job: Flatten,
    asked: HashMap<RequestId, u64>,
}

struct World {
    pool: Pool,
    oracle: Oracle,
    random: Random,
    flattening: Option<Flattening>,
    /// The volumes are encrypted: half of all seeds say so.
    tagged: bool,
}

impl World {
    fn new(seed: u64) -> Self {
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

    fn create(&mut self, parent: Option<(usize, u64, SnapshotId)>) {
        let index = self.oracle.volumes.len();
        let of = parent.map(|(of, _, snapshot)| Parent { volume: name(of), snapshot });
        let (volume, tagged) = (name(index), self.tagged);
        let create = Request::CreateVolume { volume, blocks: BLOCKS, parent: of, tagged };
        assert_eq!(self.pool.run(create), Ok(Reply::Done));
        // As the record does it: the clone's generation is above the cut's.
        let above = |(_, cut, _)| {
            let generation = Stamp::from_u64(cut).generation().next().unwrap();
            Stamp::new(generation, 0).unwrap().as_u64()
        };
        self.oracle.volumes.push(Volume {
            versions: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            stamp: parent.map_or(0, above),
            tie: parent.map(|(of, cut, _)| (of, cut)),
            alive: true,
            half_flat: false,
        });
    }

    fn settle(&mut self) {
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

    fn read(
        &mut self,
        index: usize,
        at: Option<SnapshotId>,
        range: BlockRange,
    ) -> Result<Reply, RequestError> {
        self.pool.run(Request::Read { volume: name(index), at, range })
    }

    fn assert_shows(&mut self, index: usize, cut: u64, range: BlockRange) {
        let at = self.oracle.volumes[index].snapshots.get(&cut).copied();
        let read = self.read(index, at, range).unwrap();
        if let Reply::Blocks(read) = &read {
            let present = read.crcs.iter().flatten().count();
            assert_eq!(read.tags.len(), if self.tagged { present } else { 0 }, "volume {index}");
        }
        let found = pool::blocks_of(read);
        for (block, found) in range.blocks().zip(found) {
            let number = self.oracle.shown(index, block, cut).map_or(0, |(_, number)| number);
            assert!(found == contents(block, number), "volume {index} block {block} as of {cut}");
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
        let at = self.oracle.volumes[index].snapshots.get(&cut).copied();
        let (since_stamp, volume) = (Stamp::from_u64(since), name(index));
        let mut found = BTreeMap::new();
        let mut next = Some(0);
        while let Some(start) = next {
            let changed = Request::Changed { volume, at, since: since_stamp, start };
            let Reply::Changed(ChangedPage { versions, next: after }) = self.pool.run(changed).unwrap()
            else {
                panic!("not what Changed is answered by");
            };
            assert!(versions.iter().all(|run| run.stamp > since_stamp));
            found.extend(data_stamps(&versions));
            next = after;
        }
        let whole = BlockRange::new(0, u32::try_from(BLOCKS).unwrap());
        assert_eq!(
            found,
            self.shown_data(index, cut, whole, since),
            "volume {index} as of {cut} since {since}"
        );
    }

    fn shown_data(&self, index: usize, cut: u64, range: BlockRange, since: u64) -> BTreeMap<u64, u64> {
        let shown = |block| Some((block, self.oracle.shown(index, block, cut)?));
        let data =
            range.blocks().filter_map(shown).filter(|(_, (stamp, number))| *number > 0 && *stamp > since);
        data.map(|(block, (stamp, _))| (block, stamp)).collect()
    }

    fn change(&mut self, index: usize, range: BlockRange, discard: bool) {
        let first = self.oracle.volumes[index].stamp + 1;
        self.oracle.volumes[index].stamp += u64::from(range.count);
        let mut numbers = Vec::new();
        for (block, stamp) in range.blocks().zip(first..) {
            self.oracle.written += 1;
            let number = if discard { 0 } else { self.oracle.written };
            numbers.push(number);
            self.oracle.volumes[index].versions.insert((block, stamp), number);
        }
        let (volume, stamp) = (name(index), Stamp::from_u64(first));
        if discard {
            self.pool.submit(Request::Discard { volume, range, stamp, stable: false });
        } else {
            self.pool.write_to(volume, range.start, &numbers, stamp, false);
        }
    }

    fn snapshot(&mut self, index: usize) -> (u64, SnapshotId) {
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

    fn delete_snapshot(&mut self, index: usize, cut: u64) {
        let id = self.oracle.volumes[index].snapshots.remove(&cut).unwrap();
        let volume = name(index);
        assert_eq!(self.pool.run(Request::DeleteSnapshot { volume, id }), Ok(Reply::Done));
        let gone = self.read(index, Some(id), BlockRange::new(0, 1));
        assert_eq!(gone, Err(RequestError::NoSuchSnapshot(id)));
    }

    fn delete(&mut self, index: usize) {
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
        let job = Flatten::new(name(index), BLOCKS);
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

    fn flatten(&mut self, index: usize) {
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

    fn some_range(&mut self) -> BlockRange {
        let span = if self.random.one_in(2) { 40 } else { BLOCKS };
        let start = self.random.below(span);
        let count = 1 + if self.random.one_in(4) { self.random.below(60) } else { self.random.below(4) };
        BlockRange::new(start, u32::try_from(count.min(BLOCKS - start)).unwrap())
    }

    fn operate(&mut self) {
        let alive = self.oracle.alive();
        let index = alive[usize::try_from(self.random.below(alive.len() as u64)).unwrap()];
        let range = self.some_range();
        let whole = BlockRange::new(0, u32::try_from(BLOCKS).unwrap());
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
            84..88 => self.pool.store.request_checkpoint(),
            88..92 => drop(self.pool.background()),
            92 => self.pool.store.idle(),
            _ => {
                self.pump();
            }
        }
    }

    fn restart(&mut self) {
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
    fn take_pool(&mut self) -> Pool {
        let (image, meta) = pool::formatted(1 << 16);
        std::mem::replace(&mut self.pool, Pool::open(image, meta, 1, 1).unwrap())
    }

    /// Everything that every volume and snapshot shows, and that nothing else is in use.
    fn check(&mut self) {
        self.settle();
        for round in 0..2 {
            for index in self.oracle.alive() {
                let cuts: Vec<u64> = self.oracle.volumes[index].snapshots.keys().copied().collect();
                for cut in cuts.into_iter().chain([u64::MAX]) {
                    self.assert_shows(index, cut, BlockRange::new(0, 256));
                    self.assert_shows(index, cut, BlockRange::new(256, u32::try_from(BLOCKS - 256).unwrap()));
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

fn run(seed: u64, operations: u32) {
    let mut world = World::new(seed);
    for _ in 0..operations {
        world.operate();
        // The engine orders what overlaps; here everything is done one after the other now and then.
        world.settle();
        if world.random.one_in(60) {
            world.restart();
            if world.random.one_in(3) {
                world.check();
            }
        }
    }
    for index in world.oracle.alive() {
        if world.oracle.volumes[index].half_flat {
            world.flatten(index);
        }
    }
    world.check();
    while let Some(index) = world.oracle.alive().first().copied() {
        world.delete(index);
        if world.random.one_in(3) {
            world.check();
        }
    }
    world.pool.store.request_checkpoint();
    world.settle();
    world.pool.assert_sound();
    assert_eq!(world.pool.store.statistics().blocks_used, 0, "blocks leaked");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 144, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn clones_agree_with_an_oracle_that_keeps_every_version(seed in any::<u64>()) {
        run(seed, 700);
    }
}

/// A volume with its first blocks written, a snapshot of it, and a clone of that.
fn with_clone(written: u64) -> (World, SnapshotId) {
    let mut world = World::new(7);
    world.change(0, BlockRange::new(0, u32::try_from(written).unwrap()), false);
    world.settle();
    let (cut, id) = world.snapshot(0);
    world.create(Some((0, cut, id)));
    (world, id)
}

#[test]
fn a_clone_writes_no_data_and_no_map() {
    let (mut world, _) = with_clone(200);
    let used = world.pool.store.statistics().blocks_used;
    world.pool.store.request_checkpoint();
    world.settle();
    assert_eq!(world.pool.store.statistics().blocks_used, used);
    let clone = world.pool.store.volume(name(1)).unwrap();
    assert_eq!((clone.blocks_used, clone.tied), (0, true));
    world.check();
}

#[test]
fn a_discard_hides_the_parent_however_large_it_is_and_wherever_it_is_kept() {
    let (mut world, _) = with_clone(200);
    let whole = BlockRange::new(0, u32::try_from(BLOCKS).unwrap());
    world.change(1, whole, true);
    world.check();
    let map = world.pool.meta.clone();
    assert_eq!(tombstones(&map), 200, "a tombstone for each block that the parent shows, and for no other");
    let (image, meta) = world.take_pool().close();
    world.pool = Pool::open(image, meta, 9, 1).unwrap();
    world.check();
}

fn tombstones(meta: &trivet_replica::meta::MemoryMeta) -> usize {
    use trivet_replica::meta::MetaStore;
    let mut found = 0;
    meta.scan(b"g", b"h", &mut |_, value| {
        // Mask, then stamp, pool block and checksum of each. (Then the tags.)
        let entries = u16::from_le_bytes([value[0], value[1]]).count_ones() as usize;
        found += value[2..].chunks(17).take(entries).filter(|entry| entry[8..13] == [0; 5]).count();
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    found
}

#[test]
fn what_cannot_be_the_parent_is_refused() {
    let (mut world, id) = with_clone(10);
    let tagged = world.tagged;
    let create_that = |volume, parent, snapshot, tagged| Request::CreateVolume {
        volume,
        blocks: BLOCKS,
        parent: Some(Parent { volume: parent, snapshot }),
        tagged,
    };
    let create = |volume, parent, snapshot| create_that(volume, parent, snapshot, tagged);
    let nowhere = world.pool.run(create(name(9), name(8), id));
    assert_eq!(nowhere, Err(RequestError::NoSuchVolume(name(8))));
    let missing = SnapshotId::from_bytes([9; 16]);
    let answer = world.pool.run(create(name(9), name(0), missing));
    assert_eq!(answer, Err(RequestError::NoSuchSnapshot(missing)));
    // The same again is done already; with another parent it is not the same.
    assert_eq!(world.pool.run(create(name(1), name(0), id)), Ok(Reply::Done));
    let mixed = world.pool.run(create_that(name(9), name(0), id, !tagged));
    assert!(matches!(mixed, Err(RequestError::BadParent { .. })), "only one of the two is encrypted");
    let plain = Request::CreateVolume { volume: name(1), blocks: BLOCKS, parent: None, tagged };
    assert!(matches!(world.pool.run(plain), Err(RequestError::BadSize { .. })));
    // Asked in one breath with the deletion.
    let delete = world.pool.submit(Request::DeleteSnapshot { volume: name(0), id });
    let late = world.pool.submit(create(name(9), name(0), id));
    world.pool.settle();
    assert_eq!(world.pool.answers.remove(&delete), Some(Ok(Reply::Done)));
    assert!(matches!(world.pool.answers.remove(&late), Some(Err(RequestError::BadParent { .. }))));
}

#[test]
fn a_chain_of_clones_is_bounded_and_goes_on_after_flattening() {
    let mut world = World::new(3);
    world.change(0, BlockRange::new(0, 20), false);
    for index in 0..ANCESTORS_MAX {
        world.settle();
        let (cut, id) = world.snapshot(index);
        world.create(Some((index, cut, id)));
        world.change(index + 1, BlockRange::new(index as u64, 1), false);
    }
    world.settle();
    let (cut, snapshot) = world.snapshot(ANCESTORS_MAX);
    let parent = Some(Parent { volume: name(ANCESTORS_MAX), snapshot });
    let (volume, tagged) = (name(ANCESTORS_MAX + 1), world.tagged);
    let create = Request::CreateVolume { volume, blocks: BLOCKS, parent, tagged };
    assert!(matches!(world.pool.run(create), Err(RequestError::BadParent { .. })));
    world.check();
    world.flatten(ANCESTORS_MAX);
    world.create(Some((ANCESTORS_MAX, cut, snapshot)));
    world.check();
}

#[test]
fn a_reset_clone_is_empty_and_what_it_read_goes_with_it() {
    let (mut world, id) = with_clone(50);
    world.delete_snapshot(0, world.oracle.volumes[0].snapshots.keys().next().copied().unwrap());
    world.delete(0);
    assert_eq!(world.pool.run(Request::ResetVolume { volume: name(1) }), Ok(Reply::Done));
    let found = pool::blocks_of(world.read(1, None, BlockRange::new(0, 60)).unwrap());
    assert!(found.iter().all(|block| *block == contents(0, 0)), "nothing is inherited any more");
    world.pool.store.request_checkpoint();
    world.pool.settle();
    assert_eq!(world.pool.store.statistics().blocks_used, 0, "{id}");
    world.pool.assert_sound();
}

#[test]
fn a_clone_of_a_volume_never_written_has_a_generation_of_its_own() {
    let mut world = World::new(5);
    let snapshot = Snapshot { id: SnapshotId::from_bytes([1; 16]), cut: Stamp::from_u64(1 << 39) };
    world.pool.run(Request::CreateSnapshot { volume: name(0), snapshot }).unwrap();
    world.create(Some((0, 1 << 39, snapshot.id)));
    let clone = world.pool.store.volume(name(1)).unwrap();
    assert_eq!(clone.generation, Generation::ZERO);
    assert_eq!((clone.progress.committed, clone.progress.stable), (snapshot.cut, snapshot.cut));
    // That it is stable is on the medium, too, once the pool has been quiet.
    world.pool.store.idle();
    let (image, meta) = world.take_pool().close();
    assert_image_sound(&image, &meta);
    // A host that is restarted has lost nothing of what the clone began with.
    world.pool = Pool::open(image, meta, 3, 2).unwrap();
    assert_eq!(world.pool.store.volume(name(1)).unwrap().intact, snapshot.cut);
}
