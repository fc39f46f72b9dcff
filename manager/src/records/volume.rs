//! A volume, by id, and the index of names that keeps them unique.

use super::Record;
use serde::{Deserialize, Serialize};
use trivet_model::{VolumeId, VolumeRecord};

impl Record for VolumeRecord {
    const KIND: &'static str = "volume";
    const VERSION: u32 = 8;

    fn id(&self) -> String {
        self.id.to_string()
    }
}

/// Says which volume has a name. Committed together with the volume's record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeNameRecord {
    /// The name.
    pub name: String,
    /// The volume that has it.
    pub volume: VolumeId,
}

impl Record for VolumeNameRecord {
    const KIND: &'static str = "volume-name";
    const VERSION: u32 = 1;

    fn id(&self) -> String {
        self.name.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_layout;
    use super::*;
    use trivet_model::{
        Ancestor, Durability, Epoch, Generation, Hex, InstantImport, KeyId, Member, MemberState, OlderKey,
        PoolId, RateLimit, Reverting, Sharing, SnapshotId, SnapshotRecord, Stamp, VolumeSettings,
    };

    #[test]
    fn layout() {
        let member = |state| Member { replica: PoolId::from_bytes([2; 16]), address: "h:1".into(), state };
        let record = VolumeRecord {
            id: VolumeId::from_bytes([1; 16]),
            name: "disk0".into(),
            blocks: 2_621_440,
            generation: Generation::new(3).unwrap(),
            owner: "pid 7".into(),
            epoch: Epoch(4),
            wait_owed: false,
            members: vec![
                member(MemberState::InSync),
                member(MemberState::Stale { since: Stamp::from_u64(9) }),
            ],
            snapshots: vec![SnapshotRecord {
                id: SnapshotId::from_bytes([3; 16]),
                name: "before".into(),
                cut: Stamp::from_u64(8),
                created: 1_795_000_000,
                labels: [("kept".to_owned(), "yes".to_owned())].into(),
            }],
            lineage: vec![Ancestor {
                volume: VolumeId::from_bytes([4; 16]),
                name: "golden".into(),
                snapshot: SnapshotId::from_bytes([5; 16]),
                snapshot_name: "v1".into(),
                cut: Stamp::from_u64(7),
            }],
            sharing: Sharing::Parent,
            is_image: false,
            settings: VolumeSettings {
                durability: Durability::WriteThrough,
                iops_limit: Some(RateLimit { per_second: 1000, burst: 2000 }),
                bandwidth_limit: None,
                snapshot_limit: 70,
                verified_reads: true,
            },
            copies: 3,
            key: Some(KeyId::from_bytes([4; 16])),
            next_key: Some(KeyId::from_bytes([5; 16])),
            older_keys: vec![OlderKey {
                key: KeyId::from_bytes([3; 16]),
                until: Stamp::from_u64(10),
                sealed: Some(Hex([6; 48])),
                position: 11,
                changed: 12,
                rewritten: None,
            }],
            reverting: Some(Reverting {
                to: SnapshotId::from_bytes([3; 16]),
                safety: None,
                position: 5,
                changed: 6,
            }),
            import: Some(InstantImport {
                source: "nbd://host/x".to_owned(),
                bytes: 5000,
                fingerprint: 77,
                hydrated: 1,
            }),
        };
        assert_layout(
            &record,
            concat!(
                r#"{"version":8,"id":"01010101-0101-0101-0101-010101010101","name":"disk0","#,
                r#""blocks":2621440,"generation":3,"owner":"pid 7","epoch":4,"wait_owed":false,"members":["#,
                r#"{"replica":"02020202-0202-0202-0202-020202020202","address":"h:1","state":"in-sync"},"#,
                r#"{"replica":"02020202-0202-0202-0202-020202020202","address":"h:1","state":"stale","since":9}],"#,
                r#""snapshots":[{"id":"03030303-0303-0303-0303-030303030303","name":"before","cut":8,"#,
                r#""created":1795000000,"labels":{"kept":"yes"}}],"#,
                r#""lineage":[{"volume":"04040404-0404-0404-0404-040404040404","name":"golden","#,
                r#""snapshot":"05050505-0505-0505-0505-050505050505","snapshot_name":"v1","cut":7}],"#,
                r#""sharing":"parent","is_image":false,"settings":{"durability":"write-through","#,
                r#""iops_limit":{"per_second":1000,"burst":2000},"bandwidth_limit":null,"#,
                r#""snapshot_limit":70,"verified_reads":true},"copies":3,"#,
                r#""key":"04040404-0404-0404-0404-040404040404","#,
                r#""next_key":"05050505-0505-0505-0505-050505050505","#,
                r#""older_keys":[{"key":"03030303-0303-0303-0303-030303030303","until":10,"#,
                r#""sealed":"060606060606060606060606060606060606060606060606"#,
                r#"060606060606060606060606060606060606060606060606","#,
                r#""position":11,"changed":12,"rewritten":null}],"reverting":{"#,
                r#""to":"03030303-0303-0303-0303-030303030303","safety":null,"position":5,"changed":6},"#,
                r#""import":{"source":"nbd://host/x","bytes":5000,"fingerprint":77,"hydrated":1}}"#
            ),
        );
        let name = VolumeNameRecord { name: "disk0".into(), volume: record.id };
        assert_layout(
            &name,
            r#"{"version":1,"name":"disk0","volume":"01010101-0101-0101-0101-010101010101"}"#,
        );
    }
}
