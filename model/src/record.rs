//! The volume record: the one key that membership, ownership and size are decided by.

use crate::{
    Ancestor, Epoch, Generation, GroupId, KeyId, OlderKey, ReplicaId, Sharing, SnapshotId, Stamp, VolumeId,
    VolumeSettings,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A member's standing in a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum MemberState {
    /// Holds every acknowledged write; may be read from and acknowledge.
    InSync,
    /// Receives new writes while a copy brings the old; never read from.
    Syncing {
        /// As of the `Stale` that it was before: the copy may end at any moment.
        since: Stamp,
    },
    /// Lacks writes after this stamp; never read from.
    Stale {
        /// The last stamp it is known to hold everything up to.
        since: Stamp,
    },
}

/// One replica of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// The pool that keeps this copy.
    pub replica: ReplicaId,
    /// Where its server listens: `host:port`.
    pub address: String,
    /// Its standing.
    #[serde(flatten)]
    pub state: MemberState,
}

/// A volume's record, changed only by compare-and-swap through an
/// [`Authority`](crate::Authority).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// The volume's identity, for ever.
    pub id: VolumeId,
    /// What people call it.
    pub name: String,
    /// Size in blocks.
    pub blocks: u64,
    /// Counts openings for writing.
    pub generation: Generation,
    /// Who opened it last, for people to read; empty when closed.
    pub owner: String,
    /// Counts membership changes.
    pub epoch: Epoch,
    /// A member was dropped by an opener that could not fence it: until whoever opens the volume has
    /// waited for the lease of older engines, one of them may still read from that member.
    pub wait_owed: bool,
    /// Every replica of the volume.
    pub members: Vec<Member>,
    /// Its snapshots, in the order of their cuts.
    pub snapshots: Vec<SnapshotRecord>,
    /// A clone's: whose blocks it began with, the nearest first, their cuts falling. A block whose stamp is not
    /// above an ancestor's cut was written to that ancestor, or to one further on. At most
    /// [`LINEAGE_MAX`](crate::LINEAGE_MAX).
    pub lineage: Vec<Ancestor>,
    /// Where those blocks lie.
    pub sharing: Sharing,
    /// A golden image: it is read and cloned, and never written.
    pub is_image: bool,
    /// What its users chose.
    pub settings: VolumeSettings,
    /// How many members it shall have, which the manager sees to; 0 where nobody does.
    pub copies: u32,
    /// The name of the data key of an encrypted volume.
    pub key: Option<KeyId>,
    /// The name of the one that it shall have next: whoever has the volume open and this key goes over to it.
    pub next_key: Option<KeyId>,
    /// Those that it had before and that something may still be sealed under, the oldest first. At most
    /// [`OLDER_KEYS_MAX`](crate::OLDER_KEYS_MAX).
    pub older_keys: Vec<OlderKey>,
    /// While it becomes again what a snapshot shows: nobody uses it, and whoever opens it goes on with that.
    pub reverting: Option<Reverting>,
    /// What it is being filled from while it is used; nothing once all of that is in it.
    pub import: Option<InstantImport>,
}

/// A volume's source, and how much of it is in the volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InstantImport {
    /// The NBD URI of the export that it is filled from. Nothing changes there.
    pub source: String,
    /// The export's bytes.
    pub bytes: u64,
    /// Of how it begins and ends (`nbd/src/fingerprint.rs`): another one under the same name is noticed.
    pub fingerprint: u32,
    /// All blocks below are the volume's. Above, a block is the volume's if the volume has it, and else the
    /// source's (`engine/src/volume/hydration.rs`).
    pub hydrated: u64,
}

/// A volume on its way back to a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reverting {
    /// To which.
    pub to: SnapshotId,
    /// A snapshot to be taken before anything changes; it may be there already.
    pub safety: Option<SnapshotRecord>,
    /// Everything before this block is done, and stable.
    pub position: u64,
    /// Blocks that were written or discarded for it so far.
    pub changed: u64,
}

/// A snapshot of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Its identity, for ever.
    pub id: SnapshotId,
    /// What people call it, by the rules for volumes; no other snapshot of the volume is called so.
    pub name: String,
    /// It shows what was written up to this stamp, which no write has.
    pub cut: Stamp,
    /// When it was asked for, in seconds since 1970.
    pub created: u64,
    /// For people and programs.
    pub labels: BTreeMap<String, String>,
}

/// What an engine is told to do about snapshots. It may be said again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotOrder {
    /// Take this one; the engine sets its cut.
    Create(SnapshotRecord),
    /// Delete it.
    Delete(SnapshotId),
    /// Take part in one over several volumes.
    Group {
        /// Which.
        group: GroupId,
        /// What comes next of it.
        step: GroupStep,
    },
}

/// A step of a snapshot over several volumes, told to each volume's engine. The next is told when all have
/// carried out the one before.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupStep {
    /// Send no more writes to members, for so long at most.
    Hold {
        /// How long.
        milliseconds: u64,
    },
    /// Keep this snapshot, and record nothing; the engine says at which cut. Refused when writes were not held until
    /// now; they go on afterwards.
    Cut(SnapshotRecord),
    /// Say whether the cut still stands.
    Confirm,
    /// The record says what became of it.
    Settle,
    /// Let writes go on. What the record does not have by now shall not come any more.
    Abandon,
}

/// Most snapshots that a volume may have.
pub const SNAPSHOTS_MAX: usize = 1000;

/// The longest volume name, in bytes.
pub const VOLUME_NAME_BYTES_MAX: usize = 63;

/// Whether `name` may name a volume: 1 to 63 of `a-z 0-9 - _ .`, beginning with a letter or digit,
/// so that it is a file name, a Kubernetes name and an NBD export name at once.
#[must_use]
pub fn is_volume_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    let begins_well = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    begins_well && name.len() <= VOLUME_NAME_BYTES_MAX && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["disk0", "a", "0-a_b.c"] {
            assert!(is_volume_name(good), "{good}");
        }
        for bad in ["", "-a", "..", "a/b", "A", "a b", "é", &"a".repeat(64)] {
            assert!(!is_volume_name(bad), "{bad}");
        }
    }
}
