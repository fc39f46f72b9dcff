//! Snapshots, as their users see them: taken and deleted by the command line while the volume is used,
//! read in its place, and the same from every copy.

use trivet_tests::fills::{FILL_BYTES, PART_BYTES, assert_filled, fill, offsets};
use trivet_tests::loaded::rounds;
use trivet_tests::{Cluster, Loaded, NbdClient, Role, patience, process};

fn write_all(cluster: &Cluster, value: u8) {
    fill(&mut cluster.connect(), value);
}

/// Whether everything that was written has this value now.
fn assert_holds(cluster: &Cluster, value: u8) {
    assert_filled(&mut cluster.connect(), value);
}

fn does(cluster: &Cluster, arguments: &[&str]) {
    drop(cluster.trivet(arguments).succeeded());
}

fn refuses(cluster: &Cluster, arguments: &[&str], words: &[&str]) {
    drop(cluster.trivet(arguments).failed_saying(words));
}

fn take(cluster: &Cluster, name: &str) {
    let taken = cluster.trivet_json(&["snapshot", "create", "disk0", name, "--label", "by=test"]);
    assert_eq!((&taken["name"], &taken["volume"]), (&name.into(), &"disk0".into()), "{taken}");
    assert_eq!(taken["labels"]["by"], "test", "{taken}");
}

/// Whether a snapshot shows this value everywhere.
fn assert_shows(cluster: &Cluster, snapshot: &str, value: u8) {
    let export = cluster.trivet_json(&["snapshot", "export", "disk0", snapshot]);
    let mut client = NbdClient::connect(export["uri"].as_str().expect("a URI")).expect("it is served");
    assert_filled(&mut client, value);
    assert!(client.write(0, &[9; 4096]).is_err(), "a snapshot does not change");
    does(cluster, &["snapshot", "unexport", "disk0", snapshot]);
}

fn assert_pools_sound(cluster: &Cluster) {
    cluster.down();
    for pool in cluster.pools() {
        does(cluster, &["check", pool.to_str().expect("paths of tests are text")]);
    }
}

#[test]
fn a_snapshot_keeps_what_was_there_until_it_is_deleted() {
    let cluster = Cluster::start(3, "64MiB");
    write_all(&cluster, 1);
    take(&cluster, "first");
    write_all(&cluster, 2);
    take(&cluster, "second");
    write_all(&cluster, 3);
    let listed = cluster.trivet_json(&["snapshot", "list"]);
    let names: Vec<_> = listed.as_array().expect("a list").iter().map(|found| &found["name"]).collect();
    assert_eq!(names, ["first", "second"]);
    let changed = cluster.trivet_json(&["snapshot", "diff", "disk0", "first", "second"]);
    let found: Vec<_> = changed.as_array().expect("a list").iter().map(|extent| &extent["offset"]).collect();
    assert_eq!(found, offsets().collect::<Vec<_>>(), "{changed}");
    assert!(changed.as_array().expect("a list").iter().all(|extent| extent["length"] == PART_BYTES));
    refuses(&cluster, &["snapshot", "diff", "disk0", "second", "first"], &["is newer than 'first'"]);
    // What the first shows was written before it alone, and again since; so it is with the second.
    let sized = cluster.trivet_json(&["snapshot", "list", "disk0", "--sizes"]);
    assert!(sized.as_array().expect("a list").iter().all(|one| one["freed_bytes"] == FILL_BYTES), "{sized}");
    assert_shows(&cluster, "first", 1);
    assert_shows(&cluster, "second", 2);
    assert_holds(&cluster, 3);

    let delete = ["snapshot", "delete", "disk0", "first"];
    let dry = cluster.trivet(&[&delete[..], &["--dry-run"]].concat()).succeeded();
    assert!(dry.stdout.contains("would delete snapshot disk0@first"), "{dry}");
    does(&cluster, &[&delete[..], &["--yes"]].concat());
    refuses(&cluster, &delete, &["has no snapshot 'first'", "trivet snapshot list disk0"]);
    assert_shows(&cluster, "second", 2);
    does(&cluster, &["snapshot", "delete", "disk0", "second", "--yes"]);
    assert_holds(&cluster, 3);
    patience::wait_for("the space of both to come back", patience::SOON, || {
        let shown = cluster.trivet_json(&["volume", "show", "disk0"]);
        (shown["used_bytes"] == FILL_BYTES && shown["snapshots"].as_array()?.is_empty()).then_some(())
    });
    assert_pools_sound(&cluster);
}

#[test]
fn f29_a_member_that_was_away_gets_the_snapshots_and_what_they_show() {
    let cluster = Cluster::start(3, "64MiB");
    write_all(&cluster, 1);
    take(&cluster, "goes");
    let replicas = cluster.processes_of(Role::Replica);
    process::pause(&replicas[..1], true);
    write_all(&cluster, 2);
    cluster.wait_until_one_is_left_behind();
    take(&cluster, "stays");
    does(&cluster, &["snapshot", "delete", "disk0", "goes", "--yes"]);
    write_all(&cluster, 3);
    process::pause(&replicas[..1], false);
    cluster.wait_until_in_sync();
    does(&cluster, &["volume", "detach", "disk0"]);
    // The one that was away is the only one to be read from.
    process::pause(&replicas[1..], true);
    assert_shows(&cluster, "stays", 2);
    process::pause(&replicas[1..], false);
    does(&cluster, &["volume", "attach", "disk0"]);
    assert_holds(&cluster, 3);
    cluster.wait_until_in_sync();
    assert_pools_sound(&cluster);
}

#[test]
fn f29_snapshots_come_and_go_while_replicas_are_killed() {
    let mut loaded = Loaded::start();
    for round in 0..rounds(3) {
        does(&loaded.cluster, &["snapshot", "create", "disk0", &format!("s{round}")]);
        let killed = loaded.one_replica();
        process::kill_hard(&killed);
        does(&loaded.cluster, &["snapshot", "create", "disk0", &format!("t{round}")]);
        let delete = ["snapshot", "delete", "disk0", &format!("s{round}"), "--yes"];
        does(&loaded.cluster, &delete);
        loaded.load.wait_for_progress(200, patience::SOON);
        loaded.cluster.wait_until_in_sync();
    }
    let left = loaded.cluster.trivet_json(&["snapshot", "list", "disk0"]);
    assert_eq!(left.as_array().map(Vec::len), usize::try_from(rounds(3)).ok(), "{left}");
    loaded.finish();
}

#[test]
fn what_cannot_be_done_is_said_with_its_cause_and_the_next_step() {
    let cluster = Cluster::start(3, "16MiB");
    take(&cluster, "one");
    let create = |name: &'static str, words: &[&str]| {
        refuses(&cluster, &["snapshot", "create", "disk0", name], words);
    };
    create("one", &["has a snapshot 'one' already", "choose another name"]);
    create("Not/A/Name", &["'Not/A/Name' is no snapshot name"]);
    let nowhere = ["there is no volume 'nowhere'", "trivet volume list"];
    refuses(&cluster, &["snapshot", "create", "nowhere", "x"], &nowhere);
    refuses(&cluster, &["snapshot", "show", "disk0", "two"], &["has no snapshot 'two'"]);
    let shown = cluster.trivet(&["snapshot", "show", "disk0", "one"]).succeeded();
    assert!(shown.stdout.contains("label       by=test"), "{shown}");
    let label = ["snapshot", "label", "disk0", "one", "kept=yes", "--remove", "by"];
    let labelled = cluster.trivet_json(&label);
    assert_eq!(labelled["labels"], serde_json::json!({ "kept": "yes" }), "{labelled}");
    refuses(&cluster, &["snapshot", "label", "disk0", "two", "a=b"], &["has no snapshot 'two'"]);
    does(&cluster, &["volume", "detach", "disk0"]);
    create("two", &["is not attached for writing", "trivet volume attach disk0"]);
    refuses(&cluster, &["snapshot", "export", "disk0", "two"], &["has no snapshot 'two'"]);
    // Unnamed, it is called by the time.
    does(&cluster, &["volume", "attach", "disk0"]);
    let named = cluster.trivet_json(&["snapshot", "create", "disk0"]);
    let name = named["name"].as_str().expect("a name");
    assert!(name.len() == 15 && name.starts_with("20"), "{name}");

    let limit = |most: &str| does(&cluster, &["volume", "set", "disk0", "--snapshot-limit", most]);
    limit("2");
    create("three", &["has as many snapshots as it may have: 2", "--snapshot-limit N"]);
    limit("3");
    take(&cluster, "three");
    limit("1");
    assert_eq!(cluster.trivet_json(&["volume", "show", "disk0"])["snapshot_limit"], 1);
    does(&cluster, &["snapshot", "delete", "disk0", "three", "--yes"]);
    let above = ["volume", "set", "disk0", "--snapshot-limit", "1001"];
    refuses(&cluster, &above, &["1001 is not in 1..=1000"]);
}
