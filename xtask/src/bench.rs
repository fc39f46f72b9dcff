//! `xtask bench`: a volume on three replicas against raw files on the same disk, in one run.
//!
//! Each workload is measured on the raw files and on the volume by turns, so that both see the disk
//! in the same mood, `--rounds` times; the medians and their ratio are what counts. fio is the
//! load for both, with O_DIRECT on the files and over the volume's unix socket.

pub(crate) mod fio;
pub(crate) mod options;
mod report;
pub(crate) mod target;
pub(crate) mod workload;

use fio::Measured;
use options::Options;
use report::Row;
use target::{RawFiles, Volume};
use workload::{Metric, WORKLOADS, Workload};

/// Runs it.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let options = Options::parse(arguments)?;
    let chosen: Vec<&Workload> =
        WORKLOADS.iter().filter(|workload| workload.name.contains(options.only.as_str())).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
        return Err(format!("--only {} matches none of: {}", options.only, names.join("; ")));
    }
    let raw = RawFiles::create(&options)?;
    let volume = Volume::start(&options)?;
    eprintln!("filling the volume once");
    fio::fill(&volume.fio_target(), options.size_bytes)?;

    let mut rows = Vec::new();
    for workload in chosen {
        rows.push(measure(workload, &raw, &volume, &options)?);
    }
    let text = report::render(&rows, &options, &volume)?;
    println!("{text}");
    if let Some(path) = &options.write {
        report::MARKS.write_between(path, &text)?;
    }
    Ok(())
}

fn measure(
    workload: &'static Workload,
    raw: &RawFiles,
    volume: &Volume,
    options: &Options,
) -> Result<Row, String> {
    let (mut raw_results, mut volume_results) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        if workload.metric != Metric::CpuPerOperation {
            let measured =
                fio::run(&raw.fio_target(workload.raw_files), &workload.against_raw(), options.runtime)?;
            raw_results.push(measured.rate(workload.raw_files));
        }
        let before = volume.cpu_seconds()?;
        let measured = fio::run(&volume.fio_target(), &workload.against_volume(), options.runtime)?;
        let cpu = volume.cpu_seconds()? - before;
        let result = match workload.metric {
            Metric::CpuPerOperation => cpu_per_operation(&measured, cpu),
            Metric::Rate => measured.rate(1),
        };
        eprintln!(
            "{} ({round}/{}): {result:.1} against {:?}",
            workload.name,
            options.rounds,
            raw_results.last()
        );
        volume_results.push(result);
    }
    Ok(Row { workload, raw: median(raw_results), volume: median(volume_results).ok_or("no round was run")? })
}

/// Microseconds of processor time of one operation: fio's, and what those who serve it have used.
pub(crate) fn cpu_per_operation(measured: &Measured, served_by: f64) -> f64 {
    (served_by + measured.cpu_seconds) * 1e6 / measured.operations
}

pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

impl Measured {
    /// Operations a second, of each of `shares` equal parts.
    pub(crate) fn rate(&self, shares: u32) -> f64 {
        self.operations / self.seconds / f64::from(shares)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }
}
