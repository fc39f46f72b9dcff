//! The NBD server protocol, as a pure state machine: no socket, no thread, no clock.
//!
//! Source: `doc/proto.md` of NetworkBlockDevice/nbd. What is supported and what is refused is in
//! `docs/nbd.md`.
//!
//! A shell owns the socket and takes these turns, each step as often as it has something to do:
//!
//! 1. hand completions of the volume's requests to [`Connection::complete`], and received bytes to
//!    [`Connection::received`] (a failed receive or send: [`Connection::end_of_input`]);
//! 2. call [`Connection::next_request`] until it returns `None`, and submit what it returns;
//! 3. unless a send is under way, [`Connection::take_output`] and send it all in one call;
//! 4. if [`Connection::wants_input`], receive into [`Connection::buffer`];
//! 5. once [`Connection::is_finished`] and everything is sent, close.
//!
//! ```text
//!                                                    ┌────────────┐
//!  socket ─ received ─▶ Input ─▶ Handshake / Command ─▶ Requests   ─ next_request ─▶ volume
//!                                                    │ (slab)     │
//!  socket ◀ take_output ─ Output ◀──── reply ◀───────┤            │◀─ complete ───── volume
//!                                                    └────────────┘
//! ```

mod close;
mod command;
mod connection;
mod context;
mod handshake;
mod input;
mod output;
mod protocol;
mod reply;
mod requests;
#[cfg(test)]
mod tests;

pub use close::{CloseReason, Violation};
pub use connection::Connection;
pub use requests::Tag;

use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{BLOCK_SIZE_U64, SECTOR_SIZE, SnapshotId};

/// Longest read or write that a client may ask for, in bytes.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Requests of one connection that the volume has at once.
pub const REQUESTS_MAX: usize = 512;
/// Bytes that one connection may have in flight: payloads being written, reads asked for, and
/// replies that wait to be taken. A single request is always let through.
pub const BYTES_IN_FLIGHT_MAX: usize = 64 << 20;

/// Longest read or write handed to the volume at once. Longer ones are split, so that a long write
/// is under way while the rest of it comes in, a read's beginning leaves before its end is there,
/// and no buffer is as large as what a client announces.
const PART_BYTES_MAX: u64 = IO_BLOCKS_MAX as u64 * BLOCK_BYTES;
const BLOCK_BYTES: u64 = BLOCK_SIZE_U64;
const SECTOR_BYTES: u64 = SECTOR_SIZE as u64;
/// The size constraints that clients are told.
const MINIMUM_BYTES: u32 = 512;
const PREFERRED_BYTES: u32 = 4096;
const _: () = assert!(MINIMUM_BYTES as u64 == SECTOR_BYTES && PREFERRED_BYTES as u64 == BLOCK_BYTES);

/// The volume that a server offers, under its name and as the default export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its name; at most 4096 bytes.
    pub name: String,
    /// For people; at most 4096 bytes, may be empty.
    pub description: String,
    /// Its size, a multiple of the 512-byte sector.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Since when clients may ask what has changed.
    pub changed_since: Vec<Since>,
}

/// A snapshot since which clients may ask what has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub snapshot: SnapshotId,
}
