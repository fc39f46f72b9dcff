//! Snapshots: the manager names them, the engine takes and deletes them, the volume's record keeps them.

use super::ManagerService;
use crate::control::volumes::{attachment, find, random_id};
use crate::control::{Refusal, check_imported, check_labels, export};
use crate::engine_report::{OrderError, order};
use std::collections::HashMap;
use trivet_api::v1;
use trivet_model::record::is_volume_name;
use trivet_model::{SnapshotId, SnapshotOrder, SnapshotRecord, Stamp, VolumeRecord};

impl ManagerService {
    pub(super) async fn take_snapshot(&self, request: &v1::CreateSnapshotRequest) -> Result<(), Refusal> {
        let (record, _) = find(self.store.as_ref(), &request.volume)?;
        let snapshot = named(&record, &request.name, &request.labels)?;
        let name = snapshot.name.clone();
        self.order_of_engine(&record, &SnapshotOrder::Create(snapshot)).await?;
        tracing::info!(volume = %record.name, snapshot = %name, "taken");
        Ok(())
    }

    pub(super) async fn delete_snapshot_of(
        &self,
        request: &v1::DeleteSnapshotRequest,
    ) -> Result<(), Refusal> {
        let (record, _) = find(self.store.as_ref(), &request.volume)?;
        let found = snapshot_of(&record, &request.name)?;
        self.check_served(&record)?;
        let exported = export(self.store.as_ref(), found.id)?.is_some();
        if exported && !request.force {
            return Err(Refusal::Exported { volume: record.name.clone(), name: found.name.clone() });
        }
        if request.dry_run {
            return Ok(());
        }
        if exported {
            let (volume, name) = (record.name.clone(), found.name.clone());
            self.control.unexport(v1::UnexportSnapshotRequest { volume, name }).await?;
        }
        self.order_of_engine(&record, &SnapshotOrder::Delete(found.id)).await?;
        tracing::info!(volume = %record.name, snapshot = %found.name, "deleted");
        Ok(())
    }

    pub(super) fn check_served(&self, record: &VolumeRecord) -> Result<(), Refusal> {
        let attached = attachment(self.store.as_ref(), record.id)?;
        match attached {
            Some((attachment, _)) if !attachment.read_only => Ok(()),
            _ => Err(Refusal::NotWritten(record.name.clone())),
        }
    }

    async fn order_of_engine(&self, record: &VolumeRecord, wanted: &SnapshotOrder) -> Result<(), Refusal> {
        self.check_served(record)?;
        let socket = self.layout.engine_control_socket(&record.name)?;
        let ordered = order(&socket, wanted).await;
        ordered
            .map(|_cut| ())
            .map_err(|cause: OrderError| Refusal::SnapshotFailed { volume: record.name.clone(), cause })
    }
}

/// A snapshot of this volume, to be taken.
pub(super) fn named(
    record: &VolumeRecord,
    name: &str,
    labels: &HashMap<String, String>,
) -> Result<SnapshotRecord, Refusal> {
    if !is_volume_name(name) {
        return Err(Refusal::BadSnapshotName(name.to_owned()));
    }
    check_labels(labels.iter())?;
    check_imported(record)?;
    if record.snapshots.iter().any(|known| known.name == name) {
        return Err(Refusal::SnapshotExists { volume: record.name.clone(), name: name.to_owned() });
    }
    check_snapshot_limit(record)?;
    Ok(SnapshotRecord {
        id: SnapshotId::from_random_bytes(random_id()?),
        name: name.to_owned(),
        cut: Stamp::ZERO,
        created: unix_seconds(),
        labels: labels.clone().into_iter().collect(),
    })
}

/// Refuses one snapshot more than the volume may have.
pub(crate) fn check_snapshot_limit(record: &VolumeRecord) -> Result<(), Refusal> {
    let most = record.settings.snapshot_limit;
    if record.snapshots.len() >= usize::try_from(most).unwrap_or(usize::MAX) {
        return Err(Refusal::TooManySnapshots { volume: record.name.clone(), most });
    }
    Ok(())
}

/// A volume's snapshot by its name.
pub(crate) fn snapshot_of<'a>(record: &'a VolumeRecord, name: &str) -> Result<&'a SnapshotRecord, Refusal> {
    let found = record.snapshots.iter().find(|known| known.name == name);
    found.ok_or_else(|| Refusal::NoSuchSnapshot { volume: record.name.clone(), name: name.to_owned() })
}

#[allow(clippy::disallowed_methods, reason = "people are told when a snapshot was taken")]
pub(crate) fn unix_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
