//! The data protocol between an engine and a replica: frames and their codec. No I/O here.
//!
//! One TCP connection per engine and replica. Every frame is a fixed [`header`] and a body; all
//! integers are little-endian. `docs/wire-format.md` explains the reasons, this crate owns the bytes.
#![forbid(unsafe_code)]

pub mod codec;
pub mod frame;
pub mod header;

pub use codec::{DecodeError, Decoder};
pub use frame::{
    BlockData, ErrorCode, Extent, FlushReply, Frame, Hello, HelloReply, Message, OpenReply, PoolReport,
    TailEntry, VolumeReport,
};
