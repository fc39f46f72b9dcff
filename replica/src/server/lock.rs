//! One server per pool directory: a lock that the kernel gives back however its holder ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const NAME: &str = "lock";

/// How often the lock of a process that is ending is tried: the kernel keeps it until the last of its
/// threads and I/O operations are gone, a moment after the process itself.
const ENDING_ATTEMPTS: u32 = 200;
const ENDING_PAUSE: Duration = Duration::from_millis(25);

/// Why a directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "the pool in {} is in use by process {holder}; stop that one, or choose another directory",
        directory.display()
    )]
    Held {
        /// The pool's.
        directory: PathBuf,
        /// Its process id, as it wrote it.
        holder: String,
    },
    /// The lock file cannot be used.
    #[error("the lock file {} cannot be used: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A directory taken; dropping it gives it back.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
    path: PathBuf,
    /// Whether the lock file is of our making.
    new: bool,
}

impl DirectoryLock {
    /// Takes a directory, made if it is not there, and leaves this process's id in its lock file.
    ///
    /// # Errors
    /// [`LockError`] with the cause and the next step.
    pub fn take(directory: &Path) -> Result<Self, LockError> {
        let path = directory.join(NAME);
        let fail = |source| LockError::File { path: path.clone(), source };
        std::fs::create_dir_all(directory).map_err(fail)?;
        let new = !path.exists();
        // Not truncated: until it is locked, what it says is about its holder.
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(fail)?;
        let mut attempts = 0;
        while let Err(error) = file.try_lock() {
            let TryLockError::WouldBlock = error else { return Err(fail(error.into())) };
            let mut holder = String::new();
            file.rewind().and_then(|()| (&file).take(32).read_to_string(&mut holder)).map_err(fail)?;
            let holder = holder.trim().to_owned();
            attempts += 1;
            if attempts > ENDING_ATTEMPTS || !is_ending(&holder) {
                return Err(LockError::Held { directory: directory.to_owned(), holder });
            }
            wait_a_moment();
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(fail)?;
        writeln!(file, "{}", std::process::id()).map_err(fail)?;
        Ok(Self { _file: file, path, new })
    }

    /// Gives the directory back as it was found: it is not ours to leave files in.
    ///
    /// # Errors
    /// [`LockError::File`].
    pub fn withdraw(self) -> Result<(), LockError> {
        if !self.new {
            return Ok(());
        }
        std::fs::remove_file(&self.path).map_err(|source| LockError::File { path: self.path.clone(), source })
    }
}

/// Whether a process is dead, although it may hold on to files yet.
fn is_ending(process: &str) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{process}/stat")) else { return true };
    stat.rsplit(')').next().is_some_and(|rest| matches!(rest.trim_start().chars().next(), Some('Z' | 'X')))
}

#[allow(clippy::disallowed_methods, reason = "the kernel tells nobody when it is done with a dead process")]
fn wait_a_moment() {
    std::thread::sleep(ENDING_PAUSE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_dead_are_waited_for() {
        assert!(!is_ending(&std::process::id().to_string()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id().to_string();
        while !is_ending(&dead) {
            wait_a_moment();
        }
        child.wait().unwrap();
        assert!(is_ending(&dead));
    }

    #[test]
    fn a_directory_has_one_holder_and_the_next_is_told_which() {
        let directory = tempfile::tempdir().unwrap();
        let first = DirectoryLock::take(directory.path()).unwrap();
        let refused = DirectoryLock::take(directory.path()).unwrap_err();
        assert!(
            matches!(&refused, LockError::Held { holder, .. } if *holder == std::process::id().to_string())
        );
        drop(first);
        DirectoryLock::take(directory.path()).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let error = DirectoryLock::take(Path::new("/proc/nowhere/pool")).unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere/pool/lock"), "{error}");
    }

    #[test]
    fn a_lock_withdrawn_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        DirectoryLock::take(directory.path()).unwrap().withdraw().unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
