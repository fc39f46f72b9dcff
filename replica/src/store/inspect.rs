//! Looking into a pool from outside, past queue, cache and device: what the simulator compares
//! members by.

use std::ops::ControlFlow;

use trivet_model::{BLOCK_SIZE_U64, BlockCrc, Stamp, VolumeId};

use super::Store;
use super::checkpoint::{CheckpointError, scan_groups};
use super::entry::{BlockKey, GROUP_BLOCKS};
use crate::meta::MetaStore;

/// A block's version as a pool holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockVersion {
    /// Its stamp.
    pub stamp: Stamp,
    /// Where its bytes lie in the pool file; `None` for a discarded block.
    pub offset: Option<u64>,
    /// Their checksum; 0 for a discarded block.
    pub crc: BlockCrc,
}

impl Store {
    /// The newest completed version of a block; `None` when it was never written, or the pool has no
    /// replica of the volume. `meta` is the pool's map.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn version(
        &self,
        meta: &dyn MetaStore,
        volume: VolumeId,
        block: u64,
    ) -> Result<Option<BlockVersion>, CheckpointError> {
        let Some(slot) = self.volumes.find(volume) else { return Ok(None) };
        let key = BlockKey { slot, block };
        let frozen = self.frozen.as_ref().and_then(|frozen| frozen.lookup(key));
        let mut newest = self.active.lookup(key).into_iter().chain(frozen).max_by_key(|entry| entry.stamp);
        let group = block / GROUP_BLOCKS;
        scan_groups(meta, slot, group, group + 1, &mut |_, stored| {
            let stored = usize::try_from(block % GROUP_BLOCKS).ok().and_then(|at| stored.0[at]);
            newest = newest.into_iter().chain(stored).max_by_key(|entry| entry.stamp);
            ControlFlow::Continue(())
        })?;
        Ok(newest.map(|entry| BlockVersion {
            stamp: entry.stamp,
            offset: (!entry.is_tombstone()).then_some(entry.physical * BLOCK_SIZE_U64),
            crc: entry.crc,
        }))
    }
}
