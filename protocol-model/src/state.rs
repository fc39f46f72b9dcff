//! The state of the modelled world, and what may be wrong with it.

use crate::history::{History, Values};
use crate::list::List;
use crate::record::{Member, Record, Swap};
use crate::replica::{Replica, Stamp, Value};
use crate::set::Set;

/// Replicas, at most.
pub const REPLICAS_MAX: usize = 3;
/// Blocks, at most.
pub const BLOCKS_MAX: usize = 2;
/// Engines at the same time.
pub const ENGINES: usize = 2;

/// Everything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    /// The volume record, in its store.
    pub record: Record,
    /// A swap that its sender has given up, and that may be done yet.
    pub late: Option<Record>,
    /// The replicas.
    pub replicas: [Replica; REPLICAS_MAX],
    /// The engines.
    pub engines: [Engine; ENGINES],
    /// What clients may see.
    pub history: History,
    /// How much of the bounds is used up.
    pub used: Used,
    /// What was done that must not be; nothing happens after it.
    pub violation: Option<Violation>,
}

/// How often each thing has happened; see [`crate::bounds::Bounds`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[allow(missing_docs, reason = "the bounds say it")]
pub struct Used {
    pub writes: u8,
    pub flushes: u8,
    pub openings: u8,
    pub closes: u8,
    pub breaks: u8,
    pub kills: u8,
    pub losses: u8,
    pub outages: u8,
}

/// A step that must not be. Numbers are the invariants of the design.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Violation {
    /// 2: an acknowledgement after a newer generation served something.
    AcknowledgedTooLate,
    /// 4: a read or an acknowledgement that no order of the requests explains, or that goes back.
    NotLinearizable,
    /// 5: nobody is in sync, or someone became so without having been `Syncing`.
    WrongMembership,
    /// 8: a member was promoted that is not equal to the others.
    PromotedUnequal,
    /// 1: what is acknowledged was given up, though a member had it that had lost nothing.
    LossChosen,
    /// An opener took every member for one that lost data.
    NobodyLeft,
}

/// Where an engine is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Phase {
    /// There is none: not started, crashed, closed or fenced.
    #[default]
    Off,
    /// The record is claimed; members are being opened.
    Connecting,
    /// Members are being made alike.
    Reconciling,
    /// They are; an older engine's lease may stand.
    Waiting,
    /// It serves.
    Open,
    /// It serves no more, and the record is to say so.
    Closing,
}

/// An engine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Engine {
    /// Where it is.
    pub phase: Phase,
    /// Claimed.
    pub generation: u8,
    /// The last one given to a write.
    pub sequence: u8,
    /// The record, as last swapped or read.
    pub view: Record,
    /// The swap under way.
    pub swap: Option<Swap>,
    /// Members with whom it has a connection on which they promised its generation.
    pub connected: Set,
    /// Members that ever did.
    pub promised: Set,
    /// In-sync member that did first: the wait counts from it.
    pub first_promise: Option<u8>,
    /// Members that answered something sent within the last `LEASE`.
    pub leases: Set,
    /// Members that lost power since they were connected: another boot id comes with the next opening.
    pub rebooted: Set,
    /// Found when the record was claimed.
    pub found_closed: bool,
    /// A lease of an older engine may stand.
    pub must_wait: bool,
    /// It has waited.
    pub waited: bool,
    /// Members that the swap under way drops.
    pub leaving: Set,
    /// The highest stamp that each member acknowledged.
    pub held: [Stamp; REPLICAS_MAX],
    /// Writes on their way, in order of stamps; rewrites too.
    pub writes: List<InFlight, 6>,
    /// Every in-sync member holds everything up to it.
    pub committed: Stamp,
    /// Every in-sync member has everything up to it on its medium.
    pub stable: Stamp,
    /// The round of flushes under way.
    pub flush: Option<Flush>,
    /// Reconciling ends with a flush.
    pub wants_flush: bool,
    /// Members coming back.
    pub resyncs: [Resync; REPLICAS_MAX],
}

/// A write on its way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct InFlight {
    /// Its stamp.
    pub stamp: Stamp,
    /// Where.
    pub block: u8,
    /// What.
    pub value: Value,
    /// A client awaits it; else it is a rewrite.
    pub client: bool,
    /// All that must hold it do; only members that come back have yet to get it.
    pub settled: bool,
    /// Members that have answered it.
    pub done: Set,
}

/// A round of flushes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flush {
    /// Committed as it began.
    pub covers: Stamp,
    /// Whom it was sent to.
    pub awaits: Set,
    /// Members that have answered it.
    pub done: Set,
    /// What blocks may hold after it.
    pub floor: Values,
}

/// A member's way back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct Resync {
    /// How far it is.
    pub stage: Stage,
    /// Both sides hold the same up to it.
    pub base: Stamp,
    /// `J`: the first stamp that it receives.
    pub receives: Stamp,
    /// The first stamp that needs it.
    pub joins: Stamp,
    /// Whom it pulls from.
    pub source: Option<u8>,
    /// Blocks that the walk has passed.
    pub pulled: Set,
    /// Blocks to be rewritten.
    pub diverged: Set,
}

/// How far a member's way back has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub enum Stage {
    /// Not begun.
    #[default]
    No,
    /// It gets what is written, and pulls the rest.
    Receiving,
    /// What is written now needs it.
    Joined,
    /// And it is flushed.
    Flushed,
    /// It is in sync. (Kept so that this can be seen in a state.)
    Promoted,
}

impl Engine {
    /// Whom a write with `stamp` needs, as the record and the joins say.
    #[must_use]
    pub fn needs(&self, stamp: Stamp) -> Set {
        let joined = |m: &usize| self.resyncs[*m].has_joined() && self.resyncs[*m].joins <= stamp;
        self.view.in_sync().union((0..REPLICAS_MAX).filter(joined).collect())
    }

    /// In-sync members and those that have joined.
    #[must_use]
    pub fn required(&self) -> Set {
        self.view.in_sync().union((0..REPLICAS_MAX).filter(|m| self.resyncs[*m].has_joined()).collect())
    }

    /// Whether a write with `stamp` goes to a member.
    #[must_use]
    pub fn sends(&self, member: usize, stamp: Stamp) -> bool {
        let resync = &self.resyncs[member];
        self.view.members[member] == Member::InSync && resync.stage == Stage::No
            || resync.stage != Stage::No && resync.receives <= stamp
    }

    /// Whether something unsettled is on its way to a block.
    #[must_use]
    pub fn is_writing(&self, block: usize) -> bool {
        self.writes.items().iter().any(|write| usize::from(write.block) == block && !write.settled)
    }

    /// The last stamp given.
    #[must_use]
    pub fn last_stamp(&self) -> Stamp {
        Stamp::new(self.generation, self.sequence)
    }

    /// The stamp that the next write gets.
    #[must_use]
    pub fn next_stamp(&self) -> Stamp {
        Stamp::new(self.generation, self.sequence + 1)
    }
}

impl Resync {
    /// Whether writes need it, and the record does not say so yet.
    #[must_use]
    pub const fn has_joined(&self) -> bool {
        matches!(self.stage, Stage::Joined | Stage::Flushed)
    }
}
