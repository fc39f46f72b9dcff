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
        FailureKind::NotFound if message.contains("there is no replica server") => {
            ("see which there are: trivet status", Exit::NotFound)
        }
        FailureKind::InUse if message.contains("is a golden image") => (
            "clone it: trivet volume clone NAME NEW; or make it a usual volume: trivet volume unseal NAME",
            Exit::Conflict,
        ),
        FailureKind::InUse if message.contains("flatten it first") => {
            ("flatten it: trivet volume flatten NAME; then clone it", Exit::Conflict)
        }
        FailureKind::InUse if message.contains("was not closed in good order") => {
            ("attach it, which makes them alike: trivet volume attach NAME; then try again", Exit::Conflict)
        }
        FailureKind::Invalid if message.contains("a clone shares with it there") => {
            ("choose servers without a copy of it, or say --full: trivet volume show NAME", Exit::Usage)
        }
        FailureKind::NotFound if message.contains("has no copy on") => {
            ("see which servers have one: trivet volume show NAME", Exit::NotFound)
        }
        FailureKind::Exists if message.contains("has a copy on") => {
            ("choose another server, or none; see them: trivet volume show NAME", Exit::Conflict)
        }
        FailureKind::InUse if message.contains("only copy of") => {
            ("add another first, and wait until it is in sync: trivet replica add NAME", Exit::Conflict)
        }
        FailureKind::InUse if message.contains("would answer") => {
            ("bring another server back first: trivet volume show NAME says why it is away", Exit::Conflict)
        }
        FailureKind::InUse if message.contains("is being replaced") => {
            ("wait until that is done: trivet volume show NAME says how far it is", Exit::Conflict)
        }
        FailureKind::InUse if message.contains("still uses the old copy") => {
            ("try again in a few seconds, or choose another server", Exit::Conflict)
        }
        FailureKind::InUse if message.contains("nothing to salvage") => {
            ("attach it: trivet volume attach NAME; --force salvages all the same", Exit::Conflict)
        }
        FailureKind::Replica if message.contains("has room for one") => {
            ("start the servers that are down, or free space: trivet status shows them", Exit::Failed)
        }
        FailureKind::Invalid if message.contains("key was not given") => {
            ("give the key that it was made with: trivet volume attach --help lists how", Exit::Usage)
        }
        FailureKind::Invalid if message.contains("not unlocked") => {
            ("attach it with its key first: trivet volume attach NAME --key-file FILE", Exit::Usage)
        }
        FailureKind::Invalid if message.contains("is not that of volume") => {
            ("give the key that the volume was made with", Exit::Usage)
        }
        FailureKind::Invalid if message.contains("is not encrypted") => ("leave the key out", Exit::Usage),
        FailureKind::Invalid if message.contains("has been destroyed") => {
            ("delete the rest of it: trivet volume delete NAME", Exit::Data)
        }
        FailureKind::NotFound if message.contains("has no snapshot") => {
            ("see what there is: trivet snapshot list NAME", Exit::NotFound)
        }
        FailureKind::NotFound => ("see what there is: trivet volume list", Exit::NotFound),
        FailureKind::Exists if message.contains("has a snapshot") => {
            ("choose another name, or delete it: trivet snapshot list NAME", Exit::Conflict)
        }
        FailureKind::Exists => ("choose another name, or see it: trivet volume show NAME", Exit::Conflict),
        FailureKind::InUse if message.contains("is being encrypted anew already") => {
            ("wait until that is done: trivet volume show NAME says how far it is", Exit::Conflict)
        }
        FailureKind::InUse if message.contains("is going over to another data key") => (
            "wait a moment; if it stays so, go on with it: trivet volume rekey NAME --data, with its key",
            Exit::Conflict,
        ),
        FailureKind::InUse if message.contains("older data keys already") => (
            "delete the oldest of its snapshots (trivet snapshot list NAME), and see that all copies are in sync \
                 (trivet volume show NAME)",
            Exit::Conflict,
        ),
        FailureKind::InUse if message.contains("would need an older data key") => (
            "clone the volume as it is once all is encrypted anew (trivet volume show NAME says when), or export \
             that snapshot and import it into a new volume",
            Exit::Conflict,
        ),
        FailureKind::Internal if message.contains("has not gone over to its new data key yet") => (
            "it does as soon as its engine can; trivet volume show NAME says so; the same command goes on with it",
            Exit::Failed,
        ),
        FailureKind::InUse if message.contains("is not attached for writing") => (
            "attach it first: trivet volume attach NAME; if it is attached for reading only, detach it before",
            Exit::Conflict,
        ),
        FailureKind::InUse if message.contains("writes were not held") || message.contains("opened anew") => {
            ("nothing was taken of any volume; try again", Exit::Conflict)
        }
        FailureKind::InUse if message.contains("is being reverted") => (
            "wait until that is done: trivet volume show NAME says how far it is, and what it waits for",
            Exit::Conflict,
        ),
        FailureKind::InUse if message.contains("as many snapshots as") => (
            "delete one that you do not need: trivet snapshot list NAME; or let it have more: trivet volume set \
                 NAME --snapshot-limit N",
            Exit::Conflict,
        ),
        FailureKind::InUse if message.contains("' is exported") => (
            "end that first: trivet snapshot unexport NAME SNAPSHOT; see them: trivet volume show NAME",
            Exit::Conflict,
        ),
        FailureKind::InUse if message.contains("this is another source") => (
            "name one with the same content, wherever it is now; or another volume; or delete this one, with all that \
                 was written to it: trivet volume delete NAME",
            Exit::Conflict,
        ),
        FailureKind::InUse if message.contains("is still being imported") => (
            "wait until that is done: trivet volume show NAME says how far it is; while it is not attached, it \
                 rests: trivet volume attach NAME",
            Exit::Conflict,
        ),
        FailureKind::InUse if message.contains("was still being imported") => (
            "delete it and import it again: its source has all but what was written since: trivet volume delete NAME",
            Exit::Conflict,
        ),
        FailureKind::InUse if message.contains("only a new one can be imported at once") => {
            ("name a volume that does not exist yet, or leave --instant away", Exit::Conflict)
        }
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
        FailureKind::Internal if message.contains("may not be in force yet") => (
            "its engine follows by itself once it can: trivet volume show NAME says what it waits for",
            Exit::Failed,
        ),
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
