//! Repairing a few blocks: fetch them from another member and place them anew, at the pace of all copying: a
//! region that rots is found by many reads at once, and its repair must not hold them up.

use super::{Output, Pace, PullError, blocks_of, placement};
use crate::store::{Reply, Request, RequestError};
use std::time::Duration;
use trivet_model::{BLOCK_SIZE_U64, BlockRange, Generation, VolumeId};
use trivet_wire::Message;

/// What to repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairOrder {
    /// Which volume.
    pub volume: VolumeId,
    /// The blocks, up to `IO_BLOCKS_MAX`.
    pub range: BlockRange,
    /// The session's: stamps of later ones are refused.
    pub generation: Generation,
}

/// ```text
/// Begin ──Fetch──► Fetching ──FetchReply──► Placing ──Done──► Ended
///    └──────────────── any failure ───────────────────────────►┘
/// ```
#[derive(Debug)]
enum Phase {
    Begin,
    Fetching,
    /// Fetched, to be handed to the store.
    Place(Box<Request>),
    Placing,
    Ended(Result<(), PullError>),
}

/// A repair under way.
#[derive(Debug)]
pub struct Repair {
    order: RepairOrder,
    phase: Phase,
}

impl Repair {
    /// One that has asked nothing yet.
    #[must_use]
    pub const fn new(order: RepairOrder) -> Self {
        Self { order, phase: Phase::Begin }
    }

    /// What is to be done next; asked again when the pace allows more.
    pub fn poll(&mut self, now: Duration, pace: &mut Pace, out: &mut Vec<Output>) {
        match std::mem::replace(&mut self.phase, Phase::Placing) {
            Phase::Begin if !pace.take(now, u64::from(self.order.range.count) * BLOCK_SIZE_U64) => {
                self.phase = Phase::Begin;
            }
            Phase::Begin => {
                self.phase = Phase::Fetching;
                out.push(Output::Ask(0, Message::Fetch { range: self.order.range }));
            }
            Phase::Place(request) => out.push(Output::Submit(0, *request)),
            other => self.phase = other,
        }
    }

    /// The source has answered.
    pub fn source_answered(&mut self, _id: u64, message: Message) {
        if !matches!(self.phase, Phase::Fetching) {
            return;
        }
        let RepairOrder { volume, range, generation } = self.order;
        self.phase = match placement(range, generation, message, true) {
            Ok(found) if blocks_of(&found.versions) == 0 => Phase::Ended(Ok(())),
            Ok(placement) => Phase::Place(Box::new(Request::Place { volume, placement })),
            Err(error) => Phase::Ended(Err(error)),
        };
    }

    /// The store has answered.
    pub fn store_answered(&mut self, _id: u64, result: Result<Reply, RequestError>) {
        self.phase = Phase::Ended(result.map(drop).map_err(PullError::Store));
    }

    /// The source cannot be asked any more, or the session is over. What the store has already
    /// been given is waited for.
    pub fn fail(&mut self, error: PullError) {
        if matches!(self.phase, Phase::Begin | Phase::Fetching | Phase::Place(_)) {
            self.phase = Phase::Ended(Err(error));
        }
    }

    /// The outcome, once there is one.
    #[must_use]
    pub const fn result(&self) -> Option<&Result<(), PullError>> {
        match &self.phase {
            Phase::Ended(result) => Some(result),
            _ => None,
        }
    }

    /// The volume that it is about.
    #[must_use]
    pub const fn volume(&self) -> VolumeId {
        self.order.volume
    }
}
