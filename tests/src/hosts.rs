//! Hosts that can be started anew: a launcher that shows each process a boot id of the test's making, in a
//! mount namespace of the process's own. Needs root.

use crate::command::{is_installed, must};
use crate::{Scratch, cluster, launcher};
use std::fs;
use std::path::PathBuf;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// All hosts of a cluster, which lose their power together.
#[derive(Debug)]
pub struct Hosts {
    scratch: Scratch,
}

/// Why a process cannot be shown another boot id on this machine; `None` when it can.
#[must_use]
pub fn obstacle() -> Option<String> {
    if must("id", &["-u"]).stdout.trim() != "0" {
        return Some("mount namespaces need root".to_owned());
    }
    (!is_installed("unshare")).then(|| "unshare is not installed (make deps)".to_owned())
}

impl Hosts {
    /// Hosts that have been started once.
    ///
    /// # Panics
    /// When no script can be written.
    #[must_use]
    pub fn new() -> Self {
        let hosts = Self { scratch: Scratch::new() };
        let body = format!(
            "exec unshare --mount sh -c 'mount --bind \"$0\" {BOOT_ID} && exec \"$@\"' '{}' '{}' \"$@\"\n",
            hosts.boot_id().display(),
            cluster::binary().display()
        );
        launcher::write(&hosts.launcher(), &body);
        hosts.start_anew();
        hosts
    }

    fn boot_id(&self) -> PathBuf {
        self.scratch.join("boot_id")
    }

    /// What the cluster is to be started with.
    #[must_use]
    pub fn launcher(&self) -> PathBuf {
        self.scratch.join("launcher")
    }

    /// Processes that start from now on are of another boot.
    ///
    /// # Panics
    /// When the kernel gives no UUID.
    pub fn start_anew(&self) {
        let uuid = fs::read("/proc/sys/kernel/random/uuid").expect("the kernel draws a UUID");
        fs::write(self.boot_id(), uuid).expect("a file can be written");
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Self::new()
    }
}
