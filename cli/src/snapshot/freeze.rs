//! Having file systems frozen, and programs told, while a snapshot is taken; and made to go on in any case.
//!
//! A guard of its own, which Ctrl-C does not reach, holds a pipe from this process. When the pipe ends, by
//! the word of this process or because it is gone, or when that takes too long, the guard thaws what was to
//! be frozen and runs what was to be run afterwards. There is no other way in which these happen.

use super::{CreateArgs, ThawArgs};
use crate::failure::{Exit, Failure};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// For how long file systems are frozen at most: whoever writes to one stands still meanwhile.
const FROZEN_MAX: Duration = Duration::from_secs(30);
/// What the guard says when it is there, and when it has not been told to end in time.
const READY: &str = "ready";
const LATE: &str = "late";

/// What has been made to stand still.
#[derive(Debug)]
pub(super) struct Frozen {
    guard: Option<Child>,
}

impl Frozen {
    /// Runs what is to be run before, and freezes.
    pub(super) fn begin(arguments: &CreateArgs) -> Result<Self, Failure> {
        let CreateArgs { freeze, pre, post, .. } = arguments;
        if freeze.is_empty() && pre.is_none() && post.is_none() {
            return Ok(Self { guard: None });
        }
        let mut frozen = Self { guard: Some(start_guard(freeze, post.as_deref())?) };
        let begun = pre.as_ref().map_or(Ok(()), |pre| run("--pre", shell(pre)));
        let begun = begun
            .and_then(|()| freeze.iter().try_for_each(|path| run("--freeze", fsfreeze("--freeze", path))));
        match begun {
            Ok(()) => Ok(frozen),
            Err(failure) => {
                // What went wrong first is what counts.
                drop(frozen.end());
                Err(failure)
            }
        }
    }

    /// Thaws, and runs what is to be run afterwards.
    pub(super) fn end(&mut self) -> Result<(), Failure> {
        let Some(mut guard) = self.guard.take() else { return Ok(()) };
        drop(guard.stdin.take());
        let mut said = String::new();
        if let Some(stdout) = &mut guard.stdout
            && let Err(error) = stdout.read_to_string(&mut said)
        {
            said = error.to_string();
        }
        let status = guard.wait().map_err(|error| failed("--freeze", &error.to_string()))?;
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

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(failure) = self.end() {
            failure.print();
        }
    }
}

fn start_guard(freeze: &[PathBuf], post: Option<&str>) -> Result<Child, Failure> {
    let failed = |error: std::io::Error| failed("the guard that thaws", &error.to_string());
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["snapshot", "thaw"]).args(freeze);
    command.args(post.iter().flat_map(|post| ["--post", post]));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
    let mut guard = command.spawn().map_err(failed)?;
    let mut line = String::new();
    if let Some(stdout) = guard.stdout.take() {
        let mut reader = BufReader::new(stdout);
        reader.read_line(&mut line).map_err(failed)?;
        guard.stdout = Some(reader.into_inner());
    }
    if line.trim_end() == READY { Ok(guard) } else { Err(failed(std::io::ErrorKind::BrokenPipe.into())) }
}

/// The guard: waits for the end of its input, though not for ever, and has all go on.
pub(super) fn guard(arguments: &ThawArgs) -> Result<(), Failure> {
    tell(READY);
    let (ended, wait) = mpsc::channel();
    std::thread::spawn(move || {
        let read = std::io::stdin().lock().read_to_end(&mut Vec::new());
        // Whether by an end or an error, nobody says anything more.
        if ended.send(read.is_ok()).is_err() {
            tracing::debug!("the guard has not waited");
        }
    });
    if wait.recv_timeout(FROZEN_MAX).is_err() {
        tell(LATE);
    }
    let thawed: Vec<Result<(), Failure>> =
        arguments.paths.iter().map(|path| run("thawing", fsfreeze("--unfreeze", path))).collect();
    let after = arguments.post.as_ref().map_or(Ok(()), |post| run("--post", shell(post)));
    thawed.into_iter().collect::<Result<(), Failure>>().and(after)
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
