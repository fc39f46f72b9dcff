//! `trivet check`.

use crate::args::{Format, Output, Place};
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::{json, say};
use crate::progress::Run;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;
use trivet_api::Layout;
use trivet_model::BLOCK_SIZE_U64;
use trivet_model::size::ByteSize;
use trivet_reactor::{Options, Reactor};
use trivet_replica::pool;
use trivet_replica::server::DirectoryLock;
use trivet_replica::store::VerifyReport;

/// Prove the invariants of a pool that is not running
#[derive(Args, Debug)]
#[command(after_help = "\
Reads superblocks, journal, map and every block of data; changes nothing.
Ends with code 0 when all is well and 7 when anything is damaged, and says what.")]
pub(crate) struct CheckArgs {
    /// A pool's folder, or a cluster's for all of its pools [default: the cluster's]
    #[arg(value_name = "DIR")]
    pool: Option<PathBuf>,
    /// Leave out the data: check only what points at it
    #[arg(long)]
    no_data: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct PoolView {
    dir: String,
    pool: Option<String>,
    volumes: u64,
    used_bytes: u64,
    verified_bytes: u64,
    findings: Vec<String>,
}

pub(crate) fn run(arguments: &CheckArgs) -> Result<(), Failure> {
    crate::logging::for_commands();
    let mut views = Vec::new();
    for dir in pools(arguments)? {
        let report = check(&dir, !arguments.no_data)?;
        let view = view(&dir, &report);
        if arguments.output.output == Format::Table {
            print(&view);
        }
        views.push(view);
    }
    if arguments.output.output == Format::Json {
        json(&views);
    }
    let damaged: Vec<&str> =
        views.iter().filter(|view| !view.findings.is_empty()).map(|view| view.dir.as_str()).collect();
    if damaged.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        format!("{} of {} pools are damaged", damaged.len(), views.len()),
        format!("see the findings for {}", damaged.join(", ")),
        "blocks that are damaged in one pool are served from its peers; keep those running",
    )
    .exit(Exit::Data))
}

/// The pool named, or all of the cluster's.
fn pools(arguments: &CheckArgs) -> Result<Vec<PathBuf>, Failure> {
    let layout = match &arguments.pool {
        None => arguments.place.layout()?,
        Some(dir) => match Layout::open(dir) {
            Ok(layout) => layout,
            Err(_) => return Ok(vec![dir.clone()]),
        },
    };
    let mut pools: Vec<PathBuf> =
        (1..=64).map(|number| layout.replica(number)).filter(|dir| dir.is_dir()).collect();
    pools.sort();
    if pools.is_empty() {
        return Err(Failure::new(
            format!("the cluster in {} has no pools", layout.dir().display()),
            "it was never up",
            format!("bring it up: trivet up --dir {}", layout.dir().display()),
        )
        .exit(Exit::NotFound));
    }
    Ok(pools)
}

fn check(dir: &Path, data: bool) -> Result<VerifyReport, Failure> {
    let what = || format!("cannot check {}", dir.display());
    if !dir.is_dir() {
        let next = "name a pool's folder, such as DIR/replica-1 of a cluster in DIR";
        return Err(Failure::new(what(), "there is no such folder", next).exit(Exit::NotFound));
    }
    // A pool in use changes under the reader. Where there is no pool, no lock file is left either.
    let _lock = if dir.join("pool").exists() {
        let lock = DirectoryLock::take(dir);
        Some(lock.map_err(|error| {
            Failure::new(what(), error, "stop its server first: trivet down").exit(Exit::Conflict)
        })?)
    } else {
        None
    };
    let explained = |error: &dyn std::fmt::Display| explain::data_path(what(), &error.to_string());
    let reactor = Reactor::new(Options::default()).map_err(|error| explained(&error))?;
    let mut run: Option<Run> = None;
    let began = now();
    let mut tell = |done: u64, total: u64| {
        let run = run.get_or_insert_with(|| Run::of_bytes(total * BLOCK_SIZE_U64));
        run.tell_bytes(done * BLOCK_SIZE_U64, began.elapsed());
    };
    pool::check(&reactor, dir, data, &mut tell).map_err(|error| explained(&error))
}

#[allow(clippy::disallowed_methods, reason = "shows the rate to people")]
fn now() -> Instant {
    Instant::now()
}

fn view(dir: &Path, report: &VerifyReport) -> PoolView {
    PoolView {
        dir: dir.display().to_string(),
        pool: report.pool.map(|pool| pool.to_string()),
        volumes: report.volumes,
        used_bytes: report.blocks_used * BLOCK_SIZE_U64,
        verified_bytes: report.blocks_verified * BLOCK_SIZE_U64,
        findings: report.findings.iter().map(ToString::to_string).collect(),
    }
}

fn print(view: &PoolView) {
    let verdict = match view.findings.len() {
        0 => "sound".to_owned(),
        1 => "1 finding".to_owned(),
        count => format!("{count} findings"),
    };
    say(&format!(
        "{}: {verdict}; {} {}, {} in use, {} read and verified",
        view.dir,
        view.volumes,
        if view.volumes == 1 { "volume" } else { "volumes" },
        ByteSize(view.used_bytes),
        ByteSize(view.verified_bytes)
    ));
    for finding in &view.findings {
        say(&format!("  {finding}"));
    }
}
