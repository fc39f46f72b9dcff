//! Data keys that an encrypted volume had before its present one.
//!
//! ```text
//!  stamps   0 ────────── until ────────── until ──────────▶
//!               key 1            key 2          the present key
//! ```
//!
//! Each key is kept sealed under the one that took its place, so that who unlocks the present one has all. Once
//! nothing is left that a key is needed for, it is destroyed, the oldest first.

use crate::{Hex, KeyId, Member, MemberState, SnapshotRecord, Stamp, VolumeRecord};
use serde::{Deserialize, Serialize};

/// Most data keys that a volume may have had and still need.
pub const OLDER_KEYS_MAX: usize = 8;

/// Length of a data key sealed under another: itself, and its tag.
pub const SEALED_KEY_BYTES: usize = 48;

/// A data key that a volume had before.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OlderKey {
    /// Its name.
    pub key: KeyId,
    /// What has a stamp up to here, and above that of the key before, is sealed under it.
    pub until: Stamp,
    /// The key, sealed under the next one; `None` once it is destroyed, until it is gone from the store's files.
    pub sealed: Option<Hex<SEALED_KEY_BYTES>>,
    /// What the volume shows before this block is sealed under newer keys, and stable.
    pub position: u64,
    /// Blocks that were sealed anew for that.
    pub changed: u64,
    /// All was by this stamp. Snapshots with lower cuts may show blocks that are sealed under it.
    pub rewritten: Option<Stamp>,
}

impl OlderKey {
    /// Whether a snapshot with this cut may show what is sealed under it.
    #[must_use]
    pub fn is_needed_at(&self, cut: Stamp) -> bool {
        self.rewritten.is_none_or(|rewritten| cut < rewritten)
    }

    /// Whether a copy may hold what is sealed under it in place of what the volume shows.
    fn is_needed_by(&self, member: &Member) -> bool {
        match member.state {
            MemberState::InSync => self.rewritten.is_none(),
            MemberState::Syncing { since } | MemberState::Stale { since } => self.is_needed_at(since),
        }
    }
}

impl VolumeRecord {
    /// Whether something the volume shows may still be sealed under an older key.
    #[must_use]
    pub fn is_resealing(&self) -> bool {
        self.older_keys.iter().any(|older| older.rewritten.is_none())
    }

    /// Snapshots that may show what is sealed under a key that the volume had before.
    pub fn snapshots_needing(&self, older: &OlderKey) -> impl Iterator<Item = &SnapshotRecord> {
        self.snapshots.iter().filter(|snapshot| older.is_needed_at(snapshot.cut))
    }

    /// Copies that may hold what is sealed under it; they could be all that is left one day.
    pub fn members_needing(&self, older: &OlderKey) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| older.is_needed_by(member))
    }

    /// How many of the older keys, from the oldest on, nothing needs any more.
    #[must_use]
    pub fn unneeded_keys(&self) -> usize {
        let needed = |older: &OlderKey| {
            self.snapshots_needing(older).next().is_some() || self.members_needing(older).next().is_some()
        };
        self.older_keys.iter().take_while(|older| !needed(older)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, Generation, PoolId, Sharing, SnapshotId, VolumeId, VolumeSettings};

    fn older(id: u8, until: u64, rewritten: Option<u64>) -> OlderKey {
        OlderKey {
            key: KeyId::from_bytes([id; 16]),
            until: Stamp::from_u64(until),
            sealed: Some(Hex([id; SEALED_KEY_BYTES])),
            position: 0,
            changed: 0,
            rewritten: rewritten.map(Stamp::from_u64),
        }
    }

    fn record(older_keys: Vec<OlderKey>, cuts: &[u64], state: MemberState) -> VolumeRecord {
        let snapshot = |&cut: &u64| SnapshotRecord {
            id: SnapshotId::from_bytes([9; 16]),
            name: cut.to_string(),
            cut: Stamp::from_u64(cut),
            created: 0,
            labels: Default::default(),
        };
        VolumeRecord {
            id: VolumeId::from_bytes([1; 16]),
            name: "v".into(),
            blocks: 1,
            generation: Generation::ZERO,
            owner: String::new(),
            epoch: Epoch(0),
            wait_owed: false,
            members: vec![Member { replica: PoolId::from_bytes([1; 16]), address: String::new(), state }],
            snapshots: cuts.iter().map(snapshot).collect(),
            lineage: Vec::new(),
            sharing: Sharing::Nothing,
            is_image: false,
            settings: VolumeSettings::default(),
            copies: 1,
            key: Some(KeyId::from_bytes([7; 16])),
            next_key: None,
            older_keys,
            reverting: None,
            import: None,
        }
    }

    #[test]
    fn a_key_is_needed_as_long_as_anything_may_be_sealed_under_it() {
        let in_sync = MemberState::InSync;
        let unneeded =
            |older: &[OlderKey], cuts: &[u64], state| record(older.to_vec(), cuts, state).unneeded_keys();
        // A snapshot that was taken on the way shows blocks under both.
        let one = [older(1, 10, Some(20))];
        assert_eq!(unneeded(&one, &[], in_sync), 1);
        assert_eq!(unneeded(&one, &[20, 25], in_sync), 1);
        for cut in [5, 10, 15, 19] {
            assert_eq!(unneeded(&one, &[cut, 25], in_sync), 0, "{cut}");
        }
        assert_eq!(unneeded(&[older(1, 10, None)], &[], in_sync), 0);
        // A copy that was left behind may be the last one day.
        let stale = |since| MemberState::Stale { since: Stamp::from_u64(since) };
        assert_eq!((unneeded(&one, &[], stale(19)), unneeded(&one, &[], stale(20))), (0, 1));
        // The newer one unlocks the older.
        let two = [older(1, 10, Some(20)), older(2, 30, Some(40))];
        assert_eq!(unneeded(&two, &[35], in_sync), 1);
        assert_eq!(unneeded(&two, &[15], in_sync), 0);
        assert_eq!(unneeded(&two, &[], in_sync), 2);
    }
}
