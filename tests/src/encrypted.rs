//! A cluster with an encrypted volume.

use crate::cluster::trivet;
use crate::command::{self, Outcome};
use crate::{Cluster, NbdClient, Random, Role, patience, process};
use std::fs;
use std::path::{Path, PathBuf};

const BLOCKS: usize = 64;

/// A cluster with an encrypted volume `secret` of 64 MiB, which the file `key` unlocks, and `other` does not.
#[derive(Debug)]
pub struct Encrypted {
    /// The cluster; its plain volume is there, too.
    pub cluster: Cluster,
    /// What is in `key`.
    pub key: Vec<u8>,
    /// What [`Encrypted::fill`] writes to the volume's beginning.
    pub data: Vec<u8>,
}

impl Encrypted {
    /// Such a cluster, with the volume detached.
    ///
    /// # Panics
    /// When it does not start.
    #[allow(clippy::new_without_default, reason = "it starts processes")]
    #[must_use]
    pub fn new() -> Self {
        let cluster = Cluster::start(2, "64MiB");
        let (mut key, mut data) = (vec![0; 32], vec![0; BLOCKS * 4096]);
        Random::new(7).fill(&mut key);
        Random::new(8).fill(&mut data);
        fs::write(cluster.scratch().join("key"), &key).expect("a key file");
        fs::write(cluster.scratch().join("other"), [5; 32]).expect("a key file");
        let encrypted = Self { cluster, key, data };
        let key = encrypted.file("key");
        let create = ["volume", "create", "secret", "--size", "64MiB", "--encrypt", "--key-file", &key];
        let _made = encrypted.cluster.trivet(&create).succeeded();
        encrypted
    }

    /// The path of a file in the scratch folder.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        self.cluster.scratch().join(name).display().to_string()
    }

    /// Attaches the volume with a key file.
    #[must_use]
    pub fn attach(&self, key: &str) -> Outcome {
        self.cluster.trivet(&["volume", "attach", "secret", "--key-file", &self.file(key)])
    }

    /// What is shown of the volume.
    #[must_use]
    pub fn volume(&self) -> serde_json::Value {
        self.cluster.trivet_json(&["volume", "show", "secret"])
    }

    /// A client of the volume.
    ///
    /// # Panics
    /// When it is not served.
    #[must_use]
    pub fn client(&self) -> NbdClient {
        let shown = self.volume();
        NbdClient::connect(shown["uri"].as_str().expect("it is attached")).expect("it is served")
    }

    /// Writes what is to be there.
    ///
    /// # Panics
    /// When a write fails.
    pub fn fill(&self) {
        let mut client = self.client();
        for (at, piece) in self.data.chunks(64 << 10).enumerate() {
            client.write((at as u64) * (64 << 10), piece).expect("a write");
        }
        client.flush().expect("a flush");
    }

    /// Reads it.
    ///
    /// # Panics
    /// When something else is there.
    pub fn assert_right(&self) {
        let length = u32::try_from(self.data.len()).expect("small");
        assert!(self.client().read(0, length).expect("a read") == self.data);
    }

    /// The process that serves the volume; the plain one has one, too.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn engine(&self) -> process::Process {
        let engines = self.cluster.processes_of(Role::Engine);
        let found = engines.into_iter().find(|engine| engine.names(Path::new("secret")));
        found.expect("the engine of the encrypted volume runs")
    }

    /// Waits until the volume is served.
    ///
    /// # Panics
    /// When it is not.
    pub fn wait_until_served(&self) {
        patience::wait_for("the volume to be served", 3 * patience::SOON, || {
            (self.volume()["serving"] == true).then_some(())
        });
    }

    /// Waits until all that the volume shows is encrypted under its present data key, and older ones are left for
    /// these snapshots alone.
    ///
    /// # Panics
    /// When that does not come about.
    pub fn wait_until_encrypted_anew(&self, snapshots: &[&str]) {
        patience::wait_for("the data to be encrypted anew", 6 * patience::SOON, || {
            let shown = self.volume();
            let encryption = &shown["encryption"];
            let older = encryption["older_keys"].as_array()?;
            let right = match snapshots {
                [] => older.is_empty(),
                names => {
                    let names = serde_json::json!(names);
                    !older.is_empty() && older.iter().all(|older| older["snapshots"] == names)
                }
            };
            (right && encryption["next_key"].is_null() && encryption["resealing"].is_null()).then_some(())
        });
    }

    /// Kills the volume's engine.
    pub fn kill_engine(&self) {
        process::kill_hard(&[self.engine()]);
    }
}

/// Runs a command and says something to it.
#[must_use]
pub fn say_to(cluster: &Cluster, arguments: &[&str], input: &str) -> Outcome {
    let mut command = trivet();
    command.args(arguments).env("TRIVET_DIR", cluster.directory());
    command::run_saying(&mut command, input.as_bytes(), 3 * patience::SOON)
}

/// Whether bytes contain others.
#[must_use]
pub fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == wanted[0]) {
        if rest[at..].starts_with(wanted) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// All files below a folder.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").filter_map(Result::ok) {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files.extend(files_below(&entry.path())),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}

/// Whether something lies in the manager's files.
#[must_use]
pub fn is_in_records(cluster: &Cluster, wanted: &[u8]) -> bool {
    let files = files_below(&cluster.directory().join("records"));
    files.iter().any(|path| contains(&fs::read(path).unwrap_or_default(), wanted))
}
