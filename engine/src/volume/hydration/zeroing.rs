//! What is zeroed while a volume is imported: where the source may count, zeros are written, so that the volume has them.

use super::Hydration;
use crate::request::IoRequest;
use crate::volume::operation::Phase;
use crate::volume::planted::PlantedFault as Planted;
use crate::volume::segments::push_zeros;
use crate::volume::write::Writing;
use crate::volume::{OperationId, VolumeCore};
use std::ops::Range;
use std::time::Duration;
use trivet_model::{BLOCK_SIZE, BlockRange};

/// Whether what a request zeroes must be stable when it is answered; nothing if it does not zero.
pub(super) const fn zeroes(request: &IoRequest) -> Option<bool> {
    match request {
        IoRequest::Discard { .. } => Some(false),
        IoRequest::WriteZeroes { force_unit_access, .. } => Some(*force_unit_access),
        _ => None,
    }
}

impl VolumeCore {
    /// The blocks in which zeros must stay something that the volume has: those that may still be the source's.
    fn kept_blocks(&self) -> Range<u64> {
        let kept = |hydration: &Hydration| hydration.recorded..hydration.source_blocks();
        self.hydration.as_deref().map_or(0..0, kept)
    }

    /// Those that a discard is to write zeros to.
    pub(in crate::volume) fn zeroed_by_writing(&self) -> Range<u64> {
        if self.has_planted(Planted::DiscardWhileHydrating) { 0..0 } else { self.kept_blocks() }
    }

    /// Whether zeros that are written to a block must stay something that the volume has.
    pub(in crate::volume) fn keeps_zeros(&self, block: u64) -> bool {
        self.kept_blocks().contains(&block) && !self.has_planted(Planted::ZeroPartsWhileHydrating)
    }

    /// Nothing else is in flight on blocks that are to be zeroed, and were the source's when that was asked.
    pub(in crate::volume) fn start_zeroing(
        &mut self,
        now: Duration,
        id: OperationId,
        range: BlockRange,
        force_unit_access: bool,
    ) {
        let kept = self.kept_blocks();
        let writing = if range.start < kept.end && kept.start < range.end() {
            let mut segments = Vec::new();
            push_zeros(&mut segments, range.count as usize * BLOCK_SIZE);
            Writing::data(range, segments, force_unit_access, self.ciphers.is_some())
        } else {
            Writing::discard(range, force_unit_access)
        };
        self.operations.get_mut(&id).expect("it has its place").phase = Phase::Writing(writing);
        self.send_write(now, id);
    }
}
