//! Clones in the store, against an oracle that keeps every version of every volume: clones of clones, of
//! volumes that are used on, grow and are reverted, flattened while they are written, whose parents,
//! snapshots and selves are deleted, over checkpoints, restarts and losses of power.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod oracle;
#[path = "../pool/mod.rs"]
mod pool;
mod world;

use oracle::name;
use pool::{Pool, assert_image_sound, contents};
use proptest::prelude::*;
use trivet_model::{BlockRange, Generation, SnapshotId, Stamp};
use trivet_replica::store::{ANCESTORS_MAX, Parent, Reply, Request, RequestError, Snapshot};
use world::World;

/// What a volume begins with, and grows to.
const BLOCKS: u64 = 300;
const BLOCKS_MAX: u64 = 400;
const VOLUMES_MAX: usize = 6;

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
