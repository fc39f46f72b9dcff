//! The lock file that a process holds while it lives.
//!
//! The kernel releases the lock with the process, whatever kills it, so a held lock is the proof
//! that the process lives: no pid is ever mistaken for another's, across crashes of the manager,
//! of the process and of the host. The file holds the holder's pid as a line of text, and a second
//! line once the holder is ready: a server, that it listens.

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const READY: &str = "ready";

/// Held until dropped, or until the process ends.
#[derive(Debug)]
pub struct RunLock {
    file: File,
}

/// Why a lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RunLockError {
    /// Another process holds it.
    #[error("{} is held by process {pid}, which runs already", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who holds it; 0 when it has not said yet.
        pid: u32,
    },
    /// The system refused.
    #[error("cannot lock {}: {cause}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
}

impl RunLock {
    /// Takes the lock for this process.
    ///
    /// # Errors
    /// [`RunLockError::Held`] when another process has it.
    pub fn acquire(path: &Path) -> Result<Self, RunLockError> {
        let io = |cause| RunLockError::Io { path: path.to_owned(), cause };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        match try_lock_past_lookers(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(RunLockError::Held {
                    path: path.to_owned(),
                    pid: read_pid(&mut file).unwrap_or(0),
                });
            }
            Err(TryLockError::Error(cause)) => return Err(io(cause)),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { file })
    }

    /// Says that this process does its work now.
    ///
    /// # Errors
    /// The system's.
    pub fn announce_ready(&mut self) -> io::Result<()> {
        writeln!(self.file, "{READY}")
    }
}

/// The process that holds a lock: whatever happens to its pid, this stays that process.
#[derive(Debug)]
pub struct Holder {
    pid: u32,
    pidfd: OwnedFd,
}

impl Holder {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it a signal. Fine when it has ended meanwhile.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Completes when it has ended. Waits on a thread of its own, which ends with it.
    ///
    /// # Errors
    /// The system's.
    pub async fn ended(&self) -> io::Result<()> {
        let pidfd = self.pidfd.try_clone()?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("trivet-watch".to_owned()).spawn(move || {
            // Nobody listens any more: then nobody needs to know.
            sender.send(wait_for_end(&pidfd)).is_ok()
        })?;
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("the watching thread is gone")))
    }
}

/// A pidfd becomes readable when its process ends.
fn wait_for_end(pidfd: &OwnedFd) -> io::Result<()> {
    loop {
        match rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Who looks whether a lock is held takes it himself for a moment; a holder keeps it.
fn try_lock_past_lookers(file: &File) -> Result<(), TryLockError> {
    const ATTEMPTS: u32 = 10;
    let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    for _ in 0..ATTEMPTS {
        match file.try_lock() {
            // A signal only shortens the pause.
            Err(TryLockError::WouldBlock) => drop(rustix::event::poll(&mut [], Some(&pause))),
            other => return other,
        }
    }
    file.try_lock()
}

/// Who holds the lock at `path`, if anyone does.
///
/// # Errors
/// The system's, other than that the file is not there.
pub fn holder(path: &Path) -> io::Result<Option<Holder>> {
    // The holder writes its pid right after it has the lock; this is that moment's bound.
    const LOOKS_MAX: u32 = 1000;
    for _ in 0..LOOKS_MAX {
        let mut file = match OpenOptions::new().read(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !is_held(&file)? {
            return Ok(None);
        }
        let Some(pid) = read_pid(&mut file) else {
            std::thread::yield_now();
            continue;
        };
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        let pidfd = match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => continue,
            Err(error) => return Err(error.into()),
        };
        // Held by a process that has written this pid, and the pid was taken while it was held:
        // looking again afterwards excludes that the number was a predecessor's.
        if is_held(&file)? && read_pid(&mut file) == Some(pid) {
            return Ok(Some(Holder { pid, pidfd }));
        }
    }
    Err(io::Error::other(format!("{} is locked, but does not say by whom", path.display())))
}

/// Whether the lock is held by a process that has announced itself ready.
#[must_use]
pub fn is_ready(path: &Path) -> bool {
    let Ok(mut file) = OpenOptions::new().read(true).open(path) else { return false };
    let mut text = String::new();
    // The text first: it is a dead process's if the lock is free afterwards.
    file.read_to_string(&mut text).is_ok()
        && text.lines().nth(1) == Some(READY)
        && is_held(&file).unwrap_or(false)
}

fn is_held(file: &File) -> io::Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => {
            file.unlock()?;
            Ok(false)
        }
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.split_once('\n')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_names_its_holder_and_refuses_others() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("x.lock");
        assert!(holder(&path).unwrap().is_none());
        let mut lock = RunLock::acquire(&path).unwrap();
        assert!(!is_ready(&path));
        lock.announce_ready().unwrap();
        assert!(is_ready(&path));
        assert_eq!(holder(&path).unwrap().unwrap().pid(), std::process::id());
        let refused = RunLock::acquire(&path).unwrap_err();
        assert!(matches!(refused, RunLockError::Held { pid, .. } if pid == std::process::id()));
        drop(lock);
        assert!(holder(&path).unwrap().is_none(), "a pid left behind means nothing");
        assert!(!is_ready(&path));
        RunLock::acquire(&path).unwrap();
    }
}
