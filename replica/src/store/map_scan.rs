//! Reading the checkpointed map in the order of blocks.

use std::ops::ControlFlow;

use super::checkpoint::CheckpointError;
use super::entry::{Group, key};
use super::record::Slot;
use crate::meta::MetaStore;

pub(crate) fn decode_group(slot: Slot, group: u64, value: &[u8]) -> Result<Group, CheckpointError> {
    Group::decode(value).map_err(|error| {
        CheckpointError::Corrupt(format!("group {group} of volume slot {}: {error}", slot.0))
    })
}

/// Calls `visit` with the stored groups `first..end` of a volume, in order.
pub(crate) fn scan_groups(
    meta: &dyn MetaStore,
    slot: Slot,
    first: u64,
    end: u64,
    visit: &mut dyn FnMut(u64, Group) -> ControlFlow<()>,
) -> Result<(), CheckpointError> {
    let mut failure = None;
    let (from, until) = (key::group(slot, first), key::group(slot, end));
    meta.scan(&from, &until, &mut |stored_key, value| {
        let outcome = match key::parse_group(stored_key) {
            Some((_, group)) => decode_group(slot, group, value).map(|stored| visit(group, stored)),
            None => Err(CheckpointError::Corrupt("key of a group".to_owned())),
        };
        match outcome {
            Ok(flow) => flow,
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failure.map_or(Ok(()), Err)
}
