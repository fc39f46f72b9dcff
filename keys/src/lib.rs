//! The keys of encrypted volumes: a volume's data key, random, and how people's keys guard it.
//!
//! A data key is stored only *wrapped*: encrypted under a key that is made from what a [`KeyHolder`] knows.
//! What is stored says how, so that the holder can be told what is wanted of it; it authenticates, so that a
//! wrong key is noticed before anything is done with it.
#![forbid(unsafe_code)]

mod age;
mod guarded;
mod holder;
mod passphrase;
mod random;
mod secret;
mod source;
mod wrapped;

pub use age::{Identity, Recipient};
pub use guarded::guard_process;
pub use holder::{KeyHolder, KeyWrapper, UnwrapError};
pub use passphrase::Passphrase;
pub use random::{RandomError, new_data_key};
pub use secret::Secret;
pub use source::{SECRET_BYTES_MAX, Source, SourceError, read_secret, read_text};
pub use wrapped::{MalformedKey, Method, WRAPPED_TEXT_BYTES_MAX, WrappedKey};
