//! What members answer, and what is made of it.

use crate::volume::segments::{SegmentCursor, push_zeros};
use bytes::Bytes;
use trivet_model::checksum::block_crc;
use trivet_model::{BLOCK_SIZE, Stamp};
use trivet_wire::BlockData;

/// A run of blocks that were read, all present or all holes.
#[derive(Debug)]
pub(in crate::volume) struct Run {
    pub(in crate::volume) count: u32,
    pub(in crate::volume) data: Option<Vec<Bytes>>,
}

/// What a member has sent of blocks that were read.
pub(in crate::volume) struct Answered<'a> {
    pub(in crate::volume) present: &'a [u8],
    pub(in crate::volume) stamps: &'a [Stamp],
    pub(in crate::volume) data: BlockData,
}

pub(in crate::volume) fn is_present(present: &[u8], block: u32) -> bool {
    present[block as usize / 8] & (1 << (block % 8)) != 0
}

/// Whether an answer has the form of one about `count` blocks.
pub(in crate::volume) fn fits(present: &[u8], data: &BlockData, count: u32) -> bool {
    if present.len() != (count as usize).div_ceil(8) {
        return false;
    }
    let blocks = (0..count).filter(|&block| is_present(present, block)).count();
    let bytes: usize = data.segments.iter().map(Bytes::len).sum();
    let whole = data.segments.iter().all(|segment| segment.len().is_multiple_of(BLOCK_SIZE));
    data.crcs.len() == blocks && bytes == blocks * BLOCK_SIZE && whole
}

pub(super) fn is_intact(data: &BlockData) -> bool {
    let blocks = data.segments.iter().flat_map(|segment| segment.chunks_exact(BLOCK_SIZE));
    blocks.zip(&data.crcs).all(|(block, &crc)| block_crc(block) == crc)
}

/// An answer about `count` blocks as runs of present blocks and holes.
pub(super) fn runs(present: &[u8], data: Vec<Bytes>, count: u32) -> Vec<Run> {
    if (0..count).all(|block| is_present(present, block)) {
        return vec![Run { count, data: Some(data) }];
    }
    let mut cursor = SegmentCursor::new(data);
    let mut runs: Vec<Run> = Vec::new();
    for block in 0..count {
        let there = is_present(present, block);
        match runs.last_mut() {
            Some(run) if run.data.is_some() == there => run.count += 1,
            _ => runs.push(Run { count: 1, data: there.then(Vec::new) }),
        }
    }
    for run in &mut runs {
        if let Some(data) = &mut run.data {
            *data = cursor.take(run.count as usize * BLOCK_SIZE);
        }
    }
    runs
}

pub(super) fn with_zeros(runs: Vec<Run>) -> Vec<Bytes> {
    let mut segments = Vec::with_capacity(1);
    for run in runs {
        match run.data {
            Some(data) if segments.is_empty() => segments = data,
            Some(data) => segments.extend(data),
            None => push_zeros(&mut segments, run.count as usize * BLOCK_SIZE),
        }
    }
    segments
}
