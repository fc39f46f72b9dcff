//! Stopping processes by their locks, with or without a manager that watches them.

use super::STOP_TIMEOUT;
use super::run_lock::{self, Holder};
use rustix::process::Signal;
use std::io;
use std::path::{Path, PathBuf};

/// Sends SIGTERM to the holders of these locks, all at once, and waits for their ends; one that
/// takes longer than [`STOP_TIMEOUT`] is killed. Answers how many there were.
///
/// # Errors
/// The system's; the rest have been told all the same.
pub async fn stop_holders(locks: &[PathBuf]) -> io::Result<usize> {
    let mut holders = Vec::new();
    for lock in locks {
        if let Some(holder) = run_lock::holder(lock)? {
            holder.signal(Signal::TERM)?;
            holders.push(holder);
        }
    }
    let count = holders.len();
    for holder in holders {
        wait_or_kill(holder).await?;
    }
    Ok(count)
}

async fn wait_or_kill(holder: Holder) -> io::Result<()> {
    let pid = holder.pid();
    if let Ok(ended) = tokio::time::timeout(STOP_TIMEOUT, holder.ended()).await {
        return ended;
    }
    tracing::warn!(pid, "did not stop; killing it");
    holder.signal(Signal::KILL)?;
    holder.ended().await
}

/// The names of the processes that have lock files in `run`, whether they run or not.
///
/// # Errors
/// The system's.
pub fn known_processes(run: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(run)? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".lock")) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}
