//! Blocks of an encrypted volume, between consumer and members: sealed when they are given their stamps,
//! opened when they are read.
//!
//! Invariants
//! - What has a stamp is sealed once. All members get the same bytes, and so does one that is sent them again;
//!   what is written anew (when members are made alike, say) gets another stamp first.
//! - A volume seals under its own key alone. What a clone began with is opened under the key of whoever wrote
//!   it, which follows from the stamp: all of a clone's own stamps are above its parent's cut.

use bytes::{Bytes, BytesMut};
use trivet_crypto::{BlockCipher, DataKey};
use trivet_model::checksum::block_crcs;
use trivet_model::{Ancestor, BLOCK_SIZE, BlockTag, Stamp, VolumeId};
use trivet_wire::BlockData;

/// The ciphers of a volume and of those that it is a clone of, all out of one data key.
#[derive(Debug)]
pub(super) struct Ciphers {
    own: BlockCipher,
    /// The nearest first, each with its cut; they fall.
    ancestors: Vec<(Stamp, BlockCipher)>,
}

impl Ciphers {
    pub(super) fn new(key: &DataKey, volume: VolumeId, lineage: &[Ancestor]) -> Self {
        let ancestors = lineage.iter().map(|of| (of.cut, BlockCipher::new(key, of.volume)));
        Self { own: BlockCipher::new(key, volume), ancestors: ancestors.collect() }
    }

    /// The one that a version was sealed with.
    fn of(&self, stamp: Stamp) -> &BlockCipher {
        let not_nearer = self.ancestors.iter().take_while(|(cut, _)| stamp <= *cut);
        not_nearer.last().map_or(&self.own, |(_, cipher)| cipher)
    }
}

/// Encrypts consecutive blocks from `start` under consecutive stamps from `first`. The checksums are of what
/// is sent.
pub(super) fn sealed(
    ciphers: &Ciphers,
    start: u64,
    first: Stamp,
    segments: &[Bytes],
    mistake: Option<Mistake>,
) -> BlockData {
    let bytes = segments.iter().map(Bytes::len).sum();
    let mut out = BytesMut::zeroed(bytes);
    let mut tags = Vec::with_capacity(bytes / BLOCK_SIZE);
    let plain = segments.iter().flat_map(|segment| segment.chunks_exact(BLOCK_SIZE));
    let cipher = match (mistake, ciphers.ancestors.first()) {
        (Some(Mistake::ParentsKey), Some((_, parents))) => parents,
        _ => &ciphers.own,
    };
    for ((at, plain), out) in (0..).zip(plain).zip(out.chunks_exact_mut(BLOCK_SIZE)) {
        let (block, stamp) = match mistake {
            None | Some(Mistake::ParentsKey) => (start + at, first.plus(at)),
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
    ParentsKey,
}

/// Decrypts blocks that were read, each with its stamp.
///
/// # Errors
/// Those that are not as they were encrypted.
pub(super) fn opened(
    ciphers: &Ciphers,
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
        if ciphers.of(*stamp).open(block, *stamp, sealed, tag, out).is_err() {
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
    use trivet_model::{Generation, SnapshotId};

    fn stamp(generation: u32, sequence: u64) -> Stamp {
        Stamp::new(Generation::new(generation).unwrap(), sequence).unwrap()
    }

    fn ciphers(volume: u8, lineage: &[Ancestor]) -> Ciphers {
        Ciphers::new(&DataKey::take(&mut [3; 32]), VolumeId::from_bytes([volume; 16]), lineage)
    }

    fn ancestor(volume: u8, cut: Stamp) -> Ancestor {
        let (volume, snapshot) = (VolumeId::from_bytes([volume; 16]), SnapshotId::from_bytes([volume; 16]));
        Ancestor { volume, name: String::new(), snapshot, snapshot_name: String::new(), cut }
    }

    #[test]
    fn what_is_sealed_in_pieces_is_opened_block_by_block() {
        let (ciphers, first) = (ciphers(1, &[]), stamp(2, 7));
        let plain: Vec<u8> = (0..4 * BLOCK_SIZE).map(|at| u8::try_from(at / BLOCK_SIZE).unwrap()).collect();
        let plain = Bytes::from(plain);
        let cut = [plain.slice(..BLOCK_SIZE), plain.slice(BLOCK_SIZE..)];
        let data = sealed(&ciphers, 10, first, &cut, None);
        assert_eq!((data.verify(), data.blocks(), data.tags.len()), (Ok(()), 4, 4));
        assert!(data.segments[0].chunks_exact(BLOCK_SIZE).all(|block| block != &plain[..BLOCK_SIZE]));

        let stamps: Vec<Stamp> = (0..4).map(|at| first.plus(at)).collect();
        assert_eq!(opened(&ciphers, 10..14, &stamps, &data).unwrap().concat(), plain);
        assert_eq!(opened(&ciphers, [10, 12, 11, 13].into_iter(), &stamps, &data), Err(vec![12, 11]));
        let older = [&stamps[..3], &[first]].concat();
        assert_eq!(opened(&ciphers, 10..14, &older, &data), Err(vec![13]));
        assert!(fits(true, &stamps, &data.tags, 4) && !fits(false, &stamps, &data.tags, 4));
    }

    /// Of a volume, a clone of it and a clone of that, each seals a block under its own key; the last opens
    /// those that are not above the cuts under the others'.
    #[test]
    fn a_clone_opens_what_it_began_with_under_the_keys_of_those_who_wrote_it() {
        let of_root = [ancestor(1, stamp(1, 9))];
        let of_parent = [ancestor(2, stamp(2, 9)), of_root[0].clone()];
        let (root, parent, clone) = (ciphers(1, &[]), ciphers(2, &of_root), ciphers(3, &of_parent));
        let plain = Bytes::from(vec![5; BLOCK_SIZE]);
        let seal = |ciphers: &Ciphers, stamp| sealed(ciphers, 0, stamp, std::slice::from_ref(&plain), None);
        let open = |ciphers: &Ciphers, stamp, data: &BlockData| opened(ciphers, 0..1, &[stamp], data).is_ok();
        for (writer, at) in
            [(&root, stamp(1, 9)), (&parent, stamp(2, 1)), (&parent, stamp(2, 9)), (&clone, stamp(3, 0))]
        {
            let data = seal(writer, at);
            assert!(open(&clone, at, &data) && open(writer, at, &data), "{at}");
        }
        // What an ancestor wrote after the cut, nobody takes for the clone's.
        for (writer, at) in [(&root, stamp(1, 10)), (&parent, stamp(2, 10)), (&root, stamp(3, 0))] {
            assert!(!open(&clone, at, &seal(writer, at)), "{at}");
        }
    }
}
