//! `trivet-sim`: runs seeds, and makes what fails small.
#![forbid(unsafe_code)]

use clap::Parser;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use trivet_sim::{Fault, Figures, Outcome, Planted, Profile, run, run_printing, shrink};

/// Simulates whole clusters, each out of a seed, and checks that nothing is lost.
#[derive(Debug, Parser)]
#[command(name = "trivet-sim")]
struct Arguments {
    /// Run this seed alone.
    #[arg(long, conflicts_with_all = ["seeds", "seconds"])]
    seed: Option<u64>,
    /// Print everything that happens.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Run these seeds: `A..B`, without B.
    #[arg(long, value_parser = parse_seeds)]
    seeds: Option<(u64, u64)>,
    /// Stop after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Put a fault into the product, and expect that it is found (`all`: each in turn but
    /// those that take more than a minute).
    #[arg(long)]
    plant: Option<String>,
    /// The faults of the world in place of those that the seed draws, with commas; `none` for none.
    #[arg(long, value_parser = parse_faults)]
    faults: Option<Faults>,
    /// How long faults strike, in seconds of the world.
    #[arg(long)]
    run_for: Option<f64>,
    /// Show a failure as it is, without making it small.
    #[arg(long)]
    no_shrink: bool,
}

#[derive(Clone, Debug)]
struct Faults(Vec<Fault>);

fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    parts.ok_or_else(|| format!("'{text}' is not A..B"))
}

fn parse_faults(text: &str) -> Result<Faults, String> {
    let names = text.split(',').filter(|name| !name.is_empty() && *name != "none");
    names.map(str::parse).collect::<Result<_, _>>().map(Faults).map_err(|error| error.to_string())
}

impl Arguments {
    fn profile(&self, seed: u64) -> Profile {
        let mut profile = Profile::draw(seed);
        if let Some(Faults(faults)) = &self.faults {
            profile.faults = faults.iter().copied().collect();
        }
        if let Some(seconds) = self.run_for {
            profile.run_for = Duration::from_secs_f64(seconds);
        }
        profile
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.plant {
        None => search(&arguments, None),
        Some(_) if !Planted::is_possible() => {
            Err("this build cannot plant anything; build it with --features trivet-sim/planted-faults".into())
        }
        Some(name) if name == "all" => {
            let common = Planted::ALL.into_iter().filter(|planted| !planted.is_rare());
            common.into_iter().try_for_each(|planted| search(&arguments, Some(planted)))
        }
        Some(name) => match name.parse() {
            Ok(planted) => search(&arguments, Some(planted)),
            Err(error) => Err(format!("{error}")),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    figures: Figures,
    found: Option<(u64, Outcome)>,
}

/// Runs what the arguments say. A failure is wanted exactly when a fault is planted.
fn search(arguments: &Arguments, planted: Option<Planted>) -> Result<(), String> {
    let begin = now();
    let sum = match arguments.seed {
        Some(seed) => run_one(arguments, seed, planted),
        None => run_many(arguments, planted, begin),
    };
    let took = begin.elapsed();
    if let Some(planted) = planted {
        let (seed, outcome) = sum.found.ok_or_else(|| {
            format!("{planted} was not found in {} seeds and {:.1} s", sum.seeds, took.as_secs_f64())
        })?;
        let what = outcome.failure.map(|failure| failure.to_string()).unwrap_or_default();
        println!(
            "{planted}: found after {} seeds and {:.1} s by seed {seed}: {what}",
            sum.seeds,
            took.as_secs_f64()
        );
        return Ok(());
    }
    let seconds = took.as_secs_f64().max(1e-9);
    println!(
        "{} seeds in {seconds:.1} s: {:.1} seeds/s, {:.1} hours of the world ({:.1} in a minute), {} events, {} requests",
        sum.seeds,
        f64_of(sum.seeds) / seconds,
        sum.figures.simulated.as_secs_f64() / 3600.0,
        sum.figures.simulated.as_secs_f64() / 60.0 / seconds,
        sum.figures.events,
        sum.figures.answered
    );
    match sum.found {
        None => Ok(()),
        Some((seed, outcome)) => {
            report(arguments, seed, outcome);
            Err(format!("seed {seed} fails"))
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "how long a search takes is the one thing not simulated")]
fn now() -> Instant {
    Instant::now()
}

fn f64_of(number: u64) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

fn run_one(arguments: &Arguments, seed: u64, planted: Option<Planted>) -> Sum {
    let profile = arguments.profile(seed);
    println!("seed {seed} {profile}");
    let outcome =
        if arguments.trace { run_printing(seed, &profile, planted) } else { run(seed, &profile, planted) };
    println!("trace {:016x}", outcome.trace);
    let figures = outcome.figures;
    Sum { seeds: 1, figures, found: outcome.failure.is_some().then_some((seed, outcome)) }
}

fn run_many(arguments: &Arguments, planted: Option<Planted>, begin: Instant) -> Sum {
    let (first, end) = arguments.seeds.unwrap_or((0, u64::MAX));
    let next = AtomicU64::new(first);
    let over = AtomicBool::new(false);
    let sum = Mutex::new(Sum::default());
    let limit = arguments.seconds.map(Duration::from_secs);
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) && limit.is_none_or(|limit| begin.elapsed() < limit) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let outcome = run(seed, &arguments.profile(seed), planted);
                    let mut sum = sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    sum.seeds += 1;
                    sum.figures.simulated += outcome.figures.simulated;
                    sum.figures.events += outcome.figures.events;
                    sum.figures.answered += outcome.figures.answered;
                    if outcome.failure.is_some() {
                        over.store(true, Ordering::Relaxed);
                        // Of several, the lowest seed: the same whatever the threads' pace.
                        if sum.found.as_ref().is_none_or(|(found, _)| seed < *found) {
                            sum.found = Some((seed, outcome));
                        }
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Shows a failure, as small as it can be made.
fn report(arguments: &Arguments, seed: u64, outcome: Outcome) {
    let profile = arguments.profile(seed);
    let commit = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    println!("\nseed {seed} at commit {}", commit.unwrap_or_else(|error| format!("unknown ({error})")));
    println!("  trivet-sim --seed {seed} {profile}");
    let show = |outcome: &Outcome| outcome.failure.as_ref().map(ToString::to_string).unwrap_or_default();
    println!("  {}", show(&outcome));
    let (profile, outcome) = if arguments.no_shrink {
        (profile, outcome)
    } else {
        let shrunk = shrink(seed, &profile, None, outcome);
        println!("made small in {} runs:", shrunk.runs);
        println!("  trivet-sim --seed {seed} {}", shrunk.profile);
        println!("  {}", show(&shrunk.outcome));
        (shrunk.profile, shrunk.outcome)
    };
    println!("the last that happened ({} of the world):", profile.run_for.as_secs_f64());
    outcome.tail.iter().for_each(|line| println!("{line}"));
}
