//! Having copies deleted, for as long as it takes their pools to come back.

use super::pools::{PoolAnswer, of_pool};
use super::{Control, Refusal};
use crate::records::{self, DeletionRecord, RecordError, ReplicaRecord};
use crate::replica_client::{ReplicaConnection, ReplicaError};
use crate::store::{Change, RecordStore};
use trivet_model::{PoolId, Revision, VolumeId};

/// The record by which the copies of a volume in these pools come to be deleted, besides those that
/// are being deleted already; and the revision that it replaces.
pub(super) fn deletion_of(
    store: &dyn RecordStore,
    volume: VolumeId,
    pools: impl IntoIterator<Item = PoolId>,
) -> Result<(DeletionRecord, Option<Revision>), RecordError> {
    let (mut deletion, revision) = match records::read::<DeletionRecord>(store, &volume.to_string())? {
        Some((deletion, revision)) => (deletion, Some(revision)),
        None => (DeletionRecord { volume, pools: Vec::new() }, None),
    };
    for pool in pools {
        if !deletion.pools.contains(&pool) {
            deletion.pools.push(pool);
        }
    }
    Ok((deletion, revision))
}

/// The change by which the copy in `pool` is kept; the others go on being deleted.
pub(super) fn spare(deletion: &DeletionRecord, revision: Revision, pool: PoolId) -> Change {
    let pools: Vec<PoolId> = deletion.pools.iter().copied().filter(|&other| other != pool).collect();
    if pools.is_empty() {
        records::remove(deletion, revision)
    } else {
        records::put(&DeletionRecord { volume: deletion.volume, pools }, Some(revision))
    }
}

impl Control {
    /// Goes on with every deletion; what a pool does not do now is tried again later. Servers that
    /// did not answer just now are not waited for.
    pub(super) async fn carry_out_deletions(&self, answers: &[PoolAnswer]) -> Result<(), Refusal> {
        let deletions = records::list::<DeletionRecord>(self.store.as_ref())?;
        if deletions.is_empty() {
            return Ok(());
        }
        // Not those of the answers: a server may have been met since.
        let replicas = records::list::<ReplicaRecord>(self.store.as_ref())?;
        for (deletion, revision) in deletions {
            self.go_on_with(deletion, revision, &replicas, answers).await?;
        }
        Ok(())
    }

    async fn go_on_with(
        &self,
        mut deletion: DeletionRecord,
        revision: Revision,
        replicas: &[(ReplicaRecord, Revision)],
        answers: &[PoolAnswer],
    ) -> Result<(), Refusal> {
        let mut remaining = Vec::new();
        for &pool in &deletion.pools {
            let Some((replica, _)) = replicas.iter().find(|(replica, _)| replica.pool == Some(pool)) else {
                // A server that is no longer the cluster's took the copy with it.
                continue;
            };
            if !of_pool(answers, pool).is_some_and(|answer| matches!(answer.report, Some(Ok(_)))) {
                remaining.push(pool);
            } else if let Err(error) = delete_copy(replica, pool, deletion.volume).await {
                tracing::debug!(volume = %deletion.volume, %pool, "its copy stays for now: {error}");
                remaining.push(pool);
            }
        }
        if remaining.is_empty() {
            self.store.commit(&[records::remove(&deletion, revision)])?;
            tracing::info!(volume = %deletion.volume, "the copies are deleted");
        } else if remaining != deletion.pools {
            deletion.pools = remaining;
            records::write(self.store.as_ref(), &deletion, Some(revision))?;
        }
        Ok(())
    }
}

async fn delete_copy(replica: &ReplicaRecord, pool: PoolId, volume: VolumeId) -> Result<(), ReplicaError> {
    ReplicaConnection::connect(&replica.address, Some(pool)).await?.delete_volume(volume).await
}
