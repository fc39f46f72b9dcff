//! What every version of every block of every volume must be.

use std::collections::{BTreeMap, BTreeSet};

use trivet_model::{SnapshotId, VolumeId};

use super::pool::Random;

/// A volume as it must be: every version of every block by stamp, 0 for a discarded one.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) blocks: u64,
    pub(crate) versions: BTreeMap<(u64, u64), u64>,
    pub(crate) snapshots: BTreeMap<u64, SnapshotId>,
    pub(crate) stamp: u64,
    /// What it is a clone of, as of which cut.
    pub(crate) tie: Option<(usize, u64)>,
    pub(crate) alive: bool,
    /// Some of what it inherited may be its own already.
    pub(crate) half_flat: bool,
}

#[derive(Default)]
pub(crate) struct Oracle {
    pub(crate) volumes: Vec<Volume>,
    /// Numbers contents, so that no two versions are alike.
    pub(crate) written: u64,
    pub(crate) snapshots_taken: u64,
}

pub(crate) fn name(index: usize) -> VolumeId {
    VolumeId::from_bytes((index as u128 + 1).to_be_bytes())
}

impl Oracle {
    pub(crate) fn alive(&self) -> Vec<usize> {
        (0..self.volumes.len()).filter(|index| self.volumes[*index].alive).collect()
    }

    /// The version of a block that a cut shows: its stamp and number.
    pub(crate) fn shown(&self, index: usize, block: u64, cut: u64) -> Option<(u64, u64)> {
        let volume = &self.volumes[index];
        let own = volume.versions.range((block, 0)..=(block, cut)).next_back();
        own.map(|((_, stamp), number)| (*stamp, *number)).or_else(|| {
            let (parent, cut) = volume.tie?;
            self.shown(parent, block, cut)
        })
    }

    /// The volumes that read from this one, and as of which cuts.
    pub(crate) fn children(&self, index: usize) -> impl Iterator<Item = (usize, u64)> + '_ {
        let tied = self.volumes.iter().enumerate();
        let tied = tied.filter_map(move |(child, volume)| {
            volume.tie.filter(|(parent, _)| *parent == index).map(|(_, cut)| (child, cut))
        });
        tied.filter(|(child, _)| self.is_needed(*child))
    }

    /// Whether it is there, or a clone reads from it.
    pub(crate) fn is_needed(&self, index: usize) -> bool {
        self.volumes[index].alive || self.children(index).next().is_some()
    }

    /// The cuts that show something to somebody.
    pub(crate) fn cuts(&self, index: usize) -> BTreeSet<u64> {
        let volume = &self.volumes[index];
        let mut cuts: BTreeSet<u64> = self.children(index).map(|(_, cut)| cut).collect();
        if volume.alive {
            cuts.extend(volume.snapshots.keys());
            cuts.insert(u64::MAX);
        }
        cuts
    }

    /// Pool blocks that all volumes need.
    pub(crate) fn used(&self) -> u64 {
        let of_volume = |index: usize| {
            let (volume, cuts) = (&self.volumes[index], self.cuts(index));
            let mut seen = BTreeSet::new();
            for block in 0..volume.blocks {
                for cut in &cuts {
                    let own = volume.versions.range((block, 0)..=(block, *cut)).next_back();
                    seen.extend(own.filter(|(_, number)| **number > 0).map(|(place, _)| *place));
                }
            }
            seen.len() as u64
        };
        (0..self.volumes.len()).filter(|index| self.is_needed(*index)).map(of_volume).sum()
    }

    pub(crate) fn depth(&self, index: usize) -> usize {
        self.volumes[index].tie.map_or(0, |(parent, _)| 1 + self.depth(parent))
    }

    /// What the volume inherited is its own.
    pub(crate) fn flattened(&mut self, index: usize) {
        let lowest = self.cuts(index).into_iter().next().unwrap_or(u64::MAX);
        let (parent, cut) = self.volumes[index].tie.unwrap();
        for block in 0..self.volumes[index].blocks {
            let own = self.volumes[index].versions.range((block, 0)..=(block, lowest)).next_back();
            if own.is_none()
                && let Some((stamp, number)) =
                    self.shown(parent, block, cut).filter(|(_, number)| *number > 0)
            {
                self.volumes[index].versions.insert((block, stamp), number);
            }
        }
        let volume = &mut self.volumes[index];
        (volume.tie, volume.half_flat) = (None, false);
    }

    pub(crate) fn any_snapshot(&self, index: usize, random: &mut Random) -> Option<(u64, SnapshotId)> {
        let snapshots = &self.volumes[index].snapshots;
        let at = usize::try_from(random.below(snapshots.len().max(1) as u64)).unwrap();
        snapshots.iter().nth(at).map(|(cut, id)| (*cut, *id))
    }
}
