//! Having copies deleted, for as long as it takes their pools to come back.

use super::{Control, Refusal};
use crate::records::{self, DeletionRecord, ReplicaRecord};
use crate::replica_client::{ReplicaConnection, ReplicaError};
use trivet_model::{PoolId, Revision, VolumeId};

impl Control {
    /// Goes on with every deletion; what a pool does not do now is tried again later.
    pub(super) async fn carry_out_deletions(&self) -> Result<(), Refusal> {
        let deletions = records::list::<DeletionRecord>(self.store.as_ref())?;
        if deletions.is_empty() {
            return Ok(());
        }
        let replicas = records::list::<ReplicaRecord>(self.store.as_ref())?;
        for (deletion, revision) in deletions {
            self.go_on_with(deletion, revision, &replicas).await?;
        }
        Ok(())
    }

    async fn go_on_with(
        &self,
        mut deletion: DeletionRecord,
        revision: Revision,
        replicas: &[(ReplicaRecord, Revision)],
    ) -> Result<(), Refusal> {
        let mut remaining = Vec::new();
        for &pool in &deletion.pools {
            let Some((replica, _)) = replicas.iter().find(|(replica, _)| replica.pool == Some(pool)) else {
                // A server that is no longer the cluster's took the copy with it.
                continue;
            };
            if let Err(error) = delete_copy(replica, pool, deletion.volume).await {
                tracing::debug!(volume = %deletion.volume, %pool, "its copy stays for now: {error}");
                remaining.push(pool);
            }
        }
        if remaining.is_empty() {
            self.store.commit(&[records::remove(&deletion, revision)])?;
            tracing::info!(volume = %deletion.volume, "all copies are deleted");
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
