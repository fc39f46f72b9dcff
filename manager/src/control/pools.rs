//! Asking all replica servers at once how they are.

use crate::records::{self, RecordError, ReplicaRecord};
use crate::replica_client::{ReplicaConnection, ReplicaError};
use crate::store::RecordStore;
use std::time::Duration;
use tokio::task::JoinSet;
use trivet_model::{PoolId, VolumeId};
use trivet_wire::{PoolReport, VolumeReport};

/// Time for a server to say how it is: one that hangs must not make people wait for the others.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// A replica server and what it says of itself; `None` before it was up for the first time.
#[derive(Debug)]
pub struct PoolAnswer {
    /// Its record.
    pub replica: ReplicaRecord,
    /// What it said.
    pub report: Option<Result<PoolReport, ReplicaError>>,
}

impl PoolAnswer {
    /// What a server said that works.
    ///
    /// # Errors
    /// Why it does not: it has not been up yet, does not answer, or its pool has stopped.
    pub fn working(&self) -> Result<&PoolReport, String> {
        match &self.report {
            None => Err("it has not been up yet".to_owned()),
            Some(Err(error)) => Err(error.to_string()),
            Some(Ok(report)) if !report.failed.is_empty() => {
                Err(format!("the pool has stopped: {}", report.failed))
            }
            Some(Ok(report)) => Ok(report),
        }
    }

    /// What a server that works says of its copy of a volume.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub fn copy(&self, volume: VolumeId) -> Result<&VolumeReport, String> {
        let copies = &self.working()?.volumes;
        copies.iter().find(|copy| copy.volume == volume).ok_or_else(|| "the pool does not hold it".to_owned())
    }
}

/// The answer of the server that has this pool.
#[must_use]
pub fn of_pool(answers: &[PoolAnswer], pool: PoolId) -> Option<&PoolAnswer> {
    answers.iter().find(|answer| answer.replica.pool == Some(pool))
}

/// Asks every server of the records; in order of their numbers.
///
/// # Errors
/// [`RecordError`] when the records cannot be read.
pub async fn ask_all(store: &dyn RecordStore) -> Result<Vec<PoolAnswer>, RecordError> {
    let mut asking = JoinSet::new();
    for (replica, _) in records::list::<ReplicaRecord>(store)? {
        asking.spawn(async move {
            let report = match replica.pool {
                None => None,
                Some(_) => Some(ask(&replica).await),
            };
            PoolAnswer { replica, report }
        });
    }
    let mut answers = asking.join_all().await;
    answers.sort_by_key(|answer| answer.replica.number);
    Ok(answers)
}

async fn ask(replica: &ReplicaRecord) -> Result<PoolReport, ReplicaError> {
    let asking =
        async { ReplicaConnection::connect(&replica.address, replica.pool).await?.pool_status().await };
    let silent = ReplicaError::Silent { address: replica.address.clone(), waited: REPORT_TIMEOUT };
    tokio::time::timeout(REPORT_TIMEOUT, asking).await.or(Err(silent))?
}
