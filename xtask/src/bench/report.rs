//! The table, the machine it was measured on, and where it is kept.

use super::options::Options;
use super::target::Volume;
use super::workload::{Metric, Workload};
use crate::document::{Marks, machine};
use std::fmt::Write;

/// Where the table is kept.
pub(crate) const MARKS: Marks = Marks {
    begin: "<!-- bench: begin (make bench writes what stands between these marks) -->",
    end: "<!-- bench: end -->",
};

/// A workload's medians.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) workload: &'static Workload,
    /// Operations a second of one raw file.
    pub(crate) raw: Option<f64>,
    /// Operations a second, or microseconds.
    pub(crate) volume: f64,
}

impl Row {
    fn verdict(&self) -> (String, &'static str) {
        let Workload { metric, to_reach, aim, .. } = self.workload;
        let (value, text) = match (metric, self.raw) {
            (Metric::Rate, Some(raw)) => (self.volume / raw, format!("{:.2}", self.volume / raw)),
            _ => (self.volume, format!("{:.1} µs", self.volume)),
        };
        let reaches = |bound: f64| match metric {
            Metric::Rate => value >= bound,
            Metric::CpuPerOperation => value <= bound,
        };
        let verdict = match (reaches(*aim), reaches(*to_reach)) {
            _ if *to_reach == 0.0 => "",
            (true, _) => "reaches the aim",
            (false, true) => "passes",
            (false, false) => "**falls short**",
        };
        (text, verdict)
    }

    fn line(&self) -> String {
        let Workload { name, metric, raw_files, to_reach, aim, .. } = self.workload;
        let (value, verdict) = self.verdict();
        let per_second = |rate: f64| format!("{rate:.0}/s");
        let (against, volume, goal) = match metric {
            Metric::Rate => {
                let files = if *raw_files == 1 { "one file" } else { "three files, each" };
                let raw = self.raw.map(per_second).unwrap_or_default();
                let goal =
                    if *to_reach == 0.0 { String::new() } else { format!("≥ {to_reach} (aim {aim})") };
                (format!("{files}: {raw}"), per_second(self.volume), goal)
            }
            Metric::CpuPerOperation => (String::new(), String::new(), format!("≤ {to_reach} µs (aim {aim})")),
        };
        format!("| {name} | {against} | {volume} | {value} | {goal} | {verdict} |")
    }
}

/// The table and the facts that it depends on, as Markdown.
pub(crate) fn render(rows: &[Row], options: &Options, volume: &Volume) -> Result<String, String> {
    let Options { size_bytes, runtime, rounds, .. } = options;
    let mut text = String::new();
    let mut line = |content: &str| writeln!(text, "{content}").map_err(|e| e.to_string());
    line(&format!("Measured: {} on {}.", volume.describe()?, machine(&options.directory)))?;
    line("")?;
    line(&format!(
        "Volume and raw files of {} MiB, filled once; {runtime} s a measurement, medians of {rounds}.",
        size_bytes >> 20
    ))?;
    line("")?;
    line("| workload | raw, by fio | volume | result | goal | |")?;
    line("|---|---|---|---|---|---|")?;
    for row in rows {
        line(&row.line())?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::workload::WORKLOADS;
    use super::*;

    #[test]
    fn more_is_better_except_for_cpu() {
        let verdict = |workload, raw, volume| Row { workload, raw, volume }.verdict().1;
        let depth_1 = &WORKLOADS[6];
        assert_eq!(verdict(depth_1, Some(100.0), 50.0), "reaches the aim");
        assert_eq!(verdict(depth_1, Some(100.0), 36.0), "passes");
        assert_eq!(verdict(depth_1, Some(100.0), 34.0), "**falls short**");
        let cpu = &WORKLOADS[5];
        assert_eq!(verdict(cpu, None, 39.0), "reaches the aim");
        assert_eq!(verdict(cpu, None, 59.0), "passes");
        assert_eq!(verdict(cpu, None, 61.0), "**falls short**");
    }
}
