//! Volume records between the model's types and the wire's.

use crate::v1;
use trivet_model::{
    Ancestor, Durability, Epoch, Generation, Hex, InstantImport, KeyId, LINEAGE_MAX, Member, MemberState,
    OLDER_KEYS_MAX, OlderKey, PoolId, RateLimit, Reverting, Revision, Sharing, SnapshotId, SnapshotRecord,
    Stamp, VolumeId, VolumeRecord, VolumeSettings,
};

/// A message whose fields do not make a volume record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a volume record's {field} is missing or out of range")]
pub struct MalformedRecord {
    /// Which field.
    pub field: &'static str,
}

/// The wire's form of a record.
#[must_use]
pub fn record_to_wire(record: &VolumeRecord) -> v1::VolumeRecord {
    let member = |member: &Member| {
        let (state, stale_since) = match member.state {
            MemberState::InSync => (v1::MemberState::InSync, Stamp::ZERO),
            MemberState::Syncing { since } => (v1::MemberState::Syncing, since),
            MemberState::Stale { since } => (v1::MemberState::Stale, since),
        };
        v1::Member {
            replica: member.replica.as_bytes().to_vec(),
            address: member.address.clone(),
            state: state.into(),
            stale_since: stale_since.as_u64(),
        }
    };
    v1::VolumeRecord {
        id: record.id.as_bytes().to_vec(),
        name: record.name.clone(),
        blocks: record.blocks,
        generation: record.generation.get(),
        owner: record.owner.clone(),
        epoch: record.epoch.0,
        wait_owed: record.wait_owed,
        members: record.members.iter().map(member).collect(),
        snapshots: record.snapshots.iter().map(snapshot_to_wire).collect(),
        lineage: record.lineage.iter().map(ancestor_to_wire).collect(),
        sharing: match record.sharing {
            Sharing::Nothing => v1::Sharing::Nothing,
            Sharing::Parent => v1::Sharing::Parent,
            Sharing::Flattening => v1::Sharing::Flattening,
        }
        .into(),
        is_image: record.is_image,
        settings: Some(settings_to_wire(&record.settings)),
        copies: record.copies,
        key: key_to_wire(record.key),
        next_key: key_to_wire(record.next_key),
        older_keys: record.older_keys.iter().map(older_key_to_wire).collect(),
        reverting: record.reverting.as_ref().map(reverting_to_wire),
        import: record.import.as_ref().map(import_to_wire),
    }
}

fn import_to_wire(import: &InstantImport) -> v1::InstantImport {
    let InstantImport { source, bytes, fingerprint, hydrated } = import;
    v1::InstantImport {
        source: source.clone(),
        bytes: *bytes,
        fingerprint: *fingerprint,
        hydrated: *hydrated,
    }
}

/// What a volume is filled from, as the wire has it.
#[must_use]
pub fn import_from_wire(import: v1::InstantImport) -> InstantImport {
    let v1::InstantImport { source, bytes, fingerprint, hydrated } = import;
    InstantImport { source, bytes, fingerprint, hydrated }
}

fn key_to_wire(key: Option<KeyId>) -> Vec<u8> {
    key.map(|key| key.as_bytes().to_vec()).unwrap_or_default()
}

fn key_from_wire(bytes: &[u8]) -> Result<Option<KeyId>, MalformedRecord> {
    if bytes.is_empty() { Ok(None) } else { key_id(bytes).map(Some) }
}

fn older_key_to_wire(older: &OlderKey) -> v1::OlderKey {
    v1::OlderKey {
        key: older.key.as_bytes().to_vec(),
        until: older.until.as_u64(),
        sealed: older.sealed.map(|sealed| sealed.to_vec()).unwrap_or_default(),
        position: older.position,
        changed: older.changed,
        rewritten: older.rewritten.map(Stamp::as_u64),
    }
}

fn older_key_from_wire(older: v1::OlderKey) -> Result<OlderKey, MalformedRecord> {
    let sealed = match older.sealed.as_slice() {
        [] => None,
        bytes => Some(Hex(bytes.try_into().or(Err(MalformedRecord { field: "older key" }))?)),
    };
    Ok(OlderKey {
        key: key_id(&older.key)?,
        until: Stamp::from_u64(older.until),
        sealed,
        position: older.position,
        changed: older.changed,
        rewritten: older.rewritten.map(Stamp::from_u64),
    })
}

fn ancestor_to_wire(of: &Ancestor) -> v1::Ancestor {
    v1::Ancestor {
        volume: of.volume.as_bytes().to_vec(),
        name: of.name.clone(),
        snapshot: of.snapshot.as_bytes().to_vec(),
        snapshot_name: of.snapshot_name.clone(),
        cut: of.cut.as_u64(),
    }
}

fn ancestor_from_wire(of: v1::Ancestor) -> Result<Ancestor, MalformedRecord> {
    Ok(Ancestor {
        volume: volume_id(&of.volume)?,
        name: of.name,
        snapshot: snapshot_id(of.snapshot)?,
        snapshot_name: of.snapshot_name,
        cut: Stamp::from_u64(of.cut),
    })
}

fn reverting_to_wire(reverting: &Reverting) -> v1::Reverting {
    v1::Reverting {
        to: reverting.to.as_bytes().to_vec(),
        safety: reverting.safety.as_ref().map(snapshot_to_wire),
        position: reverting.position,
        changed: reverting.changed,
    }
}

fn reverting_from_wire(reverting: v1::Reverting) -> Result<Reverting, MalformedRecord> {
    Ok(Reverting {
        to: snapshot_id(reverting.to)?,
        safety: reverting.safety.map(snapshot_from_wire).transpose()?,
        position: reverting.position,
        changed: reverting.changed,
    })
}

fn snapshot_id(bytes: Vec<u8>) -> Result<SnapshotId, MalformedRecord> {
    bytes.try_into().map(SnapshotId::from_bytes).or(Err(MalformedRecord { field: "snapshot id" }))
}

/// The wire's form of a volume's settings.
#[must_use]
pub fn settings_to_wire(settings: &VolumeSettings) -> v1::VolumeSettings {
    v1::VolumeSettings {
        durability: durability_to_wire(settings.durability).into(),
        iops_limit: settings.iops_limit.map(limit_to_wire),
        bandwidth_limit: settings.bandwidth_limit.map(limit_to_wire),
        snapshot_limit: settings.snapshot_limit,
        verified_reads: settings.verified_reads,
    }
}

/// The wire's word for a durability.
#[must_use]
pub const fn durability_to_wire(durability: Durability) -> v1::Durability {
    match durability {
        Durability::WriteBack => v1::Durability::WriteBack,
        Durability::WriteThrough => v1::Durability::WriteThrough,
    }
}

/// The wire's form of a limit.
#[must_use]
pub const fn limit_to_wire(limit: RateLimit) -> v1::RateLimit {
    v1::RateLimit { per_second: limit.per_second, burst: limit.burst }
}

/// The model's form of a durability; `None` when nothing was said.
#[must_use]
pub const fn durability_from_wire(durability: v1::Durability) -> Option<Durability> {
    match durability {
        v1::Durability::Unspecified => None,
        v1::Durability::WriteBack => Some(Durability::WriteBack),
        v1::Durability::WriteThrough => Some(Durability::WriteThrough),
    }
}

/// The model's form of a volume's settings.
///
/// # Errors
/// [`MalformedRecord`] when it does not say how durable writes are.
pub fn settings_from_wire(settings: &v1::VolumeSettings) -> Result<VolumeSettings, MalformedRecord> {
    let limit = |limit: v1::RateLimit| RateLimit { per_second: limit.per_second, burst: limit.burst };
    let durability = durability_from_wire(settings.durability());
    Ok(VolumeSettings {
        durability: durability.ok_or(MalformedRecord { field: "durability" })?,
        iops_limit: settings.iops_limit.map(limit),
        bandwidth_limit: settings.bandwidth_limit.map(limit),
        snapshot_limit: settings.snapshot_limit,
        verified_reads: settings.verified_reads,
    })
}

fn snapshot_to_wire(snapshot: &SnapshotRecord) -> v1::Snapshot {
    v1::Snapshot {
        id: snapshot.id.as_bytes().to_vec(),
        name: snapshot.name.clone(),
        cut: snapshot.cut.as_u64(),
        created: snapshot.created,
        labels: snapshot.labels.clone().into_iter().collect(),
    }
}

fn snapshot_from_wire(snapshot: v1::Snapshot) -> Result<SnapshotRecord, MalformedRecord> {
    Ok(SnapshotRecord {
        id: snapshot_id(snapshot.id)?,
        name: snapshot.name,
        cut: Stamp::from_u64(snapshot.cut),
        created: snapshot.created,
        labels: snapshot.labels.into_iter().collect(),
    })
}

/// The model's form of a record.
///
/// # Errors
/// [`MalformedRecord`] names the first field that is wrong.
pub fn record_from_wire(record: v1::VolumeRecord) -> Result<VolumeRecord, MalformedRecord> {
    let generation = Generation::new(record.generation).ok_or(MalformedRecord { field: "generation" })?;
    let sharing = match record.sharing() {
        v1::Sharing::Nothing => Sharing::Nothing,
        v1::Sharing::Parent => Sharing::Parent,
        v1::Sharing::Flattening => Sharing::Flattening,
        v1::Sharing::Unspecified => return Err(MalformedRecord { field: "sharing" }),
    };
    if record.lineage.len() > LINEAGE_MAX {
        return Err(MalformedRecord { field: "lineage" });
    }
    if record.older_keys.len() > OLDER_KEYS_MAX {
        return Err(MalformedRecord { field: "older keys" });
    }
    Ok(VolumeRecord {
        id: volume_id(&record.id)?,
        name: record.name,
        blocks: record.blocks,
        generation,
        owner: record.owner,
        epoch: Epoch(record.epoch),
        wait_owed: record.wait_owed,
        members: record.members.into_iter().map(member_from_wire).collect::<Result<_, _>>()?,
        snapshots: record.snapshots.into_iter().map(snapshot_from_wire).collect::<Result<_, _>>()?,
        lineage: record.lineage.into_iter().map(ancestor_from_wire).collect::<Result<_, _>>()?,
        sharing,
        is_image: record.is_image,
        settings: settings_from_wire(&record.settings.ok_or(MalformedRecord { field: "settings" })?)?,
        copies: record.copies,
        key: key_from_wire(&record.key)?,
        next_key: key_from_wire(&record.next_key)?,
        older_keys: record.older_keys.into_iter().map(older_key_from_wire).collect::<Result<_, _>>()?,
        reverting: record.reverting.map(reverting_from_wire).transpose()?,
        import: record.import.map(import_from_wire),
    })
}

/// A record with the revision it was read at.
///
/// # Errors
/// [`MalformedRecord`] when the record is missing or wrong.
pub fn versioned_from_wire(
    message: v1::VersionedVolumeRecord,
) -> Result<(VolumeRecord, Revision), MalformedRecord> {
    let record = message.record.ok_or(MalformedRecord { field: "record" })?;
    Ok((record_from_wire(record)?, Revision(message.revision)))
}

/// A volume's id from its 16 bytes.
///
/// # Errors
/// [`MalformedRecord`] when there are not 16.
pub fn volume_id(bytes: &[u8]) -> Result<VolumeId, MalformedRecord> {
    <[u8; 16]>::try_from(bytes).map(VolumeId::from_bytes).or(Err(MalformedRecord { field: "id" }))
}

/// A key's name from its 16 bytes.
///
/// # Errors
/// [`MalformedRecord`] when there are not 16.
pub fn key_id(bytes: &[u8]) -> Result<KeyId, MalformedRecord> {
    <[u8; 16]>::try_from(bytes).map(KeyId::from_bytes).or(Err(MalformedRecord { field: "key" }))
}

/// A pool's id from its 16 bytes.
///
/// # Errors
/// [`MalformedRecord`] when there are not 16.
pub fn pool_id(bytes: &[u8]) -> Result<PoolId, MalformedRecord> {
    <[u8; 16]>::try_from(bytes).map(PoolId::from_bytes).or(Err(MalformedRecord { field: "replica id" }))
}

fn member_from_wire(member: v1::Member) -> Result<Member, MalformedRecord> {
    let state = match member.state() {
        v1::MemberState::InSync => MemberState::InSync,
        v1::MemberState::Syncing => MemberState::Syncing { since: Stamp::from_u64(member.stale_since) },
        v1::MemberState::Stale => MemberState::Stale { since: Stamp::from_u64(member.stale_since) },
        v1::MemberState::Unspecified => return Err(MalformedRecord { field: "member state" }),
    };
    Ok(Member { replica: pool_id(&member.replica)?, address: member.address, state })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> impl Strategy<Value = MemberState> {
        prop_oneof![
            Just(MemberState::InSync),
            any::<u64>().prop_map(|since| MemberState::Syncing { since: Stamp::from_u64(since) }),
            any::<u64>().prop_map(|since| MemberState::Stale { since: Stamp::from_u64(since) }),
        ]
    }

    prop_compose! {
        fn snapshot()(
            id in any::<[u8; 16]>(),
            name in "[a-z0-9][a-z0-9._-]{0,62}",
            cut in any::<u64>(),
            created in any::<u64>(),
            labels in proptest::collection::btree_map(".{0,5}", ".{0,5}", 0..3),
        ) -> SnapshotRecord {
            SnapshotRecord { id: SnapshotId::from_bytes(id), name, cut: Stamp::from_u64(cut), created, labels }
        }
    }

    fn limit() -> impl Strategy<Value = Option<RateLimit>> {
        proptest::option::of(
            any::<(u64, u64)>().prop_map(|(per_second, burst)| RateLimit { per_second, burst }),
        )
    }

    prop_compose! {
        fn settings()(
            through in any::<bool>(),
            iops_limit in limit(),
            bandwidth_limit in limit(),
            snapshot_limit in any::<u32>(),
            verified_reads in any::<bool>(),
        ) -> VolumeSettings {
            let durability = if through { Durability::WriteThrough } else { Durability::WriteBack };
            VolumeSettings { durability, iops_limit, bandwidth_limit, snapshot_limit, verified_reads }
        }
    }

    prop_compose! {
        fn ancestor()(
            volume in any::<[u8; 16]>(),
            name in "[a-z0-9]{1,9}",
            snapshot in any::<[u8; 16]>(),
            snapshot_name in "[a-z0-9]{0,9}",
            cut in any::<u64>(),
        ) -> Ancestor {
            let (volume, snapshot) = (VolumeId::from_bytes(volume), SnapshotId::from_bytes(snapshot));
            Ancestor { volume, name, snapshot, snapshot_name, cut: Stamp::from_u64(cut) }
        }
    }

    fn sharing() -> impl Strategy<Value = Sharing> {
        prop::sample::select(vec![Sharing::Nothing, Sharing::Parent, Sharing::Flattening])
    }

    prop_compose! {
        fn import()(
            source in ".{0,20}",
            bytes in any::<u64>(),
            fingerprint in any::<u32>(),
            hydrated in any::<u64>(),
        ) -> InstantImport {
            InstantImport { source, bytes, fingerprint, hydrated }
        }
    }

    prop_compose! {
        fn reverting()(
            to in any::<[u8; 16]>(),
            safety in proptest::option::of(snapshot()),
            position in any::<u64>(),
            changed in any::<u64>(),
        ) -> Reverting {
            Reverting { to: SnapshotId::from_bytes(to), safety, position, changed }
        }
    }

    fn key() -> impl Strategy<Value = Option<KeyId>> {
        proptest::option::of(any::<[u8; 16]>().prop_map(KeyId::from_bytes))
    }

    prop_compose! {
        fn older_key()(
            key in any::<[u8; 16]>(),
            until in any::<u64>(),
            destroyed in any::<bool>(),
            sealed in any::<(u128, u128, u128)>(),
            (position, changed) in any::<(u64, u64)>(),
            rewritten in proptest::option::of(any::<u64>()),
        ) -> OlderKey {
            let (a, b, c) = sealed;
            let bytes = [a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes()].concat();
            OlderKey {
                key: KeyId::from_bytes(key),
                until: Stamp::from_u64(until),
                sealed: (!destroyed).then(|| Hex(bytes.try_into().unwrap())),
                position,
                changed,
                rewritten: rewritten.map(Stamp::from_u64),
            }
        }
    }

    prop_compose! {
        fn record()(
            id in any::<[u8; 16]>(),
            name in "[a-z0-9][a-z0-9._-]{0,62}",
            blocks in any::<u64>(),
            generation in 0..=Generation::MAX.get(),
            owner in ".{0,20}",
            epoch in any::<u64>(),
            wait_owed in any::<bool>(),
            members in proptest::collection::vec((any::<[u8; 16]>(), "[a-z0-9.:]{1,21}", state()), 0..4),
            snapshots in proptest::collection::vec(snapshot(), 0..4),
            (lineage, sharing, is_image) in
                (proptest::collection::vec(ancestor(), 0..3), sharing(), any::<bool>()),
            settings in settings(),
            (copies, reverting) in (any::<u32>(), proptest::option::of(reverting())),
            (key, next_key, older_keys) in (key(), key(), proptest::collection::vec(older_key(), 0..3)),
            import in proptest::option::of(import()),
        ) -> VolumeRecord {
            VolumeRecord {
                id: VolumeId::from_bytes(id),
                name,
                blocks,
                generation: Generation::new(generation).unwrap(),
                owner,
                epoch: Epoch(epoch),
                wait_owed,
                members: members
                    .into_iter()
                    .map(|(id, address, state)| Member { replica: PoolId::from_bytes(id), address, state })
                    .collect(),
                snapshots,
                lineage,
                sharing,
                is_image,
                settings,
                copies,
                key,
                next_key,
                older_keys,
                reverting,
                import,
            }
        }
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_went(record in record()) {
            prop_assert_eq!(record_from_wire(record_to_wire(&record)), Ok(record));
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let good = VolumeRecord {
            id: VolumeId::from_bytes([1; 16]),
            name: "disk0".into(),
            blocks: 1,
            generation: Generation::ZERO,
            owner: String::new(),
            epoch: Epoch(0),
            wait_owed: false,
            members: vec![],
            snapshots: vec![],
            lineage: vec![],
            sharing: Sharing::Nothing,
            is_image: false,
            settings: VolumeSettings::default(),
            copies: 0,
            key: None,
            next_key: None,
            older_keys: Vec::new(),
            reverting: None,
            import: Some(InstantImport {
                source: "nbd://host/x".to_owned(),
                bytes: 5000,
                fingerprint: 77,
                hydrated: 1,
            }),
        };
        let mut wire = record_to_wire(&good);
        wire.generation = u32::MAX;
        assert_eq!(record_from_wire(wire.clone()), Err(MalformedRecord { field: "generation" }));
        wire.generation = 0;
        wire.id.pop();
        assert_eq!(record_from_wire(wire.clone()), Err(MalformedRecord { field: "id" }));
        wire.id.push(0);
        wire.settings = None;
        assert_eq!(record_from_wire(wire.clone()), Err(MalformedRecord { field: "settings" }));
        wire.settings = Some(v1::VolumeSettings::default());
        assert_eq!(record_from_wire(wire.clone()), Err(MalformedRecord { field: "durability" }));
        wire.members.push(v1::Member::default());
        assert_eq!(record_from_wire(wire), Err(MalformedRecord { field: "member state" }));
    }
}
