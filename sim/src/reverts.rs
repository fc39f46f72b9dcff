//! Reverts: somebody who knows that nobody has the volume open has it become again what a snapshot shows.
//! Whoever opens it next does that first, whatever goes wrong besides, and then it must be so.

use crate::Check;
use crate::random::Random;
use crate::trace::Happening;
use crate::world::World;
use std::collections::BTreeMap;
use trivet_model::{Reverting, SnapshotId, SnapshotRecord, Stamp};

impl World {
    /// All engines end, and the record says that the volume is to be reverted.
    pub(crate) fn strike_revert(&mut self, random: &mut Random) {
        let recorded: Vec<SnapshotId> = self.records.record.snapshots.iter().map(|known| known.id).collect();
        if recorded.is_empty() {
            return;
        }
        let to = random.pick(&recorded);
        let other = self.records.record.reverting.as_ref().filter(|other| other.to != to);
        let safety = match other {
            // In place of one that is under way, with the engine that does it.
            Some(other) => other.safety.clone(),
            None if self.records.record.reverting.is_some() => return,
            None => {
                for engine in 0..self.profile.engines {
                    self.kill_engine(engine, true, "ended before a revert");
                }
                random.one_in(2).then(|| safety(random))
            }
        };
        self.records.record.reverting = Some(Reverting { to, safety, position: 0, changed: 0 });
        self.records.revision.0 += 1;
        self.note(Happening::Note("a revert is ordered"));
    }

    /// The record says that a revert is done: what the snapshot showed is there, and stays.
    pub(crate) fn reverted(&mut self, to: SnapshotId) {
        self.note(Happening::Note("a revert is done"));
        let now = self.now;
        self.unseen_revert = Some((to, now));
        let known = self.snapshots.get(&to).is_some_and(|taken| !taken.is_empty());
        if !known && self.records.in_sync().iter().all(|host| self.hosts[*host].process.is_none()) {
            return self.oracle.forget();
        }
        let (found, wanted) = match (self.shown(Stamp::MAX), self.shown_by(to)) {
            (Ok(found), Ok(Some(wanted))) => (found, wanted),
            (Ok(_), Ok(None)) => {
                return self.fail(Check::Reverted, format!("{to} is not recorded any more"));
            }
            (Err(why), _) => return self.fail(Check::Reverted, format!("after a revert to {to}: {why}")),
            (_, Err(why)) => return self.fail(Check::Snapshots, format!("snapshot {to}: {why}")),
        };
        let was = |sector: &usize| wanted.get(sector).copied().unwrap_or(0);
        if let Some((sector, value)) = found.iter().find(|(sector, value)| was(sector) != **value) {
            let detail = format!(
                "sector {sector} holds {value:#x} after a revert to {to}, which shows {:#x}",
                was(sector)
            );
            return self.fail(Check::Reverted, detail);
        }
        self.see_revert();
    }

    /// What the snapshot of the last revert shows is known now.
    pub(crate) fn see_revert(&mut self) {
        let Some((to, done)) = self.unseen_revert.take() else { return };
        let shown = match self.shown_by(to) {
            // It has been deleted since: what is there now counts.
            Ok(None) => self.shown(Stamp::MAX),
            Ok(Some(shown)) => Ok(shown),
            Err(why) => Err(why),
        };
        match shown {
            Ok(shown) => {
                let was = |sector: usize| (sector, shown.get(&sector).copied().unwrap_or(0));
                let values: BTreeMap<usize, u64> = (0..self.oracle.sectors()).map(was).collect();
                self.oracle.reverted(&values, done);
            }
            Err(why) => self.fail(Check::Snapshots, format!("snapshot {to}: {why}")),
        }
    }

    /// What a snapshot showed when it was taken, or shows now, if it is still there.
    fn shown_by(&self, snapshot: SnapshotId) -> Result<Option<BTreeMap<usize, u64>>, String> {
        if let Some(taken) = self.snapshots.get(&snapshot).filter(|taken| !taken.is_empty()) {
            return Ok(Some(taken.clone()));
        }
        let recorded = self.records.record.snapshots.iter().find(|known| known.id == snapshot);
        recorded.map(|recorded| self.shown(recorded.cut)).transpose()
    }
}

fn safety(random: &mut Random) -> SnapshotRecord {
    let mut bytes = [8; 16];
    bytes[..8].copy_from_slice(&random.next().to_le_bytes());
    SnapshotRecord {
        id: SnapshotId::from_bytes(bytes),
        name: format!("r{}", random.next()),
        cut: Stamp::ZERO,
        created: 0,
        labels: BTreeMap::new(),
    }
}
