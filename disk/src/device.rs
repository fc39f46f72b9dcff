//! The trait every device implements: submit operations, reap completions.

use bytes::{Bytes, BytesMut};

/// Names an operation in flight; chosen by the caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DiskToken(pub u64);

/// An operation. Offsets and lengths are multiples of `BLOCK_SIZE`; memory is block-aligned.
#[derive(Debug)]
pub enum DiskOp {
    /// Fill `buffer`'s spare capacity (all of it) from `offset`.
    Read {
        /// Byte offset.
        offset: u64,
        /// Empty, from a `BlockArena`.
        buffer: BytesMut,
    },
    /// Write the segments one after the other from `offset`.
    Write {
        /// Byte offset.
        offset: u64,
        /// Whole blocks each, block-aligned in memory.
        segments: Vec<Bytes>,
    },
    /// Make every write completed before this submission stable.
    Flush,
    /// Grow the device to `length` bytes, the new part allocated and written with zeros, so that
    /// later writes into it change no file system metadata. Stable when it completes.
    Extend {
        /// The new length in bytes.
        length: u64,
    },
}

/// An operation's end.
#[derive(Debug)]
pub struct DiskCompletion {
    /// As submitted.
    pub token: DiskToken,
    /// For a read, the filled buffer; else an empty one. A short read or write never counts as
    /// success: implementations continue it, or fail.
    pub result: Result<BytesMut, DiskError>,
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The device said so.
    #[error("{operation} at byte {offset} failed: {cause}")]
    Io {
        /// `read`, `write`, `flush` or `extend`.
        operation: &'static str,
        /// Byte offset; 0 for a flush.
        offset: u64,
        /// The system's error text.
        cause: String,
    },
    /// The file system or device has no space to grow into.
    #[error("no space to grow the pool file to {length} bytes")]
    NoSpace {
        /// The length asked for.
        length: u64,
    },
}

/// A storage device. Operations complete in any order; a write is volatile until a flush that was
/// submitted after its completion has completed.
pub trait Disk {
    /// Present length in bytes.
    fn length(&self) -> u64;
    /// Starts an operation. Never blocks.
    fn submit(&mut self, token: DiskToken, operation: DiskOp);
    /// Moves finished operations to `completions`. With `wait`, blocks until there is at least
    /// one, provided that one is in flight.
    fn reap(&mut self, wait: bool, completions: &mut Vec<DiskCompletion>);
}
