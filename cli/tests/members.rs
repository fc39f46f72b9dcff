//! Copies of a volume with real processes: added, removed, replaced, lost, salvaged.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod local;

use local::{Cluster, text};
use serde_json::Value;
use std::process::Command;

fn cluster(replicas: &str, more: &[&str]) -> Cluster {
    let cluster = Cluster::new();
    let up = ["up", "--replicas", replicas, "--size", "16MiB", "--capacity", "1GiB"];
    cluster.succeeds(&[&up, more].concat());
    cluster
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// A process that is stopped, and goes on in the end, so that the cluster can be taken down.
struct Frozen(u32);

impl Frozen {
    fn new(cluster: &Cluster, process: &str) -> Self {
        let pid = cluster.pid(process);
        signal("-STOP", pid);
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // By its number: it may be gone by now, which is as good.
        let status = Command::new("kill").args(["-CONT", &self.0.to_string()]).status();
        assert!(status.is_ok() || std::thread::panicking());
    }
}

fn members(volume: &Value) -> Vec<(&str, &str)> {
    let members = volume["members"].as_array().unwrap().iter();
    members.map(|m| (m["name"].as_str().unwrap(), m["state"].as_str().unwrap())).collect()
}

fn member<'a>(volume: &'a Value, name: &str) -> &'a Value {
    volume["members"].as_array().unwrap().iter().find(|member| member["name"] == name).unwrap()
}

#[test]
fn copies_of_a_detached_volume_come_and_go() {
    let cluster = cluster("3", &[]);
    cluster.succeeds(&["volume", "create", "data", "--size", "4MiB", "--copies", "2"]);
    let show = || cluster.json(&["volume", "show", "data"]);
    let two = [("replica-1", "in-sync"), ("replica-2", "in-sync")];
    assert_eq!(members(&show()), two);

    let added = cluster.json(&["replica", "add", "data"]);
    assert_eq!(members(&added)[2], ("replica-3", "stale"));
    assert_eq!((&added["epoch"], &member(&added, "replica-3")["since"]), (&1.into(), &"0.0".into()));
    let shown = cluster.succeeds(&["volume", "show", "data"]);
    assert!(shown.contains("replica-3: it is brought back when the volume is served"), "{shown}");
    let status = cluster.json(&["status"]);
    assert_eq!(status["degraded_volumes"][0], "data");
    let told = cluster.succeeds(&["status"]);
    assert!(told.contains("! data: degraded, 2 of 3 copies in sync: replica-3 is stale"), "{told}");

    cluster.refused(&["replica", "add", "data"], 1, &["without a copy of volume 'data'", "trivet status"]);
    cluster.refused(&["replica", "add", "data", "--to", "replica-2"], 4, &["has a copy on replica-2"]);
    cluster.refused(&["replica", "add", "data", "--to", "replica-9"], 3, &["no replica server replica-9"]);
    cluster.refused(&["replica", "add", "nope"], 3, &["no volume 'nope'", "trivet volume list"]);
    cluster.refused(&["replica", "remove", "data", "--from", "replica-9", "--yes"], 3, &["replica-9"]);
    cluster.refused(&["replica", "remove", "data", "--from", "replica-3"], 2, &["--yes", "--dry-run"]);

    let dry = cluster.succeeds(&["replica", "remove", "data", "--from", "replica-1", "--dry-run"]);
    assert!(dry.contains("would remove") && dry.contains("copies in sync without it: 1"), "{dry}");
    assert_eq!(members(&show()).len(), 3, "a dry run removes nothing");
    cluster.succeeds(&["replica", "remove", "data", "--from", "replica-3", "--yes"]);
    assert_eq!(members(&show()), two);
    let again = ["replica", "remove", "data", "--from", "replica-3", "--yes"];
    cluster.refused(&again, 3, &["has no copy on replica-3", "trivet volume show data"]);
    // Though the old copy may not be gone yet.
    assert_eq!(members(&cluster.json(&["replica", "add", "data", "--to", "3"]))[2].0, "replica-3");
    cluster.succeeds(&["replica", "remove", "data", "--from", "3", "--yes"]);

    cluster.succeeds(&["replica", "remove", "data", "--from", "2", "--yes"]);
    let last = ["replica", "remove", "data", "--from", "1", "--yes"];
    cluster.refused(&last, 4, &["only copy of volume 'data' that is in sync", "replica add data"]);
    let replacing = cluster.json(&["replica", "replace", "data", "--from", "1", "--to", "2"]);
    assert_eq!(replacing["replacement"]["from"], "replica-1");
    assert_eq!(replacing["replacement"]["to"], "replica-2");
    let twice = ["replica", "replace", "data", "--from", "1", "--to", "3"];
    cluster.refused(&twice, 4, &["is being replaced already"]);
    cluster.succeeds(&["replica", "remove", "data", "--from", "2", "--yes"]);
    assert_eq!(show()["replacement"], Value::Null, "without its substitute there is no replacement");
    cluster.wait_for("the copies to be deleted", || {
        (cluster.json(&["status"])["deletions_pending"] == 0).then_some(())
    });
    let attached = cluster.json(&["volume", "attach", "data"]);
    assert_eq!((members(&attached), &attached["state"]), (vec![("replica-1", "in-sync")], &"open".into()));
}

#[test]
fn a_copy_that_is_added_and_removed_under_an_engine_is_seen_by_it() {
    let cluster = cluster("2", &[]);
    cluster.succeeds(&["volume", "create", "data", "--size", "4MiB", "--copies", "1", "--attach"]);
    let show = || cluster.json(&["volume", "show", "data"]);
    for _ in 0..2 {
        cluster.succeeds(&["replica", "add", "data", "--to", "replica-2"]);
        // Also the second time: what was removed is connected to again.
        cluster.wait_for("the engine to reach the new copy", || {
            let volume = show();
            let new = member(&volume, "replica-2");
            (new["engine_state"].is_string() && new["connection"] == "ready").then_some(())
        });
        assert_eq!(show()["state"], "degraded");
        cluster.succeeds(&["replica", "remove", "data", "--from", "replica-2", "--yes"]);
        cluster.wait_for("the engine to let go", || {
            let status = cluster.json(&["status"]);
            (status["deletions_pending"] == 0 && show()["state"] == "open").then_some(())
        });
    }
}

#[test]
fn a_server_that_hangs_holds_nobody_up_and_its_copy_is_dropped() {
    let cluster = cluster("2", &[]);
    let frozen = Frozen::new(&cluster, "replica-2");
    let volume = cluster.wait_for("the engine to drop it", || {
        let volume = cluster.json(&["volume", "show", "disk0"]);
        (volume["state"] == "degraded" && member(&volume, "replica-2")["state"] == "stale").then_some(volume)
    });
    let gone = member(&volume, "replica-2");
    assert_eq!((&gone["reachable"], &gone["used_bytes"]), (&false.into(), &Value::Null));
    assert_ne!(gone["trouble"], "", "{volume:#}");
    let told = cluster.succeeds(&["status"]);
    assert!(told.contains("! disk0: degraded, 1 of 2 copies in sync: replica-2 is stale"), "{told}");
    let last = ["replica", "remove", "disk0", "--from", "replica-1", "--yes"];
    cluster.refused(&last, 4, &["only copy"]);
    let add = ["replica", "add", "disk0", "--to", "replica-2"];
    cluster.refused(&add, 4, &["has a copy on replica-2 already"]);
    // The record forgets it at once; its space is freed when it is back.
    cluster.succeeds(&["replica", "remove", "disk0", "--from", "replica-2", "--yes"]);
    cluster.refused(&add, 1, &["replica-2 takes no copy now", "has not answered"]);
    let told = cluster.succeeds(&["status"]);
    assert!(told.contains("removed copies of 1 volumes still take space"), "{told}");
    drop(frozen);
    cluster.wait_for("the copy to be deleted", || {
        (cluster.json(&["status"])["deletions_pending"] == 0).then_some(())
    });
}

#[test]
fn a_copy_whose_server_stays_away_gets_a_substitute() {
    let cluster = cluster("3", &["--replace-after", "2"]);
    cluster.succeeds(&["volume", "create", "data", "--size", "4MiB", "--copies", "2", "--attach"]);
    let frozen = Frozen::new(&cluster, "replica-2");
    let volume = cluster.wait_for("a substitute", || {
        let volume = cluster.json(&["volume", "show", "data"]);
        volume["replacement"].is_object().then_some(volume)
    });
    assert_eq!(volume["replacement"]["from"], "replica-2");
    assert_eq!((&volume["replacement"]["to"], members(&volume).len()), (&"replica-3".into(), 3));
    assert_eq!(volume["replacement"]["asked"], false);
    assert_eq!(cluster.json(&["volume", "show", "disk0"])["replacement"], Value::Null, "nowhere to put it");
    drop(frozen);
}

#[test]
fn a_substitute_that_is_in_sync_takes_the_place_of_the_copy_that_is_away() {
    let cluster = cluster("3", &["--replace-after", "2"]);
    cluster.succeeds(&["volume", "create", "data", "--size", "4MiB", "--copies", "2", "--attach"]);
    let frozen = Frozen::new(&cluster, "replica-2");
    cluster.wait_for("the substitute to be in sync, and the old copy to be out", || {
        let volume = cluster.json(&["volume", "show", "data"]);
        (members(&volume) == [("replica-1", "in-sync"), ("replica-3", "in-sync")]
            && volume["state"] == "open"
            && volume["replacement"].is_null())
        .then_some(())
    });
    drop(frozen);
    cluster.wait_for("the old copy to be deleted, and disk0 to be whole again", || {
        let status = cluster.json(&["status"]);
        (status["deletions_pending"] == 0 && status["degraded_volumes"].as_array().unwrap().is_empty())
            .then_some(())
    });
}

#[test]
fn a_copy_moves_to_another_server_while_the_volume_is_served() {
    let cluster = cluster("3", &[]);
    cluster.succeeds(&["volume", "create", "data", "--size", "64MiB", "--copies", "2", "--attach"]);
    let uri = cluster.uri("data");
    cluster.succeeds(&["bench", "--uri", &uri, "--rw", "write", "--runtime", "1", "--yes"]);
    let moved = cluster.json(&["replica", "replace", "data", "--from", "replica-1", "--to", "replica-3"]);
    assert_eq!(members(&moved), [("replica-2", "in-sync"), ("replica-3", "in-sync")]);
    assert_eq!(moved["replacement"], Value::Null);
    // Servers count what is in their maps, where it comes when they are quiet.
    cluster.wait_for("the new copy's data to be counted", || {
        let volume = cluster.json(&["volume", "show", "data"]);
        let used = |name: &str| member(&volume, name)["used_bytes"].as_u64().unwrap();
        (used("replica-3") > 0 && used("replica-3") == used("replica-2")).then_some(())
    });
    cluster.wait_for("the old copy to be deleted", || {
        let status = cluster.json(&["status"]);
        (status["deletions_pending"] == 0 && status["degraded_volumes"].as_array().unwrap().is_empty())
            .then_some(())
    });
}

#[test]
fn a_volume_is_salvaged_from_a_copy_that_was_left_behind() {
    let cluster = cluster("3", &[]);
    cluster.succeeds(&["volume", "create", "data", "--size", "4MiB", "--copies", "2", "--attach"]);
    let bench = |volume: &str| {
        let uri = cluster.uri(volume);
        cluster.succeeds(&["bench", "--uri", &uri, "--rw", "randwrite", "--runtime", "1", "--yes"]);
    };
    bench("data");
    // replica-2 is left behind; then replica-1, which alone has everything, is gone too.
    let behind = Frozen::new(&cluster, "replica-2");
    cluster.wait_for("the engine to drop it", || {
        let volume = cluster.json(&["volume", "show", "data"]);
        (member(&volume, "replica-2")["state"] == "stale").then_some(())
    });
    bench("data");
    let salvage = ["volume", "salvage", "data", "--from", "replica-2"];
    let with = |more: &[&'static str]| [&salvage, more].concat();
    cluster.refused(&with(&["--yes"]), 4, &["is attached", "trivet volume detach data"]);
    cluster.succeeds(&["volume", "detach", "data"]);
    cluster.refused(&with(&["--yes"]), 1, &["the copy of volume 'data' on replica-2 cannot be had"]);
    drop(behind);
    cluster.wait_for("replica-2 to answer", || {
        let volume = cluster.json(&["volume", "show", "data"]);
        (member(&volume, "replica-2")["reachable"] == true).then_some(())
    });
    cluster.refused(&with(&["--yes"]), 4, &["nothing to salvage", "trivet volume attach data", "--force"]);
    cluster.refused(&["volume", "salvage", "data", "--from", "3", "--yes"], 3, &["no copy on replica-3"]);
    cluster.refused(&["volume", "salvage", "nope", "--from", "3", "--yes"], 3, &["no volume 'nope'"]);
    let forced = cluster.succeeds(&with(&["--force", "--dry-run"]));
    assert!(forced.contains("replica-1 is ") && forced.contains("ahead of it"), "{forced}");

    let lost = Frozen::new(&cluster, "replica-1");
    let before = cluster.json(&["volume", "show", "data"]);
    let dry = cluster.succeeds(&with(&["--dry-run"]));
    for words in ["may be lost", "replica-1: in-sync, cannot be had", "what only they hold is lost"] {
        assert!(dry.contains(words), "'{words}' is not in:\n{dry}");
    }
    assert_eq!(cluster.json(&["volume", "show", "data"])["epoch"], before["epoch"], "a dry run is dry");
    cluster.refused(&salvage, 2, &["--yes", "--dry-run"]);
    let said = cluster.succeeds(&with(&["--yes"]));
    assert!(said.contains("goes on with the copy on replica-2 alone") && said.contains("made anew then"));
    let after = cluster.json(&["volume", "show", "data"]);
    assert_eq!(members(&after), [("replica-2", "in-sync")]);
    assert_eq!(after["generation"].as_u64(), before["generation"].as_u64().map(|n| n + 1));
    assert_eq!(cluster.json(&["volume", "attach", "data"])["state"], "open");
    bench("data");

    drop(lost);
    cluster.wait_for("the old copy to be deleted", || {
        (cluster.json(&["status"])["deletions_pending"] == 0).then_some(())
    });
    cluster.wait_for("the other copy to be made anew", || {
        let volume = cluster.json(&["volume", "show", "data"]);
        (members(&volume) == [("replica-2", "in-sync"), ("replica-3", "in-sync")]).then_some(())
    });
}

#[test]
fn copies_are_made_and_removed_until_there_are_as_many_as_are_wanted() {
    let cluster = cluster("3", &[]);
    cluster.succeeds(&["volume", "create", "data", "--size", "4MiB", "--copies", "1", "--attach"]);
    let in_sync = |count: usize| {
        cluster.wait_for("the copies", || {
            let volume = cluster.json(&["volume", "show", "data"]);
            let found = members(&volume);
            (found.len() == count && found.iter().all(|member| member.1 == "in-sync")).then_some(volume)
        })
    };
    let said = cluster.succeeds(&["volume", "set", "data", "--copies", "3"]);
    assert!(said.contains("3 copies: what is missing is being made"), "{said}");
    assert_eq!(in_sync(3)["copies"], 3);
    let said = cluster.succeeds(&["volume", "set", "data", "--copies", "2", "--dry-run"]);
    assert!(said.contains("would remove 1 of the 3 copies of volume 'data'"), "{said}");
    cluster.refused(&["volume", "set", "data", "--copies", "2"], 2, &["--yes", "--dry-run"]);
    assert_eq!(in_sync(3)["copies"], 3);
    let said = cluster.succeeds(&["volume", "set", "data", "--copies", "2", "--yes"]);
    assert!(said.contains("the surplus goes"), "{said}");
    let volume = in_sync(2);
    let removed = members(&volume)[1].0.to_owned();
    let said = cluster.succeeds(&["replica", "remove", "data", "--from", &removed, "--yes"]);
    assert!(said.contains("volume set data --copies 2"), "{said}");
    assert_eq!(in_sync(1)["copies"], 1);
    cluster.refused(
        &["volume", "set", "data", "--copies", "5"],
        1,
        &["5 copies need as many replica servers"],
    );
}

#[test]
fn when_copies_are_replaced_is_remembered() {
    let cluster = cluster("1", &["--replace-after", "77"]);
    let after = || cluster.json(&["status"])["replace_after_seconds"].clone();
    assert_eq!(after(), 77);
    cluster.succeeds(&["down"]);
    cluster.succeeds(&["up"]);
    assert_eq!(after(), 77);
    // Also of a manager that runs.
    cluster.succeeds(&["up", "--replace-after", "99"]);
    assert_eq!(after(), 99);
}

#[test]
fn ctrl_c_leaves_a_replacement_running() {
    let cluster = cluster("2", &[]);
    cluster.succeeds(&["volume", "create", "data", "--size", "4MiB", "--copies", "1", "--attach"]);
    let mut replace = Command::new(env!("CARGO_BIN_EXE_trivet"))
        .args(["replica", "replace", "data", "--from", "replica-1"])
        .env("TRIVET_DIR", &cluster.dir)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut stderr = std::io::BufReader::new(replace.stderr.take().unwrap());
    // Its first word of progress: it waits now. With a walk to do it may not even get that far.
    std::io::BufRead::read_line(&mut stderr, &mut said).unwrap();
    assert!(said.starts_with("replica-2: "), "{said}");
    signal("-INT", replace.id());
    let output = replace.wait_with_output().unwrap();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut rest).unwrap();
    if output.status.success() {
        // It was in sync before the signal came.
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{rest}{}", text(&output.stderr));
    assert!(rest.contains("the replacement goes on") && rest.contains("trivet volume show data"), "{rest}");
    assert_eq!(cluster.json(&["volume", "show", "data"])["replacement"]["to"], "replica-2");
}
