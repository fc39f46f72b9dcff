//! A request in bytes, cut into pieces that each fit one message and cover whole blocks.
//!
//! A write's partial first or last block becomes a piece of its own, so that only it has to be read
//! before it is written.

use super::segments::{SegmentCursor, push_zeros};
use crate::request::{IoError, IoRequest};
use bytes::Bytes;
use std::ops::Range;
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64, BlockRange, SECTOR_SIZE};
use trivet_wire::frame::DISCARD_BLOCKS_MAX;

/// One message's worth of a request.
#[derive(Debug)]
pub(super) enum Piece {
    /// Read `length` bytes from byte `skip` of the blocks.
    Read { range: BlockRange, skip: usize, length: usize },
    /// Write whole blocks.
    Write { range: BlockRange, segments: Vec<Bytes>, force_unit_access: bool },
    /// Change a part of one block, from byte `at`: needs the rest of the block first.
    Patch { block: u64, at: usize, segments: Vec<Bytes>, force_unit_access: bool },
    /// Write the contents that a block has anew: for a member that has others.
    Rewrite { block: u64 },
    /// The same for one that a member has forged.
    Mend { block: u64 },
    /// Write what the snapshot shows that the volume is reverted to.
    Restore { range: BlockRange },
    /// Write what is sealed under an older data key anew.
    Reseal { range: BlockRange },
    /// Compare what members have of a block.
    Scrub { block: u64 },
    /// Write zeros, that are made when it is done.
    Zeros { range: BlockRange, force_unit_access: bool },
    /// Make blocks read as zeros.
    Discard { range: BlockRange, force_unit_access: bool },
}

impl Piece {
    pub(super) const fn range(&self) -> BlockRange {
        match self {
            Self::Read { range, .. }
            | Self::Write { range, .. }
            | Self::Restore { range }
            | Self::Reseal { range }
            | Self::Zeros { range, .. }
            | Self::Discard { range, .. } => *range,
            Self::Patch { block, .. }
            | Self::Rewrite { block }
            | Self::Mend { block }
            | Self::Scrub { block } => BlockRange::new(*block, 1),
        }
    }

    /// What it takes of the window: the bytes that travel.
    pub(super) const fn window_bytes(&self) -> usize {
        match self {
            Self::Read { range, .. }
            | Self::Write { range, .. }
            | Self::Restore { range }
            | Self::Reseal { range }
            | Self::Zeros { range, .. } => range.count as usize * BLOCK_SIZE,
            Self::Patch { .. }
            | Self::Rewrite { .. }
            | Self::Mend { .. }
            | Self::Scrub { .. }
            | Self::Discard { .. } => BLOCK_SIZE,
        }
    }

    pub(super) const fn changes(&self) -> bool {
        !matches!(self, Self::Read { .. })
    }
}

const SECTOR: u64 = SECTOR_SIZE as u64;

/// Checks that a request's bytes are whole sectors within the volume.
pub(super) fn check_bounds(offset: u64, length: u64, blocks: u64) -> Result<(), IoError> {
    if !offset.is_multiple_of(SECTOR) || !length.is_multiple_of(SECTOR) {
        return Err(IoError::Invalid("offset and length must be multiples of 512 bytes"));
    }
    if length == 0 {
        return Err(IoError::Invalid("the length is zero"));
    }
    match offset.checked_add(length) {
        Some(end) if end <= blocks * BLOCK_SIZE_U64 => Ok(()),
        _ => Err(IoError::Invalid("the range ends beyond the volume")),
    }
}

/// Cuts a read, write, discard or write-zeroes into pieces. Whole blocks that are `kept` are zeroed by writing.
///
/// # Panics
/// On a flush or an allocation query, which have no pieces.
pub(super) fn cut(request: IoRequest, blocks: u64, kept: &Range<u64>) -> Result<Vec<Piece>, IoError> {
    let mut pieces = Vec::with_capacity(1);
    match request {
        IoRequest::Read { offset, length } => {
            check_bounds(offset, u64::from(length), blocks)?;
            cut_read(offset, u64::from(length), &mut pieces);
        }
        IoRequest::Write { offset, segments, force_unit_access } => {
            let length = segments.iter().map(|segment| segment.len() as u64).sum();
            check_bounds(offset, length, blocks)?;
            cut_write(offset, length, segments, force_unit_access, &mut pieces);
        }
        IoRequest::Discard { offset, length } => {
            check_bounds(offset, length, blocks)?;
            cut_zeroes(offset, length, false, kept, &mut pieces);
        }
        IoRequest::WriteZeroes { offset, length, force_unit_access, may_unmap: _ } => {
            check_bounds(offset, length, blocks)?;
            cut_zeroes(offset, length, force_unit_access, kept, &mut pieces);
        }
        IoRequest::Flush | IoRequest::Allocation { .. } | IoRequest::Changed { .. } => {
            unreachable!("has no pieces")
        }
    }
    Ok(pieces)
}

/// The whole blocks inside a run of bytes; `start >= end` when there is none.
struct Inner {
    start: u64,
    end: u64,
}

impl Inner {
    const fn of(offset: u64, length: u64) -> Self {
        Self { start: offset.div_ceil(BLOCK_SIZE_U64), end: (offset + length) / BLOCK_SIZE_U64 }
    }
}

/// A run of at most `most` blocks from `start`.
fn run(start: u64, end: u64, most: u32) -> BlockRange {
    BlockRange::new(start, u32::try_from(end - start).map_or(most, |count| count.min(most)))
}

/// A length of at most a block or an operation, which fits any `usize`.
#[allow(clippy::cast_possible_truncation, reason = "bounded by one operation, 1 MiB")]
const fn small(length: u64) -> usize {
    length as usize
}

fn cut_read(offset: u64, length: u64, pieces: &mut Vec<Piece>) {
    let end = offset + length;
    let mut at = offset;
    while at < end {
        let range = run(at / BLOCK_SIZE_U64, end.div_ceil(BLOCK_SIZE_U64), IO_BLOCKS_MAX);
        let stop = end.min(range.end() * BLOCK_SIZE_U64);
        pieces.push(Piece::Read { range, skip: small(at % BLOCK_SIZE_U64), length: small(stop - at) });
        at = stop;
    }
}

fn cut_write(
    offset: u64,
    length: u64,
    segments: Vec<Bytes>,
    force_unit_access: bool,
    pieces: &mut Vec<Piece>,
) {
    let end = offset + length;
    let mut cursor = SegmentCursor::new(segments);
    let mut at = offset;
    while at < end {
        let block = at / BLOCK_SIZE_U64;
        let inside = at % BLOCK_SIZE_U64;
        if inside != 0 || end - at < BLOCK_SIZE_U64 {
            let part = (BLOCK_SIZE_U64 - inside).min(end - at);
            let segments = cursor.take(small(part));
            pieces.push(Piece::Patch { block, at: small(inside), segments, force_unit_access });
            at += part;
        } else {
            let range = run(block, end / BLOCK_SIZE_U64, IO_BLOCKS_MAX);
            let segments = cursor.take(small(range.bytes()));
            pieces.push(Piece::Write { range, segments, force_unit_access });
            at += range.bytes();
        }
    }
}

/// Runs of at most `most` blocks.
fn runs(start: u64, end: u64, most: u32) -> impl Iterator<Item = BlockRange> {
    let mut at = start;
    std::iter::from_fn(move || {
        let range = (at < end).then(|| run(at, end, most))?;
        at = range.end();
        Some(range)
    })
}

fn cut_zeroes(offset: u64, length: u64, force_unit_access: bool, kept: &Range<u64>, pieces: &mut Vec<Piece>) {
    let mut patch = |from: u64, to: u64| {
        let mut segments = Vec::with_capacity(1);
        push_zeros(&mut segments, small(to - from));
        let at = small(from % BLOCK_SIZE_U64);
        pieces.push(Piece::Patch { block: from / BLOCK_SIZE_U64, at, segments, force_unit_access });
    };
    let end = offset + length;
    let inner = Inner::of(offset, length);
    if inner.start > inner.end {
        patch(offset, end);
        return;
    }
    let (head, tail) = (inner.start * BLOCK_SIZE_U64, inner.end * BLOCK_SIZE_U64);
    if offset < head {
        patch(offset, head);
    }
    if tail < end {
        patch(tail, end);
    }
    let kept_start = kept.start.clamp(inner.start, inner.end);
    let kept_end = kept.end.clamp(kept_start, inner.end);
    let freed = [inner.start..kept_start, kept_end..inner.end].into_iter();
    let freed = freed.flat_map(|freed| runs(freed.start, freed.end, DISCARD_BLOCKS_MAX));
    pieces.extend(freed.map(|range| Piece::Discard { range, force_unit_access }));
    let zeroed = runs(kept_start, kept_end, IO_BLOCKS_MAX);
    pieces.extend(zeroed.map(|range| Piece::Zeros { range, force_unit_access }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = 2000;

    /// As it is cut where nothing is kept.
    fn cut(request: IoRequest, blocks: u64) -> Result<Vec<Piece>, IoError> {
        super::cut(request, blocks, &(0..0))
    }

    /// Marks every byte that the pieces touch with how; panics when one is touched twice.
    fn touched(pieces: &[Piece]) -> Vec<(u64, u64, char)> {
        let mut spans: Vec<(u64, u64, char)> = pieces
            .iter()
            .map(|piece| {
                let start = piece.range().start * BLOCK_SIZE_U64;
                match piece {
                    Piece::Read { skip, length, .. } => {
                        (start + *skip as u64, start + (*skip + *length) as u64, 'r')
                    }
                    Piece::Write { range, .. } => (start, start + range.bytes(), 'w'),
                    Piece::Patch { at, segments, .. } => {
                        let length: usize = segments.iter().map(Bytes::len).sum();
                        assert!(at + length <= BLOCK_SIZE && length < BLOCK_SIZE);
                        (start + *at as u64, start + (at + length) as u64, 'w')
                    }
                    Piece::Zeros { range, .. } => (start, start + range.bytes(), 'z'),
                    Piece::Discard { range, .. } => (start, start + range.bytes(), 'd'),
                    Piece::Rewrite { .. }
                    | Piece::Mend { .. }
                    | Piece::Restore { .. }
                    | Piece::Reseal { .. }
                    | Piece::Scrub { .. } => {
                        unreachable!("no request is cut into these")
                    }
                }
            })
            .collect();
        spans.sort_unstable();
        assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{spans:?}");
        spans
    }

    fn covers(spans: &[(u64, u64, char)], start: u64, end: u64) {
        assert_eq!(spans.first().map(|s| s.0), Some(start));
        assert_eq!(spans.last().map(|s| s.1), Some(end));
        assert!(spans.windows(2).all(|pair| pair[0].1 == pair[1].0), "{spans:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn pieces_cover_the_request_exactly(sector in 0u64..8000, sectors in 1u64..8000) {
            let (offset, length) = (sector * 512, sectors * 512);
            prop_assume!(offset + length <= BLOCKS * BLOCK_SIZE_U64);
            let end = offset + length;

            let read = cut(IoRequest::Read { offset, length: u32::try_from(length).unwrap() }, BLOCKS).unwrap();
            covers(&touched(&read), offset, end);
            prop_assert!(read.iter().all(|piece| piece.range().count <= IO_BLOCKS_MAX));

            let data = Bytes::from(vec![1; usize::try_from(length).unwrap()]);
            let write = IoRequest::Write { offset, segments: vec![data], force_unit_access: true };
            covers(&touched(&cut(write, BLOCKS).unwrap()), offset, end);

            let zeroes = IoRequest::WriteZeroes { offset, length, force_unit_access: false, may_unmap: true };
            covers(&touched(&cut(zeroes, BLOCKS).unwrap()), offset, end);

            let discard = cut(IoRequest::Discard { offset, length }, BLOCKS).unwrap();
            covers(&touched(&discard), offset, end);
        }

        #[test]
        fn zeros_are_written_just_where_they_are_kept(
            sector in 0u64..8000, sectors in 1u64..8000, first in 0..BLOCKS, count in 0..BLOCKS)
        {
            let (offset, length) = (sector * 512, sectors * 512);
            prop_assume!(offset + length <= BLOCKS * BLOCK_SIZE_U64);
            let kept = first..first + count;
            let pieces = super::cut(IoRequest::Discard { offset, length }, BLOCKS, &kept).unwrap();
            let spans = touched(&pieces);
            covers(&spans, offset, offset + length);
            for piece in &pieces {
                let blocks = piece.range().blocks();
                match piece {
                    Piece::Zeros { range, .. } => {
                        prop_assert!(range.count <= IO_BLOCKS_MAX);
                        prop_assert!(blocks.into_iter().all(|block| kept.contains(&block)));
                    }
                    Piece::Discard { .. } => {
                        prop_assert!(!blocks.into_iter().any(|block| kept.contains(&block)));
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn refuses_what_is_not_whole_sectors_inside_the_volume() {
        let end = BLOCKS * BLOCK_SIZE_U64;
        for (offset, length) in
            [(1, 512), (0, 100), (0, 0), (end, 512), (end - 512, 1024), (u64::MAX - 511, 512)]
        {
            let refused = cut(IoRequest::Discard { offset, length }, BLOCKS);
            assert!(matches!(refused, Err(IoError::Invalid(_))), "{offset} {length}: {refused:?}");
        }
    }

    #[test]
    fn a_discard_larger_than_a_message_is_cut() {
        let blocks = 3 * u64::from(DISCARD_BLOCKS_MAX);
        let pieces = cut(IoRequest::Discard { offset: 0, length: blocks * BLOCK_SIZE_U64 }, blocks).unwrap();
        assert_eq!(pieces.len(), 3);
    }
}
