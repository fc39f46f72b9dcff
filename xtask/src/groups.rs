//! `xtask groups`: for how long a snapshot of several volumes holds their writes, nobody writing and everybody.

use crate::document::{Marks, machine};
use crate::snapshots::milliseconds;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use trivet_tests::nbd::Request;
use trivet_tests::random::Random;
use trivet_tests::{Cluster, NbdClient, Setup, patience};

const USAGE: &str = "xtask groups
  --taken N        snapshots of each kind (30)
  --write FILE     keep the table in FILE, between the groups markers";

const MARKS: Marks = Marks {
    begin: "<!-- groups: begin (make group-bench writes what stands between these marks) -->",
    end: "<!-- groups: end -->",
};

const VOLUMES: [&str; 4] = ["disk0", "a", "b", "c"];
/// How many volumes, and writes of 4 KiB in flight on each.
const KINDS: [(usize, usize); 6] = [(2, 0), (2, 1), (2, 32), (4, 0), (4, 1), (4, 32)];
const SIZE_MIB: u64 = 256;
const BLOCK: u64 = 4096;

/// Runs it.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let (mut taken, mut write) = (30, None);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
        match name.as_str() {
            "--taken" => taken = value.parse::<u64>().map_err(|e| format!("{name} {value}: {e}"))?,
            "--write" => write = Some(PathBuf::from(value)),
            _ => return Err(format!("unknown option {name}\n{USAGE}")),
        }
    }
    let cluster = Cluster::start_as(Setup::new(3, &format!("{SIZE_MIB}MiB")));
    for name in &VOLUMES[1..] {
        let create = ["volume", "create", name, "--size", &format!("{SIZE_MIB}MiB"), "--attach"];
        drop(cluster.trivet(&create).succeeded());
    }
    let mut text = format!("Measured on {}.\n\n", machine(&std::env::temp_dir()));
    let mut line = |content: &str| writeln!(text, "{content}").map_err(|e| e.to_string());
    line(&format!(
        "Volumes on the same three replicas, written at random, 4 KiB at a time; {taken} snapshots of all at one moment.\n"
    ))?;
    line("| volumes | writes in flight on each | writes are held: median | most |")?;
    line("|---|---|---|---|")?;
    for (volumes, depth) in KINDS {
        eprintln!("{volumes} volumes, {depth} writes in flight on each");
        let (median, most) = milliseconds(&held(&cluster, &VOLUMES[..volumes], depth, taken)?);
        line(&format!("| {volumes} | {depth} | {median:.1} ms | {most:.1} ms |"))?;
    }
    println!("{text}");
    match write {
        None => Ok(()),
        Some(path) => MARKS.write_between(&path, &text),
    }
}

/// For how long each of so many snapshots held the writes.
fn held(cluster: &Cluster, volumes: &[&str], depth: usize, taken: u64) -> Result<Vec<Duration>, String> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing: Vec<_> = volumes
            .iter()
            .filter(|_| depth > 0)
            .map(|volume| cluster.connect_to(volume))
            .map(|client| scope.spawn(|| keep_writing(client, depth, &stop)))
            .collect();
        let held = (0..taken).map(|number| take(cluster, volumes, &format!("g{depth}-{number}"))).collect();
        stop.store(true, Ordering::Relaxed);
        for writer in writing {
            writer.join().map_err(|_panic| "a writer has panicked".to_owned())??;
        }
        for number in 0..taken {
            for volume in volumes {
                let delete = ["snapshot", "delete", volume, &format!("g{depth}-{number}"), "--yes"];
                drop(cluster.trivet(&delete).succeeded());
            }
        }
        held
    })
}

fn keep_writing(mut client: NbdClient, depth: usize, stop: &AtomicBool) -> Result<(), String> {
    let mut random = Random::new(3);
    let mut in_flight = 0;
    while in_flight > 0 || !stop.load(Ordering::Relaxed) {
        while in_flight < depth && !stop.load(Ordering::Relaxed) {
            let offset = random.below(SIZE_MIB * ((1 << 20) / BLOCK)) * BLOCK;
            let write = Request::Write { offset, data: vec![7; 4096], force_unit_access: false };
            client.submit(&write).map_err(|e| e.to_string())?;
            in_flight += 1;
        }
        if in_flight > 0 {
            client.next_reply(patience::SOON).map_err(|e| e.to_string())?;
            in_flight -= 1;
        }
    }
    Ok(())
}

fn take(cluster: &Cluster, volumes: &[&str], name: &str) -> Result<Duration, String> {
    let named = volumes.iter().flat_map(|volume| ["--volume", volume]);
    let create: Vec<&str> = ["snapshot", "create", name].into_iter().chain(named).collect();
    let taken = cluster.trivet_json(&create);
    let held = taken["held_microseconds"].as_u64();
    held.map(Duration::from_micros).ok_or_else(|| format!("it does not say for how long: {taken}"))
}
