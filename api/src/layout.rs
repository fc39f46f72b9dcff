//! Where a cluster of one machine keeps its files and sockets.
//!
//! ```text
//! DIR/trivet-cluster     marks the folder as a cluster's; its format's version
//! DIR/manager.sock       the manager
//! DIR/sockets/NAME.sock  a volume's NBD server, or that of a snapshot: VOLUME@SNAPSHOT
//! DIR/run/NAME.lock      held by the process NAME while it lives; holds its pid
//! DIR/run/NAME.status    the engine's status socket
//! DIR/run/NAME.key       where the engine of an encrypted volume waits for its key
//! DIR/run/socket-dir     where sockets are whose path here would be too long
//! DIR/log/NAME.log       what the process says
//! DIR/records            the manager's records
//! DIR/imports/NAME.*     an import under way into the volume NAME: how far it is, what was downloaded
//! DIR/replica-N          a replica server's pool
//! ```
//!
//! A unix socket's path has at most 107 bytes. Where one would be longer, it goes into a short
//! folder with a random name under `XDG_RUNTIME_DIR` or `/tmp`, private to the user; the folder's
//! path is kept in `DIR/run/socket-dir`, so that all processes find the same one whatever their
//! environment.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use trivet_model::SnapshotId;
use trivet_model::record::VOLUME_NAME_BYTES_MAX;

/// Longest path of a unix socket, in bytes: `sockaddr_un` has 108 with the terminating zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

const MARKER: &str = "trivet-cluster";
const MARKER_TEXT: &str = "trivet cluster 1\n";

/// Why a folder cannot serve as a cluster's.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// There is no such folder.
    #[error("there is no folder {0}")]
    Missing(PathBuf),
    /// The folder is not a cluster's.
    #[error("{0} holds no trivet cluster")]
    NotACluster(PathBuf),
    /// The folder has other people's files.
    #[error("{0} is not empty and holds no trivet cluster")]
    Occupied(PathBuf),
    /// Something else than a folder is there.
    #[error("{0} is not a folder")]
    NotAFolder(PathBuf),
    /// The cluster was made by another version.
    #[error("{dir} holds a cluster of another version: found '{found}', expected '{expected}'")]
    Version {
        /// The folder.
        dir: PathBuf,
        /// What its marker says.
        found: String,
        /// What this version writes.
        expected: &'static str,
    },
    /// The path is not UTF-8, which gRPC and NBD URIs need.
    #[error("the path {0} is not UTF-8")]
    NotUtf8(PathBuf),
    /// The system refused.
    #[error("cannot {operation} {path}: {cause}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
}

/// The places of one cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout of the cluster in `dir`, which must be there.
    ///
    /// # Errors
    /// [`LayoutError`]: missing, not a cluster, another version, or unreadable.
    pub fn open(dir: &Path) -> Result<Self, LayoutError> {
        let dir = match dir.canonicalize() {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(LayoutError::Missing(dir.to_owned()));
            }
            Err(cause) => return Err(failed("open", dir)(cause)),
        };
        if !dir.is_dir() {
            return Err(LayoutError::NotAFolder(dir));
        }
        let marker = dir.join(MARKER);
        match std::fs::read_to_string(&marker) {
            Ok(text) if text == MARKER_TEXT => {}
            Ok(found) => {
                let found = found.trim_end().chars().take(40).collect();
                return Err(LayoutError::Version { dir, found, expected: MARKER_TEXT.trim_end() });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(LayoutError::NotACluster(dir));
            }
            Err(cause) => return Err(failed("read", &marker)(cause)),
        }
        if dir.to_str().is_none() {
            return Err(LayoutError::NotUtf8(dir));
        }
        Ok(Self { dir })
    }

    /// The layout of the cluster in `dir`; makes the folder, private to the user, if it is not
    /// there or empty.
    ///
    /// # Errors
    /// [`LayoutError`]: another's files are there, another version, or the system refused.
    pub fn create(dir: &Path) -> Result<Self, LayoutError> {
        match Self::open(dir) {
            Err(LayoutError::Missing(_)) => {
                let mut builder = std::fs::DirBuilder::new();
                builder.recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))?;
            }
            Err(LayoutError::NotACluster(_)) => {
                let mut entries = std::fs::read_dir(dir).map_err(failed("list", dir))?;
                if entries.next().is_some() {
                    return Err(LayoutError::Occupied(dir.to_owned()));
                }
            }
            Err(error) => return Err(error),
            Ok(layout) => {
                layout.make_folders()?;
                return Ok(layout);
            }
        }
        let marker = dir.join(MARKER);
        std::fs::write(&marker, MARKER_TEXT).map_err(failed("write", &marker))?;
        let layout = Self::open(dir)?;
        layout.make_folders()?;
        Ok(layout)
    }

    fn make_folders(&self) -> Result<(), LayoutError> {
        for name in ["run", "log", "sockets"] {
            let path = self.dir.join(name);
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(&path).map_err(failed("create", &path))?;
        }
        Ok(())
    }

    /// The cluster's folder, absolute.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manager's record store.
    #[must_use]
    pub fn records(&self) -> PathBuf {
        self.dir.join("records")
    }

    /// What is kept of imports under way.
    #[must_use]
    pub fn imports(&self) -> PathBuf {
        self.dir.join("imports")
    }

    /// A replica server's pool.
    #[must_use]
    pub fn replica(&self, number: u32) -> PathBuf {
        self.dir.join(format!("replica-{number}"))
    }

    /// The file that the process `name` locks while it lives.
    #[must_use]
    pub fn lock(&self, name: &str) -> PathBuf {
        self.dir.join("run").join(format!("{name}.lock"))
    }

    /// The folder of the lock files.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Where the process `name` writes what it says.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    /// The manager's socket.
    ///
    /// # Errors
    /// [`LayoutError::Io`] when a short folder is needed and cannot be had.
    pub fn manager_socket(&self) -> Result<PathBuf, LayoutError> {
        self.socket(self.dir.join("manager.sock"))
    }

    /// A volume's NBD socket.
    ///
    /// # Errors
    /// [`LayoutError::Io`] when a short folder is needed and cannot be had.
    pub fn volume_socket(&self, volume: &str) -> Result<PathBuf, LayoutError> {
        self.socket(self.dir.join("sockets").join(format!("{volume}.sock")))
    }

    /// The NBD socket of an [exported](export_name) snapshot.
    ///
    /// # Errors
    /// [`LayoutError::Io`] when a short folder is needed and cannot be had.
    pub fn export_socket(&self, export: &str) -> Result<PathBuf, LayoutError> {
        self.socket(self.dir.join("sockets").join(format!("{export}.sock")))
    }

    /// The status socket of the process that serves an exported snapshot.
    ///
    /// # Errors
    /// [`LayoutError::Io`] when a short folder is needed and cannot be had.
    pub fn export_status_socket(&self, export: &str) -> Result<PathBuf, LayoutError> {
        self.socket(self.dir.join("run").join(format!("export-{export}.status")))
    }

    /// The socket at which the process that serves an exported snapshot of an encrypted volume waits for its
    /// key.
    ///
    /// # Errors
    /// [`LayoutError::Io`] when a short folder is needed and cannot be had.
    pub fn export_key_socket(&self, export: &str) -> Result<PathBuf, LayoutError> {
        self.socket(self.dir.join("run").join(format!("export-{export}.key")))
    }

    /// The NBD socket of an image that is imported into a volume while that is used.
    ///
    /// # Errors
    /// [`LayoutError::Io`] when a short folder is needed and cannot be had.
    pub fn import_socket(&self, volume: &str) -> Result<PathBuf, LayoutError> {
        self.socket(self.dir.join("run").join(format!("import-{volume}.sock")))
    }

    /// The status socket of a volume's engine.
    ///
    /// # Errors
    /// [`LayoutError::Io`] when a short folder is needed and cannot be had.
    pub fn engine_status_socket(&self, volume: &str) -> Result<PathBuf, LayoutError> {
        self.socket(self.dir.join("run").join(format!("engine-{volume}.status")))
    }

    /// The socket at which a volume's engine is told what else it shall do.
    ///
    /// # Errors
    /// [`LayoutError::Io`] when a short folder is needed and cannot be had.
    pub fn engine_control_socket(&self, volume: &str) -> Result<PathBuf, LayoutError> {
        self.socket(self.dir.join("run").join(format!("engine-{volume}.control")))
    }

    /// The socket at which an encrypted volume's engine waits for its key.
    ///
    /// # Errors
    /// [`LayoutError::Io`] when a short folder is needed and cannot be had.
    pub fn engine_key_socket(&self, volume: &str) -> Result<PathBuf, LayoutError> {
        self.socket(self.dir.join("run").join(format!("engine-{volume}.key")))
    }

    /// The short folder, if the cluster has one.
    ///
    /// # Errors
    /// [`LayoutError::Io`] when its name cannot be read.
    pub fn short_socket_dir(&self) -> Result<Option<PathBuf>, LayoutError> {
        let pointer = self.socket_dir_pointer();
        match std::fs::read_to_string(&pointer) {
            Ok(text) => Ok(Some(PathBuf::from(text.trim_end_matches('\n')))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(failed("read", &pointer)(cause)),
        }
    }

    fn socket_dir_pointer(&self) -> PathBuf {
        self.dir.join("run").join("socket-dir")
    }

    fn socket(&self, wanted: PathBuf) -> Result<PathBuf, LayoutError> {
        if wanted.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            return Ok(wanted);
        }
        let Some(name) = wanted.file_name() else { unreachable!("sockets have names") };
        Ok(self.make_short_socket_dir()?.join(name))
    }

    fn make_short_socket_dir(&self) -> Result<PathBuf, LayoutError> {
        if let Some(dir) = self.short_socket_dir()? {
            // Gone after a reboot; a stranger who took the name meanwhile is not trusted.
            match create_private(&dir) {
                Ok(()) => return Ok(dir),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_private(&dir) => {
                    return Ok(dir);
                }
                Err(_) => {}
            }
        }
        let dir = new_short_dir().map_err(failed("create a short folder for sockets beside", &self.dir))?;
        // Written aside and renamed, so that a reader never sees half a path.
        let pointer = self.socket_dir_pointer();
        let fresh = self.dir.join("run").join("socket-dir.new");
        std::fs::write(&fresh, format!("{}\n", dir.display())).map_err(failed("write", &fresh))?;
        std::fs::rename(&fresh, &pointer).map_err(failed("write", &pointer))?;
        Ok(dir)
    }
}

/// What a snapshot's export is called in the names of files: `VOLUME@SNAPSHOT` where that is no longer
/// than a volume's name may be, else the snapshot's id.
#[must_use]
pub fn export_name(volume: &str, snapshot: &str, id: SnapshotId) -> String {
    let name = format!("{volume}@{snapshot}");
    if name.len() <= VOLUME_NAME_BYTES_MAX { name } else { id.to_string() }
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LayoutError + 'a {
    move |cause| LayoutError::Io { operation, path: path.to_owned(), cause }
}

fn create_private(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(dir)
}

fn is_private(dir: &Path) -> bool {
    std::fs::symlink_metadata(dir).is_ok_and(|meta| {
        meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 == 0
    })
}

fn new_short_dir() -> io::Result<PathBuf> {
    // Leaves room for `/engine-<63 bytes>.status` within a socket's path.
    const PARENT_BYTES_MAX: usize = 20;
    let parent = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute() && dir.is_dir() && dir.as_os_str().len() <= PARENT_BYTES_MAX)
        .unwrap_or_else(|| PathBuf::from("/tmp"));
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let dir = parent.join(format!("tv-{:08x}", u32::from_be_bytes(random)));
    create_private(&dir)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_other_files_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("thesis.txt"), "precious").unwrap();
        assert!(matches!(Layout::create(temp.path()), Err(LayoutError::Occupied(_))));
        assert!(matches!(Layout::open(temp.path()), Err(LayoutError::NotACluster(_))));
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
        let file = temp.path().join("thesis.txt");
        assert!(matches!(Layout::create(&file), Err(LayoutError::NotAFolder(_))));
    }

    #[test]
    fn a_cluster_is_found_again_and_another_version_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b");
        assert!(matches!(Layout::open(&dir), Err(LayoutError::Missing(_))));
        let made = Layout::create(&dir).unwrap();
        assert_eq!(Layout::create(&dir).unwrap(), made);
        assert_eq!(Layout::open(&dir).unwrap(), made);
        std::fs::write(dir.join(MARKER), "trivet cluster 9\n").unwrap();
        let error = Layout::open(&dir).unwrap_err().to_string();
        assert!(error.contains("'trivet cluster 9'") && error.contains("'trivet cluster 1'"), "{error}");
    }

    #[test]
    fn long_paths_get_short_sockets_that_everyone_finds() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("x".repeat(120));
        let layout = Layout::create(&dir).unwrap();
        let socket = layout.manager_socket().unwrap();
        assert!(socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
        assert_eq!(Layout::open(&dir).unwrap().manager_socket().unwrap(), socket);
        let longest = layout.engine_control_socket(&"n".repeat(63)).unwrap();
        assert!(longest.as_os_str().len() <= SOCKET_PATH_BYTES_MAX, "{}", longest.display());
        let id = SnapshotId::from_bytes([1; 16]);
        assert_eq!(export_name("disk0", "before", id), "disk0@before");
        let long = export_name(&"v".repeat(31), &"s".repeat(32), id);
        assert_eq!(long, id.to_string());
        let longest =
            layout.export_status_socket(&export_name(&"v".repeat(31), &"s".repeat(31), id)).unwrap();
        assert!(longest.as_os_str().len() <= SOCKET_PATH_BYTES_MAX, "{}", longest.display());
        let short = layout.short_socket_dir().unwrap().unwrap();
        assert_eq!(socket.parent(), Some(short.as_path()));

        std::fs::remove_dir(&short).unwrap();
        assert_eq!(layout.manager_socket().unwrap(), socket, "made again after a reboot");
        std::fs::remove_dir(&short).unwrap();
        std::os::unix::fs::symlink("/tmp", &short).unwrap();
        assert_ne!(layout.manager_socket().unwrap(), socket, "a stranger's folder is not trusted");
        std::fs::remove_file(&short).unwrap();
        std::fs::remove_dir(layout.short_socket_dir().unwrap().unwrap()).unwrap();
    }

    #[test]
    fn short_paths_stay_in_the_folder() {
        let temp = tempfile::tempdir_in("/tmp").unwrap();
        let layout = Layout::create(temp.path()).unwrap();
        assert_eq!(layout.manager_socket().unwrap(), layout.dir().join("manager.sock"));
        assert_eq!(layout.short_socket_dir().unwrap(), None);
    }
}
