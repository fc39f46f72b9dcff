//! Flattening a clone: what it reads from its ancestors becomes its own, under the stamps that it has, and
//! then the tie to its parent is cut.
//!
//! ```text
//!          Inherited                Inherit                  all placed
//!  List ──────────────► page ─► read ─────────► place          Flush        Untie
//!   ▲                                             │    Walked ──────► Kept ───────► Ended
//!   └───────────── the next page ─────────────────┘
//! ```
//!
//! Between a block that is placed and one that is written the higher stamp stands, so the clone may be in use
//! meanwhile. Nothing is resumed from a cursor: after a crash the walk begins anew, and passes over what the
//! clone has.
//!
//! Invariants
//! - What the walk has passed stays the clone's own, whatever is written, discarded, snapshotted or deleted
//!   meanwhile. While the tie stands every discard leaves a tombstone, and no deletion of a snapshot takes a
//!   block's last version away.
//! - All of that is stable before the tie is cut. A crash may take what is not, and nobody would send it again:
//!   its stamps are older than the clone.

use super::{Output, Pace, PullError};
use crate::planted::{self, PlantedFault};
use crate::store::{FetchedBlocks, Placement, Reply, Request, RequestError, TailExtent};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{BLOCK_SIZE_U64, BlockRange, VolumeId};
use trivet_wire::{PullReport, PullState};

/// Data asked for and not yet placed (4 MiB).
const IN_FLIGHT_BLOCKS_MAX: u64 = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    List { start: u64 },
    Listing { start: u64, id: u64 },
    Walked,
    Flushing { id: u64 },
    Kept,
    Untying { id: u64 },
    Ended,
}

/// A flattening under way.
#[derive(Debug)]
pub struct Flatten {
    volume: VolumeId,
    blocks: u64,
    phase: Phase,
    /// To be read.
    reads: VecDeque<BlockRange>,
    /// Read, to be placed.
    places: Vec<(u64, Placement)>,
    in_flight: BTreeMap<u64, BlockRange>,
    blocks_in_flight: u64,
    copied_blocks: u64,
    next_id: u64,
    failure: Option<PullError>,
}

impl Flatten {
    /// One that has asked nothing yet, of a volume of so many blocks.
    #[must_use]
    pub const fn new(volume: VolumeId, blocks: u64) -> Self {
        Self {
            volume,
            blocks,
            phase: Phase::List { start: 0 },
            reads: VecDeque::new(),
            places: Vec::new(),
            in_flight: BTreeMap::new(),
            blocks_in_flight: 0,
            copied_blocks: 0,
            next_id: 0,
            failure: None,
        }
    }

    /// The volume that it is about.
    #[must_use]
    pub const fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Whether the tie is cut, or it has failed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.failure.is_some() || self.phase == Phase::Ended
    }

    /// Why it has failed, if it has.
    #[must_use]
    pub const fn failure(&self) -> Option<&PullError> {
        self.failure.as_ref()
    }

    /// The session or the server has ended.
    pub fn fail(&mut self, error: PullError) {
        if !self.is_over() {
            self.failure = Some(error);
        }
    }

    /// How far it is.
    #[must_use]
    pub fn report(&self) -> PullReport {
        let state = match (&self.failure, self.phase) {
            (Some(_), _) => PullState::Failed,
            (None, Phase::Ended) => PullState::Finished,
            (None, _) => PullState::Running,
        };
        let reached = match self.phase {
            Phase::List { start } | Phase::Listing { start, .. } => start,
            Phase::Walked | Phase::Flushing { .. } | Phase::Kept | Phase::Untying { .. } | Phase::Ended => {
                self.blocks
            }
        };
        let waiting = self.reads.iter().chain(self.in_flight.values()).map(|range| range.start);
        PullReport {
            state,
            position: waiting.fold(reached, u64::min),
            copied_blocks: self.copied_blocks,
            diverged: Vec::new(),
            detail: self.failure.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// What is to be done next; asked again after every answer, and when the pace allows more.
    pub fn poll(&mut self, now: Duration, pace: &mut Pace, out: &mut Vec<Output>) {
        if self.is_over() {
            return;
        }
        let volume = self.volume;
        for (id, placement) in std::mem::take(&mut self.places) {
            out.push(Output::Submit(id, Request::Place { volume, placement }));
        }
        while let Some(range) = self.reads.front().copied()
            && self.blocks_in_flight + u64::from(range.count) <= IN_FLIGHT_BLOCKS_MAX
            && pace.take(now, u64::from(range.count) * BLOCK_SIZE_U64)
        {
            self.reads.pop_front();
            let id = self.take_id();
            self.blocks_in_flight += u64::from(range.count);
            self.in_flight.insert(id, range);
            out.push(Output::Submit(id, Request::Inherit { volume, range }));
        }
        match self.phase {
            Phase::List { start } if self.reads.is_empty() => {
                let id = self.take_id();
                self.phase = Phase::Listing { start, id };
                out.push(Output::Submit(id, Request::Inherited { volume, start }));
            }
            Phase::Walked if self.is_placed() && !planted::is(PlantedFault::UntieUnflushed) => {
                let id = self.take_id();
                self.phase = Phase::Flushing { id };
                out.push(Output::Submit(id, Request::Flush { volume }));
            }
            Phase::Walked | Phase::Kept if self.is_placed() => {
                let id = self.take_id();
                self.phase = Phase::Untying { id };
                out.push(Output::Submit(id, Request::Untie { volume }));
            }
            _ => {}
        }
    }

    /// The store has answered.
    pub fn store_answered(&mut self, id: u64, result: Result<Reply, RequestError>) {
        if self.is_over() {
            return;
        }
        match (result, self.phase) {
            (Err(error), _) => self.failure = Some(PullError::Store(error)),
            (Ok(Reply::Changed(page)), Phase::Listing { id: listing, .. }) if listing == id => {
                self.reads = runs(&page.versions).into();
                self.place_discards(&page.versions);
                self.phase = page.next.map_or(Phase::Walked, |start| Phase::List { start });
            }
            (Ok(Reply::Fetched(found)), _) => self.was_read(id, found),
            (Ok(_), Phase::Flushing { id: flushing }) if flushing == id => self.phase = Phase::Kept,
            (Ok(_), Phase::Untying { id: untying }) if untying == id => self.phase = Phase::Ended,
            (Ok(_), _) => self.placed(id),
        }
    }

    /// Discards that hide what is inherited are placed once more, to outlast the tie: another member may still
    /// be away, and must be told of them when it comes back.
    fn place_discards(&mut self, versions: &[TailExtent]) {
        for discard in versions.iter().filter(|version| version.discard) {
            let id = self.take_id();
            self.blocks_in_flight += u64::from(discard.range.count);
            self.in_flight.insert(id, discard.range);
            self.places.push((id, Placement { versions: vec![*discard], ..Placement::default() }));
        }
    }

    fn was_read(&mut self, id: u64, found: FetchedBlocks) {
        let FetchedBlocks { versions, crcs, tags, segments } = found;
        self.copied_blocks += crcs.len() as u64;
        if versions.is_empty() {
            return self.placed(id);
        }
        self.places.push((id, Placement { versions, crcs, tags, segments, repair: false }));
    }

    fn placed(&mut self, id: u64) {
        if let Some(range) = self.in_flight.remove(&id) {
            self.blocks_in_flight -= u64::from(range.count);
        }
    }

    /// Whether all that was found is the clone's own.
    fn is_placed(&self) -> bool {
        self.reads.is_empty() && self.in_flight.is_empty()
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// What to read in one go each: runs of blocks, whatever their stamps, in pieces.
fn runs(versions: &[TailExtent]) -> Vec<BlockRange> {
    let mut runs: Vec<BlockRange> = Vec::new();
    let data = versions.iter().filter(|version| !version.discard);
    for block in data.flat_map(|version| version.range.blocks()) {
        match runs.last_mut() {
            Some(last) if last.end() == block && last.count < IO_BLOCKS_MAX => last.count += 1,
            _ => runs.push(BlockRange::new(block, 1)),
        }
    }
    runs
}
