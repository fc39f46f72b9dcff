//! The processes that a cluster is made of.

pub(crate) mod engine;
mod key_socket;
pub(crate) mod manager;
pub(crate) mod replica;
mod stop_signal;

use crate::explain;
use crate::failure::{Exit, Failure};
use std::path::Path;
use trivet_manager::supervisor::run_lock::{RunLock, RunLockError};

/// Takes the lock by which the supervisor knows this process, if it was given one.
fn take_lock(what: &str, path: Option<&Path>) -> Result<Option<RunLock>, Failure> {
    let Some(path) = path else { return Ok(None) };
    match RunLock::acquire(path) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) => Err(lock_failure(what, &error)),
    }
}

fn lock_failure(what: &str, error: &RunLockError) -> Failure {
    match error {
        RunLockError::Held { .. } => {
            Failure::new(what, error, "let that one work, or stop the cluster: trivet down")
                .exit(Exit::Conflict)
        }
        RunLockError::Io { path, cause } => explain::system(what, path, cause),
    }
}

/// Tells the supervisor that this process does its work now.
fn announce(lock: &mut Option<RunLock>) {
    if let Some(lock) = lock
        && let Err(error) = lock.announce_ready()
    {
        tracing::error!(%error, "the supervisor cannot be told that this process is ready");
    }
}

/// An ordinary process may open 1024 files; every connection and RocksDB need some. The soft limit
/// may be raised to the hard one by anyone.
fn raise_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
