//! A volume's attachment: that it shall be served, and how.

use super::Record;
use serde::{Deserialize, Serialize};
use trivet_model::{SnapshotId, VolumeId};

/// While this record is there, an engine process serves the volume over NBD.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// A TCP listener beside the unix socket: `host:port`.
    pub listen: Option<String>,
    /// Serve it for reading only.
    pub read_only: bool,
    /// Serve this snapshot of it.
    pub snapshot: Option<SnapshotId>,
}

impl Record for AttachmentRecord {
    const KIND: &'static str = "attachment";
    const VERSION: u32 = 2;

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
        let record = AttachmentRecord {
            volume: VolumeId::from_bytes([1; 16]),
            listen: Some("127.0.0.1:10809".into()),
            read_only: true,
            snapshot: Some(SnapshotId::from_bytes([2; 16])),
        };
        assert_layout(
            &record,
            concat!(
                r#"{"version":2,"volume":"01010101-0101-0101-0101-010101010101","listen":"127.0.0.1:10809","#,
                r#""read_only":true,"snapshot":"02020202-0202-0202-0202-020202020202"}"#
            ),
        );
    }
}
