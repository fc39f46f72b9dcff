//! A data key, encrypted under another key.

use crate::{DATA_KEY_BYTES, DataKey};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use trivet_model::TAG_BYTES;
use zeroize::Zeroize;

/// Length of a wrapped data key: itself, and its tag.
pub const WRAPPED_KEY_BYTES: usize = DATA_KEY_BYTES + TAG_BYTES;

/// The wrapping key is not the one that the data key was wrapped with, or what was wrapped has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the key does not fit")]
pub struct WrongKey;

/// Wraps a data key, and authenticates `context` with it. A wrapping key is used for one data key only, so
/// that one nonce is enough: whoever derives it puts something random in.
#[must_use]
pub fn wrap(wrapping: &[u8; 32], context: &[u8], key: &DataKey) -> [u8; WRAPPED_KEY_BYTES] {
    let mut wrapped = [0; WRAPPED_KEY_BYTES];
    let (bytes, tag) = wrapped.split_at_mut(DATA_KEY_BYTES);
    let (aead, nonce) = prepared(wrapping);
    let sealed = aead.seal_out_of_place_scatter(nonce, Aad::from(context), key.expose(), bytes, &[], tag);
    assert!(sealed.is_ok(), "a key is as long as what it is wrapped into");
    wrapped
}

/// The data key.
///
/// # Errors
/// [`WrongKey`].
pub fn unwrap(
    wrapping: &[u8; 32],
    context: &[u8],
    wrapped: &[u8; WRAPPED_KEY_BYTES],
) -> Result<DataKey, WrongKey> {
    let (bytes, tag) = wrapped.split_at(DATA_KEY_BYTES);
    let mut key = [0; DATA_KEY_BYTES];
    let (aead, nonce) = prepared(wrapping);
    let opened = aead.open_separate_gather(nonce, Aad::from(context), bytes, tag, &mut key);
    if opened.is_err() {
        key.zeroize();
        return Err(WrongKey);
    }
    Ok(DataKey::take(&mut key))
}

fn prepared(wrapping: &[u8; 32]) -> (LessSafeKey, Nonce) {
    let Ok(key) = UnboundKey::new(&AES_256_GCM, wrapping) else { unreachable!("a key has 32 bytes") };
    (LessSafeKey::new(key), Nonce::assume_unique_for_key([0; 12]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_only_by_what_it_was_wrapped_with() {
        let key = DataKey::take(&mut [9; DATA_KEY_BYTES]);
        let mut wrapped = wrap(&[1; 32], b"context", &key);
        assert_eq!(unwrap(&[1; 32], b"context", &wrapped).unwrap().expose(), key.expose());
        assert!(matches!(unwrap(&[2; 32], b"context", &wrapped), Err(WrongKey)));
        assert!(matches!(unwrap(&[1; 32], b"contexT", &wrapped), Err(WrongKey)));
        for at in 0..WRAPPED_KEY_BYTES {
            wrapped[at] ^= 0x10;
            assert!(matches!(unwrap(&[1; 32], b"context", &wrapped), Err(WrongKey)), "byte {at}");
            wrapped[at] ^= 0x10;
        }
    }
}
