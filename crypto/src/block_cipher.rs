//! A volume's cipher.
//!
//! ```text
//!  key    HKDF(data key; "trivet block key 1" ‖ volume id)      one for each volume
//!  nonce  stamp, little-endian (8) ‖ zeros (4)                  one for each block version of a volume
//!  data   volume id (16) ‖ block (8) ‖ stamp (8)                authenticated besides the block
//! ```
//!
//! A block that is moved, swapped or taken from another volume does not open. The key already differs
//! between volumes; the id stands in the data as well, so that nothing rests on that alone.

use crate::{DataKey, derive};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::fmt;
use trivet_model::{BlockTag, Stamp, VolumeId};

/// Seals and opens the blocks of one volume.
pub struct BlockCipher {
    volume: VolumeId,
    key: LessSafeKey,
}

/// The bytes are not those that were sealed for this block under this stamp.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("block {block} with stamp {stamp} is not as it was encrypted")]
pub struct Forged {
    /// The volume's block.
    pub block: u64,
    /// The stamp that it is said to have.
    pub stamp: Stamp,
}

impl BlockCipher {
    /// The cipher for what is written to a volume.
    #[must_use]
    pub fn new(key: &DataKey, volume: VolumeId) -> Self {
        let derived = derive(&[], key.expose(), &[b"trivet block key 1", volume.as_bytes()]);
        Self::with_key(&derived, volume)
    }

    fn with_key(key: &[u8; 32], volume: VolumeId) -> Self {
        let Ok(key) = UnboundKey::new(&AES_256_GCM, key) else { unreachable!("a key has 32 bytes") };
        Self { volume, key: LessSafeKey::new(key) }
    }

    /// Encrypts a block into `out`, which is as long. A stamp is sealed once, ever: two blocks under one
    /// stamp would give both away.
    #[must_use]
    pub fn seal(&self, block: u64, stamp: Stamp, bytes: &[u8], out: &mut [u8]) -> BlockTag {
        seal(&self.key, nonce(stamp), &self.data(block, stamp), bytes, out)
    }

    /// Decrypts a block where it lies.
    ///
    /// # Errors
    /// [`Forged`]; `bytes` tell nothing then.
    pub fn open(&self, block: u64, stamp: Stamp, bytes: &mut [u8], tag: &BlockTag) -> Result<(), Forged> {
        let (nonce, data) = (Nonce::assume_unique_for_key(nonce(stamp)), Aad::from(self.data(block, stamp)));
        let opened = self.key.open_in_place_separate_tag(nonce, data, &tag.0, bytes);
        opened.map(drop).or(Err(Forged { block, stamp }))
    }

    fn data(&self, block: u64, stamp: Stamp) -> [u8; 32] {
        let mut data = [0; 32];
        data[..16].copy_from_slice(self.volume.as_bytes());
        data[16..24].copy_from_slice(&block.to_le_bytes());
        data[24..].copy_from_slice(&stamp.as_u64().to_le_bytes());
        data
    }
}

impl fmt::Debug for BlockCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockCipher").field("volume", &self.volume).finish_non_exhaustive()
    }
}

fn nonce(stamp: Stamp) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&stamp.as_u64().to_le_bytes());
    nonce
}

fn seal(key: &LessSafeKey, nonce: [u8; 12], data: &[u8], bytes: &[u8], out: &mut [u8]) -> BlockTag {
    let mut tag = BlockTag::default();
    let nonce = Nonce::assume_unique_for_key(nonce);
    let sealed = key.seal_out_of_place_scatter(nonce, Aad::from(data), bytes, out, &[], &mut tag.0);
    assert!(sealed.is_ok(), "the lengths of a block and of what it is sealed into differ");
    tag
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use trivet_model::{BLOCK_SIZE, Generation, block_crc};

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        let bytes = (0..N).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap());
        bytes.collect::<Vec<_>>().try_into().unwrap()
    }

    fn stamp(sequence: u64) -> Stamp {
        Stamp::new(Generation::new(7).unwrap(), sequence).unwrap()
    }

    fn cipher(volume: u8) -> BlockCipher {
        BlockCipher::new(&DataKey::take(&mut [1; 32]), VolumeId::from_bytes([volume; 16]))
    }

    fn sealed(cipher: &BlockCipher, block: u64, stamp: Stamp, plain: &[u8]) -> (Vec<u8>, BlockTag) {
        let mut out = vec![0; plain.len()];
        let tag = cipher.seal(block, stamp, plain, &mut out);
        (out, tag)
    }

    /// Test cases 13 to 16 of "The Galois/Counter Mode of Operation" (McGrew and Viega), which NIST's
    /// validation vectors take up.
    #[test]
    fn it_is_aes_256_gcm() {
        let zeros = BlockCipher::with_key(&[0; 32], VolumeId::from_bytes([0; 16])).key;
        let tag = seal(&zeros, [0; 12], &[], &[], &mut []);
        assert_eq!(tag.0, hex("530f8afbc74536b9a963b4f1c4cb738b"));
        let mut out = [0; 16];
        let tag = seal(&zeros, [0; 12], &[], &[0; 16], &mut out);
        assert_eq!(out, hex("cea7403d4d606b6e074ec5d3baf39d18"));
        assert_eq!(tag.0, hex("d0d1c8a799996bf0265b98b5d48ab919"));
        let key = hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
        let key = BlockCipher::with_key(&key, VolumeId::from_bytes([0; 16])).key;
        let plain: [u8; 60] = hex(concat!(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72",
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
        ));
        let data: [u8; 20] = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let mut out = [0; 60];
        let tag = seal(&key, hex("cafebabefacedbaddecaf888"), &data, &plain, &mut out);
        let expected: [u8; 60] = hex(concat!(
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa",
            "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        ));
        assert_eq!(out, expected);
        assert_eq!(tag.0, hex("76fc6ece0f4e1768cddf8853bb2d551b"));
    }

    /// What lies on people's disks: made again with another implementation (Python's `cryptography`).
    #[test]
    fn golden_block() {
        let plain: Vec<u8> = (0..BLOCK_SIZE).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let (out, tag) = sealed(&cipher(2), 3, stamp(4), &plain);
        assert_eq!((tag.0, block_crc(&out).0), (hex("d841876d3eb1ef6bffb4d191e19504ea"), 0x2712_03b8));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn what_is_sealed_opens_only_as_it_was(
            byte in any::<u8>(), block in any::<u64>(), sequence in 0u64..1 << 39, at in 0usize..BLOCK_SIZE, bit in 0u8..8
        ) {
            let (ours, stamp) = (cipher(2), stamp(sequence));
            let plain = vec![byte; BLOCK_SIZE];
            let (bytes, tag) = sealed(&ours, block, stamp, &plain);
            let opened = |cipher: &BlockCipher, block, stamp, bytes: &[u8], tag: &BlockTag| {
                let mut out = bytes.to_vec();
                cipher.open(block, stamp, &mut out, tag).map(|()| out)
            };
            prop_assert_eq!(opened(&ours, block, stamp, &bytes, &tag), Ok(plain));

            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let mut other = tag;
            other.0[at % 16] ^= 1 << bit;
            let forged = Err(Forged { block, stamp });
            prop_assert_eq!(&opened(&ours, block, stamp, &flipped, &tag), &forged, "a flipped bit");
            prop_assert_eq!(&opened(&ours, block, stamp, &bytes, &other), &forged, "another tag");
            prop_assert_eq!(&opened(&cipher(3), block, stamp, &bytes, &tag), &forged, "another volume");
            prop_assert!(opened(&ours, block ^ 1, stamp, &bytes, &tag).is_err(), "another block");
            prop_assert!(opened(&ours, block, stamp.plus(1), &bytes, &tag).is_err(), "another stamp");
        }
    }

    #[test]
    fn it_shows_no_key() {
        let shown = format!("{:?}", cipher(2));
        assert_eq!(shown, format!("BlockCipher {{ volume: {:?}, .. }}", VolumeId::from_bytes([2; 16])));
    }
}
