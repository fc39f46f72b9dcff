//! `xtask resync`: how long a member takes to be in sync again after it was away, and what the volume's
//! users notice of a member that becomes slow. Real processes on one machine.

mod absence;
mod rebuild;
mod slow;

use crate::document::{Marks, machine};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

const USAGE: &str = "xtask resync
  --fill GIB     written to the volume of 20 GiB before (4)
  --only TABLE   one of absence, slow, rebuild; not with --write
  --write FILE   keep the tables in FILE, between the resync markers";

const MARKS: Marks = Marks {
    begin: "<!-- resync: begin (make resync-bench writes what stands between these marks) -->",
    end: "<!-- resync: end -->",
};

/// Runs it.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let (mut fill_gib, mut write, mut only) = (4, None, None);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
        match name.as_str() {
            "--fill" => fill_gib = value.parse().map_err(|e| format!("{name} {value}: {e}"))?,
            "--only" => only = Some(value),
            "--write" => write = Some(PathBuf::from(value)),
            _ => return Err(format!("unknown option {name}\n{USAGE}")),
        }
    }
    if only.is_some() && write.is_some() {
        return Err(format!("--only leaves tables out: it cannot be kept with --write\n{USAGE}"));
    }
    let mut text = format!("Measured on {}.\n\n", machine(&std::env::temp_dir()));
    match only.as_deref() {
        None => {
            absence::measure(fill_gib, &mut text)?;
            slow::measure(&mut text)?;
            rebuild::measure(&mut text)?;
        }
        Some("absence") => absence::measure(fill_gib, &mut text)?,
        Some("slow") => slow::measure(&mut text)?,
        Some("rebuild") => rebuild::measure(&mut text)?,
        Some(other) => return Err(format!("unknown table {other}\n{USAGE}")),
    }
    println!("{text}");
    match write {
        None => Ok(()),
        Some(path) => MARKS.write_between(&path, &text),
    }
}

fn line(text: &mut String, content: &str) -> Result<(), String> {
    writeln!(text, "{content}").map_err(|e| e.to_string())
}

/// fio on a volume, with 4 MiB in flight at the most.
fn fio(uri: &str, options: &[String]) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=job", "--ioengine=nbd", "--output-format=json", "--randrepeat=0"]);
    fio.arg(format!("--uri={uri}")).args(options);
    fio
}

fn succeed(fio: &mut Command) -> Result<(), String> {
    let output = fio.output().map_err(|e| format!("cannot start fio (make deps installs it): {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{fio:?} failed: {said}")) }
}
