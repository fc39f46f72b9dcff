//! Sealing blocks anew under the volume's present data key, in the background, at a bounded rate.
//!
//! ```text
//!  the record names an older key        all walked            flushed             nothing is sealed under
//!  that blocks may be sealed under  ┌─────────┐     ┌──────────┐     ┌───────────┐  older keys any more but
//!  ────────────────────────────────▶│ Walking │────▶│ Flushing │────▶│ Recording │─▶ what snapshots show
//!                                   └─────────┘     └──────────┘     └───────────┘
//!                                        ▲ every few seconds, with the position │
//!                                        └──────────────────────────────────────┘
//! ```
//!
//! A few blocks at a time are read and written anew, in their place among overlapping I/O: what a consumer writes
//! meanwhile comes before or after, never in between. Blocks that have a newer stamp already, and holes, are left
//! as they are. One member is asked for the blocks and another for their stamps, in any volume (`witness.rs`): an
//! older version, which a copy that lies could give back, must not be written to everyone. To members and everything else these are ordinary writes, so that who is away is brought back as
//! always, and snapshots keep what they show, under the keys of their time.
//!
//! A block that no member can read is left over, by itself, and tried again and again beside the walk: it keeps the
//! old key until it can be read, or is overwritten or discarded. Only the want of space, which all would meet,
//! has everything rest.
//!
//! The record says up to which block all is done and stable; whoever opens the volume goes on from there. That it
//! is done is recorded with a stamp above all that has been written anew: what snapshots with higher cuts show is
//! not sealed under an older key. So none may be under way at that moment, whose cut may be lower.

use super::control::{IDLE, Purpose};
use super::operation::{Operation, Outcome, Phase};
use super::ordering::Span;
use super::pieces::Piece;
use super::planted::PlantedFault as Planted;
use super::read::{Reading, Run, Then};
use super::scrub::pace::Pace;
use super::segments::trim;
use super::write::Writing;
use super::{MemberSet, OperationId, VolumeCore, VolumeState};
use crate::request::IoError;
use hashbrown::HashMap;
use serde::Serialize;
use std::collections::VecDeque;
use std::time::Duration;
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64, BlockRange, OlderKey, Stamp};

/// Blocks that are looked at in one go (256 KiB): so long consumers' writes there wait, at most.
const WINDOW_BLOCKS: u32 = 64;
const UNDER_WAY_MAX: usize = 4;
/// What may be read and written in a second, all in all; less while consumers want the disks (`scrub/pace.rs`).
const BYTES_PER_SECOND: u64 = 100 << 20;
/// How often the position is put into the record.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// How long it rests when something cannot be written for want of space.
const REST: Duration = Duration::from_secs(1);
/// How long until a block that could not be read is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// Such blocks, at most (64 MiB): with more, the walk goes no further until some of them are done.
const UNREADABLE_MAX: usize = 16 << 10;

/// Blocks being sealed anew; the module draws it.
#[derive(Debug)]
pub(super) struct Resealing {
    /// What has a stamp up to here is sealed under an older key.
    until: Stamp,
    next: u64,
    /// What was begun before `next`, and is not done: parts of at most as many windows as may be under way.
    left: VecDeque<BlockRange>,
    under_way: HashMap<OperationId, Window>,
    /// In the order in which they are tried again; they stay while they are.
    unreadable: VecDeque<Unreadable>,
    /// Blocks, in earlier openings too.
    changed: u64,
    began: (Duration, u64),
    pace: Pace,
    saving: Option<Saving>,
    saved_at: Duration,
    /// The position and the blocks changed, as recorded.
    saved: (u64, u64),
    rests_until: Duration,
    /// What nobody had space for when it was tried last.
    refused: Option<BlockRange>,
}

/// A part that is being looked at.
#[derive(Debug)]
struct Window {
    range: BlockRange,
    /// Whether it could not be read before.
    again: bool,
    /// Blocks that hold data, and blocks that are written.
    read: u64,
    written: u64,
    /// What is to be looked at once those are.
    rest: Option<BlockRange>,
}

/// A block that no member could read.
#[derive(Debug)]
struct Unreadable {
    block: u64,
    cause: String,
    again_at: Duration,
}

/// What is to be recorded once it is stable.
#[derive(Debug)]
struct Saving {
    position: u64,
    changed: u64,
    /// If all is done: by this stamp.
    rewritten: Option<Stamp>,
    /// The flush that makes it stable.
    round: u64,
    recording: bool,
}

/// How far blocks have been sealed anew, for people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ResealStatus {
    /// Blocks of the volume that are done, wherever they lie.
    pub position: u64,
    /// Blocks sealed anew, in earlier openings too.
    pub changed: u64,
    /// Bytes of the volume dealt with in a second, in this engine.
    pub bytes_per_second: u64,
    /// When it will be done, at this rate.
    pub seconds_left: Option<u64>,
    /// Why it does not get on.
    pub waits: Option<String>,
}

impl Resealing {
    /// Everything before this block is done.
    fn position(&self) -> u64 {
        let under_way = self.under_way.values().map(|window| window.range.start);
        let left = self.left.iter().map(|range| range.start);
        let unreadable = self.unreadable.iter().map(|unreadable| unreadable.block);
        under_way.chain(left).chain(unreadable).min().unwrap_or(self.next).min(self.next)
    }

    /// How many blocks are done.
    fn done(&self) -> u64 {
        let first = self.under_way.values().filter(|window| !window.again);
        let open: u64 =
            first.map(|window| &window.range).chain(&self.left).map(|range| u64::from(range.count)).sum();
        self.next.saturating_sub(open + self.unreadable.len() as u64)
    }

    /// Whether there is something to begin with, besides what could not be read.
    fn goes_on(&self, blocks: u64) -> bool {
        !self.left.is_empty() || (self.next < blocks && self.unreadable.len() < UNREADABLE_MAX)
    }

    /// What is to be looked at next, and whether it could not be read before: of that, one block at a time.
    fn next_range(&mut self, now: Duration, blocks: u64) -> Option<(BlockRange, bool)> {
        if let Some(range) = self.left.pop_front() {
            return Some((range, false));
        }
        let is_due = self.unreadable.front().is_some_and(|first| now >= first.again_at);
        if is_due
            && self.under_way.values().all(|window| !window.again)
            && let Some(mut again) = self.unreadable.pop_front()
        {
            let range = BlockRange::new(again.block, 1);
            again.again_at = now + TRY_AGAIN;
            self.unreadable.push_back(again);
            return Some((range, true));
        }
        if !self.goes_on(blocks) {
            return None;
        }
        let left = u32::try_from(blocks - self.next).unwrap_or(u32::MAX);
        let range = BlockRange::new(self.next, left.min(WINDOW_BLOCKS));
        self.next = range.end();
        Some((range, false))
    }

    /// Nobody can read one of a window's blocks: it is left over, and the others are looked at without it. Whether
    /// that is new.
    fn leave_over(&mut self, now: Duration, window: &Window, block: u64, cause: &str) -> bool {
        let (start, end) = (window.range.start, window.range.end());
        for (from, to) in [(block + 1, end), (start, block)] {
            if let Some(count @ 1..) = to.checked_sub(from).and_then(|count| u32::try_from(count).ok()) {
                self.left.push_front(BlockRange::new(from, count));
            }
        }
        if let Some(known) = self.unreadable.iter_mut().find(|known| known.block == block) {
            cause.clone_into(&mut known.cause);
            return false;
        }
        self.unreadable.push_back(Unreadable { block, cause: cause.to_owned(), again_at: now + TRY_AGAIN });
        true
    }

    /// Why it does not get on, or will not come to its end.
    fn trouble(&self) -> Option<String> {
        if self.refused.is_some() {
            return Some(IoError::NoSpace.to_string());
        }
        let first = self.unreadable.iter().min_by_key(|unreadable| unreadable.block)?;
        let (block, cause) = (first.block, &first.cause);
        Some(match self.unreadable.len() - 1 {
            0 => format!("no member can read block {block} ({cause}): overwrite or discard it"),
            others => format!(
                "no member can read block {block} and {others} others ({cause}): overwrite or discard them"
            ),
        })
    }
}

impl VolumeCore {
    /// The volume is open, or has another key: what is sealed under older ones is to be sealed anew.
    pub(super) fn begin_resealing(&mut self, now: Duration) {
        let Some((record, _)) = self.record.as_ref().filter(|_| !self.options.read_only) else { return };
        let Some(newest) = record.older_keys.last().filter(|_| record.is_resealing()) else { return };
        if self.resealing.is_none() && self.ciphers.is_some() {
            self.resealing = Some(Resealing {
                until: newest.until,
                next: newest.position,
                left: VecDeque::new(),
                under_way: HashMap::new(),
                unreadable: VecDeque::new(),
                changed: newest.changed,
                began: (now, newest.position),
                pace: Pace::new(now, BYTES_PER_SECOND),
                saving: None,
                saved_at: now,
                saved: (newest.position, newest.changed),
                rests_until: now,
                refused: None,
            });
            tracing::info!(volume = %self.options.volume, position = newest.position,
                "what is sealed under an older key is sealed anew");
        }
        self.advance_resealing(now);
    }

    /// How soon it wants to be looked at.
    pub(super) fn resealing_within(&self) -> Option<Duration> {
        let resealing = self.resealing.as_ref().filter(|_| self.state == VolumeState::Open)?;
        if !resealing.goes_on(self.blocks) {
            return Some(IDLE);
        }
        let rest = resealing.rests_until.saturating_sub(self.now);
        Some(resealing.pace.wait(self.now).max(rest).clamp(Duration::from_millis(1), IDLE))
    }

    /// Takes it as far as it gets.
    pub(super) fn advance_resealing(&mut self, now: Duration) {
        if self.state != VolumeState::Open || self.renewing || self.is_reverting() || self.rekeying.is_some()
        {
            return;
        }
        let (blocks, ready) = (self.blocks, self.required_are_ready());
        while let Some(resealing) = self.resealing.as_mut().filter(|_| ready)
            && resealing.under_way.len() < UNDER_WAY_MAX
            && now >= resealing.rests_until
            && resealing.pace.wait(now).is_zero()
            && let Some((range, again)) = resealing.next_range(now, blocks)
        {
            self.begin_window_anew(now, range, again);
        }
        self.save_resealing(now);
    }

    fn begin_window_anew(&mut self, now: Duration, range: BlockRange, again: bool) {
        let id = OperationId(self.new_id());
        if let Some(resealing) = &mut self.resealing {
            resealing.under_way.insert(id, Window { range, again, read: 0, written: 0, rest: None });
        }
        let beside = self.has_planted(Planted::ResealBesideWrites);
        let span = Span { start: range.start, end: range.end() };
        let ready = beside || self.ordering.register(id, span, true);
        let mut operation = Operation::ordered_by_engine(Phase::Blocked(Piece::Reseal { range }));
        operation.ordered = !beside;
        self.operations.insert(id, operation);
        if ready {
            self.start(now, id);
        }
    }

    /// Nothing else is in flight on these blocks.
    pub(super) fn start_resealing(&mut self, now: Duration, id: OperationId, range: BlockRange) {
        let Some(until) = self.resealing.as_ref().map(|resealing| resealing.until) else {
            return self.finish(now, id, Outcome::Done);
        };
        let then = Then::Reseal { until, newer: Vec::new() };
        let reading = Reading::new(range, MemberSet::ALL, then);
        self.operations.get_mut(&id).expect("it has its place").phase = Phase::Reading(reading);
        self.send_read(now, id);
    }

    /// Blocks have been read: the first run of those that are not `newer` is written anew, and what is left of them
    /// afterwards.
    pub(super) fn reseal(&mut self, now: Duration, id: OperationId, runs: Vec<Run>, newer: &[u64]) {
        let Some(resealing) = &mut self.resealing else { return self.finish(now, id, Outcome::Done) };
        let Some(window) = resealing.under_way.get_mut(&id) else {
            return self.finish(now, id, Outcome::Done);
        };
        let (mut start, mut found, mut rest) = (window.range.start, None, None);
        for Run { count, data } in runs {
            let end = start + u64::from(count);
            if let Some(data) = data {
                window.read += u64::from(count);
                let mut old = (start..end).filter(|block| !newer.contains(block));
                match (old.next(), &found) {
                    (Some(first), None) => {
                        let blocks = old.next_back().unwrap_or(first) + 1 - first;
                        let anew = BlockRange::new(first, u32::try_from(blocks).unwrap_or(u32::MAX));
                        let skip = usize::try_from(first - start).unwrap_or(0) * BLOCK_SIZE;
                        found = Some((anew, trim(data, skip, anew.count as usize * BLOCK_SIZE)));
                    }
                    (Some(first), Some(_)) => rest = rest.or(Some(first)),
                    (None, _) => {}
                }
            }
            start = end;
        }
        let Some((anew, segments)) = found else { return self.finish(now, id, Outcome::Done) };
        window.written = u64::from(anew.count);
        if let Some(first) = rest {
            let blocks = u32::try_from(window.range.end() - first).unwrap_or(0);
            window.rest = Some(BlockRange::new(first, blocks));
        }
        let writing = Writing::data(anew, segments, false, true);
        self.operations.get_mut(&id).expect("it was reading").phase = Phase::Writing(writing);
        self.send_write(now, id);
    }

    /// Whether it is a part of this, which fails where no member has space.
    pub(super) fn reseals(&self, id: OperationId) -> bool {
        self.resealing.as_ref().is_some_and(|resealing| resealing.under_way.contains_key(&id))
    }

    /// An operation of the engine's own has ended.
    pub(super) fn resealing_ended(&mut self, now: Duration, id: OperationId, outcome: &Outcome) {
        if !self.reseals(id) {
            return;
        }
        let (busy, latency) = self.strain();
        let Some(resealing) = &mut self.resealing else { return };
        let Some(window) = resealing.under_way.remove(&id) else { return };
        // A window costs something even where nothing was ever written.
        let bytes = (window.read + window.written + 1) * BLOCK_SIZE_U64;
        resealing.pace.read(now, bytes, busy, latency);
        let tried_again = resealing.refused.is_some_and(|refused| refused.start == window.range.start);
        if tried_again || window.written > 0 {
            resealing.refused = None;
        }
        match outcome {
            Outcome::Failed(IoError::Medium { start, cause, .. }) => {
                if resealing.leave_over(now, &window, *start, cause) {
                    tracing::warn!(volume = %self.options.volume, block = start, %cause,
                        "a block that no member can read cannot be sealed anew");
                }
            }
            Outcome::Failed(error) => {
                tracing::warn!(volume = %self.options.volume, %error, "blocks cannot be sealed anew");
                resealing.left.push_front(window.range);
                (resealing.refused, resealing.rests_until) = (Some(window.range), now + REST);
            }
            Outcome::Done | Outcome::Data(_) => {
                resealing.changed += window.written;
                resealing.left.extend(window.rest);
                if !resealing.unreadable.is_empty() {
                    let done = window.range.start..window.rest.map_or(window.range.end(), |rest| rest.start);
                    resealing.unreadable.retain(|unreadable| !done.contains(&unreadable.block));
                }
            }
        }
        self.advance_resealing(now);
    }

    /// What is done is put into the record from time to time, and when all is.
    fn save_resealing(&mut self, now: Duration) {
        let early = self.has_planted(Planted::RecordResealedEarly);
        let (blocks, cutting) = (self.blocks, self.has_snapshot_under_way());
        let Some(resealing) = &mut self.resealing else { return };
        let ended = resealing.next >= blocks && (resealing.left.is_empty() || early);
        let done = ended && resealing.unreadable.is_empty() && (resealing.under_way.is_empty() || early);
        let due = now >= resealing.saved_at + SAVE_EVERY
            && (resealing.position(), resealing.changed) != resealing.saved;
        match &mut resealing.saving {
            None if (done && !cutting) || due => {
                let last = self.log.last();
                resealing.saving = Some(Saving {
                    position: resealing.position(),
                    changed: resealing.changed,
                    rewritten: (done && !cutting).then_some(last),
                    round: self.flushing.want_another(),
                    recording: false,
                });
                self.begin_flush(now);
            }
            Some(saving) if !saving.recording && self.flushing.has_ended(saving.round) => {
                saving.recording = true;
                self.run_errand(Purpose::Keys);
            }
            None | Some(_) => {}
        }
    }

    pub(super) fn awaits_reseal_record(&self) -> bool {
        let saving = self.resealing.as_ref().and_then(|resealing| resealing.saving.as_ref());
        self.state == VolumeState::Open && saving.is_some_and(|saving| saving.recording)
    }

    /// Puts down how far it is.
    pub(super) fn note_resealed(&self, older_keys: &mut [OlderKey]) {
        let saving = self.resealing.as_ref().and_then(|resealing| resealing.saving.as_ref());
        let Some(saving) = saving.filter(|saving| saving.recording) else { return };
        if let Some(newest) = older_keys.last_mut() {
            (newest.position, newest.changed) = (saving.position, saving.changed);
        }
        for older in older_keys.iter_mut().filter(|older| older.rewritten.is_none()) {
            older.rewritten = saving.rewritten;
        }
    }

    /// The record says so.
    pub(super) fn resealing_recorded(&mut self, now: Duration) {
        let Some(resealing) = &mut self.resealing else { return };
        let Some(saving) = resealing.saving.take_if(|saving| saving.recording) else { return };
        (resealing.saved_at, resealing.saved) = (now, (saving.position, saving.changed));
        if saving.rewritten.is_some() {
            tracing::info!(volume = %self.options.volume, changed = saving.changed,
                "all that it shows is sealed under its present key");
            self.resealing = None;
        }
        self.advance_resealing(now);
    }

    /// How far it is.
    #[must_use]
    pub fn reseal_status(&self, now: Duration) -> Option<ResealStatus> {
        let resealing = self.resealing.as_ref()?;
        let position = resealing.done();
        let elapsed = now.saturating_sub(resealing.began.0).as_millis().max(1);
        let done = u128::from(position.saturating_sub(resealing.began.1));
        let left = u128::from(self.blocks.saturating_sub(position));
        let number = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        let away = (!self.required_are_ready()).then(|| "a member is away".to_owned());
        Some(ResealStatus {
            position,
            changed: resealing.changed,
            bytes_per_second: number(done * u128::from(BLOCK_SIZE_U64) * 1000 / elapsed),
            seconds_left: (done > 0 && resealing.goes_on(self.blocks))
                .then(|| number(left * elapsed / done / 1000)),
            waits: away.or_else(|| resealing.trouble()),
        })
    }
}
