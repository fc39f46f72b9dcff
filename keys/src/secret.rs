//! A key of the user's own: bytes that nobody can guess, out of a file, a pipe or a secret store.

use crate::holder::{KeyHolder, KeyWrapper, UnwrapError, unwrap_with, wrap_with};
use crate::random::{RandomError, random};
use crate::wrapped::{Method, SALT_BYTES, WrappedKey};
use std::fmt;
use trivet_crypto::{DataKey, derive};
use zeroize::Zeroizing;

/// Bytes with the strength of a key: at least [`Secret::BYTES_MIN`], random.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Fewer can be guessed.
    pub const BYTES_MIN: usize = 32;

    /// Takes the bytes, if there are enough.
    #[must_use]
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Option<Self> {
        (bytes.len() >= Self::BYTES_MIN).then_some(Self(bytes))
    }

    fn wrapping_key(&self, salt: &[u8; SALT_BYTES]) -> Zeroizing<[u8; 32]> {
        derive(salt, &self.0, &[b"trivet wrapping key 1 secret"])
    }
}

impl KeyWrapper for Secret {
    fn wrap(&self, key: &DataKey) -> Result<WrappedKey, RandomError> {
        let salt = random()?;
        Ok(wrap_with(key, &self.wrapping_key(&salt), Method::Secret { salt: salt.into() }))
    }
}

impl KeyHolder for Secret {
    fn unwrap(&self, wrapped: &WrappedKey) -> Result<DataKey, UnwrapError> {
        let Method::Secret { salt } = wrapped.method() else {
            return Err(UnwrapError::method(wrapped, Method::SECRET));
        };
        unwrap_with(wrapped, &self.wrapping_key(salt), "key")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
