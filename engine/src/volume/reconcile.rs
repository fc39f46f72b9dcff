//! Making members alike before a volume serves anything.
//!
//! Writes that the last engine did not acknowledge may be on some members only; and a member whose
//! host lost power may lack writes that it did acknowledge, above its `intact` stamp. Both lie above
//! `since`: the highest stamp that any member knows to be stable on all, but not above any member's
//! `intact`. Every member lists the newest version of each block that it wrote above `since`, and
//! where the lists differ, the version with the highest stamp is written everywhere, under a new
//! stamp of our generation. A final flush makes the result stable, so that it is the new lower bound.
//!
//! The authority for a block is the member with its newest version, rather than one member for all
//! blocks: an acknowledged write is the newest version of its block on every member that still has
//! it, so it survives any loss that leaves it on one; and what an older engine's read has returned
//! was on every member, or is the newest.

use super::member::Control;
use super::operation::Owner;
use super::{MemberFault, MemberIndex, MemberSet, VolumeCore, VolumeState};
use std::collections::VecDeque;
use std::time::Duration;
use trivet_model::{BlockRange, Stamp};
use trivet_wire::frame::Progress;
use trivet_wire::{Message, TailEntry};

/// Blocks copied by one operation.
const COPY_BLOCKS_MAX: u32 = 32;
/// Copies in flight. An answer with holes becomes up to `COPY_BLOCKS_MAX` writes.
const COPIES_MAX: usize = 16;
/// Entries of one member's tail, all pages together.
const TAIL_ENTRIES_TOTAL_MAX: usize = 1 << 22;

/// The comparison under way.
#[derive(Debug)]
pub(super) struct Reconcile {
    since: Stamp,
    tails: Vec<Tail>,
    copies: VecDeque<Copy>,
    comparing: bool,
    /// Why it does not get on.
    pub(super) trouble: Option<String>,
}

#[derive(Debug, Default)]
struct Tail {
    entries: Vec<TailEntry>,
    complete: bool,
}

/// A run of blocks in which members differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Copy {
    start: u64,
    end: u64,
    /// Who has the newest version.
    newest: MemberSet,
    discard: bool,
}

impl VolumeCore {
    /// All members are ready: ask for their tails.
    pub(super) fn begin_reconcile(&mut self, now: Duration) {
        let stable = self.members.iter().map(|member| member.known.stable).max().unwrap_or_default();
        let committed = self.members.iter().map(|member| member.known.committed).max().unwrap_or_default();
        let intact = self.members.iter().map(|member| member.intact).min().unwrap_or_default();
        self.log.abandon();
        self.log.begin(self.generation, Progress { committed, stable });
        let tails = self.members.iter().map(|_| Tail::default()).collect();
        let since = stable.min(intact);
        self.reconcile =
            Some(Reconcile { since, tails, copies: VecDeque::new(), comparing: true, trouble: None });
        self.transition(now, VolumeState::Reconciling);
        #[cfg(any(test, feature = "planted-faults"))]
        if self.planted == Some(super::PlantedFault::SkipReconcile) {
            self.log.members_are_alike();
            return self.opened(now);
        }
        for member in self.all_members() {
            self.ask(now, member, Control::Tail, Message::Tail { since, skip: 0 });
        }
    }

    pub(super) fn tail_answered(
        &mut self,
        now: Duration,
        member: MemberIndex,
        entries: Vec<TailEntry>,
        more: bool,
    ) -> Result<(), MemberFault> {
        let Some(reconcile) = self.reconcile.as_mut().filter(|reconcile| reconcile.comparing) else {
            return Err(MemberFault::Protocol("a tail that nobody asked for"));
        };
        let since = reconcile.since;
        let tail = &mut reconcile.tails[member.0];
        if more && entries.is_empty() {
            return Err(MemberFault::Protocol("a tail without end"));
        }
        tail.entries.extend(entries);
        if !is_in_order(&tail.entries) || tail.entries.len() > TAIL_ENTRIES_TOTAL_MAX {
            return Err(MemberFault::Protocol("a tail that is not in order, or too long"));
        }
        if more {
            let skip = u32::try_from(tail.entries.len()).expect("bounded above");
            self.ask(now, member, Control::Tail, Message::Tail { since, skip });
            return Ok(());
        }
        tail.complete = true;
        if reconcile.tails.iter().all(|tail| tail.complete) {
            let tails = std::mem::take(&mut reconcile.tails);
            let tails: Vec<Vec<TailEntry>> = tails.into_iter().map(|tail| tail.entries).collect();
            reconcile.copies = differences(&tails).into();
            reconcile.comparing = false;
            let wrote = !reconcile.copies.is_empty() || tails.iter().any(|tail| !tail.is_empty());
            if wrote || self.members.iter().any(|member| member.intact < member.held) {
                self.flushing.want();
            }
            self.copied(now);
        }
        Ok(())
    }

    /// Goes on copying; ends with a flush, and the volume is open.
    pub(super) fn copied(&mut self, now: Duration) {
        while let Some(reconcile) = self.reconcile.as_mut().filter(|reconcile| !reconcile.comparing) {
            let mine = self.operations.values().filter(|operation| operation.owner == Owner::Engine).count();
            let Some(copy) = reconcile.copies.front_mut() else {
                if mine == 0 {
                    self.alike(now);
                }
                return;
            };
            if mine >= COPIES_MAX {
                return;
            }
            let most = if copy.discard { trivet_wire::frame::DISCARD_BLOCKS_MAX } else { COPY_BLOCKS_MAX };
            let count = u32::try_from(copy.end - copy.start).map_or(most, |count| count.min(most));
            let range = BlockRange::new(copy.start, count);
            let (newest, discard) = (copy.newest, copy.discard);
            copy.start = range.end();
            if copy.start == copy.end {
                reconcile.copies.pop_front();
            }
            self.copy_from(now, range, newest, discard);
        }
    }

    /// Every block is the same on all members.
    fn alike(&mut self, now: Duration) {
        if self.flushing.is_running() {
            return;
        }
        self.log.members_are_alike();
        self.begin_flush(now);
        if !self.flushing.is_running() {
            self.opened(now);
        }
    }

    /// Forgets the copies under way; what they wrote is in the members' next tails.
    pub(super) fn drop_engine_operations(&mut self) {
        self.operations.retain(|_, operation| operation.owner != Owner::Engine);
        let Self { held_reads, held_writes, operations, .. } = self;
        held_reads.retain(|id| operations.contains_key(id));
        held_writes.retain(|id| operations.contains_key(id));
        self.full = super::write::Full::default();
        self.log.abandon();
        for member in &mut self.members {
            member.forget_reads();
        }
    }
}

fn is_in_order(entries: &[TailEntry]) -> bool {
    entries.windows(2).all(|pair| pair[0].range.end() <= pair[1].range.start)
}

/// A member's version of a block: stamps within an entry rise with the block, so that the stamp that
/// block 0 would have had, plus the block, is the block's stamp.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    stamp: Stamp,
    discard: bool,
}

/// Walks one member's entries along rising blocks.
struct Walk<'a> {
    entries: &'a [TailEntry],
}

impl Walk<'_> {
    fn version_at(&mut self, block: u64) -> Option<Version> {
        while let [first, rest @ ..] = self.entries {
            if first.range.end() > block {
                break;
            }
            self.entries = rest;
        }
        let entry = self.entries.first().filter(|entry| entry.range.start <= block)?;
        Some(Version { stamp: entry.stamp.plus(block - entry.range.start), discard: entry.discard })
    }
}

/// The runs of blocks whose newest versions are not the same on all members, with those who have
/// the newest. Within a run between two boundaries of entries, stamps rise alike on all members, so
/// comparing its first block compares all.
fn differences(tails: &[Vec<TailEntry>]) -> Vec<Copy> {
    let mut boundaries: Vec<u64> =
        tails.iter().flatten().flat_map(|entry| [entry.range.start, entry.range.end()]).collect();
    boundaries.sort_unstable();
    boundaries.dedup();
    let mut walks: Vec<Walk<'_>> = tails.iter().map(|entries| Walk { entries }).collect();
    let mut copies: Vec<Copy> = Vec::new();
    for pair in boundaries.windows(2) {
        let versions: Vec<Option<Version>> = walks.iter_mut().map(|walk| walk.version_at(pair[0])).collect();
        if versions.iter().all(|version| *version == versions[0]) {
            continue;
        }
        let Some(best) = versions.iter().flatten().max_by_key(|version| version.stamp).copied() else {
            continue;
        };
        let mut newest = MemberSet::EMPTY;
        for (index, version) in versions.iter().enumerate() {
            if *version == Some(best) {
                newest.insert(MemberIndex(index));
            }
        }
        let copy = Copy { start: pair[0], end: pair[1], newest, discard: best.discard };
        match copies.last_mut() {
            Some(last) if last.end == copy.start && last.newest == newest && last.discard == copy.discard => {
                last.end = copy.end;
            }
            _ => copies.push(copy),
        }
    }
    copies
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use trivet_model::Generation;

    fn stamp(sequence: u64) -> Stamp {
        Stamp::new(Generation::new(1).unwrap(), sequence).unwrap()
    }

    /// Turns versions by block into the shortest list of entries.
    fn entries(versions: &BTreeMap<u64, (u64, bool)>) -> Vec<TailEntry> {
        let mut entries: Vec<TailEntry> = Vec::new();
        for (&block, &(sequence, discard)) in versions {
            match entries.last_mut() {
                Some(last)
                    if last.range.end() == block
                        && last.discard == discard
                        && last.stamp.plus(u64::from(last.range.count)) == stamp(sequence) =>
                {
                    last.range.count += 1;
                }
                _ => entries.push(TailEntry {
                    range: BlockRange::new(block, 1),
                    stamp: stamp(sequence),
                    discard,
                }),
            }
        }
        entries
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn differences_are_found_block_by_block(
            writes in prop::collection::vec((0u64..24, 1u64..8, any::<bool>(), 1u8..8), 0..12)
        ) {
            // Each write lands on the members of its mask, in order of stamps.
            let mut members = vec![BTreeMap::new(); 3];
            let mut sequence = 1;
            for (start, count, discard, mask) in writes {
                for (index, member) in members.iter_mut().enumerate() {
                    if mask & (1 << index) != 0 {
                        for i in 0..count {
                            member.insert(start + i, (sequence + i, discard));
                        }
                    }
                }
                sequence += count;
            }
            let tails: Vec<Vec<TailEntry>> = members.iter().map(entries).collect();
            let mut found: BTreeMap<u64, (Vec<usize>, bool)> = BTreeMap::new();
            for copy in differences(&tails) {
                for block in copy.start..copy.end {
                    let newest = copy.newest.into_iter().map(|member| member.0).collect();
                    prop_assert!(found.insert(block, (newest, copy.discard)).is_none());
                }
            }
            for block in 0..40 {
                let versions: Vec<_> = members.iter().map(|member| member.get(&block).copied()).collect();
                if versions.iter().all(|version| *version == versions[0]) {
                    prop_assert!(!found.contains_key(&block));
                    continue;
                }
                let best = versions.iter().flatten().max().copied().unwrap();
                let newest: Vec<usize> = (0..3).filter(|&index| versions[index] == Some(best)).collect();
                prop_assert_eq!(found.get(&block), Some(&(newest, best.1)));
            }
        }
    }
}
