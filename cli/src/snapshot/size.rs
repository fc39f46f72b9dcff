//! What deleting a snapshot would free: what was written before it and after the one before, and again, or
//! discarded, since. By stamps: no data is read.

use super::diff::{Extent, changes};
use crate::failure::Failure;
use crate::snapshot_view::SnapshotView;
use std::path::Path;
use trivet_api::Client;

/// In bytes, on each copy. `snapshots`: all of the volume's, in their order.
pub(super) async fn freed_by(
    client: &Client,
    dir: &Path,
    snapshots: &[SnapshotView],
    at: usize,
) -> Result<u64, Failure> {
    let snapshot = &snapshots[at];
    let before = at.checked_sub(1).map_or("", |at| snapshots[at].name.as_str());
    let after = snapshots.get(at + 1).map(|after| after.name.as_str());
    let volume = &snapshot.volume;
    let written = changes(client, dir, volume, before, Some(&snapshot.name)).await?;
    let since = changes(client, dir, volume, &snapshot.name, after).await?;
    Ok(overlap(&written, &since))
}

/// How much of what `written` says holds data is in `since` too. Both are in the order of bytes.
fn overlap(written: &[Extent], since: &[Extent]) -> u64 {
    let mut sum = 0;
    let mut first = 0;
    for extent in written.iter().filter(|extent| extent.holds == "data") {
        while since.get(first).is_some_and(|later| later.end() <= extent.offset) {
            first += 1;
        }
        let within = since[first..].iter().take_while(|later| later.offset < extent.end());
        sum +=
            within.map(|later| later.end().min(extent.end()) - later.offset.max(extent.offset)).sum::<u64>();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, length: u64, holds: &'static str) -> Extent {
        Extent { offset, length, holds }
    }

    #[test]
    fn only_data_that_was_replaced_counts() {
        let written = [extent(0, 10, "data"), extent(10, 5, "zeros"), extent(20, 10, "data")];
        assert_eq!(overlap(&written, &[]), 0);
        let since =
            [extent(5, 10, "data"), extent(18, 4, "zeros"), extent(24, 2, "data"), extent(29, 9, "data")];
        assert_eq!(overlap(&written, &since), 5 + 2 + 2 + 1);
        assert_eq!(overlap(&written, &[extent(0, 100, "data")]), 20);
    }
}
