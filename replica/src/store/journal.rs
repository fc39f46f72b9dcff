//! The journal: a ring of checksummed, chained blocks of records.
//!
//! A journal block's sequence number counts for ever; its place in the ring is the number modulo
//! the ring's length. A block is valid as the successor of another when pool, boot epoch and
//! sequence are the ones expected, it names the predecessor's checksum, and its own matches.
//!
//! Invariants
//! - Blocks `tail..head` are not overwritten: the checkpoint needs them for replay.
//! - A block with sequence `s` is written only after those before it were submitted, and what it
//!   records is acknowledged only after all blocks up to `s` have been written.
//! - `stable`: everything recorded in blocks before it is on the medium.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use trivet_model::{BLOCK_SIZE, BlockArena, PoolId};

use super::layout::Geometry;
use super::record::{OTHER_RECORD_BYTES_MAX, TAGGED_RECORD_BLOCKS_MAX, write_record_bytes};

const MAGIC: u32 = u32::from_le_bytes(*b"TRVJ");
const POOL_OFFSET: usize = 4;
const EPOCH_OFFSET: usize = POOL_OFFSET + 16;
const SEQUENCE_OFFSET: usize = EPOCH_OFFSET + 8;
const STABLE_OFFSET: usize = SEQUENCE_OFFSET + 8;
const PREVIOUS_OFFSET: usize = STABLE_OFFSET + 8;
const LENGTH_OFFSET: usize = PREVIOUS_OFFSET + 4;
const RESERVED_OFFSET: usize = LENGTH_OFFSET + 2;
const RECORDS_OFFSET: usize = RESERVED_OFFSET + 2;
const CRC_OFFSET: usize = BLOCK_SIZE - 4;
/// Bytes of records that a journal block holds.
pub(crate) const RECORDS_BYTES: usize = CRC_OFFSET - RECORDS_OFFSET;

const _: () = assert!(RECORDS_OFFSET == 52);
const TAGGED: usize = TAGGED_RECORD_BLOCKS_MAX;
const _: () = assert!(write_record_bytes(256, 0) <= RECORDS_BYTES && OTHER_RECORD_BYTES_MAX <= RECORDS_BYTES);
const _: () = assert!(write_record_bytes(TAGGED, TAGGED) <= RECORDS_BYTES);

/// A journal block, decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct JournalBlock<'a> {
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    pub(crate) stable: u64,
    pub(crate) previous_crc: u32,
    pub(crate) crc: u32,
    pub(crate) records: &'a [u8],
}

impl<'a> JournalBlock<'a> {
    /// Reads a block of this pool's journal; `None` when it was torn, never written, or foreign.
    pub(crate) fn decode(pool: PoolId, block: &'a [u8]) -> Option<Self> {
        assert_eq!(block.len(), BLOCK_SIZE, "a journal block is one block");
        let (body, mut stored) = block.split_at(CRC_OFFSET);
        let crc = stored.get_u32_le();
        let mut head = &body[..RECORDS_OFFSET];
        if head.get_u32_le() != MAGIC || &head[..16] != pool.as_bytes() || crc32fast::hash(body) != crc {
            return None;
        }
        head.advance(16);
        let (epoch, sequence, stable) = (head.get_u64_le(), head.get_u64_le(), head.get_u64_le());
        let previous_crc = head.get_u32_le();
        let length = usize::from(head.get_u16_le());
        if length > RECORDS_BYTES {
            return None;
        }
        let records = &body[RECORDS_OFFSET..RECORDS_OFFSET + length];
        Some(Self { epoch, sequence, stable, previous_crc, crc, records })
    }

    fn encode(&self, pool: PoolId, out: &mut BytesMut) -> u32 {
        out.put_u32_le(MAGIC);
        out.put_slice(pool.as_bytes());
        out.put_u64_le(self.epoch);
        out.put_u64_le(self.sequence);
        out.put_u64_le(self.stable);
        out.put_u32_le(self.previous_crc);
        out.put_u16_le(u16::try_from(self.records.len()).unwrap_or(u16::MAX));
        out.put_u16_le(0);
        out.put_slice(self.records);
        out.resize(CRC_OFFSET, 0);
        let crc = crc32fast::hash(out);
        out.put_u32_le(crc);
        crc
    }
}

/// The writing end of the ring.
#[derive(Debug)]
pub(crate) struct Journal {
    pool: PoolId,
    geometry: Geometry,
    epoch: u64,
    /// Sequence of the next block.
    head: u64,
    /// Oldest block that replay needs.
    tail: u64,
    /// The last block's checksum.
    previous_crc: u32,
    /// What the last block written says is stable.
    stable_recorded: u64,
    records: Vec<u8>,
    sealed: Vec<Bytes>,
}

impl Journal {
    pub(crate) fn new(
        pool: PoolId,
        geometry: Geometry,
        epoch: u64,
        tail: u64,
        head: u64,
        previous_crc: u32,
    ) -> Self {
        assert!(tail <= head && head - tail <= geometry.journal_blocks, "journal longer than its ring");
        Self {
            pool,
            geometry,
            epoch,
            head,
            tail,
            previous_crc,
            stable_recorded: head,
            records: Vec::with_capacity(RECORDS_BYTES),
            sealed: Vec::new(),
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// The last block's checksum, which the next one names.
    pub(crate) fn previous_crc(&self) -> u32 {
        self.previous_crc
    }

    pub(crate) fn stable_recorded(&self) -> u64 {
        self.stable_recorded
    }

    /// Blocks that may be written before the tail must move.
    pub(crate) fn room(&self) -> u64 {
        self.geometry.journal_blocks - (self.head - self.tail)
    }

    pub(crate) fn length(&self) -> u64 {
        self.head - self.tail
    }

    /// Byte offsets of the blocks that a replay would read.
    pub(crate) fn live_offsets(&self) -> impl Iterator<Item = u64> + '_ {
        (self.tail..self.head).map(|sequence| self.geometry.journal_offset(sequence))
    }

    pub(crate) fn move_tail(&mut self, tail: u64) {
        assert!(
            tail >= self.tail && tail <= self.head,
            "the journal's tail moves forward within the journal"
        );
        self.tail = tail;
    }

    /// Makes room for `bytes` of one record, sealing the present block if it lacks it, and hands
    /// out where to append.
    pub(crate) fn record(&mut self, arena: &mut BlockArena, stable: u64, bytes: usize) -> &mut Vec<u8> {
        if self.records.len() + bytes > RECORDS_BYTES {
            self.seal(arena, stable);
        }
        &mut self.records
    }

    fn seal(&mut self, arena: &mut BlockArena, stable: u64) {
        let mut out = arena.allocate(1);
        let block = JournalBlock {
            epoch: self.epoch,
            sequence: self.head,
            stable,
            previous_crc: self.previous_crc,
            crc: 0,
            records: &self.records,
        };
        self.previous_crc = block.encode(self.pool, &mut out);
        self.stable_recorded = stable;
        self.head += 1;
        self.records.clear();
        self.sealed.push(out.freeze());
    }

    /// Ends a batch: seals the block being filled (an empty one too, when the batch has no other:
    /// a bare mark of stability) and answers what to write where: one run, or two at the ring's end.
    pub(crate) fn finish_batch(&mut self, arena: &mut BlockArena, stable: u64) -> Vec<(u64, Vec<Bytes>)> {
        if !self.records.is_empty() || self.sealed.is_empty() {
            self.seal(arena, stable);
        }
        let mut blocks = std::mem::take(&mut self.sealed);
        let first = self.head - blocks.len() as u64;
        assert!(self.head - self.tail <= self.geometry.journal_blocks, "journal overran its tail");
        let until_wrap = self.geometry.journal_blocks - first % self.geometry.journal_blocks;
        let mut runs = Vec::with_capacity(1);
        if (blocks.len() as u64) > until_wrap {
            let wrapped = blocks.split_off(usize::try_from(until_wrap).unwrap_or(usize::MAX));
            runs.push((self.geometry.journal_offset(first), blocks));
            runs.push((self.geometry.journal_offset(first + until_wrap), wrapped));
        } else {
            runs.push((self.geometry.journal_offset(first), blocks));
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(head: u64) -> Journal {
        Journal::new(PoolId::from_bytes([1; 16]), Geometry::for_capacity(1 << 16), 5, head, head, 77)
    }

    #[test]
    fn blocks_chain_and_round_trip() {
        let (mut journal, mut arena) = (journal(10), BlockArena::new());
        for n in 0..3u8 {
            journal.record(&mut arena, 4, 2000).extend([n; 2000]);
        }
        let runs = journal.finish_batch(&mut arena, 4);
        assert_eq!(runs.len(), 1);
        assert_eq!(runs[0].1.len(), 2);
        let mut previous = 77;
        let mut records = Vec::new();
        for (at, block) in runs[0].1.iter().enumerate() {
            let block = JournalBlock::decode(PoolId::from_bytes([1; 16]), block).unwrap();
            assert_eq!((block.epoch, block.sequence, block.stable), (5, 10 + at as u64, 4));
            assert_eq!(block.previous_crc, previous);
            previous = block.crc;
            records.extend_from_slice(block.records);
        }
        assert_eq!(records.len(), 6000);
        assert_eq!(journal.previous_crc(), previous);
        assert_eq!(journal.head(), 12);
    }

    #[test]
    fn every_flipped_byte_is_refused() {
        let (mut journal, mut arena) = (journal(0), BlockArena::new());
        journal.record(&mut arena, 0, 100).extend([9; 100]);
        let runs = journal.finish_batch(&mut arena, 0);
        let mut block = runs[0].1[0].to_vec();
        let pool = PoolId::from_bytes([1; 16]);
        assert!(JournalBlock::decode(pool, &block).is_some());
        for at in 0..BLOCK_SIZE {
            block[at] ^= 1;
            assert!(JournalBlock::decode(pool, &block).is_none(), "byte {at}");
            block[at] ^= 1;
        }
        assert!(JournalBlock::decode(PoolId::from_bytes([2; 16]), &block).is_none());
    }

    #[test]
    fn a_batch_wraps_at_the_end_of_the_ring() {
        let (mut journal, mut arena) = (journal(1023), BlockArena::new());
        for _ in 0..3 {
            journal.record(&mut arena, 0, RECORDS_BYTES).extend([1; RECORDS_BYTES]);
        }
        let runs = journal.finish_batch(&mut arena, 0);
        let offsets: Vec<_> = runs.iter().map(|(offset, blocks)| (offset / 4096, blocks.len())).collect();
        assert_eq!(offsets, [(2 + 1023, 1), (2, 2)]);
        assert_eq!(journal.room(), 1021);
    }
}
