//! Blocks of an encrypted volume, between consumer and members: sealed when they are given their stamps,
//! opened when they are read.
//!
//! Invariants
//! - What has a stamp is sealed once. All members get the same bytes, and so does one that is sent them again;
//!   what is written anew (when members are made alike, say) gets another stamp first.
//! - A volume seals under its own present key alone. What a clone began with is opened under the key of whoever
//!   wrote it, which follows from the stamp: all of a clone's own stamps are above its parent's cut. So does
//!   whether a volume had an older data key then (`rekey.rs`).

mod memory;

use bytes::{Bytes, BytesMut};
use memory::Memory;
use trivet_crypto::{BlockCipher, DataKey, open_older};
use trivet_model::checksum::block_crc;
use trivet_model::{BLOCK_SIZE, BlockTag, KeyId, Stamp, VolumeRecord};
use trivet_wire::BlockData;

/// The ciphers of a volume and of those that it is a clone of.
#[derive(Debug)]
pub(super) struct Ciphers {
    own: BlockCipher,
    /// Those under older data keys, the newest first, then its ancestors', the nearest first; each with the last
    /// stamp that was sealed under it. They fall.
    earlier: Vec<(Stamp, BlockCipher)>,
    /// How many of them are under older data keys.
    older: usize,
    memory: Memory,
}

/// Why what a member has sent is not what was written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unopened {
    /// Its checksums do not match.
    Damaged,
    /// They do, but these blocks are not as they were encrypted.
    Forged(Vec<u64>),
}

/// What a planted fault does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mistake {
    FirstStamp,
    NoPlace,
    ParentsKey,
}

impl Ciphers {
    /// Those that the record names, out of its present data key.
    ///
    /// # Errors
    /// The name of an older key that does not come out.
    pub(super) fn new(key: &DataKey, record: &VolumeRecord) -> Result<Self, KeyId> {
        let own = BlockCipher::new(key, record.id);
        let (mut earlier, mut oldest) = (Vec::new(), key.clone());
        for older in record.older_keys.iter().rev() {
            let Some(sealed) = &older.sealed else { break };
            oldest = open_older(&oldest, older.key, sealed).or(Err(older.key))?;
            earlier.push((older.until, BlockCipher::new(&oldest, record.id)));
        }
        let older = earlier.len();
        // A clone began with its parent's key.
        earlier.extend(record.lineage.iter().map(|of| (of.cut, BlockCipher::new(&oldest, of.volume))));
        Ok(Self { own, earlier, older, memory: Memory::default() })
    }

    /// Whether the record names other older keys by now.
    pub(super) fn differ(&self, record: &VolumeRecord) -> bool {
        let kept = record.older_keys.iter().rev().take_while(|older| older.sealed.is_some());
        !kept.map(|older| older.until).eq(self.earlier[..self.older].iter().map(|(until, _)| *until))
    }

    /// Encrypts consecutive blocks from `start` under consecutive stamps from `first`. The checksums are of what
    /// is sent, made while that is in the processor's cache.
    pub(super) fn seal(
        &self,
        start: u64,
        first: Stamp,
        segments: &[Bytes],
        mistake: Option<Mistake>,
    ) -> BlockData {
        let bytes = segments.iter().map(Bytes::len).sum();
        let mut tags = Vec::with_capacity(bytes / BLOCK_SIZE);
        let mut crcs = Vec::with_capacity(bytes / BLOCK_SIZE);
        let cipher = match (mistake, self.earlier.first()) {
            (Some(Mistake::ParentsKey), Some((_, parents))) => parents,
            _ => &self.own,
        };
        let out = self.memory.filled(bytes, |out| {
            let plain = segments.iter().flat_map(|segment| segment.chunks_exact(BLOCK_SIZE));
            for ((at, plain), out) in (0..).zip(plain).zip(out.chunks_exact_mut(BLOCK_SIZE)) {
                let (block, stamp) = match mistake {
                    None | Some(Mistake::ParentsKey) => (start + at, first.plus(at)),
                    Some(Mistake::FirstStamp) => (start + at, first),
                    Some(Mistake::NoPlace) => (0, first.plus(at)),
                };
                tags.push(cipher.seal(block, stamp, plain, out));
                crcs.push(block_crc(out));
            }
        });
        assert_eq!(tags.len() * BLOCK_SIZE, bytes, "what is sealed comes in whole blocks");
        BlockData { crcs, tags, segments: vec![out] }
    }

    /// Decrypts blocks that were read, each with its stamp: where they lie, if nobody else holds that memory.
    ///
    /// # Errors
    /// [`Unopened`].
    pub(super) fn open(
        &self,
        mut blocks: impl Iterator<Item = u64>,
        stamps: &[Stamp],
        data: BlockData,
    ) -> Result<Vec<Bytes>, Unopened> {
        let BlockData { crcs, tags, segments } = data;
        let mut seals = stamps.iter().zip(tags).zip(crcs);
        let mut opened = Vec::with_capacity(segments.len());
        let (mut damaged, mut forged) = (false, Vec::new());
        for segment in segments {
            let mut segment = segment.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            for bytes in segment.chunks_exact_mut(BLOCK_SIZE) {
                let (Some(block), Some(((stamp, tag), crc))) = (blocks.next(), seals.next()) else {
                    unreachable!("an answer that fits has a seal for each block")
                };
                if block_crc(bytes) != crc {
                    damaged = true;
                } else if self.of(*stamp).open(block, *stamp, bytes, &tag).is_err() {
                    forged.push(block);
                }
            }
            opened.push(segment.freeze());
        }
        match (damaged, forged.is_empty()) {
            (true, _) => Err(Unopened::Damaged),
            (false, false) => Err(Unopened::Forged(forged)),
            (false, true) => Ok(opened),
        }
    }

    /// The one that a version was sealed with.
    fn of(&self, stamp: Stamp) -> &BlockCipher {
        let not_later = self.earlier.iter().take_while(|(until, _)| stamp <= *until);
        not_later.last().map_or(&self.own, |(_, cipher)| cipher)
    }
}

/// Whether an answer has what the blocks of such a volume come with.
pub(super) fn fits(tagged: bool, stamps: &[Stamp], tags: &[BlockTag], blocks: usize) -> bool {
    let expected = if tagged { blocks } else { 0 };
    stamps.len() == expected && tags.len() == expected
}

#[cfg(test)]
mod tests {
    use super::*;
    use trivet_crypto::seal_older;
    use trivet_model::{
        Ancestor, Epoch, Generation, Hex, OlderKey, Sharing, SnapshotId, VolumeId, VolumeSettings,
    };

    fn stamp(generation: u32, sequence: u64) -> Stamp {
        Stamp::new(Generation::new(generation).unwrap(), sequence).unwrap()
    }

    fn key(byte: u8) -> DataKey {
        DataKey::take(&mut [byte; 32])
    }

    fn record(volume: u8, lineage: &[Ancestor], older_keys: Vec<OlderKey>) -> VolumeRecord {
        VolumeRecord {
            id: VolumeId::from_bytes([volume; 16]),
            name: "v".to_owned(),
            blocks: 1,
            generation: Generation::ZERO,
            owner: String::new(),
            epoch: Epoch(0),
            wait_owed: false,
            members: Vec::new(),
            snapshots: Vec::new(),
            lineage: lineage.to_vec(),
            sharing: Sharing::Nothing,
            is_image: false,
            settings: VolumeSettings::default(),
            copies: 0,
            key: None,
            next_key: None,
            older_keys,
            reverting: None,
            import: None,
        }
    }

    fn ciphers(volume: u8, lineage: &[Ancestor]) -> Ciphers {
        Ciphers::new(&key(3), &record(volume, lineage, Vec::new())).unwrap()
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
        let data = ciphers.seal(10, first, &cut, None);
        assert_eq!((data.verify(), data.blocks(), data.tags.len()), (Ok(()), 4, 4));
        assert!(data.segments[0].chunks_exact(BLOCK_SIZE).all(|block| block != &plain[..BLOCK_SIZE]));

        let stamps: Vec<Stamp> = (0..4).map(|at| first.plus(at)).collect();
        let open = |blocks: [u64; 4], stamps: &[Stamp], data: &BlockData| {
            // Whoever still holds the memory keeps what is in it; whoever does not has it decrypted in place.
            let opened = ciphers.open(blocks.into_iter(), stamps, data.clone());
            let alone = data.segments.iter().map(|segment| Bytes::copy_from_slice(segment)).collect();
            let in_place =
                ciphers.open(blocks.into_iter(), stamps, BlockData { segments: alone, ..data.clone() });
            assert_eq!(opened, in_place);
            opened
        };
        assert_eq!(open([10, 11, 12, 13], &stamps, &data).unwrap().concat(), plain);
        assert_eq!(open([10, 12, 11, 13], &stamps, &data), Err(Unopened::Forged(vec![12, 11])));
        let older = [&stamps[..3], &[first]].concat();
        assert_eq!(open([10, 11, 12, 13], &older, &data), Err(Unopened::Forged(vec![13])));
        let mut crcs = data.crcs.clone();
        crcs[2].0 ^= 1;
        assert_eq!(
            open([10, 11, 12, 13], &older, &BlockData { crcs, ..data.clone() }),
            Err(Unopened::Damaged)
        );
        assert_eq!(data.verify(), Ok(()), "what others hold stays as it is");
        assert!(fits(true, &stamps, &data.tags, 4) && !fits(false, &stamps, &data.tags, 4));
    }

    /// Of a volume, a clone of it and a clone of that, each seals a block under its own key; the last opens
    /// those that are not above the cuts under the others'.
    #[test]
    fn a_clone_opens_what_it_began_with_under_the_keys_of_those_who_wrote_it() {
        let of_root = [ancestor(1, stamp(1, 9))];
        let of_parent = [ancestor(2, stamp(2, 9)), of_root[0].clone()];
        const ROOT: usize = 0;
        const PARENT: usize = 1;
        const CLONE: usize = 2;
        let family = [ciphers(1, &[]), ciphers(2, &of_root), ciphers(3, &of_parent)];
        let plain = Bytes::from(vec![5; BLOCK_SIZE]);
        let opens = |writer: usize, reader: usize, at: Stamp| {
            let data = family[writer].seal(0, at, std::slice::from_ref(&plain), None);
            family[reader].open(0..1, &[at], data).is_ok()
        };
        for (writer, at) in
            [(ROOT, stamp(1, 9)), (PARENT, stamp(2, 1)), (PARENT, stamp(2, 9)), (CLONE, stamp(3, 0))]
        {
            assert!(opens(writer, CLONE, at) && opens(writer, writer, at), "{at}");
        }
        // What an ancestor wrote after the cut, nobody takes for the clone's.
        for (writer, at) in [(ROOT, stamp(1, 10)), (PARENT, stamp(2, 10)), (ROOT, stamp(3, 0))] {
            assert!(!opens(writer, CLONE, at), "{at}");
        }
    }

    /// A clone that has had three data keys opens each version under the one that it had then, and what it began
    /// with under the first; what a destroyed one sealed it takes for forged.
    #[test]
    fn a_version_opens_under_the_key_that_the_volume_had_then() {
        let older = |of: u8, by: u8, until| OlderKey {
            key: key(of).id(),
            until,
            sealed: Some(Hex(seal_older(&key(by), &key(of)))),
            position: 0,
            changed: 0,
            rewritten: None,
        };
        let lineage = [ancestor(1, stamp(1, 9))];
        let firsts = record(2, &lineage, Vec::new());
        let mut seconds = record(2, &lineage, vec![older(3, 4, stamp(2, 9))]);
        let mut thirds = record(2, &lineage, vec![older(3, 4, stamp(2, 9)), older(4, 5, stamp(3, 9))]);
        let mut writers = [
            (ciphers(1, &[]), stamp(1, 9)),
            (Ciphers::new(&key(3), &firsts).unwrap(), stamp(2, 9)),
            (Ciphers::new(&key(4), &seconds).unwrap(), stamp(2, 10)),
            (Ciphers::new(&key(4), &seconds).unwrap(), stamp(3, 9)),
            (Ciphers::new(&key(5), &thirds).unwrap(), stamp(3, 10)),
        ];
        let mut opened = |record: &VolumeRecord, with: u8| {
            let reader = Ciphers::new(&key(with), record).unwrap();
            let plain = Bytes::from(vec![5; BLOCK_SIZE]);
            writers.each_mut().map(|(writer, at)| {
                let data = writer.seal(0, *at, std::slice::from_ref(&plain), None);
                reader.open(0..1, &[*at], data).is_ok()
            })
        };
        assert_eq!(opened(&thirds, 5), [true; 5]);
        assert_eq!(opened(&seconds, 4), [true, true, true, true, false]);
        let reader = Ciphers::new(&key(5), &thirds).unwrap();
        assert!(!reader.differ(&thirds) && reader.differ(&seconds) && reader.differ(&firsts));
        thirds.older_keys[0].sealed = None;
        assert!(reader.differ(&thirds));
        assert_eq!(opened(&thirds, 5), [false, false, true, true, true]);

        // Another key than the one that took its place.
        seconds.older_keys[0].sealed = Some(Hex(seal_older(&key(6), &key(3))));
        assert_eq!(Ciphers::new(&key(4), &seconds).err(), Some(key(3).id()));
    }
}
