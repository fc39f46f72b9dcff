//! A volume that is imported while it is used: right data at every moment, through all faults.

use super::client::source_data;
use super::tests::lose_all_power;
use super::world::{Faults, World};
use crate::request::{IoError, IoReply, IoRequest};
use crate::volume::{PlantedFault, VolumeState};
use trivet_model::{BLOCK_SIZE_U64, BlockRange};
use trivet_wire::Message;

const DEPTH: usize = 12;

fn faults() -> Faults {
    Faults { source_fails: 4, ..Faults::default() }
}

/// Uses the volume until all of the source is in it, through crashes on the way.
fn hydrate(seed: u64, faults: Faults) -> Result<World, String> {
    let mut world = World::new(seed, faults);
    for _ in 0..1500 {
        world.step(DEPTH);
    }
    world.settle();
    world.read_all();
    world.client.check()?;
    world.members_are_identical()?;
    world.open();
    for _ in 0..100_000 {
        if world.hydrated().is_none() && !world.core.is_hydrating() {
            world.read_all();
            world.client.check()?;
            world.members_are_identical()?;
            return Ok(world);
        }
        world.step(0);
    }
    Err(format!("hydration does not end: {:?}", world.core.reason()))
}

fn hydrate_seeds(seeds: std::ops::Range<u64>, faults: Faults) {
    for seed in seeds {
        drop(hydrate(seed, faults).unwrap_or_else(|error| panic!("seed {seed} under {faults:?}: {error}")));
    }
}

#[test]
fn readers_and_writers_see_the_source_and_what_they_wrote() {
    hydrate_seeds(0..500, faults());
}

#[test]
fn engines_that_crash_in_the_middle_go_on() {
    hydrate_seeds(0..700, Faults { crash_engine: 150, disconnect: 200, kill_member: 400, ..faults() });
}

#[test]
fn members_that_come_and_go_and_have_no_space_do_not_stop_it() {
    let away = Faults { isolate: 250, disconnect: 300, crash_engine: 500, full: 300, ..faults() };
    hydrate_seeds(0..500, away);
    hydrate_seeds(0..300, Faults { use_up_stamps: 150, second_engine: 400, ..away });
}

#[test]
fn a_power_loss_takes_neither_what_was_flushed_nor_what_the_source_has() {
    for seed in 0..500 {
        lose_all_power(seed, faults()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn closing_in_the_middle_finishes_what_was_asked() {
    for seed in 0..200 {
        let mut world = World::new(seed, faults());
        for _ in 0..200 {
            world.step(DEPTH);
        }
        if world.core.state() != VolumeState::Open {
            continue;
        }
        assert!(world.close(std::time::Duration::from_secs(3600)), "seed {seed}: not all was finished");
        world.open();
        world.read_all();
        world.client.check().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// A block that was zeroed is zeroed again in part, and the engine crashes while much is not imported yet.
fn zero_in_parts(seed: u64, faults: Faults) -> Result<(), String> {
    let mut world = World::new(seed, faults);
    let finish = |world: &mut World| {
        for _ in 0..3000 {
            world.step(0);
            if world.core.state() == VolumeState::Open && world.client.in_flight() == 0 {
                return;
            }
        }
        panic!("seed {seed}: what was asked is not answered");
    };
    finish(&mut world);
    world.zero(8);
    finish(&mut world);
    world.patch();
    finish(&mut world);
    world.open();
    world.read_all();
    world.client.check()
}

#[test]
fn zeroing_parts_of_blocks_leaves_traces() {
    let faults = Faults { source_fails: 2, ..Faults::default() };
    for seed in 0..200 {
        zero_in_parts(seed, faults).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    let planted = Some(PlantedFault::ZeroPartsWhileHydrating);
    let found = (0..200).filter(|&seed| zero_in_parts(seed, Faults { planted, ..faults }).is_err()).count();
    assert!(found > 10, "ZeroPartsWhileHydrating was found in {found} of 200 seeds");
}

#[test]
fn planted_faults_are_found() {
    // Crashes while much is hydrated that is not on record: soon after an opening, and later.
    let crashes = [50, 150, 300, 600].map(|crash_engine| Faults { crash_engine, ..faults() });
    for planted in
        [PlantedFault::DiscardWhileHydrating, PlantedFault::SkipHydration, PlantedFault::HydrateOverWrites]
    {
        let fails = |faults, seed| {
            let faults = Faults { planted: Some(planted), ..faults };
            std::panic::catch_unwind(|| hydrate(seed, faults).is_err()).unwrap_or(true)
        };
        let found = crashes.map(|faults| (0..400).filter(|&seed| fails(faults, seed)).count());
        eprintln!("{planted:?} was found in {found:?} of 400 seeds each");
        assert!(found.iter().sum::<usize>() > 5, "{planted:?} was found in {found:?} of 400 seeds each");
    }
    let planted = Some(PlantedFault::BelieveFailedOverwrites);
    let full = [15, 30, 60].map(|full| Faults { planted, full, ..faults() });
    let found = full.map(|faults| (0..400).filter(|&seed| hydrate(seed, faults).is_err()).count());
    eprintln!("BelieveFailedOverwrites was found in {found:?} of 400 seeds each");
    assert!(
        found.iter().sum::<usize>() > 5,
        "BelieveFailedOverwrites was found in {found:?} of 400 seeds each"
    );
    let faults = Faults { planted: Some(PlantedFault::RecordUnstableHydration), ..faults() };
    let found = (0..600).filter(|&seed| lose_all_power(seed, faults).is_err()).count();
    assert!(found > 3, "RecordUnstableHydration was found in {found} of 600 seeds");
}

#[test]
fn a_source_that_is_away_is_named_and_nothing_wrong_is_read() {
    let mut world = World::new(7, Faults { source_fails: 1, ..Faults::default() });
    for _ in 0..3000 {
        world.step(DEPTH);
    }
    let reason = world.core.reason().unwrap_or_default();
    assert!(reason.contains("the source is away"), "{reason}");
    assert!(world.core.waits_for_source(), "who asked for what is not there waits");
    assert_eq!(world.hydrated(), Some(0));
    world.client.check().unwrap_or_else(|error| panic!("{error}"));
    // Those who wait are told when the volume is given up.
    assert!(!world.close(std::time::Duration::from_secs(2)));
}

/// A volume of so many blocks that is imported from a source of fewer.
fn larger(blocks: u64, source_blocks: u64) -> World {
    let mut world = World::new(3, Faults { source_fails: u32::MAX, ..Faults::default() });
    world.enlarge(blocks, source_blocks);
    world.wait_until("it to be open", |world| world.core.state() == VolumeState::Open);
    world
}

fn discard_all(world: &mut World, blocks: u64) {
    world.submit(IoRequest::Discard { offset: 0, length: blocks * BLOCK_SIZE_U64 });
}

#[test]
fn a_discard_frees_what_is_imported_or_was_never_the_sources_and_zeroes_the_rest() {
    let (blocks, source_blocks) = (600, 400);
    let mut world = larger(blocks, source_blocks);
    world.fill(BlockRange::new(0, 100), 1);
    world.fill(BlockRange::new(350, 150), 2);
    world.wait_until("some of it to be imported", |world| world.hydrated().is_some_and(|block| block > 50));
    let imported = world.hydrated().expect("not all is");
    assert!(imported < source_blocks);
    discard_all(&mut world, blocks);
    world.settle();
    let data = |block| world.members[0].blocks.get(&block).map(|version| version.data.is_some());
    let holes = |mut blocks: std::ops::Range<u64>| blocks.all(|block| data(block) != Some(true));
    assert!(holes(0..imported), "what is imported is freed");
    assert!(holes(source_blocks..blocks), "what was never the source's is freed");
    assert!(
        (imported..source_blocks).any(|block| data(block) == Some(true)),
        "the rest is zeroed by writing"
    );
    world.wait_until("the rest to be imported", |world| world.hydrated().is_none());
    let zeros = |data: &bytes::Bytes| data.iter().all(|&byte| byte == 0);
    let versions = world.members[0].blocks.values();
    assert!(versions.flat_map(|version| &version.data).all(zeros), "all of it is zeros");
}

#[test]
fn a_large_discard_keeps_nobody_waiting() {
    // Far more than may be in flight.
    let (blocks, source_blocks) = (20_001, 20_000);
    let mut world = larger(blocks, source_blocks);
    discard_all(&mut world, blocks);
    let blocks_sent = |world: &World| -> u64 {
        let sent = world.asked_of(0).into_iter().map(|message| match message {
            Message::Write { data, .. } => data.blocks() as u64,
            _ => 0,
        });
        sent.sum()
    };
    world.wait_until("a part to be sent", |world| blocks_sent(world) > 0);
    assert!(blocks_sent(&world) <= 4, "a little at a time: {}", blocks_sent(&world));
    let offset = source_blocks * BLOCK_SIZE_U64;
    world.submit(IoRequest::Read { offset, length: 4096 });
    let is_asked = (0..3).any(|member| {
        world.asked_of(member).into_iter().any(|message| matches!(message, Message::Read { .. }))
    });
    assert!(is_asked, "a read does not wait for it");
    // Those who wait are told when the volume is given up.
    assert!(!world.close(std::time::Duration::from_secs(1)));
}

fn read_block(world: &mut World, block: u64) -> Result<Vec<u8>, IoError> {
    match world.ask(IoRequest::Read { offset: block * BLOCK_SIZE_U64, length: 4096 })? {
        IoReply::Data(segments) => Ok(segments.concat()),
        other => panic!("a read is answered {other:?}"),
    }
}

fn write(offset: u64, bytes: usize) -> IoRequest {
    IoRequest::Write { offset, segments: vec![vec![7; bytes].into()], force_unit_access: false }
}

/// A source whose first block has rotted, and all else of it is imported.
fn rotten() -> World {
    let mut world = larger(8, 6);
    world.source_lacks.insert(0);
    let rest_is_there = |world: &World| {
        world.core.status(std::time::Duration::ZERO).import.is_some_and(|import| import.position == 5)
    };
    world.wait_until("the rest to be imported", rest_is_there);
    assert_eq!(world.hydrated(), Some(0), "the import is not done");
    world
}

#[test]
fn a_block_that_the_source_has_lost_fails_alone_and_is_named() {
    let mut world = rotten();
    let reason = world.core.reason().unwrap_or_default();
    assert!(reason.contains("does not give block 0 (a bad sector)"), "{reason}");
    assert_eq!(read_block(&mut world, 1), Ok(source_data(4096, 4096).to_vec()));
    for request in [IoRequest::Read { offset: 0, length: 512 }, write(512, 512), write(512, 8192)] {
        let error = world.ask(request).unwrap_err();
        let words = error.to_string();
        assert!(matches!(error, IoError::Medium { start: 0, end: 1, .. }), "{words}");
        assert!(words.contains("a bad sector"), "{words}");
    }
    // Another engine finds the same.
    world.open();
    world.wait_until("it to be open", |world| world.core.state() == VolumeState::Open);
    assert!(read_block(&mut world, 0).is_err());
}

#[test]
fn overwriting_or_discarding_what_the_source_has_lost_ends_it() {
    let requests = [
        (write(0, 4096), 7),
        (write(0, 8192), 7),
        (IoRequest::Discard { offset: 0, length: 4096 }, 0),
        (IoRequest::Discard { offset: 0, length: 6 * 4096 }, 0),
    ];
    for (request, byte) in requests {
        let mut world = rotten();
        assert_eq!(world.ask(request), Ok(IoReply::Done));
        assert_eq!(read_block(&mut world, 0), Ok(vec![byte; 4096]));
        world.wait_until("the import to end", |world| world.hydrated().is_none());
        assert_eq!(read_block(&mut world, 0), Ok(vec![byte; 4096]));
        assert_eq!(world.core.reason(), None);
    }
}

#[test]
fn what_the_source_gives_again_is_imported() {
    let mut world = rotten();
    world.source_lacks.clear();
    world.wait_until("the import to end", |world| world.hydrated().is_none());
    assert_eq!(read_block(&mut world, 0), Ok(source_data(0, 4096).to_vec()));
}

#[test]
fn many_bad_sectors_do_not_stop_the_rest() {
    let mut world = larger(600, 600);
    world.source_lacks.extend((0..400).step_by(2));
    let rest_is_there = |world: &World| {
        world.core.status(std::time::Duration::ZERO).import.is_some_and(|import| import.position == 400)
    };
    world.wait_until("the rest to be imported", rest_is_there);
    let reason = world.core.reason().unwrap_or_default();
    assert!(reason.contains("block 0 and 199 others"), "{reason}");
    discard_all(&mut world, 600);
    world.wait_until("the import to end", |world| world.hydrated().is_none());
}

/// A volume in use whose source has lost a block, and gives it again in the end.
fn hydrate_rotten(seed: u64, faults: Faults) -> Result<(), String> {
    let mut world = World::new(seed, faults);
    world.source_lacks.insert(seed % 5);
    for _ in 0..2500 {
        world.step(DEPTH);
    }
    world.client.check()?;
    world.source_lacks.clear();
    world.settle();
    world.wait_until("the import to end", |world| world.hydrated().is_none());
    world.read_all();
    world.client.check()?;
    world.members_are_identical()
}

#[test]
fn a_source_that_has_lost_blocks_is_imported_through_faults() {
    let faults = Faults { source_fails: 8, ..Faults::default() };
    let others = [
        faults,
        Faults { crash_engine: 300, disconnect: 200, ..faults },
        Faults { isolate: 400, full: 100, crash_engine: 900, ..faults },
    ];
    for seed in 0..200 {
        for faults in others {
            hydrate_rotten(seed, faults)
                .unwrap_or_else(|error| panic!("seed {seed} under {faults:?}: {error}"));
        }
    }
}

/// Blocks of an encrypted volume are written before the source can be reached. Then a new engine opens it, and one
/// member says that it does not have them. What they hold when all is imported.
fn hide(liar: usize, planted: Option<PlantedFault>) -> Vec<Vec<u8>> {
    let mut world = World::new(5, Faults { source_fails: 1, verified: true, planted, ..Faults::default() });
    world.wait_until("it to be open", |world| world.core.state() == VolumeState::Open);
    assert_eq!(world.ask(write(0, 8192)), Ok(IoReply::Done));
    world.members[liar].hides.extend([0, 1]);
    world.open();
    world.let_source_fail(u32::MAX);
    world.wait_until("the import to end", |world| world.hydrated().is_none());
    [0, 1].map(|block| read_block(&mut world, block).unwrap()).to_vec()
}

#[test]
fn no_member_alone_can_have_the_source_written_over_an_encrypted_volume() {
    for liar in 0..3 {
        assert_eq!(hide(liar, None), [[7; 4096]; 2]);
    }
    let planted = Some(PlantedFault::HydrateOnOneWord);
    let found = (0..3).filter(|&liar| hide(liar, planted) != [[7; 4096]; 2]).count();
    assert!(found > 0, "the one that is asked is believed");
}

#[test]
fn encrypted_volumes_are_imported_through_faults() {
    let verified = Faults { verified: true, ..faults() };
    hydrate_seeds(0..200, verified);
    hydrate_seeds(0..200, Faults { crash_engine: 150, disconnect: 200, kill_member: 400, ..verified });
    hydrate_seeds(0..200, Faults { isolate: 250, disconnect: 300, crash_engine: 500, full: 300, ..verified });
}
