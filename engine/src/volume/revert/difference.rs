//! What must be done to blocks that have changed since a snapshot, so that they are again what it shows.

use trivet_model::BlockRange;
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_wire::frame::DISCARD_BLOCKS_MAX;

/// Blocks that all hold data, or all read as zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub(super) range: BlockRange,
    pub(super) data: bool,
}

/// Something to be done, in one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Write what the snapshot shows.
    Restore(BlockRange),
    /// Let it read as zeros again.
    Discard(BlockRange),
}

impl Change {
    pub(super) const fn range(self) -> BlockRange {
        match self {
            Self::Restore(range) | Self::Discard(range) => range,
        }
    }

    const fn blocks_max(self) -> u32 {
        match self {
            Self::Restore(_) => IO_BLOCKS_MAX,
            Self::Discard(_) => DISCARD_BLOCKS_MAX,
        }
    }

    /// The same to more blocks, if they follow and fit.
    fn joined(self, other: Self) -> Option<Self> {
        let (range, more) = (self.range(), other.range());
        let count = range.count.checked_add(more.count).filter(|count| *count <= self.blocks_max())?;
        match (self, other) {
            _ if range.end() != more.start => None,
            (Self::Restore(_), Self::Restore(_)) => Some(Self::Restore(BlockRange::new(range.start, count))),
            (Self::Discard(_), Self::Discard(_)) => Some(Self::Discard(BlockRange::new(range.start, count))),
            _ => None,
        }
    }
}

/// The changes that make the blocks of `changed`, of which some hold data now, what `shown` says of them.
/// Both are in the order of blocks, without overlap, and `shown` covers all that has changed.
pub(super) fn difference(changed: &[Run], shown: &[Run]) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    let mut shown = shown.iter().peekable();
    for run in changed {
        let mut at = run.range.start;
        while at < run.range.end() {
            while shown.next_if(|shown| shown.range.end() <= at).is_some() {}
            let Some(here) = shown.peek() else { return changes };
            let end = here.range.end().min(run.range.end());
            let most = if here.data { IO_BLOCKS_MAX } else { DISCARD_BLOCKS_MAX };
            let count = u32::try_from(end - at).unwrap_or(u32::MAX).min(most);
            let range = BlockRange::new(at, count);
            at = range.end();
            let change = match (here.data, run.data) {
                (true, _) => Change::Restore(range),
                (false, true) => Change::Discard(range),
                (false, false) => continue,
            };
            match changes.last_mut() {
                Some(last) if last.joined(change).is_some() => {
                    *last = last.joined(change).unwrap_or(*last);
                }
                _ => changes.push(change),
            }
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs over consecutive blocks, of which `None` are left out.
    fn runs(blocks: &[Option<bool>], splits: &[bool]) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for ((block, data), split) in (0..).zip(blocks).zip(splits) {
            let Some(data) = *data else { continue };
            match runs.last_mut() {
                Some(last) if last.range.end() == block && last.data == data && !split => {
                    last.range.count += 1;
                }
                _ => runs.push(Run { range: BlockRange::new(block, 1), data }),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn every_changed_block_becomes_what_the_snapshot_shows(
            blocks in prop::collection::vec((prop::option::of(any::<bool>()), any::<bool>(), any::<bool>()), 1..600))
        {
            let splits: Vec<bool> = blocks.iter().map(|(.., split)| *split).collect();
            let changed: Vec<Option<bool>> = blocks.iter().map(|(changed, ..)| *changed).collect();
            let shown: Vec<Option<bool>> = blocks.iter().map(|(_, shown, _)| Some(*shown)).collect();
            let changes = difference(&runs(&changed, &splits), &runs(&shown, &splits));
            let mut found = vec![None; blocks.len()];
            for change in &changes {
                prop_assert!(change.range().count > 0 && change.range().count <= change.blocks_max());
                for block in change.range().blocks() {
                    let place = &mut found[usize::try_from(block).unwrap()];
                    prop_assert!(place.is_none(), "block {} is changed twice", block);
                    *place = Some(matches!(change, Change::Restore(_)));
                }
            }
            for (at, (changed, shown, _)) in blocks.iter().enumerate() {
                let wanted = match (changed, shown) {
                    (None, _) | (Some(false), false) => None,
                    (Some(_), true) => Some(true),
                    (Some(true), false) => Some(false),
                };
                prop_assert_eq!(found[at], wanted, "block {}", at);
            }
            prop_assert!(changes.is_sorted_by_key(|change| change.range().start));
        }
    }

    #[test]
    fn pieces_are_as_long_as_a_message_allows() {
        let long = |data, count| Run { range: BlockRange::new(0, count), data };
        let changes = difference(&[long(true, 600)], &[long(true, 600)]);
        assert_eq!(changes.iter().map(|change| change.range().count).collect::<Vec<_>>(), [256, 256, 88]);
        let changes = difference(&[long(true, 600)], &[long(false, 600)]);
        assert_eq!(changes, [Change::Discard(BlockRange::new(0, 600))]);
    }
}
