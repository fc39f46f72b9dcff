//! Reading the fixed part of a body, field by field.

use crate::decode::DecodeError;
use crate::frame::{
    DETAIL_BYTES_MAX, DIVERGED_MAX, Extent, PoolReport, Progress, PullReport, PullState, SnapshotEntry,
    TailEntry, VOLUMES_MAX, VolumeReport,
};
use crate::kind::{BLOCKS_MAX, CRC, EXTENT, Kind, RANGE, SNAPSHOT_ENTRY, TAG, TAIL_ENTRY, VOLUME_REPORT};
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::stamp::SEQUENCE_MAX;
use trivet_model::{BlockCrc, BlockRange, BlockTag, Generation, PoolId, SnapshotId, Stamp, VolumeId};

/// What is left to read of a fixed part.
pub(crate) struct Fields<'a> {
    pub(crate) kind: Kind,
    pub(crate) rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn wrong(&self, field: &'static str) -> DecodeError {
        DecodeError::Field { kind: self.kind, field }
    }

    pub(crate) fn slice(&mut self, bytes: usize) -> Result<&'a [u8], DecodeError> {
        let (slice, rest) = self.rest.split_at_checked(bytes).ok_or_else(|| self.wrong("length"))?;
        self.rest = rest;
        Ok(slice)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or_else(|| self.wrong("length"))?;
        self.rest = rest;
        Ok(*array)
    }

    pub(crate) fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(self.wrong(field)),
        }
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn volume(&mut self) -> Result<VolumeId, DecodeError> {
        self.array().map(VolumeId::from_bytes)
    }

    pub(crate) fn stamp(&mut self) -> Result<Stamp, DecodeError> {
        self.u64().map(Stamp::from_u64)
    }

    /// The first of `count` consecutive stamps of one generation.
    pub(crate) fn stamps(&mut self, count: u32) -> Result<Stamp, DecodeError> {
        let first = self.stamp()?;
        if first.sequence() + u64::from(count) > SEQUENCE_MAX {
            return Err(self.wrong("stamp"));
        }
        Ok(first)
    }

    pub(crate) fn range(&mut self, count_max: u32) -> Result<BlockRange, DecodeError> {
        let range = BlockRange::new(self.u64()?, self.u32()?);
        if range.count > count_max || !range.fits(u64::MAX) {
            return Err(self.wrong("range"));
        }
        Ok(range)
    }

    pub(crate) fn progress(&mut self) -> Result<Progress, DecodeError> {
        Ok(Progress { committed: self.stamp()?, stable: self.stamp()? })
    }

    pub(crate) fn snapshot(&mut self) -> Result<SnapshotEntry, DecodeError> {
        Ok(SnapshotEntry { id: SnapshotId::from_bytes(self.array()?), cut: self.stamp()? })
    }

    /// Their cuts rise.
    pub(crate) fn snapshots(&mut self) -> Result<Vec<SnapshotEntry>, DecodeError> {
        let count = self.entries(SNAPSHOT_ENTRY)?;
        let snapshots = (0..count).map(|_| self.snapshot()).collect::<Result<Vec<_>, _>>()?;
        if !snapshots.is_sorted_by(|a, b| a.cut < b.cut) {
            return Err(self.wrong("snapshots"));
        }
        Ok(snapshots)
    }

    /// More may follow.
    pub(crate) fn next_crcs(&mut self, blocks: usize) -> Result<Vec<BlockCrc>, DecodeError> {
        if self.rest.len() < blocks * CRC {
            return Err(self.wrong("checksums"));
        }
        (0..blocks).map(|_| self.u32().map(BlockCrc)).collect()
    }

    pub(crate) fn tags(&mut self, blocks: usize) -> Result<Vec<BlockTag>, DecodeError> {
        if self.rest.len() < blocks * TAG {
            return Err(self.wrong("tags"));
        }
        (0..blocks).map(|_| self.array().map(BlockTag)).collect()
    }

    /// How many entries of `bytes` each are left.
    pub(crate) fn entries(&self, bytes: usize) -> Result<usize, DecodeError> {
        if !self.rest.len().is_multiple_of(bytes) {
            return Err(self.wrong("length"));
        }
        Ok(self.rest.len() / bytes)
    }

    pub(crate) fn extents(&mut self) -> Result<Vec<Extent>, DecodeError> {
        (0..self.entries(EXTENT)?)
            .map(|_| {
                let extent = Extent { count: self.u32()?, allocated: self.flag("allocated")? };
                if extent.count == 0 { Err(self.wrong("count")) } else { Ok(extent) }
            })
            .collect()
    }

    pub(crate) fn tail(&mut self) -> Result<Vec<TailEntry>, DecodeError> {
        (0..self.entries(TAIL_ENTRY)?).map(|_| self.tail_entry()).collect()
    }

    fn tail_entry(&mut self) -> Result<TailEntry, DecodeError> {
        let range = self.range(u32::MAX)?;
        Ok(TailEntry { range, stamp: self.stamps(range.count)?, discard: self.flag("discard")? })
    }

    pub(crate) fn text(&mut self, bytes: usize, field: &'static str) -> Result<String, DecodeError> {
        let bytes = self.slice(bytes)?;
        str::from_utf8(bytes).map(str::to_owned).or(Err(self.wrong(field)))
    }

    pub(crate) fn pool_report(&mut self) -> Result<PoolReport, DecodeError> {
        let pool = PoolId::from_bytes(self.array()?);
        let (blocks_total, blocks_used) = (self.u64()?, self.u64()?);
        let (blocks_kept, checksum_errors) = (self.u64()?, self.u64()?);
        let failed_bytes = usize::from(self.u16()?);
        if failed_bytes > DETAIL_BYTES_MAX {
            return Err(self.wrong("failed"));
        }
        let failed = self.text(failed_bytes, "failed")?;
        let count = self.entries(VOLUME_REPORT)?;
        if count > VOLUMES_MAX {
            return Err(self.wrong("volumes"));
        }
        let volumes = (0..count).map(|_| self.volume_report()).collect::<Result<_, _>>()?;
        Ok(PoolReport { pool, blocks_total, blocks_used, blocks_kept, checksum_errors, failed, volumes })
    }

    pub(crate) fn volume_report(&mut self) -> Result<VolumeReport, DecodeError> {
        Ok(VolumeReport {
            volume: self.volume()?,
            blocks: self.u64()?,
            blocks_used: self.u64()?,
            generation: Generation::new(self.u32()?).ok_or_else(|| self.wrong("generation"))?,
            last: self.stamp()?,
            tied: self.flag("tied")?,
        })
    }

    /// Runs of versions in the order of blocks, none twice, within `IO_BLOCKS_MAX` blocks; their
    /// number comes first. How many of the blocks are not discarded is told with them.
    pub(crate) fn versions(&mut self) -> Result<(Vec<TailEntry>, usize), DecodeError> {
        let count = usize::from(self.u16()?);
        if count > BLOCKS_MAX {
            return Err(self.wrong("versions"));
        }
        let (mut blocks, mut first, mut end) = (0, 0, 0);
        let mut versions = Vec::with_capacity(count);
        for _ in 0..count {
            let entry = self.tail_entry()?;
            if versions.is_empty() {
                first = entry.range.start;
            } else if entry.range.start < end {
                return Err(self.wrong("versions"));
            }
            end = entry.range.end();
            if end - first > BLOCKS_MAX as u64 {
                return Err(self.wrong("versions"));
            }
            blocks += if entry.discard { 0 } else { entry.range.count as usize };
            versions.push(entry);
        }
        Ok((versions, blocks))
    }

    /// The rest, as ranges in the order of blocks, none twice.
    pub(crate) fn failed(&mut self) -> Result<Vec<BlockRange>, DecodeError> {
        let mut ranges: Vec<BlockRange> = Vec::with_capacity(self.entries(RANGE)?);
        for _ in 0..self.entries(RANGE)? {
            let range = self.range(IO_BLOCKS_MAX)?;
            if ranges.last().is_some_and(|last| range.start < last.end()) {
                return Err(self.wrong("failed"));
            }
            ranges.push(range);
        }
        Ok(ranges)
    }

    /// The rest, as a source's address.
    pub(crate) fn address(&mut self) -> Result<String, DecodeError> {
        self.text(self.rest.len(), "address")
    }

    pub(crate) fn pull_report(&mut self) -> Result<PullReport, DecodeError> {
        let [state] = self.array()?;
        let state = PullState::from_number(state).ok_or_else(|| self.wrong("state"))?;
        let (position, copied_blocks) = (self.u64()?, self.u64()?);
        let detail_bytes = usize::from(self.u16()?);
        if detail_bytes > DETAIL_BYTES_MAX {
            return Err(self.wrong("detail"));
        }
        let detail = self.text(detail_bytes, "detail")?;
        let count = self.entries(RANGE)?;
        if count > DIVERGED_MAX {
            return Err(self.wrong("diverged"));
        }
        let diverged = (0..count).map(|_| self.range(u32::MAX)).collect::<Result<_, _>>()?;
        Ok(PullReport { state, position, copied_blocks, diverged, detail })
    }
}
