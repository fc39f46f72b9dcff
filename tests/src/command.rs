//! Running programs to their end, with a bound on the time.

use crate::patience;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// What a program did.
#[derive(Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// The same, having checked that it succeeded.
    ///
    /// # Panics
    /// When it did not; with all that it printed.
    #[must_use]
    pub fn succeeded(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// The same, having checked that it failed in good order: an exit code, no panic and no signal,
    /// and something on standard error that contains each of `words`, in any case.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    pub fn failed_saying(self, words: &[&str]) -> Self {
        let code = self.status.code();
        assert!(
            code.is_some_and(|code| code != 0 && code != 101),
            "it should have failed with a code: {self}"
        );
        let said = self.stderr.to_lowercase();
        assert!(!said.contains("panicked"), "a panic is no error message: {self}");
        for word in words {
            assert!(said.contains(&word.to_lowercase()), "standard error should say '{word}': {self}");
        }
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { line, status, stdout, stderr } = self;
        write!(f, "{line}: {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started, runs longer than `bound`, or leaves its output open in a process that
/// it started: a shell's `$(…)` would hang on that.
pub fn run(command: &mut Command, bound: Duration) -> Outcome {
    run_with(command, Stdio::null(), bound)
}

/// The same, with something on its standard input.
///
/// # Panics
/// As [`run`].
pub fn run_saying(command: &mut Command, input: &[u8], bound: Duration) -> Outcome {
    let (reader, mut writer) = std::io::pipe().expect("the system gives a pipe");
    // A pipe holds 64 KiB: nobody need read meanwhile.
    assert!(input.len() < 64 << 10, "more than fits a pipe");
    writer.write_all(input).expect("there is room");
    drop(writer);
    run_with(command, reader.into(), bound)
}

fn run_with(command: &mut Command, input: Stdio, bound: Duration) -> Outcome {
    let line = format!("{command:?}");
    let mut child = command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {line}: {e}"));
    let stdout = collect(child.stdout.take().expect("it is piped"));
    let stderr = collect(child.stderr.take().expect("it is piped"));
    let deadline = patience::now() + bound;
    let status = patience::wait_for(&line, bound + Duration::from_secs(5), || {
        if patience::now() >= deadline {
            child.kill().unwrap_or_else(|e| panic!("cannot kill {line}: {e}"));
            child.wait().unwrap_or_else(|e| panic!("cannot wait for {line}: {e}"));
            panic!("{line} did not end within {bound:?}");
        }
        child.try_wait().unwrap_or_else(|e| panic!("cannot wait for {line}: {e}"))
    });
    let text = |receiver: mpsc::Receiver<Vec<u8>>| {
        let bytes = receiver
            .recv_timeout(patience::SOON)
            .unwrap_or_else(|_| panic!("{line} ended, but a process that it started holds its output open"));
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    Outcome { line, status, stdout, stderr }
}

fn collect(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A broken pipe ends the text; what was read until then is still worth showing.
        if let Err(error) = pipe.read_to_end(&mut bytes) {
            bytes.extend_from_slice(format!("\n(reading the output: {error})").as_bytes());
        }
        // The receiver is gone only when the test has failed already.
        drop(sender.send(bytes));
    });
    receiver
}

/// Runs a program with arguments and checks that it succeeded.
///
/// # Panics
/// When it did not, or ran longer than [`patience::LONG`].
pub fn must<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Outcome {
    run(Command::new(program).args(arguments), patience::LONG).succeeded()
}

/// Whether a program is found in `PATH` or the folders of administrators.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|folder| folder.join(program).is_file())
}
