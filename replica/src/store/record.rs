//! Journal records: what changed, in the order it was carried out.
//!
//! A record never spans journal blocks. Layout, little-endian: kind (1 byte), volume slot (4),
//! then the fields in the order of the enum.

use bytes::{Buf, BufMut, TryGetError};
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{
    BlockCrc, BlockRange, BlockTag, Epoch, Generation, SnapshotId, Stamp, TAG_BYTES, VolumeId,
};

use super::lineage::Tie;
use super::request::VolumeProgress;
use super::snapshots::Snapshot;
use super::version::Origin;

/// A volume's number within its pool; never given to another volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Slot(pub(crate) u32);

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// Consecutive blocks of a volume now lie in consecutive blocks of the pool.
    Write {
        origin: Origin,
        slot: Slot,
        start: u64,
        stamp: Stamp,
        physical: u64,
        crcs: Vec<BlockCrc>,
        /// One for each block of an encrypted volume, else none.
        tags: Vec<BlockTag>,
    },
    Discard {
        slot: Slot,
        range: BlockRange,
        stamp: Stamp,
    },
    /// Blocks that another member has discarded.
    PlaceTombstones {
        slot: Slot,
        range: BlockRange,
        stamp: Stamp,
    },
    Create {
        slot: Slot,
        volume: VolumeId,
        blocks: u64,
        /// From where a clone is read where it has nothing of its own.
        tie: Option<Tie>,
        tagged: bool,
    },
    Delete {
        slot: Slot,
    },
    Resize {
        slot: Slot,
        blocks: u64,
    },
    Promise {
        slot: Slot,
        generation: Generation,
        epoch: Epoch,
        session: u64,
    },
    Progress {
        slot: Slot,
        progress: VolumeProgress,
    },
    Snapshot {
        slot: Slot,
        snapshot: Snapshot,
    },
    DeleteSnapshot {
        slot: Slot,
        id: SnapshotId,
    },
    /// The volume begins anew, empty, under another slot; its promise stays.
    Reset {
        slot: Slot,
        next: Slot,
    },
    /// A clone has everything itself that it shows.
    Untie {
        slot: Slot,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("record is cut short")]
    Short,
    #[error("record of unknown kind {0}")]
    Kind(u8),
    #[error("record field out of range: {0}")]
    Field(&'static str),
}

impl From<TryGetError> for RecordError {
    fn from(_: TryGetError) -> Self {
        Self::Short
    }
}

const KIND_WRITE: u8 = 1;
const KIND_DISCARD: u8 = 2;
const KIND_CREATE: u8 = 3;
const KIND_DELETE: u8 = 4;
const KIND_RESIZE: u8 = 5;
const KIND_PROMISE: u8 = 6;
const KIND_PROGRESS: u8 = 7;
const KIND_PLACE: u8 = 8;
const KIND_REPAIR: u8 = 9;
const KIND_PLACE_TOMBSTONES: u8 = 10;
const KIND_SNAPSHOT: u8 = 11;
const KIND_DELETE_SNAPSHOT: u8 = 12;
const KIND_RESET: u8 = 13;
const KIND_UNTIE: u8 = 14;
/// A `Write` with tags, of whichever origin; a `Create` of a volume that has them.
const TAGGED: u8 = 0x80;

const PREFIX_BYTES: usize = 1 + 4;

/// A `Write` record whose checksums and tags are lent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteRecord<'a> {
    pub(crate) origin: Origin,
    pub(crate) slot: Slot,
    pub(crate) start: u64,
    pub(crate) stamp: Stamp,
    pub(crate) physical: u64,
    pub(crate) crcs: &'a [BlockCrc],
    pub(crate) tags: &'a [BlockTag],
}

/// Blocks in a `Write` record with tags: it must fit a journal block, as the longest without them does.
pub(crate) const TAGGED_RECORD_BLOCKS_MAX: usize = 200;

impl WriteRecord<'_> {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let tagged = !self.tags.is_empty();
        assert!(!tagged || self.tags.len() == self.crcs.len(), "a tag for each block");
        let kind = match self.origin {
            Origin::Live => KIND_WRITE,
            Origin::Placed => KIND_PLACE,
            Origin::Repaired => KIND_REPAIR,
        };
        put_prefix(out, if tagged { kind | TAGGED } else { kind }, self.slot);
        out.put_u64_le(self.start);
        out.put_u64_le(self.stamp.as_u64());
        out.put_u64_le(self.physical);
        let Ok(count) = u16::try_from(self.crcs.len()) else {
            unreachable!("a record holds at most IO_BLOCKS_MAX")
        };
        out.put_u16_le(count);
        self.crcs.iter().for_each(|crc| out.put_u32_le(crc.0));
        self.tags.iter().for_each(|tag| out.put_slice(&tag.0));
    }

    /// Its length.
    pub(crate) const fn bytes(&self) -> usize {
        write_record_bytes(self.crcs.len(), self.tags.len())
    }
}

/// The length of a `Write` record of so many blocks and tags.
pub(crate) const fn write_record_bytes(blocks: usize, tags: usize) -> usize {
    PREFIX_BYTES + 8 + 8 + 8 + 2 + 4 * blocks + TAG_BYTES * tags
}

/// No record but a `Write` is longer.
pub(crate) const OTHER_RECORD_BYTES_MAX: usize = PREFIX_BYTES + 16 + 8 + 4 + 8;

fn put_prefix(out: &mut Vec<u8>, kind: u8, slot: Slot) {
    out.put_u8(kind);
    out.put_u32_le(slot.0);
}

fn put_tombstones(out: &mut Vec<u8>, kind: u8, slot: Slot, range: BlockRange, stamp: Stamp) {
    put_prefix(out, kind, slot);
    out.put_u64_le(range.start);
    out.put_u32_le(range.count);
    out.put_u64_le(stamp.as_u64());
}

fn get_id(input: &mut &[u8]) -> Result<[u8; 16], RecordError> {
    let mut id = [0; 16];
    input.try_copy_to_slice(&mut id)?;
    Ok(id)
}

impl Record {
    /// The volume it is about.
    pub(crate) fn slot(&self) -> Slot {
        match self {
            Self::Write { slot, .. }
            | Self::Discard { slot, .. }
            | Self::PlaceTombstones { slot, .. }
            | Self::Create { slot, .. }
            | Self::Delete { slot }
            | Self::Resize { slot, .. }
            | Self::Promise { slot, .. }
            | Self::Progress { slot, .. }
            | Self::Snapshot { slot, .. }
            | Self::DeleteSnapshot { slot, .. }
            | Self::Reset { slot, .. }
            | Self::Untie { slot } => *slot,
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Write { origin, slot, start, stamp, physical, crcs, tags } => WriteRecord {
                origin: *origin,
                slot: *slot,
                start: *start,
                stamp: *stamp,
                physical: *physical,
                crcs,
                tags,
            }
            .encode(out),
            Self::Discard { slot, range, stamp } => put_tombstones(out, KIND_DISCARD, *slot, *range, *stamp),
            Self::PlaceTombstones { slot, range, stamp } => {
                put_tombstones(out, KIND_PLACE_TOMBSTONES, *slot, *range, *stamp);
            }
            Self::Create { slot, volume, blocks, tie, tagged } => {
                put_prefix(out, if *tagged { KIND_CREATE | TAGGED } else { KIND_CREATE }, *slot);
                out.put_slice(volume.as_bytes());
                out.put_u64_le(*blocks);
                Tie::encode(*tie, out);
            }
            Self::Untie { slot } => put_prefix(out, KIND_UNTIE, *slot),
            Self::Delete { slot } => put_prefix(out, KIND_DELETE, *slot),
            Self::Resize { slot, blocks } => {
                put_prefix(out, KIND_RESIZE, *slot);
                out.put_u64_le(*blocks);
            }
            Self::Promise { slot, generation, epoch, session } => {
                put_prefix(out, KIND_PROMISE, *slot);
                out.put_u32_le(generation.get());
                out.put_u64_le(epoch.0);
                out.put_u64_le(*session);
            }
            Self::Progress { slot, progress } => {
                put_prefix(out, KIND_PROGRESS, *slot);
                out.put_u64_le(progress.committed.as_u64());
                out.put_u64_le(progress.stable.as_u64());
            }
            Self::Snapshot { slot, snapshot } => {
                put_prefix(out, KIND_SNAPSHOT, *slot);
                out.put_slice(snapshot.id.as_bytes());
                out.put_u64_le(snapshot.cut.as_u64());
            }
            Self::DeleteSnapshot { slot, id } => {
                put_prefix(out, KIND_DELETE_SNAPSHOT, *slot);
                out.put_slice(id.as_bytes());
            }
            Self::Reset { slot, next } => {
                put_prefix(out, KIND_RESET, *slot);
                out.put_u32_le(next.0);
            }
        }
    }

    pub(crate) fn decode(input: &mut &[u8]) -> Result<Self, RecordError> {
        let written = input.try_get_u8()?;
        let (kind, tagged) = (written & !TAGGED, written & TAGGED != 0);
        let slot = Slot(input.try_get_u32_le()?);
        if tagged && !matches!(kind, KIND_WRITE | KIND_PLACE | KIND_REPAIR | KIND_CREATE) {
            return Err(RecordError::Kind(written));
        }
        Ok(match kind {
            KIND_WRITE | KIND_PLACE | KIND_REPAIR => {
                let origin = match kind {
                    KIND_WRITE => Origin::Live,
                    KIND_PLACE => Origin::Placed,
                    _ => Origin::Repaired,
                };
                let start = input.try_get_u64_le()?;
                let stamp = Stamp::from_u64(input.try_get_u64_le()?);
                let physical = input.try_get_u64_le()?;
                let count = input.try_get_u16_le()?;
                if count == 0 || u32::from(count) > IO_BLOCKS_MAX {
                    return Err(RecordError::Field("count of a write"));
                }
                let with_each = if tagged { 4 + TAG_BYTES } else { 4 };
                if input.len() < usize::from(count) * with_each {
                    return Err(RecordError::Short);
                }
                let crcs = (0..count).map(|_| BlockCrc(input.get_u32_le())).collect();
                let mut tags = vec![BlockTag::default(); if tagged { usize::from(count) } else { 0 }];
                tags.iter_mut().for_each(|tag| input.copy_to_slice(&mut tag.0));
                Self::Write { origin, slot, start, stamp, physical, crcs, tags }
            }
            KIND_DISCARD | KIND_PLACE_TOMBSTONES => {
                let range = BlockRange::new(input.try_get_u64_le()?, input.try_get_u32_le()?);
                let stamp = Stamp::from_u64(input.try_get_u64_le()?);
                match kind {
                    KIND_DISCARD => Self::Discard { slot, range, stamp },
                    _ => Self::PlaceTombstones { slot, range, stamp },
                }
            }
            KIND_CREATE => {
                let volume = VolumeId::from_bytes(get_id(input)?);
                let blocks = input.try_get_u64_le()?;
                let tie = Tie::decode(input)?;
                // Children are made after their parents, so a lineage has an end.
                if tie.is_some_and(|tie| tie.parent >= slot) {
                    return Err(RecordError::Field("parent of a volume"));
                }
                Self::Create { slot, volume, blocks, tie, tagged }
            }
            KIND_DELETE => Self::Delete { slot },
            KIND_RESIZE => Self::Resize { slot, blocks: input.try_get_u64_le()? },
            KIND_PROMISE => Self::Promise {
                slot,
                generation: Generation::new(input.try_get_u32_le()?)
                    .ok_or(RecordError::Field("generation"))?,
                epoch: Epoch(input.try_get_u64_le()?),
                session: input.try_get_u64_le()?,
            },
            KIND_PROGRESS => Self::Progress {
                slot,
                progress: VolumeProgress {
                    committed: Stamp::from_u64(input.try_get_u64_le()?),
                    stable: Stamp::from_u64(input.try_get_u64_le()?),
                },
            },
            KIND_SNAPSHOT => {
                let id = SnapshotId::from_bytes(get_id(input)?);
                Self::Snapshot {
                    slot,
                    snapshot: Snapshot { id, cut: Stamp::from_u64(input.try_get_u64_le()?) },
                }
            }
            KIND_DELETE_SNAPSHOT => Self::DeleteSnapshot { slot, id: SnapshotId::from_bytes(get_id(input)?) },
            KIND_RESET => Self::Reset { slot, next: Slot(input.try_get_u32_le()?) },
            KIND_UNTIE => Self::Untie { slot },
            unknown => return Err(RecordError::Kind(unknown)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        let (crcs, tags) = ([BlockCrc(5)], [BlockTag([6; 16])]);
        let slot = Slot(1);
        let plain = WriteRecord {
            origin: Origin::Live,
            slot,
            start: 2,
            stamp: Stamp::from_u64(3),
            physical: 4,
            crcs: &crcs,
            tags: &[],
        };
        let mut bytes = Vec::new();
        plain.encode(&mut bytes);
        let numbers = [2u64, 3, 4].map(u64::to_le_bytes).concat();
        let rest = [&[1, 0, 0, 0][..], &numbers, &[1, 0, 5, 0, 0, 0]].concat();
        assert_eq!(bytes, [&[1], &rest[..]].concat());
        bytes.clear();
        WriteRecord { tags: &tags, ..plain }.encode(&mut bytes);
        assert_eq!(bytes, [&[0x81], &rest[..], &[6; 16]].concat());
        // A flag on a record that has none is no record.
        assert_eq!(Record::decode(&mut &[0x84, 0, 0, 0, 0][..]), Err(RecordError::Kind(0x84)));
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let slot = any::<u32>().prop_map(Slot);
        let origin = prop::sample::select(vec![Origin::Live, Origin::Placed, Origin::Repaired]);
        prop_oneof![
            (
                origin,
                slot.clone(),
                any::<u64>(),
                any::<u64>(),
                any::<u64>(),
                prop::collection::vec(any::<u32>(), 1..=256),
                any::<bool>()
            )
                .prop_map(|(origin, slot, start, stamp, physical, crcs, tagged)| Record::Write {
                    origin,
                    slot,
                    start,
                    stamp: Stamp::from_u64(stamp),
                    physical,
                    tags: crcs
                        .iter()
                        .filter(|_| tagged)
                        .map(|crc| BlockTag([crc.to_le_bytes()[0]; 16]))
                        .collect(),
                    crcs: crcs.into_iter().map(BlockCrc).collect(),
                }),
            (slot.clone(), any::<u64>(), any::<u32>(), any::<u64>(), any::<bool>()).prop_map(
                |(slot, start, count, stamp, placed)| {
                    let (range, stamp) = (BlockRange::new(start, count), Stamp::from_u64(stamp));
                    match placed {
                        false => Record::Discard { slot, range, stamp },
                        true => Record::PlaceTombstones { slot, range, stamp },
                    }
                }
            ),
            (slot.clone(), any::<[u8; 16]>(), any::<u64>(), any::<u32>(), any::<u64>(), any::<bool>())
                .prop_map(|(slot, id, blocks, parent, cut, tagged)| Record::Create {
                    slot,
                    volume: VolumeId::from_bytes(id),
                    blocks,
                    tie: (parent < slot.0).then(|| Tie { parent: Slot(parent), cut: Stamp::from_u64(cut) }),
                    tagged,
                }),
            slot.clone().prop_map(|slot| Record::Delete { slot }),
            slot.clone().prop_map(|slot| Record::Untie { slot }),
            (slot.clone(), any::<u64>()).prop_map(|(slot, blocks)| Record::Resize { slot, blocks }),
            (slot.clone(), 0u32..1 << 24, any::<u64>(), any::<u64>()).prop_map(
                |(slot, generation, epoch, session)| Record::Promise {
                    slot,
                    generation: Generation::new(generation).unwrap(),
                    epoch: Epoch(epoch),
                    session,
                }
            ),
            (slot.clone(), any::<[u8; 16]>(), any::<u64>()).prop_map(|(slot, id, cut)| Record::Snapshot {
                slot,
                snapshot: Snapshot { id: SnapshotId::from_bytes(id), cut: Stamp::from_u64(cut) },
            }),
            (slot.clone(), any::<u32>()).prop_map(|(slot, next)| Record::Reset { slot, next: Slot(next) }),
            (slot.clone(), any::<[u8; 16]>())
                .prop_map(|(slot, id)| Record::DeleteSnapshot { slot, id: SnapshotId::from_bytes(id) }),
            (slot, any::<u64>(), any::<u64>()).prop_map(|(slot, committed, stable)| Record::Progress {
                slot,
                progress: VolumeProgress {
                    committed: Stamp::from_u64(committed),
                    stable: Stamp::from_u64(stable),
                },
            }),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(records in prop::collection::vec(any_record(), 0..8)) {
            let mut bytes = Vec::new();
            for record in &records {
                let before = bytes.len();
                record.encode(&mut bytes);
                let length = bytes.len() - before;
                match record {
                    Record::Write { origin, slot, start, stamp, physical, crcs, tags } => {
                        let (origin, slot, start) = (*origin, *slot, *start);
                        let (stamp, physical) = (*stamp, *physical);
                        let record = WriteRecord { origin, slot, start, stamp, physical, crcs, tags };
                        prop_assert_eq!(length, record.bytes());
                    }
                    _ => prop_assert!(length <= OTHER_RECORD_BYTES_MAX),
                }
            }
            let mut input = &bytes[..];
            for record in &records {
                let decoded = Record::decode(&mut input);
                prop_assert_eq!(decoded.as_ref(), Ok(record));
            }
            prop_assert!(input.is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut input = &bytes[..];
            while !input.is_empty() && Record::decode(&mut input).is_ok() {}
        }
    }
}
