//! A whole copy is made while the volume is used, and while it is not.

use super::slow::percentiles;
use super::{fio, line, succeed};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use trivet_tests::{Cluster, Scratch, Setup, patience};

const FILL_MIB: u64 = 4 << 10;
/// When the copy begins, and when the load ends, in seconds.
const BEGIN: u64 = 15;
const OVER: u64 = 75;

/// Adds the table.
pub(super) fn measure(text: &mut String) -> Result<(), String> {
    let cluster = Cluster::start_as(Setup::new(4, "8GiB"));
    let raw = raw_copy(cluster.scratch())?;
    eprintln!("writing {FILL_MIB} MiB");
    let once = ["--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1"].map(str::to_owned);
    succeed(&mut fio(cluster.uri(), &[&once[..], &[format!("--size={FILL_MIB}m")]].concat()))?;

    let log = cluster.scratch().join("fio");
    let load =
        ["--rw=randwrite", "--bs=4k", "--time_based=1", "--rate_iops=2000", "--iodepth=8"].map(str::to_owned);
    let mut options = load.to_vec();
    options.extend([format!("--size={FILL_MIB}m"), format!("--runtime={OVER}")]);
    options.push(format!("--write_lat_log={}", log.display()));
    let mut fio = fio(cluster.uri(), &options)
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot start fio (make deps installs it): {e}"))?;
    let began = patience::now();
    eprintln!("a copy beside writes: {OVER} s");
    patience::until(began + Duration::from_secs(BEGIN));
    let beside = replace(&cluster);
    let status = fio.wait().map_err(|e| format!("fio: {e}"))?;
    if !status.success() {
        return Err("fio failed while a copy was made".to_owned());
    }
    eprintln!("a copy alone");
    let alone = replace(&cluster);

    let path = log.with_file_name("fio_clat.1.log");
    let entries = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let seconds = percentiles(&entries);
    let end = (BEGIN + beside.as_secs()).min(OVER);
    let (idle, busy) = (median(&seconds, 3, BEGIN)?, median(&seconds, BEGIN + 1, end)?);
    let rate = |took: Duration| mib(FILL_MIB) / took.as_secs_f64();
    line(
        text,
        &format!(
            "\nA copy of {FILL_MIB} MiB is moved to a fourth replica server, beside 2000 random writes of"
        ),
    )?;
    line(
        text,
        "4 KiB a second and without. All servers share one disk and two cores: a copy reads and writes the",
    )?;
    line(text, "same device.\n")?;
    line(text, "| | |\n|---|---|")?;
    line(text, &format!("| p99 of writes before (median of seconds) | {idle:.2} ms |"))?;
    line(
        text,
        &format!("| p99 of writes beside the copy | {busy:.2} ms, **{:.2}** times as long |", busy / idle),
    )?;
    line(text, &format!("| rate of the copy beside them | {:.0} MiB/s |", rate(beside)))?;
    line(text, &format!("| rate of the copy alone | {:.0} MiB/s |", rate(alone)))?;
    line(text, &format!("| fio reading one raw file and writing another, at once | {raw:.0} MiB/s each |"))?;
    line(text, &format!("| the copy alone, of that | **{:.2}** |", rate(alone) / raw))
}

/// Moves the copy of one member to the server that has none; how long that takes.
fn replace(cluster: &Cluster) -> Duration {
    cluster.wait_until_in_sync();
    let members: Vec<String> = cluster.members().into_iter().map(|(name, _)| name).collect();
    let names = (1..=4).map(|number| format!("replica-{number}"));
    let free = names.into_iter().find(|name| !members.contains(name)).expect("one of four is free");
    let words = ["replica", "replace", "disk0", "--from", &members[0], "--to", &free];
    // Refused until the engine has let go of the copy that was there last.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            patience::wait_for("a copy to be moved", 4 * patience::LONG, || {
                cluster.trivet(&words).status.success().then_some(())
            });
        });
        let is = |wanted: &'static str| {
            let free = &free;
            move || {
                let found =
                    cluster.members().into_iter().any(|(name, state)| name == *free && state == wanted);
                found.then(patience::now)
            }
        };
        let begin = patience::wait_for("a copy to be begun", patience::LONG, is("syncing"));
        patience::wait_for("the copy to be whole", 4 * patience::LONG, is("in-sync")) - begin
    })
}

/// What the disk gives to one who reads a file and writes another, in MiB a second each.
fn raw_copy(scratch: &Scratch) -> Result<f64, String> {
    let (from, to) = (scratch.join("raw-from"), scratch.join("raw-to"));
    let job = |name: &str, file: &Path, rw: &str| {
        let rest = ["--ioengine=io_uring", "--direct=1", "--bs=1M", "--iodepth=8", "--size=2g"];
        let own = [format!("--name={name}"), format!("--filename={}", file.display()), format!("--rw={rw}")];
        own.into_iter().chain(rest.map(str::to_owned)).collect::<Vec<String>>()
    };
    succeed(Command::new("fio").args(job("prepare", &from, "write")))?;
    let mut both = Command::new("fio");
    both.args(["--output-format=json"]).args(job("read", &from, "read")).args(job("write", &to, "write"));
    let output = both.output().map_err(|e| format!("cannot start fio (make deps installs it): {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let report: Value = said
        .find('{')
        .and_then(|at| serde_json::from_str(&said[at..]).ok())
        .ok_or_else(|| format!("fio reported nothing: {said}"))?;
    let rate = |job: usize, kind: &str| report["jobs"][job][kind]["bw"].as_f64().unwrap_or_default() / 1024.0;
    for file in [from, to] {
        fs::remove_file(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    Ok(rate(0, "read").min(rate(1, "write")))
}

fn median(seconds: &[Option<f64>], from: u64, to: u64) -> Result<f64, String> {
    let index = |second: u64| usize::try_from(second).map_err(|e| e.to_string());
    let part = seconds.get(index(from)?..index(to)?).ok_or("fio's log is too short")?;
    let mut known: Vec<f64> = part.iter().flatten().copied().collect();
    known.sort_by(f64::total_cmp);
    known.get(known.len() / 2).copied().ok_or_else(|| "fio has logged nothing".to_owned())
}

fn mib(mib: u64) -> f64 {
    f64::from(u32::try_from(mib).unwrap_or(u32::MAX))
}
