//! Blocks of an encrypted volume, between consumer and members: sealed when they are given their stamps,
//! opened when they are read.
//!
//! Invariant: what has a stamp is sealed once. All members get the same bytes, and so does one that is sent
//! them again; what is written anew (when members are made alike, say) gets another stamp first.

use bytes::{Bytes, BytesMut};
use trivet_crypto::BlockCipher;
use trivet_model::checksum::block_crcs;
use trivet_model::{BLOCK_SIZE, BlockTag, Stamp};
use trivet_wire::BlockData;

/// Encrypts consecutive blocks from `start` under consecutive stamps from `first`. The checksums are of what
/// is sent.
pub(super) fn sealed(
    cipher: &BlockCipher,
    start: u64,
    first: Stamp,
    segments: &[Bytes],
    mistake: Option<Mistake>,
) -> BlockData {
    let bytes = segments.iter().map(Bytes::len).sum();
    let mut out = BytesMut::zeroed(bytes);
    let mut tags = Vec::with_capacity(bytes / BLOCK_SIZE);
    let plain = segments.iter().flat_map(|segment| segment.chunks_exact(BLOCK_SIZE));
    for ((at, plain), out) in (0..).zip(plain).zip(out.chunks_exact_mut(BLOCK_SIZE)) {
        let (block, stamp) = match mistake {
            None => (start + at, first.plus(at)),
            Some(Mistake::FirstStamp) => (start + at, first),
            Some(Mistake::NoPlace) => (0, first.plus(at)),
        };
        tags.push(cipher.seal(block, stamp, plain, out));
    }
    let crcs = block_crcs(&out).collect();
    BlockData { crcs, tags, segments: vec![out.freeze()] }
}

/// What a planted fault does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mistake {
    FirstStamp,
    NoPlace,
}

/// Decrypts blocks that were read, each with its stamp.
///
/// # Errors
/// Those that are not as they were encrypted.
pub(super) fn opened(
    cipher: &BlockCipher,
    blocks: impl Iterator<Item = u64>,
    stamps: &[Stamp],
    data: &BlockData,
) -> Result<Vec<Bytes>, Vec<u64>> {
    let mut out = BytesMut::zeroed(data.bytes());
    let mut forged = Vec::new();
    let sealed = data.segments.iter().flat_map(|segment| segment.chunks_exact(BLOCK_SIZE));
    let seals = stamps.iter().zip(&data.tags);
    let each = blocks.zip(seals).zip(sealed).zip(out.chunks_exact_mut(BLOCK_SIZE));
    for (((block, (stamp, tag)), sealed), out) in each {
        if cipher.open(block, *stamp, sealed, tag, out).is_err() {
            forged.push(block);
        }
    }
    if forged.is_empty() { Ok(vec![out.freeze()]) } else { Err(forged) }
}

/// Whether an answer has what the blocks of such a volume come with.
pub(super) fn fits(tagged: bool, stamps: &[Stamp], tags: &[BlockTag], blocks: usize) -> bool {
    let expected = if tagged { blocks } else { 0 };
    stamps.len() == expected && tags.len() == expected
}

#[cfg(test)]
mod tests {
    use super::*;
    use trivet_crypto::DataKey;
    use trivet_model::{Generation, VolumeId};

    #[test]
    fn what_is_sealed_in_pieces_is_opened_block_by_block() {
        let cipher = BlockCipher::new(&DataKey::take(&mut [3; 32]), VolumeId::from_bytes([1; 16]));
        let first = Stamp::new(Generation::new(2).unwrap(), 7).unwrap();
        let plain: Vec<u8> = (0..4 * BLOCK_SIZE).map(|at| u8::try_from(at / BLOCK_SIZE).unwrap()).collect();
        let plain = Bytes::from(plain);
        let cut = [plain.slice(..BLOCK_SIZE), plain.slice(BLOCK_SIZE..)];
        let data = sealed(&cipher, 10, first, &cut, None);
        assert_eq!((data.verify(), data.blocks(), data.tags.len()), (Ok(()), 4, 4));
        assert!(data.segments[0].chunks_exact(BLOCK_SIZE).all(|block| block != &plain[..BLOCK_SIZE]));

        let stamps: Vec<Stamp> = (0..4).map(|at| first.plus(at)).collect();
        assert_eq!(opened(&cipher, 10..14, &stamps, &data).unwrap().concat(), plain);
        assert_eq!(opened(&cipher, [10, 12, 11, 13].into_iter(), &stamps, &data), Err(vec![12, 11]));
        let older = [&stamps[..3], &[first]].concat();
        assert_eq!(opened(&cipher, 10..14, &older, &data), Err(vec![13]));
        assert!(fits(true, &stamps, &data.tags, 4) && !fits(false, &stamps, &data.tags, 4));
    }
}
