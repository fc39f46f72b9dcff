//! Drives a store over a simulated device: a turn at a time, so that a test can stop anywhere.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    dead_code,
    reason = "test support: each test uses a part, and stops at the first surprise"
)]

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use trivet_disk::{CompletionOrder, Disk, DiskImage, FaultyDisk, MemoryDisk};
use trivet_model::checksum::block_crcs;
use trivet_model::{BLOCK_SIZE, BlockArena, BlockCrc, BlockRange, BlockTag, BootId, PoolId, Stamp, VolumeId};
use trivet_replica::meta::MemoryMeta;
use trivet_replica::store::{
    Action, ChangedScan, CheckpointJob, FormatOptions, GroupLoad, OpenError, OpenReport, Placement, Reply,
    Request, RequestError, RequestId, Store, StoreOptions, TailExtent, verify,
};

pub(crate) const VOLUME: VolumeId = VolumeId::from_bytes([1; 16]);
pub(crate) const POOL: PoolId = PoolId::from_bytes([9; 16]);

/// A small deterministic generator (SplitMix64; Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The contents that version `version` of `block` has; zeros for version 0.
pub(crate) fn contents(block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK_SIZE];
    }
    let mut random = Random(block << 32 ^ version);
    (0..BLOCK_SIZE / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

pub(crate) struct Pool {
    pub(crate) store: Store,
    pub(crate) disk: FaultyDisk,
    pub(crate) meta: Arc<MemoryMeta>,
    pub(crate) report: OpenReport,
    arena: BlockArena,
    next_request: u64,
    pub(crate) answers: HashMap<RequestId, Result<Reply, RequestError>>,
    /// Given to the background thread, which the test runs when it likes.
    pub(crate) loads: Vec<GroupLoad>,
    pub(crate) scans: Vec<ChangedScan>,
    pub(crate) checkpoints: Vec<CheckpointJob>,
}

/// A formatted, closed pool.
pub(crate) fn formatted(capacity_blocks: u64) -> (DiskImage, MemoryMeta) {
    let (mut disk, meta) = (MemoryDisk::new(0), MemoryMeta::new());
    Store::format(&mut disk, &meta, &FormatOptions { pool: POOL, capacity_blocks }).unwrap();
    (disk.into_image(), meta)
}

impl Pool {
    pub(crate) fn open(image: DiskImage, meta: MemoryMeta, seed: u64, boot: u8) -> Result<Self, OpenError> {
        Self::open_on(FaultyDisk::new(image, seed), meta, boot)
    }

    pub(crate) fn open_on(mut disk: FaultyDisk, meta: MemoryMeta, boot: u8) -> Result<Self, OpenError> {
        let options = StoreOptions { map_budget_bytes: 1 << 20 };
        let (store, report) = Store::open(&mut disk, &meta, &options, BootId::from_bytes([boot; 16]))?;
        Ok(Self {
            store,
            disk,
            meta: Arc::new(meta),
            report,
            arena: BlockArena::new(),
            next_request: 0,
            answers: HashMap::new(),
            loads: Vec::new(),
            scans: Vec::new(),
            checkpoints: Vec::new(),
        })
    }

    /// A new pool with one volume.
    pub(crate) fn with_volume(capacity_blocks: u64, blocks: u64, seed: u64) -> Self {
        Self::with_volume_that(capacity_blocks, blocks, seed, seed % 2 == 1)
    }

    /// The same, of which it is said whether it is encrypted; else half of all seeds say so.
    pub(crate) fn with_volume_that(capacity_blocks: u64, blocks: u64, seed: u64, tagged: bool) -> Self {
        let (image, meta) = formatted(capacity_blocks);
        let mut pool = Self::open(image, meta, seed, 1).unwrap();
        pool.run(Request::CreateVolume { volume: VOLUME, blocks, parent: None, tagged }).unwrap();
        pool
    }

    /// The tags of blocks that are written to a volume: none where it is not encrypted.
    fn tags(&self, volume: VolumeId, stamp: Stamp, crcs: &[BlockCrc]) -> Vec<BlockTag> {
        let tagged = self.store.volume(volume).is_some_and(|volume| volume.tagged);
        let each = crcs.iter().enumerate().filter(|_| tagged);
        each.map(|(at, crc)| tag_of(stamp.plus(at as u64), *crc)).collect()
    }

    pub(crate) fn submit(&mut self, request: Request) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.store.submit(id, request);
        id
    }

    pub(crate) fn write(&mut self, start: u64, versions: &[u64], stamp: Stamp, stable: bool) -> RequestId {
        self.write_to(VOLUME, start, versions, stamp, stable)
    }

    pub(crate) fn write_to(
        &mut self,
        volume: VolumeId,
        start: u64,
        versions: &[u64],
        stamp: Stamp,
        stable: bool,
    ) -> RequestId {
        let mut data = self.arena.allocate(versions.len());
        for (at, version) in versions.iter().enumerate() {
            data.extend_from_slice(&contents(start + at as u64, *version));
        }
        let crcs: Vec<BlockCrc> = block_crcs(&data).collect();
        let segments = vec![data.freeze()];
        let tags = self.tags(volume, stamp, &crcs);
        self.submit(Request::Write { volume, start, stamp, crcs, tags, segments, stable })
    }

    /// Places versions whose contents are numbered by their stamps.
    pub(crate) fn place(&mut self, versions: Vec<TailExtent>, repair: bool) -> RequestId {
        let (mut crcs, mut tags) = (Vec::new(), Vec::new());
        let mut segments = Vec::new();
        for run in versions.iter().filter(|run| !run.discard) {
            let mut data = self.arena.allocate(run.range.count as usize);
            for (at, block) in run.range.blocks().enumerate() {
                data.extend_from_slice(&contents(block, run.stamp.plus(at as u64).as_u64()));
            }
            let of_run: Vec<BlockCrc> = block_crcs(&data).collect();
            tags.extend(self.tags(VOLUME, run.stamp, &of_run));
            crcs.extend(of_run);
            segments.push(data.freeze());
        }
        let placement = Placement { versions, crcs, tags, segments, repair };
        self.submit(Request::Place { volume: VOLUME, placement })
    }

    pub(crate) fn read(&mut self, start: u64, count: u32) -> RequestId {
        self.submit(Request::Read { volume: VOLUME, at: None, range: BlockRange::new(start, count) })
    }

    /// Hands out actions and reaps completions once. Background jobs wait for [`Pool::background`].
    pub(crate) fn turn(&mut self) {
        self.act();
        let mut completions = Vec::new();
        self.disk.reap(false, &mut completions);
        for completion in completions {
            self.store.disk_completed(completion);
        }
        self.act();
    }

    pub(crate) fn act(&mut self) {
        let mut actions = Vec::new();
        self.store.poll_actions(&mut actions);
        for action in actions {
            match action {
                Action::Disk(token, operation) => self.disk.submit(token, operation),
                Action::LoadGroups(load) => self.loads.push(load),
                Action::ScanChanged(scan) => self.scans.push(*scan),
                Action::Checkpoint(job) => self.checkpoints.push(*job),
                Action::Complete(id, result) => {
                    assert_tags(&result);
                    assert!(self.answers.insert(id, result).is_none(), "{id:?} was answered twice");
                }
            }
        }
    }

    /// Does what waits for the background thread; answers whether there was something.
    pub(crate) fn background(&mut self) -> bool {
        let busy = !self.loads.is_empty() || !self.scans.is_empty() || !self.checkpoints.is_empty();
        for load in std::mem::take(&mut self.loads) {
            self.store.groups_loaded(load.run(&*self.meta));
        }
        for scan in std::mem::take(&mut self.scans) {
            self.store.changed_scanned(scan.run(&*self.meta));
        }
        for job in std::mem::take(&mut self.checkpoints) {
            self.store.checkpoint_finished(job.run(&*self.meta));
        }
        busy
    }

    /// Goes on until everything asked is answered and the store is quiet.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            self.turn();
            if !self.background() && self.store.is_quiescent() && self.disk.in_flight().next().is_none() {
                return;
            }
        }
        panic!("the store does not come to rest");
    }

    pub(crate) fn run(&mut self, request: Request) -> Result<Reply, RequestError> {
        let id = self.submit(request);
        self.settle();
        self.answers.remove(&id).expect("every request is answered")
    }

    pub(crate) fn read_now(&mut self, start: u64, count: u32) -> Result<Vec<Vec<u8>>, RequestError> {
        let id = self.read(start, count);
        self.settle();
        self.answers.remove(&id).expect("every request is answered").map(blocks_of)
    }

    /// Closes without a word, everything having reached the device; the disk and map remain.
    pub(crate) fn close(mut self) -> (DiskImage, MemoryMeta) {
        self.disk.set_completion_order(CompletionOrder::Submission);
        self.settle();
        (self.disk.image().clone(), (*self.meta).clone())
    }

    /// What `trivet check --data` would say of the pool as it is on the device now.
    pub(crate) fn assert_sound(&self) {
        assert_image_sound(self.disk.image(), &self.meta);
    }
}

pub(crate) fn assert_image_sound(image: &DiskImage, meta: &MemoryMeta) {
    let mut disk = MemoryDisk::new(0);
    *disk.image_mut() = image.clone();
    let report = verify(&mut disk, meta, true, &mut |_, _| ()).unwrap();
    assert_eq!(report.findings, [], "the pool is unsound");
}

/// What stands in for a tag: made of what the true one is made of.
pub(crate) fn tag_of(stamp: Stamp, crc: BlockCrc) -> BlockTag {
    let mut random = Random(stamp.as_u64() << 24 ^ u64::from(crc.0));
    BlockTag([random.next().to_le_bytes(), random.next().to_le_bytes()].concat().try_into().unwrap())
}

/// Every block that comes with a tag comes with the one that it was written with.
fn assert_tags(answer: &Result<Reply, RequestError>) {
    let (stamps, crcs, tags): (Vec<Stamp>, Vec<BlockCrc>, &[BlockTag]) = match answer {
        Ok(Reply::Blocks(read)) => {
            (read.stamps.clone(), read.crcs.iter().copied().flatten().collect(), &read.tags)
        }
        Ok(Reply::Fetched(fetched)) => {
            let data = fetched.versions.iter().filter(|run| !run.discard);
            let stamps = data.flat_map(|run| (0..u64::from(run.range.count)).map(|at| run.stamp.plus(at)));
            (stamps.collect(), fetched.crcs.clone(), &fetched.tags)
        }
        _ => return,
    };
    assert!(tags.is_empty() || tags.len() == crcs.len(), "all blocks have tags, or none");
    for ((stamp, crc), tag) in stamps.iter().zip(&crcs).zip(tags) {
        assert_eq!(*tag, tag_of(*stamp, *crc), "a block with stamp {stamp}");
    }
}

/// The blocks of a read, holes as zeros; their checksums were right.
pub(crate) fn blocks_of(reply: Reply) -> Vec<Vec<u8>> {
    let Reply::Blocks(read) = reply else { panic!("a read answers blocks, not {reply:?}") };
    let joined: Vec<u8> = read.segments.iter().flat_map(|segment: &Bytes| segment.to_vec()).collect();
    let mut present = joined.chunks_exact(BLOCK_SIZE);
    let blocks = read.crcs.iter().map(|crc| match crc {
        Some(crc) => {
            let block = present.next().expect("as many blocks as checksums");
            assert_eq!(trivet_model::block_crc(block), *crc);
            block.to_vec()
        }
        None => vec![0; BLOCK_SIZE],
    });
    let blocks = blocks.collect();
    assert!(present.next().is_none());
    blocks
}
