//! Tables in the documentation: the machine that they were measured on, and where they are kept.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Processor, memory, kernel, file system, day and commit, as far as the machine tells.
pub(crate) fn machine(directory: &Path) -> String {
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

/// The lines between which a document keeps a table.
#[derive(Debug)]
pub(crate) struct Marks {
    pub(crate) begin: &'static str,
    pub(crate) end: &'static str,
}

impl Marks {
    /// Replaces what stands between the marks.
    pub(crate) fn write_between(&self, path: &Path, table: &str) -> Result<(), String> {
        let at = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let text = fs::read_to_string(path).map_err(|e| at(&e))?;
        let replaced =
            self.replace(&text, table).ok_or_else(|| at(&format!("no '{}' … '{}'", self.begin, self.end)))?;
        fs::write(path, replaced).map_err(|e| at(&e))?;
        eprintln!("written to {}", path.display());
        Ok(())
    }

    fn replace(&self, text: &str, table: &str) -> Option<String> {
        let Self { begin, end } = self;
        let (before, rest) = text.split_once(begin)?;
        let (_, after) = rest.split_once(end)?;
        Some(format!("{before}{begin}\n\n{table}\n{end}{after}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let marks = Marks { begin: "<!-- a -->", end: "<!-- b -->" };
        let once = marks.replace("before\n<!-- a -->\nold\n<!-- b -->\nafter\n", "| new |\n").unwrap();
        assert_eq!(once, "before\n<!-- a -->\n\n| new |\n\n<!-- b -->\nafter\n");
        assert_eq!(marks.replace(&once, "| new |\n").unwrap(), once);
        assert_eq!(marks.replace("no marks", ""), None);
    }
}
