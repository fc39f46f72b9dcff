//! What is shown of a volume that is being reverted.

use serde::Serialize;
use std::fmt;
use trivet_api::v1;
use trivet_model::BLOCK_SIZE_U64;
use trivet_model::size::ByteSize;

/// A volume on its way back to a snapshot.
#[derive(Clone, PartialEq, Serialize, Debug)]
pub(crate) struct RevertView {
    /// Its name.
    pub(crate) to: String,
    /// Of the walk over the volume; most of it may need no change.
    pub(crate) percent: f64,
    pub(crate) changed_bytes: u64,
    pub(crate) bytes_per_second: u64,
    /// Why it does not get on; empty when it does.
    pub(crate) waits: String,
}

impl RevertView {
    #[allow(clippy::cast_precision_loss, reason = "a percentage for people")]
    pub(crate) fn new(revert: v1::Revert, blocks: u64) -> Self {
        Self {
            to: revert.to,
            percent: revert.position.min(blocks) as f64 * 100.0 / blocks.max(1) as f64,
            changed_bytes: revert.changed.saturating_mul(BLOCK_SIZE_U64),
            bytes_per_second: revert.bytes_per_second,
            waits: revert.waits,
        }
    }
}

impl fmt::Display for RevertView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (changed, rate) = (ByteSize(self.changed_bytes), ByteSize(self.bytes_per_second));
        write!(f, "to {}, {:.0} %, {changed} changed, {rate}/s", self.to, self.percent)?;
        if self.waits.is_empty() { Ok(()) } else { write!(f, " ({})", self.waits) }
    }
}
