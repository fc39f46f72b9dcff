//! A consumer's requests, in bytes; multiples of the 512-byte sector.

use bytes::Bytes;
use trivet_model::{SnapshotId, Stamp};

/// A request to a volume. Offsets and lengths are in bytes, multiples of `SECTOR_SIZE`, and lie
/// within the volume; anything else is answered [`IoError::Invalid`].
#[derive(Debug)]
pub enum IoRequest {
    /// Read `length` bytes.
    Read {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Write the segments' bytes, one after the other. Any lengths, any memory alignment.
    Write {
        /// Byte offset.
        offset: u64,
        /// The data; its total length is what is written.
        segments: Vec<Bytes>,
        /// Complete only when stable.
        force_unit_access: bool,
    },
    /// Complete when everything completed before is stable.
    Flush,
    /// The contents are no longer needed: read as zeros afterwards, and what can be freed is. Partial
    /// blocks at the edges are zeroed too, since consumers exist that take a trim at its word: a
    /// hole punched through nbdfuse arrives as one.
    Discard {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Read as zeros afterwards.
    WriteZeroes {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Complete only when stable.
        force_unit_access: bool,
        /// Whether the space may be freed (it always is: a freed block reads as zeros and costs
        /// the same to write later).
        may_unmap: bool,
    },
    /// Which parts have changed since a snapshot that is older than what is looked at: been written or
    /// discarded, whatever they hold now.
    Changed {
        /// The snapshot.
        since: SnapshotId,
        /// Byte offset.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Which parts hold data.
    Allocation {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// A request's success.
#[derive(Debug, PartialEq, Eq)]
pub enum IoReply {
    /// `Write`, `Flush`, `Discard` and `WriteZeroes`.
    Done,
    /// `Read`: the bytes, in segments that add up to the length asked for.
    Data(Vec<Bytes>),
    /// A step of a snapshot over several volumes: its cut here.
    Cut(Stamp),
    /// `Changed`: `(length in bytes, has changed)`, as for `Allocation`.
    Changed(Vec<(u64, bool)>),
    /// `Allocation`: `(length in bytes, holds data)`, consecutive from the offset. May cover less
    /// than asked, but at least one sector.
    Allocation(Vec<(u64, bool)>),
}

/// Why a request failed. What is not here pauses: an unreachable member is waited for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// Unaligned, beyond the end, too long, or a write to a read-only volume.
    #[error("invalid request: {0}")]
    Invalid(&'static str),
    /// A member's pool is full.
    #[error("no space left in the pool of a member")]
    NoSpace,
    /// No member could return the right data, or the source did not give it that the volume is imported from.
    #[error("no member can return blocks {start}..{end}: {cause}")]
    Medium {
        /// First block.
        start: u64,
        /// Block after the last.
        end: u64,
        /// What the last member said.
        cause: String,
    },
    /// Another engine has opened the volume: this one is over.
    #[error("the volume has been opened by a newer engine")]
    Fenced,
    /// The volume is being closed.
    #[error("the volume is closed")]
    Closed,
}
