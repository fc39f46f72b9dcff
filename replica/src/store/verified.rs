//! What a scrub asks of the store: which of the blocks read are still as they were stored.
//!
//! Nothing of a block is ever kept in memory to be read again, so every answer comes from the medium.

use bytes::Bytes;
use trivet_model::{BLOCK_SIZE, BlockRange, block_crc};

use super::entry::Entry;
use super::read::Run;
use super::request::{TailExtent, VerifiedBlocks};

/// Holds blocks against their checksums; answers, too, how many did not match. Runs that could not
/// be read have no data: all their blocks have failed.
pub(super) fn verified(
    start: u64,
    versions: Vec<TailExtent>,
    entries: &[Option<Entry>],
    runs: &[Run],
) -> (VerifiedBlocks, u64) {
    let mut stored = runs.iter().flat_map(contents);
    let mut found = VerifiedBlocks { versions, ..VerifiedBlocks::default() };
    let mut changed = 0;
    for (at, entry) in (start..).zip(entries) {
        let Some(entry) = entry else { continue };
        found.crcs.push(entry.crc);
        let Some(block) = stored.next() else { unreachable!("the runs hold every block that has data") };
        let is_changed = block.as_ref().is_some_and(|block| block_crc(block) != entry.crc);
        changed += u64::from(is_changed);
        if is_changed || block.is_none() {
            match found.failed.last_mut() {
                Some(last) if last.end() == at => last.count += 1,
                _ => found.failed.push(BlockRange::new(at, 1)),
            }
        }
    }
    (found, changed)
}

/// A run's blocks; `None` for each of one that could not be read.
fn contents(run: &Run) -> impl Iterator<Item = Option<Bytes>> {
    let blocks = usize::try_from(run.count).unwrap_or(usize::MAX);
    let data = run.data.clone();
    (0..blocks)
        .map(move |index| data.as_ref().map(|data| data.slice(index * BLOCK_SIZE..(index + 1) * BLOCK_SIZE)))
}
