//! Taking part in a snapshot over several volumes.
//!
//! ```text
//!            all engines hold         all have cut                     the commit
//!  ┌─────────┐      ┌───────────────┐         ┌────────────────────┐          ┌──────────┐
//!  │ Holding │─────▶│ Cutting       │────────▶│ Confirmed          │─────────▶│ Settling │─▶ the record says
//!  └─────────┘ Cut  │ writes go on  │ Confirm │ may be recorded    │ Settle   └──────────┘   whether it is
//!       │           │ when it is cut│         │ from here on       │ or Abandon
//!       │           └───────────────┘         └────────────────────┘
//!       └── the hold has lasted too long: nothing has happened
//! ```
//!
//! While an engine holds, it sends no writes, so acknowledges none that it had not sent before; and no engine cuts
//! before all hold. A write that is in its volume's snapshot was thus sent before the first cut, and what was
//! acknowledged on another volume before it was asked for is in that one's. What comes after a volume's own cut
//! can be in no snapshot: nobody waits for the others' cuts.
//!
//! Whoever coordinates (`manager/src/group`) puts all snapshots into the records in one commit, having read
//! the records *before* each engine confirmed that its cut still stands. An engine that hears nothing more changes
//! the record's revision: a commit that went by the earlier one fails from then on, and whether it came
//! first, the record says. So nobody waits for ever, and it is all or nothing whoever dies.

use super::control::Purpose;
use super::planted::PlantedFault as Planted;
use super::{Tag, VolumeCore, VolumeState};
use crate::request::{IoError, IoReply};
use std::collections::VecDeque;
use std::time::Duration;
use trivet_model::{GroupId, GroupStep, SnapshotOrder, VolumeRecord};

/// The longest that writes are held.
const HOLD_MAX: Duration = Duration::from_secs(30);
/// How long to wait for word of what was confirmed.
const SETTLE_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Holding,
    Cutting,
    Confirmed,
    /// The record is asked what became of it. With `withdraw`, what is not recorded never will be.
    Settling {
        withdraw: bool,
    },
}

/// The snapshot over several volumes that is under way.
#[derive(Debug)]
pub(super) struct Group {
    id: GroupId,
    step: Step,
    /// When the step is over by itself.
    until: Duration,
}

impl VolumeCore {
    /// Whether writes are held for a group.
    pub(super) fn is_held(&self) -> bool {
        self.group.as_ref().is_some_and(|group| group.step == Step::Holding)
    }

    /// Whether a step is about what is under way, rather than the beginning of something new.
    pub(super) fn goes_before(&self, id: GroupId, step: &GroupStep) -> bool {
        let known = self.group.as_ref().is_some_and(|group| group.id == id);
        known || !matches!(step, GroupStep::Hold { .. })
    }

    pub(super) fn group_step(&mut self, now: Duration, tag: Tag, id: GroupId, step: GroupStep) {
        self.end_hold(now);
        let under_way = self.group.as_ref().filter(|group| group.id == id).map(|group| group.step);
        match (step, under_way) {
            (GroupStep::Hold { milliseconds }, None) => {
                let until = now + Duration::from_millis(milliseconds).min(HOLD_MAX);
                self.group = Some(Group { id, step: Step::Holding, until });
                self.complete(tag, Ok(IoReply::Done));
            }
            (GroupStep::Cut(snapshot), Some(Step::Holding)) => {
                self.group_becomes(Step::Cutting);
                self.take_snapshot(now, Some(tag), snapshot);
                if self.taking.is_none() {
                    // It was refused, or is an older one.
                    self.group = None;
                    self.cutting_ended(now);
                    self.next_order(now);
                }
            }
            (GroupStep::Confirm, Some(Step::Cutting)) if self.taken().is_some() => {
                self.group_becomes(Step::Confirmed);
                self.group_waits_until(now + SETTLE_MAX);
                self.complete(tag, Ok(IoReply::Done));
            }
            (GroupStep::Hold { .. }, Some(Step::Holding)) | (GroupStep::Confirm, Some(Step::Confirmed)) => {
                self.complete(tag, Ok(IoReply::Done));
            }
            (GroupStep::Settle, under_way) => {
                if under_way.is_some() {
                    self.settle_group(now, false);
                }
                self.complete(tag, Ok(IoReply::Done));
            }
            (GroupStep::Abandon, under_way) => {
                self.refuse_waiting(id);
                if under_way.is_some() {
                    self.settle_group(now, true);
                }
                self.complete(tag, Ok(IoReply::Done));
            }
            (GroupStep::Hold { .. } | GroupStep::Cut(_) | GroupStep::Confirm, _) => {
                let why = "writes were not held until all volumes had their cut";
                self.complete(tag, Err(IoError::Invalid(why)));
            }
        }
    }

    /// What waits for its turn would hold writes for nobody.
    fn refuse_waiting(&mut self, id: GroupId) {
        let of_group =
            |order: &SnapshotOrder| matches!(order, SnapshotOrder::Group { group, .. } if *group == id);
        let orders = std::mem::take(&mut self.orders).into_iter();
        let (refused, waiting): (VecDeque<_>, VecDeque<_>) = orders.partition(|(_, order)| of_group(order));
        self.orders = waiting;
        for (tag, _) in refused {
            self.complete(tag, Err(IoError::Invalid("the snapshot is taken of no volume")));
        }
    }

    fn group_becomes(&mut self, step: Step) {
        if let Some(group) = &mut self.group {
            group.step = step;
        }
    }

    fn group_waits_until(&mut self, until: Duration) {
        if let Some(group) = &mut self.group {
            group.until = until;
        }
    }

    /// Time passes: nobody holds for ever.
    pub(super) fn end_hold(&mut self, now: Duration) {
        if self.group.as_ref().is_some_and(|group| now >= group.until) {
            tracing::warn!(volume = %self.options.volume, "a snapshot over several volumes did not come about");
            self.settle_group(now, true);
        }
    }

    /// When time ends a step.
    pub(super) fn hold_within(&self, now: Duration) -> Option<Duration> {
        self.group.as_ref().map(|group| group.until.saturating_sub(now))
    }

    /// Lets writes go on, and asks the record what became of it. `withdraw`: it shall not come about.
    pub(super) fn settle_group(&mut self, now: Duration, withdraw: bool) {
        let Some(step) = self.group.as_ref().map(|group| group.step) else { return };
        if self.taking.is_none() {
            // Nothing was cut: there is nothing to be recorded.
            self.group = None;
        } else {
            let withdraw = withdraw || step == Step::Settling { withdraw: true };
            self.group_becomes(Step::Settling { withdraw });
            self.group_waits_until(now + SETTLE_MAX);
            self.run_errand(Purpose::Snapshots);
        }
        self.cutting_ended(now);
        self.next_order(now);
        self.check_closing(now);
    }

    pub(super) fn group_awaits_record(&self) -> bool {
        self.group.as_ref().is_some_and(|group| matches!(group.step, Step::Settling { .. }))
    }

    /// The record with another revision, where something is to be withdrawn that it does not have.
    pub(super) fn with_group(&self, group: &Group, record: &VolumeRecord) -> Option<VolumeRecord> {
        let id = self.taking.as_ref().map(|taking| taking.snapshot.id);
        let recorded = record.snapshots.iter().any(|known| Some(known.id) == id);
        let withdraws = group.step == Step::Settling { withdraw: true } && !recorded;
        (withdraws && !self.has_planted(Planted::WithdrawSilently)).then(|| record.clone())
    }

    /// The record has been read, or has a new revision.
    pub(super) fn group_recorded(&mut self, now: Duration) {
        let Some(Step::Settling { withdraw }) = self.group.as_ref().map(|group| group.step) else { return };
        if self.taking.is_some() && !withdraw {
            // It was to be there, and is not: then it must not come any more.
            return self.settle_group(now, true);
        }
        self.group = None;
        if let Some(taking) = self.taking.take() {
            tracing::info!(volume = %self.options.volume, snapshot = %taking.snapshot.id, "withdrawn");
            if let Some(tag) = taking.tag {
                self.complete(tag, Err(IoError::Invalid("the snapshot is taken of no volume")));
            }
            self.cutting_ended(now);
        }
    }

    /// The volume is being closed: what has not been recorded yet is given up.
    pub(super) fn give_up_group(&mut self, now: Duration) {
        if self.state == VolumeState::Closing && self.group.is_some() {
            self.settle_group(now, true);
        }
    }
}
