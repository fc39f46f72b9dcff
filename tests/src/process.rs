//! Finding and killing a cluster's processes, by looking at `/proc`.

use crate::{command, patience};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a `trivet` process is: its subcommand.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// `trivet engine`.
    Engine,
    /// `trivet replica`.
    Replica,
    /// `trivet manager`.
    Manager,
}

impl Role {
    fn subcommand(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Replica => "replica",
            Self::Manager => "manager",
        }
    }
}

/// A running `trivet` process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its arguments, without the program.
    pub arguments: Vec<OsString>,
    started: u64,
}

/// The running processes of `binary` that name a path below `directory` in their arguments or have
/// it as `TRIVET_DIR`.
///
/// # Panics
/// When `/proc` cannot be read.
#[must_use]
pub fn of_cluster(binary: &Path, directory: &Path) -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").expect("/proc is there");
    let mut found: Vec<Process> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| inspect(pid, binary, directory))
        .collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// `None` when the process is another's, or ends while it is looked at.
fn inspect(pid: u32, binary: &Path, directory: &Path) -> Option<Process> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let executable = std::fs::read_link(folder.join("exe")).ok()?;
    // A binary built anew while its processes run is shown with this suffix.
    let executable = executable.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
    if Path::new(&executable) != binary {
        return None;
    }
    let strings = |name: &str| -> Option<Vec<OsString>> {
        let bytes = std::fs::read(folder.join(name)).ok()?;
        Some(bytes.split(|&b| b == 0).map(|part| OsString::from_vec(part.to_vec())).collect())
    };
    let arguments: Vec<OsString> =
        strings("cmdline")?.into_iter().skip(1).filter(|a| !a.is_empty()).collect();
    let text = directory.to_string_lossy().into_owned();
    let names_it = |part: &OsString| {
        part.to_string_lossy().match_indices(&text).any(|(at, _)| {
            let rest = part.to_string_lossy()[at + text.len()..].to_owned();
            rest.is_empty() || rest.starts_with('/')
        })
    };
    let variable = OsString::from(format!("TRIVET_DIR={text}"));
    let belongs = arguments.iter().any(names_it) || strings("environ")?.contains(&variable);
    let started = start_time(pid)?;
    belongs.then_some(Process { pid, arguments, started })
}

/// In clock ticks since boot: with the id, it names a process for ever.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = &stat[stat.rfind(')')? + 2..];
    let mut fields = after_name.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl Process {
    /// Whether it is of this role.
    #[must_use]
    pub fn is(&self, role: Role) -> bool {
        self.arguments.iter().any(|argument| argument == role.subcommand())
    }

    /// Whether one of its arguments is this.
    #[must_use]
    pub fn names(&self, argument: &Path) -> bool {
        self.arguments.iter().any(|own| Path::new(own) == argument)
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Peak and present resident memory in KiB (`VmHWM`, `VmRSS`).
    ///
    /// # Panics
    /// When the process has ended.
    #[must_use]
    pub fn resident_kib(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))
            .unwrap_or_else(|e| panic!("process {} has ended: {e}", self.pid));
        let field = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).expect("the kernel shows it");
            line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("it is a number")
        };
        (field("VmHWM:"), field("VmRSS:"))
    }
}

/// Stops processes where they are (SIGSTOP), or lets them go on (SIGCONT).
///
/// # Panics
/// When there is no such process.
pub fn pause(processes: &[Process], paused: bool) {
    let signal = if paused { "-STOP" } else { "-CONT" };
    let pids = processes.iter().map(|process| process.pid.to_string());
    let outcome = Command::new("kill").arg(signal).args(pids).status().expect("kill is there");
    assert!(outcome.success(), "kill {signal}: {outcome}");
}

/// Kills with SIGKILL, all in one call so that nobody has time to react to another's end, and waits
/// until they are gone.
///
/// # Panics
/// When they are not gone soon.
pub fn kill_hard(processes: &[Process]) {
    let running: Vec<&Process> = processes.iter().filter(|p| p.is_running()).collect();
    if running.is_empty() {
        return;
    }
    let mut kill = Command::new("kill");
    kill.arg("-KILL").args(running.iter().map(|p| p.pid.to_string()));
    let outcome = command::run(&mut kill, patience::SOON);
    // It also fails when one of them ended by itself meanwhile, which the wait tells apart.
    patience::wait_for(&format!("processes to be gone after {outcome}"), patience::SOON, || {
        running.iter().all(|p| !p.is_running()).then_some(())
    });
}
