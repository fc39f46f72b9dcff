//! `xtask snapshots`: what snapshots cost. How long taking one takes and holds writes back, how fast the
//! volume is with so many of them, and how long deleting them takes to give their space back.
//!
//! Between two snapshots blocks all over the volume are overwritten. A second volume in the same pools is written to
//! in just the same way and has no snapshots: the two are measured by turns, so that neither the machine's mood
//! nor the age of the pools is taken for what snapshots cost.

use crate::bench::fio::{self, Target};
use crate::bench::median;
use crate::bench::target::cpu_seconds_of;
use crate::bench::workload::{Job, Size};
use crate::document::{Marks, machine};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use trivet_tests::nbd::Request;
use trivet_tests::random::Random;
use trivet_tests::{Cluster, NbdClient, Role, Setup, patience};

const USAGE: &str = "xtask snapshots
  --size MIB       of each of the two volumes (1024)
  --levels N,N     numbers of snapshots at which is measured (0,10,100,250,990)
  --runtime SECONDS of each measurement of a rate (2)
  --turns N        measurements of each rate of each volume at each number of snapshots (6)
  --write FILE     keep the tables in FILE, between the snapshots markers";

const MARKS: Marks = Marks {
    begin: "<!-- snapshots: begin (make snapshot-bench writes what stands between these marks) -->",
    end: "<!-- snapshots: end -->",
};

/// Numbers of snapshots at which is measured. The last leaves room for those that are taken to see how long that
/// takes: a volume has 1000 at most.
const LEVELS: [u64; 5] = [0, 10, 100, 250, 990];
/// Blocks overwritten between two snapshots, all over the volume.
const BETWEEN: u64 = 200;
/// Snapshots taken at each level to see how long that takes.
const TAKEN: u64 = 10;
const BLOCK: u64 = 4096;
/// Blocks overwritten after a snapshot that is deleted to see what that costs.
const CHANGED: [u64; 4] = [0, 1_000, 10_000, 100_000];

/// The volume with snapshots, and that without.
const VOLUMES: [&str; 2] = ["disk0", "twin"];
const SNAPSHOTTED: &str = VOLUMES[0];

const READS: Job = Job { rw: "randread", size: Size::FourKib, depth: 32, sync: None };
const WRITES: Job = Job { rw: "randwrite", size: Size::FourKib, depth: 32, sync: None };

struct Bench {
    cluster: Cluster,
    /// Of `VOLUMES`.
    targets: [Target; 2],
    size_mib: u64,
    runtime: u32,
    turns: usize,
    random: Random,
    taken: u64,
}

/// Of both volumes, by turns.
struct Rates {
    with: f64,
    without: f64,
    /// Of each turn, in order of size.
    ratios: Vec<f64>,
}

/// What was measured with so many snapshots.
struct Level {
    snapshots: u64,
    reads: Rates,
    writes: Rates,
    /// Of the commands that take one, from start to end.
    takes: Vec<Duration>,
    /// The slowest of one writer's writes while one was taken, and in as much time without.
    paused: Vec<Duration>,
    unpaused: Vec<Duration>,
}

/// What deleting one cost.
struct Deletion {
    /// Blocks that nothing needed any more.
    freed: u64,
    /// Until their space was back.
    took: Duration,
    /// Of all replica servers.
    cpu_seconds: f64,
}

/// Runs it.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let (mut size_mib, mut runtime, mut turns, mut write) = (1024, 2, 6, None);
    let mut numbers = LEVELS.to_vec();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
        let invalid = |e: std::num::ParseIntError| format!("{name} {value}: {e}");
        match name.as_str() {
            "--size" => size_mib = value.parse().map_err(invalid)?,
            "--levels" => {
                numbers = value.split(',').map(str::parse).collect::<Result<_, _>>().map_err(invalid)?;
            }
            "--runtime" => runtime = value.parse().map_err(invalid)?,
            "--turns" => turns = value.parse().map_err(invalid)?,
            "--write" => write = Some(PathBuf::from(value)),
            _ => return Err(format!("unknown option {name}\n{USAGE}")),
        }
    }
    let size = format!("{size_mib}MiB");
    let cluster = Cluster::start_as(Setup::new(3, &size));
    drop(cluster.trivet(&["volume", "create", VOLUMES[1], "--size", &size]).succeeded());
    drop(cluster.trivet(&["volume", "attach", VOLUMES[1]]).succeeded());
    let targets = VOLUMES.map(|volume| fio::served(&uri_of(&cluster, volume), size_mib << 20));
    let mut bench = Bench { cluster, targets, size_mib, runtime, turns, random: Random::new(1), taken: 0 };
    eprintln!("filling and scattering both volumes");
    for target in &bench.targets {
        fio::fill(target, size_mib << 20)?;
        fio::run(target, &WRITES, 4 * runtime)?;
    }
    let used_before = bench.used_when_quiet();
    let mut levels = Vec::new();
    for level in numbers {
        bench.reach(level)?;
        levels.push(bench.level(level)?);
    }
    let used_most = bench.used_when_quiet();
    let deleted = bench.delete_all(used_before)?;
    let deletions = CHANGED.map(|changed| bench.deletion(changed));
    let deletions = deletions.into_iter().collect::<Result<Vec<Deletion>, String>>()?;
    let mut text = report(&bench, &levels, (used_before, used_most), deleted)?;
    text += &deletion_table(&deletions);
    println!("{text}");
    match write {
        None => Ok(()),
        Some(path) => MARKS.write_between(&path, &text),
    }
}

fn uri_of(cluster: &Cluster, volume: &str) -> String {
    let shown = cluster.trivet_json(&["volume", "show", volume]);
    shown["uri"].as_str().unwrap_or_default().to_owned()
}

impl Bench {
    /// Operations a second of the two volumes, measured by turns.
    fn rates(&self, job: &Job) -> Result<Rates, String> {
        let (mut rates, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
        for turn in 0..self.turns {
            let mut latest = [0.0; 2];
            // Each is first in its turn.
            for which in [turn % 2, (turn + 1) % 2] {
                latest[which] = fio::run(&self.targets[which], job, self.runtime)?.rate(1);
                rates[which].push(latest[which]);
            }
            ratios.push(latest[0] / latest[1]);
            eprintln!("{}: {:.0}/s, {:.0}/s without", job.rw, latest[0], latest[1]);
        }
        ratios.sort_by(f64::total_cmp);
        let [with, without] = rates.map(|rates| median(rates).ok_or("no turn was run"));
        Ok(Rates { with: with?, without: without?, ratios })
    }

    fn level(&mut self, snapshots: u64) -> Result<Level, String> {
        eprintln!("measuring with {snapshots} snapshots");
        let (reads, writes) = (self.rates(&READS)?, self.rates(&WRITES)?);
        let [takes, paused, unpaused] = self.pauses()?;
        Ok(Level { snapshots, reads, writes, takes, paused, unpaused })
    }

    /// Takes snapshots until there are so many, blocks overwritten between them.
    fn reach(&mut self, level: u64) -> Result<(), String> {
        let mut clients = VOLUMES.map(|volume| self.cluster.connect_to(volume));
        for number in self.count()..level {
            if number % 100 == 0 {
                eprintln!("taking snapshots: {number} of {level}");
            }
            for client in &mut clients {
                self.overwrite(client, BETWEEN)?;
            }
            self.take();
        }
        Ok(())
    }

    fn count(&self) -> u64 {
        let listed = self.cluster.trivet_json(&["snapshot", "list", SNAPSHOTTED]);
        listed.as_array().map_or(0, |listed| listed.len() as u64)
    }

    fn overwrite(&mut self, client: &mut NbdClient, blocks: u64) -> Result<(), String> {
        let volume = self.size_mib * ((1 << 20) / BLOCK);
        for _ in 0..blocks {
            let offset = self.random.below(volume) * BLOCK;
            let data = vec![7; 4096];
            let write = Request::Write { offset, data, force_unit_access: false };
            client.submit(&write).map_err(|e| e.to_string())?;
        }
        for _ in 0..blocks {
            client.next_reply(patience::SOON).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn take(&mut self) {
        self.taken += 1;
        let create = ["snapshot", "create", SNAPSHOTTED, &format!("s{}", self.taken)];
        drop(self.cluster.trivet(&create).succeeded());
    }

    /// Has one writer write, takes snapshots meanwhile and deletes them again: how long that takes, and the
    /// slowest write each time.
    fn pauses(&mut self) -> Result<[Vec<Duration>; 3], String> {
        let mut client = self.cluster.connect();
        let blocks = self.size_mib * ((1 << 20) / BLOCK);
        let stop = AtomicBool::new(false);
        let mut windows = Vec::new();
        let first = self.taken + 1;
        let writes = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut random = Random::new(2);
                let mut writes = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let began = patience::now();
                    client.write(random.below(blocks) * BLOCK, &[5; 4096]).map_err(|e| e.to_string())?;
                    writes.push((began, patience::now()));
                }
                Ok::<_, String>(writes)
            });
            // Also if a command fails: the scope ends when its threads have ended.
            let stopped = Stops(&stop);
            for _ in 0..TAKEN {
                let began = patience::now();
                patience::until(began + Duration::from_millis(300));
                let taking = patience::now();
                self.take();
                windows.push((began, taking, patience::now()));
            }
            drop(stopped);
            writer.join().map_err(|_panic| "the writer has panicked".to_owned())?
        })?;
        for number in first..=self.taken {
            let delete = ["snapshot", "delete", SNAPSHOTTED, &format!("s{number}"), "--yes"];
            drop(self.cluster.trivet(&delete).succeeded());
        }
        let slowest = |from: Instant, until: Instant| {
            let within = writes.iter().filter(|(began, ended)| *ended >= from && *began < until);
            within.map(|(began, ended)| *ended - *began).max().unwrap_or_default()
        };
        let takes: Vec<Duration> = windows.iter().map(|(_, taking, taken)| *taken - *taking).collect();
        // As long before each as it took.
        let before = |taking: Instant, taken: Instant| slowest(taking - (taken - taking), taking);
        let paused = windows.iter().map(|(_, taking, taken)| slowest(*taking, *taken)).collect();
        let unpaused = windows.iter().map(|(_, taking, taken)| before(*taking, *taken)).collect();
        Ok([takes, paused, unpaused])
    }

    /// Bytes in use once they do not change any more.
    fn used_when_quiet(&self) -> u64 {
        let used = || self.cluster.trivet_json(&["volume", "show", SNAPSHOTTED])["used_bytes"].as_u64();
        let mut before = None;
        patience::wait_for("the volume to be quiet", patience::LONG, || {
            patience::until(patience::now() + Duration::from_secs(3));
            let now = used();
            let quiet = now.filter(|now| before == Some(*now));
            before = now;
            quiet
        })
    }

    /// Deletes a snapshot after which so many blocks were overwritten.
    fn deletion(&mut self, changed: u64) -> Result<Deletion, String> {
        eprintln!("deleting a snapshot after {changed} overwrites");
        let before = self.used_when_quiet();
        self.take();
        let mut client = self.cluster.connect_to(SNAPSHOTTED);
        for _ in 0..changed / BETWEEN {
            self.overwrite(&mut client, BETWEEN)?;
        }
        let freed = self.used_when_quiet().saturating_sub(before) / BLOCK;
        let replicas = self.cluster.processes_of(Role::Replica);
        let cpu_seconds =
            || replicas.iter().map(|replica| cpu_seconds_of(replica.pid)).sum::<Result<f64, String>>();
        let (cpu, began) = (cpu_seconds()?, patience::now());
        let delete = ["snapshot", "delete", SNAPSHOTTED, &format!("s{}", self.taken), "--yes"];
        drop(self.cluster.trivet(&delete).succeeded());
        patience::wait_for("its space to be back", patience::LONG, || {
            let used = self.cluster.trivet_json(&["volume", "show", SNAPSHOTTED])["used_bytes"].as_u64();
            used.is_some_and(|used| used <= before).then_some(())
        });
        Ok(Deletion { freed, took: began.elapsed(), cpu_seconds: cpu_seconds()? - cpu })
    }

    /// Deletes all snapshots; how long that takes, and until their space is back.
    fn delete_all(&self, used_before: u64) -> Result<(Duration, Duration), String> {
        let began = patience::now();
        let listed = self.cluster.trivet_json(&["snapshot", "list", SNAPSHOTTED]);
        for snapshot in listed.as_array().into_iter().flatten() {
            let name = snapshot["name"].as_str().ok_or("a snapshot without a name")?;
            drop(self.cluster.trivet(&["snapshot", "delete", SNAPSHOTTED, name, "--yes"]).succeeded());
        }
        let deleted = patience::now();
        patience::wait_for("all space to be back", patience::LONG, || {
            let used = self.cluster.trivet_json(&["volume", "show", SNAPSHOTTED])["used_bytes"].as_u64();
            used.is_some_and(|used| used <= used_before).then_some(())
        });
        Ok((deleted - began, patience::now() - deleted))
    }
}

/// Has a thread stop when it is dropped.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Median and most.
pub(crate) fn milliseconds(durations: &[Duration]) -> (f64, f64) {
    let all: Vec<f64> = durations.iter().map(|duration| duration.as_secs_f64() * 1000.0).collect();
    (median(all.clone()).unwrap_or_default(), all.into_iter().fold(0.0, f64::max))
}

/// Rates of both volumes, the ratio and the middle half of the ratios.
fn cells(rates: &Rates) -> String {
    let Rates { with, without, ratios } = rates;
    let quarter = ratios.len() / 4;
    let (low, high) = (ratios[quarter], ratios[ratios.len() - 1 - quarter]);
    let ratio = median(ratios.clone()).unwrap_or_default();
    format!("{with:.0}/s | {without:.0}/s | {ratio:.2} ({low:.2} to {high:.2})")
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn report(
    bench: &Bench,
    levels: &[Level],
    (used_before, used_most): (u64, u64),
    (deleting, freeing): (Duration, Duration),
) -> Result<String, String> {
    let mut text = format!("Measured on {}.\n\n", machine(&std::env::temp_dir()));
    let mut line = |content: &str| writeln!(text, "{content}").map_err(|e| e.to_string());
    let Bench { size_mib, runtime, turns, .. } = bench;
    line(&format!(
        "Two volumes of {size_mib} MiB on the same three replicas, filled and randomly overwritten. One has snapshots, {BETWEEN} \
         random blocks overwritten between two;\nthe other has none, and the same overwrites. Random 4 KiB at depth 32, {turns} turns \
         of {runtime} s each; medians, and the middle half of the ratios within the turns.\n"
    ))?;
    line("| snapshots | reads | without | ratio | writes | without | ratio |")?;
    line("|---|---|---|---|---|---|---|")?;
    for Level { snapshots, reads, writes, .. } in levels {
        line(&format!("| {snapshots} | {} | {} |", cells(reads), cells(writes)))?;
    }
    line(&format!(
        "\n{TAKEN} snapshots taken beside one writer at depth 1, times in milliseconds (median, most):\n"
    ))?;
    line(
        "| snapshots | taking one, as a command | slowest write meanwhile | slowest write in as much time without |",
    )?;
    line("|---|---|---|---|")?;
    for Level { snapshots, takes, paused, unpaused, .. } in levels {
        let [takes, paused, unpaused] = [takes, paused, unpaused].map(|durations| {
            let (median, most) = milliseconds(durations);
            format!("{median:.1}, {most:.1}")
        });
        line(&format!("| {snapshots} | {takes} | {paused} | {unpaused} |"))?;
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let most = levels.last().map_or(0, |level| level.snapshots);
    line(&format!(
        "\nWith {most} snapshots {:.0} MiB are in use in place of {:.0}. Deleting all of them took {:.1} s, and their space was back {:.1} s later.",
        mib(used_most),
        mib(used_before),
        deleting.as_secs_f64(),
        freeing.as_secs_f64()
    ))?;
    Ok(text)
}

fn deletion_table(deletions: &[Deletion]) -> String {
    let rows = deletions.iter().map(|Deletion { freed, took, cpu_seconds }| {
        format!("| {freed} | {:.2} s | {cpu_seconds:.2} s |\n", took.as_secs_f64())
    });
    let head = "\nDeleting one snapshot:\n\n| blocks that it alone held | until their space was back | CPU of the three replicas |\n|---|---|---|\n";
    std::iter::once(head.to_owned()).chain(rows).collect()
}
