//! A host of the cluster.

use super::Record;
use serde::{Deserialize, Serialize};
use trivet_model::NodeId;

/// A host that runs replica servers and engines.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name in the cluster.
    pub id: NodeId,
}

impl Record for NodeRecord {
    const KIND: &'static str = "node";
    const VERSION: u32 = 1;

    fn id(&self) -> String {
        self.id.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_layout;
    use super::*;

    #[test]
    fn layout() {
        assert_layout(&NodeRecord { id: NodeId("local".into()) }, r#"{"version":1,"id":"local"}"#);
    }
}
