//! A passphrase: stretched by Argon2id (RFC 9106), so that guessing costs.

use crate::holder::{KeyHolder, KeyWrapper, UnwrapError, unwrap_with, wrap_with};
use crate::random::{RandomError, random};
use crate::wrapped::{ArgonCost, Method, SALT_BYTES, WrappedKey};
use argon2::{Algorithm, Argon2, Params, Version};
use std::fmt;
use trivet_crypto::DataKey;
use zeroize::Zeroizing;

/// What somebody remembers.
pub struct Passphrase {
    text: Zeroizing<Vec<u8>>,
    cost: ArgonCost,
}

impl Passphrase {
    /// Shorter ones are guessed, whatever a guess costs.
    pub const BYTES_MIN: usize = 8;

    /// Takes a passphrase, if it is long enough.
    #[must_use]
    pub fn new(text: Zeroizing<Vec<u8>>) -> Option<Self> {
        (text.len() >= Self::BYTES_MIN).then_some(Self { text, cost: ArgonCost::RECOMMENDED })
    }

    fn wrapping_key(&self, salt: &[u8; SALT_BYTES], cost: ArgonCost) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(key.len()));
        let stretched = params.and_then(|params| {
            let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            argon.hash_password_into(&self.text, salt, key.as_mut())
        });
        assert!(stretched.is_ok(), "costs are checked where they are read");
        key
    }
}

impl KeyWrapper for Passphrase {
    fn wrap(&self, key: &DataKey) -> Result<WrappedKey, RandomError> {
        let salt = random()?;
        let wrapping = self.wrapping_key(&salt, self.cost);
        Ok(wrap_with(key, &wrapping, Method::Passphrase { salt: salt.into(), cost: self.cost }))
    }
}

impl KeyHolder for Passphrase {
    fn unwrap(&self, wrapped: &WrappedKey) -> Result<DataKey, UnwrapError> {
        let Method::Passphrase { salt, cost } = wrapped.method() else {
            return Err(UnwrapError::method(wrapped, Method::PASSPHRASE));
        };
        unwrap_with(wrapped, &self.wrapping_key(salt, *cost), "passphrase")
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made again with another implementation (Python's `argon2-cffi`).
    #[test]
    fn known_stretch() {
        let phrase = Passphrase::new(Zeroizing::new(b"correct horse battery".to_vec())).unwrap();
        let cost = ArgonCost { memory_kib: 64, passes: 2, lanes: 1 };
        let key = phrase.wrapping_key(&[7; SALT_BYTES], cost);
        assert_eq!(key[..8], [0x4d, 0x63, 0x9d, 0xc7, 0x47, 0x3e, 0xfc, 0x0f]);
    }
}
