//! Seeds under every kind of fault, and planted faults that must be found.

use super::world::{BLOCKS, Faults, World};
use crate::volume::{PlantedFault, VolumeState};
use std::time::Duration;

const DEPTH: usize = 12;

/// Runs one seed; the error names what is wrong.
fn run(seed: u64, steps: u32, faults: Faults) -> Result<u64, String> {
    let mut world = World::new(seed, faults);
    for _ in 0..steps {
        world.step(DEPTH);
    }
    world.settle();
    world.read_all();
    world.client.check()?;
    world.members_are_identical()?;
    world.open();
    world.read_all();
    world.client.check()?;
    world.members_are_identical()?;
    assert!(world.client.answered > 0);
    Ok(world.trace())
}

fn run_seeds(seeds: std::ops::Range<u64>, steps: u32, faults: Faults) {
    for seed in seeds {
        if let Err(error) = run(seed, steps, faults) {
            panic!("seed {seed} under {faults:?}: {error}");
        }
    }
}

#[test]
fn without_faults() {
    run_seeds(0..300, 1500, Faults::default());
}

#[test]
fn members_that_come_and_go() {
    run_seeds(0..700, 1500, Faults { disconnect: 60, kill_member: 200, ..Faults::default() });
}

#[test]
fn engines_that_crash_and_members_that_come_and_go() {
    let faults = Faults { disconnect: 100, kill_member: 200, crash_engine: 250, ..Faults::default() };
    run_seeds(0..1000, 2000, faults);
}

#[test]
fn members_that_lose_power() {
    let faults = Faults { disconnect: 200, member_power_loss: 300, crash_engine: 500, ..Faults::default() };
    run_seeds(0..700, 2000, faults);
}

#[test]
fn members_without_space() {
    run_seeds(0..500, 1500, Faults { full: 80, disconnect: 200, crash_engine: 600, ..Faults::default() });
}

#[test]
fn members_with_bad_media() {
    run_seeds(0..500, 1500, Faults { bad_read: 40, disconnect: 300, ..Faults::default() });
}

#[test]
fn engines_that_are_fenced() {
    run_seeds(0..300, 1500, Faults { second_engine: 200, disconnect: 50, ..Faults::default() });
}

#[test]
fn generations_that_run_out_of_stamps() {
    run_seeds(0..300, 1500, Faults { use_up_stamps: 150, disconnect: 200, ..Faults::default() });
}

#[test]
fn everything_at_once() {
    let faults = Faults {
        disconnect: 120,
        kill_member: 300,
        crash_engine: 400,
        member_power_loss: 900,
        full: 300,
        bad_read: 200,
        second_engine: 900,
        use_up_stamps: 700,
        planted: None,
    };
    run_seeds(0..1000, 2500, faults);
}

fn lose_all_power(seed: u64, faults: Faults) -> Result<(), String> {
    let mut world = World::new(seed, faults);
    for _ in 0..3 {
        for step in 0..600 {
            world.step(DEPTH);
            if step % 150 == 149 {
                world.flush();
            }
        }
        world.lose_power();
        let image = world.read_all();
        world.client.check_survivors(&image)?;
        world.members_are_identical()?;
    }
    Ok(())
}

#[test]
fn what_was_flushed_survives_a_power_loss_everywhere() {
    for seed in 0..500 {
        lose_all_power(seed, Faults::default()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn closing_finishes_what_is_in_flight_and_leaves_members_identical() {
    for seed in 0..300 {
        let faults = Faults { disconnect: 100, ..Faults::default() };
        let mut world = World::new(seed, faults);
        for _ in 0..1000 {
            world.step(DEPTH);
        }
        world.settle();
        for _ in 0..40 {
            world.step(DEPTH);
        }
        assert!(world.close(Duration::from_secs(3600)), "seed {seed}: not all was finished");
        assert_eq!(world.recorded().owner, "");
        world.members_are_identical().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        world.open();
        world.read_all();
        world.client.check().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn closing_without_a_member_gives_up_in_time_and_loses_nothing() {
    let mut unfinished = 0;
    for seed in 0..300 {
        let mut world = World::new(seed, Faults::default());
        for _ in 0..1000 {
            world.step(DEPTH);
        }
        world.cut_off(1);
        for _ in 0..40 {
            world.step(DEPTH);
        }
        unfinished += u32::from(!world.close(Duration::from_secs(5)));
        world.open();
        world.read_all();
        world.client.check().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        world.members_are_identical().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    assert!(unfinished > 200, "only {unfinished} of 300 were cut off with something in flight");
}

#[test]
fn growing_reaches_every_member_before_the_record() {
    for seed in 0..200 {
        let faults = Faults { disconnect: 30, crash_engine: 400, ..Faults::default() };
        let mut world = World::new(seed, faults);
        for step in 0..1000 {
            world.step(4);
            if step % 100 == 99 && world.core.state() == VolumeState::Open {
                world.grow(BLOCKS + step / 100);
            }
            let smallest = world.members.iter().map(|member| member.size).min().unwrap();
            assert!(world.recorded().blocks <= smallest, "seed {seed}: the record promises too much");
        }
        world.settle();
        let size = world.core.blocks();
        world.grow(size + 7);
        world.settle();
        assert_eq!((world.core.blocks(), world.recorded().blocks), (size + 7, size + 7));
        assert!(world.members.iter().all(|member| member.size == size + 7));
    }
}

#[test]
fn a_seed_gives_one_trace() {
    let faults = Faults { disconnect: 60, crash_engine: 300, bad_read: 100, full: 100, ..Faults::default() };
    for seed in 0..20 {
        assert_eq!(run(seed, 1500, faults), run(seed, 1500, faults), "seed {seed}");
    }
}

#[test]
fn planted_faults_are_found() {
    let crashes = Faults { disconnect: 100, crash_engine: 150, ..Faults::default() };
    for planted in
        [PlantedFault::AcknowledgeFirstAnswer, PlantedFault::SkipReconcile, PlantedFault::IgnoreOverlaps]
    {
        let faults = Faults { planted: Some(planted), ..crashes };
        let found = (0..200).filter(|&seed| run(seed, 1500, faults).is_err()).count();
        assert!(found > 3, "{planted:?} was found in {found} of 200 seeds");
    }
    let faults = Faults { planted: Some(PlantedFault::SkipFlush), ..Faults::default() };
    let found = (0..200).filter(|&seed| lose_all_power(seed, faults).is_err()).count();
    assert!(found > 10, "SkipFlush was found in {found} of 200 seeds");
}
