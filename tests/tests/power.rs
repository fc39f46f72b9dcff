//! Every host loses its power under load: disks with volatile caches forget what was not flushed, or keep
//! half of it, and everything starts on another boot.
//!
//! Named after the rows of the failure table (docs/failure-model.md).

use trivet_tests::bad_disk::{self, BadDisk};
use trivet_tests::checker::Region;
use trivet_tests::hosts::{self, Hosts};
use trivet_tests::loaded::rounds;
use trivet_tests::{Checker, Cluster, Random, Setup, did_not_run, patience, process, replica};

const CAPACITY: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

#[test]
fn f03_f04_f05_power_lost_on_every_host_keeps_what_was_flushed() {
    if let Some(why) = bad_disk::obstacle().or_else(hosts::obstacle) {
        did_not_run!("{why}");
    }
    let seed = Random::seed_from_environment();
    let rounds = rounds(4);
    eprintln!("TRIVET_TEST_SEED={seed} TRIVET_TEST_ROUNDS={rounds}");
    let mut random = Random::new(seed);
    let hosts = Hosts::new();
    let mut setup = Setup::new(3, "1GiB");
    setup.options = ["--capacity", "1GiB"].map(str::to_owned).to_vec();
    setup.launcher = Some(hosts.launcher());
    let cluster = Cluster::start_as(setup);
    cluster.down();
    let under = |pool: &std::path::PathBuf| BadDisk::with_volatile_cache(pool, CAPACITY + (64 << 20));
    let disks: Vec<BadDisk> = cluster.pools().iter().map(under).collect();
    cluster.up();
    let mut region = Region::new(64 * MIB, 4096, 8 * 1024, seed);
    for round in 0..rounds {
        let load = Checker::start(cluster.uri(), region, random.next_u64());
        load.wait_for_progress(200 + random.below(3000), 2 * patience::SOON);
        eprintln!("round {round}");
        disks.iter().for_each(BadDisk::cut_power);
        process::kill_hard(&cluster.processes());
        region = load.stop();
        region.power_lost();
        disks.iter().for_each(|disk| disk.restore_power(&mut random));
        hosts.start_anew();
        cluster.up();
        region.verify(&mut cluster.connect()).expect("a quiet volume can be read");
    }
    assert!(region.units_written() > 1000, "the load was too light");
    cluster.wait_until_in_sync();
    cluster.down();
    replica::assert_pools_sound(&cluster);
    replica::assert_members_identical(&cluster);
    drop(cluster);
    drop(disks);
}
