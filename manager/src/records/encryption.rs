//! How an encrypted volume's data key is guarded. Apart from the volume's own record, so that it can be
//! destroyed by itself, and so that engines never see it.

use super::Record;
use serde::{Deserialize, Serialize};
use trivet_keys::WrappedKey;
use trivet_model::VolumeId;

/// The wrapped data key of a volume. When this record is gone, so is the volume's data.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EncryptionRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// Its data key, which only the holder of its key can take out.
    pub key: WrappedKey,
}

impl Record for EncryptionRecord {
    const KIND: &'static str = "encryption";
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
        let key = concat!(
            r#"{"version":1,"data_key":"02020202-0202-0202-0202-020202020202","method":"secret","#,
            r#""salt":"0303030303030303030303030303030303030303030303030303030303030303","#,
            r#""sealed":"040404040404040404040404040404040404040404040404"#,
            r#"040404040404040404040404040404040404040404040404"}"#
        );
        let volume = VolumeId::from_bytes([1; 16]);
        let record = EncryptionRecord { volume, key: WrappedKey::parse(key).unwrap() };
        let stored = format!(r#"{{"version":1,"volume":"{volume}","key":{key}}}"#);
        assert_layout(&record, &stored);
    }
}
