//! Scrubs of a running cluster whose disks have rotted.

use serde_json::Value;
use trivet_tests::cluster::trivet;
use trivet_tests::command;
use trivet_tests::pool::{blocks, flip, pool_file};
use trivet_tests::process::{self, Role};
use trivet_tests::{Cluster, Random, patience};

const BLOCK: usize = 4096;
const DATA_BLOCKS: usize = 4096;

/// A cluster whose volume begins with known data, all of it stable, and that data.
fn written() -> (Cluster, Vec<u8>) {
    let cluster = Cluster::start(3, "64MiB");
    let mut data = vec![0; DATA_BLOCKS * BLOCK];
    Random::new(17).fill(&mut data);
    let mut client = cluster.connect();
    for (index, piece) in data.chunks(256 << 10).enumerate() {
        client.write((index as u64) * (256 << 10), piece).expect("a write");
    }
    client.flush().expect("a flush");
    (cluster, data)
}

/// Changes a block of the volume on one member's disk.
fn rot(cluster: &Cluster, member: usize, data: &[u8], block: usize) {
    let file = pool_file(&cluster.pools()[member]);
    let copies = blocks(&file, |found| found == &data[block * BLOCK..(block + 1) * BLOCK]);
    assert_eq!(copies.len(), 1, "block {block} lies once in {}", file.display());
    flip(&file, copies[0] + 321);
}

fn scrub_of(cluster: &Cluster) -> Value {
    cluster.trivet_json(&["volume", "show", "disk0"])["scrub"].take()
}

fn assert_all_reads_right(cluster: &Cluster, data: &[u8]) {
    let mut client = cluster.connect();
    for (index, piece) in data.chunks(256 << 10).enumerate() {
        let length = u32::try_from(piece.len()).expect("small");
        let found = client.read((index as u64) * (256 << 10), length).expect("a read");
        assert!(found == piece, "piece {index}");
    }
}

fn assert_pools_are_sound(cluster: &Cluster) {
    cluster.down();
    for pool in cluster.pools() {
        let _sound = command::run(trivet().arg("check").arg(&pool), patience::LONG).succeeded();
    }
}

#[test]
fn f10_rot_in_two_pools_is_repaired_under_a_running_cluster() {
    let (cluster, data) = written();
    for (member, block) in [(0, 5), (0, 6), (0, 3000), (1, 77), (1, 3000)] {
        rot(&cluster, member, &data, block);
    }
    let found = cluster.trivet_json(&["volume", "scrub", "disk0", "--rate", "1GiB"]);
    let counts = &found["last"]["counts"];
    assert_eq!(
        (&counts["repaired"], &counts["mismatched"], &counts["unrepairable"]),
        (&5.into(), &0.into(), &0.into())
    );
    assert_eq!(counts["compared_blocks"], 64 << 8);
    assert_eq!((&found["running"], &found["bytes_per_second_max"]), (&Value::Null, &(1 << 30).into()));
    let again = cluster.trivet_json(&["volume", "scrub", "disk0"]);
    assert_eq!(again["last"]["counts"]["repaired"], 0, "once repaired, it is right: {again}");
    assert_eq!(again["last"]["run"], 2);
    assert_all_reads_right(&cluster, &data);
    assert_pools_are_sound(&cluster);
}

#[test]
fn f14_disjoint_corruption_on_every_member_is_repaired() {
    let (cluster, data) = written();
    for (member, block) in [(0, 10), (1, 11), (2, 12), (0, 2000), (1, 2001), (2, 1999)] {
        rot(&cluster, member, &data, block);
    }
    let said = cluster.trivet(&["volume", "scrub", "disk0"]).succeeded();
    assert!(said.stdout.contains("6 repaired, 0 mismatched, 0 unrepairable"), "{said}");
    let shown = cluster.trivet(&["volume", "show", "disk0"]).succeeded();
    assert!(shown.stdout.contains("6 repaired"), "{shown}");
    assert_all_reads_right(&cluster, &data);
    assert_pools_are_sound(&cluster);
}

#[test]
fn what_is_bad_everywhere_is_named_and_the_exit_code_says_so() {
    let (cluster, data) = written();
    (0..3).for_each(|member| rot(&cluster, member, &data, 42));
    rot(&cluster, 2, &data, 43);
    let said = cluster.trivet(&["volume", "scrub", "disk0"]);
    assert_eq!(said.status.code(), Some(7), "{said}");
    assert!(said.stderr.contains("blocks 42 ") && said.stderr.contains("next:"), "{said}");
    let counts = scrub_of(&cluster)["last"]["counts"].take();
    assert_eq!((&counts["repaired"], &counts["unrepairable_blocks"]), (&1.into(), &serde_json::json!([42])));
    // What is written anew is right again.
    cluster.connect().write(42 * 4096, &data[..BLOCK]).expect("a write");
    let _whole = cluster.trivet(&["volume", "scrub", "disk0"]).succeeded();
    assert_pools_are_sound(&cluster);
}

#[test]
fn a_scrub_goes_on_after_its_engine_and_its_manager_were_killed() {
    let (cluster, data) = written();
    rot(&cluster, 1, &data, DATA_BLOCKS - 1);
    let _scheduled =
        cluster.trivet(&["volume", "scrub", "disk0", "--every", "7d", "--rate", "1MiB"]).succeeded();
    assert_eq!(scrub_of(&cluster)["running"], Value::Null, "a schedule begins nothing yet");
    let mut watcher = trivet();
    watcher.args(["volume", "scrub", "disk0"]).env("TRIVET_DIR", cluster.directory());
    let mut watcher = watcher.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn();
    let saved = patience::wait_for("a position to be saved", 2 * patience::SOON, || {
        let running = scrub_of(&cluster)["running"].take();
        running["position_bytes"].as_u64().filter(|&position| position > 5 << 20)
    });
    // Who watches it does not keep it going.
    let watcher = watcher.as_mut().expect("it was started");
    watcher.kill().expect("it can be killed");
    watcher.wait().expect("it ends");
    process::kill_hard(&cluster.processes_of(Role::Engine));
    process::kill_hard(&cluster.processes_of(Role::Manager));
    let _uri = cluster.up();
    let resumed = patience::wait_for("the scrub to go on", 2 * patience::SOON, || {
        let running = scrub_of(&cluster)["running"].take();
        running["position_bytes"].as_u64().filter(|_| running["bytes_per_second"].as_u64() > Some(0))
    });
    assert!(resumed + (4 << 20) > saved, "it was at {saved} and goes on at {resumed}");
    let found = cluster.trivet_json(&["volume", "scrub", "disk0", "--rate", "1GiB"]);
    assert_eq!(
        (&found["last"]["run"], &found["last"]["counts"]["repaired"]),
        (&1.into(), &1.into()),
        "{found}"
    );
    assert_eq!(found["every_seconds"], 7 * 86400);
    assert_pools_are_sound(&cluster);
}

#[test]
fn a_scrub_can_be_ended_and_needs_an_engine() {
    let (cluster, _data) = written();
    let mut watcher = trivet();
    watcher.args(["volume", "scrub", "disk0", "--rate", "64KiB"]).env("TRIVET_DIR", cluster.directory());
    let watcher = watcher.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn();
    patience::wait_for("the scrub to begin", patience::SOON, || {
        (scrub_of(&cluster)["running"]["run"] == 1).then_some(())
    });
    let stopped = cluster.trivet_json(&["volume", "scrub", "disk0", "--stop"]);
    assert_eq!((&stopped["running"], &stopped["last"]), (&Value::Null, &Value::Null));
    assert_eq!(watcher.expect("it was started").wait().expect("it ends").code(), Some(1));
    let _detached = cluster.trivet(&["volume", "detach", "disk0"]).succeeded();
    let refused = cluster.trivet(&["volume", "scrub", "disk0"]);
    assert_eq!(refused.status.code(), Some(4), "{refused}");
    assert!(refused.stderr.contains("trivet volume attach disk0"), "{refused}");
}
