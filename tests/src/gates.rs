//! Processes that start only when they are told to: a launcher that waits at a gate.

use crate::{Scratch, cluster, launcher};
use std::fs;
use std::path::PathBuf;

/// A gate for each process of a cluster but the manager, by its name (`replica-1`, `engine-disk0`).
#[derive(Debug)]
pub struct Gates {
    scratch: Scratch,
}

impl Gates {
    /// Gates that are all open.
    ///
    /// # Panics
    /// When no script can be written.
    #[must_use]
    pub fn new() -> Self {
        let gates = Self { scratch: Scratch::new() };
        let folder = gates.scratch.path().to_string_lossy().into_owned();
        let body = format!(
            "while [ -e '{folder}/'\"$name\" ]; do sleep 0.02; done\nexec '{}' \"$@\"\n",
            cluster::binary().display()
        );
        launcher::write(&gates.launcher(), &body);
        gates
    }

    /// What the cluster is to be started with.
    #[must_use]
    pub fn launcher(&self) -> PathBuf {
        self.scratch.join("launcher")
    }

    /// From now on no process of this name starts.
    ///
    /// # Panics
    /// When the gate cannot be made.
    pub fn close(&self, name: &str) {
        fs::write(self.scratch.join(name), "").expect("a file can be written");
    }

    /// Lets the process of this name start.
    ///
    /// # Panics
    /// When the gate is not closed.
    pub fn open(&self, name: &str) {
        fs::remove_file(self.scratch.join(name)).expect("the gate is closed");
    }
}

impl Default for Gates {
    fn default() -> Self {
        Self::new()
    }
}
