//! A volume's attachment: that it shall be served, and how.

use super::Record;
use serde::{Deserialize, Serialize};
use trivet_model::VolumeId;

/// While this record is there, an engine process serves the volume over NBD.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// A TCP listener beside the unix socket: `host:port`.
    pub listen: Option<String>,
    /// Serve it for reading only.
    pub read_only: bool,
}

impl Record for AttachmentRecord {
    const KIND: &'static str = "attachment";
    const VERSION: u32 = 3;

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
        };
        assert_layout(
            &record,
            concat!(
                r#"{"version":3,"volume":"01010101-0101-0101-0101-010101010101","#,
                r#""listen":"127.0.0.1:10809","read_only":true}"#
            ),
        );
    }
}
