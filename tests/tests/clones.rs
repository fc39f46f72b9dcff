//! Clones, as their users see them: made at once of volumes and snapshots, attached or not, written beside their
//! parents, flattened, and left alone by whatever is deleted.

use serde_json::Value;
use trivet_tests::{Cluster, Role, patience, process};

const MIB: usize = 1 << 20;

fn does(cluster: &Cluster, arguments: &[&str]) {
    drop(cluster.trivet(arguments).succeeded());
}

fn refuses(cluster: &Cluster, arguments: &[&str], words: &[&str]) {
    drop(cluster.trivet(arguments).failed_saying(words));
}

fn write(cluster: &Cluster, volume: &str, at: usize, fill: u8) {
    let mut client = cluster.connect_to(volume);
    client.write((at * MIB) as u64, &vec![fill; MIB / 2]).expect("a volume in good order takes writes");
    client.flush().expect("a volume in good order can be flushed");
}

/// Whether the volume holds these values, one for each MiB from its beginning, and nothing in between.
fn assert_holds(cluster: &Cluster, volume: &str, fills: &[u8]) {
    let mut client = cluster.connect_to(volume);
    for (at, fill) in fills.iter().enumerate() {
        let found = client.read((at * MIB) as u64, u32::try_from(MIB).expect("it fits")).expect("a read");
        let (written, hole) = found.split_at(MIB / 2);
        assert!(written.iter().all(|byte| byte == fill), "MiB {at} of {volume} does not hold {fill}");
        assert!(hole.iter().all(|byte| *byte == 0), "MiB {at} of {volume} holds what was never written");
    }
}

fn show(cluster: &Cluster, volume: &str) -> Value {
    cluster.trivet_json(&["volume", "show", volume])
}

fn wait_for_use(cluster: &Cluster, volume: &str, bytes: usize) {
    patience::wait_for("the volume to have blocks of its own", patience::SOON, || {
        (show(cluster, volume)["used_bytes"] == bytes).then_some(())
    });
}

fn assert_pools_sound(cluster: &Cluster) {
    cluster.down();
    for pool in cluster.pools() {
        does(cluster, &["check", pool.to_str().expect("paths of tests are text")]);
    }
}

#[test]
fn a_clone_begins_with_what_its_parent_holds_and_goes_its_own_way() {
    let cluster = Cluster::start(3, "64MiB");
    for (at, fill) in [(0, 1), (1, 2), (2, 3)] {
        write(&cluster, "disk0", at, fill);
    }
    does(&cluster, &["snapshot", "create", "disk0", "before"]);
    write(&cluster, "disk0", 0, 9);
    // Of a snapshot, and of the volume as it is, which is in use.
    does(&cluster, &["volume", "clone", "disk0@before", "old", "--attach"]);
    does(&cluster, &["volume", "clone", "disk0", "new", "--attach"]);
    assert_holds(&cluster, "old", &[1, 2, 3]);
    assert_holds(&cluster, "new", &[9, 2, 3]);
    write(&cluster, "old", 1, 7);
    write(&cluster, "disk0", 2, 8);
    assert_holds(&cluster, "old", &[1, 7, 3]);
    assert_holds(&cluster, "new", &[9, 2, 3]);
    assert_holds(&cluster, "disk0", &[9, 2, 8]);

    let old = show(&cluster, "old");
    assert_eq!((&old["parent"]["volume"], &old["parent"]["snapshot"]), (&"disk0".into(), &"before".into()));
    assert_eq!(old["sharing"], "parent", "{old}");
    assert!(old["members"].as_array().expect("a list").iter().all(|member| member["tied"] == true));
    let new = show(&cluster, "new");
    assert_eq!((&new["used_bytes"], &new["parent"]["snapshot"]), (&0.into(), &Value::Null));
    let parent = show(&cluster, "disk0");
    assert_eq!(parent["clones"], serde_json::json!(["new", "old"]));
    assert_eq!(parent["snapshots"].as_array().map(Vec::len), Some(1), "the one for the clone alone is gone");
    let shown = cluster.trivet(&["volume", "show", "old"]).succeeded();
    assert!(shown.stdout.contains("clone of    disk0@before"), "{shown}");

    // A clone of a clone, of which everything before goes.
    does(&cluster, &["volume", "detach", "old"]);
    does(&cluster, &["volume", "clone", "old", "third", "--attach"]);
    does(&cluster, &["snapshot", "delete", "disk0", "before", "--yes"]);
    for volume in ["disk0", "old"] {
        if volume == "disk0" {
            does(&cluster, &["volume", "detach", volume]);
        }
        does(&cluster, &["volume", "delete", volume, "--yes"]);
    }
    assert_holds(&cluster, "third", &[1, 7, 3]);
    assert_holds(&cluster, "new", &[9, 2, 3]);
    assert_eq!(show(&cluster, "third")["parent"]["volume_deleted"], true);
    for volume in ["third", "new"] {
        does(&cluster, &["volume", "detach", volume]);
    }
    does(&cluster, &["volume", "delete", "third", "--yes"]);
    does(&cluster, &["volume", "attach", "new"]);
    assert_holds(&cluster, "new", &[9, 2, 3]);
    assert_pools_sound(&cluster);
}

#[test]
fn a_flattened_clone_shares_nothing_and_the_space_of_its_parent_comes_back() {
    let cluster = Cluster::start(3, "64MiB");
    for at in 0..8 {
        write(&cluster, "disk0", at, 1);
    }
    does(&cluster, &["volume", "clone", "disk0", "copy", "--attach"]);
    write(&cluster, "copy", 0, 2);
    // A replica that is killed in the middle goes on after it is back.
    does(&cluster, &["volume", "flatten", "copy", "--background"]);
    process::kill_hard(&cluster.processes_of(Role::Replica)[..1]);
    write(&cluster, "copy", 1, 3);
    does(&cluster, &["volume", "flatten", "copy"]);
    let copy = show(&cluster, "copy");
    assert_eq!(copy["sharing"], "nothing", "{copy}");
    wait_for_use(&cluster, "copy", 4 * MIB);
    assert_eq!(show(&cluster, "disk0")["clones"], serde_json::json!([]));
    cluster.wait_until_in_sync();
    does(&cluster, &["volume", "detach", "disk0"]);
    does(&cluster, &["volume", "delete", "disk0", "--yes"]);
    patience::wait_for("the parent's space to come back", patience::SOON, || {
        let status = cluster.trivet_json(&["status"]);
        let replicas = status["replicas"].as_array()?;
        let kept = |replica: &Value| replica["used_bytes"] == 4 * MIB && replica["kept_bytes"] == 0;
        replicas.iter().all(kept).then_some(())
    });
    assert_holds(&cluster, "copy", &[2, 3, 1, 1, 1, 1, 1, 1]);
    assert_pools_sound(&cluster);
}

#[test]
fn a_golden_image_is_cloned_and_never_written() {
    let cluster = Cluster::start(3, "64MiB");
    write(&cluster, "disk0", 0, 5);
    refuses(&cluster, &["volume", "seal", "disk0"], &["is attached", "trivet volume detach disk0"]);
    does(&cluster, &["volume", "detach", "disk0"]);
    does(&cluster, &["volume", "seal", "disk0"]);
    assert_eq!(show(&cluster, "disk0")["image"], true);
    let next = ["is a golden image", "trivet volume clone disk0 NEW"];
    refuses(&cluster, &["volume", "attach", "disk0"], &next);
    refuses(&cluster, &["volume", "delete", "disk0", "--yes"], &next);
    for number in 0..5 {
        does(&cluster, &["volume", "clone", "disk0", &format!("vm{number}")]);
    }
    does(&cluster, &["volume", "attach", "vm3"]);
    write(&cluster, "vm3", 0, 6);
    does(&cluster, &["volume", "attach", "vm4"]);
    assert_holds(&cluster, "vm3", &[6]);
    assert_holds(&cluster, "vm4", &[5]);
    does(&cluster, &["volume", "attach", "disk0", "--read-only"]);
    assert_holds(&cluster, "disk0", &[5]);
    assert_eq!(show(&cluster, "disk0")["clones"].as_array().map(Vec::len), Some(5));
    does(&cluster, &["volume", "detach", "disk0"]);
    does(&cluster, &["volume", "unseal", "disk0"]);
    does(&cluster, &["volume", "delete", "disk0", "--yes"]);
    assert_holds(&cluster, "vm4", &[5]);
    assert_pools_sound(&cluster);
}

#[test]
fn a_copy_elsewhere_has_everything_itself() {
    let cluster = Cluster::start(4, "64MiB");
    for (at, fill) in [(0, 1), (1, 2)] {
        write(&cluster, "disk0", at, fill);
    }
    let parents: Vec<String> = names_of(&show(&cluster, "disk0"));
    let elsewhere = (1..=4).map(|number| format!("replica-{number}")).find(|name| !parents.contains(name));
    let elsewhere = elsewhere.expect("the volume has three copies on four servers");
    refuses(&cluster, &["volume", "clone", "disk0", "copy", "--to", &parents[0]], &["shares with it there"]);
    does(&cluster, &["volume", "clone", "disk0", "copy", "--to", &elsewhere, "--attach"]);
    write(&cluster, "copy", 1, 7);
    patience::wait_for("the copy that shares to go", patience::LONG, || {
        (names_of(&show(&cluster, "copy")) == [elsewhere.clone()]).then_some(())
    });
    assert_eq!(show(&cluster, "copy")["members"][0]["tied"], false);
    wait_for_use(&cluster, "copy", MIB);
    does(&cluster, &["volume", "detach", "disk0"]);
    does(&cluster, &["volume", "delete", "disk0", "--yes"]);
    assert_holds(&cluster, "copy", &[1, 7]);
    assert_pools_sound(&cluster);
}

fn names_of(volume: &Value) -> Vec<String> {
    let members = volume["members"].as_array().expect("a list");
    members.iter().filter_map(|member| member["name"].as_str().map(str::to_owned)).collect()
}

#[test]
fn f29_a_clone_whose_replica_was_away_is_brought_back_without_its_parent() {
    let cluster = Cluster::start(4, "64MiB");
    write(&cluster, "disk0", 0, 1);
    does(&cluster, &["volume", "clone", "disk0", "copy", "--attach"]);
    let members = names_of(&show(&cluster, "copy"));
    // A member is replaced by one in a pool that has never heard of the parent.
    does(&cluster, &["replica", "replace", "copy", "--from", &members[0]]);
    write(&cluster, "copy", 1, 2);
    does(&cluster, &["volume", "detach", "disk0"]);
    does(&cluster, &["volume", "delete", "disk0", "--yes"]);
    patience::wait_for("the copy to be replaced", patience::LONG, || {
        let copy = show(&cluster, "copy");
        (copy["replacement"].is_null() && !names_of(&copy).contains(&members[0])).then_some(())
    });
    assert_holds(&cluster, "copy", &[1, 2]);
    does(&cluster, &["volume", "scrub", "copy"]);
    assert_pools_sound(&cluster);
}

#[test]
fn what_cannot_be_done_is_said_with_its_cause_and_the_next_step() {
    let cluster = Cluster::start(3, "16MiB");
    let clone = |of: &'static str, name: &'static str, words: &[&str]| {
        refuses(&cluster, &["volume", "clone", of, name], words);
    };
    clone("nowhere", "x", &["there is no volume 'nowhere'", "trivet volume list"]);
    clone("disk0@nothing", "x", &["has no snapshot 'nothing'", "trivet snapshot list disk0"]);
    clone("disk0", "disk0", &["there is a volume 'disk0' already"]);
    clone("disk0", "Not/A/Name", &["'Not/A/Name' is no volume name"]);
    clone("disk0@", "x", &["as in disk0@before"]);
    refuses(&cluster, &["volume", "clone", "disk0", "x", "--copies", "4"], &["4 copies", "3 do"]);
    let flat = cluster.trivet(&["volume", "flatten", "disk0"]).succeeded();
    assert!(flat.stdout.contains("shares nothing"), "{flat}");
    // An engine that was killed may have left copies that differ.
    process::kill_hard(&cluster.processes_of(Role::Engine));
    assert_pools_sound(&cluster);
}
