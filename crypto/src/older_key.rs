//! A data key, kept for whoever has the one that took its place.

use crate::{DataKey, WRAPPED_KEY_BYTES, WrongKey, derive, unwrap, wrap};
use trivet_model::{KeyId, SEALED_KEY_BYTES};
use zeroize::Zeroizing;

const _: () = assert!(SEALED_KEY_BYTES == WRAPPED_KEY_BYTES);

/// The older key, encrypted under the newer one.
#[must_use]
pub fn seal_older(newer: &DataKey, older: &DataKey) -> [u8; SEALED_KEY_BYTES] {
    let id = older.id();
    wrap(&between(newer, id), id.as_bytes(), older)
}

/// The older key of this name.
///
/// # Errors
/// [`WrongKey`].
pub fn open_older(
    newer: &DataKey,
    older: KeyId,
    sealed: &[u8; SEALED_KEY_BYTES],
) -> Result<DataKey, WrongKey> {
    let opened = unwrap(&between(newer, older), older.as_bytes(), sealed)?;
    if opened.id() == older { Ok(opened) } else { Err(WrongKey) }
}

/// A key for this pair alone: what is wrapped under it is always the same.
fn between(newer: &DataKey, older: KeyId) -> Zeroizing<[u8; 32]> {
    derive(&[], newer.expose(), &[b"trivet older key 1", older.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DATA_KEY_BYTES;

    #[test]
    fn who_has_the_newer_key_has_the_older_one_and_nobody_else() {
        let key = |byte| DataKey::take(&mut [byte; DATA_KEY_BYTES]);
        let (older, newer, other) = (key(1), key(2), key(3));
        let mut sealed = seal_older(&newer, &older);
        assert_eq!(open_older(&newer, older.id(), &sealed).unwrap().expose(), older.expose());
        assert!(matches!(open_older(&other, older.id(), &sealed), Err(WrongKey)));
        assert!(matches!(open_older(&newer, other.id(), &sealed), Err(WrongKey)));
        assert!(matches!(open_older(&older, newer.id(), &sealed), Err(WrongKey)));
        sealed[47] ^= 1;
        assert!(matches!(open_older(&newer, older.id(), &sealed), Err(WrongKey)));
    }

    /// What lies in people's records: made again with another implementation (Python's `cryptography`).
    #[test]
    fn golden_key() {
        let key = |byte| DataKey::take(&mut [byte; DATA_KEY_BYTES]);
        let sealed = seal_older(&key(2), &key(1));
        let text: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            text,
            concat!(
                "616a2ab7bf08e4be2b3e7c18c4b2a15938157b38eac152fd",
                "2618c59f97e49458417c2f2fb1e201591325119531a0eb3a"
            )
        );
    }
}
