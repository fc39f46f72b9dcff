//! Runs of versions: blocks one after the other whose stamps are consecutive.

use trivet_model::{BlockRange, Stamp};

use super::request::TailExtent;

/// Adds a block's version to runs that come in the order of blocks.
pub(super) fn append(runs: &mut Vec<TailExtent>, block: u64, stamp: Stamp, discard: bool) {
    if let Some(last) = runs.last_mut()
        && last.discard == discard
        && last.range.end() == block
        && last.stamp.as_u64() + u64::from(last.range.count) == stamp.as_u64()
        && last.range.count < u32::MAX
    {
        last.range.count += 1;
        return;
    }
    runs.push(TailExtent { range: BlockRange::new(block, 1), stamp, discard });
}

/// The blocks and their stamps.
pub(super) fn blocks(run: TailExtent) -> impl Iterator<Item = (u64, Stamp)> {
    run.range.blocks().zip(0..).map(move |(block, at)| (block, run.stamp.plus(at)))
}
