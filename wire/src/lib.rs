//! The data protocol between an engine and a replica: frames and their codec. No I/O here.
//!
//! One TCP connection per engine and replica. Every frame is a fixed [`header`], a fixed part and
//! block payload; all integers are little-endian. `docs/wire-format.md` explains the reasons, this
//! crate owns the bytes.
#![forbid(unsafe_code)]

mod blocks;
mod body;
mod decode;
mod encode;
mod error_code;
mod fields;
pub mod frame;
pub mod header;
mod kind;

pub use blocks::BlockData;
pub use decode::{DecodeError, Decoder};
pub use encode::{Encoder, Envelope, encode};
pub use error_code::ErrorCode;
pub use frame::{
    Extent, FlushReply, Frame, Hello, HelloReply, Message, OpenReply, PROTOCOL_VERSION, PoolReport, Progress,
    PullReport, PullState, SnapshotEntry, TailEntry, VolumeReport,
};
pub use kind::Kind;
