//! Another data key: all is sealed anew under it, whatever of it cannot be read or has no space.

use super::world::{Faults, World};
use std::time::Duration;
use trivet_model::{BlockRange, Stamp};

const DEPTH: usize = 6;
const BLOCKS: u64 = 600;

/// An encrypted volume with data in some blocks, at rest.
fn written(seed: u64, ranges: &[BlockRange]) -> World {
    let mut world = World::new(seed, Faults { verified: true, ..Faults::default() });
    world.settle();
    world.grow(BLOCKS);
    world.settle();
    ranges.iter().for_each(|range| world.fill(*range, 1));
    world.settle();
    world
}

/// The last stamp that the older key sealed, once there is one.
fn until(world: &World) -> Option<Stamp> {
    world.recorded().older_keys.last().map(|older| older.until)
}

/// Blocks that are sealed under the older key on some member in sync.
fn sealed_before(world: &World) -> Vec<u64> {
    let until = until(world).expect("it has had another key");
    let members = world.in_sync().flat_map(|member| &member.blocks);
    let older = members.filter(|(_, version)| version.data.is_some() && version.stamp <= until);
    let mut blocks: Vec<u64> = older.map(|(&block, _)| block).collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

/// How far it is, and why it does not get on.
fn progress(world: &World) -> Option<(u64, String)> {
    let status = world.core.reseal_status(Duration::ZERO)?;
    Some((status.position, status.waits.unwrap_or_default()))
}

fn is_done(world: &World) -> bool {
    until(world).is_some() && !world.recorded().is_resealing()
}

#[test]
fn a_block_that_nobody_can_read_is_left_over_alone_and_named() {
    let bad = 70;
    for discards in [false, true] {
        let mut world = written(1, &[BlockRange::new(0, 300)]);
        world.members.iter_mut().for_each(|member| member.rot(bad));
        world.rekey();
        let rest_is_done = |world: &World| progress(world).is_some_and(|(done, _)| done == BLOCKS - 1);
        world.wait_until("all but one to be sealed anew", rest_is_done);
        world.settle();
        assert_eq!(sealed_before(&world), [bad]);
        let (_, waits) = progress(&world).expect("one is left");
        assert!(waits.contains("block 70 (changed): overwrite or discard it"), "{waits}");

        if discards {
            let (offset, length) = (bad * 4096, 4096);
            world.submit(crate::request::IoRequest::Discard { offset, length });
        } else {
            world.fill(BlockRange::new(bad, 1), 2);
        }
        world.wait_until("what was left to be done with", is_done);
        assert!(sealed_before(&world).is_empty());
        world.settle();
        world.members_are_identical().unwrap();
    }
}

#[test]
fn a_block_that_can_be_read_again_is_sealed_anew() {
    let mut world = written(2, &[BlockRange::new(0, 300)]);
    for block in [3, 64, 65, 127, 299] {
        world.members.iter_mut().for_each(|member| member.rot(block));
    }
    world.rekey();
    let left = |world: &World| progress(world).is_some_and(|(done, _)| done == BLOCKS - 5);
    world.wait_until("all but five to be sealed anew", left);
    let (_, waits) = progress(&world).expect("some are left");
    assert!(waits.contains("block 3 and 4 others (changed): overwrite or discard them"), "{waits}");
    world.members.iter_mut().for_each(super::model_member::ModelMember::heal);
    world.wait_until("the rest to be sealed anew", is_done);
    assert!(sealed_before(&world).is_empty());
    assert_eq!(world.recorded().older_keys[0].changed, 300);
}

#[test]
fn what_nobody_has_space_for_is_kept_once_however_often_it_is_refused() {
    let runs = [0, 20, 40].map(|start| BlockRange::new(start, 10));
    let mut world = written(3, &runs);
    world.members.iter_mut().for_each(|member| member.full = 1);
    world.rekey();
    let is_refused = |world: &World| progress(world).is_some_and(|(_, waits)| waits.contains("no space"));
    world.wait_until("a refusal", is_refused);
    let after = |world: &mut World, ms| {
        world.wait_ms(ms);
        progress(world).expect("it is not done")
    };
    assert_eq!(after(&mut world, 20_000).0, BLOCKS - 64, "one window of 64 blocks is left");
    assert_eq!(after(&mut world, 60_000).0, BLOCKS - 64);
    world.members.iter_mut().for_each(|member| member.full = 0);
    world.wait_until("the rest to be sealed anew", is_done);
    assert!(sealed_before(&world).is_empty());
    assert_eq!(world.recorded().older_keys[0].changed, 30);
}

/// A volume in use gets another key while it is read badly, has a block that nobody can read, and loses engines.
fn reseal(seed: u64, faults: Faults) -> Result<(), String> {
    let mut world = World::new(seed, Faults { verified: true, ..faults });
    for _ in 0..800 {
        world.step(DEPTH);
    }
    while until(&world).is_none() {
        world.rekey();
        for _ in 0..100 {
            world.step(DEPTH);
        }
    }
    world.settle();
    world.wait_until("all to be sealed anew", is_done);
    let older = sealed_before(&world);
    if !older.is_empty() {
        return Err(format!("blocks {older:?} are sealed under the older key"));
    }
    world.read_all();
    world.client.check()?;
    world.members_are_identical()
}

#[test]
fn a_volume_in_use_is_sealed_anew_through_faults() {
    let away = Faults { disconnect: 100, crash_engine: 400, bad_read: 80, ..Faults::default() };
    for seed in 0..200 {
        for faults in [away, Faults { full: 150, isolate: 400, ..away }] {
            reseal(seed, faults).unwrap_or_else(|error| panic!("seed {seed} under {faults:?}: {error}"));
        }
    }
}
