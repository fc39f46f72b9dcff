//! Clones within a pool: what a volume reads where it has nothing of its own, and what is kept for that.
//!
//! ```text
//!   golden ────────────●cut─────►            a clone's holes are the parent's blocks as of the cut;
//!                       └─ clone ────●cut──►      its own stamps are above all of them
//!                                     └─ clone of it ──►
//! ```
//!
//! Whoever deletes a volume, a snapshot or a copy need not know of clones. What they read stays, without a
//! name: the cut of a deleted snapshot as a *kept* cut, a deleted volume as an *ancestor*, of which only
//! what its kept cuts show remains. It goes with the last clone that needs it.
//!
//! Invariants
//! - A tie leads to a volume that is not being deleted, and to one of its cuts.
//! - A volume has at most [`ANCESTORS_MAX`] ancestors; ties lead to lower slots, so they form no circle.
//! - A kept cut, and an ancestor, has a clone that reads from it.
//! - Nothing is written to an ancestor, and it has no cut but kept ones.
//! - While a volume is tied, what it has discarded leaves a tombstone wherever an ancestor shows data.

use bytes::{Buf, BufMut, TryGetError};
use trivet_model::{SnapshotId, Stamp, VolumeId};

use super::record::Slot;
use super::thinning::Thinning;
use super::volume::{Life, Volume, VolumeTable};
use crate::planted::{self, PlantedFault};

/// So many volumes may lie below a clone: a read that finds nothing asks each of them.
pub const ANCESTORS_MAX: usize = 8;

/// From where a clone is read where it has nothing of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Tie {
    pub(crate) parent: Slot,
    pub(crate) cut: Stamp,
}

/// A clone's parent, as whoever makes the clone names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parent {
    /// The volume.
    pub volume: VolumeId,
    /// What it held then.
    pub snapshot: SnapshotId,
}

/// In place of a parent's slot.
const NO_PARENT: u32 = u32::MAX;

impl Tie {
    pub(crate) fn encode(tie: Option<Self>, out: &mut Vec<u8>) {
        out.put_u32_le(tie.map_or(NO_PARENT, |tie| tie.parent.0));
        out.put_u64_le(tie.map_or(Stamp::ZERO, |tie| tie.cut).as_u64());
    }

    pub(crate) fn decode(input: &mut &[u8]) -> Result<Option<Self>, TryGetError> {
        let (parent, cut) = (input.try_get_u32_le()?, Stamp::from_u64(input.try_get_u64_le()?));
        Ok((parent != NO_PARENT).then_some(Self { parent: Slot(parent), cut }))
    }
}

impl VolumeTable {
    /// What a volume is read from where it has nothing of its own, the nearest first.
    pub(crate) fn lineage(&self, slot: Slot) -> Vec<Tie> {
        let tie = |slot: Slot| self.get(slot).and_then(|volume| volume.tie);
        // Most volumes have none, and an empty list takes no memory.
        std::iter::successors(tie(slot), |above| tie(above.parent)).collect()
    }

    /// The clones that read from a volume, and as of which cuts.
    fn ties_to(&self, parent: Slot) -> impl Iterator<Item = Tie> + '_ {
        let tied = self.iter().filter(|(_, volume)| volume.life != Life::Deleted);
        tied.filter_map(|(_, volume)| volume.tie).filter(move |tie| tie.parent == parent)
    }

    pub(crate) fn has_clones(&self, slot: Slot) -> bool {
        self.ties_to(slot).next().is_some()
    }

    pub(crate) fn is_read_from(&self, slot: Slot, cut: Stamp) -> bool {
        self.ties_to(slot).any(|tie| tie.cut == cut) && !planted::is(PlantedFault::FreeWhatClonesRead)
    }

    /// Takes a snapshot away; its cut stays while clones read from it.
    pub(crate) fn remove_snapshot(&mut self, slot: Slot, id: SnapshotId) {
        let Some(snapshot) = self.get(slot).and_then(|volume| volume.snapshots.find(id)) else { return };
        let needed = self.is_read_from(slot, snapshot.cut);
        if let Some(volume) = self.get_mut(slot) {
            if needed { volume.snapshots.keep(id) } else { volume.remove_cut(snapshot.cut) }
        }
    }

    /// Takes a volume away; what clones read from stays.
    pub(crate) fn delete(&mut self, slot: Slot) {
        let Some(volume) = self.get_mut(slot).filter(|volume| volume.life == Life::Live) else { return };
        let id = volume.id;
        volume.tail.clear();
        volume.progress_recorded = volume.progress;
        self.forget_name(id, slot);
        self.keep_what_is_needed(slot);
    }

    /// Puts an empty volume with the same promise in the place of one, which is deleted.
    pub(crate) fn reset(&mut self, slot: Slot, next: Slot) {
        let Some(old) = self.get(slot).filter(|old| old.life == Life::Live) else { return };
        let mut empty = Volume { tagged: old.tagged, ..Volume::new(old.id, old.blocks) };
        (empty.generation, empty.epoch, empty.session) = (old.generation, old.epoch, old.session);
        self.delete(slot);
        self.insert(next, empty);
    }

    /// Everything that a clone shows is its own now.
    pub(crate) fn untie(&mut self, slot: Slot) {
        let tie = self.get_mut(slot).and_then(|volume| volume.tie.take());
        tie.into_iter().for_each(|tie| self.release(tie));
    }

    /// A clone reads no more from here.
    fn release(&mut self, tie: Tie) {
        let Some(parent) = self.get(tie.parent) else { return };
        let life = parent.life;
        let kept = parent.snapshots.kept().any(|cut| cut == tie.cut);
        if life == Life::Ancestor {
            self.keep_what_is_needed(tie.parent);
        } else if kept
            && !self.is_read_from(tie.parent, tie.cut)
            && let Some(parent) = self.get_mut(tie.parent)
        {
            parent.remove_cut(tie.cut);
        }
    }

    /// A volume without a name is an ancestor, with the cuts that clones read from, or is gone.
    fn keep_what_is_needed(&mut self, slot: Slot) {
        let needed: Vec<Stamp> = self.ties_to(slot).map(|tie| tie.cut).collect();
        let Some(volume) = self.get_mut(slot) else { return };
        if needed.is_empty() {
            volume.life = Life::Deleted;
            return self.untie(slot);
        }
        volume.life = Life::Ancestor;
        volume.keep_cuts(&needed);
    }
}

impl Volume {
    /// What an ancestor holds above this, nobody reads.
    pub(crate) fn ceiling(&self) -> Stamp {
        match self.life {
            Life::Ancestor => self.snapshots.cuts().last().unwrap_or(Stamp::ZERO),
            Life::Live | Life::Deleted => Stamp::MAX,
        }
    }

    fn keep_cuts(&mut self, needed: &[Stamp]) {
        let cuts: Vec<Stamp> = self.snapshots.cuts().collect();
        for cut in cuts {
            match self.snapshots.at(cut) {
                Some(snapshot) if needed.contains(&cut) => self.snapshots.keep(snapshot.id),
                _ => {
                    self.snapshots.remove(cut);
                }
            }
        }
        // The first may be under way.
        self.thinning.truncate(1);
        self.thinning.push_back(Thinning::EVERYTHING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::snapshots::Snapshot;

    fn volume(number: u8, tie: Option<(u32, u64)>, cuts: &[u64]) -> Volume {
        let mut volume = Volume::new(VolumeId::from_bytes([number; 16]), 100);
        volume.tie = tie.map(|(parent, cut)| Tie { parent: Slot(parent), cut: Stamp::from_u64(cut) });
        for cut in cuts {
            volume.add_snapshot(Snapshot { id: id(*cut), cut: Stamp::from_u64(*cut) });
        }
        volume
    }

    fn id(cut: u64) -> SnapshotId {
        SnapshotId::from_bytes(u128::from(cut).to_le_bytes())
    }

    /// Volume 0, a clone of it as of 5, and a clone of that as of 25.
    fn three() -> VolumeTable {
        let mut table = VolumeTable::default();
        table.insert(Slot(0), volume(0, None, &[3, 5, 9]));
        table.insert(Slot(1), volume(1, Some((0, 5)), &[21, 25]));
        table.insert(Slot(2), volume(2, Some((1, 25)), &[]));
        table
    }

    fn life(table: &VolumeTable, slot: u32) -> Life {
        table.get(Slot(slot)).map_or(Life::Deleted, |volume| volume.life)
    }

    fn cuts(table: &VolumeTable, slot: u32) -> Vec<u64> {
        let volume = table.get(Slot(slot)).unwrap();
        volume.snapshots.cuts().map(Stamp::as_u64).collect()
    }

    #[test]
    fn the_nearest_ancestor_comes_first() {
        let found: Vec<_> =
            three().lineage(Slot(2)).iter().map(|tie| (tie.parent.0, tie.cut.as_u64())).collect();
        assert_eq!(found, [(1, 25), (0, 5)]);
    }

    #[test]
    fn what_clones_read_outlives_its_name_and_goes_with_the_last_of_them() {
        let mut table = three();
        table.remove_snapshot(Slot(0), id(5));
        table.remove_snapshot(Slot(0), id(3));
        assert_eq!(cuts(&table, 0), [5, 9], "a clone reads from 5, nobody from 3");
        assert_eq!(table.get(Slot(0)).unwrap().snapshots.find(id(5)), None);
        table.delete(Slot(0));
        table.delete(Slot(1));
        assert_eq!((life(&table, 0), life(&table, 1)), (Life::Ancestor, Life::Ancestor));
        assert_eq!((cuts(&table, 0), cuts(&table, 1)), (vec![5], vec![25]));
        assert_eq!(table.find(VolumeId::from_bytes([0; 16])), None);
        // The name is free.
        table.insert(Slot(3), volume(0, None, &[]));
        table.delete(Slot(2));
        assert_eq!(
            (life(&table, 0), life(&table, 1), life(&table, 3)),
            (Life::Deleted, Life::Deleted, Life::Live)
        );
        assert_eq!(table.find(VolumeId::from_bytes([0; 16])), Some(Slot(3)));
    }

    #[test]
    fn a_clone_that_has_everything_itself_lets_its_parent_go() {
        let mut table = three();
        table.remove_snapshot(Slot(0), id(5));
        table.untie(Slot(1));
        assert_eq!((cuts(&table, 0), life(&table, 0)), (vec![3, 9], Life::Live));
        table.delete(Slot(1));
        assert_eq!(life(&table, 1), Life::Ancestor, "the clone of it reads on");
        table.reset(Slot(2), Slot(4));
        assert_eq!(
            (life(&table, 1), life(&table, 2), life(&table, 4)),
            (Life::Deleted, Life::Deleted, Life::Live)
        );
        assert_eq!(table.lineage(Slot(4)), []);
    }
}
