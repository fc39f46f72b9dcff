//! Replay: what the journal holds above the checkpoint is carried out again.
//!
//! What is torn is told from what is corrupt by the stable mark that journal blocks carry:
//! - The journal ends at the first block that is not the valid successor of the one before. Were
//!   that block stable (a later block says so), it is corruption, and the pool does not open.
//! - A write above the stable mark may have its record on the medium and its data not: its data is
//!   read and, block by block, dropped where the checksum does not match. The dropped blocks are
//!   named in the header, so that they stay dropped.
//!
//! After the device has failed a write or flush it may show what it will never write, whatever later
//! flushes say. What replay has accepted above the stable mark is therefore written once more.

use hashbrown::HashSet;
use trivet_disk::{Disk, read_blocking, write_blocking};
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64, BlockRange, block_crc};

use super::apply::apply_record;
use super::entry::{BlockKey, Entry};
use super::header::{Dropped, Header, Segment};
use super::journal::JournalBlock;
use super::layout::ZONE_BLOCKS;
use super::open::Loaded;
use super::open_error::OpenError;
use super::record::{Record, RecordError, Slot};
use super::request::TailExtent;
use super::version::{Origin, Version};
use crate::planted::{self, PlantedFault};

/// A journal block that replay accepted.
struct Accepted {
    sequence: u64,
    crc: u32,
    stable: u64,
    /// The whole block; its records are found again by decoding.
    block: Vec<u8>,
}

/// Walks the ring from the tail: accepts valid successors, then looks behind the end for a block
/// that says the end was stable.
fn walk_journal(disk: &mut dyn Disk, loaded: &Loaded) -> Result<Vec<Accepted>, OpenError> {
    let geometry = loaded.superblock.geometry;
    let (pool, header) = (loaded.superblock.pool, &loaded.header);
    let mut accepted: Vec<Accepted> = Vec::new();
    let mut previous_crc = header.tail_previous_crc;
    let mut ended = false;
    let ring_end = header.tail + geometry.journal_blocks;
    let mut sequence = header.tail;
    while sequence < ring_end {
        let until_wrap = geometry.journal_blocks - sequence % geometry.journal_blocks;
        let count = until_wrap.min(ring_end - sequence).min(256);
        let bytes = usize::try_from(count * BLOCK_SIZE_U64).unwrap_or(usize::MAX);
        let portion = read_blocking(disk, geometry.journal_offset(sequence), bytes)?;
        for block in portion.chunks_exact(BLOCK_SIZE) {
            let epoch = epoch_at(&header.segments, sequence);
            let decoded = JournalBlock::decode(pool, block);
            let is_next = decoded.as_ref().is_some_and(|found| {
                !ended
                    && found.epoch == epoch
                    && found.sequence == sequence
                    && found.previous_crc == previous_crc
            });
            let end = accepted.last().map_or(header.tail, |last| last.sequence + 1);
            match decoded {
                Some(found) if is_next => {
                    previous_crc = found.crc;
                    accepted.push(Accepted {
                        sequence,
                        crc: found.crc,
                        stable: found.stable,
                        block: block.to_vec(),
                    });
                }
                Some(found)
                    if found.epoch == last_epoch(header) && found.sequence > end && found.stable > end =>
                {
                    return Err(OpenError::Journal { sequence: end, offset: geometry.journal_offset(end) });
                }
                _ => ended = true,
            }
            sequence += 1;
        }
    }
    Ok(accepted)
}

fn last_epoch(header: &Header) -> u64 {
    header.segments.last().map_or(0, |segment| segment.epoch)
}

/// The boot epoch that wrote the journal block with this sequence.
fn epoch_at(segments: &[Segment], sequence: u64) -> u64 {
    segments.iter().rev().find(|segment| segment.first <= sequence).map_or(0, |segment| segment.epoch)
}

pub(super) fn replay(disk: &mut dyn Disk, loaded: &mut Loaded) -> Result<(), OpenError> {
    let accepted = walk_journal(disk, loaded)?;
    if let Some(last) = accepted.last() {
        (loaded.head, loaded.head_crc) = (last.sequence + 1, last.crc);
    }
    // What an earlier opening accepted, it made stable.
    let opened = loaded.header.segments.last().map_or(0, |segment| segment.first);
    if loaded.head < opened {
        let sequence = loaded.head;
        let offset = loaded.superblock.geometry.journal_offset(sequence);
        return Err(OpenError::Journal { sequence, offset });
    }
    let recorded = accepted.iter().map(|block| block.stable).max().unwrap_or(0);
    loaded.stable = loaded.header.tail.max(opened).max(recorded).min(loaded.head);
    let dropped: HashSet<Dropped> = loaded.header.dropped.iter().copied().collect();
    let mut noted = false;
    for accepted in &accepted {
        if accepted.sequence >= loaded.stable && !noted {
            note_committed(loaded);
            noted = true;
        }
        let Some(block) = JournalBlock::decode(loaded.superblock.pool, &accepted.block) else {
            unreachable!("it was decoded before")
        };
        replay_block(disk, loaded, accepted.sequence, block.records, &dropped)?;
    }
    if !noted {
        note_committed(loaded);
    }
    Ok(())
}

/// Writes what is not stable again, where it lies and as it is: journal blocks and their data.
pub(super) fn write_again(disk: &mut dyn Disk, loaded: &Loaded) -> Result<(), OpenError> {
    let geometry = loaded.superblock.geometry;
    for accepted in walk_journal(disk, loaded)? {
        if accepted.sequence < loaded.stable {
            continue;
        }
        let Some(block) = JournalBlock::decode(loaded.superblock.pool, &accepted.block) else {
            unreachable!("it was decoded before")
        };
        let mut records = block.records;
        while !records.is_empty() {
            let sequence = accepted.sequence;
            let damaged = |error: RecordError| OpenError::Record { sequence, error: error.to_string() };
            if let Record::Write { physical, crcs, .. } = Record::decode(&mut records).map_err(damaged)? {
                let offset = physical * BLOCK_SIZE_U64;
                let data = read_blocking(disk, offset, crcs.len() * BLOCK_SIZE)?;
                write_blocking(disk, offset, &data)?;
            }
        }
        write_blocking(disk, geometry.journal_offset(accepted.sequence), &accepted.block)?;
    }
    Ok(())
}

/// Everything stable has been replayed.
fn note_committed(loaded: &mut Loaded) {
    loaded.committed =
        loaded.volumes.iter().map(|(slot, volume)| (slot, volume.progress.committed)).collect();
}

fn replay_block(
    disk: &mut dyn Disk,
    loaded: &mut Loaded,
    sequence: u64,
    mut records: &[u8],
    dropped: &HashSet<Dropped>,
) -> Result<(), OpenError> {
    let mut number = 0u16;
    while !records.is_empty() {
        let damaged = |error: RecordError| OpenError::Record { sequence, error: error.to_string() };
        let record = Record::decode(&mut records).map_err(damaged)?;
        match record {
            Record::Write { origin, slot, start, stamp, physical, crcs, tags } => {
                let geometry = loaded.superblock.geometry;
                let end = physical.checked_add(crcs.len() as u64);
                let in_file = geometry.data_start + loaded.zones * ZONE_BLOCKS;
                if !geometry.is_data(physical) || end.is_none_or(|end| end > in_file) {
                    let error = format!("a write to pool block {physical}, beyond the file");
                    return Err(OpenError::Record { sequence, error });
                }
                let mut kept = vec![true; crcs.len()];
                for (at, kept) in kept.iter_mut().enumerate() {
                    let block = u16::try_from(at).unwrap_or(u16::MAX);
                    *kept = !dropped.contains(&Dropped { sequence, record: number, block });
                }
                if sequence >= loaded.stable {
                    let data = read_blocking(disk, physical * BLOCK_SIZE_U64, crcs.len() * BLOCK_SIZE)?;
                    for (at, block) in data.chunks_exact(BLOCK_SIZE).enumerate() {
                        let wrong = block_crc(block) != crcs[at];
                        if kept[at] && wrong && !planted::is(PlantedFault::SkipReplayChecksum) {
                            kept[at] = false;
                            let block = u16::try_from(at).unwrap_or(u16::MAX);
                            loaded.dropped.push(Dropped { sequence, record: number, block });
                        }
                    }
                }
                loaded.active.tags.extend((physical..).zip(tags));
                let entries = crcs.iter().enumerate().map(|(at, crc)| {
                    let key = BlockKey { slot, block: start + at as u64 };
                    let (stamp, physical) = (stamp.plus(at as u64), physical + at as u64);
                    (key, Entry { stamp, physical, crc: *crc })
                });
                replay_write(
                    loaded,
                    slot,
                    origin,
                    entries.zip(kept).filter_map(|(entry, kept)| kept.then_some(entry)),
                );
            }
            other => apply_record(&mut loaded.volumes, &mut loaded.active, &other, |_| ()),
        }
        number += 1;
    }
    Ok(())
}

fn replay_write(
    loaded: &mut Loaded,
    slot: Slot,
    origin: Origin,
    entries: impl Iterator<Item = (BlockKey, Entry)>,
) {
    let Some(volume) = loaded.volumes.get_mut(slot).filter(|volume| volume.is_live()) else { return };
    for (key, entry) in entries {
        let range = BlockRange::new(key.block, 1);
        let origin = volume.note(TailExtent { range, stamp: entry.stamp, discard: false }, origin);
        loaded.active.insert(key, Version::new(entry, origin), &volume.snapshots);
    }
}
