//! A cluster under load, and what is checked in the end: no request failed, nothing acknowledged is lost,
//! the members are in sync and identical.

use crate::checker::Region;
use crate::process::Process;
use crate::{Checker, Cluster, Random, patience, replica};

const MIB: u64 = 1 << 20;

/// The number of rounds of a test that goes on in rounds: `TRIVET_TEST_ROUNDS`, else `default`.
///
/// # Panics
/// When the variable holds no number.
#[must_use]
pub fn rounds(default: u64) -> u64 {
    std::env::var("TRIVET_TEST_ROUNDS")
        .map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("TRIVET_TEST_ROUNDS={text}: {e}")))
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Loaded {
    /// The cluster.
    pub cluster: Cluster,
    /// The load.
    pub load: Checker,
    /// What is chosen at random.
    pub random: Random,
    seed: u64,
    engine_stays: bool,
}

impl Loaded {
    /// A plain cluster of three replicas under load.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start() -> Self {
        Self::on(Cluster::start(3, "1GiB"))
    }

    /// Loads a cluster whose volume has at least 128 MiB.
    ///
    /// # Panics
    /// When the load does not get going.
    #[must_use]
    pub fn on(cluster: Cluster) -> Self {
        let seed = Random::seed_from_environment();
        eprintln!("TRIVET_TEST_SEED={seed}");
        let load = Checker::start(cluster.uri(), Region::new(64 * MIB, 4096, 8 * 1024, seed), seed);
        load.wait_for_progress(500, patience::SOON);
        Self { cluster, load, random: Random::new(seed), seed, engine_stays: true }
    }

    /// The seed that all is drawn from.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// From now on the engine's clients may lose their connections.
    pub const fn engine_may_go(&mut self) {
        self.engine_stays = false;
    }

    /// The server of a replica, chosen at random among those that run.
    ///
    /// # Panics
    /// When none runs.
    pub fn one_replica(&mut self) -> Vec<Process> {
        let replicas = self.cluster.processes_of(crate::Role::Replica);
        vec![self.random.choose(&replicas).clone()]
    }

    /// Waits for so many more answers.
    ///
    /// # Panics
    /// When they do not come.
    pub fn goes_on(&self) {
        self.load.wait_for_progress(2000, 2 * patience::SOON);
    }

    /// Ends the load, checks everything, and takes the cluster down.
    ///
    /// # Panics
    /// When anything is not as it must be.
    pub fn finish(self) {
        let Self { cluster, load, engine_stays, .. } = self;
        cluster.wait_until_in_sync();
        assert!(!engine_stays || load.connections() == 1, "the engine's client lost its connection");
        let mut region = load.stop();
        region.verify(&mut cluster.connect()).expect("a quiet volume can be read");
        cluster.wait_until_in_sync();
        cluster.down();
        replica::assert_pools_sound(&cluster);
        replica::assert_members_identical(&cluster);
    }
}
