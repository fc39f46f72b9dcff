//! The checkpoint's header: where replay begins, and what it must know.
//!
//! Value, little-endian: version (4), boot epoch (8), boot id (16), zones in the file (8), next
//! volume slot (4), tail sequence (8), checksum of the block before the tail (4), segments: count (4)
//! and per segment epoch (8), first sequence (8); dropped blocks: count (4) and per block journal
//! sequence (8), record (2), block of the record (2); intact limits: count (4) and per volume slot
//! (4), stamp (8).

use bytes::{Buf, BufMut, TryGetError};
use trivet_model::{BootId, Stamp};

use super::record::Slot;

const VERSION: u32 = 2;
const SEGMENTS_MAX: usize = 64;
const DROPPED_MAX: usize = 1 << 20;
const LIMITS_MAX: usize = 1 << 20;

/// Part of the journal written within one boot epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    pub(crate) epoch: u64,
    pub(crate) first: u64,
}

/// A block of an unstable record whose data had not reached the medium when a crash came; replay
/// passes over it for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Dropped {
    pub(crate) sequence: u64,
    pub(crate) record: u16,
    pub(crate) block: u16,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) boot_epoch: u64,
    pub(crate) boot: BootId,
    /// Zones in use; the pool file is at least that long.
    pub(crate) zones: u64,
    pub(crate) next_slot: u32,
    /// Replay begins at this journal block.
    pub(crate) tail: u64,
    pub(crate) tail_previous_crc: u32,
    /// Rising; the first begins at or before the tail, the last is the present epoch's.
    pub(crate) segments: Vec<Segment>,
    pub(crate) dropped: Vec<Dropped>,
    /// Volumes of which writes above the stamp may have been lost with the host's power.
    pub(crate) intact_limits: Vec<(Slot, Stamp)>,
}

/// A checkpoint's header makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("checkpoint header makes no sense: {0}")]
pub struct HeaderError(&'static str);

impl From<TryGetError> for HeaderError {
    fn from(_: TryGetError) -> Self {
        Self("cut short")
    }
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32_le(VERSION);
        out.put_u64_le(self.boot_epoch);
        out.put_slice(self.boot.as_bytes());
        out.put_u64_le(self.zones);
        out.put_u32_le(self.next_slot);
        out.put_u64_le(self.tail);
        out.put_u32_le(self.tail_previous_crc);
        out.put_u32_le(u32::try_from(self.segments.len()).unwrap_or(u32::MAX));
        for segment in &self.segments {
            out.put_u64_le(segment.epoch);
            out.put_u64_le(segment.first);
        }
        out.put_u32_le(u32::try_from(self.dropped.len()).unwrap_or(u32::MAX));
        for dropped in &self.dropped {
            out.put_u64_le(dropped.sequence);
            out.put_u16_le(dropped.record);
            out.put_u16_le(dropped.block);
        }
        out.put_u32_le(u32::try_from(self.intact_limits.len()).unwrap_or(u32::MAX));
        for (slot, stamp) in &self.intact_limits {
            out.put_u32_le(slot.0);
            out.put_u64_le(stamp.as_u64());
        }
        out
    }

    pub(crate) fn decode(mut input: &[u8]) -> Result<Self, HeaderError> {
        if input.try_get_u32_le()? != VERSION {
            return Err(HeaderError("version"));
        }
        let boot_epoch = input.try_get_u64_le()?;
        let mut boot = [0; 16];
        input.try_copy_to_slice(&mut boot)?;
        let zones = input.try_get_u64_le()?;
        let next_slot = input.try_get_u32_le()?;
        let tail = input.try_get_u64_le()?;
        let tail_previous_crc = input.try_get_u32_le()?;
        let count = input.try_get_u32_le()? as usize;
        if count == 0 || count > SEGMENTS_MAX {
            return Err(HeaderError("number of segments"));
        }
        let mut segments = Vec::with_capacity(count);
        for _ in 0..count {
            segments.push(Segment { epoch: input.try_get_u64_le()?, first: input.try_get_u64_le()? });
        }
        if !segments.is_sorted_by(|a, b| a.epoch < b.epoch && a.first <= b.first) || segments[0].first > tail
        {
            return Err(HeaderError("order of segments"));
        }
        let count = input.try_get_u32_le()? as usize;
        if count > DROPPED_MAX || input.len() < count * 12 {
            return Err(HeaderError("number of dropped blocks"));
        }
        let mut dropped = Vec::with_capacity(count);
        for _ in 0..count {
            dropped.push(Dropped {
                sequence: input.try_get_u64_le()?,
                record: input.try_get_u16_le()?,
                block: input.try_get_u16_le()?,
            });
        }
        let count = input.try_get_u32_le()? as usize;
        if count > LIMITS_MAX || input.len() != count * 12 {
            return Err(HeaderError("number of intact limits"));
        }
        let mut intact_limits = Vec::with_capacity(count);
        for _ in 0..count {
            intact_limits.push((Slot(input.try_get_u32_le()?), Stamp::from_u64(input.try_get_u64_le()?)));
        }
        let boot = BootId::from_bytes(boot);
        Ok(Self {
            boot_epoch,
            boot,
            zones,
            next_slot,
            tail,
            tail_previous_crc,
            segments,
            dropped,
            intact_limits,
        })
    }

    /// Whether another opening still fits without a checkpoint.
    pub(crate) fn has_room(&self) -> bool {
        self.segments.len() < SEGMENTS_MAX / 2 && self.dropped.len() < DROPPED_MAX / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_truncation_is_refused() {
        let header = Header {
            boot_epoch: 4,
            boot: BootId::from_bytes([9; 16]),
            zones: 12,
            next_slot: 3,
            tail: 100,
            tail_previous_crc: 77,
            segments: vec![Segment { epoch: 3, first: 90 }, Segment { epoch: 4, first: 120 }],
            dropped: vec![Dropped { sequence: 110, record: 2, block: 0 }],
            intact_limits: vec![(Slot(1), Stamp::from_u64(5))],
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        for length in 0..bytes.len() {
            assert!(Header::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
    }
}
