//! Copies to be deleted: of a volume that was deleted, or whose making did not come to its end.

use super::Record;
use serde::{Deserialize, Serialize};
use trivet_model::{PoolId, VolumeId};

/// While this record is there, the manager has copies of the volume deleted from these pools.
///
/// It is committed together with the removal of the volume's record; and before a new volume's
/// first copy is made, to be replaced by the volume's record in one commit when all are there. So
/// no crash leaves a copy that nobody knows of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeletionRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// The pools that may hold a copy.
    pub pools: Vec<PoolId>,
}

impl Record for DeletionRecord {
    const KIND: &'static str = "deletion";
    const VERSION: u32 = 1;

    fn id(&self) -> String {
        self.volume.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_layout;
    use super::*;

    #[test]
    fn layout() {
        let record = DeletionRecord {
            volume: VolumeId::from_bytes([1; 16]),
            pools: vec![PoolId::from_bytes([2; 16])],
        };
        assert_layout(
            &record,
            r#"{"version":1,"volume":"01010101-0101-0101-0101-010101010101","pools":["02020202-0202-0202-0202-020202020202"]}"#,
        );
    }
}
