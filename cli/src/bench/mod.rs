//! `trivet bench`: a load generator over NBD or over the embedded library.

mod cpu;
mod embedded;
mod nbd;
mod participants;
mod report;
mod target;
mod workload;

use crate::args::{Format, Output, Place, byte_size};
use crate::failure::{Exit, Failure};
use crate::output::{json, say};
use crate::progress::Run;
use clap::Args;
use report::{Figures, Report, exact, kind_report, process_reports};
use std::time::{Duration, Instant};
use target::{Done, Target};
use trivet_nbd::Uri;
use workload::{Kind, Pattern, Workload};

/// Measure a volume
#[derive(Args, Debug)]
#[command(after_help = "\
Writing patterns overwrite the volume's data. Latencies are from a request's start to its answer;
CPU is that of all processes that take part, this one included.

Examples:
  trivet bench --uri 'nbd+unix:///disk0?socket=/path/disk0.sock' --rw randread
  trivet bench --volume scratch --rw randwrite --iodepth 1 --fsync 1 --yes")]
pub(crate) struct BenchArgs {
    /// Over NBD: the URI that `up` and `volume attach` print
    #[arg(long, value_name = "URI", required_unless_present = "volume", conflicts_with = "volume")]
    uri: Option<Uri>,
    /// Over the embedded library: a volume that is detached
    #[arg(long, value_name = "NAME")]
    volume: Option<String>,
    /// Access pattern, sequential or random; randrw is half reads, half writes
    #[arg(long, value_name = "PATTERN", default_value = "randread")]
    rw: Pattern,
    /// Bytes of a request
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = block_size)]
    bs: u32,
    /// Requests in flight
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=512))]
    iodepth: u32,
    /// Seconds to measure
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    runtime: u64,
    /// Flush after every N writes; 0 for never
    #[arg(long, value_name = "N", default_value_t = 0)]
    fsync: u64,
    /// Do not ask before overwriting data
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

fn block_size(text: &str) -> Result<u32, String> {
    const MAX: u64 = 32 << 20;
    match byte_size(text)? {
        bytes @ 512..=MAX if bytes.is_multiple_of(512) => {
            u32::try_from(bytes).map_err(|error| error.to_string())
        }
        _ => Err("a request has 512 bytes to 32 MiB, in whole sectors of 512 bytes".to_owned()),
    }
}

pub(crate) async fn run(arguments: &BenchArgs) -> Result<(), Failure> {
    let mut target = match (&arguments.uri, &arguments.volume) {
        (Some(uri), _) => Target::nbd(uri).await?,
        (None, Some(name)) => Target::embedded(&arguments.place, name, arguments.rw).await?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    let measured = measure(arguments, &mut target).await;
    target.close().await?;
    let report = measured?;
    match arguments.output.output {
        Format::Json => json(&report),
        Format::Table => say(&report.as_text()),
    }
    Ok(())
}

async fn measure(arguments: &BenchArgs, target: &mut Target) -> Result<Report, Failure> {
    check_fit(arguments, target)?;
    let participants = participants::find(&arguments.place, target).await;
    let workload = Workload::new(arguments.rw, arguments.bs, target.size(), arguments.fsync, random_seed()?);
    let before = cpu::times(&participants);
    let outcome = Load::new(arguments, workload).run(target).await?;
    let after = cpu::times(&participants);
    let transfers = outcome.reads.count() + outcome.writes.count();
    let processes = process_reports(&participants, &before, &after, transfers);
    let kinds =
        [(Kind::Read, &outcome.reads), (Kind::Write, &outcome.writes), (Kind::Flush, &outcome.flushes)];
    Ok(Report {
        target: target.name().to_owned(),
        pattern: arguments.rw.name(),
        block_bytes: arguments.bs,
        depth: arguments.iodepth,
        flush_every: arguments.fsync,
        seconds: outcome.elapsed.as_secs_f64(),
        kinds: kinds
            .into_iter()
            .filter(|(_, figures)| figures.count() > 0)
            .map(|(kind, figures)| kind_report(kind, figures, outcome.elapsed))
            .collect(),
        cpu_us_per_io: processes.iter().map(|process| process.cpu_us_per_io).sum(),
        processes,
    })
}

fn check_fit(arguments: &BenchArgs, target: &Target) -> Result<(), Failure> {
    let name = target.name();
    let refuse = |cause: &str, next: &str| {
        Err(Failure::new(format!("cannot measure {name}"), cause, next).exit(Exit::Usage))
    };
    if target.size() < u64::from(arguments.bs) {
        return refuse("it is smaller than one request", "choose a smaller --bs");
    }
    if arguments.rw.writes() && target.is_read_only() {
        return refuse("it is read only", "choose --rw read or randread");
    }
    if arguments.fsync > 0 && !target.can_flush() {
        return refuse("its server has no flush", "leave --fsync away");
    }
    if arguments.rw.writes() {
        return crate::down::confirm(&format!("This overwrites data on {name}."), arguments.yes);
    }
    Ok(())
}

fn random_seed() -> Result<u64, Failure> {
    getrandom::u64().map_err(|error| Failure::new("cannot choose offsets", error, ""))
}

#[allow(clippy::disallowed_methods, reason = "latencies are what is measured")]
fn now() -> Instant {
    Instant::now()
}

/// A measurement under way.
struct Load {
    workload: Workload,
    block_bytes: u64,
    /// By handle: what is in flight, since when.
    slots: Vec<Option<(Kind, Instant)>>,
    free: Vec<u64>,
    runtime: Duration,
    outcome: Outcome,
}

struct Outcome {
    reads: Figures,
    writes: Figures,
    flushes: Figures,
    elapsed: Duration,
}

impl Load {
    fn new(arguments: &BenchArgs, workload: Workload) -> Self {
        let depth = u64::from(arguments.iodepth);
        Self {
            workload,
            block_bytes: u64::from(arguments.bs),
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            runtime: Duration::from_secs(arguments.runtime),
            outcome: Outcome {
                reads: Figures::new(),
                writes: Figures::new(),
                flushes: Figures::new(),
                elapsed: Duration::ZERO,
            },
        }
    }

    /// Keeps the target busy for the time; then waits for what is in flight.
    async fn run(mut self, target: &mut Target) -> Result<Outcome, Failure> {
        let mut progress = Run::of_seconds(self.runtime.as_secs());
        let mut done = Vec::new();
        let began = now();
        let mut submitting = true;
        while submitting || self.free.len() < self.slots.len() {
            while submitting && let Some(handle) = self.free.pop() {
                self.submit(target, handle)?;
            }
            target.progress(&mut done).await?;
            let time = now();
            for one in done.drain(..) {
                self.finish(&one, time, target)?;
            }
            let elapsed = time - began;
            submitting = elapsed < self.runtime;
            self.outcome.elapsed = elapsed;
            progress.tell_seconds(elapsed, || self.rate(elapsed));
        }
        Ok(self.outcome)
    }

    fn submit(&mut self, target: &mut Target, handle: u64) -> Result<(), Failure> {
        let step = self.workload.step();
        *slot(&mut self.slots, handle) = Some((step.kind, now()));
        let length = u32::try_from(self.block_bytes).unwrap_or(u32::MAX);
        target.submit(handle, step, length)
    }

    fn finish(&mut self, done: &Done, time: Instant, target: &Target) -> Result<(), Failure> {
        let Some((kind, since)) = slot(&mut self.slots, done.handle).take() else {
            return Err(Failure::new(
                format!("cannot measure {}", target.name()),
                "it answered a request that was not asked",
                "",
            ));
        };
        if let Some(error) = &done.error {
            return Err(Failure::new(
                format!("a {kind:?} on {} failed", target.name()).to_lowercase(),
                error,
                "see why: trivet status",
            ));
        }
        self.free.push(done.handle);
        let (figures, bytes) = match kind {
            Kind::Read => (&mut self.outcome.reads, self.block_bytes),
            Kind::Write => (&mut self.outcome.writes, self.block_bytes),
            Kind::Flush => (&mut self.outcome.flushes, 0),
        };
        figures.record(time - since, bytes);
        Ok(())
    }

    fn rate(&self, elapsed: Duration) -> String {
        let transfers = exact(self.outcome.reads.count() + self.outcome.writes.count());
        let per_second = transfers / elapsed.as_secs_f64().max(0.001);
        format!("{per_second:.0} IOPS, {:.1} MB/s", per_second * exact(self.block_bytes) / 1e6)
    }
}

fn slot(slots: &mut [Option<(Kind, Instant)>], handle: u64) -> &mut Option<(Kind, Instant)> {
    // Handles are indices: the load makes them, and targets hand them back.
    match usize::try_from(handle).ok().and_then(|index| slots.get_mut(index)) {
        Some(slot) => slot,
        None => unreachable!("targets answer the handles they were given"),
    }
}
