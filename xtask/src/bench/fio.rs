//! Running fio and reading its report.

use super::workload::{Job, Size};
use serde_json::Value;
use std::process::Command;

/// Where fio sends its load: one argument list a job, all at once.
pub(crate) type Target = Vec<Vec<String>>;

/// What fio counted, over all its jobs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) operations: f64,
    pub(crate) seconds: f64,
    /// Of fio itself.
    pub(crate) cpu_seconds: f64,
}

/// A disk served over NBD, of so many bytes.
pub(crate) fn served(uri: &str, bytes: u64) -> Target {
    // fio knows an engine's options only after its name.
    vec![vec!["--ioengine=nbd".into(), format!("--uri={uri}"), format!("--size={bytes}")]]
}

/// Writes everything once.
pub(crate) fn fill(target: &Target, bytes: u64) -> Result<(), String> {
    let once = ["--rw=write", "--bs=1M", "--iodepth=8", "--end_fsync=1"].map(str::to_owned);
    execute(target, &[&once[..], &[format!("--size={bytes}")]].concat()).map(drop)
}

/// Runs a job for `runtime` seconds.
pub(crate) fn run(target: &Target, job: &Job, runtime: u32) -> Result<Measured, String> {
    let size = match job.size {
        Size::FourKib => "4k",
        Size::OneMib => "1M",
    };
    let mut options = vec![
        format!("--rw={}", job.rw),
        format!("--bs={size}"),
        format!("--iodepth={}", job.depth),
        format!("--runtime={runtime}"),
        "--time_based=1".to_owned(),
        "--norandommap=1".to_owned(),
        "--randrepeat=0".to_owned(),
    ];
    options.extend(job.sync.map(str::to_owned));
    let report = execute(target, &options)?;
    let jobs = report["jobs"].as_array().ok_or("fio reported no jobs")?;
    let mut measured = Measured { operations: 0.0, seconds: 0.0, cpu_seconds: 0.0 };
    for job in jobs {
        let number =
            |value: &Value| value.as_f64().ok_or_else(|| format!("fio's report lacks a number: {job}"));
        let seconds = number(&job["job_runtime"])? / 1000.0;
        measured.operations += number(&job["read"]["total_ios"])? + number(&job["write"]["total_ios"])?;
        measured.seconds = measured.seconds.max(seconds);
        measured.cpu_seconds += (number(&job["usr_cpu"])? + number(&job["sys_cpu"])?) / 100.0 * seconds;
    }
    if measured.operations == 0.0 || measured.seconds == 0.0 {
        return Err(format!("fio did nothing: {report}"));
    }
    Ok(measured)
}

fn execute(target: &Target, options: &[String]) -> Result<Value, String> {
    let mut fio = Command::new("fio");
    fio.arg("--output-format=json");
    for (number, job) in target.iter().enumerate() {
        fio.arg(format!("--name=job{number}")).args(job).args(options);
    }
    let output = fio.output().map_err(|e| format!("cannot start fio (make deps installs it): {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{fio:?} failed ({}): {said}\n{text}", output.status));
    }
    // Notes may stand before the report.
    let json = text.find('{').map(|at| &text[at..]).unwrap_or_default();
    let report: Value =
        serde_json::from_str(json).map_err(|e| format!("fio's report: {e}: {said}\n{text}"))?;
    match report["jobs"].as_array().and_then(|jobs| jobs.iter().find(|job| job["error"] != 0)) {
        None => Ok(report),
        Some(job) => Err(format!("fio met error {}: {said}", job["error"])),
    }
}
