//! One process: starting it so that it outlives the manager, and learning of its end.

use super::run_lock::{self, Holder};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use tokio::process::{Child, Command};

/// A log longer than this is put aside as `.1` when its process is started.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// What to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProcessSpec {
    /// Names it among its cluster's.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The file it locks while it lives.
    pub lock: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
}

/// A process that runs, as its supervisor holds it.
#[derive(Debug)]
pub(super) enum Running {
    /// Started by this manager.
    Child(Child),
    /// Started by an earlier one.
    Adopted(Holder),
}

/// How a process ended.
#[derive(Debug)]
pub(super) struct End {
    /// In words.
    pub(super) how: String,
    /// By its own exit code, so that its log says why.
    pub(super) failed: bool,
}

impl Running {
    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> End {
        match self {
            Self::Child(child) => match child.wait().await {
                Ok(status) => End { how: describe(status), failed: status.code().is_some_and(|c| c != 0) },
                Err(error) => End { how: format!("its end could not be learnt: {error}"), failed: false },
            },
            Self::Adopted(holder) => match holder.ended().await {
                Ok(()) => End { how: "it ended".to_owned(), failed: false },
                Err(error) => End { how: format!("its end could not be learnt: {error}"), failed: false },
            },
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}

/// Adopts the process if it runs, else starts it. Answers its pid.
pub(super) fn adopt_or_start(spec: &ProcessSpec) -> io::Result<(u32, Running)> {
    if let Some(holder) = run_lock::holder(&spec.lock)? {
        return Ok((holder.pid(), Running::Adopted(holder)));
    }
    let child = start(spec)?;
    let pid = child.id().ok_or_else(|| io::Error::other("it ended before it had begun"))?;
    Ok((pid, Running::Child(child)))
}

fn start(spec: &ProcessSpec) -> io::Result<Child> {
    let log = open_log(&spec.log)?;
    Command::new(&spec.program)
        .args(&spec.arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Out of the manager's process group: a Ctrl-C there must not reach it.
        .process_group(0)
        .spawn()
}

/// Opens a process's log for appending; an overlong one is put aside first.
///
/// # Errors
/// The system's.
pub fn open_log(path: &Path) -> io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// The error that a process left at the end of its log, on one line; `None` when its last words
/// are no error.
#[must_use]
pub fn last_error_in_log(path: &Path) -> Option<String> {
    const LOOK_BACK: i64 = 4096;
    let mut file = File::open(path).ok()?;
    let length = i64::try_from(file.metadata().ok()?.len()).unwrap_or(i64::MAX);
    file.seek(SeekFrom::End(-length.min(LOOK_BACK))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let at = text.rfind("error: ").filter(|&at| at == 0 || text.as_bytes()[at - 1] == b'\n')?;
    let said: Vec<&str> =
        text[at + "error: ".len()..].lines().map(str::trim).filter(|line| !line.is_empty()).take(3).collect();
    Some(said.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_found_on_one_line() {
        let temp = tempfile::tempdir().unwrap();
        let log = temp.path().join("x.log");
        assert_eq!(last_error_in_log(&log), None);
        std::fs::write(&log, "INFO fine\n").unwrap();
        assert_eq!(last_error_in_log(&log), None);
        std::fs::write(&log, "error: old\nINFO again\nerror: no port\n  cause: taken\n  next:  free it\n")
            .unwrap();
        assert_eq!(last_error_in_log(&log).unwrap(), "no port; cause: taken; next:  free it");
    }
}
