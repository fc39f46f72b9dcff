//! How an encrypted volume's data key is guarded. Apart from the volume's own record, so that it can be
//! destroyed by itself, and so that engines never see it.

use super::Record;
use serde::{Deserialize, Serialize};
use trivet_keys::WrappedKey;
use trivet_model::{KeyId, VolumeId};

/// The wrapped data key of a volume. When this record is gone, so is the volume's data.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EncryptionRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// Its data key, which only the holder of its key can take out.
    pub key: WrappedKey,
    /// The data key that it shall have next. Which of the two it has, the volume's record says; it may be this one
    /// already.
    pub next: Option<WrappedKey>,
}

impl EncryptionRecord {
    /// The wrapped key of this name.
    #[must_use]
    pub fn wrapped(&self, key: Option<KeyId>) -> Option<&WrappedKey> {
        [Some(&self.key), self.next.as_ref()].into_iter().flatten().find(|kept| Some(kept.data_key()) == key)
    }
}

impl Record for EncryptionRecord {
    const KIND: &'static str = "encryption";
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
        let key = concat!(
            r#"{"version":1,"data_key":"02020202-0202-0202-0202-020202020202","method":"secret","#,
            r#""salt":"0303030303030303030303030303030303030303030303030303030303030303","#,
            r#""sealed":"040404040404040404040404040404040404040404040404"#,
            r#"040404040404040404040404040404040404040404040404"}"#
        );
        let volume = VolumeId::from_bytes([1; 16]);
        let wrapped = WrappedKey::parse(key).unwrap();
        let id = wrapped.data_key();
        let record = EncryptionRecord { volume, key: wrapped.clone(), next: None };
        let stored = format!(r#"{{"version":2,"volume":"{volume}","key":{key},"next":null}}"#);
        assert_layout(&record, &stored);
        assert_eq!(record.wrapped(Some(id)), Some(&wrapped));
        assert_eq!((record.wrapped(None), record.wrapped(Some(KeyId::from_bytes([1; 16])))), (None, None));
    }
}
