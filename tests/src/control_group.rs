//! Processes with little processor time or memory: a control group of their own (version 1). Needs root.

use crate::command::must;
use crate::process::Process;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Why there can be no groups on this machine; `None` when there can.
#[must_use]
pub fn obstacle() -> Option<String> {
    if must("id", &["-u"]).stdout.trim() != "0" {
        return Some("control groups need root".to_owned());
    }
    let wanted = ["cpu/cpu.cfs_quota_us", "memory/memory.limit_in_bytes", "cpu/cgroup.procs"];
    let missing = wanted.into_iter().find(|file| !Path::new(ROOT).join(file).exists());
    missing.map(|file| format!("there is no {ROOT}/{file} (control groups of version 1)"))
}

/// A group. Dropping it gives its processes back what they may have, and removes it.
#[derive(Debug)]
pub struct ControlGroup {
    folders: [PathBuf; 2],
}

impl ControlGroup {
    /// A group that may use so many percent of one processor's time, and so much memory with its files'
    /// pages.
    ///
    /// # Panics
    /// When it cannot be made; see [`obstacle`].
    #[must_use]
    pub fn new(name: &str, cpu_percent: u32, memory_bytes: u64) -> Self {
        let name = format!("trivet-{}-{name}", std::process::id());
        let group = Self { folders: ["cpu", "memory"].map(|kind| Path::new(ROOT).join(kind).join(&name)) };
        for folder in &group.folders {
            fs::create_dir_all(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        }
        write(&group.folders[0].join("cpu.cfs_period_us"), "100000");
        write(&group.folders[0].join("cpu.cfs_quota_us"), &(cpu_percent * 1000).to_string());
        write(&group.folders[1].join("memory.limit_in_bytes"), &memory_bytes.to_string());
        group
    }

    /// Takes processes in.
    ///
    /// # Panics
    /// When one of them has ended.
    pub fn take_in(&self, processes: &[Process]) {
        for folder in &self.folders {
            processes
                .iter()
                .for_each(|process| write(&folder.join("cgroup.procs"), &process.pid.to_string()));
        }
    }

    /// How often its processes had to wait for their share of a processor.
    ///
    /// # Panics
    /// When the kernel does not tell.
    #[must_use]
    pub fn times_throttled(&self) -> u64 {
        let path = self.folders[0].join("cpu.stat");
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let count = text.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count: {text}"))
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|e| panic!("{} < {text}: {e}", path.display()));
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        for folder in &self.folders {
            // To the group above, one by one; those that have ended are gone.
            let members = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            let above = folder.parent().expect("it lies below the root").join("cgroup.procs");
            members.lines().for_each(|pid| drop(fs::write(&above, pid)));
            if let Err(error) = fs::remove_dir(folder) {
                eprintln!("{} stays: {error}", folder.display());
            }
        }
    }
}
