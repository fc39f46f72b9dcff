//! Having snapshots served for reading, each by a process of its own, beside their volumes.
//!
//! An export ends with its snapshot: a record whose snapshot is gone is removed in the next round, and asks
//! for no process before.

use super::attach::loopback_address;
use super::volumes::find;
use super::{Control, Refusal};
use crate::records::{self, ExportRecord};
use crate::service::snapshots::snapshot_of;
use crate::store::{CommitError, RecordStore};
use trivet_api::layout::export_name;
use trivet_api::v1;
use trivet_model::{Revision, SnapshotId, SnapshotRecord, VolumeRecord};

/// The name of the process that serves a snapshot.
#[must_use]
pub fn export_process(volume: &str, snapshot: &SnapshotRecord) -> String {
    format!("export-{}", export_name(volume, &snapshot.name, snapshot.id))
}

/// A snapshot's export, if it has one.
///
/// # Errors
/// The store's.
pub(crate) fn export(
    store: &dyn RecordStore,
    snapshot: SnapshotId,
) -> Result<Option<(ExportRecord, Revision)>, records::RecordError> {
    records::read::<ExportRecord>(store, &snapshot.to_string())
}

/// Refuses while one of the volume's snapshots is exported.
pub(super) fn check_no_export(store: &dyn RecordStore, record: &VolumeRecord) -> Result<(), Refusal> {
    for snapshot in &record.snapshots {
        if export(store, snapshot.id)?.is_some() {
            let (volume, name) = (record.name.clone(), snapshot.name.clone());
            return Err(Refusal::Exported { volume, name });
        }
    }
    Ok(())
}

impl Control {
    pub(super) async fn export_snapshot(&self, request: &v1::ExportSnapshotRequest) -> Result<u32, Refusal> {
        let store = self.store.as_ref();
        let (record, _) = find(store, &request.volume)?;
        let snapshot = snapshot_of(&record, &request.name)?;
        if let Some((exported, _)) = export(store, snapshot.id)? {
            let listen = exported.listen.as_deref().unwrap_or_default();
            if !request.listen.is_empty() && listen != request.listen {
                let (volume, name) = (record.name.clone(), snapshot.name.clone());
                return Err(Refusal::Exported { volume, name });
            }
            return Ok(0);
        }
        self.check_unlocked(&record)?;
        let listen = match request.listen.as_str() {
            "" => None,
            address => Some(loopback_address(address)?),
        };
        let wanted = ExportRecord { snapshot: snapshot.id, volume: record.id, listen };
        records::write(store, &wanted, None)?;
        self.apply_processes().await?;
        Ok(1)
    }

    /// Ends an export, and waits until its process has ended.
    pub(super) async fn unexport_snapshot(
        &self,
        request: &v1::UnexportSnapshotRequest,
    ) -> Result<u32, Refusal> {
        let (record, _) = find(self.store.as_ref(), &request.volume)?;
        let snapshot = snapshot_of(&record, &request.name)?;
        if let Some((exported, revision)) = export(self.store.as_ref(), snapshot.id)? {
            self.store.commit(&[records::remove(&exported, revision)])?;
            self.apply_processes().await?;
        }
        let gone = self.is_gone(&export_process(&record.name, snapshot)).await;
        if gone { Ok(0) } else { Err(Refusal::EngineStays(record.name)) }
    }

    /// Ends exports whose snapshots are gone.
    pub(super) async fn end_exports(&self) -> Result<(), Refusal> {
        let store = self.store.as_ref();
        let mut ended = false;
        for (export, revision) in records::list::<ExportRecord>(store)? {
            let volume = records::read::<VolumeRecord>(store, &export.volume.to_string())?;
            let stands = volume.is_some_and(|(volume, _)| has_snapshot(&volume, export.snapshot));
            if stands {
                continue;
            }
            match store.commit(&[records::remove(&export, revision)]) {
                Ok(_) => ended = true,
                // Somebody else has just ended it.
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            tracing::info!(snapshot = %export.snapshot, "its export ends: the snapshot is gone");
        }
        if ended {
            self.apply_processes().await?;
        }
        Ok(())
    }
}

fn has_snapshot(volume: &VolumeRecord, snapshot: SnapshotId) -> bool {
    volume.snapshots.iter().any(|known| known.id == snapshot)
}
