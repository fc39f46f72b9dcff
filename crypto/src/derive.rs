//! Keys out of keys: HKDF-SHA-256 (RFC 5869).

use aws_lc_rs::hkdf;
use zeroize::Zeroizing;

/// Length of every key here.
struct Key;

impl hkdf::KeyType for Key {
    fn len(&self) -> usize {
        32
    }
}

/// A key for one purpose: `context`, whose parts are fixed in length or number by the caller, so that no
/// two purposes spell alike.
#[must_use]
pub fn derive(salt: &[u8], secret: &[u8], context: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let expanded = extracted.expand(context, Key).and_then(|expanded| expanded.fill(key.as_mut()));
    assert!(expanded.is_ok(), "HKDF gives up to 8160 bytes");
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5869, test cases 1 and 3: the first 32 bytes.
    #[test]
    fn known_values() {
        let salt: Vec<u8> = (0..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let first = derive(&salt, &[0x0b; 22], &[&info]);
        assert_eq!(first[..8], [0x3c, 0xb2, 0x5f, 0x25, 0xfa, 0xac, 0xd5, 0x7a]);
        assert_eq!(first[24..], [0x5d, 0xb0, 0x2d, 0x56, 0xec, 0xc4, 0xc5, 0xbf]);
        // The parts are joined as they are.
        assert_eq!(first, derive(&salt, &[0x0b; 22], &[&info[..3], &info[3..]]));
        let third = derive(&[], &[0x0b; 22], &[]);
        assert_eq!(third[..8], [0x8d, 0xa4, 0xe7, 0x75, 0xa5, 0x63, 0xc1, 0x8f]);
    }
}
