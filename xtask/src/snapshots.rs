//! `xtask snapshots`: what snapshots cost. How long taking one takes and holds writes back, how fast the
//! volume is with so many of them, and how long deleting them takes to give their space back.
//!
//! Between two snapshots blocks all over the volume are overwritten. The volume's random writes have
//! scattered it before, so that what is measured first is not better off; and what is measured at the end,
//! without snapshots again, says how much was drift.

use crate::document::{Marks, machine};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use trivet_tests::nbd::Request;
use trivet_tests::random::Random;
use trivet_tests::{Cluster, NbdClient, Setup, patience};

const USAGE: &str = "xtask snapshots
  --size MIB       of the volume (1024)
  --most N         snapshots (990)
  --runtime SECONDS of each measurement of a rate (5)
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
const ROUNDS: usize = 3;
const BLOCK: u64 = 4096;

struct Bench {
    cluster: Cluster,
    size_mib: u64,
    runtime: u64,
    random: Random,
    taken: u64,
}

/// What was measured with so many snapshots.
struct Level {
    snapshots: u64,
    reads: f64,
    writes: f64,
    /// Of the command that takes one, from its start to its end.
    take: Duration,
    /// The slowest of one writer's writes while one was taken, and in as much time without.
    paused: Vec<Duration>,
    unpaused: Vec<Duration>,
}

/// Runs it.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let (mut size_mib, mut most, mut runtime, mut write) = (1024, 1000, 5, None);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
        let number = || value.parse::<u64>().map_err(|e| format!("{name} {value}: {e}"));
        match name.as_str() {
            "--size" => size_mib = number()?,
            "--most" => most = number()?,
            "--runtime" => runtime = number()?,
            "--write" => write = Some(PathBuf::from(value)),
            _ => return Err(format!("unknown option {name}\n{USAGE}")),
        }
    }
    let cluster = Cluster::start_as(Setup::new(3, &format!("{size_mib}MiB")));
    let mut bench = Bench { cluster, size_mib, runtime, random: Random::new(1), taken: 0 };
    eprintln!("filling and scattering the volume");
    bench.fio("write", &["--bs=1M", "--iodepth=8", "--end_fsync=1"])?;
    bench.rate("randwrite", 4 * runtime)?;
    let used_before = bench.used_when_quiet();
    let mut levels = Vec::new();
    for level in LEVELS.into_iter().filter(|level| *level <= most) {
        bench.reach(level)?;
        levels.push(bench.level(level)?);
    }
    let used_most = bench.used_when_quiet();
    let (deleting, freeing) = bench.delete_all(used_before)?;
    let again = bench.level(0)?;
    let text = report(&bench, &levels, &again, (used_before, used_most), (deleting, freeing))?;
    println!("{text}");
    match write {
        None => Ok(()),
        Some(path) => MARKS.write_between(&path, &text),
    }
}

impl Bench {
    fn fio(&self, rw: &str, options: &[&str]) -> Result<f64, String> {
        let mut fio = Command::new("fio");
        fio.args(["--name=job", "--ioengine=nbd", "--output-format=json", "--randrepeat=0"]);
        fio.args([format!("--uri={}", self.cluster.uri()), format!("--rw={rw}")]);
        fio.arg(format!("--size={}m", self.size_mib)).args(options);
        let output = fio.output().map_err(|e| format!("cannot start fio (make deps installs it): {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let json = text.find('{').map(|at| &text[at..]).unwrap_or_default();
        let report: serde_json::Value =
            serde_json::from_str(json).map_err(|e| format!("fio's report: {e}: {text}"))?;
        let job = &report["jobs"][0];
        if !output.status.success() || job["error"] != 0 {
            return Err(format!("fio failed: {text}"));
        }
        let iops = |way: &str| job[way]["iops"].as_f64().unwrap_or(0.0);
        Ok(iops("read") + iops("write"))
    }

    /// Operations of 4 KiB a second, 32 in flight.
    fn rate(&self, rw: &str, seconds: u64) -> Result<f64, String> {
        let runtime = format!("--runtime={seconds}");
        self.fio(rw, &["--bs=4k", "--iodepth=32", "--time_based=1", "--norandommap=1", &runtime])
    }

    fn level(&mut self, snapshots: u64) -> Result<Level, String> {
        eprintln!("measuring with {snapshots} snapshots");
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            reads.push(self.rate("randread", self.runtime)?);
            writes.push(self.rate("randwrite", self.runtime)?);
        }
        let (take, paused, unpaused) = self.pauses()?;
        Ok(Level { snapshots, reads: median(reads), writes: median(writes), take, paused, unpaused })
    }

    /// Takes snapshots until there are so many, blocks overwritten between them.
    fn reach(&mut self, level: u64) -> Result<(), String> {
        let mut client = self.cluster.connect();
        for number in self.count()..level {
            if number % 100 == 0 {
                eprintln!("taking snapshots: {number} of {level}");
            }
            self.overwrite(&mut client, BETWEEN)?;
            self.take();
        }
        Ok(())
    }

    fn count(&self) -> u64 {
        let listed = self.cluster.trivet_json(&["snapshot", "list", "disk0"]);
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
        drop(self.cluster.trivet(&["snapshot", "create", "disk0", &format!("s{}", self.taken)]).succeeded());
    }

    /// Has one writer write, takes snapshots meanwhile and deletes them again: how long that takes, and the
    /// slowest write each time.
    fn pauses(&mut self) -> Result<(Duration, Vec<Duration>, Vec<Duration>), String> {
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
            for _ in 0..TAKEN {
                let began = patience::now();
                patience::until(began + Duration::from_millis(300));
                let taking = patience::now();
                self.take();
                windows.push((began, taking, patience::now()));
            }
            stop.store(true, Ordering::Relaxed);
            writer.join().map_err(|_panic| "the writer has panicked".to_owned())?
        })?;
        for number in first..=self.taken {
            let delete = ["snapshot", "delete", "disk0", &format!("s{number}"), "--yes"];
            drop(self.cluster.trivet(&delete).succeeded());
        }
        let slowest = |from: Instant, until: Instant| {
            let within = writes.iter().filter(|(began, ended)| *ended >= from && *began < until);
            within.map(|(began, ended)| *ended - *began).max().unwrap_or_default()
        };
        let takes = windows.iter().map(|(_, taking, taken)| (*taken - *taking).as_secs_f64()).collect();
        // As long before each as it took.
        let before = |taking: Instant, taken: Instant| slowest(taking - (taken - taking), taking);
        let paused = windows.iter().map(|(_, taking, taken)| slowest(*taking, *taken)).collect();
        let unpaused = windows.iter().map(|(_, taking, taken)| before(*taking, *taken)).collect();
        Ok((Duration::from_secs_f64(median(takes)), paused, unpaused))
    }

    /// Bytes in use once they do not change any more.
    fn used_when_quiet(&self) -> u64 {
        let used = || self.cluster.trivet_json(&["volume", "show", "disk0"])["used_bytes"].as_u64();
        let mut before = None;
        patience::wait_for("the volume to be quiet", patience::LONG, || {
            patience::until(patience::now() + Duration::from_secs(3));
            let now = used();
            let quiet = now.filter(|now| before == Some(*now));
            before = now;
            quiet
        })
    }

    /// Deletes all snapshots; how long that takes, and until their space is back.
    fn delete_all(&self, used_before: u64) -> Result<(Duration, Duration), String> {
        let began = patience::now();
        let listed = self.cluster.trivet_json(&["snapshot", "list", "disk0"]);
        for snapshot in listed.as_array().into_iter().flatten() {
            let name = snapshot["name"].as_str().ok_or("a snapshot without a name")?;
            drop(self.cluster.trivet(&["snapshot", "delete", "disk0", name, "--yes"]).succeeded());
        }
        let deleted = patience::now();
        patience::wait_for("all space to be back", patience::LONG, || {
            let used = self.cluster.trivet_json(&["volume", "show", "disk0"])["used_bytes"].as_u64();
            used.is_some_and(|used| used <= used_before).then_some(())
        });
        Ok((deleted - began, patience::now() - deleted))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Median and most.
pub(crate) fn milliseconds(durations: &[Duration]) -> (f64, f64) {
    let all: Vec<f64> = durations.iter().map(|duration| duration.as_secs_f64() * 1000.0).collect();
    (median(all.clone()), all.into_iter().fold(0.0, f64::max))
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn report(
    bench: &Bench,
    levels: &[Level],
    again: &Level,
    (used_before, used_most): (u64, u64),
    (deleting, freeing): (Duration, Duration),
) -> Result<String, String> {
    let mut text = format!("Measured on {}.\n\n", machine(&std::env::temp_dir()));
    let mut line = |content: &str| writeln!(text, "{content}").map_err(|e| e.to_string());
    line(&format!(
        "A volume of {} MiB on three replicas, filled and randomly overwritten; {BETWEEN} random blocks overwritten between two",
        bench.size_mib
    ))?;
    line(&format!(
        "snapshots. Random 4 KiB at depth 32, medians of {ROUNDS} times {} s; {TAKEN} snapshots taken beside one writer at depth 1.\n",
        bench.runtime
    ))?;
    line(
        "| snapshots | reads | to none | writes | to none | taking one | slowest write meanwhile: median, most | in as much time without |",
    )?;
    line("|---|---|---|---|---|---|---|---|")?;
    let Some(none) = levels.first() else { return Err("nothing was measured".to_owned()) };
    for level in levels.iter().chain([again]) {
        let (paused, unpaused) = (milliseconds(&level.paused), milliseconds(&level.unpaused));
        let name = if std::ptr::eq(level, again) { "none again" } else { &level.snapshots.to_string() };
        line(&format!(
            "| {name} | {:.0}/s | {:.2} | {:.0}/s | {:.2} | {:.0} ms | {:.1} ms, {:.1} ms | {:.1} ms, {:.1} ms |",
            level.reads,
            level.reads / none.reads,
            level.writes,
            level.writes / none.writes,
            level.take.as_secs_f64() * 1000.0,
            paused.0,
            paused.1,
            unpaused.0,
            unpaused.1
        ))?;
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
