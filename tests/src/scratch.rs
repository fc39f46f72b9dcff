//! A directory of its own for each test, on a real disk.

use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A scratch directory, removed on drop. Under `$TRIVET_TEST_DIR`, else `/var/tmp`: pools need
/// O_DIRECT, which `/tmp` as a tmpfs does not give on older kernels. `TRIVET_TEST_KEEP=1` keeps it
/// when the test fails.
#[derive(Debug)]
pub struct Scratch {
    directory: Option<TempDir>,
}

impl Scratch {
    /// Makes a new, empty directory. Its name is short, since unix sockets go into it.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let parent =
            std::env::var_os("TRIVET_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let directory = tempfile::Builder::new()
            .prefix("trivet-")
            .tempdir_in(&parent)
            .unwrap_or_else(|e| panic!("cannot make a scratch directory in {}: {e}", parent.display()));
        Self { directory: Some(directory) }
    }

    /// Where it is.
    ///
    /// # Panics
    /// Never: the directory lives as long as `self`.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.as_ref().expect("it is there until the drop").path()
    }

    /// The path of `name` inside.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let keep = std::thread::panicking() && std::env::var_os("TRIVET_TEST_KEEP").is_some();
        if let Some(directory) = self.directory.take()
            && keep
        {
            eprintln!("kept {}", directory.keep().display());
        }
    }
}
