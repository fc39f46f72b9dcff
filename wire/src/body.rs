//! The fixed part of each message's body: everything that is not a block's contents.
//!
//! Decoding upholds what the receiver may then rely on without looking again: counts are within
//! their caps, ranges are not empty and do not wrap, the stamps of a range stay within one
//! generation, and block data has as many checksums as blocks.

use crate::blocks::BlockData;
use crate::decode::DecodeError;
use crate::error_code::ErrorCode;
use crate::fields::Fields;
use crate::frame::{
    DETAIL_BYTES_MAX, DISCARD_BLOCKS_MAX, FlushReply, Hello, HelloReply, Message, OpenReply, PoolReport,
    Progress, PullReport, SNAPSHOTS_MAX, SnapshotEntry, TailEntry,
};
use crate::header::{Flags, Header};
use crate::kind::{
    BLOCKS_MAX, CRC, EXTENT, Kind, RANGE, SEAL, SNAPSHOT_ENTRY, TAG, TAIL_ENTRY, VOLUME_REPORT,
};
use bytes::{BufMut, Bytes, BytesMut};
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{BLOCK_SIZE, BlockCrc, BlockRange, BlockTag, BootId, PoolId, SnapshotId, VolumeId};

/// In place of the block to go on from: the volume's end.
const NO_NEXT: u64 = u64::MAX;
/// In place of a snapshot: the volume as it is.
const NO_SNAPSHOT: SnapshotId = SnapshotId::from_bytes([0; 16]);
/// In place of a parent: the volume is no clone.
const NO_PARENT: (VolumeId, SnapshotId) = (VolumeId::from_bytes([0; 16]), NO_SNAPSHOT);

/// How long the fixed part of a message will be.
pub(crate) fn length(message: &Message) -> usize {
    let least = *message.kind().fixed_bytes().start();
    match message {
        Message::OpenReply(reply) => least + reply.snapshots.len() * SNAPSHOT_ENTRY,
        Message::Write { data, .. } => {
            least + data.crcs.len().saturating_sub(1) * CRC + data.tags.len() * TAG
        }
        Message::ReadReply { present, stamps: _, data } => {
            present.len() + data.crcs.len() * CRC + data.tags.len() * SEAL
        }
        Message::AllocationReply { extents } => extents.len() * EXTENT,
        Message::TailReply { entries, .. } => entries.len() * TAIL_ENTRY,
        Message::ChangedReply { entries, .. } => least + entries.len() * TAIL_ENTRY,
        Message::FetchReply { versions, data } => {
            least + versions.len() * TAIL_ENTRY + data.crcs.len() * CRC + data.tags.len() * TAG
        }
        Message::VerifyReply { versions, crcs, failed } => {
            least + versions.len() * TAIL_ENTRY + crcs.len() * CRC + failed.len() * RANGE
        }
        Message::Pull { address, .. } | Message::Repair { address, .. } => {
            least + address.len().saturating_sub(1)
        }
        Message::PullReport(report) => least + detail(&report.detail).len() + report.diverged.len() * RANGE,
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
            encode_tags(&data.tags, out);
        }
        Message::Discard { range, stamp, progress, force_unit_access: _ } => {
            encode_range(*range, out);
            out.put_u64_le(stamp.as_u64());
            encode_progress(progress, out);
        }
        Message::Flush { progress } | Message::Close { progress } | Message::Progress(progress) => {
            encode_progress(progress, out);
        }
        Message::Done | Message::PoolStatus | Message::Reset => {}
        Message::PullStatus { stable } => out.put_u64_le(stable.as_u64()),
        Message::FlushReply(reply) => out.put_u64_le(reply.stable.as_u64()),
        Message::Read { range }
        | Message::Allocation { range }
        | Message::Fetch { range }
        | Message::Verify { range, stamps_only: _ } => encode_range(*range, out),
        Message::ReadReply { present, stamps, data } => {
            assert_eq!(ones(present), data.blocks(), "a bitmap that does not match the blocks");
            assert_eq!(stamps.len(), data.tags.len(), "a stamp for each block with a tag");
            out.put_slice(present);
            encode_crcs(&data.crcs, out);
            encode_tags(&data.tags, out);
            stamps.iter().for_each(|stamp| out.put_u64_le(stamp.as_u64()));
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
        Message::TailReply { entries, more: _ } => encode_entries(entries, out),
        Message::Changed { since, start } => {
            out.put_u64_le(since.as_u64());
            out.put_u64_le(*start);
        }
        Message::ChangedReply { entries, next } => {
            assert_ne!(*next, Some(NO_NEXT), "no volume has a block of this number");
            out.put_u64_le(next.unwrap_or(NO_NEXT));
            encode_entries(entries, out);
        }
        Message::FetchReply { versions, data } => {
            encode_versions(versions, &data.crcs, out);
            encode_tags(&data.tags, out);
        }
        Message::VerifyReply { versions, crcs, failed } => {
            encode_versions(versions, crcs, out);
            for range in failed {
                encode_range(*range, out);
            }
        }
        Message::Pull { source, boot, address, since, floor, stable } => {
            out.put_slice(source.as_bytes());
            out.put_slice(boot.as_bytes());
            out.put_u64_le(since.as_u64());
            out.put_u64_le(floor.as_u64());
            out.put_u64_le(stable.as_u64());
            out.put_slice(address.as_bytes());
        }
        Message::PullReport(report) => encode_pull_report(report, out),
        Message::Repair { range, source, address } => {
            encode_range(*range, out);
            out.put_slice(source.as_bytes());
            out.put_slice(address.as_bytes());
        }
        Message::CreateSnapshot { id, cut } => encode_snapshot(SnapshotEntry { id: *id, cut: *cut }, out),
        Message::DeleteSnapshot { id } => out.put_slice(id.as_bytes()),
        Message::View { at } => out.put_slice(at.unwrap_or(NO_SNAPSHOT).as_bytes()),
        Message::CreateVolume { volume, blocks, parent, tagged: _ } => {
            let (of, snapshot) = parent.unwrap_or(NO_PARENT);
            out.put_slice(volume.as_bytes());
            out.put_u64_le(*blocks);
            out.put_slice(of.as_bytes());
            out.put_slice(snapshot.as_bytes());
        }
        Message::ResizeVolume { volume, blocks } => {
            out.put_slice(volume.as_bytes());
            out.put_u64_le(*blocks);
        }
        Message::DeleteVolume { volume } | Message::Flatten { volume } => out.put_slice(volume.as_bytes()),
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
    assert!(reply.snapshots.len() <= SNAPSHOTS_MAX, "{} snapshots", reply.snapshots.len());
    reply.snapshots.iter().for_each(|snapshot| encode_snapshot(*snapshot, out));
}

fn encode_snapshot(snapshot: SnapshotEntry, out: &mut BytesMut) {
    out.put_slice(snapshot.id.as_bytes());
    out.put_u64_le(snapshot.cut.as_u64());
}

fn encode_pool_report(report: &PoolReport, out: &mut BytesMut) {
    let failed = detail(&report.failed);
    out.put_slice(report.pool.as_bytes());
    out.put_u64_le(report.blocks_total);
    out.put_u64_le(report.blocks_used);
    out.put_u64_le(report.blocks_kept);
    out.put_u64_le(report.checksum_errors);
    out.put_u16_le(u16::try_from(failed.len()).expect("a detail is capped at 1024 bytes"));
    out.put_slice(failed.as_bytes());
    for volume in &report.volumes {
        out.put_slice(volume.volume.as_bytes());
        out.put_u64_le(volume.blocks);
        out.put_u64_le(volume.blocks_used);
        out.put_u32_le(volume.generation.get());
        out.put_u64_le(volume.last.as_u64());
        out.put_u8(u8::from(volume.tied));
    }
}

fn encode_pull_report(report: &PullReport, out: &mut BytesMut) {
    let text = detail(&report.detail);
    out.put_u8(report.state.number());
    out.put_u64_le(report.position);
    out.put_u64_le(report.copied_blocks);
    out.put_u16_le(u16::try_from(text.len()).expect("a detail is capped at 1024 bytes"));
    out.put_slice(text.as_bytes());
    for range in &report.diverged {
        encode_range(*range, out);
    }
}

fn encode_entries(entries: &[TailEntry], out: &mut BytesMut) {
    for entry in entries {
        encode_range(entry.range, out);
        out.put_u64_le(entry.stamp.as_u64());
        out.put_u8(u8::from(entry.discard));
    }
}

fn encode_versions(versions: &[TailEntry], crcs: &[BlockCrc], out: &mut BytesMut) {
    let blocks: usize = versions.iter().filter(|v| !v.discard).map(|v| v.range.count as usize).sum();
    assert_eq!(blocks, crcs.len(), "a checksum for each block that is not discarded");
    out.put_u16_le(u16::try_from(versions.len()).expect("at most a version a block"));
    encode_entries(versions, out);
    encode_crcs(crcs, out);
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

fn encode_tags(tags: &[BlockTag], out: &mut BytesMut) {
    for tag in tags {
        out.put_slice(&tag.0);
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
            snapshots: fields.snapshots()?,
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
        Kind::Changed => Message::Changed { since: fields.stamp()?, start: fields.u64()? },
        Kind::ChangedReply => {
            let next = fields.u64()?;
            Message::ChangedReply { entries: fields.tail()?, next: (next != NO_NEXT).then_some(next) }
        }
        Kind::Fetch => Message::Fetch { range: fields.range(IO_BLOCKS_MAX)? },
        Kind::FetchReply => decode_fetch_reply(header, &mut fields)?,
        Kind::Verify => Message::Verify {
            range: fields.range(IO_BLOCKS_MAX)?,
            stamps_only: header.flags.contains(Flags::STAMPS_ONLY),
        },
        Kind::VerifyReply => {
            let (versions, blocks) = fields.versions()?;
            Message::VerifyReply { versions, crcs: fields.next_crcs(blocks)?, failed: fields.failed()? }
        }
        Kind::Pull => Message::Pull {
            source: PoolId::from_bytes(fields.array()?),
            boot: BootId::from_bytes(fields.array()?),
            since: fields.stamp()?,
            floor: fields.stamp()?,
            stable: fields.stamp()?,
            address: fields.address()?,
        },
        Kind::PullStatus => Message::PullStatus { stable: fields.stamp()? },
        Kind::PullReport => Message::PullReport(fields.pull_report()?),
        Kind::Repair => Message::Repair {
            range: fields.range(IO_BLOCKS_MAX)?,
            source: PoolId::from_bytes(fields.array()?),
            address: fields.address()?,
        },
        Kind::CreateSnapshot => {
            let SnapshotEntry { id, cut } = fields.snapshot()?;
            Message::CreateSnapshot { id, cut }
        }
        Kind::DeleteSnapshot => Message::DeleteSnapshot { id: SnapshotId::from_bytes(fields.array()?) },
        Kind::Reset => Message::Reset,
        Kind::View => {
            let at = SnapshotId::from_bytes(fields.array()?);
            Message::View { at: (at != NO_SNAPSHOT).then_some(at) }
        }
        Kind::CreateVolume => {
            let (volume, blocks) = (fields.volume()?, fields.u64()?);
            let parent = (fields.volume()?, SnapshotId::from_bytes(fields.array()?));
            let parent = (parent != NO_PARENT).then_some(parent);
            Message::CreateVolume { volume, blocks, parent, tagged: header.flags.contains(Flags::TAGGED) }
        }
        Kind::DeleteVolume => Message::DeleteVolume { volume: fields.volume()? },
        Kind::Flatten => Message::Flatten { volume: fields.volume()? },
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
        data: decode_data(header, fields, blocks)?,
    })
}

/// What goes with blocks, to the end: their segments follow later.
fn decode_data(header: &Header, fields: &mut Fields<'_>, blocks: usize) -> Result<BlockData, DecodeError> {
    let tagged = header.flags.contains(Flags::TAGGED);
    let crcs = fields.next_crcs(blocks)?;
    // Of no block there is no tag to be told of: one encoding for everything.
    if tagged && blocks == 0 {
        return Err(fields.wrong("tags"));
    }
    let tags = if tagged { fields.tags(blocks)? } else { Vec::new() };
    Ok(BlockData { crcs, tags, segments: Vec::new() })
}

fn decode_read_reply(header: &Header, fields: &mut Fields<'_>) -> Result<Message, DecodeError> {
    let blocks = header.payload_bytes / BLOCK_SIZE;
    let tagged = header.flags.contains(Flags::TAGGED);
    let with_each = if tagged { CRC + SEAL } else { CRC };
    let bitmap =
        fields.rest.len().checked_sub(blocks * with_each).ok_or_else(|| fields.wrong("checksums"))?;
    let present = fields.slice(bitmap)?;
    if bitmap > BLOCKS_MAX.div_ceil(8) || ones(present) != blocks {
        return Err(fields.wrong("present"));
    }
    let data = decode_data(header, fields, blocks)?;
    let stamps = (0..data.tags.len()).map(|_| fields.stamp()).collect::<Result<_, _>>()?;
    Ok(Message::ReadReply { present: Bytes::copy_from_slice(present), stamps, data })
}

fn decode_fetch_reply(header: &Header, fields: &mut Fields<'_>) -> Result<Message, DecodeError> {
    let (versions, blocks) = fields.versions()?;
    if header.payload_bytes != blocks * BLOCK_SIZE {
        return Err(fields.wrong("payload"));
    }
    let data = decode_data(header, fields, blocks)?;
    Ok(Message::FetchReply { versions, data })
}

fn ones(bitmap: &[u8]) -> usize {
    bitmap.iter().map(|byte| byte.count_ones() as usize).sum()
}
