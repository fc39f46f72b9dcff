//! Clones: volumes that begin with what another one held.

use crate::{Epoch, Member, SnapshotId, SnapshotRecord, Stamp, VolumeId, VolumeRecord};
use serde::{Deserialize, Serialize};

/// Most ancestors that a volume may have, flattened ones included.
pub const LINEAGE_MAX: usize = 255;

/// A volume that a clone began with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ancestor {
    /// Which volume.
    pub volume: VolumeId,
    /// What it was called.
    pub name: String,
    /// The snapshot of it that the clone was made of.
    pub snapshot: SnapshotId,
    /// What that was called; empty if it was taken for the clone alone.
    pub snapshot_name: String,
    /// What was written to it up to this stamp, the clone began with.
    pub cut: Stamp,
}

/// Where the blocks lie that a volume began with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// All that its copies show is their own.
    #[default]
    Nothing,
    /// Copies may read from copies of the parent in the same pools.
    Parent,
    /// As before, and the copies are to make it their own.
    Flattening,
}

impl VolumeRecord {
    /// The record of a clone of this volume as of one of its snapshots. Its first generation is above the
    /// cut's, so that all its own stamps are above those of the blocks that it begins with. Of an encrypted
    /// volume it is encrypted too, and has the same data key, of which each derives a key of its own; what the
    /// snapshot shows must not be sealed under an older one.
    #[must_use]
    pub fn clone_of(
        &self,
        snapshot: &SnapshotRecord,
        clone: VolumeId,
        name: String,
        members: Vec<Member>,
    ) -> Self {
        let of = Ancestor {
            volume: self.id,
            name: self.name.clone(),
            snapshot: snapshot.id,
            snapshot_name: snapshot.name.clone(),
            cut: snapshot.cut,
        };
        // Those that the parent was a clone of when the snapshot was taken, and always.
        let lineage = std::iter::once(of).chain(self.lineage.iter().cloned()).collect();
        Self {
            id: clone,
            name,
            // An opening begins with the next one.
            generation: snapshot.cut.generation(),
            owner: String::new(),
            epoch: Epoch(0),
            wait_owed: false,
            members,
            snapshots: Vec::new(),
            lineage,
            sharing: Sharing::Parent,
            is_image: false,
            next_key: None,
            older_keys: Vec::new(),
            reverting: None,
            // One that is still imported is not cloned.
            import: None,
            ..self.clone()
        }
    }

    /// What it is a clone of.
    #[must_use]
    pub fn parent(&self) -> Option<&Ancestor> {
        self.lineage.first()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Generation;

    fn stamp(generation: u32, sequence: u64) -> Stamp {
        Stamp::new(Generation::new(generation).unwrap(), sequence).unwrap()
    }

    fn snapshot(cut: Stamp) -> SnapshotRecord {
        SnapshotRecord {
            id: SnapshotId::from_bytes([3; 16]),
            name: "before".into(),
            cut,
            created: 0,
            labels: Default::default(),
        }
    }

    #[test]
    fn a_clone_writes_above_all_that_it_begins_with() {
        let parent = VolumeRecord {
            id: VolumeId::from_bytes([1; 16]),
            name: "golden".into(),
            blocks: 100,
            generation: Generation::new(9).unwrap(),
            owner: "someone".into(),
            epoch: Epoch(4),
            wait_owed: true,
            members: Vec::new(),
            snapshots: vec![snapshot(stamp(7, 5))],
            lineage: Vec::new(),
            sharing: Sharing::Nothing,
            is_image: true,
            settings: crate::VolumeSettings::default(),
            copies: 3,
            key: Some(crate::KeyId::from_bytes([6; 16])),
            next_key: Some(crate::KeyId::from_bytes([7; 16])),
            older_keys: Vec::new(),
            reverting: Some(crate::Reverting {
                to: SnapshotId::from_bytes([3; 16]),
                safety: None,
                position: 0,
                changed: 0,
            }),
            import: None,
        };
        let clone =
            parent.clone_of(&parent.snapshots[0], VolumeId::from_bytes([2; 16]), "new".into(), Vec::new());
        let first = Stamp::new(clone.generation.next().unwrap(), 0).unwrap();
        assert!(first > stamp(7, 5));
        assert_eq!((clone.blocks, clone.owner.as_str(), clone.is_image), (100, "", false));
        assert_eq!((clone.sharing, clone.key), (Sharing::Parent, parent.key));
        assert_eq!((clone.reverting.as_ref(), clone.next_key), (None, None));
        let again =
            clone.clone_of(&snapshot(stamp(8, 1)), VolumeId::from_bytes([4; 16]), "x".into(), Vec::new());
        let lineage: Vec<_> = again.lineage.iter().map(|of| (of.volume, of.cut)).collect();
        assert_eq!(lineage, [(clone.id, stamp(8, 1)), (parent.id, stamp(7, 5))]);
        assert!(lineage.is_sorted_by(|nearer, further| nearer.1 > further.1));
    }
}
