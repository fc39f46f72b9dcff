//! A recipient's public key, as `age-keygen` makes them: who encrypts a volume needs no secret, and only
//! the holder of the identity can unlock it.
//!
//! ```text
//!  age1…             recipient: an X25519 public key in Bech32
//!  AGE-SECRET-KEY-1… identity: its private key
//! ```
//!
//! The keys are age's; what is done with them is not its file format: a fresh key agrees with the recipient's
//! (RFC 7748), and HKDF over both public keys gives the wrapping key.

use crate::holder::{KeyHolder, KeyWrapper, UnwrapError, unwrap_with, wrap_with};
use crate::random::RandomError;
use crate::wrapped::{Method, WrappedKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};
use std::fmt;
use std::str::FromStr;
use trivet_crypto::{DataKey, derive};
use trivet_model::Hex;
use zeroize::{Zeroize, Zeroizing};

const RECIPIENT_PREFIX: &str = "age";
const IDENTITY_PREFIX: &str = "age-secret-key-";

/// A public key that volumes are encrypted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recipient([u8; 32]);

/// The private key of a [`Recipient`].
pub struct Identity(Zeroizing<[u8; 32]>);

/// A text is no recipient, or no identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it is no {0}")]
pub struct NotAnAgeKey(&'static str);

impl FromStr for Recipient {
    type Err = NotAnAgeKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let key = decode(RECIPIENT_PREFIX, text).map(|key| *key);
        // A point of low order agrees on the same with everyone: it would protect nothing.
        let sound = key.filter(|key| agree_on(&Identity(Zeroizing::new([1; 32])).private(), key).is_some());
        sound.map(Self).ok_or(NotAnAgeKey("recipient of age (age1…)"))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(RECIPIENT_PREFIX, &self.0))
    }
}

impl Identity {
    /// Finds the identity in what `age-keygen` writes: the first line that is neither empty nor a comment.
    ///
    /// # Errors
    /// The text is not such an identity; the error does not say what was there.
    pub fn parse(text: &[u8]) -> Result<Self, NotAnAgeKey> {
        let wrong = NotAnAgeKey("identity of age (AGE-SECRET-KEY-1…)");
        let text = str::from_utf8(text).or(Err(wrong))?;
        let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        line.and_then(|line| decode(IDENTITY_PREFIX, line)).map(Self).ok_or(wrong)
    }

    /// Its public half.
    #[must_use]
    pub fn recipient(&self) -> Recipient {
        Recipient(public(&self.private()))
    }

    fn private(&self) -> PrivateKey {
        match PrivateKey::from_private_key(&X25519, self.0.as_ref()) {
            Ok(key) => key,
            Err(_) => unreachable!("any 32 bytes are a private key"),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

impl KeyWrapper for Recipient {
    fn wrap(&self, key: &DataKey) -> Result<WrappedKey, RandomError> {
        let fresh = Identity(Zeroizing::new(crate::random::random()?)).private();
        let ephemeral = public(&fresh);
        let method = Method::Recipient { recipient: Hex(self.0), ephemeral: Hex(ephemeral) };
        let Some(wrapping) = agreed(&fresh, &self.0, &ephemeral, &self.0) else {
            unreachable!("recipients are checked where they are read")
        };
        Ok(wrap_with(key, &wrapping, method))
    }
}

/// What it wraps, it can take out itself.
impl KeyWrapper for Identity {
    fn wrap(&self, key: &DataKey) -> Result<WrappedKey, RandomError> {
        self.recipient().wrap(key)
    }
}

impl KeyHolder for Identity {
    fn unwrap(&self, wrapped: &WrappedKey) -> Result<DataKey, UnwrapError> {
        let Method::Recipient { recipient, ephemeral } = wrapped.method() else {
            return Err(UnwrapError::method(wrapped, Method::RECIPIENT));
        };
        let wrapping = agreed(&self.private(), ephemeral, ephemeral, recipient);
        let wrapping = wrapping.ok_or(UnwrapError::Wrong("identity"))?;
        unwrap_with(wrapped, &wrapping, "identity")
    }
}

/// The wrapping key that a private key and a peer's public one agree on; `None` for a peer that is no point
/// to agree with.
fn agreed(
    private: &PrivateKey,
    peer: &[u8; 32],
    ephemeral: &[u8; 32],
    recipient: &[u8; 32],
) -> Option<Zeroizing<[u8; 32]>> {
    let shared = agree_on(private, peer)?;
    let salt = [&ephemeral[..], recipient].concat();
    Some(derive(&salt, shared.as_ref(), &[b"trivet wrapping key 1 X25519"]))
}

fn agree_on(private: &PrivateKey, peer: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
    let peer = UnparsedPublicKey::new(&X25519, peer);
    agree(private, peer, (), |shared| Ok(Zeroizing::new(shared.try_into().or(Err(()))?))).ok()
}

fn public(private: &PrivateKey) -> [u8; 32] {
    let key = private.compute_public_key();
    let bytes = key.ok().and_then(|key| key.as_ref().try_into().ok());
    let Some(bytes) = bytes else { unreachable!("every private key has a public one of 32 bytes") };
    bytes
}

fn decode(prefix: &str, text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let checked = CheckedHrpstring::new::<Bech32>(text.trim()).ok()?;
    if checked.hrp() != Hrp::parse(prefix).ok()? {
        return None;
    }
    let mut bytes: Vec<u8> = checked.byte_iter().collect();
    let key = <[u8; 32]>::try_from(bytes.as_slice()).ok().map(Zeroizing::new);
    bytes.zeroize();
    key
}

fn encode(prefix: &str, key: &[u8; 32]) -> String {
    let encoded = Hrp::parse(prefix).ok().and_then(|hrp| bech32::encode::<Bech32>(hrp, key).ok());
    encoded.unwrap_or_else(|| unreachable!("a key fits Bech32"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by age's own tools: the first example of its documentation's test vectors.
    const IDENTITY: &str = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
    const RECIPIENT: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

    #[test]
    fn keys_of_age_are_read_and_written() {
        let file = format!("# created: 2026-11-30\n# public key: {RECIPIENT}\n\n{IDENTITY}\n");
        let identity = Identity::parse(file.as_bytes()).unwrap();
        assert_eq!(identity.recipient().to_string(), RECIPIENT);
        assert_eq!(RECIPIENT.parse(), Ok(identity.recipient()));
        assert_eq!(format!("{identity:?}"), "Identity");
        let broken = RECIPIENT.replace("zvky", "zvkz");
        for text in ["", "age1", IDENTITY, broken.as_str()] {
            assert!(text.parse::<Recipient>().is_err(), "{text}");
        }
        for text in [RECIPIENT, "", "# nothing\n", "\u{fffd}"] {
            assert!(Identity::parse(text.as_bytes()).is_err(), "{text}");
        }
        // Zero is a point of low order.
        assert!(encode(RECIPIENT_PREFIX, &[0; 32]).parse::<Recipient>().is_err());
    }
}
