//! The table, the machine it was measured on, and where it is kept.

use super::options::Options;
use super::target::Volume;
use super::workload::{Metric, Workload};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

const BEGIN: &str = "<!-- bench: begin (make bench writes what stands between these marks) -->";
const END: &str = "<!-- bench: end -->";

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

/// Processor, memory, kernel, file system, day and commit, as far as the machine tells.
fn machine(directory: &Path) -> String {
    let said_by = |program: &str, arguments: &[&str]| -> Option<String> {
        let output = Command::new(program).args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let field = |file: &str, name: &str| -> Option<String> {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?.to_owned();
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().ok().map(|count| format!("{count} cores"));
    let memory = field("/proc/meminfo", "MemTotal").and_then(|text| {
        let kib: u64 = text.split_whitespace().next()?.parse().ok()?;
        Some(format!("{} GiB of memory", (kib + (1 << 19)) >> 20))
    });
    let path = directory.to_string_lossy();
    let facts = [
        field("/proc/cpuinfo", "model name"),
        cores,
        memory,
        said_by("uname", &["-sr"]),
        said_by("findmnt", &["-n", "-o", "FSTYPE", "-T", &path]).map(|name| format!("file system {name}")),
        said_by("fio", &["--version"]),
        said_by("date", &["-u", "+%F"]),
        said_by("git", &["rev-parse", "--short", "HEAD"]).map(|commit| format!("commit {commit}")),
    ];
    facts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Replaces what stands between the marks.
pub(crate) fn write_between_markers(path: &Path, table: &str) -> Result<(), String> {
    let at = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let text = fs::read_to_string(path).map_err(|e| at(&e))?;
    let replaced =
        replace_between_markers(&text, table).ok_or_else(|| at(&format!("no '{BEGIN}' … '{END}'")))?;
    fs::write(path, replaced).map_err(|e| at(&e))
}

fn replace_between_markers(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::super::workload::WORKLOADS;
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let once = replace_between_markers(&text, "| new |\n").unwrap();
        assert_eq!(once, format!("before\n{BEGIN}\n\n| new |\n\n{END}\nafter\n"));
        assert_eq!(replace_between_markers(&once, "| new |\n").unwrap(), once);
        assert_eq!(replace_between_markers("no marks", ""), None);
    }

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
