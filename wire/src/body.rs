//! The fixed part of each message's body: everything that is not a block's contents.
//!
//! Decoding upholds what the receiver may then rely on without looking again: counts are within
//! their caps, ranges are not empty and do not wrap, the stamps of a range stay within one
//! generation, and block data has as many checksums as blocks.

use crate::decode::DecodeError;
use crate::frame::{
    BlockData, DETAIL_BYTES_MAX, DISCARD_BLOCKS_MAX, ErrorCode, Extent, FlushReply, Hello, HelloReply,
    Message, OpenReply, PoolReport, Progress, TailEntry, VOLUMES_MAX, VolumeReport,
};
use crate::header::{Flags, Header};
use crate::kind::{BLOCKS_MAX, CRC, EXTENT, Kind, TAIL_ENTRY, VOLUME_REPORT};
use bytes::{BufMut, Bytes, BytesMut};
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::stamp::SEQUENCE_MAX;
use trivet_model::{BLOCK_SIZE, BlockCrc, BlockRange, BootId, Generation, PoolId, Stamp, VolumeId};

/// How long the fixed part of a message will be.
pub(crate) fn length(message: &Message) -> usize {
    let least = *message.kind().fixed_bytes().start();
    match message {
        Message::Write { data, .. } => least + data.crcs.len().saturating_sub(1) * CRC,
        Message::ReadReply { present, data } => present.len() + data.crcs.len() * CRC,
        Message::AllocationReply { extents } => extents.len() * EXTENT,
        Message::TailReply { entries, .. } => entries.len() * TAIL_ENTRY,
        Message::PoolReport(report) => {
            least + detail(&report.failed).len() + report.volumes.len() * VOLUME_REPORT
        }
        Message::Error { detail: text, .. } => least + detail(text).len(),
        _ => least,
    }
}

/// As much of a text for people as the wire takes.
fn detail(text: &str) -> &str {
    &text[..text.floor_char_boundary(DETAIL_BYTES_MAX)]
}

pub(crate) fn encode(message: &Message, out: &mut BytesMut) {
    match message {
        Message::Hello(hello) => {
            out.put_u16_le(hello.version_min);
            out.put_u16_le(hello.version_max);
        }
        Message::HelloReply(reply) => {
            out.put_u16_le(reply.version);
            out.put_slice(reply.pool.as_bytes());
        }
        Message::Open { volume, writable: _, session } => {
            out.put_slice(volume.as_bytes());
            out.put_u64_le(*session);
        }
        Message::OpenReply(reply) => encode_open_reply(reply, out),
        Message::Write { start, stamp, progress, force_unit_access: _, data } => {
            assert!((1..=BLOCKS_MAX).contains(&data.blocks()), "a write of {} blocks", data.blocks());
            out.put_u64_le(*start);
            out.put_u64_le(stamp.as_u64());
            encode_progress(progress, out);
            encode_crcs(&data.crcs, out);
        }
        Message::Discard { range, stamp, progress, force_unit_access: _ } => {
            encode_range(*range, out);
            out.put_u64_le(stamp.as_u64());
            encode_progress(progress, out);
        }
        Message::Flush { progress } | Message::Close { progress } | Message::Progress(progress) => {
            encode_progress(progress, out);
        }
        Message::Done | Message::PoolStatus => {}
        Message::FlushReply(reply) => out.put_u64_le(reply.stable.as_u64()),
        Message::Read { range } | Message::Allocation { range } => encode_range(*range, out),
        Message::ReadReply { present, data } => {
            assert_eq!(ones(present), data.blocks(), "a bitmap that does not match the blocks");
            out.put_slice(present);
            encode_crcs(&data.crcs, out);
        }
        Message::AllocationReply { extents } => {
            for extent in extents {
                out.put_u32_le(extent.count);
                out.put_u8(u8::from(extent.allocated));
            }
        }
        Message::Tail { since, skip } => {
            out.put_u64_le(since.as_u64());
            out.put_u32_le(*skip);
        }
        Message::TailReply { entries, more: _ } => {
            for entry in entries {
                encode_range(entry.range, out);
                out.put_u64_le(entry.stamp.as_u64());
                out.put_u8(u8::from(entry.discard));
            }
        }
        Message::CreateVolume { volume, blocks } | Message::ResizeVolume { volume, blocks } => {
            out.put_slice(volume.as_bytes());
            out.put_u64_le(*blocks);
        }
        Message::DeleteVolume { volume } => out.put_slice(volume.as_bytes()),
        Message::PoolReport(report) => encode_pool_report(report, out),
        Message::Error { code, detail: text } => {
            out.put_u16_le(code.number());
            out.put_slice(detail(text).as_bytes());
        }
    }
}

fn encode_open_reply(reply: &OpenReply, out: &mut BytesMut) {
    out.put_u64_le(reply.blocks);
    out.put_u64_le(reply.last.as_u64());
    out.put_u64_le(reply.intact.as_u64());
    encode_progress(&reply.progress, out);
    out.put_slice(reply.boot.as_bytes());
}

fn encode_pool_report(report: &PoolReport, out: &mut BytesMut) {
    let failed = detail(&report.failed);
    out.put_slice(report.pool.as_bytes());
    out.put_u64_le(report.blocks_total);
    out.put_u64_le(report.blocks_used);
    out.put_u64_le(report.checksum_errors);
    out.put_u16_le(u16::try_from(failed.len()).expect("a detail is capped at 1024 bytes"));
    out.put_slice(failed.as_bytes());
    for volume in &report.volumes {
        out.put_slice(volume.volume.as_bytes());
        out.put_u64_le(volume.blocks);
        out.put_u64_le(volume.blocks_used);
        out.put_u32_le(volume.generation.get());
        out.put_u64_le(volume.last.as_u64());
    }
}

fn encode_progress(progress: &Progress, out: &mut BytesMut) {
    out.put_u64_le(progress.committed.as_u64());
    out.put_u64_le(progress.stable.as_u64());
}

fn encode_range(range: BlockRange, out: &mut BytesMut) {
    out.put_u64_le(range.start);
    out.put_u32_le(range.count);
}

fn encode_crcs(crcs: &[BlockCrc], out: &mut BytesMut) {
    for crc in crcs {
        out.put_u32_le(crc.0);
    }
}

/// Reads the fixed part. Block data comes back with its checksums and no segments yet.
pub(crate) fn decode(header: &Header, fixed: &[u8]) -> Result<Message, DecodeError> {
    let mut fields = Fields { kind: header.kind, rest: fixed };
    let message = match header.kind {
        Kind::Hello => Message::Hello(Hello { version_min: fields.u16()?, version_max: fields.u16()? }),
        Kind::HelloReply => Message::HelloReply(HelloReply {
            version: fields.u16()?,
            pool: PoolId::from_bytes(fields.array()?),
        }),
        Kind::Error => Message::Error {
            code: ErrorCode::from_number(fields.u16()?).ok_or_else(|| fields.wrong("code"))?,
            detail: fields.text(fields.rest.len(), "detail")?,
        },
        Kind::Done => Message::Done,
        Kind::Open => Message::Open {
            volume: fields.volume()?,
            writable: header.flags.contains(Flags::WRITABLE),
            session: fields.u64()?,
        },
        Kind::OpenReply => Message::OpenReply(OpenReply {
            blocks: fields.u64()?,
            last: fields.stamp()?,
            intact: fields.stamp()?,
            progress: fields.progress()?,
            boot: BootId::from_bytes(fields.array()?),
        }),
        Kind::Close => Message::Close { progress: fields.progress()? },
        Kind::Progress => Message::Progress(fields.progress()?),
        Kind::Write => decode_write(header, &mut fields)?,
        Kind::Discard => {
            let range = fields.range(DISCARD_BLOCKS_MAX)?;
            Message::Discard {
                range,
                stamp: fields.stamps(range.count)?,
                progress: fields.progress()?,
                force_unit_access: header.flags.contains(Flags::FORCE_UNIT_ACCESS),
            }
        }
        Kind::Flush => Message::Flush { progress: fields.progress()? },
        Kind::FlushReply => Message::FlushReply(FlushReply { stable: fields.stamp()? }),
        Kind::Read => Message::Read { range: fields.range(IO_BLOCKS_MAX)? },
        Kind::ReadReply => decode_read_reply(header, &mut fields)?,
        Kind::Allocation => Message::Allocation { range: fields.range(u32::MAX)? },
        Kind::AllocationReply => Message::AllocationReply { extents: fields.extents()? },
        Kind::Tail => Message::Tail { since: fields.stamp()?, skip: fields.u32()? },
        Kind::TailReply => {
            Message::TailReply { entries: fields.tail()?, more: header.flags.contains(Flags::MORE) }
        }
        Kind::CreateVolume => Message::CreateVolume { volume: fields.volume()?, blocks: fields.u64()? },
        Kind::DeleteVolume => Message::DeleteVolume { volume: fields.volume()? },
        Kind::ResizeVolume => Message::ResizeVolume { volume: fields.volume()?, blocks: fields.u64()? },
        Kind::PoolStatus => Message::PoolStatus,
        Kind::PoolReport => Message::PoolReport(fields.pool_report()?),
    };
    if fields.rest.is_empty() { Ok(message) } else { Err(fields.wrong("length")) }
}

fn decode_write(header: &Header, fields: &mut Fields<'_>) -> Result<Message, DecodeError> {
    let start = fields.u64()?;
    let blocks = header.payload_bytes / BLOCK_SIZE;
    let count = u32::try_from(blocks).or(Err(fields.wrong("payload")))?;
    if !BlockRange::new(start, count).fits(u64::MAX) {
        return Err(fields.wrong("range"));
    }
    Ok(Message::Write {
        start,
        stamp: fields.stamps(count)?,
        progress: fields.progress()?,
        force_unit_access: header.flags.contains(Flags::FORCE_UNIT_ACCESS),
        data: BlockData { crcs: fields.crcs(blocks)?, segments: Vec::new() },
    })
}

fn decode_read_reply(header: &Header, fields: &mut Fields<'_>) -> Result<Message, DecodeError> {
    let blocks = header.payload_bytes / BLOCK_SIZE;
    let bitmap = fields.rest.len().checked_sub(blocks * CRC).ok_or_else(|| fields.wrong("checksums"))?;
    let present = fields.slice(bitmap)?;
    if bitmap > BLOCKS_MAX.div_ceil(8) || ones(present) != blocks {
        return Err(fields.wrong("present"));
    }
    Ok(Message::ReadReply {
        present: Bytes::copy_from_slice(present),
        data: BlockData { crcs: fields.crcs(blocks)?, segments: Vec::new() },
    })
}

fn ones(bitmap: &[u8]) -> usize {
    bitmap.iter().map(|byte| byte.count_ones() as usize).sum()
}

/// What is left to read of a fixed part.
struct Fields<'a> {
    kind: Kind,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn wrong(&self, field: &'static str) -> DecodeError {
        DecodeError::Field { kind: self.kind, field }
    }

    fn slice(&mut self, bytes: usize) -> Result<&'a [u8], DecodeError> {
        let (slice, rest) = self.rest.split_at_checked(bytes).ok_or_else(|| self.wrong("length"))?;
        self.rest = rest;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or_else(|| self.wrong("length"))?;
        self.rest = rest;
        Ok(*array)
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(self.wrong(field)),
        }
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    fn volume(&mut self) -> Result<VolumeId, DecodeError> {
        self.array().map(VolumeId::from_bytes)
    }

    fn stamp(&mut self) -> Result<Stamp, DecodeError> {
        self.u64().map(Stamp::from_u64)
    }

    /// The first of `count` consecutive stamps of one generation.
    fn stamps(&mut self, count: u32) -> Result<Stamp, DecodeError> {
        let first = self.stamp()?;
        if first.sequence() + u64::from(count) > SEQUENCE_MAX {
            return Err(self.wrong("stamp"));
        }
        Ok(first)
    }

    fn range(&mut self, count_max: u32) -> Result<BlockRange, DecodeError> {
        let range = BlockRange::new(self.u64()?, self.u32()?);
        if range.count > count_max || !range.fits(u64::MAX) {
            return Err(self.wrong("range"));
        }
        Ok(range)
    }

    fn progress(&mut self) -> Result<Progress, DecodeError> {
        Ok(Progress { committed: self.stamp()?, stable: self.stamp()? })
    }

    fn crcs(&mut self, blocks: usize) -> Result<Vec<BlockCrc>, DecodeError> {
        if self.rest.len() != blocks * CRC {
            return Err(self.wrong("checksums"));
        }
        (0..blocks).map(|_| self.u32().map(BlockCrc)).collect()
    }

    /// How many entries of `bytes` each are left.
    fn entries(&self, bytes: usize) -> Result<usize, DecodeError> {
        if !self.rest.len().is_multiple_of(bytes) {
            return Err(self.wrong("length"));
        }
        Ok(self.rest.len() / bytes)
    }

    fn extents(&mut self) -> Result<Vec<Extent>, DecodeError> {
        (0..self.entries(EXTENT)?)
            .map(|_| {
                let extent = Extent { count: self.u32()?, allocated: self.flag("allocated")? };
                if extent.count == 0 { Err(self.wrong("count")) } else { Ok(extent) }
            })
            .collect()
    }

    fn tail(&mut self) -> Result<Vec<TailEntry>, DecodeError> {
        (0..self.entries(TAIL_ENTRY)?)
            .map(|_| {
                let range = self.range(u32::MAX)?;
                Ok(TailEntry { range, stamp: self.stamps(range.count)?, discard: self.flag("discard")? })
            })
            .collect()
    }

    fn text(&mut self, bytes: usize, field: &'static str) -> Result<String, DecodeError> {
        let bytes = self.slice(bytes)?;
        str::from_utf8(bytes).map(str::to_owned).or(Err(self.wrong(field)))
    }

    fn pool_report(&mut self) -> Result<PoolReport, DecodeError> {
        let pool = PoolId::from_bytes(self.array()?);
        let (blocks_total, blocks_used, checksum_errors) = (self.u64()?, self.u64()?, self.u64()?);
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
        Ok(PoolReport { pool, blocks_total, blocks_used, checksum_errors, failed, volumes })
    }

    fn volume_report(&mut self) -> Result<VolumeReport, DecodeError> {
        Ok(VolumeReport {
            volume: self.volume()?,
            blocks: self.u64()?,
            blocks_used: self.u64()?,
            generation: Generation::new(self.u32()?).ok_or_else(|| self.wrong("generation"))?,
            last: self.stamp()?,
        })
    }
}
