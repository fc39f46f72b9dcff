//! Volumes that become again what a snapshot shows: all of it, nothing else, and whatever is killed.

use trivet_tests::fills::{FILL_BYTES, PART_BYTES, assert_filled, fill, offsets};
use trivet_tests::nbd::Request;
use trivet_tests::{Cluster, NbdClient, Role, patience, process};

fn does(cluster: &Cluster, arguments: &[&str]) {
    drop(cluster.trivet(arguments).succeeded());
}

fn refuses(cluster: &Cluster, arguments: &[&str], words: &[&str]) {
    drop(cluster.trivet(arguments).failed_saying(words));
}

fn take(cluster: &Cluster, name: &str) {
    does(cluster, &["snapshot", "create", "disk0", name]);
}

/// Whether a snapshot shows this value everywhere.
fn assert_shows(cluster: &Cluster, snapshot: &str, value: u8) {
    let export = cluster.trivet_json(&["snapshot", "export", "disk0", snapshot]);
    assert_filled(
        &mut NbdClient::connect(export["uri"].as_str().expect("a URI")).expect("it is served"),
        value,
    );
    does(cluster, &["snapshot", "unexport", "disk0", snapshot]);
}

fn snapshots(cluster: &Cluster) -> Vec<String> {
    let listed = cluster.trivet_json(&["snapshot", "list", "disk0"]);
    let names = listed.as_array().expect("a list").iter();
    names.map(|found| found["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_volume_becomes_what_it_was_and_every_snapshot_stays() {
    let cluster = Cluster::start(3, "64MiB");
    let mut client = cluster.connect();
    fill(&mut client, 1);
    take(&cluster, "first");
    fill(&mut client, 2);
    // What the first snapshot does not have, and what it has and the volume has no more.
    client.write(40 << 20, &[9; 8192]).expect("a write");
    let offset = offsets().next().expect("some");
    let length = u32::try_from(PART_BYTES).expect("small");
    client.call(&Request::Trim { offset, length }).expect("a trim");
    take(&cluster, "second");
    fill(&mut client, 3);
    drop(client);

    let revert = ["snapshot", "revert", "disk0", "first"];
    refuses(&cluster, &revert, &["volume 'disk0' is attached", "trivet volume detach disk0"]);
    does(&cluster, &["volume", "detach", "disk0"]);
    refuses(&cluster, &["snapshot", "revert", "disk0", "third"], &["has no snapshot 'third'"]);
    let dry =
        cluster.trivet(&[&revert[..], &["--dry-run", "--safety-snapshot", "kept"]].concat()).succeeded();
    assert!(dry.stdout.contains("would revert disk0 to disk0@first"), "{dry}");
    assert!(dry.stdout.contains("kept as disk0@kept"), "{dry}");
    does(&cluster, &[&revert[..], &["--yes", "--safety-snapshot", "kept"]].concat());
    assert_eq!(snapshots(&cluster), ["first", "second", "kept"]);
    does(&cluster, &["volume", "attach", "disk0"]);
    let mut client = cluster.connect();
    assert_filled(&mut client, 1);
    let found = client.read(40 << 20, 8192).expect("a read");
    assert!(found.iter().all(|byte| *byte == 0), "what the snapshot does not have is gone");
    let changed = cluster.trivet_json(&["snapshot", "diff", "disk0", "kept"]);
    let bytes: u64 =
        changed.as_array().expect("a list").iter().filter_map(|run| run["length"].as_u64()).sum();
    assert_eq!(bytes, (FILL_BYTES + 8192) as u64, "{changed}");
    assert_shows(&cluster, "first", 1);
    assert_shows(&cluster, "kept", 3);

    // There and back again.
    does(&cluster, &["volume", "detach", "disk0"]);
    does(&cluster, &["snapshot", "revert", "disk0", "kept", "--yes", "--no-safety-snapshot"]);
    does(&cluster, &["volume", "attach", "disk0"]);
    assert_filled(&mut cluster.connect(), 3);
    assert_eq!(snapshots(&cluster).len(), 3);
    cluster.down();
    for pool in cluster.pools() {
        does(&cluster, &["check", pool.to_str().expect("paths of tests are text")]);
    }
}

#[test]
fn a_clone_and_its_parent_are_reverted_each_alone() {
    let cluster = Cluster::start(3, "64MiB");
    fill(&mut cluster.connect(), 1);
    take(&cluster, "before");
    does(&cluster, &["volume", "clone", "disk0@before", "copy", "--attach"]);
    // Of nothing but what it has from its parent.
    does(&cluster, &["snapshot", "create", "copy", "begun"]);
    fill(&mut cluster.connect_to("copy"), 2);
    cluster.connect_to("copy").write(40 << 20, &[9; 8192]).expect("a write");
    fill(&mut cluster.connect(), 3);
    let export = cluster.trivet_json(&["snapshot", "export", "disk0", "before"]);
    let mut reader = NbdClient::connect(export["uri"].as_str().expect("a URI")).expect("it is served");

    for (volume, snapshot) in [("copy", "begun"), ("disk0", "before")] {
        does(&cluster, &["volume", "detach", volume]);
        does(&cluster, &["snapshot", "revert", volume, snapshot, "--yes", "--safety-snapshot", "kept"]);
        does(&cluster, &["volume", "attach", volume]);
        assert_filled(&mut cluster.connect_to(volume), 1);
        let found = cluster.connect_to(volume).read(40 << 20, 8192).expect("a read");
        assert!(found.iter().all(|byte| *byte == 0), "what {snapshot} does not have is gone");
    }
    assert_filled(&mut reader, 1);
    drop(reader);
    does(&cluster, &["snapshot", "unexport", "disk0", "before"]);
    // What was given up is there for clones, and what clones read stays.
    does(&cluster, &["volume", "clone", "copy@kept", "again", "--attach"]);
    assert_filled(&mut cluster.connect_to("again"), 2);
    does(&cluster, &["snapshot", "delete", "disk0", "before", "--yes"]);
    does(&cluster, &["snapshot", "delete", "copy", "kept", "--yes"]);
    assert_filled(&mut cluster.connect_to("again"), 2);
    assert_filled(&mut cluster.connect_to("copy"), 1);

    does(&cluster, &["volume", "detach", "disk0"]);
    does(&cluster, &["volume", "seal", "disk0"]);
    let revert = ["snapshot", "revert", "disk0", "kept", "--yes"];
    refuses(&cluster, &revert, &["'disk0' is a golden image", "trivet volume clone disk0 NEW"]);
    cluster.down();
    trivet_tests::replica::assert_pools_sound(&cluster);
}

#[test]
fn f29_a_revert_goes_on_however_much_is_killed() {
    let cluster = Cluster::start(3, "256MiB");
    let mut client = cluster.connect();
    let data = vec![7; 1 << 20];
    for at in 0..160 {
        client.write(at << 20, &data).expect("a write");
    }
    take(&cluster, "before");
    let other = vec![8; 1 << 20];
    for at in 0..160 {
        client.write(at << 20, &other).expect("a write");
    }
    drop(client);
    does(&cluster, &["volume", "detach", "disk0"]);
    let replicas = cluster.processes_of(Role::Replica);
    // Whoever opens a volume waits for a member that does not answer: nothing can be done by then.
    process::pause(&replicas[2..], true);
    let mut ordered = trivet_tests::cluster::trivet();
    ordered.args(["snapshot", "revert", "disk0", "before", "--yes"]).env("TRIVET_DIR", cluster.directory());
    let mut ordered = ordered.spawn().expect("trivet runs");
    patience::wait_for("the revert to begin", patience::SOON, || {
        let shown = cluster.trivet_json(&["volume", "show", "disk0"]);
        shown["revert"].is_object().then_some(())
    });
    process::pause(&replicas, true);
    refuses(&cluster, &["volume", "attach", "disk0"], &["is being reverted to its snapshot 'before'"]);
    let engines: Vec<_> = cluster.processes().into_iter().filter(|found| found.is(Role::Engine)).collect();
    process::kill_hard(&engines);
    process::kill_hard(&cluster.processes_of(Role::Manager));
    process::pause(&replicas, false);
    process::kill_hard(&replicas[..1]);
    // It fails without its manager, unless it was quick.
    ordered.wait().expect("it ends");
    does(&cluster, &["up"]);
    // Once more when some of it is done, if it is to be seen so early.
    patience::wait_for("the revert to get on", 3 * patience::SOON, || {
        let revert = cluster.trivet_json(&["volume", "show", "disk0"])["revert"].clone();
        (revert.is_null() || revert["changed_bytes"] != 0).then_some(())
    });
    let engines: Vec<_> = cluster.processes().into_iter().filter(|found| found.is(Role::Engine)).collect();
    process::kill_hard(&engines);
    patience::wait_for("the revert to end", 3 * patience::SOON, || {
        cluster.trivet_json(&["volume", "show", "disk0"])["revert"].is_null().then_some(())
    });
    does(&cluster, &["volume", "attach", "disk0"]);
    let mut client = cluster.connect();
    for at in 0..160 {
        assert!(client.read(at << 20, 1 << 20).expect("a read") == data, "MiB {at} is not what it was");
    }
    assert!(snapshots(&cluster).iter().any(|name| name.starts_with("before-revert-")));
    cluster.wait_until_in_sync();
    drop(client);
    cluster.down();
    trivet_tests::replica::assert_pools_sound(&cluster);
    trivet_tests::replica::assert_members_identical(&cluster);
}

#[test]
fn a_volume_that_is_being_reverted_can_be_deleted() {
    let cluster = Cluster::start(2, "64MiB");
    fill(&mut cluster.connect(), 1);
    take(&cluster, "before");
    fill(&mut cluster.connect(), 2);
    does(&cluster, &["volume", "detach", "disk0"]);
    // Whoever opens a volume waits for a member that does not answer: nothing can be done by then.
    let replicas = cluster.processes_of(Role::Replica);
    process::pause(&replicas[1..], true);
    let mut ordered = trivet_tests::cluster::trivet();
    ordered.args(["snapshot", "revert", "disk0", "before", "--yes"]).env("TRIVET_DIR", cluster.directory());
    let mut ordered = ordered.spawn().expect("trivet runs");
    patience::wait_for("the revert to begin", patience::SOON, || {
        let shown = cluster.trivet_json(&["volume", "show", "disk0"]);
        shown["revert"].is_object().then_some(())
    });
    process::pause(&replicas, true);
    does(&cluster, &["volume", "delete", "disk0", "--yes"]);
    process::pause(&replicas, false);
    assert!(!ordered.wait().expect("it ends").success(), "there is nothing to revert any more");
    refuses(&cluster, &["volume", "show", "disk0"], &["no volume"]);
    patience::wait_for("its copies to be gone", 3 * patience::SOON, || {
        (cluster.trivet_json(&["status"])["deletions_pending"] == 0).then_some(())
    });
    cluster.down();
    trivet_tests::replica::assert_pools_sound(&cluster);
}
