//! What is chosen for the whole cluster.

use super::Record;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a member's server may be away before the member is replaced, unless someone says otherwise.
pub const REPLACE_AFTER_DEFAULT: Duration = Duration::from_secs(600);

/// The cluster's settings; there is one record at most.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// So long a server may be away before its copies are replaced by others.
    pub replace_after_seconds: u64,
}

impl Default for ClusterRecord {
    fn default() -> Self {
        Self { replace_after_seconds: REPLACE_AFTER_DEFAULT.as_secs() }
    }
}

impl ClusterRecord {
    /// The only record's id.
    pub const ID: &'static str = "settings";
}

impl Record for ClusterRecord {
    const KIND: &'static str = "cluster";
    const VERSION: u32 = 1;

    fn id(&self) -> String {
        Self::ID.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_layout;
    use super::*;

    #[test]
    fn layout() {
        assert_layout(&ClusterRecord::default(), r#"{"version":1,"replace_after_seconds":600}"#);
    }
}
