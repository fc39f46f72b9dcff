//! Disks that fail, hang, fill up, or come back as they were long ago, each under one replica of a volume
//! that is used: its users see nothing of it.
//!
//! Named after the rows of the failure table (docs/failure-model.md).

use std::fs;
use std::path::Path;
use trivet_tests::bad_disk::{BadDisk, Faults, obstacle};
use trivet_tests::blockdev;
use trivet_tests::command::must;
use trivet_tests::{Cluster, Loaded, Setup, did_not_run, not_run, patience, process};

const CAPACITY: u64 = 1 << 30;

/// A loaded cluster of `replicas` servers, the first of which has a disk that may fail. `None` where
/// there can be no such disk, which it says.
fn start(replicas: u32, options: &[&str]) -> Option<(Loaded, BadDisk)> {
    if let Some(why) = obstacle() {
        not_run(&why);
        return None;
    }
    let mut setup = Setup::new(replicas, "1GiB");
    setup.options = ["--capacity", "1GiB"].iter().chain(options).map(|&word| word.to_owned()).collect();
    let cluster = Cluster::start_as(setup);
    cluster.down();
    let disk = BadDisk::under(&cluster.pools()[0], CAPACITY + (64 << 20));
    cluster.up();
    Some((Loaded::on(cluster), disk))
}

/// What `trivet status` says is wrong with a pool.
fn trouble(loaded: &Loaded) -> String {
    loaded.cluster.trivet(&["status"]).succeeded().stdout
}

/// The pool stops and says so, the volume goes on; once the disk works, the pool is opened anew by itself,
/// and the member comes back.
fn stops_the_pool(faults: Faults) {
    let Some((loaded, disk)) = start(3, &[]) else { return };
    disk.set(faults);
    disk.wait_until_struck();
    loaded.cluster.wait_until_one_is_left_behind();
    loaded.goes_on();
    let told = trouble(&loaded);
    assert!(told.contains("the pool has stopped"), "{told}");
    let stopped = loaded.cluster.replica(1);
    disk.set(Faults::default());
    loaded.cluster.wait_until_in_sync();
    let opened = loaded.cluster.replica(1);
    assert_ne!(stopped.pid, opened.pid, "a pool went on after an error of its device");
    loaded.finish();
    drop(disk);
}

#[test]
fn f06_a_failed_flush_stops_the_pool_until_it_is_opened_anew() {
    stops_the_pool(Faults { flushes: true, ..Faults::default() });
}

#[test]
fn f06_a_failed_write_stops_the_pool_until_it_is_opened_anew() {
    stops_the_pool(Faults { writes: true, ..Faults::default() });
}

#[test]
fn f07_a_disk_that_fails_reads_is_read_around() {
    let Some((loaded, disk)) = start(3, &[]) else { return };
    disk.set(Faults { reads: true, ..Faults::default() });
    disk.wait_until_struck();
    loaded.goes_on();
    disk.set(Faults::default());
    loaded.finish();
    drop(disk);
}

#[test]
fn f16_a_disk_that_vanishes_without_an_error_is_noticed_and_replaced() {
    let Some((loaded, disk)) = start(4, &["--replace-after", "3"]) else { return };
    let has_it = |loaded: &Loaded| loaded.cluster.members().iter().any(|(name, _)| name == "replica-1");
    if !has_it(&loaded) {
        let moved = ["replica", "replace", "disk0", "--from", "replica-2", "--to", "replica-1"];
        let _moving = loaded.cluster.trivet(&moved).succeeded();
        loaded.cluster.wait_until_in_sync();
        patience::wait_for("the copy to be moved", 2 * patience::SOON, || {
            (loaded.cluster.members().len() == 3 && has_it(&loaded)).then_some(())
        });
    }
    disk.set(Faults { hangs: true, ..Faults::default() });
    disk.wait_until_struck();
    loaded.cluster.wait_until_one_is_left_behind();
    loaded.goes_on();
    patience::wait_for("the copy to be replaced", 4 * patience::SOON, || {
        let members = loaded.cluster.members();
        (members.len() == 3 && !has_it(&loaded) && members.iter().all(|(_, state)| state == "in-sync"))
            .then_some(())
    });
    loaded.goes_on();
    loaded.load.stop().verify(&mut loaded.cluster.connect()).expect("a quiet volume can be read");
    disk.set(Faults::default());
    drop(loaded.cluster);
    drop(disk);
}

#[test]
fn f18_a_disk_that_hangs_under_a_server_that_answers_is_left_behind_and_returns() {
    let Some((loaded, disk)) = start(3, &[]) else { return };
    disk.set(Faults { hangs: true, ..Faults::default() });
    disk.wait_until_struck();
    loaded.cluster.wait_until_one_is_left_behind();
    loaded.goes_on();
    disk.set(Faults::default());
    loaded.finish();
    drop(disk);
}

#[test]
fn f08_a_full_disk_under_one_member_leaves_the_others_writable() {
    if let Some(why) = blockdev::obstacle_to_memory_disks() {
        did_not_run!("{why}");
    }
    let mut cluster = Cluster::start(3, "2GiB");
    cluster.down();
    cluster.move_to_small_disk(2, 384 << 20);
    cluster.up();
    let loaded = Loaded::on(cluster);
    let mut client = loaded.cluster.connect();
    let piece = vec![0x08; 1 << 20];
    // More than its disk holds, beside the load.
    for number in 256..256 + 384 {
        client.write(number << 20, &piece).expect("the others have room");
    }
    client.flush().expect("the others can flush");
    loaded.cluster.wait_until_one_is_left_behind();
    assert!(
        loaded.cluster.members().iter().any(|(name, state)| name == "replica-2" && state != "in-sync"),
        "{:?}",
        loaded.cluster.members()
    );
    loaded.goes_on();
    // Somebody adds space.
    loaded.cluster.small_disks()[0].resize(2 << 30);
    process::kill_hard(&[loaded.cluster.replica(2)]);
    loaded.cluster.wait_until_in_sync();
    drop(client);
    loaded.finish();
}

/// Copies a stopped pool's folder.
fn copy(from: &Path, to: &Path) {
    must("cp", &["-a", &from.to_string_lossy(), &to.to_string_lossy()]);
}

#[test]
fn f13_an_older_copy_of_a_disk_is_noticed_and_brought_up_to_date() {
    let loaded = Loaded::start();
    let Loaded { cluster, load, .. } = loaded;
    let mut region = load.stop();
    cluster.down();
    let pool = cluster.pools()[0].clone();
    let old = cluster.scratch().join("old");
    copy(&pool, &old);
    cluster.up();
    let mut client = cluster.connect();
    for number in 400..464 {
        client.write(number << 20, &[0x13; 1 << 20]).expect("a write");
    }
    client.flush().expect("a flush");
    drop(client);
    cluster.down();
    fs::remove_dir_all(&pool).expect("a folder can be removed");
    copy(&old, &pool);
    cluster.up();
    let mut client = cluster.connect();
    for number in 400..464 {
        let found = client.read(number << 20, 1 << 20).expect("a read");
        assert!(found == vec![0x13; 1 << 20], "MiB {number} is as it was before");
    }
    region.verify(&mut client).expect("a quiet volume can be read");
    drop(client);
    cluster.wait_until_in_sync();
    cluster.down();
    trivet_tests::replica::assert_pools_sound(&cluster);
    trivet_tests::replica::assert_members_identical(&cluster);
}
