//! Durability and limits of a volume, changed while it is used: in force once the command has ended,
//! through the death of everybody.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Instant;
use trivet_api::Layout;
use trivet_tests::bad_disk::{BadDisk, obstacle};
use trivet_tests::checker::Region;
use trivet_tests::nbd::Request;
use trivet_tests::{Checker, Cluster, NbdClient, Random, Setup, not_run, patience, process};

const MIB: u64 = 1 << 20;

fn set(cluster: &Cluster, what: &[&str]) -> serde_json::Value {
    cluster.trivet_json(&[&["volume", "set", "disk0"], what].concat())
}

/// What the engine says of its volume.
fn engine(cluster: &Cluster) -> serde_json::Value {
    let layout = Layout::open(cluster.directory()).expect("a cluster is there");
    let socket = layout.engine_status_socket("disk0").expect("its path is short enough");
    let mut text = String::new();
    let mut stream = UnixStream::connect(socket).expect("an engine runs");
    stream.read_to_string(&mut text).expect("it answers");
    let status: serde_json::Value = serde_json::from_str(&text).expect("its status is JSON");
    status["volume"].clone()
}

fn throttled(cluster: &Cluster) -> u64 {
    engine(cluster)["counters"]["throttled"].as_u64().expect("a number")
}

fn submit_writes(client: &mut NbdClient, count: u64) {
    for block in 0..count {
        let data = vec![7; 4096];
        let write = Request::Write { offset: block * 4096, data, force_unit_access: false };
        client.submit(&write).expect("a volume in good order takes writes");
    }
}

fn take_replies(client: &mut NbdClient, count: u64) {
    for _ in 0..count {
        assert_eq!(client.next_reply(patience::SOON).expect("an answer").error, 0);
    }
}

#[test]
fn a_write_through_volume_flushes_its_disk_before_it_acknowledges_a_write() {
    if let Some(why) = obstacle() {
        return not_run(&why);
    }
    let mut setup = Setup::new(1, "64MiB");
    setup.options = ["--capacity", "1GiB"].map(str::to_owned).to_vec();
    let cluster = Cluster::start_as(setup);
    cluster.down();
    let disk = BadDisk::under(&cluster.pools()[0], (1 << 30) + 64 * MIB);
    cluster.up();
    let mut client = cluster.connect();
    client.write(0, &[1; 4096]).expect("a volume in good order takes writes");
    let before = disk.flushes();
    let shown = set(&cluster, &["--durability", "write-through"]);
    assert_eq!(shown["durability"], "write-through", "{shown}");
    assert!(disk.flushes() > before, "what was acknowledged before became stable");
    for round in 0..20 {
        let before = disk.flushes();
        client.write(round * 8192, &[2; 4096]).expect("a write");
        assert!(disk.flushes() > before, "write {round} was acknowledged without a flush");
        client.call(&Request::Trim { offset: round * 8192, length: 4096 }).expect("a trim");
    }
    // Many at once share flushes.
    let before = disk.flushes();
    submit_writes(&mut client, 64);
    take_replies(&mut client, 64);
    let shared = disk.flushes() - before;
    assert!((1..64).contains(&shared), "64 writes at once took {shared} flushes");
    drop(client);
    cluster.down();
    drop(disk);
}

#[test]
fn f35_settings_and_what_was_acknowledged_outlive_the_death_of_everybody() {
    let seed = Random::seed_from_environment();
    eprintln!("TRIVET_TEST_SEED={seed}");
    let cluster = Cluster::start(3, "256MiB");
    let load = Checker::start(cluster.uri(), Region::new(64 * MIB, 4096, 4096, seed), seed);
    load.wait_for_progress(200, patience::SOON);
    set(&cluster, &["--durability", "write-through", "--bandwidth-limit", "64MiB,burst=128MiB"]);
    load.wait_for_progress(200, patience::SOON);
    process::kill_hard(&cluster.processes());
    cluster.up();
    load.wait_for_progress(200, 2 * patience::SOON);
    let mut region = load.stop();
    region.verify(&mut cluster.connect()).expect("a quiet volume can be read");
    let shown = cluster.trivet_json(&["volume", "show", "disk0"]);
    assert_eq!(shown["durability"], "write-through", "{shown}");
    assert_eq!(shown["bandwidth_limit"]["burst"], 128 * MIB, "{shown}");
    let engine = engine(&cluster);
    assert_eq!(engine["settings"]["durability"], "write-through", "{engine}");
}

#[test]
fn a_limit_holds_requests_up_and_forgets_none() {
    const BURST: u64 = 20;
    const RATE: u64 = 200;
    const WRITES: u64 = 120;
    let cluster = Cluster::start(3, "64MiB");
    let mut client = cluster.connect();
    let shown = set(&cluster, &["--iops-limit", &format!("{RATE},burst={BURST}")]);
    assert_eq!(shown["iops_limit"]["per_second"], RATE, "{shown}");
    #[allow(clippy::disallowed_methods, reason = "what a limit allows is said in terms of time")]
    let began = Instant::now();
    submit_writes(&mut client, WRITES);
    // A flush is not held up by what has not been acknowledged.
    client.submit(&Request::Flush).expect("a flush");
    take_replies(&mut client, WRITES + 1);
    let allowed = began.elapsed().as_nanos() * u128::from(RATE) / 1_000_000_000 + u128::from(BURST);
    assert!(u128::from(WRITES) <= allowed, "{WRITES} writes passed where {allowed} were allowed");
    assert!(throttled(&cluster) > 0);

    // What is held when the limit is taken away passes.
    submit_writes(&mut client, 400);
    let shown = set(&cluster, &["--iops-limit", "none"]);
    assert!(shown["iops_limit"].is_null(), "{shown}");
    take_replies(&mut client, 400);
    let before = throttled(&cluster);
    submit_writes(&mut client, 100);
    take_replies(&mut client, 100);
    assert_eq!(throttled(&cluster), before);
}
