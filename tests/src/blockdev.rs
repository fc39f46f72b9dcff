//! A kernel block device over a volume: nbdfuse shows the volume as a file, a loop device makes a
//! disk of it. Needs root, `/dev/fuse` and `/dev/loop-control`; no kernel module beyond those.

use crate::command::{is_installed, must};
use crate::{Scratch, patience};
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
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
        // It has a line for each request that fails, which is what some tests are about.
        let said = fs::File::create(scratch.join("nbdfuse.log")).expect("a file can be made");
        let server = Command::new("nbdfuse")
            .arg(&file)
            .arg(uri)
            .stdin(Stdio::null())
            .stderr(said)
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

/// Why no pool can lie in memory on this machine; `None` when it can.
///
/// # Panics
/// When no file system can be mounted though one is root.
#[must_use]
pub fn obstacle_to_memory_disks() -> Option<String> {
    if must("id", &["-u"]).stdout.trim() != "0" {
        return Some("mounting a small file system needs root".to_owned());
    }
    let scratch = Scratch::new();
    let mount = Mount::in_memory(scratch.path(), 1 << 20);
    let opened = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT)
        .open(mount.path().join("probe"));
    let takes_it = opened.is_ok();
    (!takes_it).then(|| "file systems in memory take no direct I/O on this kernel".to_owned())
}

const BALLAST: &str = "ballast";

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

    /// Moves a folder, such as a stopped pool's, to a small file system in memory, mounted in its place.
    ///
    /// # Panics
    /// When that cannot be done; see [`obstacle_to_memory_disks`].
    #[must_use]
    pub fn under(folder: &Path, bytes: u64) -> Self {
        let aside = folder.with_extension("aside");
        let copy = |from: &Path, to: &Path| must("cp", &[Path::new("-a"), from, to]);
        copy(folder, &aside);
        let mount = Self::in_memory(folder, bytes);
        copy(&aside.join("."), folder);
        fs::remove_dir_all(&aside).unwrap_or_else(|e| panic!("{}: {e}", aside.display()));
        mount
    }

    fn in_memory(folder: &Path, bytes: u64) -> Self {
        let size = format!("size={bytes}");
        must("mount", &["-t", "tmpfs", "-o", &size, "trivet-test", &folder.to_string_lossy()]);
        Self { folder: folder.to_owned() }
    }

    /// Makes a file system in memory larger or smaller.
    ///
    /// # Panics
    /// When that cannot be done.
    pub fn resize(&self, bytes: u64) {
        must("mount", &["-o", &format!("remount,size={bytes}"), &self.folder.to_string_lossy()]);
    }

    /// Takes all the space that is left.
    ///
    /// # Panics
    /// When `df` does not tell how much that is.
    pub fn fill(&self) {
        let folder = self.folder.to_string_lossy();
        let said = must("df", &["--output=avail", "-B1", &folder]).stdout;
        let free = said.lines().nth(1).map(str::trim).unwrap_or_default();
        let ballast = self.folder.join(BALLAST);
        // What was free may be taken by now, and then there is as little left.
        let filling = Command::new("fallocate").args(["-l", free]).arg(ballast).output();
        drop(filling);
    }

    /// Gives back what [`Mount::fill`] took.
    pub fn empty(&self) {
        // It may not have been filled.
        drop(fs::remove_file(self.folder.join(BALLAST)));
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
