//! A volume's data key.

use crate::derive;
use std::fmt;
use trivet_model::KeyId;
use zeroize::{Zeroize, Zeroizing};

/// Length of a data key.
pub const DATA_KEY_BYTES: usize = 32;

/// The secret that a volume's block keys are made from. Wiped when it is dropped, never printed; it stays
/// where it was made, so that moving it leaves no copy behind.
pub struct DataKey(Box<Zeroizing<[u8; DATA_KEY_BYTES]>>);

impl DataKey {
    /// Takes the key, and wipes what it is taken from.
    #[must_use]
    pub fn take(bytes: &mut [u8; DATA_KEY_BYTES]) -> Self {
        let mut key = Box::new(Zeroizing::new([0; DATA_KEY_BYTES]));
        key.copy_from_slice(bytes);
        bytes.zeroize();
        Self(key)
    }

    /// The key's bytes: to wrap it, or to hand it to the engine.
    #[must_use]
    pub fn expose(&self) -> &[u8; DATA_KEY_BYTES] {
        &self.0
    }

    /// Its name, which says nothing about it.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let derived = derive(&[], self.expose(), &[b"trivet key id 1"]);
        let mut id = [0; 16];
        id.copy_from_slice(&derived[..16]);
        KeyId::from_bytes(id)
    }
}

impl Clone for DataKey {
    fn clone(&self) -> Self {
        let mut copy = Box::new(Zeroizing::new([0; DATA_KEY_BYTES]));
        copy.copy_from_slice(self.expose());
        Self(copy)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_named_and_not_shown() {
        let mut bytes = [0x5a; DATA_KEY_BYTES];
        let key = DataKey::take(&mut bytes);
        assert_eq!(bytes, [0; DATA_KEY_BYTES], "what it was taken from is wiped");
        assert_eq!(key.expose(), &[0x5a; DATA_KEY_BYTES]);
        assert_eq!(format!("{key:?}"), "DataKey");
        assert_eq!(key.id(), key.clone().id());
        assert_ne!(key.id(), DataKey::take(&mut [0x5b; DATA_KEY_BYTES]).id());
    }
}
