//! The order of overlapping operations in flight.
//!
//! An operation may start once every earlier one that it conflicts with has finished: two
//! operations conflict when they share a block and at least one of them changes it. Operations that
//! do not conflict never wait for each other.
//!
//! A read waits for earlier writes so that it returns what was acknowledged. A write waits for
//! earlier reads too: a read that saw a write which only some members hold would return a version
//! that a crash can take back.
//!
//! Invariants:
//! - segments are disjoint, none is empty, and each has a holder;
//! - a segment's `readers` came after its `writer`, and wait for it while it is there;
//! - `waits_for` of an operation is the number of `followers` lists that it stands in.

use super::OperationId;
use hashbrown::HashMap;
use std::collections::BTreeMap;

/// A half-open run of blocks; wider than a `BlockRange` may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

#[derive(Debug)]
struct Segment {
    end: u64,
    writer: Option<OperationId>,
    readers: Vec<OperationId>,
}

#[derive(Debug)]
struct Holder {
    span: Span,
    waits_for: usize,
    followers: Vec<OperationId>,
}

/// Which operations hold which blocks, and who waits for whom.
#[derive(Debug, Default)]
pub(super) struct Ordering {
    segments: BTreeMap<u64, Segment>,
    holders: HashMap<OperationId, Holder>,
}

impl Ordering {
    /// Registers an operation after all that are registered. Answers whether it may start at once;
    /// otherwise a later `finish` releases it.
    pub(super) fn register(&mut self, id: OperationId, span: Span, changes: bool) -> bool {
        assert!(span.start < span.end, "an operation covers at least one block");
        self.split_at(span.start);
        self.split_at(span.end);
        let mut waits_for = if changes { self.claim(id, span) } else { self.share(id, span) };
        waits_for.sort_unstable();
        waits_for.dedup();
        for earlier in &waits_for {
            let holder = self.holders.get_mut(earlier).expect("holders of segments are registered");
            holder.followers.push(id);
        }
        let ready = waits_for.is_empty();
        let holder = Holder { span, waits_for: waits_for.len(), followers: Vec::new() };
        let previous = self.holders.insert(id, holder);
        assert!(previous.is_none(), "operation {id:?} registered twice");
        ready
    }

    /// Removes an operation and appends those that may start now, in the order they came.
    pub(super) fn finish(&mut self, id: OperationId, released: &mut Vec<OperationId>) {
        let holder = self.holders.remove(&id).expect("only registered operations finish");
        assert_eq!(holder.waits_for, 0, "operation {id:?} finished before it could start");
        self.release(id, holder.span);
        for follower in holder.followers {
            let waiting = self.holders.get_mut(&follower).expect("followers are registered");
            waiting.waits_for -= 1;
            if waiting.waits_for == 0 {
                released.push(follower);
            }
        }
    }

    /// Whether nothing is registered.
    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    fn split_at(&mut self, at: u64) {
        let Some((_, segment)) = self.segments.range_mut(..at).next_back() else { return };
        if segment.end > at {
            let upper =
                Segment { end: segment.end, writer: segment.writer, readers: segment.readers.clone() };
            segment.end = at;
            self.segments.insert(at, upper);
        }
    }

    /// Makes `id` the writer of the span: one segment, whose earlier holders it waits for.
    fn claim(&mut self, id: OperationId, span: Span) -> Vec<OperationId> {
        let mut waits_for = Vec::new();
        while let Some((&start, _)) = self.segments.range(span.start..span.end).next() {
            let mut segment = self.segments.remove(&start).expect("just found");
            match segment.writer {
                Some(writer) if segment.readers.is_empty() => waits_for.push(writer),
                _ => waits_for.append(&mut segment.readers),
            }
        }
        self.segments.insert(span.start, Segment { end: span.end, writer: Some(id), readers: Vec::new() });
        waits_for
    }

    /// Adds `id` to the readers of the span, and makes segments where there are gaps.
    fn share(&mut self, id: OperationId, span: Span) -> Vec<OperationId> {
        let mut waits_for = Vec::new();
        let mut gaps = Vec::new();
        let mut at = span.start;
        for (&start, segment) in self.segments.range_mut(span.start..span.end) {
            if at < start {
                gaps.push(Span { start: at, end: start });
            }
            waits_for.extend(segment.writer);
            segment.readers.push(id);
            at = segment.end;
        }
        if at < span.end {
            gaps.push(Span { start: at, end: span.end });
        }
        for gap in gaps {
            self.segments.insert(gap.start, Segment { end: gap.end, writer: None, readers: vec![id] });
        }
        waits_for
    }

    fn release(&mut self, id: OperationId, span: Span) {
        // Later operations may have split or joined this one's segments: one can reach over the span's
        // bounds only if a later writer has taken it over, and then it does not name `id`.
        let mut at = span.start;
        while at < span.end {
            let Some((&start, segment)) = self.segments.range_mut(at..span.end).next() else { return };
            at = segment.end;
            if segment.writer == Some(id) {
                segment.writer = None;
            }
            segment.readers.retain(|&reader| reader != id);
            if segment.writer.is_none() && segment.readers.is_empty() {
                self.segments.remove(&start);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything registered and not finished, in order: the definition itself.
    #[derive(Default)]
    struct Oracle {
        active: Vec<(OperationId, Span, bool)>,
    }

    impl Oracle {
        fn ready(&self, at: usize) -> bool {
            let (_, span, changes) = self.active[at];
            !self.active[..at].iter().any(|&(_, earlier, earlier_changes)| {
                (changes || earlier_changes) && earlier.start < span.end && span.start < earlier.end
            })
        }

        fn ready_set(&self) -> Vec<OperationId> {
            (0..self.active.len()).filter(|&at| self.ready(at)).map(|at| self.active[at].0).collect()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Register { start: u64, length: u64, changes: bool },
        Finish { which: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u64..40, 1u64..12, any::<bool>())
                .prop_map(|(start, length, changes)| Step::Register { start, length, changes }),
            2 => any::<usize>().prop_map(|which| Step::Finish { which }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn starts_exactly_what_the_definition_allows(steps in prop::collection::vec(step(), 1..120)) {
            let mut ordering = Ordering::default();
            let mut oracle = Oracle::default();
            let mut started: Vec<OperationId> = Vec::new();
            let mut next = 0u64;
            let drain = (0..200).map(|which| Step::Finish { which });
            for step in steps.into_iter().chain(drain) {
                match step {
                    Step::Register { start, length, changes } => {
                        let (id, span) = (OperationId(next), Span { start, end: start + length });
                        next += 1;
                        oracle.active.push((id, span, changes));
                        if ordering.register(id, span, changes) {
                            started.push(id);
                        }
                    }
                    Step::Finish { which } if !started.is_empty() => {
                        let id = started.swap_remove(which % started.len());
                        ordering.finish(id, &mut started);
                        oracle.active.retain(|&(active, ..)| active != id);
                    }
                    Step::Finish { .. } => {}
                }
                started.sort_unstable();
                prop_assert_eq!(&started, &oracle.ready_set());
            }
            prop_assert!(ordering.is_empty() && ordering.segments.is_empty(), "segments leak: {:?}", ordering);
        }
    }
}
