//! A scrub as the manager orders it of an engine, and what it has come to: said by the one, kept by the
//! other.

use serde::{Deserialize, Serialize};

/// What a scrub has come to.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ScrubCounts {
    /// Blocks compared.
    pub compared: u64,
    /// Copies of blocks that a member could not read, and has fetched from another.
    pub repaired: u64,
    /// Blocks of which members had different versions: the newest was written to all.
    pub mismatched: u64,
    /// Blocks that nobody could read, or whose repair failed.
    pub unrepairable: u64,
    /// The first of those.
    pub unrepairable_blocks: Vec<u64>,
}

/// A scrub that is wanted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ScrubOrder {
    /// Chosen by whoever orders it: tells this scrub from others.
    pub run: u64,
    /// The block to begin at.
    pub position: u64,
    /// How much each member may read, at most.
    pub bytes_per_second: u64,
    /// What was found before that block.
    pub counts: ScrubCounts,
}
