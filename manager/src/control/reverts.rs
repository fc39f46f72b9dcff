//! Having volumes reverted to their snapshots.
//!
//! The record says that a volume is being reverted; its engine does it, before it serves anything, however
//! often it begins anew (`engine/src/volume/revert.rs`). For a volume that is being reverted an engine runs
//! without front ends; it ends when the record says that it is done. Of an encrypted volume it needs the key:
//! that comes with the order, is here until it is done, and can be given again when the manager has lost it.

use super::processes::{self, engine_name};
use super::volumes::{attachment, find, random_id};
use super::{Control, Refusal};
use crate::records;
use crate::service::snapshots::{check_snapshot_limit, snapshot_of, unix_seconds};
use trivet_api::v1;
use trivet_model::record::is_volume_name;
use trivet_model::{Reverting, SnapshotId, SnapshotRecord, Stamp, VolumeRecord};

impl Control {
    pub(super) async fn revert_volume(&self, mut request: v1::RevertVolumeRequest) -> Result<u32, Refusal> {
        let (record, _) = find(self.store.as_ref(), &request.volume)?;
        let key = Self::key_of(&record, &mut request.data_key)?;
        let safety = safety(&request)?;
        let mut wanted = record.clone();
        self.order_revert(&mut wanted, &request, safety.clone())?;
        if request.dry_run {
            return Ok(0);
        }
        // One that is being reverted may go on without: its engine may have its key already.
        if record.reverting.is_none() && record.key.is_some() && key.is_none() {
            return Err(Refusal::Locked(record.name));
        }
        if let Some(key) = key {
            self.keep_key(record.id, key)?;
        }
        if wanted == record {
            self.hand_over_keys().await?;
            return Ok(0);
        }
        let ordered = self.change_record(record.id, |record| {
            self.order_revert(record, &request, safety.clone())?;
            Ok(Vec::new())
        });
        if ordered.is_err() && record.reverting.is_none() {
            self.forget_key(record.id);
        }
        ordered?;
        tracing::info!(volume = %record.name, snapshot = %request.snapshot, "to be reverted");
        self.apply_processes().await?;
        Ok(1)
    }

    /// Puts the wish into the record; done already where it is there.
    fn order_revert(
        &self,
        record: &mut VolumeRecord,
        request: &v1::RevertVolumeRequest,
        safety: Option<SnapshotRecord>,
    ) -> Result<(), Refusal> {
        let to = snapshot_of(record, &request.snapshot)?.id;
        let Some(present) = &record.reverting else {
            self.check_unused(record, false)?;
            if record.is_image {
                return Err(Refusal::IsImage(record.name.clone()));
            }
            if let Some(safety) = &safety {
                check_room(record, &safety.name)?;
            }
            record.reverting = Some(Reverting { to, safety, position: 0, changed: 0 });
            return Ok(());
        };
        if present.to != to {
            // What the volume was before the first of them is kept, or is to be; what it is now is no state.
            let safety = present.safety.clone();
            record.reverting = Some(Reverting { to, safety, position: 0, changed: 0 });
        }
        Ok(())
    }

    /// Ends the engines of volumes that have been reverted: those that run though nobody wants the volume served.
    pub(super) async fn follow_reverts(&self) -> Result<(), Refusal> {
        let states = self.supervisor.states();
        for (record, _) in records::list::<VolumeRecord>(self.store.as_ref())? {
            let runs = states.contains_key(&engine_name(&record.name));
            let wanted = record.reverting.is_some() || attachment(self.store.as_ref(), record.id)?.is_some();
            if runs && !wanted {
                tracing::info!(volume = %record.name, "its revert is over");
                self.end_detached_engine(&record.name).await?;
            }
        }
        Ok(())
    }

    /// Ends the engine that reverts a volume, until processes are wanted anew.
    pub(super) async fn interrupt_revert(&self, name: &str) -> Result<(), Refusal> {
        let engine = engine_name(name);
        let mut wanted = processes::wanted(self.store.as_ref(), &self.layout, &self.program)?;
        wanted.retain(|process| process.name != engine);
        self.supervisor.want(wanted).await;
        if self.is_gone(&engine).await { Ok(()) } else { Err(Refusal::EngineStays(name.to_owned())) }
    }

    /// An engine that reverts, or has reverted, a volume that nobody wants served is waited for.
    pub(super) async fn end_detached_engine(&self, name: &str) -> Result<(), Refusal> {
        if self.supervisor.states().contains_key(&engine_name(name)) {
            self.apply_processes().await?;
            self.detach_volume(name).await?;
        }
        Ok(())
    }
}

/// The snapshot to be taken before anything changes, if one shall be.
fn safety(request: &v1::RevertVolumeRequest) -> Result<Option<SnapshotRecord>, Refusal> {
    let name = request.safety.clone();
    if name.is_empty() {
        return Ok(None);
    }
    if !is_volume_name(&name) {
        return Err(Refusal::BadSnapshotName(name));
    }
    Ok(Some(SnapshotRecord {
        id: SnapshotId::from_random_bytes(random_id()?),
        name,
        cut: Stamp::ZERO,
        created: unix_seconds(),
        labels: [("before-revert-to".to_owned(), request.snapshot.clone())].into(),
    }))
}

fn check_room(record: &VolumeRecord, name: &str) -> Result<(), Refusal> {
    let volume = record.name.clone();
    if record.snapshots.iter().any(|known| known.name == name) {
        return Err(Refusal::SnapshotExists { volume, name: name.to_owned() });
    }
    check_snapshot_limit(record)
}

/// Refuses while the volume is being reverted.
pub(super) fn check_not_reverting(record: &VolumeRecord) -> Result<(), Refusal> {
    let Some(reverting) = &record.reverting else { return Ok(()) };
    let to = record.snapshots.iter().find(|known| known.id == reverting.to);
    let name = to.map_or_else(|| reverting.to.to_string(), |to| to.name.clone());
    Err(Refusal::Reverting { volume: record.name.clone(), name })
}
