//! A snapshot's export: that it shall be served for reading, beside its volume.

use super::Record;
use serde::{Deserialize, Serialize};
use trivet_model::{SnapshotId, VolumeId};

/// While this record is there, and the snapshot, an engine process of its own serves it over NBD.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExportRecord {
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// Of which volume.
    pub volume: VolumeId,
    /// A TCP listener beside the unix socket: `host:port`.
    pub listen: Option<String>,
}

impl Record for ExportRecord {
    const KIND: &'static str = "export";
    const VERSION: u32 = 1;

    fn id(&self) -> String {
        self.snapshot.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_layout;
    use super::*;

    #[test]
    fn layout() {
        let record = ExportRecord {
            snapshot: SnapshotId::from_bytes([2; 16]),
            volume: VolumeId::from_bytes([1; 16]),
            listen: Some("127.0.0.1:10809".into()),
        };
        assert_layout(
            &record,
            concat!(
                r#"{"version":1,"snapshot":"02020202-0202-0202-0202-020202020202","#,
                r#""volume":"01010101-0101-0101-0101-010101010101","listen":"127.0.0.1:10809"}"#
            ),
        );
    }
}
