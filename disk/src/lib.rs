//! Storage devices behind one small trait: an io_uring file, memory, and a faulty one for tests.

mod device;

pub use device::{Disk, DiskCompletion, DiskError, DiskOp, DiskToken};
