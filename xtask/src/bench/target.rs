//! The two sides: raw files, and a volume with the processes that serve it.

use super::fio::{self, Target};
use super::options::Options;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Linux reports processor time in these, whatever the kernel's tick (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// A folder that is removed with what is in it.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn create(parent: &Path, name: &str) -> Result<Self, String> {
        let path = parent.join(format!("trivet-bench-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Three files, filled once: a hole or an unwritten extent would cost a write more than it should.
#[derive(Debug)]
pub(crate) struct RawFiles {
    folder: Folder,
    size_bytes: u64,
}

impl RawFiles {
    pub(crate) fn create(options: &Options) -> Result<Self, String> {
        let folder = Folder::create(&options.directory, "raw")?;
        let files = Self { folder, size_bytes: options.size_bytes };
        eprintln!("filling the raw files once");
        fio::fill(&files.fio_target(3), options.size_bytes)?;
        Ok(files)
    }

    pub(crate) fn fio_target(&self, count: u32) -> Target {
        let job = |number| {
            let path = self.folder.0.join(format!("file-{number}"));
            let size = format!("--size={}", self.size_bytes);
            vec![
                format!("--filename={}", path.display()),
                size,
                "--ioengine=io_uring".into(),
                "--direct=1".into(),
            ]
        };
        (0..count).map(job).collect()
    }
}

/// A volume over NBD.
#[derive(Debug)]
pub(crate) struct Volume {
    uri: String,
    pids: Vec<u32>,
    size_bytes: u64,
    cluster: Option<LocalCluster>,
}

#[derive(Debug)]
struct LocalCluster {
    binary: PathBuf,
    folder: Folder,
}

impl Volume {
    pub(crate) fn start(options: &Options) -> Result<Self, String> {
        let size_bytes = options.size_bytes;
        if let Some((uri, pids)) = &options.server {
            return Ok(Self { uri: uri.clone(), pids: pids.clone(), size_bytes, cluster: None });
        }
        let binary = options.binary.canonicalize();
        let binary =
            binary.map_err(|e| format!("{}: {e} (make build makes it)", options.binary.display()))?;
        let folder = Folder::create(&options.directory, options.folder)?;
        let cluster = LocalCluster { binary, folder };
        let said = cluster.trivet(&["up", "--replicas", "3", "--size", &size_bytes.to_string()])?;
        let uri = said.split_whitespace().find(|word| word.starts_with("nbd+unix://"));
        let uri = uri.ok_or_else(|| format!("trivet up printed no URI: {said}"))?.to_owned();
        let pids = cluster.pids()?;
        if pids.len() < 4 {
            return Err(format!("an engine and three replicas should run, not only {pids:?}"));
        }
        Ok(Self { uri, pids, size_bytes, cluster: Some(cluster) })
    }

    pub(crate) fn fio_target(&self) -> Target {
        fio::served(&self.uri, self.size_bytes)
    }

    /// What is measured, for the report.
    pub(crate) fn describe(&self) -> Result<String, String> {
        let Some(cluster) = &self.cluster else { return Ok(self.uri.clone()) };
        Ok(cluster.trivet(&["--version"])?.trim().to_owned())
    }

    /// Processor time that the serving processes have used since they started.
    pub(crate) fn cpu_seconds(&self) -> Result<f64, String> {
        self.pids.iter().map(|&pid| cpu_seconds_of(pid)).sum()
    }
}

/// Processor time that a process has used since it started.
pub(crate) fn cpu_seconds_of(pid: u32) -> Result<f64, String> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).map_err(|e| format!("process {pid} has ended: {e}"))?;
    // The name stands in parentheses and may hold anything; utime and stime are fields 14 and 15.
    let after_name = stat.rfind(')').map(|at| &stat[at + 1..]).unwrap_or_default();
    let ticks: Vec<f64> =
        after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    match ticks[..] {
        [user, system] => Ok((user + system) / TICKS_PER_SECOND),
        _ => Err(format!("{path} cannot be read: {stat}")),
    }
}

impl LocalCluster {
    fn trivet(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("TRIVET_DIR", &self.folder.0).env_remove("TRIVET_LOG");
        let output = command.output().map_err(|e| format!("cannot start {command:?}: {e}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(format!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr)))
    }

    fn pids(&self) -> Result<Vec<u32>, String> {
        let entries = fs::read_dir("/proc").map_err(|e| format!("/proc: {e}"))?;
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(pids.filter(|&pid| self.owns(pid)).collect())
    }

    fn owns(&self, pid: u32) -> bool {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let is_ours = fs::read_link(folder.join("exe")).is_ok_and(|exe| exe == self.binary);
        let path = self.folder.0.as_os_str().as_encoded_bytes();
        let names_it = |file: &OsStr| {
            fs::read(folder.join(file)).is_ok_and(|bytes| bytes.windows(path.len()).any(|part| part == path))
        };
        is_ours && (names_it(OsStr::new("cmdline")) || names_it(OsStr::new("environ")))
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        if let Err(error) = self.trivet(&["down"]) {
            eprintln!("{error}");
        }
    }
}
