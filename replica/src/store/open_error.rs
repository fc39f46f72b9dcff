//! Why a pool is not formatted or opened.

use trivet_disk::DiskError;

use super::checkpoint::CheckpointError;
use super::header::HeaderError;
use super::layout::{POOL_VERSION, SuperblockError};
use super::volume::VolumeDecodeError;
use crate::meta::MetaError;

/// Why a pool could not be formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The device.
    #[error("{0}")]
    Disk(#[from] DiskError),
    /// The map's store.
    #[error("{0}")]
    Meta(#[from] MetaError),
}

/// Why a pool does not open. What is corrupt is never cut away: such a replica is rebuilt from a
/// peer.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The device.
    #[error("{0}")]
    Disk(#[from] DiskError),
    /// The map's store.
    #[error("{0}")]
    Meta(#[from] MetaError),
    /// Neither copy of the superblock can be read.
    #[error("first copy: {first}; second copy: {second}")]
    Superblock {
        /// Of the first copy.
        first: SuperblockError,
        /// Of the second copy.
        second: SuperblockError,
    },
    /// The pool is another program's.
    #[error("pool format version {found}; this program knows version {POOL_VERSION}")]
    Version {
        /// The pool's.
        found: u32,
    },
    /// The map's store has no checkpoint.
    #[error("the map has no checkpoint: it is not this pool's")]
    NoCheckpoint,
    /// The checkpoint's header.
    #[error("{0}")]
    Header(#[from] HeaderError),
    /// A volume's record in the map.
    #[error("{0}")]
    Volume(#[from] VolumeDecodeError),
    /// A bitmap in the map.
    #[error("{0}")]
    Map(#[from] CheckpointError),
    /// Pool file and map are not of one time: one was restored or exchanged.
    #[error("pool file (boot epoch {pool_file}) and map (boot epoch {map}) are not of the same time")]
    Mismatch {
        /// In the superblock.
        pool_file: u64,
        /// In the checkpoint.
        map: u64,
    },
    /// A journal block below the stable mark is damaged.
    #[error("journal block {sequence} (byte {offset} of the pool file) is damaged, and it was stable")]
    Journal {
        /// Its sequence number.
        sequence: u64,
        /// Where it lies.
        offset: u64,
    },
    /// A record in a valid journal block makes no sense.
    #[error("journal block {sequence}: {error}")]
    Record {
        /// The block's sequence number.
        sequence: u64,
        /// What is wrong.
        error: String,
    },
    /// The pool file is shorter than what the map says it holds.
    #[error("the pool file has {found} bytes where at least {expected} are needed")]
    Short {
        /// Bytes needed.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
}
