//! Who can wrap and unwrap data keys: what a key management service is asked for.

use crate::random::RandomError;
use crate::wrapped::{Method, WrappedKey};
use trivet_crypto::DataKey;

/// Guards data keys.
pub trait KeyWrapper {
    /// The data key as it may be stored.
    ///
    /// # Errors
    /// [`RandomError`].
    fn wrap(&self, key: &DataKey) -> Result<WrappedKey, RandomError>;
}

/// Gives back data keys that were guarded for it.
pub trait KeyHolder {
    /// The data key.
    ///
    /// # Errors
    /// [`UnwrapError`]; nothing is known of the key then.
    fn unwrap(&self, wrapped: &WrappedKey) -> Result<DataKey, UnwrapError>;
}

/// Why a data key does not come out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnwrapError {
    /// It was wrapped in another way than this key can undo.
    #[error("the volume is unlocked by {expected}, not by {found}")]
    Method {
        /// What it takes.
        expected: &'static str,
        /// What was given.
        found: &'static str,
    },
    /// The key or passphrase is another one, or what is stored has changed.
    #[error("it is not the {0} that the volume was encrypted with")]
    Wrong(&'static str),
}

impl UnwrapError {
    /// What `found` cannot undo.
    pub(crate) fn method(wrapped: &WrappedKey, found: &'static str) -> Self {
        Self::Method { expected: wrapped.method().kind(), found }
    }
}

/// Takes out what was wrapped, given the key for it.
pub(crate) fn unwrap_with(
    wrapped: &WrappedKey,
    wrapping: &[u8; 32],
    kind: &'static str,
) -> Result<DataKey, UnwrapError> {
    let key = trivet_crypto::unwrap(wrapping, wrapped.data_key().as_bytes(), wrapped.sealed());
    key.ok().filter(|key| key.id() == wrapped.data_key()).ok_or(UnwrapError::Wrong(kind))
}

/// Wraps, given the key for it.
pub(crate) fn wrap_with(key: &DataKey, wrapping: &[u8; 32], method: Method) -> WrappedKey {
    let id = key.id();
    WrappedKey::new(id, method, trivet_crypto::wrap(wrapping, id.as_bytes(), key))
}
