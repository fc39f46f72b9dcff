//! After a snapshot is deleted: which groups have states that nothing shows any more.
//!
//! The deleted cut parted two intervals that are one now. Where the upper one has a state of a group, the
//! lower one's is seen no more; so the groups to look at are those that changed in the upper one, and the
//! map knows them by their layer. Each checkpoint takes a portion of them, and the rest is in the
//! volume's record: a crash loses nothing of it.

use std::ops::ControlFlow;

use bytes::{Buf, BufMut, TryGetError};
use trivet_model::Stamp;

use super::checkpoint::CheckpointError;
use super::entry::key;
use super::record::Slot;
use super::snapshots::Interval;
use crate::meta::MetaStore;

/// Groups looked at by one checkpoint.
const PORTION_GROUPS: usize = 4096;
/// Bytes of one in the volume's record.
pub(super) const THINNING_BYTES: usize = 8 + 8 + 8;

/// Layers whose groups are still to be looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Thinning {
    /// The first layer.
    pub(crate) from: Stamp,
    /// The layer after the last.
    pub(crate) until: Stamp,
    /// In the first layer, the first group.
    pub(crate) group: u64,
}

impl Thinning {
    /// Every group that has a state above the lowest layer.
    pub(crate) const EVERYTHING: Self = Self { from: Stamp::from_u64(1), until: Stamp::MAX, group: 0 };

    /// What is to be done once the cut below `upper` is gone.
    pub(crate) fn of(upper: Interval) -> Self {
        Self { from: upper.after, until: upper.until, group: 0 }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.from.as_u64());
        out.put_u64_le(self.until.as_u64());
        out.put_u64_le(self.group);
    }

    pub(crate) fn decode(input: &mut &[u8]) -> Result<Self, TryGetError> {
        let (from, until) =
            (Stamp::from_u64(input.try_get_u64_le()?), Stamp::from_u64(input.try_get_u64_le()?));
        Ok(Self { from, until, group: input.try_get_u64_le()? })
    }
}

/// The next groups, and what is left after them.
pub(super) fn portion(
    meta: &dyn MetaStore,
    slot: Slot,
    thinning: Thinning,
) -> Result<(Vec<u64>, Option<Thinning>), CheckpointError> {
    let mut groups = Vec::new();
    let mut rest = None;
    let mut damaged = false;
    let from = key::layered(slot, thinning.from, thinning.group);
    let until = key::layered(slot, thinning.until, 0);
    meta.scan(&from, &until, &mut |stored, _| {
        let Some((_, layer, group)) = key::parse_layered(stored) else {
            damaged = true;
            return ControlFlow::Break(());
        };
        if groups.len() >= PORTION_GROUPS {
            rest = Some(Thinning { from: layer, group, ..thinning });
            return ControlFlow::Break(());
        }
        groups.push(group);
        ControlFlow::Continue(())
    })?;
    match damaged {
        false => Ok((groups, rest)),
        true => Err(CheckpointError::Corrupt("key of a group's layer".to_owned())),
    }
}
