//! Members that fail, hang or are slow while a volume is used: I/O goes on, and they come back by
//! themselves, identical.
//!
//! Named after the rows of the failure table (docs/failure-model.md). `TRIVET_TEST_SEED` gives a failing
//! run's seed again, `TRIVET_TEST_ROUNDS` the number of rounds.

use trivet_tests::checker::Region;
use trivet_tests::process::{self, Process};
use trivet_tests::{Checker, Cluster, Random, Role, patience, replica};

const MIB: u64 = 1 << 20;
const ROUNDS_DEFAULT: u64 = 3;

fn rounds() -> u64 {
    std::env::var("TRIVET_TEST_ROUNDS").map_or(ROUNDS_DEFAULT, |text| {
        text.parse().unwrap_or_else(|e| panic!("TRIVET_TEST_ROUNDS={text}: {e}"))
    })
}

/// A cluster under load, and what is checked at the end: no request failed, nothing acknowledged is lost,
/// the members are in sync and identical.
struct Loaded {
    cluster: Cluster,
    load: Checker,
    random: Random,
}

impl Loaded {
    fn start() -> Self {
        let seed = Random::seed_from_environment();
        eprintln!("TRIVET_TEST_SEED={seed}");
        let cluster = Cluster::start(3, "1GiB");
        let load = Checker::start(cluster.uri(), Region::new(64 * MIB, 4096, 8 * 1024, seed), seed);
        load.wait_for_progress(500, patience::SOON);
        Self { cluster, load, random: Random::new(seed) }
    }

    fn one_replica(&mut self) -> Vec<Process> {
        let replicas = self.cluster.processes_of(Role::Replica);
        let chosen = usize::try_from(self.random.below(replicas.len() as u64)).expect("few");
        vec![replicas[chosen].clone()]
    }

    fn finish(self) {
        let Self { cluster, load, .. } = self;
        cluster.wait_until_in_sync();
        let mut region = load.stop();
        region.verify(&mut cluster.connect()).expect("a quiet volume can be read");
        cluster.wait_until_in_sync();
        cluster.down();
        replica::assert_pools_sound(&cluster);
        replica::assert_members_identical(&cluster);
    }
}

#[test]
fn f01_a_killed_replica_comes_back_by_itself() {
    let mut loaded = Loaded::start();
    for round in 0..rounds() {
        eprintln!("round {round}");
        process::kill_hard(&loaded.one_replica());
        loaded.load.wait_for_progress(2000, patience::SOON);
        loaded.cluster.wait_until_in_sync();
    }
    loaded.finish();
}

#[test]
fn f18_a_replica_that_hangs_is_left_behind_and_brought_back() {
    let mut loaded = Loaded::start();
    for round in 0..rounds() {
        eprintln!("round {round}");
        let hanging = loaded.one_replica();
        process::pause(&hanging, true);
        loaded.cluster.wait_until_one_is_left_behind();
        loaded.load.wait_for_progress(2000, patience::SOON);
        process::pause(&hanging, false);
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
    patience::wait_for("two members to be dropped", 2 * patience::SOON, || {
        let states = loaded.cluster.member_states();
        (states.iter().filter(|state| *state != "in-sync").count() == 2).then_some(())
    });
    loaded.load.wait_for_progress(2000, patience::SOON);
    process::pause(&replicas[..2], false);
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
    loaded.load.wait_for_progress(2000, 2 * patience::SOON);
    loaded.finish();
}
