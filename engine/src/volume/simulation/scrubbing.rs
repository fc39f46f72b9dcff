//! Scrubs beside writes, faults and rot; what they must find, and must not.

use super::PlantedFault;
use super::world::{BLOCKS, Faults, World};
use crate::volume::ScrubCounts;
use crate::volume::simulation::model_member::Version;

const DEPTH: usize = 12;

/// A volume of known contents at rest.
fn written(seed: u64) -> World {
    let mut world = World::new(seed, Faults::default());
    for _ in 0..1500 {
        world.step(DEPTH);
    }
    world.settle();
    world
}

/// The first block that holds data.
fn present(world: &World) -> u64 {
    let data = |block: &u64| world.members[0].blocks.get(block).is_some_and(|version| version.data.is_some());
    (0..BLOCKS).find(data).expect("something was written")
}

/// Runs one seed with scrubs on the way and one at its end, which must leave nothing rotten.
fn run(seed: u64, faults: Faults) -> Result<u64, String> {
    let mut world = World::new(seed, faults);
    for _ in 0..2000 {
        world.step(DEPTH);
    }
    world.settle();
    if faults.rot > 0 {
        (0..3).for_each(|member| world.rot(member));
    }
    // In this slow world a member may be dropped at any time, and then is not looked at.
    let counts = loop {
        let dropped = world.core.counters.members_dropped;
        let counts = world.scrub_to_the_end(0);
        world.settle();
        if world.core.counters.members_dropped == dropped {
            break counts;
        }
    };
    if (counts.compared, counts.unrepairable) != (BLOCKS, 0) {
        return Err(format!("a scrub of {BLOCKS} blocks at rest: {counts:?}"));
    }
    world.nothing_is_rotten()?;
    world.read_all();
    world.client.check()?;
    world.members_are_identical()?;
    Ok(world.trace())
}

fn run_seeds(seeds: std::ops::Range<u64>, faults: Faults) {
    for seed in seeds {
        run(seed, faults).unwrap_or_else(|error| panic!("seed {seed} under {faults:?}: {error}"));
    }
}

#[test]
fn live_writes_are_no_differences() {
    run_seeds(0..400, Faults { scrub: 30, ..Faults::default() });
}

#[test]
fn rot_is_mended_beside_writes() {
    run_seeds(0..400, Faults { scrub: 60, rot: 40, ..Faults::default() });
}

#[test]
fn scrubs_survive_members_and_engines_that_come_and_go() {
    let faults = Faults { scrub: 60, disconnect: 60, kill_member: 300, isolate: 300, ..Faults::default() };
    run_seeds(0..400, faults);
    run_seeds(0..400, Faults { crash_engine: 300, member_power_loss: 900, ..faults });
    run_seeds(0..300, Faults { use_up_stamps: 100, full: 300, ..faults });
}

#[test]
fn a_seed_with_scrubs_gives_one_trace() {
    let faults = Faults { scrub: 40, rot: 60, disconnect: 100, crash_engine: 400, ..Faults::default() };
    for seed in 0..20 {
        assert_eq!(run(seed, faults), run(seed, faults), "seed {seed}");
    }
}

#[test]
fn f14_disjoint_corruption_on_every_member_is_repaired() {
    let mut world = written(3);
    let with_data = |block: &u64| world.members[0].blocks.get(block).is_some_and(|v| v.data.is_some());
    let blocks: Vec<u64> = (0..BLOCKS).filter(with_data).take(3).collect();
    assert_eq!(blocks.len(), 3);
    for (member, block) in blocks.into_iter().enumerate() {
        world.members[member].rot(block);
    }
    let counts = world.scrub_to_the_end(0);
    assert_eq!(counts, ScrubCounts { compared: BLOCKS, repaired: 3, ..ScrubCounts::default() });
    world.nothing_is_rotten().unwrap();
    world.members_are_identical().unwrap();
}

/// Checks of every step hold only where nothing is lost: here it is, on purpose.
fn outcome_of(world: &mut World, position: u64) -> ScrubCounts {
    world.expects_damage = true;
    world.scrub_to_the_end(position)
}

#[test]
fn what_is_bad_everywhere_is_named_and_left_alone() {
    let mut world = written(4);
    let block = present(&world);
    for member in &mut world.members {
        member.rot(block);
    }
    let counts = outcome_of(&mut world, 0);
    assert_eq!((counts.unrepairable, counts.repaired, counts.mismatched), (1, 0, 0));
    assert_eq!(counts.unrepairable_blocks, [block]);
    assert!(world.members.iter().all(|member| member.is_rotten(block)));
}

#[test]
fn the_newest_version_is_written_to_everyone() {
    for newer_is_hole in [false, true] {
        let mut world = written(5);
        let block = present(&world);
        let newest = world.members[0].blocks[&block].clone();
        if newer_is_hole {
            // One member has a discard that the others missed.
            let stamp = newest.stamp.plus(1);
            world.members[2].blocks.insert(block, Version { stamp, data: None, tag: None });
        } else {
            world.members[1].blocks.remove(&block);
        }
        let counts = outcome_of(&mut world, 0);
        assert_eq!((counts.mismatched, counts.repaired, counts.unrepairable), (1, 0, 0));
        world.settle();
        world.members_are_identical().unwrap();
        let data = &world.members[0].blocks[&block].data;
        assert_eq!(*data, if newer_is_hole { None } else { newest.data });
    }
}

#[test]
fn an_older_version_never_takes_the_place_of_one_that_cannot_be_read() {
    let mut world = written(6);
    let block = present(&world);
    world.members[0].rot(block);
    let newest = world.members[0].blocks[&block].clone();
    for member in &mut world.members[1..] {
        member.blocks.remove(&block);
    }
    let counts = outcome_of(&mut world, 0);
    assert_eq!((counts.unrepairable, counts.mismatched), (1, 0));
    assert_eq!(world.members[0].blocks[&block], newest);
}

#[test]
fn a_scrub_goes_on_from_its_position() {
    let mut world = written(7);
    let blocks = 20 << 10;
    world.grow(blocks);
    world.settle();
    assert_eq!(world.scrub_to_the_end(blocks - 1000).compared, 1000);
    world.scrub(0, u64::from(u32::MAX));
    let early = world.wait_ms(4000).expect("it is under way");
    assert!(!early.finished && early.counts.compared == early.position, "{early:?}");
    assert!(early.position > 0 && early.seconds_left.is_some_and(|left| left > 0), "{early:?}");
    let late = world.wait_ms(400_000).expect("it has ended");
    assert!(late.finished && late.counts.compared == blocks, "{late:?}");
}

#[test]
fn planted_faults_of_scrubs_are_found() {
    let scrubs = Faults { scrub: 30, ..Faults::default() };
    for (planted, faults) in [
        (PlantedFault::TrustFirstComparison, scrubs),
        (PlantedFault::SkipScrubRepair, Faults { rot: 100, ..scrubs }),
    ] {
        let faults = Faults { planted: Some(planted), ..faults };
        let fails = |seed: &u64| std::panic::catch_unwind(|| run(*seed, faults)).map_or(true, |r| r.is_err());
        let found = (0..50).filter(fails).count();
        assert!(found > 3, "{planted:?} was found in {found} of 50 seeds");
    }
}
