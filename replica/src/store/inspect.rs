//! Looking into a pool from outside, past queue, cache and device: what the simulator compares
//! members by.

use std::ops::ControlFlow;

use trivet_model::{BLOCK_SIZE_U64, BlockCrc, BlockTag, Stamp, VolumeId};

use super::Store;
use super::checkpoint::CheckpointError;
use super::entry::{BlockKey, Entry, GROUP_BLOCKS};
use super::map_scan::scan_groups;
use super::tags::Tags;
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
    /// Their tag, if the volume is encrypted and the block not discarded.
    pub tag: Option<BlockTag>,
}

impl Store {
    /// Byte offsets in the pool file of the journal blocks that an opening would replay.
    pub fn live_journal(&self) -> impl Iterator<Item = u64> + '_ {
        self.journal.live_offsets()
    }

    /// The newest completed version of a block that a cut shows ([`Stamp::MAX`]: of all); `None` when it was
    /// never written, or the pool has no replica of the volume. `meta` is the pool's map.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn version(
        &self,
        meta: &dyn MetaStore,
        volume: VolumeId,
        block: u64,
        cut: Stamp,
    ) -> Result<Option<BlockVersion>, CheckpointError> {
        let Some(slot) = self.volumes.find(volume) else { return Ok(None) };
        let inherited = self.volumes.lineage(slot).into_iter().map(|tie| (tie.parent, tie.cut));
        let mut found = None;
        for (slot, cut) in std::iter::once((slot, cut)).chain(inherited) {
            found = found.or(self.own_version(meta, BlockKey { slot, block }, cut)?);
        }
        Ok(found.map(|(entry, tag)| BlockVersion {
            stamp: entry.stamp,
            offset: (!entry.is_tombstone()).then_some(entry.physical * BLOCK_SIZE_U64),
            crc: entry.crc,
            tag,
        }))
    }

    fn own_version(
        &self,
        meta: &dyn MetaStore,
        key: BlockKey,
        cut: Stamp,
    ) -> Result<Option<(Entry, Option<BlockTag>)>, CheckpointError> {
        let BlockKey { slot, block } = key;
        let group = block / GROUP_BLOCKS;
        let mut newest: Option<Entry> = None;
        let mut tags = Tags::default();
        scan_groups(meta, slot, group, group + 1, cut, &mut |_, stored, of_group| {
            tags.extend(of_group);
            newest = usize::try_from(block % GROUP_BLOCKS).ok().and_then(|at| stored.0[at]);
            ControlFlow::Continue(())
        })?;
        let tables = self.frozen.as_deref().into_iter().chain([&self.active]);
        for table in tables {
            if let Some(version) = table.lookup_at(key, cut) {
                let physical = version.entry().physical;
                tags.extend(table.tags.get(physical).map(|tag| (physical, tag)));
                newest = Some(version.over(newest));
            }
        }
        Ok(newest.map(|entry| (entry, tags.get(entry.physical))))
    }
}
