//! What the user is told when a command fails: what happened, the cause, the next step; and the
//! exit code for scripts.

use std::fmt::Display;

/// Exit codes; documented in `trivet --help`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It failed in a way that has no code of its own.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// What was named is not there.
    NotFound = 3,
    /// It exists already, or is in use.
    Conflict = 4,
    /// The manager does not answer.
    Unreachable = 5,
    /// This machine lacks something: `io_uring`, `O_DIRECT`, file handles, locked memory.
    Machine = 6,
    /// Data is damaged or of another version.
    Data = 7,
    /// No space is left.
    NoSpace = 8,
}

impl Exit {
    /// The meaning of another trivet process's exit code.
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        use Exit::{Conflict, Data, Failed, Machine, NoSpace, NotFound, Unreachable, Usage};
        let all = [Failed, Usage, NotFound, Conflict, Unreachable, Machine, Data, NoSpace];
        all.into_iter().find(|exit| *exit as u8 == code)
    }
}

/// What `trivet --help` says of the codes.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line makes no sense
  3  what was named does not exist (volume, cluster, pool)
  4  it exists already, or is in use
  5  the manager does not answer: bring the cluster up
  6  this machine lacks something (io_uring, O_DIRECT, file handles, locked memory)
  7  data is damaged, or of another version
  8  no space left";

/// A failed command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    what: String,
    cause: String,
    next: String,
    /// Its exit code.
    pub(crate) exit: Exit,
}

impl Failure {
    /// What happened, why, and what to do now.
    pub(crate) fn new(what: impl Display, cause: impl Display, next: impl Display) -> Self {
        let (what, cause, next) = (what.to_string(), cause.to_string(), next.to_string());
        Self { what, cause, next, exit: Exit::Failed }
    }

    /// With this exit code.
    pub(crate) fn exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// With the place where more is said.
    pub(crate) fn with_log(self, log: &str) -> Self {
        let next =
            if self.next.is_empty() { format!("read {log}") } else { format!("{}; log: {log}", self.next) };
        Self { next, ..self }
    }

    /// To standard error. The supervisor looks for `error: ` at the beginning of a line in logs.
    pub(crate) fn print(&self) {
        eprintln!("{self}");
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "error: {}", self.what)?;
        if !self.cause.is_empty() {
            write!(f, "\n  cause: {}", self.cause)?;
        }
        if !self.next.is_empty() {
            write!(f, "\n  next:  {}", self.next)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_lines_say_what_why_and_what_now() {
        let failure = Failure::new("cannot start", "no port", "free it");
        assert_eq!(failure.to_string(), "error: cannot start\n  cause: no port\n  next:  free it");
    }

    #[test]
    fn the_help_documents_every_code() {
        use Exit::{Conflict, Data, Failed, Machine, NoSpace, NotFound, Unreachable, Usage};
        for exit in [Failed, Usage, NotFound, Conflict, Unreachable, Machine, Data, NoSpace] {
            let line = format!("\n  {}  ", exit as u8);
            assert!(EXIT_CODES.contains(&line), "{exit:?}");
        }
    }
}
