//! Leaving and coming back.

use crate::model::Protocol;
use crate::record::Member;
use crate::replica::{Stamp, Version};
use crate::set::Set;
use crate::state::{InFlight, Phase, Resync, Stage, State, Violation};
use crate::variant::Variant;

impl Protocol {
    pub(crate) fn may_drop(&self, state: &State, engine: usize, member: usize) -> bool {
        let owner = &state.engines[engine];
        let others = owner.view.in_sync().without(Set::of(member));
        let slow = owner.connected.contains(member);
        owner.phase == Phase::Open
            && owner.swap.is_none()
            && owner.view.members[member] == Member::InSync
            && (!others.is_empty() || self.is(Variant::DropLast))
            && (!others.intersection(owner.connected).is_empty()
                || self.is(Variant::DropUnseen)
                || others.is_empty())
            && (!slow || state.used.breaks < self.bounds.breaks)
    }

    pub(crate) fn drop_member(&self, state: &mut State, engine: usize, member: usize) {
        let owner = &mut state.engines[engine];
        if owner.connected.contains(member) {
            state.used.breaks += 1;
        }
        owner.leaving.insert(member);
        let others = owner.view.in_sync().without(Set::of(member));
        if Self::chooses_loss(state, engine, others) {
            state.violation = Some(Violation::LossChosen);
            return;
        }
        let owner = &mut state.engines[engine];
        let since = if self.is(Variant::SinceTooHigh) { owner.last_stamp() } else { owner.committed };
        self.send_swap(state, engine, |record| {
            record.members[member] = Member::Stale(since);
            record.wait_owed = false;
        });
        self.advance(state, engine);
    }

    pub(crate) fn may_resync(state: &State, engine: usize, member: usize) -> bool {
        let owner = &state.engines[engine];
        owner.phase == Phase::Open
            && owner.connected.contains(member)
            && owner.resyncs[member].stage == Stage::No
            && match owner.view.members[member] {
                Member::Stale(_) => owner.swap.is_none(),
                Member::Syncing(_) => true,
                Member::InSync | Member::Absent => false,
            }
    }

    pub(crate) fn resync(&self, state: &mut State, engine: usize, member: usize) {
        let base = self.base(state, engine, member);
        match state.engines[engine].view.members[member] {
            Member::Stale(since) => self.send_swap(state, engine, |record| {
                let since = if self.is(Variant::BaseRecordedOnce) { base } else { since };
                record.members[member] = Member::Syncing(since);
                record.wait_owed = false;
            }),
            _ => self.receive(state, engine, member),
        }
    }

    /// Both the member and the in-sync ones hold the same up to it.
    fn base(&self, state: &State, engine: usize, member: usize) -> Stamp {
        let replica = &state.replicas[member];
        let recorded = state.engines[engine].view.members[member];
        let since = match recorded {
            Member::Syncing(_) if self.is(Variant::SyncingForgetsSince) => replica.committed,
            _ => recorded.since().unwrap_or_default(),
        };
        if self.is(Variant::BaseIgnoresIntact) {
            return since;
        }
        since.min(replica.intact()).min(replica.committed)
    }

    /// From now on the member gets what is written.
    pub(crate) fn receive(&self, state: &mut State, engine: usize, member: usize) {
        let base = self.base(state, engine, member);
        let owner = &mut state.engines[engine];
        owner.resyncs[member] =
            Resync { stage: Stage::Receiving, base, receives: owner.next_stamp(), ..Resync::default() };
    }

    pub(crate) fn may_pull(
        &self,
        state: &State,
        engine: usize,
        member: usize,
        source: usize,
        block: usize,
    ) -> bool {
        let owner = &state.engines[engine];
        let resync = &owner.resyncs[member];
        let earlier = |write: &InFlight| !write.settled && write.stamp < resync.receives;
        let chosen = match resync.source {
            Some(chosen) => usize::from(chosen) == source,
            None => owner.connected.contains(source),
        };
        resync.stage == Stage::Receiving
            && owner.connected.contains(member)
            && owner.view.members[source] == Member::InSync
            && chosen
            && !resync.pulled.contains(block)
            // The order of blocks makes no difference that another order of other steps does not make.
            && Set::below(block).is_subset(resync.pulled)
            && (!owner.writes.items().iter().any(earlier) || self.is(Variant::PullBeforeSettled))
    }

    pub(crate) fn pull(&self, state: &mut State, engine: usize, member: usize, source: usize, block: usize) {
        let owner = &mut state.engines[engine];
        let resync = &mut owner.resyncs[member];
        let theirs = state.replicas[source].block(block);
        let mine = state.replicas[member].block(block);
        resync.source = u8::try_from(source).ok();
        resync.pulled.insert(block);
        let changed = theirs.stamp > resync.base;
        if changed && self.is(Variant::PullIgnoresStamps) {
            let versions = &mut state.replicas[member].versions[block];
            versions.retain(|version| version.stamp < theirs.stamp);
            versions.push(theirs);
        } else if changed && theirs.stamp > mine.stamp {
            state.replicas[member].place(block, theirs);
        } else if mine.stamp > resync.base
            && mine.stamp > theirs.stamp
            && mine.stamp < resync.receives
            && !self.is(Variant::PullSkipsDiverged)
        {
            resync.diverged.insert(block);
        }
        self.advance(state, engine);
    }

    /// Which version of a diverged block is rewritten: that of an in-sync member.
    pub(crate) fn rewrite_source(
        state: &State,
        engine: usize,
        member: usize,
        block: usize,
    ) -> Option<Version> {
        let owner = &state.engines[engine];
        if !owner.resyncs[member].diverged.contains(block) || owner.is_writing(block) {
            return None;
        }
        let from = owner.view.in_sync().intersection(owner.connected).without(owner.leaving).first()?;
        Some(state.replicas[from].block(block))
    }

    pub(crate) fn rewrite(&self, state: &mut State, engine: usize, member: usize, block: usize) {
        let Some(version) = Self::rewrite_source(state, engine, member, block) else { return };
        let owner = &mut state.engines[engine];
        owner.resyncs[member].diverged.remove(block);
        owner.sequence += 1;
        owner.writes.push(InFlight {
            stamp: owner.last_stamp(),
            block: u8::try_from(block).unwrap_or_default(),
            value: version.value,
            ..InFlight::default()
        });
    }

    /// Whether a member that has joined holds everything that was sent before.
    pub(crate) fn has_drained(&self, state: &State, engine: usize, member: usize) -> bool {
        let owner = &state.engines[engine];
        let joins = owner.resyncs[member].joins;
        let mut before = owner.writes.items().iter().filter(|write| write.stamp < joins);
        before.all(|write| write.done.contains(member) || !owner.sends(member, write.stamp))
            || self.is(Variant::PromoteBeforeDrain)
    }

    pub(crate) fn may_flush_joined(&self, state: &State, engine: usize, member: usize) -> bool {
        let owner = &state.engines[engine];
        owner.resyncs[member].stage == Stage::Joined
            && owner.connected.contains(member)
            && self.has_drained(state, engine, member)
    }

    pub(crate) fn flush_joined(&self, state: &mut State, engine: usize, member: usize) {
        self.tell(state, engine, member);
        if !self.is(Variant::PromoteWithoutFlush) {
            state.replicas[member].flush();
        }
        state.replicas[member].lost = false;
        state.engines[engine].resyncs[member].stage = Stage::Flushed;
    }

    pub(crate) fn may_promote(state: &State, engine: usize, member: usize) -> bool {
        let owner = &state.engines[engine];
        owner.phase == Phase::Open
            && owner.resyncs[member].stage == Stage::Flushed
            && owner.connected.contains(member)
            && owner.swap.is_none()
    }

    pub(crate) fn promote(&self, state: &mut State, engine: usize, member: usize) {
        self.send_swap(state, engine, |record| {
            record.members[member] = Member::InSync;
            record.wait_owed = false;
        });
    }
}
