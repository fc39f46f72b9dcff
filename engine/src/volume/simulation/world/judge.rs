//! What must hold of the world at rest.

use super::{BLOCKS, World};
use crate::volume::simulation::model_member::ModelMember;

impl World {
    /// Whether every in-sync member can read all it has.
    pub(in crate::volume::simulation) fn nothing_is_rotten(&self) -> Result<(), String> {
        let rotten = |member: &ModelMember| (0..BLOCKS).find(|&block| member.is_rotten(block));
        match self.in_sync().find_map(|member| Some((member.pool, rotten(member)?))) {
            Some((pool, block)) => Err(format!("block {block} is still rotten on member {pool}")),
            None => Ok(()),
        }
    }

    /// Whether no verified read of this opening has found that members differ.
    pub(in crate::volume::simulation) fn nothing_is_stale(&self) -> Result<(), String> {
        match self.core.counters().blocks_stale {
            0 => Ok(()),
            blocks => Err(format!("verified reads found {blocks} blocks in which members differed")),
        }
    }

    pub(in crate::volume::simulation) fn members_are_identical(&self) -> Result<(), String> {
        let mut in_sync = self.in_sync();
        let first = &in_sync.next().expect("one is always in sync").blocks;
        for member in in_sync {
            for block in 0..BLOCKS {
                let (a, b) = (first.get(&block), member.blocks.get(&block));
                if a != b {
                    let stamps = (a.map(|v| v.stamp), b.map(|v| v.stamp));
                    return Err(format!("block {block} differs between members: stamps {stamps:?}"));
                }
            }
        }
        Ok(())
    }
}
