//! Why a pool file could not be opened, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a pool file could not be opened or made. Each message says the cause and the next step.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its file system cannot bypass the page cache.
    #[error(
        "the file system of {} does not support direct I/O (O_DIRECT), which keeps pools safe and fast; \
         put the pool on ext4, xfs or btrfs on a local disk", path.display()
    )]
    NoDirectIo {
        /// The pool file.
        path: PathBuf,
    },
    /// Another process has it open.
    #[error("{} is in use by another process; stop that replica server or check first", path.display())]
    InUse {
        /// The pool file.
        path: PathBuf,
    },
    /// It is not there.
    #[error("there is no {}; create the pool first, or check the folder's name", path.display())]
    NotFound {
        /// The pool file.
        path: PathBuf,
    },
    /// It was to be made, and is there already.
    #[error("{} exists already; choose another folder, or remove the old pool if it is of no use", path.display())]
    Exists {
        /// The pool file.
        path: PathBuf,
    },
    /// Not this user's.
    #[error("no permission for {}; give this user read and write access to it and its folder", path.display())]
    Permission {
        /// The pool file.
        path: PathBuf,
    },
    /// A folder, socket or the like.
    #[error("{} is neither a file nor a block device", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Mounted so, perhaps by the kernel after an error.
    #[error("the file system of {} is read-only; look in dmesg for why, then remount it", path.display())]
    ReadOnly {
        /// The pool file.
        path: PathBuf,
    },
    /// Anything else.
    #[error("{operation} of {} failed: {source}", path.display())]
    System {
        /// The system call.
        operation: &'static str,
        /// The pool file.
        path: PathBuf,
        /// Its error.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn diagnose(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.raw_os_error() {
            Some(libc::EINVAL) if operation == "open" => Self::NoDirectIo { path },
            Some(libc::EWOULDBLOCK) if operation == "flock" => Self::InUse { path },
            Some(libc::ENOENT | libc::ENOTDIR) => Self::NotFound { path },
            Some(libc::EEXIST) => Self::Exists { path },
            Some(libc::EACCES | libc::EPERM) => Self::Permission { path },
            Some(libc::EISDIR | libc::ENXIO) => Self::NotAFile { path },
            Some(libc::EROFS) => Self::ReadOnly { path },
            _ => Self::System { operation, path, source },
        }
    }
}
