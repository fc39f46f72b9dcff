//! A replica server: one disk's pool and where it is served.

use super::Record;
use serde::{Deserialize, Serialize};
use trivet_model::{NodeId, PoolId};

/// A replica server on one of the hosts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// 1, 2, 3, …; names its process and folder.
    pub number: u32,
    /// The host it runs on.
    pub node: NodeId,
    /// Where it listens: `host:port`.
    pub address: String,
    /// Bytes that its pool may take; `None` leaves it to the server.
    pub capacity_bytes: Option<u64>,
    /// Its pool's identity, learnt when it was up first. From then on its address is fixed: volume
    /// records name it.
    pub pool: Option<PoolId>,
}

impl ReplicaRecord {
    /// Names the server's process.
    #[must_use]
    pub fn process_name(&self) -> String {
        format!("replica-{}", self.number)
    }
}

impl Record for ReplicaRecord {
    const KIND: &'static str = "replica";
    const VERSION: u32 = 1;

    // Padded, so that the order of the keys is the order of the numbers.
    fn id(&self) -> String {
        format!("{:05}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_layout;
    use super::*;

    #[test]
    fn layout() {
        let mut record = ReplicaRecord {
            number: 1,
            node: NodeId("local".into()),
            address: "127.0.0.1:20000".into(),
            capacity_bytes: None,
            pool: None,
        };
        assert_layout(
            &record,
            r#"{"version":1,"number":1,"node":"local","address":"127.0.0.1:20000","capacity_bytes":null,"pool":null}"#,
        );
        record.capacity_bytes = Some(1 << 30);
        record.pool = Some(PoolId::from_bytes([0x11; 16]));
        assert_layout(
            &record,
            r#"{"version":1,"number":1,"node":"local","address":"127.0.0.1:20000","capacity_bytes":1073741824,"pool":"11111111-1111-1111-1111-111111111111"}"#,
        );
    }
}
