//! Disk images: what they are, how untrusted ones are read, and how they are copied.
//!
//! Formats other than raw are read by QEMU, whose readers are well kept, and not by us. An image may
//! be hostile, so QEMU runs in a [`jail`]: it sees that one file and nothing else of the machine.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod download;
pub mod fingerprint;
pub mod format;
pub mod inspect;
pub mod jail;
pub mod qemu;
pub mod raw;
pub mod record;
pub mod schedule;
