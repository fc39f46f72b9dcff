//! `kill -9` of any or all processes under load: nothing acknowledged is lost, no block is mixed,
//! and the members end up identical.
//!
//! `TRIVET_TEST_SEED` gives a failing run's seed again, `TRIVET_TEST_ROUNDS` the number of rounds
//! (`make soak ROUNDS=100`).

use std::time::Duration;
use trivet_tests::checker::Region;
use trivet_tests::gates::Gates;
use trivet_tests::loaded::rounds;
use trivet_tests::process::{self, Process};
use trivet_tests::{Checker, Cluster, Loaded, Random, Role, Setup, patience, replica};

const ROUNDS_DEFAULT: u64 = 6;
const MIB: u64 = 1 << 20;

/// Who dies in a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    Engine,
    OneReplica,
    TwoReplicas,
    EveryReplica,
    Manager,
    EngineAndOneReplica,
    Everything,
}

const VICTIMS: [Victim; 7] = [
    Victim::Everything,
    Victim::Engine,
    Victim::OneReplica,
    Victim::Manager,
    Victim::EngineAndOneReplica,
    Victim::EveryReplica,
    Victim::TwoReplicas,
];

fn victims(cluster: &Cluster, victim: Victim, random: &mut Random) -> Vec<Process> {
    let mut replicas = cluster.processes_of(Role::Replica);
    let first = usize::try_from(random.below(replicas.len() as u64)).expect("few");
    replicas.rotate_left(first);
    match victim {
        Victim::Engine => cluster.processes_of(Role::Engine),
        Victim::OneReplica => replicas[..1].to_vec(),
        Victim::TwoReplicas => replicas[..2].to_vec(),
        Victim::EveryReplica => replicas,
        Victim::Manager => cluster.processes_of(Role::Manager),
        Victim::EngineAndOneReplica => [cluster.processes_of(Role::Engine), replicas[..1].to_vec()].concat(),
        Victim::Everything => cluster.processes(),
    }
}

/// Two regions at once: whole blocks, and sectors that the engine must read, change and write.
struct Load {
    blocks: Checker,
    sectors: Checker,
}

impl Load {
    fn start(cluster: &Cluster, (blocks, sectors): (Region, Region), seed: u64) -> Self {
        let blocks = Checker::start(cluster.uri(), blocks, seed);
        let sectors = Checker::start(cluster.uri(), sectors, seed.rotate_left(1));
        Self { blocks, sectors }
    }

    fn wait_for_progress(&self, count: u64, bound: Duration) {
        self.blocks.wait_for_progress(count, bound);
        self.sectors.wait_for_progress(count / 8, bound);
    }

    fn stop(self) -> (Region, Region) {
        (self.blocks.stop(), self.sectors.stop())
    }
}

#[test]
fn f01_f02_f34_f35_kill_9_of_anyone_loses_nothing_acknowledged() {
    let seed = Random::seed_from_environment();
    let rounds = rounds(ROUNDS_DEFAULT);
    eprintln!("TRIVET_TEST_SEED={seed} TRIVET_TEST_ROUNDS={rounds}");
    let mut random = Random::new(seed);
    let cluster = Cluster::start(3, "1GiB");
    let mut regions = (Region::new(64 * MIB, 4096, 12 * 1024, seed), Region::new(4 * MIB, 512, 4096, seed));
    for round in 0..rounds {
        // The first rounds take each kind once, whatever the seed.
        let in_turn = usize::try_from(round).ok().and_then(|index| VICTIMS.get(index));
        let victim = *in_turn.unwrap_or_else(|| random.choose(&VICTIMS));
        let before = 100 + random.below(3000);
        eprintln!("round {round}: {victim:?} after {before} requests");
        let load = Load::start(&cluster, regions, random.next_u64());
        load.wait_for_progress(before, patience::SOON);
        process::kill_hard(&victims(&cluster, victim, &mut random));
        if victim == Victim::Manager {
            // F34: I/O goes on with nobody in charge.
            load.wait_for_progress(500, patience::SOON);
        }
        cluster.up();
        load.wait_for_progress(200, 2 * patience::SOON);
        regions = load.stop();
        let mut client = cluster.connect();
        regions.0.verify(&mut client).expect("a quiet volume can be read");
        regions.1.verify(&mut client).expect("a quiet volume can be read");
        if round % 10 == 9 || round + 1 == rounds {
            drop(client);
            cluster.wait_until_in_sync();
            cluster.down();
            replica::assert_pools_sound(&cluster);
            replica::assert_members_identical(&cluster);
            cluster.up();
        }
    }
    assert!(regions.0.units_written() > 1000 && regions.1.units_written() > 100, "the load was too light");
}

#[test]
fn f35_kill_9_of_everything_at_once_keeps_each_flushed_byte() {
    let cluster = Cluster::start(3, "256MiB");
    let mut client = cluster.connect();
    let mut expected = vec![0; 8 << 20];
    Random::new(3).fill(&mut expected);
    for (index, piece) in expected.chunks(256 << 10).enumerate() {
        client.write((index as u64) * (256 << 10), piece).expect("a write");
    }
    client.flush().expect("a flush");
    process::kill_hard(&cluster.processes());
    cluster.up();
    let found = cluster.connect().read(0, 8 << 20).expect("a read");
    assert!(found == expected, "what was flushed is not what is read");
}

#[test]
fn f01_a_member_that_is_gone_fails_nothing() {
    let seed = Random::seed_from_environment();
    eprintln!("TRIVET_TEST_SEED={seed}");
    let cluster = Cluster::start(3, "256MiB");
    let load = Checker::start(cluster.uri(), Region::new(0, 4096, 4096, seed), seed);
    load.wait_for_progress(200, patience::SOON);
    // The manager first, so that nobody brings the replica back before `up`.
    process::kill_hard(&cluster.processes_of(Role::Manager));
    process::kill_hard(&cluster.processes_of(Role::Replica)[..1]);
    cluster.up();
    load.wait_for_progress(500, 2 * patience::SOON);
    let mut region = load.stop();
    region.verify(&mut cluster.connect()).expect("a quiet volume can be read");
    cluster.wait_until_in_sync();
    cluster.down();
    replica::assert_members_identical(&cluster);
}

#[test]
fn f02_a_killed_engine_keeps_what_it_acknowledged_and_members_converge() {
    let mut loaded = Loaded::start();
    loaded.engine_may_go();
    for round in 0..rounds(3) {
        eprintln!("round {round}");
        process::kill_hard(&loaded.cluster.processes_of(Role::Engine));
        loaded.load.wait_for_progress(200 + loaded.random.below(2000), 2 * patience::SOON);
    }
    loaded.finish();
}

#[test]
fn f35_a_cluster_restarts_in_any_order() {
    let gates = Gates::new();
    let mut setup = Setup::new(3, "1GiB");
    setup.launcher = Some(gates.launcher());
    let mut loaded = Loaded::on(Cluster::start_as(setup));
    loaded.engine_may_go();
    for round in 0..rounds(2) {
        let mut names = ["replica-1", "replica-2", "replica-3", "engine-disk0"];
        loaded.random.shuffle(&mut names);
        eprintln!("round {round}: {names:?}");
        names.iter().for_each(|name| gates.close(name));
        process::kill_hard(&loaded.cluster.processes());
        std::thread::scope(|scope| {
            let up = scope.spawn(|| loaded.cluster.up());
            for name in names {
                gates.open(name);
                patience::wait_for(name, patience::SOON, || {
                    let lock = loaded.cluster.directory().join("run").join(name).with_extension("lock");
                    loaded.cluster.processes().iter().any(|process| process.names(&lock)).then_some(())
                });
            }
            up.join().expect("the cluster comes up");
        });
        loaded.goes_on();
    }
    loaded.finish();
}
