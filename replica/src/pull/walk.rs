//! The walk of a member that comes back, over all blocks that changed on either side.
//!
//! It goes over the volume once for each snapshot taken since, the oldest first, and then over the volume
//! itself: each time it brings what the cut shows and the one before does not. Both sides have the same
//! snapshots when it begins.
//!
//! A snapshot may be taken meanwhile. What it shows may be overwritten at the source before it was copied:
//! then only the snapshot shows it, and the walk goes over the volume once more for it.

use super::compare::compare;
use super::{Output, Pace, PullError, blocks_of, extents, placement};
use crate::planted::{self, PlantedFault};
use crate::store::{
    ChangedPage, PLACE_RUNS_MAX, PLACE_TOMBSTONES_MAX, Placement, Reply, Request, RequestError, Snapshot,
    TailExtent,
};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{BlockRange, Generation, SnapshotId, Stamp, VolumeId};
use trivet_wire::frame::DIVERGED_MAX;
use trivet_wire::{Message, PullReport, PullState};

/// Data asked for and not yet placed (8 MiB).
const IN_FLIGHT_BLOCKS_MAX: u64 = 2048;
/// Requests to source and store under way.
const IN_FLIGHT_MAX: usize = 128;
/// Diverged ranges not told yet above which the walk waits.
const DIVERGED_HELD_MAX: usize = 16 * DIVERGED_MAX;

/// What to pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullOrder {
    /// Which volume.
    pub volume: VolumeId,
    /// Its size here.
    pub blocks: u64,
    /// Both sides hold the same up to here.
    pub since: Stamp,
    /// Writes of the session have this stamp or a higher one.
    pub floor: Stamp,
    /// The session's: stamps of later ones are refused.
    pub generation: Generation,
}

/// One time over the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pass {
    /// As what it is seen.
    at: Option<SnapshotId>,
    /// What was written up to here is there: as the order says, or by the pass before.
    since: Stamp,
}

/// Where the walk is.
#[derive(Debug)]
enum Phase {
    /// The source is to be told how the pass sees the volume.
    Look,
    Looking {
        id: u64,
    },
    /// The source is to be asked from this block on.
    List {
        start: u64,
    },
    Listing {
        start: u64,
        id: u64,
    },
    /// Our own versions are to be compared with the source's page, from block `from` on.
    Compare {
        page: SourcePage,
        from: u64,
    },
    Comparing {
        page: SourcePage,
        from: u64,
    },
    /// Everything has been compared.
    Walked,
}

/// What the source has of the blocks up to `end`.
#[derive(Debug)]
struct SourcePage {
    versions: Vec<TailExtent>,
    end: u64,
    is_last: bool,
}

/// Something to be done for a part of the volume.
#[derive(Debug)]
enum Errand {
    Fetch(BlockRange),
    Tombstones(Vec<TailExtent>),
}

impl Errand {
    fn start(&self) -> u64 {
        match self {
            Self::Fetch(range) => range.start,
            Self::Tombstones(runs) => runs.first().map_or(u64::MAX, |run| run.range.start),
        }
    }
}

/// Asked for, and not placed.
#[derive(Debug)]
struct InFlight {
    range: BlockRange,
    /// Of data.
    blocks: u64,
    /// What a place brings.
    placed: u64,
}

/// A pull under way.
#[derive(Debug)]
pub struct Pull {
    order: PullOrder,
    pass: Pass,
    /// Those to come.
    passes: VecDeque<Pass>,
    passes_done: u64,
    /// The newest cut that a pass is made for, or where the first began.
    covered: Stamp,
    /// Everything is there, for every snapshot.
    complete: bool,
    phase: Phase,
    errands: VecDeque<Errand>,
    /// Fetched, to be handed to the store.
    fetched: Vec<(u64, Placement)>,
    in_flight: BTreeMap<u64, InFlight>,
    blocks_in_flight: u64,
    diverged: VecDeque<BlockRange>,
    copied_blocks: u64,
    next_id: u64,
    failure: Option<PullError>,
}

impl Pull {
    /// A pull that has asked nothing yet, by a member with these snapshots.
    #[must_use]
    pub fn new(order: PullOrder, snapshots: &[Snapshot]) -> Self {
        let (mut passes, covered) = passes_for(snapshots, order.since);
        let head = Pass { at: None, since: covered };
        let pass = passes.pop_front();
        if pass.is_some() {
            passes.push_back(head);
        }
        Self {
            order,
            pass: pass.unwrap_or(head),
            passes,
            passes_done: 0,
            covered,
            complete: false,
            phase: if pass.is_some() { Phase::Look } else { Phase::List { start: 0 } },
            errands: VecDeque::new(),
            fetched: Vec::new(),
            in_flight: BTreeMap::new(),
            blocks_in_flight: 0,
            diverged: VecDeque::new(),
            copied_blocks: 0,
            next_id: 0,
            failure: None,
        }
    }

    /// The volume that it is about.
    #[must_use]
    pub const fn volume(&self) -> VolumeId {
        self.order.volume
    }

    /// Whether everything is placed, or it has failed; diverged ranges may still be to be told.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.failure.is_some() || self.complete
    }

    /// Why it has failed, if it has.
    #[must_use]
    pub const fn failure(&self) -> Option<&PullError> {
        self.failure.as_ref()
    }

    /// Whether all that the passes so far have found is there.
    fn is_placed(&self) -> bool {
        matches!(self.phase, Phase::Walked)
            && self.failure.is_none()
            && self.errands.is_empty()
            && self.fetched.is_empty()
            && self.in_flight.is_empty()
    }

    /// The source, the connection or the session has failed.
    pub fn fail(&mut self, error: PullError) {
        if !self.is_over() {
            self.failure = Some(error);
        }
    }

    /// How far it is; takes the diverged ranges that it tells.
    pub fn report(&mut self) -> PullReport {
        let told = self.diverged.len().min(DIVERGED_MAX);
        let diverged: Vec<BlockRange> = self.diverged.drain(..told).collect();
        let state = match &self.failure {
            Some(PullError::Diverged { .. }) => PullState::Hopeless,
            Some(_) => PullState::Failed,
            None if self.complete && self.diverged.is_empty() => PullState::Finished,
            None => PullState::Running,
        };
        PullReport {
            state,
            position: self.position(),
            copied_blocks: self.copied_blocks,
            diverged,
            detail: self.failure.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// Everything before this block is placed.
    fn position(&self) -> u64 {
        let reached = match &self.phase {
            Phase::Look | Phase::Looking { .. } => 0,
            Phase::List { start } | Phase::Listing { start, .. } => *start,
            Phase::Compare { from, .. } | Phase::Comparing { from, .. } => *from,
            Phase::Walked => self.order.blocks,
        };
        let waiting = self.errands.iter().map(Errand::start);
        let under_way = self.in_flight.values().map(|in_flight| in_flight.range.start);
        let of_pass = waiting.chain(under_way).fold(reached, u64::min);
        // Each pass is an equal part of the whole.
        let (done, all) = (self.passes_done, self.passes_done + 1 + self.passes.len() as u64);
        (self.order.blocks * done + of_pass) / all
    }

    /// What is to be done next; asked again after every answer, and when the pace allows more. `snapshots`
    /// are those that the member has now.
    pub fn poll(
        &mut self,
        now: Duration,
        pace: &mut Pace,
        snapshots: impl FnOnce() -> Vec<Snapshot>,
        out: &mut Vec<Output>,
    ) {
        if self.is_over() {
            return;
        }
        for (id, placement) in std::mem::take(&mut self.fetched) {
            out.push(Output::Submit(id, Request::Place { volume: self.order.volume, placement }));
        }
        self.run_errands(now, pace, out);
        self.walk_on(out);
        if self.is_placed() {
            self.pass_again(&snapshots());
            self.walk_on(out);
        }
    }

    /// Goes over the volume for the snapshots that were taken meanwhile; complete if there are none.
    fn pass_again(&mut self, snapshots: &[Snapshot]) {
        (self.passes, self.covered) = passes_for(snapshots, self.covered);
        match self.passes.pop_front() {
            None => self.complete = true,
            Some(next) => {
                self.pass = next;
                self.passes_done += 1;
                self.phase = Phase::Look;
            }
        }
    }

    /// Asks for the next part of the walk once all of the last is under way.
    fn walk_on(&mut self, out: &mut Vec<Output>) {
        if !self.errands.is_empty() || self.diverged.len() >= DIVERGED_HELD_MAX {
            return;
        }
        let Pass { at, since } = self.pass;
        let volume = self.order.volume;
        self.phase = match std::mem::replace(&mut self.phase, Phase::Walked) {
            Phase::Look => {
                let id = self.take_id();
                out.push(Output::Ask(id, Message::View { at }));
                Phase::Looking { id }
            }
            Phase::List { start } => {
                let id = self.take_id();
                out.push(Output::Ask(id, Message::Changed { since, start }));
                Phase::Listing { start, id }
            }
            Phase::Compare { page, from } => {
                let id = self.take_id();
                out.push(Output::Submit(id, Request::Changed { volume, at, since, start: from }));
                Phase::Comparing { page, from }
            }
            other => other,
        };
    }

    fn run_errands(&mut self, now: Duration, pace: &mut Pace, out: &mut Vec<Output>) {
        let most = pace.piece_blocks(now);
        while self.in_flight.len() < IN_FLIGHT_MAX {
            if let Some(&Errand::Fetch(range)) = self.errands.front()
                && range.count > most
            {
                self.errands.pop_front();
                let pieces: Vec<Errand> = portions(range, most).map(Errand::Fetch).collect();
                pieces.into_iter().rev().for_each(|piece| self.errands.push_front(piece));
            }
            let blocks = match self.errands.front() {
                Some(Errand::Fetch(range)) => u64::from(range.count),
                Some(Errand::Tombstones(_)) => 0,
                None => return,
            };
            let waits = blocks > 0
                && (self.blocks_in_flight + blocks > IN_FLIGHT_BLOCKS_MAX
                    || !pace.take(now, blocks * trivet_model::BLOCK_SIZE_U64));
            let errand = if waits { None } else { self.errands.pop_front() };
            let Some(errand) = errand else { return };
            let id = self.take_id();
            self.blocks_in_flight += blocks;
            let (range, placed) = match errand {
                Errand::Fetch(range) => {
                    out.push(Output::Ask(id, Message::Fetch { range }));
                    (range, 0)
                }
                Errand::Tombstones(versions) => {
                    let first = versions.first().map_or(BlockRange::default(), |run| run.range);
                    let placed = blocks_of(&versions);
                    let placement = Placement { versions, ..Placement::default() };
                    out.push(Output::Submit(id, Request::Place { volume: self.order.volume, placement }));
                    (first, placed)
                }
            };
            self.in_flight.insert(id, InFlight { range, blocks, placed });
        }
    }

    /// The source has answered.
    pub fn source_answered(&mut self, id: u64, message: Message) {
        if self.failure.is_some() {
            return;
        }
        let outcome = match self.phase {
            Phase::Listing { start, id: listing } if listing == id => self.listed(start, message),
            Phase::Looking { id: looking } if looking == id => self.looked(message),
            _ => self.was_fetched(id, message),
        };
        if let Err(error) = outcome {
            self.failure = Some(error);
        }
    }

    fn looked(&mut self, message: Message) -> Result<(), PullError> {
        match message {
            Message::Done => {
                self.phase = Phase::List { start: 0 };
                Ok(())
            }
            Message::Error { code, detail } => Err(PullError::Refused { code, detail }),
            _ => Err(PullError::Nonsense("not what View is answered by")),
        }
    }

    fn listed(&mut self, start: u64, message: Message) -> Result<(), PullError> {
        let (entries, next) = match message {
            Message::ChangedReply { entries, next } => (entries, next),
            Message::Error { code, detail } => return Err(PullError::Refused { code, detail }),
            _ => return Err(PullError::Nonsense("not what Changed is answered by")),
        };
        let versions = extents(&entries, self.order.generation)?;
        let end = next.unwrap_or(self.order.blocks);
        let mut at = start;
        for run in &versions {
            if run.range.start < at || run.stamp <= self.pass.since {
                return Err(PullError::Nonsense("changes out of order"));
            }
            at = run.range.end();
        }
        if at > end || end > self.order.blocks || next.is_some_and(|next| next <= start) {
            return Err(PullError::Nonsense("changes beyond where it says it looked, or the volume's end"));
        }
        let page = SourcePage { versions, end, is_last: next.is_none() };
        self.phase = Phase::Compare { page, from: start };
        Ok(())
    }

    fn was_fetched(&mut self, id: u64, message: Message) -> Result<(), PullError> {
        let Some(in_flight) = self.in_flight.get_mut(&id) else {
            return Err(PullError::Nonsense("an answer to nothing"));
        };
        let placement = placement(in_flight.range, self.order.generation, message, false)?;
        in_flight.placed = blocks_of(&placement.versions);
        if in_flight.placed == 0 {
            self.finished(id);
        } else {
            self.fetched.push((id, placement));
        }
        Ok(())
    }

    fn finished(&mut self, id: u64) {
        if let Some(done) = self.in_flight.remove(&id) {
            self.blocks_in_flight -= done.blocks;
            self.copied_blocks += done.placed;
        }
    }

    /// The store has answered.
    pub fn store_answered(&mut self, id: u64, result: Result<Reply, RequestError>) {
        if self.failure.is_some() {
            return;
        }
        match result {
            Ok(Reply::Changed(page)) => self.compared(page),
            Ok(_) => self.finished(id),
            Err(error) => self.failure = Some(PullError::Store(error)),
        }
    }

    fn compared(&mut self, own: ChangedPage) {
        let Phase::Comparing { page, from } = std::mem::replace(&mut self.phase, Phase::Walked) else {
            unreachable!("our own changes are asked for one page at a time");
        };
        let until = own.next.map_or(page.end, |next| next.min(page.end));
        let findings = compare(&page.versions, &own.versions, (from, until), self.order.floor);
        for range in findings.fetch {
            self.errands.extend(portions(range, IO_BLOCKS_MAX).map(Errand::Fetch));
        }
        self.queue_tombstones(findings.tombstones);
        if let (Some(snapshot), Some(range)) = (self.pass.at, findings.diverged.first()) {
            self.failure = Some(PullError::Diverged { snapshot, range: *range });
            return;
        }
        for range in findings.diverged {
            match self.diverged.back_mut() {
                Some(last) if last.end() == range.start && last.count < u32::MAX - range.count => {
                    last.count += range.count;
                }
                _ => self.diverged.push_back(range),
            }
        }
        self.phase = if until < page.end {
            Phase::Compare { page, from: until }
        } else if page.is_last
            && let Some(next) = self.passes.pop_front()
        {
            self.pass = next;
            self.passes_done += 1;
            Phase::Look
        } else if page.is_last {
            Phase::Walked
        } else {
            Phase::List { start: page.end }
        };
    }

    fn queue_tombstones(&mut self, runs: Vec<TailExtent>) {
        let (mut batch, mut blocks) = (Vec::new(), 0);
        for run in runs {
            for range in portions(run.range, PLACE_TOMBSTONES_MAX) {
                if batch.len() == PLACE_RUNS_MAX || blocks + range.count > PLACE_TOMBSTONES_MAX {
                    self.errands.push_back(Errand::Tombstones(std::mem::take(&mut batch)));
                    blocks = 0;
                }
                blocks += range.count;
                let stamp = run.stamp.plus(range.start - run.range.start);
                batch.push(TailExtent { range, stamp, discard: true });
            }
        }
        if !batch.is_empty() {
            self.errands.push_back(Errand::Tombstones(batch));
        }
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// A pass for each snapshot with a cut above `since`, and the highest cut.
fn passes_for(snapshots: &[Snapshot], mut since: Stamp) -> (VecDeque<Pass>, Stamp) {
    let mut passes = VecDeque::new();
    let missed = |snapshot: &&Snapshot| snapshot.cut > since && !planted::is(PlantedFault::PullHeadOnly);
    let missed: Vec<&Snapshot> = snapshots.iter().filter(missed).collect();
    for snapshot in missed {
        passes.push_back(Pass { at: Some(snapshot.id), since });
        since = snapshot.cut;
    }
    (passes, since)
}

/// A range in pieces of at most `most` blocks.
fn portions(range: BlockRange, most: u32) -> impl Iterator<Item = BlockRange> {
    (range.start..range.end()).step_by(most as usize).map(move |start| {
        let count = u32::try_from(range.end() - start).unwrap_or(u32::MAX).min(most);
        BlockRange::new(start, count)
    })
}
