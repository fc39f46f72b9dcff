//! A member of a volume that is being replaced by another.

use super::Record;
use serde::{Deserialize, Serialize};
use trivet_model::{PoolId, VolumeId};

/// While this record is there, the manager removes `from` from the volume once `to` is in sync.
///
/// It is committed together with the volume's record that has `to` in it, and removed together
/// with `from`; so a crash leaves neither half a replacement nor a copy too many. There is one
/// at most for a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplacementRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// The member that leaves.
    pub from: PoolId,
    /// The member that comes.
    pub to: PoolId,
    /// Why.
    pub reason: ReplacementReason,
}

/// Why a member is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplacementReason {
    /// Someone asked for it.
    Asked,
    /// It has been away for too long. Should it come back in sync before its substitute is, it stays.
    Away,
}

impl Record for ReplacementRecord {
    const KIND: &'static str = "replacement";
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
        let record = ReplacementRecord {
            volume: VolumeId::from_bytes([1; 16]),
            from: PoolId::from_bytes([2; 16]),
            to: PoolId::from_bytes([3; 16]),
            reason: ReplacementReason::Away,
        };
        assert_layout(
            &record,
            concat!(
                r#"{"version":1,"volume":"01010101-0101-0101-0101-010101010101","#,
                r#""from":"02020202-0202-0202-0202-020202020202","#,
                r#""to":"03030303-0303-0303-0303-030303030303","reason":"away"}"#
            ),
        );
    }
}
