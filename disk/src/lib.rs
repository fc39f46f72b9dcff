//! Storage devices behind one small trait: an io_uring file, memory, and a faulty one for tests.
//!
//! [`UringFile`] is what runs. [`MemoryDisk`] is the same contract without a kernel, and
//! [`FaultyDisk`] one that loses, tears, reorders, corrupts and misplaces what the contract allows
//! a device to, decided by a seed or by the test.

mod blocking;
mod device;
mod faulty;
mod image;
mod memory;
mod open_error;
mod random;
mod uring_file;

pub use blocking::{extend_blocking, flush_blocking, read_blocking, write_blocking};
pub use device::{Disk, DiskCompletion, DiskError, DiskOp, DiskToken};
pub use faulty::{CompletionOrder, Fault, FaultRates, FaultyDisk, OneIn, UnflushedWrite};
pub use image::DiskImage;
pub use memory::MemoryDisk;
pub use open_error::OpenError;
pub use uring_file::UringFile;
