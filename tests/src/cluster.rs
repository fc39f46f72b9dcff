//! A local cluster in a directory of its own, as `trivet up` makes it.

use crate::blockdev::Mount;
use crate::command::{self, Outcome};
use crate::process::{self, Process, Role};
use crate::{NbdClient, Scratch, patience};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The binary under test: `$TRIVET_BIN`, else `trivet` in the folder of this executable, or above it for
/// a test (`target/release/deps/…`), where `cargo build` puts it.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn binary() -> PathBuf {
    let path = std::env::var_os("TRIVET_BIN").map_or_else(
        || {
            let own = std::env::current_exe().expect("a process knows its executable");
            let folder = own.parent().expect("target/release");
            // Tests are one folder deeper.
            let folder = if folder.ends_with("deps") { folder.parent().expect("release") } else { folder };
            folder.join("trivet")
        },
        PathBuf::from,
    );
    path.canonicalize().unwrap_or_else(|e| {
        panic!(
            "{}: {e}. Build it first: cargo build --release (make test does), or set TRIVET_BIN",
            path.display()
        )
    })
}

/// A `trivet` command with no cluster chosen.
#[must_use]
pub fn trivet() -> Command {
    let mut command = Command::new(binary());
    command.env_remove("TRIVET_DIR").env_remove("TRIVET_LOG");
    command
}

/// What a cluster is to be like.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Replica servers.
    pub replicas: u32,
    /// Of volume `disk0`.
    pub size: String,
    /// More options of `trivet up`.
    pub options: Vec<String>,
    /// What the manager starts the other processes with, in place of `trivet` itself.
    pub launcher: Option<PathBuf>,
    /// The network namespace in which commands run, and so the manager.
    pub namespace: Option<PathBuf>,
}

impl Setup {
    /// A plain cluster.
    #[must_use]
    pub fn new(replicas: u32, size: &str) -> Self {
        Self { replicas, size: size.to_owned(), options: Vec::new(), launcher: None, namespace: None }
    }
}

/// A cluster. Dropping it stops it, kills what did not stop, and removes its directory.
#[derive(Debug)]
pub struct Cluster {
    // Unmounted before the directory is removed.
    small_disks: Vec<Mount>,
    scratch: Scratch,
    directory: PathBuf,
    setup: Setup,
    uri: String,
}

impl Cluster {
    /// Starts a cluster with volume `disk0` of `size` on `replicas` replicas.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(replicas: u32, size: &str) -> Self {
        Self::start_as(Setup::new(replicas, size))
    }

    /// Starts a cluster of this kind.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_as(setup: Setup) -> Self {
        let scratch = Scratch::new();
        let directory = scratch.join("c");
        Self::start_in(scratch, directory, setup)
    }

    /// The same in a directory of the caller's choice, which may not exist yet.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_in(scratch: Scratch, directory: PathBuf, setup: Setup) -> Self {
        let mut cluster = Self { small_disks: Vec::new(), scratch, directory, setup, uri: String::new() };
        cluster.uri = cluster.up();
        cluster
    }

    /// `trivet up`: brings up whatever does not run. Answers the volume's URI.
    ///
    /// # Panics
    /// When it fails, or prints no URI, or another than before.
    pub fn up(&self) -> String {
        let replicas = self.setup.replicas.to_string();
        let mut arguments = vec!["up", "--replicas", &replicas, "--size", &self.setup.size];
        arguments.extend(self.setup.options.iter().map(String::as_str));
        let outcome = self.trivet(&arguments).succeeded();
        let uri = uri_in(&outcome);
        assert!(self.uri.is_empty() || self.uri == uri, "the URI was {}, then {uri}", self.uri);
        uri
    }

    /// `trivet down`.
    ///
    /// # Panics
    /// When it fails or leaves a process behind.
    pub fn down(&self) {
        let outcome = self.trivet(&["down"]).succeeded();
        patience::wait_for(&format!("no process to be left after {outcome}"), patience::SOON, || {
            self.processes().is_empty().then_some(())
        });
    }

    /// Runs `trivet` on this cluster.
    ///
    /// # Panics
    /// When it does not end soon.
    #[must_use]
    pub fn trivet(&self, arguments: &[&str]) -> Outcome {
        let mut trivet = match &self.setup.namespace {
            None => trivet(),
            Some(namespace) => {
                let mut enter = Command::new("nsenter");
                enter.arg(format!("--net={}", namespace.display())).arg(binary()).env_remove("TRIVET_LOG");
                enter
            }
        };
        trivet.args(arguments).env("TRIVET_DIR", &self.directory);
        if let Some(launcher) = &self.setup.launcher {
            trivet.env("TRIVET_LAUNCHER", launcher);
        }
        command::run(&mut trivet, 3 * patience::SOON)
    }

    /// Runs `trivet … -o json` and parses what it prints.
    ///
    /// # Panics
    /// When it fails or prints no JSON.
    #[must_use]
    pub fn trivet_json(&self, arguments: &[&str]) -> serde_json::Value {
        let outcome = self.trivet(&[arguments, &["-o", "json"]].concat()).succeeded();
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("not JSON: {e}: {outcome}"))
    }

    /// The URI of volume `disk0`.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// A new connection to a volume that is attached.
    ///
    /// # Panics
    /// When it is not, or nobody listens.
    #[must_use]
    pub fn connect_to(&self, volume: &str) -> NbdClient {
        let shown = self.trivet_json(&["volume", "show", volume]);
        let uri = shown["uri"].as_str().unwrap_or_else(|| panic!("{volume} is not attached: {shown}"));
        NbdClient::connect(uri).unwrap_or_else(|e| panic!("cannot connect to {uri}: {e}"))
    }

    /// A new connection to volume `disk0`.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn connect(&self) -> NbdClient {
        NbdClient::connect(&self.uri).unwrap_or_else(|e| panic!("cannot connect to {}: {e}", self.uri))
    }

    /// The members of `disk0`, by the names of their servers, and their states as its record has them:
    /// `in-sync`, `syncing` or `stale`.
    ///
    /// # Panics
    /// When the volume cannot be shown.
    #[must_use]
    pub fn members(&self) -> Vec<(String, String)> {
        let shown = self.trivet_json(&["volume", "show", "disk0"]);
        let members = shown["members"].as_array().unwrap_or_else(|| panic!("no members: {shown}"));
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
        members.iter().map(|member| (text(&member["name"]), text(&member["state"]))).collect()
    }

    /// The states of `disk0`'s members.
    ///
    /// # Panics
    /// When the volume cannot be shown.
    #[must_use]
    pub fn member_states(&self) -> Vec<String> {
        self.members().into_iter().map(|(_, state)| state).collect()
    }

    /// Waits until every member is in sync and the volume serves.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_until_in_sync(&self) {
        patience::wait_for("every member to be in sync", 6 * patience::SOON, || {
            self.member_states().iter().all(|state| state == "in-sync").then_some(())
        });
    }

    /// Waits until a member is not in sync any more.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_until_one_is_left_behind(&self) {
        self.wait_until_left_behind(1);
    }

    /// Waits until so many members are not in sync any more.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_until_left_behind(&self, count: usize) {
        patience::wait_for(&format!("{count} members to be dropped"), 2 * patience::SOON, || {
            (self.member_states().iter().filter(|state| *state != "in-sync").count() >= count).then_some(())
        });
    }

    /// The cluster's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The test's scratch directory, which the cluster's lies in.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The pool directories, in order.
    #[must_use]
    pub fn pools(&self) -> Vec<PathBuf> {
        (1..=self.setup.replicas).map(|n| self.directory.join(format!("replica-{n}"))).collect()
    }

    /// Has the stopped server of `replica-NUMBER` lie on a file system in memory of so many bytes.
    ///
    /// # Panics
    /// When that cannot be done; see [`obstacle_to_memory_disks`](crate::blockdev::obstacle_to_memory_disks).
    pub fn move_to_small_disk(&mut self, number: usize, bytes: u64) {
        self.small_disks.push(Mount::under(&self.pools()[number - 1], bytes));
    }

    /// The file systems in memory, as they were made.
    #[must_use]
    pub fn small_disks(&self) -> &[Mount] {
        &self.small_disks
    }

    /// Its running processes.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        process::of_cluster(&binary(), &self.directory)
    }

    /// The running server of the pool in `replica-NUMBER`.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn replica(&self, number: usize) -> Process {
        let folder = self.directory.join(format!("replica-{number}"));
        let found = self.processes().into_iter().find(|process| process.names(&folder));
        found.unwrap_or_else(|| panic!("replica-{number} does not run"))
    }

    /// Its running processes of one role.
    ///
    /// # Panics
    /// When there is none: a test that kills nothing proves nothing.
    #[must_use]
    pub fn processes_of(&self, role: Role) -> Vec<Process> {
        let all = self.processes();
        let found: Vec<Process> = all.iter().filter(|process| process.is(role)).cloned().collect();
        assert!(!found.is_empty(), "no {role:?} runs, only {all:?}");
        found
    }
}

fn uri_in(outcome: &Outcome) -> String {
    let end = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`');
    let found = outcome.stdout.split(end).find(|word| word.starts_with("nbd+unix://"));
    found.unwrap_or_else(|| panic!("it should print the volume's nbd+unix:// URI: {outcome}")).to_owned()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        process::kill_hard(&self.processes());
    }
}

impl Cluster {
    /// The last lines of each log: what one wants to see first when a test has failed.
    fn show_logs(&self) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        let folders = entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_dir());
        let files =
            std::iter::once(self.directory.clone()).chain(folders).filter_map(|f| std::fs::read_dir(f).ok());
        for path in files.flatten().filter_map(Result::ok).map(|entry| entry.path()) {
            if path.extension().is_some_and(|e| e == "log")
                && let Ok(text) = std::fs::read_to_string(&path)
            {
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- {}\n{}", path.display(), lines[lines.len().saturating_sub(20)..].join("\n"));
            }
        }
    }
}
