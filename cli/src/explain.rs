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
        ApiError::Refused { kind, message, next } => {
            let (usual, exit) = by_kind(*kind);
            let next = next.clone().unwrap_or_else(|| usual.replace("DIR", &dir.to_string()));
            Failure::new(what, message, next).exit(exit)
        }
    }
}

/// The exit code of a refusal, and what helps where the manager says nothing better.
fn by_kind(kind: FailureKind) -> (&'static str, Exit) {
    match kind {
        FailureKind::NotFound => ("see what there is: trivet volume list", Exit::NotFound),
        FailureKind::Exists => ("choose another name", Exit::Conflict),
        FailureKind::InUse | FailureKind::Conflict { .. } => ("look again and retry", Exit::Conflict),
        FailureKind::Invalid => ("correct it and try again", Exit::Usage),
        FailureKind::Replica => ("see which replica servers run, and why not: trivet status", Exit::Failed),
        FailureKind::NoSpace => ("free space on the disk of that replica, or in its pool", Exit::NoSpace),
        FailureKind::Data => ("see what is left: trivet volume list", Exit::Data),
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

/// The kinds of trouble in the data path, known by the words of its crates and of `strerror`: any of
/// the first and any of the second. The next step stands in where the error itself has none.
const TROUBLES: [(&[&str], &[&str], &str, Exit); 9] = [
    (
        &["io_uring"],
        &["forbid", "refuse", "not permitted", "lacks", "not implemented", "memory"],
        "io_uring must be allowed: sysctl kernel.io_uring_disabled, seccomp, Linux 5.15 or later",
        Exit::Machine,
    ),
    (&["O_DIRECT", "direct I/O"], &[""], "choose a folder on ext4, xfs or btrfs", Exit::Machine),
    (
        &["oo many open files"],
        &[""],
        "allow more open files: ulimit -n 4096 (LimitNOFILE= in systemd)",
        Exit::Machine,
    ),
    (
        &["Cannot allocate memory"],
        &[""],
        "allow more locked memory (ulimit -l 65536), or free some",
        Exit::Machine,
    ),
    (
        &["No space left", "no space", "is full", "has room for"],
        &[""],
        "free space on that file system (df -h), or choose another folder",
        Exit::NoSpace,
    ),
    (&["version "], &[""], "use the trivet version that made it; nothing was changed", Exit::Data),
    (
        &["in use"],
        &[""],
        "choose another address, or stop what uses it (ss -ltnp shows listeners)",
        Exit::Conflict,
    ),
    (
        &["no pool", "not a pool", "No such file"],
        &[""],
        "name a pool's folder, such as DIR/replica-1 of a cluster in DIR",
        Exit::NotFound,
    ),
    (&["checksum", "damaged", "does not open"], &[""], "see what is damaged: trivet check DIR", Exit::Data),
];

/// An error of the data path. Its text names the cause and, behind the last semicolon or in the
/// form of our own messages, often the next step.
pub(crate) fn data_path(what: impl std::fmt::Display, text: &str) -> Failure {
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let known = TROUBLES.iter().find(|(subject, words, ..)| has(subject) && has(words));
    let (step, exit) = known.map_or(("see the cause above", Exit::Failed), |&(.., step, exit)| (step, exit));
    match text.rsplit_once("; ") {
        Some((cause, own_step)) => Failure::new(what, cause, own_step).exit(exit),
        None => Failure::new(what, text, step).exit(exit),
    }
}

/// A process ended with one of our own messages, which its supervisor passes on in one line:
/// `it ended with exit code N: WHAT; cause: …; next: …`.
pub(crate) fn process(what: impl std::fmt::Display, text: &str) -> Failure {
    let Some((cause, next)) = text.rsplit_once("; next: ") else { return data_path(what, text) };
    let code = text.split_once("exit code ").and_then(|(_, rest)| rest.split(':').next()?.parse().ok());
    let exit = code.and_then(Exit::from_code).unwrap_or(Exit::Failed);
    Failure::new(what, cause.replace("; cause: ", ": "), next.trim_start()).exit(exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::CommandFactory;

    fn refused(kind: FailureKind, next: Option<&str>) -> Failure {
        let message = "volume 'a' is attached".to_owned();
        let error = ApiError::Refused { kind, message, next: next.map(str::to_owned) };
        api(Path::new("/c"), "cannot", &error)
    }

    #[test]
    fn a_refusal_has_an_exit_code_and_a_next_step_by_its_kind_or_its_own() {
        for (kind, usual, exit) in [
            (FailureKind::NotFound, "trivet volume list", Exit::NotFound),
            (FailureKind::Exists, "another name", Exit::Conflict),
            (FailureKind::InUse, "look again", Exit::Conflict),
            (FailureKind::Conflict { revision: 7 }, "look again", Exit::Conflict),
            (FailureKind::Invalid, "correct it", Exit::Usage),
            (FailureKind::Replica, "trivet status", Exit::Failed),
            (FailureKind::NoSpace, "free space", Exit::NoSpace),
            (FailureKind::Data, "trivet volume list", Exit::Data),
            (FailureKind::Internal, "/c/log/manager.log", Exit::Failed),
        ] {
            let (plain, own) = (refused(kind, None), refused(kind, Some("DIR NAME")));
            assert_eq!((plain.exit, own.exit), (exit, exit), "{plain}");
            assert!(plain.to_string().split("next:").nth(1).unwrap().contains(usual), "{plain}");
            assert!(own.to_string().ends_with("next:  DIR NAME"), "{own}");
        }
    }

    #[test]
    fn next_steps_name_commands_that_there_are() {
        let source = include_str!("../../manager/src/control/next_step.rs");
        let (advice, _tests) = source.split_once("#[cfg(test)]").unwrap();
        let words: Vec<&str> = advice.split_whitespace().filter(|word| *word != "\\").collect();
        let mut found = 0;
        for (at, word) in words.iter().enumerate() {
            if word.trim_start_matches(['(', '"']) != "trivet" {
                continue;
            }
            let (mut command, mut rest) = (Cli::command(), words[at + 1..].iter());
            while command.has_subcommands() {
                let name = rest.next().unwrap().split(|end: char| !end.is_alphabetic()).next().unwrap();
                let named = command.find_subcommand(name);
                command = named.unwrap_or_else(|| panic!("{:?}", &words[at..at + 4])).clone();
            }
            found += 1;
        }
        assert!(found > 40, "{found}");
    }

    #[test]
    fn known_troubles_have_next_steps_and_codes() {
        for (cause, word, exit) in [
            (
                "this host forbids io_uring (sysctl kernel.io_uring_disabled = 2); an administrator can allow it",
                "administrator",
                Exit::Machine,
            ),
            (
                "a security filter (seccomp) on this process forbids io_uring; run the container with",
                "container",
                Exit::Machine,
            ),
            (
                "no memory for an io_uring of 256 entries (RLIMIT_MEMLOCK is 0 bytes); raise the limit with ulimit -l",
                "ulimit -l",
                Exit::Machine,
            ),
            ("this kernel's io_uring lacks X; Trivet needs Linux 5.15", "5.15", Exit::Machine),
            ("/mnt/pool: its file system does not do O_DIRECT", "ext4", Exit::Machine),
            ("map store: open: Too many open files", "ulimit -n", Exit::Machine),
            (
                "too many open files (20 allowed for this process); raise the limit with ulimit -n",
                "ulimit -n",
                Exit::Machine,
            ),
            ("write: No space left on device (os error 28)", "df -h", Exit::NoSpace),
            ("the pool has version 99", "nothing was changed", Exit::Data),
            ("127.0.0.1:1: Address already in use (os error 98)", "ss -ltnp", Exit::Conflict),
            ("it does what it wants", "see the cause", Exit::Failed),
        ] {
            let failure = data_path("cannot", cause);
            assert_eq!(failure.exit, exit, "{failure}");
            assert!(failure.to_string().split("next:").nth(1).unwrap().contains(word), "{failure}");
        }
    }

    #[test]
    fn the_end_of_a_process_is_told_in_its_own_words() {
        let text = "it ended with exit code 6: cannot serve /p; cause: no memory; next:  ulimit -l 1";
        let failure = process("replica-1 does not start", text);
        assert_eq!(
            failure.to_string(),
            "error: replica-1 does not start\n  cause: it ended with exit code 6: cannot serve /p: no memory\n  next:  ulimit -l 1"
        );
        assert_eq!(failure.exit, Exit::Machine);
        assert_eq!(process("x", "it was killed by signal 9").exit, Exit::Failed);
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
