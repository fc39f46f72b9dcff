//! `xtask encryption`: what encryption costs. An encrypted volume and a plain one on the same replicas, measured by
//! turns, so that both see the machine in the same mood; the medians and their ratio are what counts.

use crate::bench::fio::{self, Target};
use crate::bench::target::cpu_seconds_of;
use crate::bench::workload::{Job, Size};
use crate::bench::{cpu_per_operation, median};
use crate::document::{Marks, machine};
use std::fmt::Write;
use std::path::PathBuf;
use trivet_tests::{Cluster, Setup};

const USAGE: &str = "xtask encryption
  --size MIB       of each of the two volumes (1024)
  --runtime SECONDS of each measurement (5)
  --rounds N       measurements of each volume; the median counts (5)
  --only TEXT      only workloads whose name contains TEXT
  --write FILE     keep the table in FILE, between the encryption markers";

const MARKS: Marks = Marks {
    begin: "<!-- encryption: begin (make encryption-bench writes what stands between these marks) -->",
    end: "<!-- encryption: end -->",
};

struct Workload {
    name: &'static str,
    job: Job,
    /// The least ratio of the encrypted volume's rate to the plain one's, where a goal is set.
    to_reach: Option<f64>,
}

const fn workload(
    name: &'static str,
    rw: &'static str,
    size: Size,
    depth: u32,
    to_reach: Option<f64>,
) -> Workload {
    Workload { name, job: Job { rw, size, depth, sync: None }, to_reach }
}

/// What goes from end to end first: random writes scatter the volumes.
const WORKLOADS: [Workload; 4] = [
    workload("1 MiB read, depth 8", "read", Size::OneMib, 8, Some(0.9)),
    workload("1 MiB write, depth 8", "write", Size::OneMib, 8, Some(0.9)),
    workload("4 KiB randread, depth 32", "randread", Size::FourKib, 32, None),
    workload("4 KiB randwrite, depth 32", "randwrite", Size::FourKib, 32, Some(0.85)),
];

struct Bench {
    cluster: Cluster,
    size_mib: u64,
    runtime: u32,
    rounds: usize,
}

/// Of one volume, over all rounds.
#[derive(Default)]
struct Results {
    /// Operations a second.
    rates: Vec<f64>,
    /// Microseconds of processor time of an operation, of all processes and fio.
    cpu: Vec<f64>,
}

/// Medians.
struct Row {
    workload: &'static Workload,
    plain: (f64, f64),
    encrypted: (f64, f64),
}

/// Runs it.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let (mut size_mib, mut runtime, mut rounds) = (1024, 5, 5);
    let (mut only, mut write) = (String::new(), None);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
        let invalid = |e: std::num::ParseIntError| format!("{name} {value}: {e}");
        match name.as_str() {
            "--size" => size_mib = value.parse().map_err(invalid)?,
            "--runtime" => runtime = value.parse().map_err(invalid)?,
            "--rounds" => rounds = value.parse().map_err(invalid)?,
            "--only" => only = value,
            "--write" => write = Some(PathBuf::from(value)),
            _ => return Err(format!("unknown option {name}\n{USAGE}")),
        }
    }
    if write.is_some() && !only.is_empty() {
        return Err("--write keeps a whole table: not with --only".to_owned());
    }
    let cluster = Cluster::start_as(Setup::new(3, &format!("{size_mib}MiB")));
    let bench = Bench { cluster, size_mib, runtime, rounds };
    let (plain, encrypted) = (bench.target("disk0")?, bench.encrypted_target()?);
    eprintln!("filling both volumes once");
    for target in [&plain, &encrypted] {
        fio::fill(target, size_mib << 20)?;
    }
    let chosen = WORKLOADS.iter().filter(|workload| workload.name.contains(&only));
    let rows = chosen.map(|workload| bench.measure(workload, &plain, &encrypted));
    let text = report(&bench, &rows.collect::<Result<Vec<Row>, String>>()?)?;
    println!("{text}");
    match write {
        None => Ok(()),
        Some(path) => MARKS.write_between(&path, &text),
    }
}

impl Bench {
    fn target(&self, volume: &str) -> Result<Target, String> {
        let shown = self.cluster.trivet_json(&["volume", "show", volume]);
        let uri = shown["uri"].as_str().ok_or_else(|| format!("{volume} is not attached"))?;
        Ok(fio::served(uri, self.size_mib << 20))
    }

    fn encrypted_target(&self) -> Result<Target, String> {
        let key = self.cluster.scratch().join("key");
        std::fs::write(&key, [0x42; 32]).map_err(|e| format!("{}: {e}", key.display()))?;
        let (key, size) = (key.display().to_string(), format!("{}MiB", self.size_mib));
        let create = ["volume", "create", "secret", "--size", &size, "--encrypt", "--key-file", &key];
        drop(self.cluster.trivet(&create).succeeded());
        drop(self.cluster.trivet(&["volume", "attach", "secret", "--key-file", &key]).succeeded());
        self.target("secret")
    }

    fn measure(
        &self,
        workload: &'static Workload,
        plain: &Target,
        encrypted: &Target,
    ) -> Result<Row, String> {
        let mut results = [Results::default(), Results::default()];
        for round in 0..self.rounds {
            // Each is first in its turn.
            for which in [round % 2, (round + 1) % 2] {
                let target = [plain, encrypted][which];
                let before = self.cpu_seconds()?;
                let measured = fio::run(target, &workload.job, self.runtime)?;
                let cpu = self.cpu_seconds()? - before;
                results[which].rates.push(measured.rate(1));
                results[which].cpu.push(cpu_per_operation(&measured, cpu));
            }
            let latest = results.each_ref().map(|of| of.rates.last().copied().unwrap_or_default());
            let [plain, encrypted] = latest;
            let (name, ratio) = (workload.name, encrypted / plain);
            eprintln!("{name} ({}/{}): {plain:.0}/s, {encrypted:.0}/s, {ratio:.2}", round + 1, self.rounds);
        }
        let [plain, encrypted] =
            results.map(|Results { rates, cpu }| median(rates).zip(median(cpu)).ok_or("no round was run"));
        Ok(Row { workload, plain: plain?, encrypted: encrypted? })
    }

    /// Of all processes that serve the two.
    fn cpu_seconds(&self) -> Result<f64, String> {
        self.cluster.processes().iter().map(|process| cpu_seconds_of(process.pid)).sum()
    }
}

fn report(bench: &Bench, rows: &[Row]) -> Result<String, String> {
    let mut text = format!("Measured on {}.\n\n", machine(&std::env::temp_dir()));
    let mut line = |content: &str| writeln!(text, "{content}").map_err(|e| e.to_string());
    let Bench { size_mib, runtime, rounds, .. } = bench;
    line(&format!(
        "An encrypted volume and a plain one of {size_mib} MiB on the same three replicas, filled once, measured by turns; \
         medians of {rounds} times {runtime} s.\n"
    ))?;
    line("| workload | plain | encrypted | ratio | goal | | CPU of one, plain | encrypted |")?;
    line("|---|---|---|---|---|---|---|---|")?;
    for Row { workload: Workload { name, to_reach, .. }, plain, encrypted } in rows {
        let ratio = encrypted.0 / plain.0;
        let (goal, verdict) = match *to_reach {
            None => (String::new(), ""),
            Some(least) => (format!("≥ {least}"), if ratio >= least { "passes" } else { "**falls short**" }),
        };
        line(&format!(
            "| {name} | {:.0}/s | {:.0}/s | {ratio:.2} | {goal} | {verdict} | {:.1} µs | {:.1} µs |",
            plain.0, encrypted.0, plain.1, encrypted.1
        ))?;
    }
    Ok(text)
}
