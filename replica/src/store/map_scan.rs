//! Reading the checkpointed map in the order of blocks.

use std::ops::ControlFlow;

use trivet_model::Stamp;

use super::checkpoint::CheckpointError;
use super::entry::{Group, GroupTags, key};
use super::record::Slot;
use crate::meta::MetaStore;

/// So many keys are passed over one by one; then a new seek is cheaper.
const PASSED_MAX: usize = 16;

pub(crate) fn decode_group(
    slot: Slot,
    group: u64,
    value: &[u8],
) -> Result<(Group, GroupTags), CheckpointError> {
    Group::decode(value).map_err(|error| {
        CheckpointError::Corrupt(format!("group {group} of volume slot {}: {error}", slot.0))
    })
}

/// Calls `visit` with the groups `first..end` of a volume that the map knows, in order, each as `cut`
/// shows it ([`Stamp::MAX`]: as it is now).
pub(crate) fn scan_groups(
    meta: &dyn MetaStore,
    slot: Slot,
    first: u64,
    end: u64,
    cut: Stamp,
    visit: &mut dyn FnMut(u64, Group, GroupTags) -> ControlFlow<()>,
) -> Result<(), CheckpointError> {
    let Some(top) = cut.as_u64().checked_sub(1).map(Stamp::from_u64) else { return Ok(()) };
    let mut from = Some(first);
    while let Some(first) = from.take().filter(|first| *first < end) {
        let (mut seen, mut passed) = (None, 0);
        scan_states(meta, &key::group(slot, first, top), slot, end, &mut |group, layer, value| {
            if seen != Some(group) && layer <= top {
                (seen, passed) = (Some(group), 0);
                let (state, tags) = decode_group(slot, group, value)?;
                return Ok(visit(group, state, tags));
            }
            passed += 1;
            if passed < PASSED_MAX {
                return Ok(ControlFlow::Continue(()));
            }
            from = Some(if seen == Some(group) { group + 1 } else { group });
            Ok(ControlFlow::Break(()))
        })?;
    }
    Ok(())
}

/// Calls `visit` with every state of the groups `first..end` of a volume: group by group, from the
/// highest layer to the lowest.
pub(crate) fn scan_layers(
    meta: &dyn MetaStore,
    slot: Slot,
    first: u64,
    end: u64,
    visit: &mut dyn FnMut(u64, Stamp, Group, GroupTags) -> ControlFlow<()>,
) -> Result<(), CheckpointError> {
    let from = key::group(slot, first, Stamp::MAX);
    scan_states(meta, &from, slot, end, &mut |group, layer, value| {
        let (state, tags) = decode_group(slot, group, value)?;
        Ok(visit(group, layer, state, tags))
    })
}

type VisitState<'a> = dyn FnMut(u64, Stamp, &[u8]) -> Result<ControlFlow<()>, CheckpointError> + 'a;

fn scan_states(
    meta: &dyn MetaStore,
    from: &[u8],
    slot: Slot,
    end: u64,
    visit: &mut VisitState<'_>,
) -> Result<(), CheckpointError> {
    let mut failure = None;
    let until = key::group(slot, end, Stamp::MAX);
    meta.scan(from, &until, &mut |stored_key, value| {
        let outcome = match key::parse_group(stored_key) {
            Some((_, group, layer)) => visit(group, layer, value),
            None => Err(CheckpointError::Corrupt("key of a group".to_owned())),
        };
        outcome.unwrap_or_else(|error| {
            failure = Some(error);
            ControlFlow::Break(())
        })
    })?;
    failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::MemoryMeta;
    use crate::store::entry::Entry;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        #[test]
        fn each_group_is_shown_in_its_newest_layer_below_the_cut(
            states in prop::collection::btree_set((0u64..6, 0u64..60), 0..120),
            cut in prop_oneof![Just(u64::MAX), 0u64..61], first in 0u64..6, end in 0u64..7)
        {
            let meta = MemoryMeta::new();
            let mut commit = meta.begin().unwrap();
            let in_key_order: BTreeSet<_> = states.iter().map(|(group, layer)| (*group, u64::MAX - layer)).collect();
            for (group, reversed) in in_key_order {
                let layer = Stamp::from_u64(u64::MAX - reversed);
                let mut state = Group::default();
                state.0[0] = Some(Entry::tombstone(layer));
                commit.put(&key::group(Slot(1), group, layer), &state.encode()).unwrap();
            }
            commit.finish().unwrap();
            let mut expected = BTreeMap::new();
            for (group, layer) in &states {
                if (first..end).contains(group) && *layer < cut {
                    expected.insert(*group, *layer);
                }
            }
            let mut found = BTreeMap::new();
            scan_groups(&meta, Slot(1), first, end.max(first), Stamp::from_u64(cut), &mut |group, state, _| {
                assert!(found.insert(group, state.0[0].unwrap().stamp.as_u64()).is_none());
                ControlFlow::Continue(())
            }).unwrap();
            prop_assert_eq!(found, expected);
        }
    }
}
