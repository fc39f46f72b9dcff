//! Requests of clients: writes, reads and flushes.

use crate::model::Protocol;
use crate::record::Member;
use crate::replica::{Stamp, Version};
use crate::set::Set;
use crate::state::{Engine, Flush, InFlight, Phase, REPLICAS_MAX, Stage, State, Violation};
use crate::variant::Variant;

impl Protocol {
    pub(crate) fn write(&self, state: &mut State, engine: usize, block: usize) {
        state.used.writes += 1;
        let writer = &mut state.engines[engine];
        let Some(value) = state.history.asked(block, writer.generation) else { return };
        writer.sequence += 1;
        writer.writes.push(InFlight {
            stamp: writer.last_stamp(),
            block: u8::try_from(block).unwrap_or_default(),
            value,
            client: true,
            ..InFlight::default()
        });
        for flush in state.engines.iter_mut().filter_map(|engine| engine.flush.as_mut()) {
            flush.floor[block].insert(usize::from(value));
        }
    }

    /// The oldest write that a member has not answered; a connection keeps their order.
    pub(crate) fn next_for(engine: &Engine, member: usize) -> Option<usize> {
        engine
            .writes
            .items()
            .iter()
            .position(|write| engine.sends(member, write.stamp) && !write.done.contains(member))
    }

    pub(crate) fn deliver(&self, state: &mut State, engine: usize, member: usize, answered: bool) {
        let sender = &mut state.engines[engine];
        let Some(index) = Self::next_for(sender, member) else { return };
        let write = &mut sender.writes.items_mut()[index];
        let replica = &mut state.replicas[member];
        replica.place(usize::from(write.block), Version { stamp: write.stamp, value: write.value });
        if answered {
            write.done.insert(member);
            sender.held[member] = sender.held[member].max(write.stamp);
        }
        self.tell(state, engine, member);
        if answered {
            self.advance(state, engine);
        } else {
            state.used.breaks += 1;
            self.disconnected(state, engine, member);
        }
    }

    /// Progress goes with every message, but only to those that it is true for: not while members are being
    /// made alike.
    pub(crate) fn tell(&self, state: &mut State, engine: usize, member: usize) {
        let sender = &state.engines[engine];
        let told_all = self.is(Variant::SyncingToldProgress) || self.is(Variant::BaseRecordedOnce);
        let is_true = sender.phase != Phase::Reconciling
            || sender.writes.items().is_empty()
            || self.is(Variant::ReconcilingToldProgress);
        if (sender.required().contains(member) && is_true) || told_all {
            state.replicas[member].told(sender.committed, sender.stable);
            state.replicas[member].unsure &=
                sender.phase != Phase::Open || !sender.required().contains(member);
        }
    }

    /// Everything that follows by itself from what the engine knows.
    pub(crate) fn advance(&self, state: &mut State, engine: usize) {
        self.settle(state, engine);
        self.check_flush(state, engine);
        self.join(state, engine);
        let owner = &state.engines[engine];
        let is_written = owner.writes.items().is_empty() && owner.flush.is_none();
        if owner.phase == Phase::Reconciling && is_written {
            self.reconciled(state, engine);
        }
    }

    fn settle(&self, state: &mut State, engine: usize) {
        let owner = &mut state.engines[engine];
        for index in 0..owner.writes.items().len() {
            let write = owner.writes.items()[index];
            let mut needs = owner.needs(write.stamp);
            if self.is(Variant::AcknowledgeBeforeDrop) {
                needs = needs.without(owner.leaving);
            }
            if write.settled || !needs.is_subset(write.done) {
                continue;
            }
            owner.writes.items_mut()[index].settled = true;
            if write.client {
                let late = state.history.served > owner.generation;
                state.history.acknowledged_late |= late;
                if !state.history.acknowledged(write.value) {
                    let violation =
                        if late { Violation::AcknowledgedTooLate } else { Violation::NotLinearizable };
                    state.violation = Some(violation);
                }
                state.history.served = state.history.served.max(owner.generation);
            }
        }
        let writes = owner.writes.items();
        let unsettled = writes.iter().find(|write| !write.settled).map(|write| write.stamp);
        let below = writes.iter().take_while(|write| unsettled.is_none_or(|first| write.stamp < first));
        let committed = below.map(|write| write.stamp).max();
        if owner.phase != Phase::Reconciling {
            owner.committed = owner.committed.max(committed.unwrap_or_default());
        }
        let resyncs = owner.resyncs;
        let connected = owner.connected;
        let awaited = |write: &InFlight| {
            connected.iter().any(|m| {
                let resync = &resyncs[m];
                resync.stage != Stage::No && resync.receives <= write.stamp && !write.done.contains(m)
            })
        };
        owner.writes.retain(|write| !write.settled || awaited(write));
    }

    /// Whether a client may be answered what this member has.
    pub(crate) fn may_read(&self, state: &State, engine: usize, member: usize, block: usize) -> bool {
        let reader = &state.engines[engine];
        let leased =
            if self.is(Variant::LeaseWithoutJoined) { reader.view.in_sync() } else { reader.required() };
        reader.phase == Phase::Open
            && reader.view.members[member] == Member::InSync
            && reader.connected.contains(member)
            && (!reader.leaving.contains(member) || self.is(Variant::ReadFromLeaving))
            && (leased.is_subset(reader.leases) || self.is(Variant::ReadWithoutLease))
            && !reader.is_writing(block)
    }

    pub(crate) fn read_block(&self, state: &mut State, engine: usize, member: usize, block: usize) {
        let value = state.replicas[member].block(block).value;
        if !state.history.read(block, value) {
            state.violation = Some(Violation::NotLinearizable);
        }
        state.history.served = state.history.served.max(state.engines[engine].generation);
    }

    pub(crate) fn begin_flush(&self, state: &mut State, engine: usize) {
        let owner = &mut state.engines[engine];
        let floor = std::array::from_fn(|block| state.history.possible(block));
        let awaits = if self.is(Variant::FlushSkipsJoined) { owner.view.in_sync() } else { owner.required() };
        owner.flush = Some(Flush { covers: owner.committed, awaits, done: Set::EMPTY, floor });
    }

    /// Whether a round of flushes awaits the member. Requests of a connection stay in their order, so
    /// that it has answered what the round covers.
    pub(crate) fn may_flush(&self, state: &State, engine: usize, member: usize) -> bool {
        let owner = &state.engines[engine];
        owner.connected.contains(member)
            && owner.flush.is_some_and(|flush| flush.awaits.without(flush.done).contains(member))
            && !Self::next_for(owner, member).is_some_and(|index| owner.writes.items()[index].settled)
    }

    pub(crate) fn flush_member(&self, state: &mut State, engine: usize, member: usize) {
        self.tell(state, engine, member);
        state.replicas[member].flush();
        if let Some(flush) = &mut state.engines[engine].flush {
            flush.done.insert(member);
        }
        self.advance(state, engine);
    }

    fn check_flush(&self, state: &mut State, engine: usize) {
        let owner = &mut state.engines[engine];
        let required =
            if self.is(Variant::FlushSkipsJoined) { owner.view.in_sync() } else { owner.required() };
        let Some(flush) = owner.flush.filter(|f| f.awaits.intersection(required).is_subset(f.done)) else {
            return;
        };
        owner.flush = None;
        owner.stable = owner.stable.max(flush.covers);
        state.history.survivors = flush.floor;
    }

    /// Members whose walk is over, and whose diverged blocks are rewritten, join.
    fn join(&self, state: &mut State, engine: usize) {
        let owner = &mut state.engines[engine];
        let rewriting = owner.writes.items().iter().any(|write| !write.client && !write.settled);
        for member in 0..REPLICAS_MAX {
            let joins = Stamp::new(owner.generation, owner.sequence + 1);
            let resync = &mut owner.resyncs[member];
            let walked = resync.pulled == Set::below(self.bounds.blocks) && resync.diverged.is_empty();
            if resync.stage == Stage::Receiving && walked && !rewriting {
                resync.stage = Stage::Joined;
                resync.joins = joins;
                owner.held[member] = state.replicas[member].last();
            }
        }
    }
}
