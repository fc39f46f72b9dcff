//! Copying from another member: the walk of one that comes back, and the repair of a few blocks. And from a
//! clone's parent, within the pool (`flatten.rs`).
//!
//! ```text
//!                 Changed                       Changed (own)
//!  List ─────────────────────► source ─► page ─────────────────► compare ─┬─► fetch ─► verify ─► place
//!   ▲                                     ▲                               ├─► place tombstones
//!   │ page compared                       │ more of the page              └─► diverged, to be told
//!   └─────────────────────────────────────┴──────────────────────────────────
//! ```
//!
//! Events in, [`Output`]s out: no clock, socket or thread. The shell in [`crate::server`] speaks to the
//! source and hands requests to the store.
//!
//! Invariants
//! - What a pass asks of the source it is answered as the pass sees it: the next begins when all of the
//!   last has been asked for, and answers come in order.
//! - Memory is bounded: a page of the source's, one of our own, what is in flight, and the diverged
//!   ranges not told yet; the walk waits for these to be taken.
//! - Nothing is placed that was not asked for, does not match its checksum, or has a stamp of a
//!   generation to come.
//! - A tombstone that the source names is placed even where we hold it: ours may be about to leave
//!   no trace in the map, and we may be somebody's source tomorrow.

mod compare;
mod flatten;
mod latencies;
mod pace;
mod repair;
#[cfg(test)]
mod tests;
mod walk;

pub use flatten::Flatten;
pub use pace::Pace;
pub use repair::{Repair, RepairOrder};
pub use walk::{Pull, PullOrder};

use crate::store::{Placement, Reply, Request, RequestError, Snapshot, TailExtent};
use std::time::Duration;
use trivet_model::{BlockRange, Generation, SnapshotId, VolumeId};
use trivet_wire::{BlockData, Message, TailEntry};

/// What the shell must do. Ids are the job's own; answers bring them back.
#[derive(Debug)]
pub enum Output {
    /// Ask the source.
    Ask(u64, Message),
    /// Ask the store.
    Submit(u64, Request),
}

/// Why a job has ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// The source said so.
    #[error("the source refuses: {detail} ({code:?})")]
    Refused {
        /// The kind.
        code: trivet_wire::ErrorCode,
        /// For people.
        detail: String,
    },
    /// A block changed on its way.
    #[error("block {0} arrived changed")]
    Changed(u64),
    /// The source is of another mind about the protocol.
    #[error("the source answers what was not asked: {0}")]
    Nonsense(&'static str),
    /// We have written what nobody acknowledged, and a snapshot shows it: it cannot be written anew.
    #[error("snapshot {snapshot} shows {range} here as they were never acknowledged")]
    Diverged {
        /// The first such snapshot.
        snapshot: SnapshotId,
        /// The first such blocks.
        range: BlockRange,
    },
    /// Our own store.
    #[error("{0}")]
    Store(RequestError),
    /// The connection to the source, or the session that it was for.
    #[error("{0}")]
    Link(String),
}

/// One of the two, for a shell that serves both.
#[derive(Debug)]
pub enum Job {
    /// A walk.
    Pull(Box<Pull>),
    /// A repair.
    Repair(Repair),
}

impl Job {
    /// What is to be done next; asked again after every answer, and when the pace allows more. `snapshots`
    /// are those that the member has now of a volume.
    pub fn poll(
        &mut self,
        now: Duration,
        pace: &mut Pace,
        snapshots: impl FnOnce(VolumeId) -> Vec<Snapshot>,
        out: &mut Vec<Output>,
    ) {
        match self {
            Self::Pull(pull) => {
                let volume = pull.volume();
                pull.poll(now, pace, || snapshots(volume), out);
            }
            Self::Repair(repair) => repair.poll(now, pace, out),
        }
    }

    /// The source has answered.
    pub fn source_answered(&mut self, id: u64, message: Message) {
        match self {
            Self::Pull(pull) => pull.source_answered(id, message),
            Self::Repair(repair) => repair.source_answered(id, message),
        }
    }

    /// The store has answered.
    pub fn store_answered(&mut self, id: u64, result: Result<Reply, RequestError>) {
        match self {
            Self::Pull(pull) => pull.store_answered(id, result),
            Self::Repair(repair) => repair.store_answered(id, result),
        }
    }

    /// The source cannot be asked any more.
    pub fn fail(&mut self, error: PullError) {
        match self {
            Self::Pull(pull) => pull.fail(error),
            Self::Repair(repair) => repair.fail(error),
        }
    }

    /// Whether it wants nothing more of its source.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match self {
            Self::Pull(pull) => pull.is_over(),
            Self::Repair(repair) => repair.result().is_some(),
        }
    }

    /// The volume that it is about.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        match self {
            Self::Pull(pull) => pull.volume(),
            Self::Repair(repair) => repair.volume(),
        }
    }
}

/// What a source answered to a `Fetch`, judged and ready to be placed.
fn placement(
    asked: BlockRange,
    generation: Generation,
    message: Message,
    repair: bool,
) -> Result<Placement, PullError> {
    let (versions, data) = match message {
        Message::FetchReply { versions, data } => (versions, data),
        Message::Error { code, detail } => return Err(PullError::Refused { code, detail }),
        _ => return Err(PullError::Nonsense("not what a Fetch is answered by")),
    };
    let versions = extents(&versions, generation)?;
    let inside = |run: &TailExtent| run.range.start >= asked.start && run.range.end() <= asked.end();
    if !versions.iter().all(inside) {
        return Err(PullError::Nonsense("blocks that were not asked for"));
    }
    if let Err(index) = data.verify() {
        let mut blocks = versions.iter().filter(|run| !run.discard).flat_map(|run| run.range.blocks());
        return Err(PullError::Changed(blocks.nth(index).unwrap_or(asked.start)));
    }
    let BlockData { crcs, tags, segments } = data;
    Ok(Placement { versions, crcs, tags, segments, repair })
}

/// Entries of the wire, their stamps judged.
fn extents(entries: &[TailEntry], generation: Generation) -> Result<Vec<TailExtent>, PullError> {
    if entries.iter().any(|entry| entry.stamp.generation() > generation) {
        return Err(PullError::Nonsense("a stamp of a generation to come"));
    }
    let extent =
        |entry: &TailEntry| TailExtent { range: entry.range, stamp: entry.stamp, discard: entry.discard };
    Ok(entries.iter().map(extent).collect())
}

/// Blocks that a placement brings.
fn blocks_of(versions: &[TailExtent]) -> u64 {
    versions.iter().map(|run| u64::from(run.range.count)).sum()
}
