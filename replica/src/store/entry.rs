//! Map entries, and the groups that the checkpointed map keeps them in.
//!
//! A group is [`GROUP_BLOCKS`] consecutive blocks of a volume. Its value in the map, little-endian:
//! a 16-bit mask of the blocks that have an entry, then for each of those the stamp (8 bytes),
//! the pool block (5 bytes; 0 is a tombstone) and the checksum (4 bytes); of an encrypted volume, then the
//! tag (16 bytes) of each that is no tombstone.

use bytes::{Buf, BufMut};
use trivet_model::{BlockCrc, BlockTag, Stamp, TAG_BYTES};

use super::record::Slot;
use super::tags::Tags;
use crate::planted::{self, PlantedFault};

/// Blocks in a group.
pub(crate) const GROUP_BLOCKS: u64 = 16;
const GROUP_LEN: usize = 16;
const ENTRY_BYTES: usize = 8 + 5 + 4;

/// Where a version of a block lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) stamp: Stamp,
    /// The pool's block; [`TOMBSTONE`] for a discarded one.
    pub(crate) physical: u64,
    pub(crate) crc: BlockCrc,
}

/// In place of a pool block: the volume's block was discarded and reads as zeros. (Block 0 of a
/// pool is its superblock, so no data lies there.)
pub(crate) const TOMBSTONE: u64 = 0;

impl Entry {
    pub(crate) fn tombstone(stamp: Stamp) -> Self {
        Self { stamp, physical: TOMBSTONE, crc: BlockCrc(0) }
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.physical == TOMBSTONE
    }
}

/// Names a block of a volume of this pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct BlockKey {
    pub(crate) slot: Slot,
    pub(crate) block: u64,
}

/// The entries of a group; `None` for blocks never written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Group(pub(crate) [Option<Entry>; GROUP_LEN]);

/// The tags of a group's entries that hold data, in their order, by pool block; none where the volume is not
/// encrypted.
pub(crate) type GroupTags = Vec<(u64, BlockTag)>;

/// A stored group makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("map value of {found} bytes where its mask asks for {expected}")]
pub struct GroupError {
    expected: usize,
    found: usize,
}

impl Group {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut mask = 0u16;
        let mut out = Vec::with_capacity(2 + GROUP_LEN * ENTRY_BYTES);
        out.put_u16_le(0);
        for (at, entry) in self.0.iter().enumerate() {
            let Some(entry) = entry else { continue };
            mask |= 1 << at;
            out.put_u64_le(entry.stamp.as_u64());
            assert!(entry.physical < 1 << 40, "a pool block number has 40 bits");
            out.put_uint_le(entry.physical, 5);
            out.put_u32_le(entry.crc.0);
        }
        out[..2].copy_from_slice(&mask.to_le_bytes());
        out
    }

    /// The same of an encrypted volume; the pool block of which there is no tag otherwise.
    pub(crate) fn encode_tagged(&self, tags: &Tags) -> Result<Vec<u8>, u64> {
        let mut out = self.encode();
        let mut of_data = Vec::with_capacity(GROUP_LEN);
        for entry in self.data() {
            of_data.push(tags.get(entry.physical).ok_or(entry.physical)?);
        }
        if planted::is(PlantedFault::MixTagsInMerge) {
            of_data.reverse();
        }
        of_data.iter().for_each(|tag| out.put_slice(&tag.0));
        Ok(out)
    }

    fn data(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter().flatten().filter(|entry| !entry.is_tombstone())
    }

    pub(crate) fn decode(mut value: &[u8]) -> Result<(Self, GroupTags), GroupError> {
        let found = value.len();
        if found < 2 {
            return Err(GroupError { expected: 2, found });
        }
        let mask = value.get_u16_le();
        let expected = 2 + mask.count_ones() as usize * ENTRY_BYTES;
        if expected > found {
            return Err(GroupError { expected, found });
        }
        let mut group = Self::default();
        for (at, place) in group.0.iter_mut().enumerate() {
            if mask & (1 << at) != 0 {
                *place = Some(Entry {
                    stamp: Stamp::from_u64(value.get_u64_le()),
                    physical: value.get_uint_le(5),
                    crc: BlockCrc(value.get_u32_le()),
                });
            }
        }
        if value.is_empty() {
            return Ok((group, GroupTags::new()));
        }
        let data = group.data().count();
        if value.len() != data * TAG_BYTES {
            return Err(GroupError { expected: expected + data * TAG_BYTES, found });
        }
        let mut next = || {
            let mut tag = BlockTag::default();
            value.copy_to_slice(&mut tag.0);
            tag
        };
        let tags = group.data().map(|entry| (entry.physical, next())).collect();
        Ok((group, tags))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

/// The checkpointed map's keys. Big-endian, so that byte order is the order of blocks; layers
/// descend, so that a seek to (volume, group, layer) finds the newest state not above it.
///
/// A layer is named by the cut that it lies above, zero for the lowest: what was written to a group of
/// blocks between two cuts is kept, with what it left as it was, as one state of the group. Taking a
/// snapshot therefore changes no key.
pub(crate) mod key {
    use super::{Buf, BufMut, Slot, Stamp};

    pub(crate) const HEADER: &[u8] = b"c";
    /// The device has failed a write or flush since the pool was opened.
    pub(crate) const FAILED: &[u8] = b"f";
    pub(crate) const REGIONS: u8 = b'r';
    pub(crate) const VOLUMES: u8 = b'v';
    pub(crate) const ZONES: u8 = b'z';
    const GROUPS: u8 = b'g';
    const LAYERS: u8 = b'l';

    const LAYERED_BYTES: usize = 1 + 4 + 8 + 8;

    /// A state of a group: the one of this layer, or in a seek, of the highest not above it.
    pub(crate) fn group(slot: Slot, group: u64, layer: Stamp) -> [u8; LAYERED_BYTES] {
        let mut key = [0; LAYERED_BYTES];
        let mut out = &mut key[..];
        out.put_u8(GROUPS);
        out.put_u32(slot.0);
        out.put_u64(group);
        out.put_u64(u64::MAX - layer.as_u64());
        key
    }

    /// The slot, group and layer of a key made by [`group`].
    pub(crate) fn parse_group(mut key: &[u8]) -> Option<(Slot, u64, Stamp)> {
        if key.len() != LAYERED_BYTES || key.get_u8() != GROUPS {
            return None;
        }
        Some((Slot(key.get_u32()), key.get_u64(), Stamp::from_u64(u64::MAX - key.get_u64())))
    }

    /// Says that a group has a state in a layer above the lowest: the way from a snapshot to what
    /// changed after it.
    pub(crate) fn layered(slot: Slot, layer: Stamp, group: u64) -> [u8; LAYERED_BYTES] {
        let mut key = [0; LAYERED_BYTES];
        let mut out = &mut key[..];
        out.put_u8(LAYERS);
        out.put_u32(slot.0);
        out.put_u64(layer.as_u64());
        out.put_u64(group);
        key
    }

    /// The slot, layer and group of a key made by [`layered`].
    pub(crate) fn parse_layered(mut key: &[u8]) -> Option<(Slot, Stamp, u64)> {
        if key.len() != LAYERED_BYTES || key.get_u8() != LAYERS {
            return None;
        }
        Some((Slot(key.get_u32()), Stamp::from_u64(key.get_u64()), key.get_u64()))
    }

    /// A chunk of a volume's regions.
    pub(crate) fn regions(slot: Slot, chunk: u32) -> [u8; 9] {
        let mut key = [0; 9];
        let mut out = &mut key[..];
        out.put_u8(REGIONS);
        out.put_u32(slot.0);
        out.put_u32(chunk);
        key
    }

    /// The slot and chunk of a key made by [`regions`].
    pub(crate) fn parse_regions(mut key: &[u8]) -> Option<(Slot, u32)> {
        if key.len() != 9 || key.get_u8() != REGIONS {
            return None;
        }
        Some((Slot(key.get_u32()), key.get_u32()))
    }

    pub(crate) fn numbered(kind: u8, number: u32) -> [u8; 5] {
        let mut key = [kind, 0, 0, 0, 0];
        key[1..].copy_from_slice(&number.to_be_bytes());
        key
    }

    pub(crate) fn parse_number(key: &[u8]) -> Option<u32> {
        key.get(1..5)?.try_into().ok().map(u32::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn group_round_trip(entries in prop::collection::vec(
            prop::option::of((any::<u64>(), 0u64..1 << 40, any::<u32>())), GROUP_LEN))
        {
            let mut group = Group::default();
            for (place, entry) in group.0.iter_mut().zip(entries) {
                *place = entry.map(|(stamp, physical, crc)| Entry {
                    stamp: Stamp::from_u64(stamp), physical, crc: BlockCrc(crc),
                });
            }
            let bytes = group.encode();
            prop_assert_eq!(Group::decode(&bytes), Ok((group.clone(), Vec::new())));
            prop_assert!(Group::decode(&bytes[..bytes.len() - 1]).is_err());

            let of_pool_block = |physical: u64| BlockTag([physical.to_le_bytes(), [7; 8]].concat().try_into().unwrap());
            let expected: GroupTags =
                group.data().map(|entry| (entry.physical, of_pool_block(entry.physical))).collect();
            let mut tags = Tags::default();
            tags.extend(expected.iter().copied());
            let tagged = group.encode_tagged(&tags).unwrap();
            prop_assert_eq!(tagged.len(), bytes.len() + 16 * expected.len());
            prop_assert_eq!(Group::decode(&tagged), Ok((group.clone(), expected.clone())));
            if let Some((missing, _)) = expected.first() {
                prop_assert!(Group::decode(&tagged[..tagged.len() - 1]).is_err());
                tags.remove(*missing);
                prop_assert_eq!(group.encode_tagged(&tags), Err(*missing));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Ok((group, tags)) = Group::decode(&bytes) {
                let mut by_block = Tags::default();
                by_block.extend(tags.iter().copied());
                let again = if tags.is_empty() { group.encode() } else { group.encode_tagged(&by_block).unwrap() };
                prop_assert_eq!(again.len(), bytes.len());
            }
        }
    }

    #[test]
    fn golden_bytes_and_key_order() {
        let mut group = Group::default();
        group.0[1] = Some(Entry { stamp: Stamp::from_u64(2), physical: 0x0102, crc: BlockCrc(3) });
        let plain = [2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 3, 0, 0, 0];
        assert_eq!(group.encode(), plain);
        let mut tags = Tags::default();
        tags.insert(0x0102, BlockTag([9; 16]));
        assert_eq!(group.encode_tagged(&tags), Ok([&plain[..], &[9; 16]].concat()));
        let group = |slot, group, layer| key::group(Slot(slot), group, Stamp::from_u64(layer));
        let keys = [group(0, 1, 9), group(0, 1, 0), group(0, 256, 0), group(1, 0, u64::MAX)];
        assert!(keys.is_sorted());
        assert_eq!(key::parse_group(&keys[0]), Some((Slot(0), 1, Stamp::from_u64(9))));
        let layered = key::layered(Slot(3), Stamp::from_u64(5), 7);
        assert_eq!(key::parse_layered(&layered), Some((Slot(3), Stamp::from_u64(5), 7)));
        let chunk = key::regions(Slot(3), 7);
        assert_eq!(key::parse_regions(&chunk), Some((Slot(3), 7)));
        assert!(keys[3].as_slice() < layered.as_slice() && layered.as_slice() < chunk.as_slice());
        assert!(chunk[0] < key::VOLUMES);
    }
}
