//! A small NBD client, for the bench: newstyle handshake, simple and structured replies.
//! Source: `doc/proto.md` and `doc/uri.md` of NetworkBlockDevice/nbd.

pub(crate) mod client;
mod handshake;
mod replies;
pub(crate) mod uri;
