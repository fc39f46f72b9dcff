//! Reverting: the volume becomes what a snapshot shows, while nobody uses it.
//!
//! ```text
//!  the record says so        kept, or        all walked, nothing
//!  when the volume opens     not wanted      under way              stable         recorded
//!          │    ┌─────────┐          ┌─────────┐        ┌──────────┐      ┌───────────┐
//!          └───▶│ Keeping │─────────▶│ Walking │───────▶│ Flushing │─────▶│ Recording │──▶ open for use
//!               └─────────┘          └─────────┘        └──────────┘      └───────────┘
//!                                         ▲   every few seconds               │
//!                                         └───────── the position ────────────┘
//! ```
//!
//! What has a stamp above the snapshot's cut was changed since. Of those blocks the snapshot's versions are
//! written to everyone, as ordinary writes under new stamps, holes as discards: so all snapshots stay, newer
//! ones too, members that are away are brought back as always, and who is asked what has changed since some
//! stamp finds out.
//!
//! The record says that it is under way, and up to which block all is done and stable. Whoever opens the
//! volume goes on from there before anything else is served; nothing else need survive a crash.

mod difference;
mod survey;

use super::control::Purpose;
use super::operation::{Operation, Phase};
use super::ordering::Span;
use super::pieces::Piece;
use super::planted::PlantedFault as Planted;
use super::state::Failure;
use super::{Action, OperationId, VolumeCore, VolumeState};
use crate::request::IoError;
use difference::Change;
use hashbrown::HashMap;
use serde::Serialize;
use std::collections::VecDeque;
use std::time::Duration;
use survey::Survey;
use trivet_model::{Reverting, SnapshotId, Stamp, VolumeRecord};

/// Changes on their way; each brings at most 1 MiB.
const UNDER_WAY_MAX: usize = 16;
/// How often the position is put into the record.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// How long it rests when a member cannot answer, or no snapshot can be taken.
const REST: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// What the volume was is to be kept as a snapshot first.
    Keeping,
    Walking,
    /// Nothing more is begun. With `last`, all has been.
    Draining {
        last: bool,
    },
    Flushing {
        last: bool,
    },
    Recording {
        last: bool,
    },
}

/// A revert under way; the module draws it.
#[derive(Debug)]
pub(super) struct Revert {
    to: SnapshotId,
    cut: Stamp,
    step: Step,
    survey: Survey,
    found: VecDeque<Change>,
    under_way: HashMap<OperationId, Change>,
    /// Blocks changed, in earlier openings too.
    changed: u64,
    began: (Duration, u64),
    saved_at: Duration,
    rests_until: Duration,
    /// Changes of an earlier revert are under way, and must be seen as such.
    follows_another: bool,
    trouble: Option<String>,
}

/// How far a revert is, for people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RevertStatus {
    /// To which snapshot.
    pub to: SnapshotId,
    /// Everything before this block is done.
    pub position: u64,
    /// Blocks written or discarded, in earlier openings too.
    pub changed: u64,
    /// Bytes changed in a second.
    pub bytes_per_second: u64,
    /// Why it does not get on.
    pub waits: Option<String>,
}

impl Revert {
    fn new(now: Duration, order: &Reverting, cut: Stamp) -> Self {
        Self {
            to: order.to,
            cut,
            step: Step::Keeping,
            survey: Survey::from(order.position),
            found: VecDeque::new(),
            under_way: HashMap::new(),
            changed: order.changed,
            began: (now, order.changed),
            saved_at: now,
            rests_until: now,
            follows_another: false,
            trouble: None,
        }
    }

    /// Everything before this block is done; `blocks` at the end.
    fn position(&self, blocks: u64) -> u64 {
        let under_way = self.under_way.values().map(|change| change.range().start);
        let found = self.found.front().map(|change| change.range().start);
        under_way.chain(found).chain(self.survey.position()).min().unwrap_or(blocks)
    }

    fn is_walked(&self) -> bool {
        self.survey.position().is_none() && self.found.is_empty()
    }
}

impl VolumeCore {
    /// Whether the volume is being reverted: nothing else is served.
    #[must_use]
    pub const fn is_reverting(&self) -> bool {
        self.revert.is_some()
    }

    /// The volume is open, but for this.
    pub(super) fn begin_revert(&mut self, now: Duration) {
        let Some((record, _)) = self.record.as_ref().filter(|_| !self.options.read_only) else { return };
        let Some(order) = &record.reverting else { return };
        if self.revert.is_none() {
            let (to, position) = (order.to, order.position);
            self.revert = revert_of(now, record, order);
            if self.revert.is_none() {
                self.hang_up(now);
                return self.fail(now, Failure::NothingToRevertTo(to));
            }
            tracing::info!(volume = %self.options.volume, %to, position, "reverting");
        }
        self.note_standing(now);
        self.advance_revert(now);
    }

    /// Takes it as far as it gets.
    pub(super) fn advance_revert(&mut self, now: Duration) {
        if self.state != VolumeState::Open || self.renewing {
            return;
        }
        match self.revert.as_ref().map(|revert| revert.step) {
            Some(Step::Keeping) => self.keep_what_was(now),
            Some(Step::Walking) => self.walk(now),
            Some(Step::Draining { last }) => self.drain_revert(now, last),
            Some(Step::Flushing { last }) if !self.flushing.is_due() && !self.flushing.is_running() => {
                self.revert_becomes(Step::Recording { last });
                self.run_errand(Purpose::Revert);
            }
            Some(Step::Flushing { .. } | Step::Recording { .. }) | None => {}
        }
    }

    fn revert_becomes(&mut self, step: Step) {
        if let Some(revert) = &mut self.revert {
            revert.step = step;
        }
    }

    fn keep_what_was(&mut self, now: Duration) {
        let Some((record, _)) = &self.record else { return };
        let safety = record.reverting.as_ref().and_then(|order| order.safety.clone());
        let wanted = safety.filter(|safety| record.snapshots.iter().all(|known| known.id != safety.id));
        let busy = self.has_snapshot_under_way();
        let Some(revert) = &mut self.revert else { return };
        match wanted {
            None => {
                (revert.step, revert.trouble) = (Step::Walking, None);
                self.walk(now);
            }
            Some(safety) if !busy && now >= revert.rests_until => {
                revert.rests_until = now + REST;
                revert.trouble = Some("its present state is to be kept as a snapshot first".to_owned());
                self.take_snapshot(now, None, safety);
            }
            Some(_) => {}
        }
    }

    fn walk(&mut self, now: Duration) {
        while let Some(revert) = &mut self.revert
            && revert.under_way.len() < UNDER_WAY_MAX
            && let Some(change) = revert.found.pop_front()
        {
            self.begin_change(now, change);
        }
        self.survey(now);
        let Some(revert) = &mut self.revert else { return };
        let early = revert.is_walked() && !revert.under_way.is_empty();
        if early && self.has_planted(Planted::RecordRevertEarly) {
            self.revert_becomes(Step::Recording { last: true });
            return self.run_errand(Purpose::Revert);
        }
        let Some(revert) = &mut self.revert else { return };
        let last = revert.is_walked();
        if last || now >= revert.saved_at + SAVE_EVERY {
            revert.step = Step::Draining { last };
            self.drain_revert(now, last);
        }
    }

    fn begin_change(&mut self, now: Duration, change: Change) {
        let id = OperationId(self.new_id());
        let range = change.range();
        let piece = match change {
            Change::Restore(range) => Piece::Restore { range },
            Change::Discard(range) => Piece::Discard { range, force_unit_access: false },
        };
        if let Some(revert) = &mut self.revert {
            revert.under_way.insert(id, change);
        }
        // Blocks of a member that is brought back are rewritten at the same time.
        let ready = self.ordering.register(id, Span { start: range.start, end: range.end() }, true);
        self.operations.insert(id, Operation::ordered_by_engine(Phase::Blocked(piece)));
        if ready {
            self.start(now, id);
        }
    }

    /// The snapshot that a restoring read is of.
    pub(super) fn reverts_to(&self) -> Option<SnapshotId> {
        let head = self.has_planted(Planted::RevertToHead);
        self.revert.as_ref().map(|revert| revert.to).filter(|_| !head)
    }

    /// An operation of the engine's own has ended.
    pub(super) fn revert_operation_ended(&mut self, now: Duration, id: OperationId, done: bool) {
        let Some(revert) = &mut self.revert else { return };
        let Some(change) = revert.under_way.remove(&id) else { return };
        if done {
            revert.trouble = None;
            revert.changed += u64::from(change.range().count);
        } else {
            revert.found.push_front(change);
        }
        self.advance_revert(now);
    }

    /// Nobody can read what the snapshot shows, for now.
    pub(super) fn restore_waits(&mut self, cause: String) {
        if let Some(revert) = &mut self.revert {
            revert.trouble = Some(cause);
        }
    }

    fn drain_revert(&mut self, now: Duration, last: bool) {
        let drained = self.revert.as_ref().is_some_and(|revert| revert.under_way.is_empty());
        if drained {
            self.revert_becomes(Step::Flushing { last });
            self.flushing.want();
            self.begin_flush(now);
            self.advance_revert(now);
        }
    }

    /// The record as it should be; `None` when it is so.
    pub(super) fn with_revert(&self, record: &VolumeRecord) -> Option<VolumeRecord> {
        let (revert, order) = (self.revert.as_ref()?, record.reverting.as_ref()?);
        let Step::Recording { last } = revert.step else { return None };
        if order.to != revert.to {
            return None;
        }
        let mut wanted = record.clone();
        wanted.reverting = (!last).then(|| Reverting {
            position: revert.position(self.blocks),
            changed: revert.changed,
            ..order.clone()
        });
        (wanted != *record).then_some(wanted)
    }

    pub(super) fn awaits_revert_record(&self) -> bool {
        self.revert.as_ref().is_some_and(|revert| matches!(revert.step, Step::Recording { .. }))
    }

    /// The record is as it should be.
    pub(super) fn revert_recorded(&mut self, now: Duration) {
        if let Some(revert) = self.revert.as_mut().filter(|r| matches!(r.step, Step::Recording { .. })) {
            (revert.step, revert.saved_at) = (Step::Walking, now);
        }
        self.follow_revert(now);
        self.advance_revert(now);
    }

    /// Somebody may have ordered another revert, and what was recorded as done is done.
    pub(super) fn follow_revert(&mut self, now: Duration) {
        let (Some(revert), Some((record, _))) = (&self.revert, &self.record) else { return };
        match &record.reverting {
            None => self.reverted(now),
            Some(order) if order.to != revert.to => {
                let next = revert_of(now, record, order);
                // What is under way belongs to the old one, and the new one sees to it as to any change.
                if let (Some(next), Some(revert)) = (next, self.revert.as_mut()) {
                    let under_way = std::mem::take(&mut revert.under_way);
                    *revert = Revert { follows_another: !under_way.is_empty(), under_way, ..next };
                }
            }
            Some(_) => {}
        }
    }

    /// The volume may be used.
    fn reverted(&mut self, now: Duration) {
        tracing::info!(volume = %self.options.volume, "reverted");
        self.revert = None;
        for member in self.ready_members() {
            self.look(now, member, None);
        }
        self.note_standing(now);
        self.actions.push(Action::StateChanged);
        for (tag, request) in std::mem::take(&mut self.early) {
            self.accept(now, tag, request);
        }
        self.next_order(now);
    }

    /// The volume is being closed: whoever opens it next goes on.
    pub(super) fn give_up_revert(&mut self) {
        if self.revert.take().is_some() {
            self.unfinished |= !self.early.is_empty();
            for (tag, _) in std::mem::take(&mut self.early) {
                self.complete(tag, Err(IoError::Closed));
            }
        }
    }

    /// How far it is.
    #[must_use]
    pub fn revert_status(&self, now: Duration) -> Option<RevertStatus> {
        let revert = self.revert.as_ref()?;
        let elapsed = now.saturating_sub(revert.began.0).as_millis().max(1);
        let done = u128::from(revert.changed - revert.began.1) * u128::from(trivet_model::BLOCK_SIZE_U64);
        let full = (!self.full.is_empty()).then(|| "the members have no space".to_owned());
        Some(RevertStatus {
            to: revert.to,
            position: revert.position(self.blocks),
            changed: revert.changed,
            bytes_per_second: u64::try_from(done * 1000 / elapsed).unwrap_or(u64::MAX),
            waits: full.or_else(|| revert.trouble.clone()),
        })
    }
}

fn revert_of(now: Duration, record: &VolumeRecord, order: &Reverting) -> Option<Revert> {
    let snapshot = record.snapshots.iter().find(|known| known.id == order.to)?;
    Some(Revert::new(now, order, snapshot.cut))
}
