//! The engine's part of a snapshot over several volumes: somebody tells it the steps, may be late or die at
//! any of them, and puts the snapshot into the record by the revision read before the last. (That several
//! volumes agree is tried in `manager/src/group/tests.rs`.)

use crate::checkers::history::Interval;
use crate::random::Random;
use crate::trace::Happening;
use crate::workload::Kind;
use crate::world::{Event, World};
use std::time::Duration;
use trivet_engine::{IoError, IoReply};
use trivet_model::{GroupId, GroupStep, Revision, SnapshotId, SnapshotOrder, SnapshotRecord, Stamp};

/// A step told to an engine, and what is known by then.
#[derive(Clone, Debug)]
pub(crate) struct GroupAsked {
    engine: usize,
    incarnation: u64,
    group: GroupId,
    step: GroupStep,
    snapshot: SnapshotRecord,
    begin: Duration,
    cut: Stamp,
    /// Somebody has waited for long enough to have writes held.
    gives_up: bool,
    /// Of the record, read before the engine is asked whether it has held until now.
    revision: Revision,
}

/// How long somebody waits until writes are held: another snapshot may come first.
const HELD_WITHIN: Duration = Duration::from_secs(5);

impl GroupAsked {
    /// Whether it asks to hold writes for this one.
    pub(crate) fn holds_for(&self, group: GroupId) -> bool {
        self.group == group && matches!(self.step, GroupStep::Hold { .. })
    }
}

impl World {
    pub(crate) fn strike_group(&mut self, engine: usize, random: &mut Random) {
        let mut bytes = [9; 16];
        bytes[..8].copy_from_slice(&random.next().to_le_bytes());
        let id = SnapshotId::from_bytes(bytes);
        let milliseconds = random.below(2000);
        let asked = GroupAsked {
            engine,
            incarnation: self.engines[engine].incarnation,
            group: GroupId::from_bytes(bytes),
            step: GroupStep::Hold { milliseconds },
            snapshot: SnapshotRecord {
                id,
                name: format!("g{}", random.next()),
                cut: Stamp::ZERO,
                created: 0,
                labels: Default::default(),
            },
            begin: self.now,
            cut: Stamp::ZERO,
            gives_up: false,
            revision: self.records.revision,
        };
        let late = GroupAsked { step: GroupStep::Abandon, gives_up: true, ..asked.clone() };
        self.schedule(HELD_WITHIN, Event::Group(Box::new(late)));
        self.tell_group(asked);
    }

    /// Tells an engine the next step, if it is still there.
    pub(crate) fn tell_group(&mut self, mut asked: GroupAsked) {
        let engine = asked.engine;
        if asked.gives_up && !self.waits_for_hold(asked.group) {
            return;
        }
        if asked.step == GroupStep::Settle {
            if self.records.revision == asked.revision {
                self.commit_group(&asked);
            } else {
                asked.step = GroupStep::Abandon;
            }
        }
        if self.engines[engine].incarnation != asked.incarnation || self.engines[engine].held.is_some() {
            return;
        }
        let order = SnapshotOrder::Group { group: asked.group, step: asked.step.clone() };
        if let Some(tag) = self.note_request(engine, Kind::Group(Box::new(asked))) {
            self.with_core(engine, |core, now| core.order_snapshot(now, tag, order));
        }
    }

    /// The engine has answered a step: the next follows after a while, or never.
    pub(crate) fn group_answered(&mut self, mut asked: GroupAsked, result: Result<IoReply, IoError>) {
        asked.step = match (asked.step, result) {
            (GroupStep::Hold { .. }, Ok(_)) => GroupStep::Cut(asked.snapshot.clone()),
            (GroupStep::Cut(_), Ok(IoReply::Cut(cut))) => {
                (asked.cut, asked.revision) = (cut, self.records.revision);
                if self.records.record.generation == cut.generation() {
                    GroupStep::Confirm
                } else {
                    GroupStep::Abandon
                }
            }
            (GroupStep::Confirm, Ok(_)) => GroupStep::Settle,
            (GroupStep::Settle | GroupStep::Abandon, _) => return,
            _ => GroupStep::Abandon,
        };
        if !self.random.one_in(12) {
            // At times about as long as the engine waits.
            let late = asked.step == GroupStep::Settle && self.random.one_in(2);
            let (least, most) = if late {
                (Duration::from_secs(29), Duration::from_secs(33))
            } else {
                (Duration::from_micros(100), Duration::from_secs(1))
            };
            let after = self.random.log_between(least, most);
            self.schedule(after, Event::Group(Box::new(asked)));
        }
    }

    fn commit_group(&mut self, asked: &GroupAsked) {
        self.note(Happening::Note("a snapshot of a group is recorded"));
        let recorded = SnapshotRecord { cut: asked.cut, ..asked.snapshot.clone() };
        self.records.record.snapshots.push(recorded);
        self.records.revision.0 += 1;
        self.snapshot_taken(asked.snapshot.id, Interval { begin: asked.begin, end: self.now });
    }
}
