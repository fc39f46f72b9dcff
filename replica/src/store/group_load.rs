//! Looking up parts of the checkpointed map for the cache, off the store's thread.

use std::ops::ControlFlow;

use super::cache::{LEAF_BLOCKS, Leaf, LeafKey};
use super::checkpoint::CheckpointError;
use super::entry::GROUP_BLOCKS;
use super::map_scan::scan_groups;
use crate::meta::MetaStore;

/// Leaves to look up in the map: give it to [`GroupLoad::run`] on a background thread.
#[derive(Debug)]
pub struct GroupLoad {
    pub(super) keys: Vec<LeafKey>,
    /// Checkpoints finished when this was asked; an answer from before a later one is stale.
    pub(super) checkpoints: u64,
}

/// The answer to a [`GroupLoad`]: give it to `Store::groups_loaded`.
#[derive(Debug)]
pub struct GroupsLoaded {
    pub(super) leaves: Vec<(LeafKey, Result<Leaf, CheckpointError>)>,
    pub(super) checkpoints: u64,
}

impl GroupLoad {
    /// Looks up. Blocks for as long as the map's store takes.
    #[must_use]
    pub fn run(self, meta: &dyn MetaStore) -> GroupsLoaded {
        let leaves = self.keys.iter().map(|key| (*key, load_leaf(meta, *key))).collect();
        GroupsLoaded { leaves, checkpoints: self.checkpoints }
    }
}

fn load_leaf(meta: &dyn MetaStore, leaf_key: LeafKey) -> Result<Leaf, CheckpointError> {
    let first = leaf_key.index * (LEAF_BLOCKS / GROUP_BLOCKS);
    let mut leaf = Leaf::default();
    let end = first + LEAF_BLOCKS / GROUP_BLOCKS;
    scan_groups(meta, leaf_key.slot, first, end, leaf_key.cut, &mut |group, stored, tags| {
        let mut tags = tags.into_iter().peekable();
        for (at, entry) in stored.0.into_iter().enumerate() {
            if let Some(entry) = entry {
                let tag = tags.next_if(|(physical, _)| *physical == entry.physical).map(|(_, tag)| tag);
                leaf.push(group * GROUP_BLOCKS + at as u64, entry, tag);
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(leaf)
}
