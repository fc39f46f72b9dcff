//! The trait every device implements: submit operations, reap completions.

use bytes::{Bytes, BytesMut};
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64};

/// Names an operation in flight; chosen by the caller, unique among those in flight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DiskToken(pub u64);

/// An operation. Offsets and lengths are multiples of `BLOCK_SIZE`; memory is block-aligned.
/// Anything else is the caller's mistake, and every implementation panics on it.
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
    /// Grow the device to `length` bytes. Stable when it completes; until then the new part is out of
    /// reach. Done already if the device is as long.
    Extend {
        /// The new length in bytes.
        length: u64,
        /// Whether to write the new part with zeros, at leisure, so that later writes into it change
        /// no file system metadata. If not, it is only allocated, and extensions under way stop
        /// writing zeros too: somebody waits for space.
        written: bool,
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
    /// The device said so. A failed write may have changed any part of its range; after a failed
    /// flush, what it was to make stable may be lost, whatever later flushes say.
    #[error("{operation} at byte {offset} failed: {cause}")]
    Io {
        /// `read`, `write`, `flush` or `extend`.
        operation: &'static str,
        /// Byte offset; 0 for a flush, the old length for an extension.
        offset: u64,
        /// The system's error text.
        cause: String,
    },
    /// A read or write that does not lie within the device.
    #[error("{operation} of {bytes} bytes at byte {offset} goes beyond the device's {length} bytes")]
    BeyondEnd {
        /// `read` or `write`.
        operation: &'static str,
        /// Byte offset.
        offset: u64,
        /// Bytes asked for.
        bytes: u64,
        /// The device's length.
        length: u64,
    },
    /// The file system or device has no space to grow into. The device is as long as before.
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

impl DiskOp {
    /// What errors call it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::Extend { .. } => "extend",
        }
    }

    /// Checks what the contract asks of the caller, and the range against the device's length.
    ///
    /// # Panics
    /// On offsets, lengths or memory that are not block-aligned, and a buffer that is not empty.
    pub(crate) fn check(&self, device_length: u64) -> Result<(), DiskError> {
        let (offset, bytes) = match self {
            Self::Read { offset, buffer } => {
                assert!(buffer.is_empty(), "a read's buffer must be empty");
                assert_memory(buffer.as_ptr(), buffer.capacity());
                (*offset, buffer.capacity() as u64)
            }
            Self::Write { offset, segments } => {
                for segment in segments {
                    assert_memory(segment.as_ptr(), segment.len());
                }
                (*offset, segments.iter().map(|segment| segment.len() as u64).sum())
            }
            Self::Flush => return Ok(()),
            Self::Extend { length, .. } => {
                assert_eq!(length % BLOCK_SIZE_U64, 0, "a device's length is of whole blocks");
                return Ok(());
            }
        };
        assert_eq!(offset % BLOCK_SIZE_U64, 0, "an offset must be a multiple of the block size");
        match offset.checked_add(bytes) {
            Some(end) if end <= device_length => Ok(()),
            _ => Err(DiskError::BeyondEnd { operation: self.name(), offset, bytes, length: device_length }),
        }
    }
}

fn assert_memory(pointer: *const u8, length: usize) {
    assert_eq!(pointer.align_offset(BLOCK_SIZE), 0, "direct I/O needs block-aligned memory");
    assert_eq!(length % BLOCK_SIZE, 0, "direct I/O needs whole blocks");
}
