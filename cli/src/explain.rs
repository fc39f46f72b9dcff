//! Turns the errors of the other crates and of the system into words with a next step.

use crate::failure::{Exit, Failure};
use std::io;
use std::path::Path;
use trivet_api::{ApiError, FailureKind, LayoutError};

/// A call to the manager failed.
pub(crate) fn api(dir: &Path, what: impl std::fmt::Display, error: &ApiError) -> Failure {
    let dir = dir.display();
    match error {
        ApiError::Unreachable { .. } => Failure::new(
            format!("cannot reach the manager of the cluster in {dir}"),
            error,
            format!("bring the cluster up: trivet up --dir {dir}"),
        )
        .exit(Exit::Unreachable),
        ApiError::Malformed(_) => Failure::new(
            what,
            error,
            "the manager may be of another version: trivet down, then trivet up, restarts it",
        ),
        ApiError::Refused { kind, message } => {
            let (next, exit) = next_step(*kind, message);
            // The first quoted word of a refusal is the volume it speaks of.
            let name = message.split('\'').nth(1).unwrap_or("NAME");
            Failure::new(what, message, next.replace("NAME", name)).exit(exit)
        }
    }
}

fn next_step(kind: FailureKind, message: &str) -> (&'static str, Exit) {
    match kind {
        FailureKind::NotFound => ("see what there is: trivet volume list", Exit::NotFound),
        FailureKind::Exists => ("choose another name, or see it: trivet volume show NAME", Exit::Conflict),
        FailureKind::InUse if message.contains("is attached already") => {
            ("detach it first (trivet volume detach NAME), then attach it anew", Exit::Conflict)
        }
        FailureKind::InUse if message.contains("is attached") => {
            ("detach it first: trivet volume detach NAME", Exit::Conflict)
        }
        FailureKind::InUse if message.contains("is open") => {
            ("close it there; if that process is gone for good, say --force", Exit::Conflict)
        }
        FailureKind::InUse if message.contains("cannot listen") => {
            ("choose another address, or stop what listens there (ss -ltnp shows it)", Exit::Conflict)
        }
        FailureKind::InUse if message.contains("replica servers, not") => {
            ("leave --replicas away, or make a new cluster in another --dir", Exit::Conflict)
        }
        FailureKind::InUse | FailureKind::Conflict { .. } => ("look again and retry", Exit::Conflict),
        FailureKind::Invalid => ("correct it and try again", Exit::Usage),
        FailureKind::Replica => ("see which replica servers run, and why not: trivet status", Exit::Failed),
        FailureKind::NoSpace => ("free space on the disk of that replica, or in its pool", Exit::NoSpace),
        FailureKind::Internal => ("the manager's log says more: DIR/log/manager.log", Exit::Failed),
    }
}

/// A folder is not what was expected.
pub(crate) fn layout(error: &LayoutError) -> Failure {
    let (next, exit) = match error {
        LayoutError::Missing(dir) => {
            (format!("make a cluster there: trivet up --dir {}", dir.display()), Exit::NotFound)
        }
        LayoutError::NotACluster(dir) => (
            format!(
                "name the cluster's folder with --dir or TRIVET_DIR, or make one: trivet up --dir {}",
                dir.display()
            ),
            Exit::NotFound,
        ),
        LayoutError::Occupied(_) => ("choose an empty or new folder".to_owned(), Exit::Conflict),
        LayoutError::Version { .. } => ("use the trivet version that made it".to_owned(), Exit::Data),
        LayoutError::NotAFolder(_) => ("name a folder".to_owned(), Exit::Usage),
        LayoutError::NotUtf8(_) => ("choose a folder whose path is UTF-8".to_owned(), Exit::Usage),
        LayoutError::Io { path, cause, .. } => return system("cannot use the cluster's folder", path, cause),
    };
    Failure::new("cannot use the cluster's folder", error, next).exit(exit)
}

/// The system refused something about a file.
pub(crate) fn system(what: impl std::fmt::Display, path: &Path, error: &io::Error) -> Failure {
    let cause = format!("{}: {error}", path.display());
    let (next, exit) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ("free space on that file system (df -h), or choose another folder", Exit::NoSpace)
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            ("choose a folder that you may write to; trivet runs as an ordinary user", Exit::Machine)
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            ("choose a folder: something else is there", Exit::Usage)
        }
        io::ErrorKind::NotFound => ("check the path", Exit::NotFound),
        io::ErrorKind::AddrInUse => {
            ("choose another address, or stop what listens there (ss -ltnp shows it)", Exit::Conflict)
        }
        _ => match error.raw_os_error() {
            Some(libc_numbers::EMFILE | libc_numbers::ENFILE) => {
                ("allow more open files: ulimit -n 4096 (LimitNOFILE= in systemd)", Exit::Machine)
            }
            _ => ("see the cause above", Exit::Failed),
        },
    };
    Failure::new(what, cause, next).exit(exit)
}

/// Error numbers of Linux on every architecture we build for.
mod libc_numbers {
    pub(super) const ENFILE: i32 = 23;
    pub(super) const EMFILE: i32 = 24;
}

/// Error texts of the data path name the system's error; this finds the next step by them. The
/// words are those of `strerror`, which the crates pass on unchanged.
pub(crate) fn data_path(what: impl std::fmt::Display, cause: &str) -> Failure {
    let has = |words: &[&str]| words.iter().any(|word| cause.contains(word));
    let (next, exit) = if has(&["io_uring"]) && has(&["not permitted", "Permission denied", "EPERM"]) {
        (
            "io_uring is forbidden here: sysctl kernel.io_uring_disabled must be 0 (or 1 and you in \
             kernel.io_uring_group); in a container, use a seccomp profile that allows io_uring_setup, \
             io_uring_enter and io_uring_register (docker: --security-opt seccomp=unconfined)",
            Exit::Machine,
        )
    } else if has(&["io_uring"]) && has(&["not implemented", "ENOSYS"]) {
        ("this kernel has no io_uring: Linux 5.15 or later is needed (uname -r)", Exit::Machine)
    } else if has(&["io_uring"]) && has(&["Cannot allocate memory", "ENOMEM"]) {
        ("allow more locked memory: ulimit -l 65536 (LimitMEMLOCK= in systemd)", Exit::Machine)
    } else if has(&["O_DIRECT"]) {
        (
            "this file system cannot do O_DIRECT: choose a folder on ext4, xfs or btrfs (tmpfs can from \
             Linux 6.6 on)",
            Exit::Machine,
        )
    } else if has(&["Too many open files"]) {
        ("allow more open files: ulimit -n 4096 (LimitNOFILE= in systemd)", Exit::Machine)
    } else if has(&["Cannot allocate memory"]) {
        ("allow more locked memory (ulimit -l 65536), or free some", Exit::Machine)
    } else if has(&["No space left", "no space", "is full"]) {
        ("free space on that file system (df -h), or choose another folder", Exit::NoSpace)
    } else if has(&["version"]) {
        ("use the trivet version that made it; nothing was changed", Exit::Data)
    } else if has(&["Address already in use", "in use"]) {
        ("choose another address, or stop what uses it (ss -ltnp shows listeners)", Exit::Conflict)
    } else if has(&["no pool", "not a pool", "is no pool", "No such file"]) {
        ("name a pool's folder, such as DIR/replica-1 of a cluster in DIR", Exit::NotFound)
    } else if has(&["checksum", "damaged", "corrupt"]) {
        ("see what is damaged: trivet check DIR", Exit::Data)
    } else {
        ("see the cause above", Exit::Failed)
    };
    Failure::new(what, cause, next).exit(exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_troubles_have_next_steps_and_codes() {
        for (cause, word, exit) in [
            ("io_uring_setup: Operation not permitted (os error 1)", "seccomp", Exit::Machine),
            (
                "io_uring_setup: Operation not permitted (os error 1)",
                "kernel.io_uring_disabled",
                Exit::Machine,
            ),
            ("io_uring_setup: Function not implemented (os error 38)", "5.15", Exit::Machine),
            ("io_uring_setup: Cannot allocate memory (os error 12)", "ulimit -l", Exit::Machine),
            ("/mnt/pool does not take O_DIRECT: Invalid argument", "file system", Exit::Machine),
            ("open: Too many open files (os error 24)", "ulimit -n", Exit::Machine),
            ("write: No space left on device (os error 28)", "df -h", Exit::NoSpace),
            ("the pool has version 99, this program reads 1", "nothing was changed", Exit::Data),
            ("127.0.0.1:1: Address already in use (os error 98)", "ss -ltnp", Exit::Conflict),
        ] {
            let failure = data_path("cannot", cause);
            assert_eq!(failure.exit, exit, "{failure}");
            assert!(failure.to_string().contains(word), "{failure}");
        }
    }

    #[test]
    fn system_errors_have_next_steps() {
        let path = Path::new("/x");
        for (number, word, exit) in [
            (28, "free space", Exit::NoSpace),
            (13, "may write", Exit::Machine),
            (24, "ulimit -n", Exit::Machine),
            (98, "ss -ltnp", Exit::Conflict),
            (20, "something else", Exit::Usage),
        ] {
            let failure = system("cannot", path, &io::Error::from_raw_os_error(number));
            assert_eq!(failure.exit, exit, "{failure}");
            assert!(failure.to_string().contains(word), "{failure}");
        }
    }
}
