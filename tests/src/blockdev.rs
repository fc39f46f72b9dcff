//! A kernel block device over a volume: nbdfuse shows the volume as a file, a loop device makes a
//! disk of it. Needs root, `/dev/fuse` and `/dev/loop-control`; no kernel module beyond those.

use crate::command::{is_installed, must};
use crate::{Scratch, patience};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Why a block device cannot be made on this machine; `None` when it can.
#[must_use]
pub fn obstacle() -> Option<String> {
    if must("id", &["-u"]).stdout.trim() != "0" {
        return Some("loop devices need root".to_owned());
    }
    let missing = ["nbdfuse", "fusermount3", "losetup"].into_iter().find(|program| !is_installed(program));
    if let Some(program) = missing {
        return Some(format!("{program} is not installed (make deps)"));
    }
    ["/dev/fuse", "/dev/loop-control"]
        .into_iter()
        .find(|path| !Path::new(path).exists())
        .map(|path| format!("there is no {path}"))
}

/// A volume as a file, by nbdfuse.
#[derive(Debug)]
pub struct FuseFile {
    server: Child,
    folder: PathBuf,
    file: PathBuf,
}

impl FuseFile {
    /// Shows the volume at `uri` as a file.
    ///
    /// # Panics
    /// When nbdfuse does not come up.
    #[must_use]
    pub fn mount(uri: &str, scratch: &Scratch) -> Self {
        let folder = scratch.join("fuse");
        fs::create_dir_all(&folder).expect("a folder can be made");
        let file = folder.join("disk");
        let server = Command::new("nbdfuse")
            .arg(&file)
            .arg(uri)
            .stdin(Stdio::null())
            .spawn()
            .expect("nbdfuse is installed");
        let mut fuse = Self { server, folder, file };
        patience::wait_for("nbdfuse to show the volume", patience::SOON, || {
            let ended = fuse.server.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "nbdfuse has ended: {ended:?}");
            fs::metadata(&fuse.file).is_ok_and(|found| found.len() > 0).then_some(())
        });
        fuse
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file
    }
}

impl Drop for FuseFile {
    fn drop(&mut self) {
        quietly("fusermount3", &["-u", "-z", &self.folder.to_string_lossy()]);
        // Unmounted, it ends by itself; killing one that has ended fails, which is fine.
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

/// A loop device over a file, opened with direct I/O so that nothing lies in a second cache.
#[derive(Debug)]
pub struct LoopDevice {
    device: PathBuf,
}

impl LoopDevice {
    /// Makes one.
    ///
    /// # Panics
    /// When `losetup` fails.
    #[must_use]
    pub fn attach(file: &Path) -> Self {
        let file = file.to_string_lossy();
        let outcome = must("losetup", &["-f", "--show", "--direct-io=on", &file]);
        Self { device: PathBuf::from(outcome.stdout.trim()) }
    }

    /// The device, `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.device
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        quietly("losetup", &["-d", &self.device.to_string_lossy()]);
    }
}

/// A mounted file system.
#[derive(Debug)]
pub struct Mount {
    folder: PathBuf,
}

impl Mount {
    /// Mounts `device` at `folder`, which is made.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn new(device: &Path, folder: &Path) -> Self {
        fs::create_dir_all(folder).expect("a folder can be made");
        must("mount", &[device, folder]);
        Self { folder: folder.to_owned() }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Unmounts, which writes everything back.
    ///
    /// # Panics
    /// When it fails.
    pub fn unmount(self) {
        must("umount", &[&self.folder]);
        std::mem::forget(self);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        quietly("umount", &["-l", &self.folder.to_string_lossy()]);
    }
}

/// For cleaning up, where a failure is no news: the thing may be gone already.
fn quietly(program: &str, arguments: &[&str]) {
    let outcome = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    drop(outcome);
}
