//! What happened, in order: a hash of everything, and the last of it in words.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use trivet_engine::volume::VolumeState;
use trivet_wire::{Frame, Kind, Message};

use crate::swarm::Fault;

/// How much is kept for people.
const KEPT: usize = 120;

/// One thing that happened. Small: most are never shown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Happening {
    Frame { connection: usize, to_host: bool, kind: Kind, request: u64, stamp: u64, block: u64 },
    Connected { connection: usize, engine: usize, host: usize },
    Ended { connection: usize, at_host: bool },
    Asked { engine: usize, tag: u64, what: &'static str, sector: usize, sectors: usize, value: u64 },
    Answered { engine: usize, tag: u64, outcome: &'static str },
    State { engine: usize, generation: u32, state: u8 },
    Record { engine: usize, what: &'static str, generation: u32, epoch: u64 },
    EngineStarts { engine: usize, incarnation: u64 },
    EngineEnds { engine: usize, why: &'static str },
    ReplicaStarts { host: usize, replayed: u64, dropped: u64, last: u64, intact: u64 },
    ReplicaEnds { host: usize, why: &'static str },
    Struck(Fault),
    Note(&'static str),
}

impl Happening {
    pub(crate) fn frame(connection: usize, to_host: bool, frame: &Frame) -> Self {
        let (stamp, block) = match &frame.message {
            Message::Write { start, stamp, .. } => (stamp.as_u64(), *start),
            Message::Discard { range, stamp, .. } => (stamp.as_u64(), range.start),
            Message::Read { range } => (0, range.start),
            Message::OpenReply(reply) => (reply.last.as_u64(), reply.intact.as_u64()),
            Message::Error { code, .. } => (u64::from(code.number()), 0),
            _ => (0, 0),
        };
        Self::Frame { connection, to_host, kind: frame.message.kind(), request: frame.request, stamp, block }
    }
}

pub(crate) const fn state_number(state: VolumeState) -> u8 {
    state as u8
}

/// A stamp as generation and sequence.
fn stamp(raw: u64) -> String {
    format!("{}.{}", raw >> 40, raw & ((1 << 40) - 1))
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame { connection, to_host, kind, request, stamp: raw, block } => {
                let arrow = if *to_host { "->" } else { "<-" };
                write!(
                    f,
                    "connection {connection:<3} {arrow} {kind:?} #{request} {} block {block}",
                    stamp(*raw)
                )
            }
            Self::ReplicaStarts { host, replayed, dropped, last, intact } => write!(
                f,
                "replica {host} starts: {replayed} journal blocks, {dropped} blocks dropped, last {}, intact {}",
                stamp(*last),
                stamp(*intact)
            ),
            other => write!(f, "{other:?}"),
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Trace {
    hasher: DefaultHasher,
    last: VecDeque<(Duration, Happening)>,
    print: bool,
    pub(crate) events: u64,
}

impl Trace {
    pub(crate) fn new(print: bool) -> Self {
        Self { hasher: DefaultHasher::new(), last: VecDeque::with_capacity(KEPT), print, events: 0 }
    }

    pub(crate) fn note(&mut self, now: Duration, happening: Happening) {
        (now, happening).hash(&mut self.hasher);
        if self.print {
            println!("{:>14.6} {happening}", now.as_secs_f64());
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back((now, happening));
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// The last of it, one line each.
    pub(crate) fn tail(&self) -> Vec<String> {
        self.last.iter().map(|(at, happening)| format!("{:>14.6} {happening}", at.as_secs_f64())).collect()
    }
}
