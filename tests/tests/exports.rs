//! Snapshots served beside their volume: right whatever becomes of members and processes, until they end.

use std::io;
use std::process::Command;
use trivet_tests::fills::{PART_BYTES, assert_filled, fill, offsets};
use trivet_tests::nbd::Request;
use trivet_tests::{Cluster, NbdClient, Role, command, needs_programs, patience, process};

fn does(cluster: &Cluster, arguments: &[&str]) {
    drop(cluster.trivet(arguments).succeeded());
}

/// Exports a snapshot; its URI.
fn export(cluster: &Cluster, snapshot: &str) -> String {
    let export = cluster.trivet_json(&["snapshot", "export", "disk0", snapshot]);
    export["uri"].as_str().unwrap_or_else(|| panic!("no URI: {export}")).to_owned()
}

/// What a snapshot shows to whoever connects now. Its process may be on its way up.
fn connect(uri: &str) -> NbdClient {
    let try_again = || -> Option<io::Result<NbdClient>> { NbdClient::connect(uri).ok().map(Ok) };
    patience::wait_for("the export to be served", patience::SOON, try_again).expect("just connected")
}

#[test]
fn snapshots_are_read_beside_the_volume_while_processes_are_killed() {
    let cluster = Cluster::start(3, "64MiB");
    let mut live = cluster.connect();
    for (value, name) in [(1, "first"), (2, "second")] {
        fill(&mut live, value);
        does(&cluster, &["snapshot", "create", "disk0", name]);
    }
    let (first, second) = (export(&cluster, "first"), export(&cluster, "second"));
    assert_eq!(export(&cluster, "first"), first, "asking again changes nothing");
    let mut readers = [connect(&first), connect(&second)];
    for killed in 0..3 {
        fill(&mut live, 3 + killed);
        process::kill_hard(&cluster.processes_of(Role::Replica)[..1]);
        assert_filled(&mut readers[0], 1);
        assert_filled(&mut readers[1], 2);
        assert_filled(&mut live, 3 + killed);
        cluster.wait_until_in_sync();
    }
    let shown = cluster.trivet(&["volume", "show", "disk0"]).succeeded();
    assert!(shown.stdout.contains("EXPORTED") && shown.stdout.contains("disk0@second"), "{shown}");
    let status = cluster.trivet(&["status"]).succeeded();
    assert!(status.stdout.contains("disk0@first"), "{status}");

    // All engines die, the manager too; and the cluster is restarted.
    drop(readers);
    process::kill_hard(&cluster.processes_of(Role::Engine));
    process::kill_hard(&cluster.processes_of(Role::Manager));
    cluster.up();
    assert_filled(&mut connect(&first), 1);
    cluster.down();
    cluster.up();
    assert_filled(&mut connect(&second), 2);
    assert_filled(&mut connect(&first), 1);

    does(&cluster, &["snapshot", "unexport", "disk0", "first"]);
    assert!(NbdClient::connect(&first).is_err(), "it is served no more");
    let listed = cluster.trivet_json(&["snapshot", "list"]);
    assert!(listed[0]["export"].is_null() && listed[1]["export"]["serving"] == true, "{listed}");
}

#[test]
fn an_exported_snapshot_is_deleted_only_with_force_and_its_readers_are_told() {
    let cluster = Cluster::start(3, "16MiB");
    fill(&mut cluster.connect(), 1);
    does(&cluster, &["snapshot", "create", "disk0", "one"]);
    let uri = export(&cluster, "one");
    let mut reader = connect(&uri);
    let delete = ["snapshot", "delete", "disk0", "one", "--yes"];
    let exported = ["its snapshot 'one' is exported", "trivet snapshot unexport disk0"];
    drop(cluster.trivet(&delete).failed_saying(&exported));
    does(&cluster, &["volume", "detach", "disk0"]);
    drop(cluster.trivet(&["volume", "delete", "disk0", "--yes"]).failed_saying(&exported));
    assert_filled(&mut reader, 1);
    does(&cluster, &["volume", "attach", "disk0"]);
    does(&cluster, &[&delete[..], &["--force"]].concat());
    assert!(reader.read(0, 4096).is_err(), "its readers are hung up on");
    assert!(NbdClient::connect(&uri).is_err(), "it is served no more");
    let listed = cluster.trivet_json(&["snapshot", "list"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(0), "{listed}");
}

#[test]
fn a_copy_that_begins_anew_is_not_read_by_those_who_look() {
    let cluster = Cluster::start(3, "64MiB");
    fill(&mut cluster.connect(), 1);
    does(&cluster, &["snapshot", "create", "disk0", "one"]);
    let uri = export(&cluster, "one");
    let mut reader = connect(&uri);
    assert_filled(&mut reader, 1);
    // One copy after the other is taken away and made anew, empty, while the reader goes on: it must
    // never be shown what such a copy does not have yet.
    for number in 1..=3 {
        let name = format!("replica-{number}");
        does(&cluster, &["replica", "remove", "disk0", "--from", &name, "--yes"]);
        assert_filled(&mut reader, 1);
        let add = ["replica", "add", "disk0", "--to", &name];
        patience::wait_for("the server to have let the old copy go", patience::SOON, || {
            cluster.trivet(&add).status.success().then_some(())
        });
        while cluster.member_states().iter().any(|state| state != "in-sync") {
            assert_filled(&mut reader, 1);
        }
        assert_filled(&mut reader, 1);
    }
}

/// What has changed since a snapshot, by `nbdinfo`: offsets and lengths.
fn changed_since(uri: &str, snapshot: &str) -> Vec<(u64, u64)> {
    let map = format!("--map=qemu:dirty-bitmap:{snapshot}");
    let outcome =
        command::run(Command::new("nbdinfo").args([&map, "--json", uri]), patience::SOON).succeeded();
    let runs: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let runs = runs.as_array().expect("a list").iter().filter(|run| run["type"] == 1);
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let runs: Vec<(u64, u64)> = runs.map(|run| (number(&run["offset"]), number(&run["length"]))).collect();
    runs.into_iter().fold(Vec::new(), |mut joined: Vec<(u64, u64)>, (offset, length)| {
        match joined.last_mut() {
            Some(last) if last.0 + last.1 == offset => last.1 += length,
            _ => joined.push((offset, length)),
        }
        joined
    })
}

#[test]
fn other_peoples_tools_learn_what_has_changed() {
    needs_programs!("nbdinfo");
    const MIB: u64 = 1 << 20;
    let cluster = Cluster::start(3, "64MiB");
    let mut live = cluster.connect();
    fill(&mut live, 1);
    does(&cluster, &["snapshot", "create", "disk0", "first"]);
    live.write(20 * MIB, &[2; 8192]).expect("a write");
    let part = u32::try_from(PART_BYTES).expect("small");
    let offset = offsets().nth(1).expect("some");
    live.call(&Request::Trim { offset, length: part }).expect("a trim");
    does(&cluster, &["snapshot", "create", "disk0", "second"]);
    live.write(30 * MIB, &[3; 4096]).expect("a write");
    let (first, second) = (export(&cluster, "first"), export(&cluster, "second"));

    let between = [(offset, u64::from(part)), (20 * MIB, 8192)];
    assert_eq!(changed_since(&second, "first"), between);
    assert_eq!(changed_since(cluster.uri(), "second"), [(30 * MIB, 4096)]);
    assert_eq!(changed_since(cluster.uri(), "first"), [&between[..], &[(30 * MIB, 4096)]].concat());
    let newer = Command::new("nbdinfo").args(["--map=qemu:dirty-bitmap:second", &first]).output();
    assert!(!newer.expect("nbdinfo runs").status.success(), "nothing is older than itself");

    // An incremental backup: the old one with what has changed laid over it.
    let (mut old, mut new) = (connect(&first), connect(&second));
    let size = usize::try_from(old.size()).expect("it fits");
    let read_all = |client: &mut NbdClient| -> Vec<u8> {
        (0..64).flat_map(|at| client.read(at * MIB, 1 << 20).expect("a read")).collect()
    };
    let mut backup = read_all(&mut old);
    for (offset, length) in changed_since(&second, "first") {
        let at = usize::try_from(offset).expect("it fits");
        let changed = new.read(offset, u32::try_from(length).expect("short")).expect("a read");
        backup[at..at + changed.len()].copy_from_slice(&changed);
    }
    assert!(backup.len() == size && backup == read_all(&mut new));
}
