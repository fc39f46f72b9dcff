//! The store on a disk in memory: what its bookkeeping costs for each block, journal included.

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use trivet_disk::{Disk, MemoryDisk};
use trivet_model::{
    BLOCK_SIZE, BlockArena, BlockCrc, BlockRange, BootId, Generation, PoolId, Stamp, VolumeId, block_crc,
};
use trivet_replica::meta::MemoryMeta;
use trivet_replica::store::{Action, FormatOptions, Request, RequestId, Store, StoreOptions, VolumeProgress};

const VOLUME: VolumeId = VolumeId::from_bytes([1; 16]);
const POOL_BLOCKS: u64 = 1 << 17;
const VOLUME_BLOCKS: u64 = 1 << 16;
const DEPTH: u64 = 32;
const FLUSH_EACH: u64 = 4096;

/// A store and what a server does for it.
struct Pool {
    store: Store,
    disk: MemoryDisk,
    meta: MemoryMeta,
    next_request: u64,
    random: u64,
    block: Bytes,
    crc: BlockCrc,
}

impl Pool {
    fn new() -> Self {
        let (mut disk, meta) = (MemoryDisk::new(0), MemoryMeta::new());
        let format = FormatOptions { pool: PoolId::from_bytes([9; 16]), capacity_blocks: POOL_BLOCKS };
        Store::format(&mut disk, &meta, &format).expect("memory can be formatted");
        let options = StoreOptions { map_budget_bytes: 64 << 20 };
        let (store, _) =
            Store::open(&mut disk, &meta, &options, BootId::from_bytes([1; 16])).expect("it opens");
        let mut block = BlockArena::new().allocate(1);
        block.resize(BLOCK_SIZE, 0x5a);
        let crc = block_crc(&block);
        let block = block.freeze();
        let mut pool = Self { store, disk, meta, next_request: 0, random: 1, block, crc };
        pool.submit(Request::CreateVolume {
            volume: VOLUME,
            blocks: VOLUME_BLOCKS,
            parent: None,
            tagged: false,
        });
        pool.settle();
        pool
    }

    fn submit(&mut self, request: Request) {
        self.next_request += 1;
        self.store.submit(RequestId(self.next_request), request);
    }

    fn random_block(&mut self) -> u64 {
        // Knuth's MMIX generator; its high bits are good enough to choose blocks.
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % VOLUME_BLOCKS
    }

    fn write_at_random(&mut self) {
        let start = self.random_block();
        let stamp = Stamp::new(Generation::ZERO, self.next_request + 1).expect("a bench is short");
        let (crcs, segments) = (vec![self.crc], vec![self.block.clone()]);
        self.submit(Request::Write {
            volume: VOLUME,
            start,
            stamp,
            crcs,
            tags: Vec::new(),
            segments,
            stable: false,
        });
    }

    /// What an engine does now and then, so that the tail does not grow for ever.
    fn flush(&mut self) {
        self.submit(Request::Flush { volume: VOLUME });
        self.settle();
        let stable = Stamp::new(Generation::ZERO, self.next_request).expect("a bench is short");
        self.store.note_progress(VOLUME, VolumeProgress { committed: stable, stable });
    }

    fn read_at_random(&mut self) {
        let range = BlockRange::new(self.random_block(), 1);
        self.submit(Request::Read { volume: VOLUME, at: None, range });
    }

    /// Serves until everything is answered.
    fn settle(&mut self) {
        let (mut actions, mut completions) = (Vec::new(), Vec::new());
        loop {
            self.store.poll_actions(&mut actions);
            let idle = actions.is_empty();
            for action in actions.drain(..) {
                match action {
                    Action::Disk(token, operation) => self.disk.submit(token, operation),
                    Action::LoadGroups(load) => self.store.groups_loaded(load.run(&self.meta)),
                    Action::ScanChanged(scan) => self.store.changed_scanned(scan.run(&self.meta)),
                    Action::Checkpoint(job) => self.store.checkpoint_finished(job.run(&self.meta)),
                    Action::Complete(_, result) => drop(result.expect("memory does not fail")),
                }
            }
            self.disk.reap(false, &mut completions);
            for completion in completions.drain(..) {
                self.store.disk_completed(completion);
            }
            if idle && self.store.is_quiescent() {
                return;
            }
        }
    }
}

fn store(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store in memory, 4 KiB, depth 32");
    group.throughput(Throughput::Elements(DEPTH));
    let mut pool = Pool::new();
    group.bench_function("random writes", |bencher| {
        bencher.iter(|| {
            (0..DEPTH).for_each(|_| pool.write_at_random());
            pool.settle();
            if pool.next_request % FLUSH_EACH < DEPTH {
                pool.flush();
            }
        });
    });
    group.bench_function("random reads", |bencher| {
        bencher.iter(|| {
            (0..DEPTH).for_each(|_| pool.read_at_random());
            pool.settle();
        });
    });
    group.finish();
}

criterion_group!(benches, store);
criterion_main!(benches);
