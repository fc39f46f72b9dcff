//! Pools as runs find them: formatted over another's garbage, with an empty replica of the volume,
//! and, where wanted, nearly full of another volume's data. Made once a thread and shared.

use crate::swarm::Fill;
use crate::world::VOLUME;
use std::cell::RefCell;
use std::collections::HashMap;
use trivet_disk::{Disk, DiskImage, MemoryDisk};
use trivet_model::{
    BLOCK_SIZE, BLOCK_SIZE_U64, BlockArena, BlockRange, BootId, PoolId, Stamp, VolumeId, block_crc,
};
use trivet_replica::meta::MemoryMeta;
use trivet_replica::store::{
    Action, FormatOptions, Geometry, Request, RequestId, Store, StoreOptions, ZONE_BLOCKS,
};

/// The volume that takes others' space.
pub(crate) const FILLER: VolumeId = VolumeId::from_bytes([2; 16]);
/// Blocks that one write of the filler takes.
const FILL_STEP: u64 = 250;

pub(crate) fn pool_id(index: usize) -> PoolId {
    PoolId::from_bytes([u8::try_from(index + 1).expect("few hosts"); 16])
}

/// The host whose pool this is.
pub(crate) fn host_of(pool: PoolId) -> usize {
    usize::from(pool.as_bytes()[0]) - 1
}

pub(crate) fn boot_id(number: u64) -> BootId {
    let mut bytes = [7; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    BootId::from_bytes(bytes)
}

/// What a run finds.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Template {
    /// Which host's.
    pub(crate) index: usize,
    pub(crate) fill: Fill,
    /// Journal blocks that were written before: near its end, the journal's ring soon begins anew.
    pub(crate) worn: u64,
    /// The volume's size.
    pub(crate) blocks: u64,
    /// It is a clone that begins with data in these runs of blocks.
    pub(crate) cloned: Option<Vec<(u64, u64)>>,
    pub(crate) encrypted: bool,
}

/// A closed pool of one zone.
pub(crate) fn pool(template: Template) -> (DiskImage, MemoryMeta) {
    thread_local! {
        static MADE: RefCell<HashMap<Template, (DiskImage, MemoryMeta)>> = RefCell::default();
    }
    MADE.with_borrow_mut(|made| made.entry(template.clone()).or_insert_with(|| make(template)).clone())
}

fn make(Template { index, fill, worn, blocks, cloned, encrypted }: Template) -> (DiskImage, MemoryMeta) {
    let geometry = Geometry::for_capacity(ZONE_BLOCKS);
    let mut image = DiskImage::new(geometry.capacity_end * BLOCK_SIZE_U64);
    // Where data and records will lie: what is there before must never be taken for either.
    let garbage: Vec<u8> =
        (0..BLOCK_SIZE).map(|at| u8::try_from((at * 7 + index * 13) % 251 + 1).unwrap_or(1)).collect();
    for start in [geometry.journal_start, geometry.data_start + fill.min(700)] {
        for block in start..start + 200 {
            image.write(block * BLOCK_SIZE_U64, &garbage);
        }
    }
    let (mut disk, meta) = (MemoryDisk::from(image), MemoryMeta::new());
    let options = FormatOptions { pool: pool_id(index), capacity_blocks: ZONE_BLOCKS };
    Store::format(&mut disk, &meta, &options).expect("memory does not fail");
    let options = StoreOptions { map_budget_bytes: 1 << 20 };
    let (mut store, _) = Store::open(&mut disk, &meta, &options, boot_id(1)).expect("just formatted");
    let mut arena = BlockArena::new();
    let mut requests = match cloned {
        None => vec![Request::CreateVolume { volume: VOLUME, blocks, parent: None, tagged: encrypted }],
        Some(hot) => crate::cloning::requests(blocks, &hot, encrypted, &mut arena),
    };
    requests.push(Request::CreateVolume { volume: FILLER, blocks: fill.max(1), parent: None, tagged: false });
    let discard = |number| Request::Discard {
        volume: FILLER,
        range: BlockRange::new(0, 1),
        stamp: Stamp::from_u64(number + 1),
        stable: false,
    };
    requests.extend((0..worn).map(discard));
    for request in requests {
        run(&mut store, &mut disk, &meta, request);
    }
    for start in (0..fill).step_by(usize::try_from(FILL_STEP).unwrap_or(1)) {
        let count = usize::try_from(FILL_STEP.min(fill - start)).unwrap_or(0);
        let mut data = arena.allocate(count);
        data.resize(count * BLOCK_SIZE, 0xf1);
        let data = data.freeze();
        let crcs = vec![block_crc(&data[..BLOCK_SIZE]); count];
        let stamp = Stamp::from_u64(worn + start + 1);
        let (segments, tags) = (vec![data], Vec::new());
        let write = Request::Write { volume: FILLER, start, stamp, crcs, tags, segments, stable: true };
        run(&mut store, &mut disk, &meta, write);
    }
    store.request_checkpoint();
    run(&mut store, &mut disk, &meta, Request::Flush { volume: VOLUME });
    let mut image = disk.into_image();
    image.share_equal_blocks();
    (image, meta)
}

/// Carries out one request and all that the store does besides.
fn run(store: &mut Store, disk: &mut MemoryDisk, meta: &MemoryMeta, request: Request) {
    store.submit(RequestId(1), request);
    let (mut actions, mut completions) = (Vec::new(), Vec::new());
    loop {
        store.poll_actions(&mut actions);
        disk.reap(false, &mut completions);
        if actions.is_empty() && completions.is_empty() && store.is_quiescent() {
            return;
        }
        for action in actions.drain(..) {
            match action {
                Action::Disk(token, operation) => disk.submit(token, operation),
                Action::ScanChanged(scan) => store.changed_scanned(scan.run(meta)),
                Action::LoadGroups(load) => store.groups_loaded(load.run(meta)),
                Action::Checkpoint(job) => store.checkpoint_finished(job.run(meta)),
                Action::Complete(_, result) => assert!(result.is_ok(), "an empty pool takes it: {result:?}"),
            }
        }
        for completion in completions.drain(..) {
            store.disk_completed(completion);
        }
    }
}
