//! What becomes of a group of blocks in the map when its versions in a memtable are merged into it.
//!
//! ```text
//!            cuts          c1           c2
//!   intervals      (0, c1]     (c1, c2]      (c2, now)
//!   states        [layer 0]                 [layer c2]     the group has not changed in between
//! ```
//!
//! A state says of all blocks of the group what stood at the end of its interval; a missing one is the
//! same as the one below. While a deleted snapshot is being thinned out an interval has several states:
//! the one of the highest layer counts, the others go.

use std::collections::BTreeSet;

use trivet_model::Stamp;

use super::entry::{Entry, Group, GroupTags};
use super::snapshots::NO_SNAPSHOTS;
use super::version::Version;
use super::volume::Volume;
use crate::planted::{self, PlantedFault};

/// A state of a group in the map.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) layer: Stamp,
    pub(super) state: Group,
    pub(super) tags: GroupTags,
}

/// The outcome.
#[derive(Debug, Default)]
pub(super) struct GroupMerge {
    /// What each layer holds from now on, in the order of keys (the highest first); `None`: nothing.
    pub(super) changes: Vec<(Stamp, Option<Group>)>,
    /// What the volume itself had and has.
    pub(super) newest_before: Group,
    pub(super) newest: Group,
    /// The pool blocks that the intervals looked at own before and after.
    pub(super) before: BTreeSet<u64>,
    pub(super) after: BTreeSet<u64>,
}

impl GroupMerge {
    /// Merges `versions` (older first, each with its place in the group) into the states `stored` (the
    /// highest layer first: those from the layer `floor` up, and the next one below). All versions lie
    /// above `floor`. Of no volume, nothing is left. `inherited` is what a clone's ancestors show of the group.
    pub(super) fn new(
        volume: Option<&Volume>,
        inherited: &Group,
        floor: Stamp,
        stored: &[Stored],
        versions: &[(usize, Version)],
    ) -> Self {
        let mut merge = Self::default();
        if let Some(newest) = stored.first() {
            merge.newest_before = newest.state.clone();
        }
        let own = stored.iter().take_while(|stored| stored.layer >= floor).count();
        let base = stored.get(own).map(|stored| stored.state.clone());
        let snapshots = volume.map_or(&NO_SNAPSHOTS, |volume| &volume.snapshots);
        for Stored { layer, state, .. } in &stored[..own] {
            let after = snapshots.interval_of_layer(*layer).after;
            merge.before.extend(owned(state, after));
            if volume.is_none() {
                merge.changes.push((*layer, None));
            }
        }
        let Some(volume) = volume else { return merge };
        let ceiling = volume.ceiling();
        let mut own = stored[..own].iter().rev().peekable();
        let mut versions = versions.iter().peekable();
        let mut state = base.unwrap_or_default();
        let across = planted::is(PlantedFault::MergeAcrossCut);
        for interval in snapshots.intervals_from(floor) {
            if interval.after >= ceiling {
                merge.changes.extend(own.by_ref().map(|above| (above.layer, None)));
                break;
            }
            let mut present: Option<&Stored> = None;
            while let Some(higher) = own.next_if(|stored| stored.layer < interval.until) {
                if let Some(stale) = present.replace(higher) {
                    merge.changes.push((stale.layer, None));
                }
            }
            let mut next = state.clone();
            if let Some(present) = present {
                for (place, own) in next.0.iter_mut().zip(present.state.0) {
                    *place = newer(own, *place);
                }
            }
            while let Some((at, version)) = versions.next_if(|(_, version)| {
                version.stamp <= interval.until && !(across && interval.until < Stamp::MAX)
            }) {
                next.0[*at] = standing(*version, next.0[*at], inherited.0[*at]);
            }
            match present {
                None if next == state => continue,
                Some(present) if present.state == next => {}
                _ => {
                    let layer = present.map_or(interval.after, |present| present.layer);
                    merge.changes.push((layer, (!next.is_empty()).then(|| next.clone())));
                }
            }
            merge.after.extend(owned(&next, interval.after));
            state = next;
        }
        merge.changes.sort_unstable_by_key(|(layer, _)| std::cmp::Reverse(*layer));
        merge.newest = state;
        merge
    }
}

/// The pool blocks of the versions that belong to the interval above `after`.
fn owned(state: &Group, after: Stamp) -> impl Iterator<Item = u64> + '_ {
    let all = planted::is(PlantedFault::FreeSharedBlocks);
    let belongs = move |entry: &&Entry| !entry.is_tombstone() && (entry.stamp > after || all);
    let data = state.0.iter().flatten().filter(belongs);
    data.map(|entry| entry.physical)
}

/// Of what a state says of a block and what the state below says: equal stamps are the same version,
/// and below may have been repaired since.
fn newer(own: Option<Entry>, below: Option<Entry>) -> Option<Entry> {
    match (own, below) {
        (Some(own), Some(below)) if own.stamp <= below.stamp => Some(below),
        (own, below) => own.or(below),
    }
}

/// What a state says of a block after a change.
fn standing(new: Version, old: Option<Entry>, inherited: Option<Entry>) -> Option<Entry> {
    let hides = inherited.is_some_and(|inherited| !inherited.is_tombstone())
        && !planted::is(PlantedFault::DiscardWithoutTombstone);
    match old {
        // A discard of what nobody has written leaves no trace.
        None if new.is_tombstone() && !new.leaves_trace && !hides => None,
        old => Some(new.over(old)),
    }
}
