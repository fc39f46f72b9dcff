//! One operation at a time, waited for: at format, recovery and check, when nothing else is in
//! flight on the device.

use crate::{Disk, DiskError, DiskOp, DiskToken};
use bytes::BytesMut;
use trivet_model::{BLOCK_SIZE, BlockArena};

const TOKEN: DiskToken = DiskToken(u64::MAX);

/// Reads `length` bytes at `offset`, both of whole blocks.
///
/// # Errors
/// The device's.
///
/// # Panics
/// When another operation is in flight.
pub fn read_blocking(disk: &mut dyn Disk, offset: u64, length: usize) -> Result<BytesMut, DiskError> {
    let buffer = BlockArena::new().allocate(length.div_ceil(BLOCK_SIZE));
    run(disk, DiskOp::Read { offset, buffer })
}

/// Writes whole blocks at `offset`; copies them, so that their memory need not be aligned.
///
/// # Errors
/// The device's.
///
/// # Panics
/// When another operation is in flight, or `data` is not of whole blocks.
pub fn write_blocking(disk: &mut dyn Disk, offset: u64, data: &[u8]) -> Result<(), DiskError> {
    assert_eq!(data.len() % BLOCK_SIZE, 0, "devices are written in whole blocks");
    let mut buffer = BlockArena::new().allocate(data.len() / BLOCK_SIZE);
    buffer.extend_from_slice(data);
    run(disk, DiskOp::Write { offset, segments: vec![buffer.freeze()] }).map(drop)
}

/// Makes everything written so far stable.
///
/// # Errors
/// The device's.
///
/// # Panics
/// When another operation is in flight.
pub fn flush_blocking(disk: &mut dyn Disk) -> Result<(), DiskError> {
    run(disk, DiskOp::Flush).map(drop)
}

/// Grows the device to `length` bytes.
///
/// # Errors
/// The device's.
///
/// # Panics
/// When another operation is in flight.
pub fn extend_blocking(disk: &mut dyn Disk, length: u64) -> Result<(), DiskError> {
    run(disk, DiskOp::Extend { length, written: true }).map(drop)
}

fn run(disk: &mut dyn Disk, operation: DiskOp) -> Result<BytesMut, DiskError> {
    disk.submit(TOKEN, operation);
    let mut completions = Vec::with_capacity(1);
    loop {
        disk.reap(true, &mut completions);
        if let Some(completion) = completions.pop() {
            assert!(
                completions.is_empty() && completion.token == TOKEN,
                "blocking I/O amid other operations"
            );
            return completion.result;
        }
    }
}
