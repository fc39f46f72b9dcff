//! A whole copy is made while the volume is used, and while it is not.

use super::slow::percentiles;
use super::{fio, line, succeed};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use trivet_tests::cluster::trivet;
use trivet_tests::{Cluster, Scratch, Setup, patience};

const FILL_MIB: u64 = 4 << 10;
/// When the copy begins, and when the load ends, in seconds: before the copy can be whole.
const BEGIN: u64 = 15;
const OVER: u64 = 45;

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
    let replacement = Replacement::begin(&cluster);
    // Nobody looks on meanwhile: looking takes processor time, of which there is too little here.
    patience::until(began + Duration::from_secs(OVER));
    let beside = replacement.copied(&cluster)?;
    let status = fio.wait().map_err(|e| format!("fio: {e}"))?;
    if !status.success() {
        return Err("fio failed while a copy was made".to_owned());
    }
    replacement.finish(&cluster);
    eprintln!("a copy alone");
    let alone = Replacement::begin(&cluster).finish(&cluster);

    let path = log.with_file_name("fio_clat.1.log");
    let entries = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let seconds = percentiles(&entries);
    eprintln!("p99 by second, ms; the copy began at {BEGIN}: {}", listed(&seconds));
    let (idle, busy) = (median(&seconds, 3, BEGIN)?, median(&seconds, BEGIN + 1, OVER)?);
    let alone = mib(FILL_MIB) / alone.as_secs_f64();
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
    line(text, &format!("| rate of the copy beside them | {:.0} MiB/s |", beside))?;
    line(text, &format!("| rate of the copy alone | {:.0} MiB/s |", alone))?;
    line(text, &format!("| fio reading one raw file and writing another, at once | {raw:.0} MiB/s each |"))?;
    line(text, &format!("| the copy alone, of that | **{:.2}** |", alone / raw))
}

/// The copy of one member, moved to the server that has none.
struct Replacement {
    to: String,
    began: Instant,
    /// Waits until the old copy is removed.
    asking: Child,
}

impl Replacement {
    fn begin(cluster: &Cluster) -> Self {
        cluster.wait_until_in_sync();
        let members: Vec<String> = cluster.members().into_iter().map(|(name, _)| name).collect();
        let names = (1..=4).map(|number| format!("replica-{number}"));
        let to = names.into_iter().find(|name| !members.contains(name)).expect("one of four is free");
        let words = ["replica", "replace", "disk0", "--from", &members[0], "--to", &to];
        let mut command = trivet();
        command.args(words).arg("--dir").arg(cluster.directory()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut asking: Option<Child> = None;
        let began = patience::wait_for("a copy to be begun", 4 * patience::LONG, || {
            // Refused until the engine has let go of the copy that was there last.
            let refused =
                asking.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|ended| ended.is_some()));
            if refused {
                asking = Some(command.spawn().expect("trivet starts"));
            }
            cluster.members().contains(&(to.clone(), "syncing".to_owned())).then(patience::now)
        });
        Self { to, began, asking: asking.expect("a copy has begun") }
    }

    /// What has been copied so far, in MiB a second.
    fn copied(&self, cluster: &Cluster) -> Result<f64, String> {
        let took = patience::now() - self.began;
        let shown = cluster.trivet_json(&["volume", "show", "disk0"]);
        let members = shown["members"].as_array().into_iter().flatten();
        let mut copied = members.filter(|member| member["name"] == self.to.as_str());
        let bytes = copied.find_map(|member| member["sync"]["copied_bytes"].as_f64());
        let bytes =
            bytes.ok_or("no copy is under way at the end of the load: it was whole before, or given up")?;
        Ok(bytes / 1_048_576.0 / took.as_secs_f64())
    }

    /// Waits until it is whole; how long that took since it began.
    fn finish(mut self, cluster: &Cluster) -> Duration {
        let whole = || cluster.members().contains(&(self.to.clone(), "in-sync".to_owned()));
        let end =
            patience::wait_for("the copy to be whole", 4 * patience::LONG, || whole().then(patience::now));
        let status = self.asking.wait().expect("a child's status");
        assert!(status.success(), "the old copy has not been removed");
        end - self.began
    }
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

fn listed(seconds: &[Option<f64>]) -> String {
    let words = seconds.iter().map(|p99| p99.map_or_else(|| "-".to_owned(), |p99| format!("{p99:.2}")));
    words.collect::<Vec<String>>().join(" ")
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
