//! Flattening clones: their copies do it, each in its pool, and the record says when all have.
//!
//! In each round every copy concerned is told to go on, which begins it anew after a restart of either side, and
//! says how far it is. Rounds change records by compare-and-swap, on a task of their own: a server that hangs keeps
//! nobody waiting.

use super::Control;
use crate::records::{self, RecordError};
use crate::replica_client::{ReplicaConnection, ReplicaError};
use crate::store::{CommitError, RecordStore};
use std::sync::Arc;
use tokio::task::JoinHandle;
use trivet_model::{Member, Revision, Sharing, VolumeId, VolumeRecord};
use trivet_wire::{PullReport, PullState};

/// The rounds.
#[derive(Debug, Default)]
pub(super) struct Flattening {
    round: Option<JoinHandle<()>>,
}

impl Flattening {
    /// Whether a round is under way.
    #[cfg(test)]
    pub(super) fn is_busy(&self) -> bool {
        self.round.as_ref().is_some_and(|round| !round.is_finished())
    }
}

impl Control {
    /// One round, unless one is still under way.
    pub(super) fn follow_flattening(&mut self) {
        if self.flattening.round.as_ref().is_none_or(JoinHandle::is_finished) {
            let store = Arc::clone(&self.store);
            self.flattening.round = Some(tokio::spawn(async move {
                if let Err(error) = round(store.as_ref()).await {
                    tracing::warn!("flattening: {error}");
                }
            }));
        }
    }
}

async fn round(store: &dyn RecordStore) -> Result<(), RecordError> {
    for (record, revision) in records::list::<VolumeRecord>(store)? {
        if record.sharing == Sharing::Flattening {
            follow(store, record, revision).await?;
        }
    }
    Ok(())
}

/// Sees to one volume.
async fn follow(
    store: &dyn RecordStore,
    record: VolumeRecord,
    revision: Revision,
) -> Result<(), RecordError> {
    let mut own = 0;
    for member in &record.members {
        match go_on(member, record.id).await {
            Ok(report) if report.state == PullState::Finished => own += 1,
            Ok(report) if report.state == PullState::Failed => {
                tracing::warn!(volume = %record.name, member = %member.replica, why = report.detail,
                    "flattening begins anew");
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(volume = %record.name, member = %member.replica, %error, "not now"),
        }
    }
    if own < record.members.len() {
        return Ok(());
    }
    let flat = VolumeRecord { sharing: Sharing::Nothing, ..record };
    match records::write(store, &flat, Some(revision)) {
        Ok(_) => tracing::info!(volume = %flat.name, "flattened"),
        // Whoever changed it meanwhile, the next round looks again.
        Err(CommitError::Conflict { .. }) => {}
        Err(CommitError::Store(error)) => return Err(error.into()),
    }
    Ok(())
}

/// Has a copy go on, and asks how far it is.
pub(crate) async fn go_on(member: &Member, volume: VolumeId) -> Result<PullReport, ReplicaError> {
    ReplicaConnection::connect(&member.address, Some(member.replica)).await?.flatten(volume).await
}
