//! Everything at once, on a seeded schedule, over real processes in network namespaces: processes are
//! killed and paused, hosts parted both ways and one way, a disk is filled, and after each round all is
//! mended. What checks (`tests/src/checker.rs`) lives in this process, which outlives all of them.
//!
//! `TRIVET_TEST_SEED` gives the choices again, `TRIVET_TEST_ROUNDS` the number of rounds.

use std::time::Duration;
use trivet_tests::blockdev::{Mount, obstacle_to_memory_disks};
use trivet_tests::control_group::{self, ControlGroup};
use trivet_tests::loaded::rounds;
use trivet_tests::namespaces::{self, Network, Node};
use trivet_tests::process::{self, Process};
use trivet_tests::{Cluster, Loaded, Random, Role, did_not_run, patience};

const DISK_BYTES: u64 = 768 << 20;

/// What goes wrong in a round.
#[derive(Clone, Copy, Debug)]
enum Blow {
    KillReplica(u32),
    KillEngine,
    KillManager,
    PauseReplica(u32),
    PauseEngine,
    PauseManager,
    CutOff(Node),
    OneWay(Node, Node),
    FillDisk(usize),
}

fn draw(random: &mut Random) -> Blow {
    let number = 1 + u32::try_from(random.below(3)).expect("few");
    let replica = Node::Replica(number);
    match random.below(12) {
        0 | 1 => Blow::KillReplica(number),
        2 => Blow::KillEngine,
        3 => Blow::KillManager,
        4 | 5 => Blow::PauseReplica(number),
        6 => Blow::PauseEngine,
        7 => Blow::PauseManager,
        8 => Blow::CutOff(if random.chance(70) { replica } else { Node::Engine }),
        9 => Blow::OneWay(replica, Node::Engine),
        10 => Blow::OneWay(Node::Engine, replica),
        _ => Blow::FillDisk(usize::try_from(number).expect("few") - 1),
    }
}

/// The cluster and all that is done to it.
struct Site {
    loaded: Loaded,
    network: Network,
    paused: Vec<Process>,
}

impl Site {
    fn start() -> Self {
        let network = Network::new(3);
        let mut cluster = Cluster::start_as(network.setup("1GiB"));
        cluster.down();
        (1..=3).for_each(|number| cluster.move_to_small_disk(number, DISK_BYTES));
        cluster.up();
        let mut loaded = Loaded::on(cluster);
        loaded.engine_may_go();
        Self { loaded, network, paused: Vec::new() }
    }

    /// Those of a role that run, if any do by now.
    fn running(&self, wanted: impl Fn(&Process) -> bool) -> Vec<Process> {
        self.loaded.cluster.processes().into_iter().filter(wanted).collect()
    }

    fn replica(&self, number: u32) -> Vec<Process> {
        let folder = &self.loaded.cluster.pools()[usize::try_from(number).expect("few") - 1];
        self.running(|process| process.names(folder))
    }

    fn pause(&mut self, processes: Vec<Process>) {
        if !processes.is_empty() {
            process::pause(&processes, true);
            self.paused.extend(processes);
        }
    }

    fn strike(&mut self, blow: Blow) {
        match blow {
            Blow::KillReplica(number) => process::kill_hard(&self.replica(number)),
            Blow::KillEngine => process::kill_hard(&self.running(|process| process.is(Role::Engine))),
            Blow::KillManager => process::kill_hard(&self.running(|process| process.is(Role::Manager))),
            Blow::PauseReplica(number) => self.pause(self.replica(number)),
            Blow::PauseEngine => self.pause(self.running(|process| process.is(Role::Engine))),
            Blow::PauseManager => self.pause(self.running(|process| process.is(Role::Manager))),
            Blow::CutOff(node) => self.network.cut_off(node),
            Blow::OneWay(from, to) => self.network.block(from, to),
            Blow::FillDisk(index) => self.loaded.cluster.small_disks()[index].fill(),
        }
    }

    fn mend(&mut self) {
        self.network.heal();
        self.loaded.cluster.small_disks().iter().for_each(Mount::empty);
        let paused: Vec<Process> = self.paused.drain(..).filter(Process::is_running).collect();
        if !paused.is_empty() {
            process::pause(&paused, false);
        }
        // Whoever is gone comes back; pools that stopped for want of space are opened anew by themselves.
        self.loaded.cluster.up();
    }
}

#[test]
fn whatever_goes_wrong_nothing_acknowledged_is_lost_and_members_converge() {
    if let Some(why) = namespaces::obstacle().or_else(obstacle_to_memory_disks) {
        did_not_run!("{why}");
    }
    let mut site = Site::start();
    for round in 0..rounds(8) {
        let count = 1 + site.loaded.random.below(3);
        let blows: Vec<Blow> = (0..count).map(|_| draw(&mut site.loaded.random)).collect();
        let lasting = Duration::from_millis(site.loaded.random.below(6000));
        eprintln!("round {round}: {blows:?} for {lasting:?}");
        blows.iter().for_each(|blow| site.strike(*blow));
        patience::until(patience::now() + lasting);
        site.mend();
        site.loaded.load.wait_for_progress(1000, 3 * patience::SOON);
        if round % 4 == 3 {
            site.loaded.cluster.wait_until_in_sync();
        }
    }
    // The network outlives the cluster.
    let Site { loaded, network, .. } = site;
    loaded.finish();
    drop(network);
}

#[test]
fn f32_processes_starved_of_cpu_and_memory_throw_no_member_out() {
    if let Some(why) = control_group::obstacle() {
        did_not_run!("{why}");
    }
    let loaded = Loaded::start();
    let epoch = || loaded.cluster.trivet_json(&["volume", "show", "disk0"])["epoch"].clone();
    let before = epoch();
    let group = ControlGroup::new("starved", 10, 256 << 20);
    group.take_in(&loaded.cluster.processes());
    loaded.goes_on();
    patience::wait_for("the processes to be throttled", 2 * patience::SOON, || {
        (group.times_throttled() > 100).then_some(())
    });
    assert_eq!(epoch(), before, "starved of everything alike, members were thrown out");
    drop(group);
    loaded.goes_on();
    assert_eq!(epoch(), before, "members were thrown out afterwards");
    loaded.finish();
}
