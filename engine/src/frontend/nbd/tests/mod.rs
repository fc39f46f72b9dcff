//! Tests of the whole state machine, against transcripts and against real clients.

mod client;
mod commands;
mod corpus;
mod handshake;
mod interop;
mod limits;
mod splitting;

#[path = "../../../../../fuzz/harness/nbd.rs"]
#[allow(clippy::cast_possible_truncation, reason = "the volume is in memory: its offsets fit")]
#[allow(dead_code, unreachable_pub, reason = "the fuzz target uses another part of it")]
mod harness;

use crate::{frontend::nbd, request};
