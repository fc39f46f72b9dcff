//! What goes wrong.

use crate::list::List;
use crate::model::Protocol;
use crate::record::Member;
use crate::state::{BLOCKS_MAX, Phase, Resync, State};
use crate::variant::Variant;

impl Protocol {
    /// An engine's connection with a member is gone.
    pub(crate) fn disconnected(&self, state: &mut State, engine: usize, member: usize) {
        let owner = &mut state.engines[engine];
        if !owner.connected.contains(member) {
            return;
        }
        owner.connected.remove(member);
        match owner.phase {
            // Who is alike is unknown again: begin anew with everyone.
            Phase::Reconciling | Phase::Waiting => {
                owner.phase = Phase::Connecting;
                owner.connected = crate::set::Set::EMPTY;
                owner.writes = List::default();
                owner.flush = None;
                owner.wants_flush = false;
            }
            Phase::Open => {
                if owner.view.members[member] == Member::InSync {
                    owner.resyncs[member] = Resync::default();
                }
                self.give_up_attempts(state, engine);
                self.advance(state, engine);
            }
            Phase::Off | Phase::Connecting | Phase::Closing => {}
        }
    }

    pub(crate) fn break_connection(&self, state: &mut State, engine: usize, member: usize) {
        state.used.breaks += 1;
        self.disconnected(state, engine, member);
    }

    pub(crate) fn kill(&self, state: &mut State, member: usize) {
        state.used.kills += 1;
        self.restart(state, member);
    }

    pub(crate) fn lose_power(&self, state: &mut State, member: usize, left: [u8; BLOCKS_MAX]) {
        state.used.losses += 1;
        state.replicas[member].lose_power(left);
        for engine in &mut state.engines {
            if engine.phase != Phase::Off {
                engine.rebooted.insert(member);
            }
        }
        self.restart(state, member);
        self.note_losses(state);
    }

    fn restart(&self, state: &mut State, member: usize) {
        if self.is(Variant::PromiseNotDurable) {
            state.replicas[member].promised = 0;
        }
        for engine in 0..state.engines.len() {
            // Who pulls from it begins anew.
            for resync in &mut state.engines[engine].resyncs {
                if resync.source.is_some_and(|source| usize::from(source) == member) && !resync.has_joined() {
                    *resync = Resync::default();
                }
            }
            self.disconnected(state, engine, member);
        }
    }

    /// Forgets engines that can do nothing any more, for fewer states: every member has promised a newer
    /// generation, and so has the record.
    pub(crate) fn forget_the_fenced(&self, state: &mut State) {
        if self.is(Variant::PromiseNotDurable) {
            return;
        }
        let promised = state.replicas[..self.bounds.replicas].iter().map(|replica| replica.promised).min();
        let oldest = promised.unwrap_or_default().min(state.record.generation);
        for engine in state.engines.iter_mut().filter(|engine| engine.generation < oldest) {
            *engine = crate::state::Engine::default();
        }
    }
}
