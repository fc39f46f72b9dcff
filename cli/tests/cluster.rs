//! A local cluster with real processes: up, use, kill, down.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod local;

use local::{Cluster, text};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn nbdinfo(uri: &str) -> Option<Value> {
    let output = Command::new("nbdinfo").args(["--json", uri]).output().expect("libnbd-bin is installed");
    if output.status.success() { serde_json::from_slice(&output.stdout).ok() } else { None }
}

#[test]
fn a_volume_lives_from_create_to_delete() {
    let cluster = Cluster::up("3");
    let status = cluster.json(&["status"]);
    assert_eq!(status["healthy"], true, "{status:#}");
    assert_eq!(status["replicas"].as_array().unwrap().len(), 3);

    let made = cluster.json(&["volume", "create", "data", "--size", "16MiB", "--copies", "2"]);
    assert_eq!(made["size_bytes"], 16 << 20);
    assert_eq!(made["members"].as_array().unwrap().len(), 2);
    assert_eq!((&made["state"], &made["attached"]), (&"detached".into(), &false.into()));
    cluster.refused(&["volume", "create", "data", "--size", "1M"], 4, &["data"]);
    cluster.refused(&["volume", "create", "more", "--size", "1M", "--copies", "4"], 1, &["3 of 3 answer"]);

    let names: Vec<String> = cluster
        .json(&["volume", "list"])
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| volume["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["data", "disk0"]);

    let attached = cluster.json(&["volume", "attach", "data", "--listen", "127.0.0.1:0"]);
    assert_eq!((&attached["state"], &attached["serving"]), (&"open".into(), &true.into()));
    for uri in [&attached["uri"], &attached["tcp_uri"]] {
        let info = nbdinfo(uri.as_str().unwrap()).expect("it is served");
        assert_eq!(info["exports"][0]["export-size"], 16 << 20);
    }
    assert!(cluster.succeeds(&["volume", "attach", "data"]).contains(attached["uri"].as_str().unwrap()));
    cluster.refused(&["volume", "attach", "data", "--read-only"], 4, &["in another way", "detach data"]);
    cluster.refused(&["volume", "delete", "data", "--yes"], 4, &["is attached", "detach data"]);
    // Who connects from now on sees the new size.
    assert_eq!(cluster.json(&["volume", "resize", "data", "--size", "24M"])["size_bytes"], 24 << 20);
    let info = nbdinfo(attached["uri"].as_str().unwrap()).expect("it is served");
    assert_eq!(info["exports"][0]["export-size"], 24 << 20);
    cluster.refused(&["volume", "resize", "data", "--size", "16M"], 2, &["grows only"]);
    cluster.refused(&["bench", "--volume", "data"], 4, &["is attached"]);

    cluster.succeeds(&["volume", "detach", "data"]);
    cluster.succeeds(&["volume", "detach", "data"]);
    assert!(nbdinfo(attached["uri"].as_str().unwrap()).is_none(), "nobody serves it any more");
    assert_eq!(cluster.json(&["volume", "resize", "data", "--size", "32M"])["size_bytes"], 32 << 20);
    cluster.refused(&["volume", "resize", "data", "--size", "1M"], 2, &["grows only"]);
    let read_only = cluster.json(&["volume", "attach", "data", "--read-only"]);
    assert_eq!(nbdinfo(read_only["uri"].as_str().unwrap()).unwrap()["exports"][0]["is_read_only"], true);
    cluster.succeeds(&["volume", "detach", "data"]);

    assert!(
        cluster.succeeds(&["volume", "delete", "data", "--dry-run"]).contains("would delete volume 'data'")
    );
    cluster.succeeds(&["volume", "show", "data"]);
    cluster.refused(&["volume", "delete", "data"], 2, &["--yes"]);
    cluster.succeeds(&["volume", "delete", "data", "--yes"]);
    for verb in ["show", "delete", "attach", "detach"] {
        cluster.refused(&["volume", verb, "data"], 3, &["data", "trivet volume list"]);
    }
    cluster.wait_for("its copies to be gone", || {
        (cluster.json(&["status"])["deletions_pending"] == 0).then_some(())
    });
}

#[test]
fn up_twice_changes_nothing_and_down_stops_everything() {
    let cluster = Cluster::up("2");
    let uri = cluster.uri("disk0");
    let before = cluster.running();
    assert_eq!(before.len(), 4, "{before:?}");
    let again = cluster.succeeds(&["up", "--size", "128MiB"]);
    assert!(again.contains(&uri) && again.contains("disk0 keeps its size of 64 MiB"), "{again}");
    assert_eq!(cluster.running(), before);
    cluster.refused(&["up", "--replicas", "3"], 4, &["2 replica servers, not 3"]);

    assert!(cluster.succeeds(&["down"]).contains("stopped 4 processes"));
    assert_eq!(cluster.running(), Vec::<String>::new());
    assert!(cluster.succeeds(&["down"]).contains("nothing runs"));
    cluster.refused(&["status"], 5, &["trivet up"]);
    assert!(cluster.succeeds(&["check"]).contains("replica-2: sound"));

    cluster.succeeds(&["up"]);
    assert_eq!(cluster.uri("disk0"), uri);
    assert!(nbdinfo(&uri).is_some());
    cluster.refused(&["down", "--delete-data"], 2, &["--yes", "--dry-run"]);
    cluster.succeeds(&["down", "--delete-data", "--yes"]);
    assert!(!cluster.dir.exists());
}

#[test]
fn whatever_is_killed_comes_back() {
    let cluster = Cluster::up("2");
    let uri = cluster.uri("disk0");
    for process in ["replica-1", "engine-disk0", "replica-2"] {
        cluster.kill(process);
        assert!(nbdinfo(&uri).is_some(), "{process} was killed");
    }
    let engine = cluster.pid("engine-disk0");
    let manager = cluster.pid("manager");
    assert!(Command::new("kill").args(["-KILL", &manager.to_string()]).status().unwrap().success());
    cluster.wait_for("the manager's end", || (cluster.running().len() == 3).then_some(()));
    assert!(nbdinfo(&uri).is_some(), "I/O goes on without a manager");
    cluster.refused(&["volume", "list"], 5, &["trivet up"]);
    cluster.succeeds(&["up"]);
    assert_eq!(cluster.pid("engine-disk0"), engine, "a new manager adopts what runs");
    cluster.kill("engine-disk0");

    let pids: Vec<String> = ["manager", "engine-disk0", "replica-1", "replica-2"]
        .iter()
        .map(|name| cluster.pid(name).to_string())
        .collect();
    assert!(Command::new("kill").arg("-KILL").args(&pids).status().unwrap().success());
    cluster.wait_for("the end of all", || cluster.running().is_empty().then_some(()));
    cluster.succeeds(&["up"]);
    assert!(nbdinfo(&uri).is_some());
    assert_eq!(cluster.uri("disk0"), uri);
}

#[test]
fn an_occupied_port_is_named() {
    let cluster = Cluster::up("1");
    cluster.succeeds(&["volume", "create", "data", "--size", "1M"]);
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    cluster.refused(&["volume", "attach", "data", "--listen", &address], 4, &[&address, "ss -ltnp"]);
    cluster.refused(&["volume", "attach", "data", "--listen", "0.0.0.0:10809"], 2, &["loopback"]);
    assert_eq!(cluster.json(&["volume", "show", "data"])["attached"], false);

    let replica = cluster.json(&["status"])["replicas"][0]["address"].as_str().unwrap().to_owned();
    cluster.succeeds(&["down"]);
    let _squatter = std::net::TcpListener::bind(&replica).unwrap();
    cluster.refused(&["up"], 4, &["replica-1", &replica, "ss -ltnp"]);
}

#[test]
fn a_pool_in_use_is_neither_checked_nor_served_twice() {
    let cluster = Cluster::up("1");
    let pool = cluster.dir.join("replica-1");
    let pool = pool.to_str().unwrap();
    cluster.refused(&["check", pool], 4, &["in use", "trivet down"]);
    cluster.refused(&["replica", "--dir", pool, "--listen", "127.0.0.1:0"], 4, &["in use"]);
    cluster.refused(&["manager"], 4, &["runs already"]);
    assert_eq!(cluster.json(&["status"])["healthy"], true);
}

#[test]
fn the_bench_measures_both_ways() {
    let cluster = Cluster::up("2");
    let uri = cluster.uri("disk0");
    let bench = |arguments: &[&str]| {
        let common = ["--runtime", "1", "--iodepth", "8", "--yes"];
        cluster.json(&[&["bench"], arguments, &common].concat())
    };
    let over_nbd = bench(&["--uri", &uri, "--rw", "randrw", "--fsync", "16"]);
    let kinds: Vec<&str> =
        over_nbd["kinds"].as_array().unwrap().iter().map(|kind| kind["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["read", "write", "flush"]);
    assert_taken_part(&over_nbd, &["bench", "engine-disk0", "replica-1", "replica-2"]);
    cluster.refused(&["bench", "--uri", &uri, "--rw", "randwrite"], 2, &["overwrites", "--yes"]);

    cluster.succeeds(&["volume", "detach", "disk0"]);
    let embedded = bench(&["--volume", "disk0", "--rw", "write", "--bs", "64k"]);
    assert_taken_part(&embedded, &["bench", "replica-1", "replica-2"]);
    let shown = cluster.json(&["volume", "show", "disk0"]);
    assert_eq!(shown["owner"], "", "the bench has closed it");
    assert!(shown["used_bytes"].as_u64().unwrap() > 0);
}

fn assert_taken_part(report: &Value, names: &[&str]) {
    let found: Vec<&str> = report["processes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|process| process["process"].as_str().unwrap())
        .collect();
    assert_eq!(found, names);
    for kind in report["kinds"].as_array().unwrap() {
        let at = |name: &str| kind[name].as_f64().unwrap();
        assert!(at("iops") > 0.0);
        assert!(
            at("latency_us_p50") <= at("latency_us_p99") && at("latency_us_p99") <= at("latency_us_p999")
        );
    }
}

#[test]
fn a_long_path_moves_the_sockets_and_says_so() {
    let mut cluster = Cluster::new();
    cluster.dir = cluster.temp.path().join("x".repeat(110));
    let output = cluster.run(&["up", "--replicas", "1", "--size", "4MiB", "--capacity", "1GiB"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("too long for unix sockets"), "{}", text(&output.stderr));
    let uri = cluster.uri("disk0");
    assert!(nbdinfo(&uri).is_some());
    let socket = PathBuf::from(uri.split_once("socket=").unwrap().1);
    cluster.succeeds(&["down", "--delete-data", "--yes"]);
    assert!(!socket.parent().is_some_and(Path::exists), "nothing is left in /tmp");
}

#[test]
fn in_the_foreground_a_signal_ends_it_all() {
    let cluster = Cluster::new();
    let mut up = Command::new(env!("CARGO_BIN_EXE_trivet"))
        .args(["up", "--foreground", "--replicas", "1", "--size", "4MiB", "--capacity", "1GiB"])
        .env("TRIVET_DIR", &cluster.dir)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut stderr = std::io::BufReader::new(up.stderr.take().unwrap());
    while !said.contains("Ctrl-C stops the cluster") {
        assert_ne!(std::io::BufRead::read_line(&mut stderr, &mut said).unwrap(), 0, "{said}");
    }
    assert_eq!(cluster.running().len(), 3);
    assert!(Command::new("kill").args(["-TERM", &up.id().to_string()]).status().unwrap().success());
    assert!(up.wait().unwrap().success());
    assert_eq!(cluster.running(), Vec::<String>::new());
}
