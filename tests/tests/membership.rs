//! Members that fail, hang or are slow while a volume is used: I/O goes on, and they come back by
//! themselves, identical.
//!
//! Named after the rows of the failure table (docs/failure-model.md). `TRIVET_TEST_SEED` gives a failing
//! run's seed again, `TRIVET_TEST_ROUNDS` the number of rounds.

use std::fs;
use trivet_tests::loaded::rounds;
use trivet_tests::{Cluster, Loaded, Role, Setup, patience, process};

#[test]
fn f01_a_killed_replica_comes_back_by_itself() {
    let mut loaded = Loaded::start();
    for round in 0..rounds(3) {
        let killed = loaded.one_replica();
        eprintln!("round {round}: process {}", killed[0].pid);
        process::kill_hard(&killed);
        // It may be back before the engine has to go on without it.
        loaded.load.wait_for_progress(200 + loaded.random.below(2000), patience::SOON);
        loaded.cluster.wait_until_in_sync();
    }
    loaded.finish();
}

#[test]
fn f01_two_replicas_may_go_one_after_the_other() {
    let loaded = Loaded::start();
    let replicas = loaded.cluster.processes_of(Role::Replica);
    process::pause(&replicas[..1], true);
    loaded.cluster.wait_until_one_is_left_behind();
    process::pause(&replicas[1..2], true);
    loaded.cluster.wait_until_left_behind(2);
    loaded.goes_on();
    process::pause(&replicas[..2], false);
    loaded.finish();
}

#[test]
fn f15_a_lost_disk_is_rebuilt_on_another_with_nobody_doing_anything() {
    let mut setup = Setup::new(3, "1GiB");
    setup.options = ["--replace-after", "3"].map(str::to_owned).to_vec();
    setup.replicas = 4;
    let mut loaded = Loaded::on(Cluster::start_as(setup));
    let members = loaded.cluster.members();
    assert_eq!(members.len(), 3, "one server is to spare: {members:?}");
    let lost = loaded.random.choose(&members).0.clone();
    let folder = loaded.cluster.directory().join(&lost);
    eprintln!("{lost} loses its disk");
    let number: usize = lost.trim_start_matches("replica-").parse().expect("replica-N");
    // The folder first: what is restarted must not find anything.
    fs::rename(&folder, loaded.cluster.scratch().join("lost")).expect("a folder can be moved");
    process::kill_hard(&[loaded.cluster.replica(number)]);
    patience::wait_for("the copy to be replaced", 4 * patience::SOON, || {
        let members = loaded.cluster.members();
        let replaced =
            members.len() == 3 && members.iter().all(|(name, state)| *name != lost && state == "in-sync");
        replaced.then_some(())
    });
    loaded.goes_on();
    loaded.load.stop().verify(&mut loaded.cluster.connect()).expect("a quiet volume can be read");
}

#[test]
fn f18_a_replica_that_hangs_is_left_behind_and_brought_back() {
    let mut loaded = Loaded::start();
    for round in 0..rounds(2) {
        eprintln!("round {round}");
        let hanging = loaded.one_replica();
        process::pause(&hanging, true);
        loaded.cluster.wait_until_one_is_left_behind();
        loaded.goes_on();
        process::pause(&hanging, false);
        loaded.cluster.wait_until_in_sync();
    }
    loaded.finish();
}

#[test]
fn f28_what_is_written_during_a_rebuild_is_on_every_member() {
    let mut loaded = Loaded::start();
    let away = loaded.one_replica();
    process::pause(&away, true);
    loaded.cluster.wait_until_one_is_left_behind();
    // Much to copy, so that the rebuild has the load beside it for long.
    let mut client = loaded.cluster.connect();
    let piece = vec![0x28; 1 << 20];
    for number in 256..640 {
        client.write(number << 20, &piece).expect("the volume goes on");
    }
    process::pause(&away, false);
    patience::wait_for("the rebuild to begin", 2 * patience::SOON, || {
        let states = loaded.cluster.member_states();
        states.iter().any(|state| state == "syncing").then_some(())
    });
    let before = loaded.load.acknowledged();
    loaded.cluster.wait_until_in_sync();
    let meanwhile = loaded.load.acknowledged() - before;
    eprintln!("{meanwhile} requests were answered during the rebuild");
    assert!(meanwhile > 0, "the load stood still while the member was rebuilt");
    drop(client);
    loaded.finish();
}

#[test]
fn f34_with_every_manager_down_io_goes_on() {
    let loaded = Loaded::start();
    process::kill_hard(&loaded.cluster.processes_of(Role::Manager));
    loaded.goes_on();
    loaded.goes_on();
    loaded.cluster.up();
    loaded.finish();
}

#[test]
fn f34_without_a_manager_a_failed_member_pauses_the_volume_and_nothing_fails() {
    let mut loaded = Loaded::start();
    let failing = loaded.one_replica();
    process::kill_hard(&loaded.cluster.processes_of(Role::Manager));
    loaded.load.wait_for_progress(500, patience::SOON);
    process::kill_hard(&failing);
    loaded.cluster.up();
    loaded.goes_on();
    loaded.finish();
}
