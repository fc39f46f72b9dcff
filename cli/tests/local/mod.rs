//! A local cluster with real processes, in a folder of its own.

#![allow(dead_code, reason = "each test binary uses its part")]

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);

/// A cluster in a folder of its own, stopped and removed in the end.
pub(crate) struct Cluster {
    pub(crate) temp: TempDir,
    pub(crate) dir: PathBuf,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        // Below the build's folder: /tmp may be a file system without O_DIRECT.
        let temp = tempfile::Builder::new().prefix("e2e").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let dir = temp.path().join("c");
        Self { temp, dir }
    }

    pub(crate) fn up(replicas: &str) -> Self {
        let cluster = Self::new();
        cluster.succeeds(&["up", "--replicas", replicas, "--size", "64MiB", "--capacity", "1GiB"]);
        cluster
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_trivet"))
            .args(arguments)
            .env("TRIVET_DIR", &self.dir)
            .env_remove("TRIVET_LOG")
            .output()
            .unwrap()
    }

    pub(crate) fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stderr), self.logs());
        text(&output.stdout)
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.succeeds(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    pub(crate) fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let output = self.run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        for word in words.iter().chain(&["next:"]) {
            assert!(said.contains(word), "{arguments:?} should say '{word}':\n{said}");
        }
    }

    pub(crate) fn uri(&self, volume: &str) -> String {
        self.json(&["volume", "show", volume])["uri"].as_str().unwrap().to_owned()
    }

    /// The pid in a process's lock file; waits for one that is just starting.
    pub(crate) fn pid(&self, process: &str) -> u32 {
        let path = self.dir.join("run").join(format!("{process}.lock"));
        self.wait_for(&format!("the pid of {process}"), || {
            std::fs::read_to_string(&path).ok()?.lines().next()?.parse().ok()
        })
    }

    pub(crate) fn wait_for<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let deadline = now() + SOON;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(now() < deadline, "waited in vain for {what}: {}", self.logs());
            std::thread::yield_now();
        }
    }

    /// Kills a process and waits until its supervisor has another that works.
    pub(crate) fn kill(&self, process: &str) {
        let pid = self.pid(process);
        assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
        self.wait_for(&format!("{process} to come back"), || {
            let status = self.json(&["status"]);
            (self.pid(process) != pid && status["healthy"] == true).then_some(())
        });
    }

    pub(crate) fn logs(&self) -> String {
        let Ok(entries) = std::fs::read_dir(self.dir.join("log")) else { return String::new() };
        let mut all = String::new();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            all +=
                &format!("\n--- {}\n{}", path.display(), lines[lines.len().saturating_sub(8)..].join("\n"));
        }
        all
    }

    pub(crate) fn running(&self) -> Vec<String> {
        let plan = self.succeeds(&["down", "--dry-run"]);
        plan.lines().filter_map(|line| line.strip_prefix("would stop ")).map(str::to_owned).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.dir.exists() {
            let down = self.run(&["down"]);
            if !down.status.success() {
                eprintln!("{}", text(&down.stderr));
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "bounds the waiting")]
fn now() -> Instant {
    Instant::now()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
