//! Asking all replica servers at once how they are.

use crate::records::{self, RecordError, ReplicaRecord};
use crate::replica_client::{ReplicaConnection, ReplicaError};
use crate::store::RecordStore;
use tokio::task::JoinSet;
use trivet_wire::PoolReport;

/// A replica server and what it says of itself; `None` before it was up for the first time.
#[derive(Debug)]
pub struct PoolAnswer {
    /// Its record.
    pub replica: ReplicaRecord,
    /// What it said.
    pub report: Option<Result<PoolReport, ReplicaError>>,
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
    ReplicaConnection::connect(&replica.address, replica.pool).await?.pool_status().await
}
