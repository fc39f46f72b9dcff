//! The cluster's replica servers: making their records, and getting to know their pools.

use super::{Control, Refusal, ports};
use crate::records::{self, NodeRecord, ReplicaRecord};
use crate::replica_client::ReplicaConnection;
use crate::store::Change;
use crate::supervisor::{Phase, run_lock};
use trivet_api::v1;
use trivet_model::{NodeId, Revision};

/// Servers of a new cluster when nobody says how many.
const COUNT_DEFAULT: u32 = 3;
const COUNT_MAX: u32 = 16;

impl Control {
    pub(super) async fn ensure_replicas(&self, request: &v1::EnsureReplicasRequest) -> Result<u32, Refusal> {
        let store = self.store.as_ref();
        let have = u32::try_from(records::list::<ReplicaRecord>(store)?.len()).unwrap_or(u32::MAX);
        if have > 0 {
            if request.count != 0 && request.count != have {
                return Err(Refusal::ReplicaCount { have, asked: request.count });
            }
            return Ok(0);
        }
        let count = if request.count == 0 { COUNT_DEFAULT } else { request.count };
        if count > COUNT_MAX {
            return Err(Refusal::BadReplicaCount { asked: count, max: COUNT_MAX });
        }
        let node = NodeId(host_name());
        let mut changes: Vec<Change> = vec![records::put(&NodeRecord { id: node.clone() }, None)];
        let mut addresses = Vec::new();
        for number in 1..=count {
            let address = ports::pick(&addresses)?;
            addresses.push(address.clone());
            let replica = ReplicaRecord {
                number,
                node: node.clone(),
                address,
                capacity_bytes: (request.capacity_bytes > 0).then_some(request.capacity_bytes),
                pool: None,
            };
            changes.push(records::put(&replica, None));
        }
        store.commit(&changes)?;
        self.apply_processes().await?;
        Ok(count)
    }

    /// Learns the pools of servers that are up for the first time.
    pub(super) async fn meet_replicas(&self) -> Result<(), Refusal> {
        for (replica, revision) in records::list::<ReplicaRecord>(self.store.as_ref())? {
            if replica.pool.is_none() {
                self.meet(replica, revision).await?;
            }
        }
        Ok(())
    }

    async fn meet(&self, mut replica: ReplicaRecord, revision: Revision) -> Result<(), Refusal> {
        // Only the lock's holder can say that it is the one who listens: a stranger may have taken
        // the port between the pick and the start.
        if run_lock::is_ready(&self.layout.lock(&replica.process_name())) {
            let connection = ReplicaConnection::connect(&replica.address, None).await?;
            replica.pool = Some(connection.pool());
            records::write(self.store.as_ref(), &replica, Some(revision))?;
            tracing::info!(number = replica.number, pool = %connection.pool(), "met a new replica server");
            return Ok(());
        }
        let states = self.supervisor.states();
        let died = states.get(&replica.process_name()).is_some_and(|state| state.phase == Phase::Backoff);
        if died && !ports::is_free(&replica.address) {
            replica.address = ports::pick(&[])?;
            records::write(self.store.as_ref(), &replica, Some(revision))?;
            self.apply_processes().await?;
        }
        Ok(())
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}
