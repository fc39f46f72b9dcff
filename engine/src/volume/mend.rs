//! Blocks that a member gives back otherwise than they were encrypted, or as they were before (`witness.rs`).
//!
//! Its checksum is right, so no medium did it: it was tampered with, or the member's software is wrong. Another
//! member answers the read. The block is then written anew to everyone, in its place among other I/O, under a
//! new stamp, which stands against whatever stamp the forged one claims.

use super::operation::{Operation, Phase};
use super::ordering::Span;
use super::pieces::Piece;
use super::{MemberIndex, OperationId, VolumeCore, VolumeState};
use hashbrown::HashMap;
use std::time::Duration;

/// Blocks on their way to be written anew; what else is forged, the next read of it finds.
const MENDING_MAX: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Mending(HashMap<u64, OperationId>);

impl Mending {
    pub(super) fn ended(&mut self, id: OperationId) {
        self.0.retain(|_, mending| *mending != id);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl VolumeCore {
    pub(super) fn note_forged(&mut self, member: MemberIndex, blocks: &[u64]) {
        self.counters.blocks_forged += blocks.len() as u64;
        tracing::error!(volume = %self.options.volume, member = %self.members[member.0].replica, ?blocks,
            "blocks are not as they were encrypted, though their checksums are right");
    }

    pub(super) fn is_mending(&self, block: u64) -> bool {
        self.mending.0.contains_key(&block)
    }

    /// Another member has what one had forged, or had an older version of.
    pub(super) fn mend(&mut self, now: Duration, blocks: Vec<u64>) {
        if self.options.read_only || self.state != VolumeState::Open {
            return;
        }
        for block in blocks {
            if self.mending.0.len() >= MENDING_MAX || self.mending.0.contains_key(&block) {
                continue;
            }
            let id = OperationId(self.new_id());
            self.mending.0.insert(block, id);
            let ready = self.ordering.register(id, Span { start: block, end: block + 1 }, true);
            let operation = Operation::ordered_by_engine(Phase::Blocked(Piece::Mend { block }));
            self.operations.insert(id, operation);
            if ready {
                self.start(now, id);
            }
        }
    }
}
