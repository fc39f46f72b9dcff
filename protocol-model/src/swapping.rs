//! The conversation with the record's store: one swap at a time, whose answer may be lost.

use crate::model::Protocol;
use crate::record::{Member, Record, Swap};
use crate::replica::{Stamp, Version};
use crate::set::Set;
use crate::state::{Engine, Phase, REPLICAS_MAX, Resync, Stage, State, Violation};
use crate::variant::Variant;

impl Protocol {
    pub(crate) fn send_swap(&self, state: &mut State, engine: usize, change: impl FnOnce(&mut Record)) {
        let sender = &mut state.engines[engine];
        assert!(sender.swap.is_none(), "one swap at a time");
        let mut new = Record { revision: sender.view.revision + 1, ..sender.view };
        change(&mut new);
        sender.swap = Some(Swap { new, unknown: false });
    }

    /// The store compares and swaps.
    pub(crate) fn land(&self, state: &mut State, new: Record) {
        let old = state.record;
        if old.revision + 1 != new.revision {
            return;
        }
        state.record = new;
        let in_sync = new.in_sync();
        let grown = in_sync.without(old.in_sync());
        let improper = grown.iter().any(|m| !matches!(old.members[m], Member::Syncing(_)));
        if in_sync.is_empty() || improper {
            state.violation = Some(Violation::WrongMembership);
            return;
        }
        for member in grown.iter() {
            self.check_promotion(state, member, old.in_sync());
        }
        self.note_losses(state);
    }

    /// Once every in-sync member has lost power, what was not flushed may be lost.
    pub(crate) fn note_losses(&self, state: &mut State) {
        if !state.record.in_sync().iter().all(|m| state.replicas[m].lost) {
            return;
        }
        state.history.all_lost_power();
        for flush in state.engines.iter_mut().filter_map(|engine| engine.flush.as_mut()) {
            for (block, floor) in flush.floor.iter_mut().enumerate() {
                *floor = floor.union(state.history.survivors[block]);
            }
        }
    }

    /// Whether all that are kept have lost what they acknowledged, and another has not.
    pub(crate) fn chooses_loss(state: &State, engine: usize, kept: Set) -> bool {
        let dropped = state.engines[engine].view.in_sync().without(kept);
        state.record.generation == state.engines[engine].generation
            && !kept.is_empty()
            && kept.iter().all(|m| state.replicas[m].lost)
            && dropped.iter().any(|m| !state.replicas[m].lost)
    }

    fn check_promotion(&self, state: &mut State, member: usize, sources: Set) {
        // It lost power after its flush; its engine will notice.
        if state.replicas[member].lost {
            return;
        }
        // A write in flight is on some members only, also when its engine has crashed since it sent this swap.
        let writing = |block| {
            state.history.is_undecided(block) || state.engines.iter().any(|engine| engine.is_writing(block))
        };
        let owned = state.engines.iter().any(|engine| engine.generation == state.record.generation);
        let differ = |a: Version, b: Version| if owned { a != b } else { a.value != b.value };
        for block in (0..self.bounds.blocks).filter(|block| !writing(*block)) {
            let version = state.replicas[member].block(block);
            let mut others = sources.iter().map(|m| state.replicas[m]).filter(|source| !source.lost);
            if others.any(|source| differ(source.block(block), version)) {
                state.violation = Some(Violation::PromotedUnequal);
                return;
            }
        }
    }

    pub(crate) fn swap(&self, state: &mut State, engine: usize) {
        let Some(swap) = state.engines[engine].swap else { return };
        self.land(state, swap.new);
        self.read_record(state, engine);
    }

    pub(crate) fn swap_unheard(&self, state: &mut State, engine: usize) {
        state.used.outages += 1;
        let Some(swap) = &mut state.engines[engine].swap else { return };
        swap.unknown = true;
        let new = swap.new;
        self.land(state, new);
    }

    pub(crate) fn swap_overdue(&self, state: &mut State, engine: usize) {
        state.used.outages += 1;
        let Some(swap) = &mut state.engines[engine].swap else { return };
        swap.unknown = true;
        state.late = Some(swap.new);
    }

    pub(crate) fn swap_late(&self, state: &mut State) {
        if let Some(new) = state.late.take() {
            self.land(state, new);
        }
    }

    /// The engine learns what the record is, by the answer to its swap or by reading it.
    pub(crate) fn read_record(&self, state: &mut State, engine: usize) {
        let record = state.record;
        let reader = &mut state.engines[engine];
        if record.generation > reader.generation {
            *reader = Engine::default();
            return;
        }
        let Some(swap) = &mut reader.swap else { return };
        if record.revision < swap.new.revision {
            // Reading settles nothing, for it may be done yet; only doing it again does.
            swap.unknown = false;
            if self.is(Variant::UnknownSwapForgotten) {
                reader.swap = None;
                reader.leaving = Set::EMPTY;
                self.give_up_attempts(state, engine);
                self.advance(state, engine);
            }
            return;
        }
        reader.swap = None;
        reader.leaving = Set::EMPTY;
        self.adopt(state, engine, record);
    }

    /// The record is `new`, and it is this engine's.
    fn adopt(&self, state: &mut State, engine: usize, new: Record) {
        let owner = &mut state.engines[engine];
        let old = owner.view;
        owner.view = new;
        if new.closed {
            *owner = Engine::default();
            return;
        }
        for member in 0..REPLICAS_MAX {
            let owner = &mut state.engines[engine];
            let connected = owner.connected.contains(member);
            match (old.members[member], new.members[member]) {
                (Member::InSync, Member::Stale(_)) => {
                    owner.connected.remove(member);
                    owner.resyncs[member] = Resync::default();
                    owner.held[member] = Stamp::ZERO;
                }
                (Member::Stale(_), Member::Syncing(_)) if connected => self.receive(state, engine, member),
                (Member::Syncing(_), Member::InSync) if connected => {
                    owner.resyncs[member].stage = Stage::Promoted;
                }
                (Member::Syncing(_), Member::InSync) => owner.resyncs[member] = Resync::default(),
                _ => {}
            }
        }
        self.give_up_attempts(state, engine);
        if state.engines[engine].phase == Phase::Connecting && self.is(Variant::DecideOnce) {
            let opener = &state.engines[engine];
            if opener.view.in_sync().is_subset(opener.connected) {
                return self.reconcile(state, engine);
            }
        }
        self.advance(state, engine);
    }

    /// Attempts whose members are not connected, and whose promotion cannot be done yet, are over.
    pub(crate) fn give_up_attempts(&self, state: &mut State, engine: usize) {
        let owner = &mut state.engines[engine];
        for member in owner.view.out_of_sync().without(owner.connected).iter() {
            let promoting = owner.swap.is_some_and(|swap| swap.new.members[member] == Member::InSync);
            if !promoting || self.is(Variant::PromotingForgotten) {
                owner.resyncs[member] = Resync::default();
            }
        }
    }
}
