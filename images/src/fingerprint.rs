//! What tells whether a source is still the one that an import began with.

use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;

/// What is known of a source without reading it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Fingerprint {
    /// A file: any change of its content changes its time of modification.
    File {
        /// Its file system.
        device: u64,
        /// Its number there.
        inode: u64,
        /// Bytes.
        size: u64,
        /// When it was modified, in seconds since 1970.
        modified: i64,
        /// And nanoseconds.
        modified_ns: i64,
    },
    /// A block device, of which only the size is known.
    Device {
        /// Its number.
        number: u64,
        /// Bytes.
        size: u64,
    },
    /// What an HTTP server says.
    Url {
        /// Bytes.
        size: u64,
        /// `ETag`, or the time of modification; empty if it says neither.
        version: String,
    },
    /// An NBD export, of which only the size is known.
    Nbd {
        /// Bytes.
        size: u64,
    },
}

impl Fingerprint {
    /// That of a file or device with these facts and this size.
    #[must_use]
    pub fn of(metadata: &std::fs::Metadata, size: u64) -> Self {
        if metadata.is_file() {
            let (modified, modified_ns) = (metadata.mtime(), metadata.mtime_nsec());
            Self::File { device: metadata.dev(), inode: metadata.ino(), size, modified, modified_ns }
        } else {
            Self::Device { number: metadata.rdev(), size }
        }
    }

    /// Whether a change of the source would show.
    #[must_use]
    pub const fn shows_changes(&self) -> bool {
        match self {
            Self::File { .. } => true,
            Self::Url { version, .. } => !version.is_empty(),
            Self::Device { .. } | Self::Nbd { .. } => false,
        }
    }
}
