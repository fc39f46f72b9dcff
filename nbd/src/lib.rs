//! The client's side of NBD, pure: bytes in, bytes out. Its shells own the sockets.
//! Source: `doc/proto.md` and `doc/uri.md` of NetworkBlockDevice/nbd.
//!
//! What a server sends is not trusted: lengths are checked before anything is kept, nothing is
//! allocated beyond what was asked for, and a reply that brings other bytes than those that were
//! asked for ends the connection.
#![forbid(unsafe_code)]

mod connection;
mod error;
mod expected;
mod fingerprint;
mod handshake;
mod replies;
mod request;
mod uri;

pub use connection::{Connection, Event};
pub use error::ProtocolError;
pub use expected::{Extent, Finished};
pub use fingerprint::{fingerprint, fingerprint_runs};
pub use handshake::{Export, Wanted};
pub use request::Request;
pub use uri::{Server, Uri, unix_uri};
