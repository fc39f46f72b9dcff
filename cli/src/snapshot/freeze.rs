//! Having file systems frozen, and programs told, while a snapshot is taken; and made to go on in any case.
//!
//! A guard of its own, which Ctrl-C does not reach, freezes the file systems when this process says so, and
//! holds a pipe from it. When the pipe ends, by the word of this process or because it is gone, or when that
//! takes too long, the guard thaws what it has frozen, nothing else, and runs what is to be run afterwards.
//! There is no other way in which these happen.
//!
//! One that takes too long to freeze holds up no others. It may be frozen yet, when whoever holds it up gets on: the
//! kernel does not let the program go before that, killed or not. The guard stays, alone, until then, and thaws it.

use super::{CreateArgs, GuardArgs};
use crate::failure::{Exit, Failure};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::time::Instant;

/// For how long file systems are frozen at most: whoever writes to one stands still meanwhile.
const FROZEN_MAX: Duration = Duration::from_secs(30);
/// Between looks at whether a program has ended.
const LOOK: Duration = Duration::from_millis(10);

/// What the guard is told: to freeze.
const FREEZE: &str = "freeze";
/// What the guard says: that it is there, that all are frozen, that one is not (and why), and that it has not
/// been told to end in time.
const READY: &str = "ready";
const FROZEN: &str = "frozen";
const REFUSED: &str = "refused: ";
const LATE: &str = "late";

/// What has been made to stand still.
#[derive(Debug)]
pub(super) struct Frozen {
    guard: Option<Guard>,
}

/// The process that makes all go on, as it is seen from this one.
#[derive(Debug)]
struct Guard {
    process: Child,
    says: BufReader<ChildStdout>,
}

impl Frozen {
    /// Runs what is to be run before, and freezes.
    pub(super) fn begin(arguments: &CreateArgs) -> Result<Self, Failure> {
        let CreateArgs { freeze, pre, post, .. } = arguments;
        if freeze.is_empty() && pre.is_none() && post.is_none() {
            return Ok(Self { guard: None });
        }
        let mut guard = Guard::start(freeze, post.as_deref())?;
        let begun = pre.as_ref().map_or(Ok(()), |pre| run("--pre", shell(pre)));
        let begun = begun.and_then(|()| if freeze.is_empty() { Ok(()) } else { guard.freeze() });
        match begun {
            Ok(()) => Ok(Self { guard: Some(guard) }),
            Err(failure) => {
                guard.leave();
                Err(failure)
            }
        }
    }

    /// Thaws, and runs what is to be run afterwards.
    pub(super) fn end(&mut self) -> Result<(), Failure> {
        self.guard.take().map_or(Ok(()), Guard::end)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(failure) = self.end() {
            failure.print();
        }
    }
}

impl Guard {
    fn start(freeze: &[PathBuf], post: Option<&str>) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| failed("the guard that thaws", &error.to_string());
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(["snapshot", "guard"]).args(freeze);
        command.args(post.iter().flat_map(|post| ["--post", post]));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut process = command.spawn().map_err(failed)?;
        let broken = || failed(std::io::ErrorKind::BrokenPipe.into());
        let says = BufReader::new(process.stdout.take().ok_or_else(broken)?);
        let mut guard = Self { process, says };
        if guard.listen().map_err(failed)? == READY { Ok(guard) } else { Err(broken()) }
    }

    /// Its next word; none when it has ended.
    fn listen(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn freeze(&mut self) -> Result<(), Failure> {
        let asked = self.process.stdin.as_mut().map_or(Ok(()), |stdin| writeln!(stdin, "{FREEZE}"));
        let said = asked.and_then(|()| self.listen());
        match said.map_err(|error| failed("--freeze", &error.to_string()))?.as_str() {
            FROZEN => Ok(()),
            said => Err(failed("--freeze", said.strip_prefix(REFUSED).unwrap_or("the guard has ended"))),
        }
    }

    /// Has it thaw, and run what is to be run afterwards; until that is done. What it said.
    fn finish(&mut self) -> String {
        drop(self.process.stdin.take());
        let mut said = String::new();
        match self.says.read_to_string(&mut said) {
            Ok(_) => said,
            Err(error) => error.to_string(),
        }
    }

    /// The same after a failure, which is what counts. It may have a file system to wait for: that is left to it.
    fn leave(mut self) {
        let said = self.finish();
        tracing::debug!(said, "the guard is left to itself");
    }

    /// Ends it.
    fn end(mut self) -> Result<(), Failure> {
        let said = self.finish();
        let status = self.process.wait().map_err(|error| failed("--freeze", &error.to_string()))?;
        if said.contains(LATE) {
            return Err(Failure::new(
                format!("file systems were frozen for {} s, and then made to go on", FROZEN_MAX.as_secs()),
                "the snapshot has not been taken in time: if there is one, it is as after a loss of power",
                "look for it: trivet snapshot list; delete it, and try again when the cluster is well",
            ));
        }
        ended("what comes after the snapshot", status)
    }
}

/// The guard: freezes when it is told to, waits for the end of its input, though not for ever, and has all go
/// on.
pub(super) fn guard(arguments: &GuardArgs) -> Result<(), Failure> {
    tell(READY);
    let (said, words) = mpsc::channel();
    std::thread::spawn(move || {
        // Whether by an end or an error, nobody says anything more.
        let mut lines = std::io::stdin().lines().map_while(Result::ok);
        while lines.next().is_some_and(|line| said.send(line).is_ok()) {}
    });
    let mut done = Freezing::default();
    // Until it is told to freeze it waits for ever: what is run before takes as long as it takes.
    let mut patience = Duration::MAX;
    loop {
        match words.recv_timeout(patience) {
            Ok(word) if word == FREEZE => {
                let until = Instant::now() + FROZEN_MAX;
                done = freeze(&arguments.paths, until, &words);
                tell(
                    &done.refused.as_ref().map_or_else(|| FROZEN.to_owned(), |why| format!("{REFUSED}{why}")),
                );
                patience = until.saturating_duration_since(Instant::now());
            }
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                tell(LATE);
                break;
            }
        }
    }
    let thaw = |path: &PathBuf| run("thawing", fsfreeze("--unfreeze", path));
    let thawed: Vec<Result<(), Failure>> = done.frozen.iter().rev().map(thaw).collect();
    let after = arguments.post.as_ref().map_or(Ok(()), |post| run("--post", shell(post)));
    if let Some(doubtful) = done.doubtful {
        doubtful.thaw_when_known();
    }
    thawed.into_iter().collect::<Result<(), Failure>>().and(after)
}

/// What has become of freezing.
#[derive(Default, Debug)]
struct Freezing<'a> {
    frozen: &'a [PathBuf],
    doubtful: Option<Doubtful<'a>>,
    /// Why not all are frozen.
    refused: Option<String>,
}

/// Freezes one after the other, until one cannot be, there is no time left, or nobody waits for it any more: the
/// others stand still meanwhile.
fn freeze<'a>(paths: &'a [PathBuf], until: Instant, words: &Receiver<String>) -> Freezing<'a> {
    for (at, path) in paths.iter().enumerate() {
        let mut command = fsfreeze("--freeze", path);
        let (doubtful, why) = match ends(&mut command, until, words) {
            Ok(Ended::With(status)) if status.success() => continue,
            Ok(Ended::With(status)) => (None, format!("{command:?} ended with {status}")),
            Ok(Ended::Killed(process)) => {
                (Some(Doubtful { path, process }), format!("{command:?} did not end in time"))
            }
            Err(error) => (None, format!("{command:?}: {error}")),
        };
        return Freezing { frozen: &paths[..at], doubtful, refused: Some(why) };
    }
    Freezing { frozen: paths, doubtful: None, refused: None }
}

/// A file system that was not frozen in time. It may be frozen yet.
#[derive(Debug)]
struct Doubtful<'a> {
    path: &'a Path,
    process: Child,
}

impl Doubtful<'_> {
    /// Thaws it when the kernel has come to an end with freezing it, which may take as long as the volume below
    /// stands still. Nothing is said of that any more: nobody waits for it.
    fn thaw_when_known(mut self) {
        if let Err(error) = let_go_of_output() {
            tracing::debug!(%error, "whoever reads what the guard says waits for its end");
        }
        let frozen = self.process.wait();
        let thawed = fsfreeze("--unfreeze", self.path).stdin(Stdio::null()).stderr(Stdio::null()).status();
        tracing::debug!(?frozen, ?thawed, path = ?self.path, "thawed in case it was frozen");
    }
}

/// Has whoever reads this process's output and errors see their end.
fn let_go_of_output() -> std::io::Result<()> {
    let nothing = std::fs::File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&nothing)?;
    Ok(rustix::stdio::dup2_stderr(&nothing)?)
}

/// What has become of a program.
enum Ended {
    With(ExitStatus),
    /// It had to be killed; where the kernel does not let it go, it goes on all the same until it does.
    Killed(Child),
}

/// Runs a program until then at most, and as long as somebody may say something.
fn ends(command: &mut Command, until: Instant, words: &Receiver<String>) -> std::io::Result<Ended> {
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    loop {
        if let Some(status) = process.try_wait()? {
            return Ok(Ended::With(status));
        }
        let alone = words.recv_timeout(LOOK) == Err(RecvTimeoutError::Disconnected);
        if alone || Instant::now() >= until {
            process.kill()?;
            return Ok(Ended::Killed(process));
        }
    }
}

/// To whoever started the guard, who may be gone.
fn tell(word: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{word}").and_then(|()| out.flush()).is_err() {
        tracing::debug!("nobody waits for the guard");
    }
}

fn shell(text: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", text]);
    command
}

fn fsfreeze(option: &str, path: &Path) -> Command {
    let mut command = Command::new("fsfreeze");
    command.arg(option).arg(path);
    command
}

fn run(what: &str, mut command: Command) -> Result<(), Failure> {
    // Standard output is for what was asked; a hook's words go beside it.
    let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).output();
    let output = output.map_err(|error| failed(what, &format!("{command:?}: {error}")))?;
    eprint!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ended(&format!("{what} ({command:?})"), output.status)
}

fn ended(what: &str, status: ExitStatus) -> Result<(), Failure> {
    if status.success() { Ok(()) } else { Err(failed(what, &format!("it ended with {status}"))) }
}

fn failed(what: &str, cause: &str) -> Failure {
    let next = "correct it and try again; `fsfreeze --unfreeze PATH` makes a file system go on";
    Failure::new(format!("{what} failed"), cause, next).exit(Exit::Failed)
}
