//! Seeds under every kind of fault, and planted faults that must be found.

use super::world::{BLOCKS, Faults, World};
use crate::volume::PlantedFault;
use crate::volume::VolumeState;
use crate::volume::read::{HOME_BLOCKS, HOME_READS};
use std::time::Duration;
use trivet_wire::Message;

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
    world.nothing_is_stale()?;
    world.open();
    world.read_all();
    world.client.check()?;
    world.members_are_identical()?;
    world.nothing_is_stale()?;
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
fn members_that_are_dropped_and_brought_back() {
    run_seeds(0..1000, 2500, Faults { isolate: 200, disconnect: 300, ..Faults::default() });
}

#[test]
fn members_that_are_brought_back_while_engines_crash() {
    let faults = Faults { isolate: 250, kill_member: 500, crash_engine: 400, full: 400, ..Faults::default() };
    run_seeds(0..1000, 2500, faults);
}

#[test]
fn members_that_are_brought_back_and_lose_power() {
    let faults = Faults { isolate: 250, member_power_loss: 400, crash_engine: 900, ..Faults::default() };
    run_seeds(0..1000, 2500, faults);
    let faults =
        Faults { isolate: 100, disconnect: 100, member_power_loss: 150, crash_engine: 500, ..faults };
    run_seeds(0..1000, 3000, faults);
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
        isolate: 400,
        kill_member: 300,
        crash_engine: 400,
        member_power_loss: 900,
        full: 300,
        bad_read: 200,
        second_engine: 900,
        use_up_stamps: 700,
        rot: 0,
        scrub: 150,
        source_fails: 0,
        planted: None,
        verified: false,
    };
    run_seeds(0..1000, 2500, faults);
    run_seeds(1000..1300, 2500, Faults { verified: true, ..faults });
}

/// The whole cluster loses power again and again.
pub(super) fn lose_all_power(seed: u64, faults: Faults) -> Result<(), String> {
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
fn closing_without_a_member_leaves_it_behind_and_loses_nothing() {
    let mut finished = 0;
    for seed in 0..300 {
        let mut world = World::new(seed, Faults::default());
        for _ in 0..1000 {
            world.step(DEPTH);
        }
        world.cut_off(1);
        for _ in 0..40 {
            world.step(DEPTH);
        }
        finished += u32::from(world.close(Duration::from_secs(60)));
        world.open();
        world.read_all();
        world.client.check().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        world.members_are_identical().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    // Not when the others had been dropped before it was cut off.
    assert!(finished > 250, "only {finished} of 300 could be closed in good order");
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
            let smallest = world.in_sync().map(|member| member.size).min().unwrap();
            assert!(world.recorded().blocks <= smallest, "seed {seed}: the record promises too much");
        }
        world.settle();
        let size = world.core.blocks();
        world.grow(size + 7);
        world.settle();
        assert_eq!((world.core.blocks(), world.recorded().blocks), (size + 7, size + 7));
        let sizes: Vec<u64> = world.members.iter().map(|member| member.size).collect();
        // One may have grown further for an engine that crashed before it could record that.
        assert!(sizes.iter().all(|&found| found >= size + 7), "seed {seed}: {sizes:?}");
    }
}

#[test]
fn a_seed_gives_one_trace() {
    let faults = Faults { disconnect: 60, crash_engine: 300, bad_read: 100, full: 100, ..Faults::default() };
    for seed in 0..20 {
        assert_eq!(run(seed, 1500, faults), run(seed, 1500, faults), "seed {seed}");
    }
}

/// Whether a check or an assertion fails.
fn fails(seed: u64, steps: u32, faults: Faults) -> bool {
    std::panic::catch_unwind(|| run(seed, steps, faults)).map_or(true, |checked| checked.is_err())
}

#[test]
fn planted_faults_are_found() {
    let crashes = Faults { disconnect: 100, crash_engine: 150, ..Faults::default() };
    for planted in
        [PlantedFault::AcknowledgeFirstAnswer, PlantedFault::SkipReconcile, PlantedFault::IgnoreOverlaps]
    {
        let faults = Faults { planted: Some(planted), ..crashes };
        let found = (0..200).filter(|&seed| fails(seed, 1500, faults)).count();
        assert!(found > 3, "{planted:?} was found in {found} of 200 seeds");
    }
    let away =
        Faults { isolate: 200, disconnect: 200, crash_engine: 500, kill_member: 300, ..Faults::default() };
    for planted in [
        PlantedFault::DropBeforeSwap,
        PlantedFault::CopyTooLittle,
        PlantedFault::PullBeforeSettled,
        PlantedFault::ReadFromSyncing,
        PlantedFault::SkipDiverged,
    ] {
        let faults = Faults { planted: Some(planted), ..away };
        let found = (0..400).filter(|&seed| fails(seed, 2500, faults)).count();
        assert!(found > 0, "{planted:?} was not found");
    }
    let faults = Faults { planted: Some(PlantedFault::SkipFlush), ..Faults::default() };
    let found = (0..200).filter(|&seed| lose_all_power(seed, faults).is_err()).count();
    assert!(found > 10, "SkipFlush was found in {found} of 200 seeds");
}

#[test]
fn reads_go_home_unless_that_is_busy() {
    let mut world = World::new(1, Faults::default());
    world.settle();
    let everyone = world.core.ready_members();
    assert_eq!(everyone.into_iter().count(), 3);
    let ask = |world: &World, part: u64| world.core.nearest(everyone, part * HOME_BLOCKS).unwrap().0;
    assert_eq!([0, 1, 2, 3].map(|part| ask(&world, part)), [0, 1, 2, 0]);
    world.core.members[1].reads_in_flight = HOME_READS;
    assert_eq!(ask(&world, 1), 1);
    world.core.members[1].reads_in_flight = HOME_READS + 1;
    assert_ne!(ask(&world, 1), 1);
}

#[test]
fn a_write_waits_for_late_answers_to_its_read_which_went_by_the_same_number() {
    let mut world = World::new(1, Faults::default());
    world.settle();
    world.patch();
    world.pass(Duration::from_millis(100));
    let (asked, _) = reads_and_verifies(&world);
    let [first, other] = asked[..] else {
        panic!("what is not answered is asked of one more, not of {asked:?}")
    };
    world.answer(other);
    assert_eq!(writes(&world), 0, "{first} still owes an answer by this number");
    world.answer(first);
    assert_eq!(writes(&world), 3);
    world.settle();
    world.members_are_identical().unwrap();
}

fn verified() -> Faults {
    Faults { verified: true, ..Faults::default() }
}

#[test]
fn verified_reads_while_members_come_and_go_and_fail() {
    run_seeds(0..300, 1500, Faults { disconnect: 60, kill_member: 200, bad_read: 60, ..verified() });
    run_seeds(0..300, 2000, Faults { isolate: 200, disconnect: 300, crash_engine: 400, ..verified() });
}

fn reads_and_verifies(world: &World) -> (Vec<usize>, Vec<usize>) {
    let asked = |wanted: fn(&Message) -> bool| {
        (0..3).filter(|&member| world.asked_of(member).into_iter().any(wanted)).collect()
    };
    let verifies = |message: &Message| matches!(message, Message::Verify { stamps_only: true, .. });
    (asked(|message| matches!(message, Message::Read { .. })), asked(verifies))
}

fn writes(world: &World) -> usize {
    let sent = (0..3).flat_map(|member| world.asked_of(member));
    sent.filter(|message| matches!(message, Message::Discard { .. } | Message::Write { .. })).count()
}

#[test]
fn a_witness_that_takes_long_is_passed_over_and_one_that_hangs_is_dropped() {
    let mut world = World::new(1, verified());
    world.settle();
    world.patch();
    let (reader, witness) = match reads_and_verifies(&world) {
        (readers, witnesses) if (readers.len(), witnesses.len()) == (1, 1) => (readers[0], witnesses[0]),
        asked => panic!("one is asked for the block and one for its stamp, not {asked:?}"),
    };
    let third = 3 - reader - witness;
    assert_ne!(reader, witness);
    world.answer(reader);
    world.pass(Duration::from_millis(100));
    assert_eq!(reads_and_verifies(&world), (vec![], vec![witness.min(third), witness.max(third)]));
    let mut hanging = [witness, third];
    hanging.sort_unstable();
    world.pass(Duration::from_millis(2100));
    let expelled: Vec<usize> = (0..3).filter(|&m| world.core.members[m].expelled.is_some()).collect();
    assert_eq!((writes(&world), expelled), (0, hanging.to_vec()));
    world.answer(third);
    assert!(writes(&world) > 0, "what {reader} says and {third} confirms is enough");
    world.settle();
    world.members_are_identical().unwrap();
}

#[test]
fn two_that_were_asked_go_on_when_the_witness_is_gone() {
    let mut world = World::new(1, verified());
    world.settle();
    world.patch();
    let (_, witnesses) = reads_and_verifies(&world);
    world.pass(Duration::from_millis(100));
    let (readers, _) = reads_and_verifies(&world);
    assert_eq!((readers.len(), witnesses.len()), (2, 1));
    world.break_link(witnesses[0]);
    readers.iter().for_each(|&reader| world.answer(reader));
    assert!(readers.iter().all(|&reader| world.core.members[reader].is_ready()));
    world.settle();
    world.members_are_identical().unwrap();
    world.nothing_is_stale().unwrap();
}

#[test]
fn with_two_copies_the_witness_answers_where_the_other_takes_long_and_is_held_against_it() {
    let mut world = World::new(1, verified());
    world.settle();
    world.cut_off(2);
    world.wait_until_dropped(2);
    world.patch();
    let (readers, witnesses) = reads_and_verifies(&world);
    assert_eq!((readers.len(), witnesses.len()), (1, 1));
    let (reader, witness) = (readers[0], witnesses[0]);
    world.pass(Duration::from_millis(100));
    assert_eq!(reads_and_verifies(&world).0, [0, 1]);
    world.answer(witness);
    assert_eq!(writes(&world), 0);
    assert_eq!(reads_and_verifies(&world), (vec![reader], vec![reader]));
    world.answer(reader);
    assert_eq!(writes(&world), 2);
}

#[test]
fn writes_go_on_while_another_key_is_ordered_until_the_record_is_asked_to_have_it() {
    let mut world = World::new(1, verified());
    world.settle();
    world.rekey();
    world.zero(8);
    assert_eq!(writes(&world), 3, "nobody knows whether the authority will ever answer");
    (0..3).for_each(|member| world.answer(member));
    world.ask_authority();
    world.zero(8);
    assert_eq!(writes(&world), 0, "it may be sealed under either key");
    assert!(world.core.reason().is_some_and(|reason| reason.contains("new data key")));
    world.ask_authority();
    assert_eq!((writes(&world), world.core.reason()), (3, None));
    world.settle();
    world.members_are_identical().unwrap();
}
