//! The encryption of blocks and keys: the one place that knows which cipher it is, and who computes it.
//!
//! AES-256-GCM (NIST SP 800-38D), a block at a time, under a key of the volume's own. `docs/encryption.md`
//! says what that protects and what it does not. No I/O and no randomness here.
#![forbid(unsafe_code)]

mod block_cipher;
mod data_key;
mod derive;
mod key_wrap;
mod older_key;

pub use block_cipher::{BlockCipher, Forged};
pub use data_key::{DATA_KEY_BYTES, DataKey};
pub use derive::derive;
pub use key_wrap::{WRAPPED_KEY_BYTES, WrongKey, unwrap, wrap};
pub use older_key::{open_older, seal_older};
