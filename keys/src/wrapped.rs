//! A wrapped data key, as it is stored: JSON, so that a person can see what it takes to unlock a volume.
//!
//! What is read here may have been tampered with: lengths and costs are bounded, and a wrong value can only
//! make the data key not come out.

use serde::{Deserialize, Serialize};
use trivet_crypto::WRAPPED_KEY_BYTES;
use trivet_model::{Hex, KeyId};

/// Random bytes that make every wrapping key another one.
pub(crate) const SALT_BYTES: usize = 32;

/// The longest text of a wrapped key.
pub const WRAPPED_TEXT_BYTES_MAX: usize = 1024;

const VERSION: u32 = 1;

/// How a data key is wrapped, and what its holder must know besides the secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
pub enum Method {
    /// By a key of the user's own.
    Secret {
        /// Makes the wrapping key another one each time.
        salt: Hex<SALT_BYTES>,
    },
    /// By a passphrase.
    Passphrase {
        /// As above.
        salt: Hex<SALT_BYTES>,
        /// What a guess costs.
        #[serde(flatten)]
        cost: ArgonCost,
    },
    /// For the holder of a private key.
    Recipient {
        /// Whose.
        recipient: Hex<32>,
        /// The fresh key's public half.
        ephemeral: Hex<32>,
    },
}

impl Method {
    pub(crate) const SECRET: &'static str = "a key";
    pub(crate) const PASSPHRASE: &'static str = "a passphrase";
    pub(crate) const RECIPIENT: &'static str = "an age identity";

    /// What unlocks it, in words.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Secret { .. } => Self::SECRET,
            Self::Passphrase { .. } => Self::PASSPHRASE,
            Self::Recipient { .. } => Self::RECIPIENT,
        }
    }
}

/// Argon2id's costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArgonCost {
    pub(crate) memory_kib: u32,
    pub(crate) passes: u32,
    pub(crate) lanes: u32,
}

impl ArgonCost {
    /// RFC 9106, section 4, the second recommended choice.
    pub(crate) const RECOMMENDED: Self = Self { memory_kib: 64 << 10, passes: 3, lanes: 4 };
    /// More would only be asked for to exhaust whoever unlocks.
    const MAX: Self = Self { memory_kib: 1 << 20, passes: 16, lanes: 16 };

    fn is_bearable(self) -> bool {
        let Self { memory_kib, passes, lanes } = self;
        let within =
            memory_kib <= Self::MAX.memory_kib && passes <= Self::MAX.passes && lanes <= Self::MAX.lanes;
        within && passes >= 1 && lanes >= 1 && memory_kib >= 8 * lanes
    }
}

/// A data key that only its holder can take out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WrappedKey {
    version: u32,
    data_key: KeyId,
    #[serde(flatten)]
    method: Method,
    sealed: Hex<WRAPPED_KEY_BYTES>,
}

/// A text is no wrapped key.
#[derive(Debug, thiserror::Error)]
pub enum MalformedKey {
    /// Longer than any is.
    #[error("it has {0} bytes; a wrapped key has at most {WRAPPED_TEXT_BYTES_MAX}")]
    TooLong(usize),
    /// Not its JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Of another version.
    #[error("it has version {0}; this program knows version {VERSION}")]
    Version(u32),
    /// Costs out of bounds.
    #[error("its passphrase's cost is out of bounds")]
    Cost,
}

impl WrappedKey {
    pub(crate) const fn new(data_key: KeyId, method: Method, sealed: [u8; WRAPPED_KEY_BYTES]) -> Self {
        Self { version: VERSION, data_key, method, sealed: Hex(sealed) }
    }

    /// The name of the data key.
    #[must_use]
    pub const fn data_key(&self) -> KeyId {
        self.data_key
    }

    /// How it is wrapped.
    #[must_use]
    pub const fn method(&self) -> &Method {
        &self.method
    }

    pub(crate) const fn sealed(&self) -> &[u8; WRAPPED_KEY_BYTES] {
        &self.sealed.0
    }

    /// As it is stored and sent.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| unreachable!("it is always JSON: {error}"))
    }

    /// Reads what [`WrappedKey::to_text`] wrote.
    ///
    /// # Errors
    /// [`MalformedKey`].
    pub fn parse(text: &str) -> Result<Self, MalformedKey> {
        if text.len() > WRAPPED_TEXT_BYTES_MAX {
            return Err(MalformedKey::TooLong(text.len()));
        }
        let key: Self = serde_json::from_str(text)?;
        if key.version != VERSION {
            return Err(MalformedKey::Version(key.version));
        }
        match key.method {
            Method::Passphrase { cost, .. } if !cost.is_bearable() => Err(MalformedKey::Cost),
            _ => Ok(key),
        }
    }
}
