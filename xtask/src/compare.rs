//! `xtask compare`: two binaries against each other, to see whether a change has made volumes slower.
//!
//! Both serve a volume of their own on the same disk at the same time, and are measured by turns of a few seconds:
//! machines that are shared change their mood within a minute, and what is measured a minute apart differs by
//! more than what is looked for. What counts is the ratio within each turn. Where files happen to lie makes a
//! difference too, so that everything is done again with new clusters.

use crate::bench::fio;
use crate::bench::options::Options;
use crate::bench::target::Volume;
use crate::bench::workload::{Metric, WORKLOADS, Workload};
use crate::bench::{cpu_per_operation, median};
use crate::document::{Marks, machine};
use std::fmt::Write;
use std::path::PathBuf;

const USAGE: &str = "xtask compare --before PATH
  --before PATH      the trivet binary of before
  --after PATH       that of after (next to this program)
  --size BYTES[K|M|G] of each volume (1G)
  --runtime SECONDS  of each measurement (2)
  --turns N          measurements of each workload with each pair of clusters (6)
  --clusters N       pairs of clusters, one after the other (2)
  --only TEXT        only workloads whose name contains TEXT
  --write FILE       keep the table in FILE, between the compare markers";

const MARKS: Marks = Marks {
    begin: "<!-- compare: begin (xtask compare writes what stands between these marks) -->",
    end: "<!-- compare: end -->",
};

/// How much worse is still taken for the same.
const TOLERANCE: f64 = 0.05;

/// Of one workload, over all turns.
struct Row {
    workload: &'static Workload,
    before: Vec<f64>,
    after: Vec<f64>,
}

/// Runs it.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let defaults = Options::parse(std::iter::empty())?;
    let mut options = Options { size_bytes: 1 << 30, runtime: 2, rounds: 6, ..defaults };
    let (mut before, mut clusters) = (None, 2);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
        let invalid = |e: std::num::ParseIntError| format!("{name} {value}: {e}");
        match name.as_str() {
            "--before" => before = Some(PathBuf::from(value)),
            "--after" => options.binary = value.into(),
            "--size" => options.size_bytes = crate::bench::options::parse_size(&value)?,
            "--runtime" => options.runtime = value.parse().map_err(invalid)?,
            "--turns" => options.rounds = value.parse().map_err(invalid)?,
            "--clusters" => clusters = value.parse().map_err(invalid)?,
            "--only" => options.only = value,
            "--write" => options.write = Some(value.into()),
            _ => return Err(format!("unknown option {name}\n{USAGE}")),
        }
    }
    if options.write.is_some() && !options.only.is_empty() {
        return Err("--write keeps a whole table: not with --only".to_owned());
    }
    let binary = before.ok_or_else(|| format!("--before is needed\n{USAGE}"))?;
    let before = Options { binary, folder: "before", ..options.clone() };
    let after = Options { folder: "after", ..options };
    let chosen = WORKLOADS.iter().filter(|workload| workload.name.contains(&after.only));
    let mut rows: Vec<Row> =
        chosen.map(|workload| Row { workload, before: Vec::new(), after: Vec::new() }).collect();
    let mut described = String::new();
    for _ in 0..clusters {
        let pair = [Volume::start(&before)?, Volume::start(&after)?];
        eprintln!("filling both volumes once");
        for volume in &pair {
            fio::fill(&volume.fio_target(), after.size_bytes)?;
        }
        for row in &mut rows {
            row.measure(&pair, &after)?;
        }
        described = format!("{} and {}", pair[0].describe()?, pair[1].describe()?);
    }
    let text = report(&rows, &described, &after, clusters)?;
    println!("{text}");
    match &after.write {
        None => Ok(()),
        Some(path) => MARKS.write_between(path, &text),
    }
}

impl Row {
    fn measure(&mut self, pair: &[Volume; 2], options: &Options) -> Result<(), String> {
        for turn in 0..options.rounds as usize {
            let mut results = [0.0; 2];
            // Each is first in its turn.
            for which in [turn % 2, (turn + 1) % 2] {
                let volume = &pair[which];
                let cpu = volume.cpu_seconds()?;
                let measured =
                    fio::run(&volume.fio_target(), &self.workload.against_volume(), options.runtime)?;
                results[which] = match self.workload.metric {
                    Metric::Rate => measured.rate(1),
                    Metric::CpuPerOperation => cpu_per_operation(&measured, volume.cpu_seconds()? - cpu),
                };
            }
            let [before, after] = results;
            eprintln!("{}: {before:.1}, {after:.1}, {:.2}", self.workload.name, after / before);
            self.before.push(before);
            self.after.push(after);
        }
        Ok(())
    }

    /// After to before in each turn, in order of size.
    fn ratios(&self) -> Vec<f64> {
        let mut ratios: Vec<f64> =
            self.after.iter().zip(&self.before).map(|(after, before)| after / before).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    }
}

fn report(rows: &[Row], described: &str, options: &Options, clusters: u32) -> Result<String, String> {
    let mut text = format!("Measured: {described} on {}.\n\n", machine(&options.directory));
    let mut line = |content: &str| writeln!(text, "{content}").map_err(|e| e.to_string());
    let Options { size_bytes, runtime, rounds, .. } = options;
    line(&format!(
        "Volumes of {} MiB, filled once, both served at the same time, measured by turns of {runtime} s: {rounds} turns with each of \
         {clusters} pairs of clusters. Medians; the ratio is that of the ratios within each turn.\n",
        size_bytes >> 20
    ))?;
    line(
        "| workload | before | after | ratio | the middle half of the ratios | not worse by more than 5 % |",
    )?;
    line("|---|---|---|---|---|---|")?;
    for row in rows {
        let ratios = row.ratios();
        let (before, after) = (median(row.before.clone()), median(row.after.clone()));
        let (Some(ratio), Some(before), Some(after)) = (median(ratios.clone()), before, after) else {
            return Err("no turn was run".to_owned());
        };
        let quarter = ratios.len() / 4;
        let (low, high) = (ratios[quarter], ratios[ratios.len() - 1 - quarter]);
        let (unit, holds) = match row.workload.metric {
            Metric::Rate => ("/s", ratio >= 1.0 - TOLERANCE),
            Metric::CpuPerOperation => (" µs", ratio <= 1.0 + TOLERANCE),
        };
        let verdict = if holds { "yes" } else { "**no**" };
        let name = row.workload.name;
        line(&format!(
            "| {name} | {before:.0}{unit} | {after:.0}{unit} | {ratio:.2} | {low:.2} to {high:.2} | {verdict} |"
        ))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_better_except_for_cpu() {
        let options = Options::parse(std::iter::empty()).unwrap();
        let last = |workload, before: f64, after: f64| {
            let row = Row { workload, before: vec![before; 4], after: vec![after; 4] };
            let text = report(&[row], "", &options, 1).unwrap();
            text.lines().last().unwrap().to_owned()
        };
        let (rate, cpu) = (&WORKLOADS[4], &WORKLOADS[5]);
        assert!(last(rate, 100.0, 96.0).ends_with("| 0.96 | 0.96 to 0.96 | yes |"));
        assert!(last(rate, 100.0, 94.0).ends_with("| **no** |"));
        assert!(last(cpu, 100.0, 104.0).ends_with("| yes |"));
        assert!(last(cpu, 100.0, 106.0).ends_with("| **no** |"));
    }
}
