//! The store's answers as messages.

use super::PoolFacts;
use super::in_flight::Answer;
use crate::store::{
    AllocationExtent, FetchedBlocks, ReadBlocks, Reply, RequestError, TailExtent, VerifiedBlocks,
    VolumeProgress,
};
use bytes::Bytes;
use trivet_model::{BootId, PoolId, VolumeId};
use trivet_wire::frame::{EXTENTS_MAX, TAIL_ENTRIES_MAX, VOLUMES_MAX};
use trivet_wire::{
    BlockData, ErrorCode, Extent, FlushReply, Message, OpenReply, PoolReport, Progress, SnapshotEntry,
    TailEntry, VolumeReport,
};

/// The message for a success.
///
/// # Panics
/// When the store's reply is not of the kind that was asked for.
pub(super) fn success(answer: &Answer, reply: Reply) -> Message {
    match (answer, reply) {
        (Answer::Done, Reply::Done) => Message::Done,
        (Answer::Flushed, Reply::Flushed { stable }) => Message::FlushReply(FlushReply { stable }),
        (Answer::Blocks, Reply::Blocks(blocks)) => read_reply(blocks),
        (Answer::Extents, Reply::Allocation(extents)) => {
            Message::AllocationReply { extents: merged(&extents) }
        }
        (Answer::Tail { skip }, Reply::Tail(entries)) => tail_reply(&entries, *skip),
        (Answer::Changed, Reply::Changed(page)) => {
            Message::ChangedReply { entries: entries(&page.versions), next: page.next }
        }
        (Answer::Fetched, Reply::Fetched(FetchedBlocks { versions, crcs, tags, segments })) => {
            Message::FetchReply { versions: entries(&versions), data: BlockData::new(crcs, tags, segments) }
        }
        (Answer::Verified, Reply::Verified(VerifiedBlocks { versions, crcs, failed })) => {
            Message::VerifyReply { versions: entries(&versions), crcs, failed }
        }
        (answer, reply) => panic!("the store answered {reply:?} where {answer:?} was due"),
    }
}

/// The message for a failure.
pub(super) fn failure(error: &RequestError) -> Message {
    let code = match error {
        RequestError::NoSuchVolume(_) => ErrorCode::NoSuchVolume,
        RequestError::OutOfRange { .. } => ErrorCode::OutOfRange,
        RequestError::Checksum { .. } => ErrorCode::ChecksumOnMedium,
        RequestError::Medium(_) => ErrorCode::Medium,
        RequestError::NoSpace { .. } => ErrorCode::NoSpace,
        RequestError::BadSize { .. } => ErrorCode::BadSize,
        RequestError::TailTooLong { .. } => ErrorCode::TailTooLong,
        RequestError::NoSuchSnapshot(_) => ErrorCode::NoSuchSnapshot,
        RequestError::BadSnapshot { .. } => ErrorCode::BadSnapshot,
        RequestError::BadParent { .. } => ErrorCode::BadParent,
        RequestError::Source(_) => ErrorCode::Source,
        RequestError::PoolFailed(_) => ErrorCode::PoolFailed,
        RequestError::Tags { .. } => ErrorCode::Malformed,
    };
    Message::Error { code, detail: error.to_string() }
}

/// What an opener learns of the volume as it is now.
pub(super) fn opened(volume: VolumeId, boot: BootId, pool: &dyn PoolFacts) -> Message {
    let Some(known) = pool.volume(volume) else {
        return failure(&RequestError::NoSuchVolume(volume));
    };
    let VolumeProgress { committed, stable } = known.progress;
    Message::OpenReply(OpenReply {
        blocks: known.blocks,
        // Below the progress nothing is missing, whether or not it has left a trace here.
        last: known.last.max(committed),
        intact: known.intact,
        progress: Progress { committed, stable },
        boot,
        snapshots: pool
            .snapshots(volume)
            .iter()
            .map(|known| SnapshotEntry { id: known.id, cut: known.cut })
            .collect(),
    })
}

/// The state of the whole pool.
pub(super) fn pool_report(id: PoolId, pool: &dyn PoolFacts) -> Message {
    let statistics = pool.statistics();
    let volumes = pool.volumes().into_iter().take(VOLUMES_MAX).map(|volume| VolumeReport {
        volume: volume.volume,
        blocks: volume.blocks,
        blocks_used: volume.blocks_used,
        generation: volume.generation,
        last: volume.last,
        tied: volume.tied,
    });
    Message::PoolReport(PoolReport {
        pool: id,
        blocks_total: statistics.blocks_total,
        blocks_used: statistics.blocks_used,
        blocks_kept: statistics.blocks_kept,
        checksum_errors: statistics.checksum_errors,
        failed: statistics.failed.unwrap_or_default(),
        volumes: volumes.collect(),
    })
}

fn read_reply(blocks: ReadBlocks) -> Message {
    let present = match blocks.crcs.as_slice() {
        // The commonest read, without an allocation.
        [Some(_)] => Bytes::from_static(&[1]),
        crcs => bitmap(crcs.len(), crcs.iter().map(Option::is_some)),
    };
    let crcs = blocks.crcs.into_iter().flatten().collect();
    let data = BlockData::new(crcs, blocks.tags, blocks.segments);
    Message::ReadReply { present, stamps: blocks.stamps, data }
}

fn bitmap(length: usize, bits: impl Iterator<Item = bool>) -> Bytes {
    let mut bytes = vec![0; length.div_ceil(8)];
    for (index, bit) in bits.enumerate() {
        bytes[index / 8] |= u8::from(bit) << (index % 8);
    }
    Bytes::from(bytes)
}

/// As many extents as one message holds, neighbours alike made one.
fn merged(extents: &[AllocationExtent]) -> Vec<Extent> {
    let mut out: Vec<Extent> = Vec::with_capacity(extents.len().min(EXTENTS_MAX));
    for extent in extents {
        if let Some(last) = out.last_mut()
            && last.allocated == extent.allocated
        {
            last.count += extent.count;
        } else if out.len() < EXTENTS_MAX {
            out.push(Extent { count: extent.count, allocated: extent.allocated });
        } else {
            break;
        }
    }
    out
}

fn tail_reply(all: &[TailExtent], skip: u32) -> Message {
    let rest = usize::try_from(skip).ok().and_then(|skip| all.get(skip..)).unwrap_or_default();
    let page = &rest[..rest.len().min(TAIL_ENTRIES_MAX)];
    Message::TailReply { entries: entries(page), more: rest.len() > page.len() }
}

fn entries(extents: &[TailExtent]) -> Vec<TailEntry> {
    let entry =
        |extent: &TailExtent| TailEntry { range: extent.range, stamp: extent.stamp, discard: extent.discard };
    extents.iter().map(entry).collect()
}
