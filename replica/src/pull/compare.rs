//! What a member that comes back must do about each block that changed on either side.

use crate::store::TailExtent;
use trivet_model::{BlockRange, Stamp};

/// What follows from a comparison, each list in the order of blocks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Data that the source has newer.
    pub(super) fetch: Vec<BlockRange>,
    /// Tombstones that must be there and leave a trace.
    pub(super) tombstones: Vec<TailExtent>,
    /// Ours is newer, and was never acknowledged.
    pub(super) diverged: Vec<BlockRange>,
}

/// Compares the versions on both sides of blocks `from..until`. What lies outside is left out; both
/// lists are in the order of blocks. `floor` is the first stamp that the session's writes may have.
pub(super) fn compare(
    source: &[TailExtent],
    own: &[TailExtent],
    (from, until): (u64, u64),
    floor: Stamp,
) -> Findings {
    let mut findings = Findings::default();
    let mut source = Runs::new(source, from, until);
    let mut own = Runs::new(own, from, until);
    let mut at = from;
    while let Some(start) = [source.start(at), own.start(at)].into_iter().flatten().min() {
        let end = [source.end(start), own.end(start)].into_iter().flatten().fold(until, u64::min);
        findings.decide(source.piece(start, end), own.piece(start, end), floor);
        at = end;
    }
    findings
}

impl Findings {
    fn decide(&mut self, source: Option<TailExtent>, own: Option<TailExtent>, floor: Stamp) {
        match (source, own) {
            (Some(source), own) if own.is_none_or(|own| source.stamp > own.stamp) => {
                if source.discard {
                    self.tombstones.push(source)
                } else {
                    join(&mut self.fetch, source.range)
                }
            }
            (Some(source), Some(own)) if source.stamp == own.stamp => {
                if source.discard {
                    self.tombstones.push(source);
                }
            }
            (source, Some(own)) => {
                let below = floor.as_u64().saturating_sub(own.stamp.as_u64());
                let below = u32::try_from(below).unwrap_or(u32::MAX).min(own.range.count);
                if below > 0 {
                    join(&mut self.diverged, BlockRange::new(own.range.start, below));
                }
                // It hides what the source had, and what somebody else may still have.
                if source.is_some() && own.discard {
                    self.tombstones.push(own);
                }
            }
            (_, None) => {}
        }
    }
}

/// Runs in the order of blocks, seen from a place that moves forward.
struct Runs<'a> {
    rest: &'a [TailExtent],
    until: u64,
}

impl<'a> Runs<'a> {
    fn new(runs: &'a [TailExtent], from: u64, until: u64) -> Self {
        let first = runs.partition_point(|run| run.range.end() <= from);
        Self { rest: &runs[first..], until }
    }

    /// The first block at or after `at` that has a version here.
    fn start(&mut self, at: u64) -> Option<u64> {
        while self.rest.first().is_some_and(|run| run.range.end() <= at) {
            self.rest = &self.rest[1..];
        }
        let start = self.rest.first()?.range.start.max(at);
        (start < self.until).then_some(start)
    }

    /// The next block after `start` at which something begins or ends.
    fn end(&self, start: u64) -> Option<u64> {
        let run = self.rest.first()?;
        Some(if run.range.start > start { run.range.start } else { run.range.end() })
    }

    /// The versions of blocks that lie all in one run, or in none.
    fn piece(&self, start: u64, end: u64) -> Option<TailExtent> {
        let run = self.rest.first().filter(|run| run.range.start <= start)?;
        Some(part(*run, start, end))
    }
}

fn part(run: TailExtent, start: u64, end: u64) -> TailExtent {
    let count = u32::try_from(end - start).unwrap_or(u32::MAX);
    TailExtent { range: BlockRange::new(start, count), stamp: run.stamp.plus(start - run.range.start), ..run }
}

/// Adds a range that comes behind the others.
fn join(ranges: &mut Vec<BlockRange>, range: BlockRange) {
    if let Some(last) = ranges.last_mut()
        && last.end() == range.start
        && let Some(count) = last.count.checked_add(range.count)
    {
        last.count = count;
        return;
    }
    ranges.push(range);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn runs() -> impl Strategy<Value = Vec<TailExtent>> {
        prop::collection::vec((0u64..3, 1u32..6, 1u64..60, any::<bool>()), 0..12).prop_map(|runs| {
            let mut at = 0;
            let extent = |(gap, count, stamp, discard)| {
                let range = BlockRange::new(at + gap, count);
                at = range.end();
                TailExtent { range, stamp: Stamp::from_u64(stamp), discard }
            };
            runs.into_iter().map(extent).collect()
        })
    }

    fn by_block(runs: &[TailExtent]) -> BTreeMap<u64, (u64, bool)> {
        let blocks = |run: &TailExtent| {
            let (stamp, discard) = (run.stamp, run.discard);
            run.range
                .blocks()
                .zip(0..)
                .map(move |(block, at)| (block, (stamp.plus(at).as_u64(), discard)))
                .collect::<Vec<_>>()
        };
        runs.iter().flat_map(blocks).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn agrees_with_a_decision_a_block(
            source in runs(), own in runs(), from in 0u64..30, length in 0u64..60, floor in 1u64..80)
        {
            let until = from + length;
            let found = compare(&source, &own, (from, until), Stamp::from_u64(floor));
            let (source, own) = (by_block(&source), by_block(&own));
            let mut expected: BTreeMap<u64, &str> = BTreeMap::new();
            let mut tombstones = BTreeMap::new();
            for block in from..until {
                match (source.get(&block), own.get(&block)) {
                    (Some((s, true)), None) => { tombstones.insert(block, *s); }
                    (Some((s, true)), Some((o, _))) if s >= o => { tombstones.insert(block, *s); }
                    (Some((_, false)), None) => { expected.insert(block, "fetch"); }
                    (Some((s, false)), Some((o, _))) if s > o => { expected.insert(block, "fetch"); }
                    (Some((s, false)), Some((o, _))) if s == o => {}
                    (source, Some((o, discard))) => {
                        if *o < floor {
                            expected.insert(block, "diverged");
                        }
                        if source.is_some() && *discard {
                            tombstones.insert(block, *o);
                        }
                    }
                    (None, None) => {}
                }
            }
            let mut decided: BTreeMap<u64, &str> = BTreeMap::new();
            for (ranges, what) in [(&found.fetch, "fetch"), (&found.diverged, "diverged")] {
                for block in ranges.iter().flat_map(|range| range.blocks()) {
                    prop_assert!(decided.insert(block, what).is_none());
                }
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end() < pair[1].start), "not joined");
            }
            prop_assert_eq!(decided, expected);
            let placed: BTreeMap<u64, u64> =
                by_block(&found.tombstones).into_iter().map(|(block, (stamp, _))| (block, stamp)).collect();
            prop_assert_eq!(placed, tombstones);
        }
    }
}
