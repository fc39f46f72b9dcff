//! `xtask clones`: what clones cost. How long making one takes, of a thin volume with blocks written all over it;
//! how fast one is read and written before anything is its own, at the end of a chain, and flattened; and how
//! long flattening takes.

use crate::bench::workload::{Job, Size};
use crate::bench::{fio, median};
use crate::document::{Marks, machine};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;
use trivet_tests::nbd::Request;
use trivet_tests::random::Random;
use trivet_tests::{Cluster, Setup, patience};

const USAGE: &str = "xtask clones (the disk of /var/tmp needs 65 GiB free)
  --size GIB       of the thin volume (1024)
  --written MIB    written to it at random, in blocks of 4 KiB (8192)
  --runtime SECONDS of each measurement of a rate (5)
  --write FILE     keep the table in FILE, between the clones markers";

const MARKS: Marks = Marks {
    begin: "<!-- clones: begin (xtask clones writes what stands between these marks) -->",
    end: "<!-- clones: end -->",
};

/// The bound on making one.
const CLONED_WITHIN: Duration = Duration::from_secs(1);
/// Clones made to see how long that takes.
const MADE: usize = 5;
/// Ancestors of the clone at the end of the chain.
const DEPTH: usize = 8;
const ROUNDS: usize = 3;
const BLOCK: u64 = 4096;
const IN_FLIGHT: u64 = 64;
const WRITES: Job = Job { rw: "randwrite", size: Size::FourKib, depth: 32, sync: None };

struct Bench {
    cluster: Cluster,
    size_gib: u64,
    written_mib: u64,
    runtime: u32,
}

/// Operations of 4 KiB a second.
struct Rates {
    name: String,
    reads: f64,
    writes: f64,
}

/// Runs it.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let (mut size_gib, mut written_mib, mut runtime, mut write) = (1024, 8192, 5, None);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
        let invalid = |e: std::num::ParseIntError| format!("{name} {value}: {e}");
        match name.as_str() {
            "--size" => size_gib = value.parse().map_err(invalid)?,
            "--written" => written_mib = value.parse().map_err(invalid)?,
            "--runtime" => runtime = value.parse().map_err(invalid)?,
            "--write" => write = Some(PathBuf::from(value)),
            _ => return Err(format!("unknown option {name}\n{USAGE}")),
        }
    }
    let cluster = Cluster::start_as(Setup::new(3, &format!("{size_gib}GiB")));
    let bench = Bench { cluster, size_gib, written_mib, runtime };
    eprintln!("writing {written_mib} MiB all over a volume of {size_gib} GiB");
    bench.scatter()?;
    let plain = bench.rates("disk0", "the volume itself")?;
    let made = bench.make()?;
    bench.attach("c0")?;
    let clone = bench.rates("c0", "a clone of it")?;
    let deep = bench.chain()?;
    let flattening = bench.flatten("c0");
    let flat = bench.rates("c0", "the first clone, flattened")?;
    let text = report(&bench, &[plain, clone, deep, flat], &made, flattening)?;
    println!("{text}");
    let slowest = made.iter().max().copied().unwrap_or_default();
    if slowest >= CLONED_WITHIN {
        return Err(format!("making a clone took {slowest:?}, and is to take less than {CLONED_WITHIN:?}"));
    }
    match write {
        None => Ok(()),
        Some(path) => MARKS.write_between(&path, &text),
    }
}

impl Bench {
    fn blocks(&self) -> u64 {
        (self.size_gib << 30) / BLOCK
    }

    /// The block that the `index`th write goes to.
    fn nth_block(&self, index: u64) -> u64 {
        Random::new(index).below(self.blocks())
    }

    fn scatter(&self) -> Result<(), String> {
        let mut client = self.cluster.connect();
        let writes = (self.written_mib << 20) / BLOCK;
        let (mut sent, mut answered) = (0, 0);
        while answered < writes {
            while sent < writes && sent - answered < IN_FLIGHT {
                let mut data = vec![7; 4096];
                data[..8].copy_from_slice(&sent.to_le_bytes());
                let offset = self.nth_block(sent) * BLOCK;
                let write = Request::Write { offset, data, force_unit_access: false };
                client.submit(&write).map_err(|e| e.to_string())?;
                sent += 1;
            }
            client.next_reply(patience::SOON).map_err(|e| e.to_string())?;
            answered += 1;
        }
        client.flush().map_err(|e| e.to_string())
    }

    fn does(&self, arguments: &[&str]) -> Duration {
        let began = patience::now();
        drop(self.cluster.trivet(arguments).succeeded());
        patience::now() - began
    }

    /// Makes clones of the volume that is in use, and then of it at rest; how long each took.
    fn make(&self) -> Result<Vec<Duration>, String> {
        let in_use: Vec<Duration> =
            (0..MADE).map(|number| self.does(&["volume", "clone", "disk0", &format!("c{number}")])).collect();
        self.does(&["volume", "detach", "disk0"]);
        let at_rest = (0..MADE).map(|number| self.does(&["volume", "clone", "disk0", &format!("d{number}")]));
        let made = in_use.into_iter().chain(at_rest).collect();
        self.attach("disk0")?;
        Ok(made)
    }

    fn attach(&self, volume: &str) -> Result<(), String> {
        let shown = self.cluster.trivet_json(&["volume", "attach", volume]);
        shown["uri"].as_str().map(drop).ok_or_else(|| format!("{volume} has no URI"))
    }

    /// Reads at random where something was written, and writes anywhere, 32 in flight.
    fn rates(&self, volume: &str, name: &str) -> Result<Rates, String> {
        eprintln!("measuring {name}");
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            reads.push(self.read_rate(volume, round as u64)?);
            writes.push(self.write_rate(volume)?);
        }
        let [reads, writes] = [reads, writes].map(|rates| median(rates).ok_or("no round was run"));
        Ok(Rates { name: name.to_owned(), reads: reads?, writes: writes? })
    }

    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    fn read_rate(&self, volume: &str, round: u64) -> Result<f64, String> {
        let mut client = self.cluster.connect_to(volume);
        let writes = (self.written_mib << 20) / BLOCK;
        let mut random = Random::new(1 << 40 | round);
        let began = patience::now();
        let until = began + Duration::from_secs(u64::from(self.runtime));
        let (mut sent, mut answered) = (0_u64, 0_u64);
        while patience::now() < until {
            while sent - answered < 32 {
                let offset = self.nth_block(random.below(writes)) * BLOCK;
                client.submit(&Request::Read { offset, length: 4096 }).map_err(|e| e.to_string())?;
                sent += 1;
            }
            client.next_reply(patience::SOON).map_err(|e| e.to_string())?;
            answered += 1;
        }
        for _ in answered..sent {
            client.next_reply(patience::SOON).map_err(|e| e.to_string())?;
        }
        Ok(answered as f64 / began.elapsed().as_secs_f64())
    }

    fn write_rate(&self, volume: &str) -> Result<f64, String> {
        let shown = self.cluster.trivet_json(&["volume", "show", volume]);
        let uri = shown["uri"].as_str().ok_or("it is not attached")?;
        let first_gib = fio::served(uri, 1 << 30);
        Ok(fio::run(&first_gib, &WRITES, self.runtime)?.rate(1))
    }

    /// Makes clones of clones, and measures the last.
    fn chain(&self) -> Result<Rates, String> {
        let mut of = "disk0".to_owned();
        for number in 1..=DEPTH {
            let name = format!("deep{number}");
            self.does(&["volume", "clone", &of, &name]);
            of = name;
        }
        self.attach(&of)?;
        self.rates(&of, &format!("a clone with {DEPTH} ancestors"))
    }

    fn flatten(&self, volume: &str) -> Duration {
        eprintln!("flattening");
        let began = patience::now();
        self.does(&["volume", "flatten", volume, "--background"]);
        patience::wait_for("the clone to share nothing", patience::LONG, || {
            let shown = self.cluster.trivet_json(&["volume", "show", volume]);
            patience::until(patience::now() + Duration::from_millis(500));
            (shown["sharing"] == "nothing").then_some(())
        });
        began.elapsed()
    }
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn report(bench: &Bench, rates: &[Rates], made: &[Duration], flattening: Duration) -> Result<String, String> {
    let mut text = format!("Measured on {}.\n\n", machine(&std::env::temp_dir()));
    let mut line = |content: &str| writeln!(text, "{content}").map_err(|e| e.to_string());
    let milliseconds: Vec<f64> = made.iter().map(|took| took.as_secs_f64() * 1000.0).collect();
    line(&format!(
        "A thin volume of {} GiB on three replicas, {} MiB written to it in blocks of 4 KiB at random. Cloning it took",
        bench.size_gib, bench.written_mib
    ))?;
    line(&format!(
        "{:.0} ms (median of {} commands, {MADE} while it was used and {MADE} at rest; the slowest {:.0} ms). Random 4 KiB at",
        median(milliseconds.clone()).unwrap_or_default(),
        made.len(),
        milliseconds.iter().copied().fold(0.0, f64::max)
    ))?;
    line(&format!(
        "depth 32, reads where something was written; medians of {ROUNDS} times {} s.\n",
        bench.runtime
    ))?;
    line("| | reads | to the volume | writes | to the volume |")?;
    line("|---|---|---|---|---|")?;
    let Some(plain) = rates.first() else { return Err("nothing was measured".to_owned()) };
    for Rates { name, reads, writes } in rates {
        line(&format!(
            "| {name} | {reads:.0}/s | {:.2} | {writes:.0}/s | {:.2} |",
            reads / plain.reads,
            writes / plain.writes
        ))?;
    }
    let mib = bench.written_mib as f64;
    line(&format!(
        "\nFlattening that clone took {:.1} s: {:.0} MiB/s on each of three replicas of one disk.",
        flattening.as_secs_f64(),
        mib / flattening.as_secs_f64()
    ))?;
    Ok(text)
}
