//! Opening: claim, promises, drops, reconciling, the wait.

use crate::model::Protocol;
use crate::record::{Member, Record};
use crate::replica::Version;
use crate::set::Set;
use crate::state::{Engine, InFlight, Phase, State, Violation};
use crate::variant::Variant;

impl Protocol {
    pub(crate) fn claim(&self, state: &mut State, engine: usize) {
        state.used.openings += 1;
        let before = state.record;
        state.record = Record {
            revision: before.revision + 1,
            generation: before.generation + 1,
            closed: false,
            ..before
        };
        state.engines[engine] = Engine {
            phase: Phase::Connecting,
            generation: state.record.generation,
            view: state.record,
            found_closed: before.closed,
            ..Engine::default()
        };
    }

    pub(crate) fn may_promise(&self, state: &State, engine: usize, member: usize) -> bool {
        let opener = &state.engines[engine];
        let replica = &state.replicas[member];
        if replica.promised > opener.generation || opener.connected.contains(member) {
            return false;
        }
        let expected = opener.required().contains(member);
        match opener.phase {
            Phase::Connecting => expected,
            // A member that has lost what it acknowledged is not taken back.
            Phase::Open if expected => {
                let rebooted = opener.rebooted.contains(member);
                let have = if rebooted { replica.intact() } else { replica.last() };
                have >= opener.held[member]
            }
            Phase::Open => opener.view.out_of_sync().contains(member),
            Phase::Off | Phase::Reconciling | Phase::Waiting | Phase::Closing => false,
        }
    }

    pub(crate) fn promise(&self, state: &mut State, engine: usize, member: usize) {
        let generation = state.engines[engine].generation;
        for older in (0..state.engines.len()).filter(|older| *older != engine) {
            self.disconnected(state, older, member);
        }
        let opener = &mut state.engines[engine];
        let replica = &mut state.replicas[member];
        replica.promised = generation;
        replica.promised_peak = replica.promised_peak.max(generation);
        opener.connected.insert(member);
        opener.promised.insert(member);
        opener.leases.insert(member);
        opener.rebooted.remove(member);
        if opener.phase == Phase::Open && opener.required().contains(member) {
            replica.lost = false;
        }
        if opener.view.in_sync().contains(member) && opener.first_promise.is_none() {
            opener.first_promise = u8::try_from(member).ok();
        }
        if opener.phase == Phase::Connecting {
            opener.held[member] = replica.last();
        }
    }

    /// Those of the in-sync members that have answered, without those that have lost data that was stable.
    fn kept(state: &State, engine: usize) -> Set {
        let opener = &state.engines[engine];
        let replicas = &state.replicas;
        let answered = opener.connected.intersection(opener.view.in_sync());
        let stable = |except: usize| {
            answered.iter().filter(|m| *m != except).map(|m| replicas[m].stable).max().unwrap_or_default()
        };
        answered.iter().filter(|m| replicas[*m].last() >= stable(*m)).collect()
    }

    pub(crate) fn may_decide(&self, state: &State, engine: usize) -> bool {
        let opener = &state.engines[engine];
        let in_sync = opener.view.in_sync();
        let kept = Self::kept(state, engine);
        let lost = |m: usize| match self.is(Variant::WholeByIntact) {
            true => state.replicas[m].intact_limit.is_some(),
            false => state.replicas[m].unsure,
        };
        let is_whole = kept == in_sync || kept.iter().any(|m| !lost(m));
        opener.phase == Phase::Connecting
            && opener.swap.is_none()
            && !opener.connected.intersection(in_sync).is_empty()
            && (is_whole || kept.is_empty() || self.is(Variant::OpenWithoutWhole))
    }

    /// Goes on with those who promised: drops the others, or makes members alike.
    pub(crate) fn decide(&self, state: &mut State, engine: usize) {
        let kept = Self::kept(state, engine);
        let in_sync = state.engines[engine].view.in_sync();
        if kept.is_empty() {
            state.violation = Some(Violation::NobodyLeft);
            return;
        }
        if Self::chooses_loss(state, engine, kept) {
            state.violation = Some(Violation::LossChosen);
            return;
        }
        let opener = &mut state.engines[engine];
        let replicas = &state.replicas;
        let dropped = in_sync.without(kept);
        let committed = kept.iter().map(|m| replicas[m].committed).max().unwrap_or_default();
        let intact = kept.iter().map(|m| replicas[m].intact()).min().unwrap_or_default();
        let last = kept.iter().map(|m| replicas[m].last()).max().unwrap_or_default();
        let bound = if self.is(Variant::SinceTooHigh) { last } else { committed.min(intact) };

        let unfenced = !dropped.is_subset(opener.promised);
        let owed = opener.view.wait_owed && !self.is(Variant::WaitForgotten);
        opener.must_wait |= (unfenced && !opener.found_closed) || owed;

        let mut members = opener.view.members;
        if !dropped.is_empty() || !self.is(Variant::LowerOnlyWithDrop) {
            for member in &mut members {
                *member = match *member {
                    Member::Stale(since) => Member::Stale(since.min(bound)),
                    Member::Syncing(since) if !self.is(Variant::LowerOnlyStale) => {
                        Member::Syncing(since.min(bound))
                    }
                    other => other,
                };
            }
        }
        for member in dropped.iter() {
            members[member] = Member::Stale(bound);
        }
        if members == opener.view.members {
            self.reconcile(state, engine);
        } else {
            let wait_owed = opener.must_wait;
            self.send_swap(state, engine, |record| {
                record.members = members;
                record.wait_owed = wait_owed;
            });
        }
    }

    /// Makes the in-sync members alike, each block by its newest version.
    pub(crate) fn reconcile(&self, state: &mut State, engine: usize) {
        let opener = &mut state.engines[engine];
        let replicas = &state.replicas;
        let members = opener.view.in_sync();
        assert!(members.is_subset(opener.connected), "members are opened before they are made alike");
        opener.phase = Phase::Reconciling;
        opener.stable = members.iter().map(|m| replicas[m].stable).max().unwrap_or_default();
        opener.committed = members.iter().map(|m| replicas[m].committed).max().unwrap_or_default();
        let intact = members.iter().map(|m| replicas[m].intact()).min().unwrap_or_default();
        let since = opener.stable.min(intact);
        opener.wants_flush = members.iter().any(|m| replicas[m].intact_limit.is_some());
        for block in 0..self.bounds.blocks {
            let tail = |m: usize| Some(replicas[m].block(block)).filter(|version| version.stamp > since);
            let versions: Vec<Option<Version>> = members.iter().map(tail).collect();
            opener.wants_flush |= versions.iter().any(Option::is_some);
            let newest = versions.iter().flatten().max();
            if let Some(newest) = newest.filter(|newest| versions.iter().any(|v| *v != Some(**newest))) {
                if self.is(Variant::ReconcileByLongestLog) {
                    continue;
                }
                opener.sequence += 1;
                opener.writes.push(InFlight {
                    stamp: opener.last_stamp(),
                    block: u8::try_from(block).unwrap_or_default(),
                    value: newest.value,
                    ..InFlight::default()
                });
            }
        }
        self.advance(state, engine);
    }

    /// Everything is written; flush, wait, serve.
    pub(crate) fn reconciled(&self, state: &mut State, engine: usize) {
        let opener = &mut state.engines[engine];
        let members = opener.view.in_sync();
        let held = members.iter().map(|m| state.replicas[m].last()).max().unwrap_or_default();
        let alike = if self.is(Variant::CommittedJumps) { opener.last_stamp() } else { held };
        opener.committed = opener.committed.max(alike);
        if opener.wants_flush {
            opener.wants_flush = false;
            // What was read since the loss, by the older engine, is no better known.
            self.note_losses(state);
            self.begin_flush(state, engine);
        } else if opener.must_wait && !opener.waited && !self.is(Variant::OpenWithoutWaiting) {
            opener.phase = Phase::Waiting;
        } else {
            self.serve(state, engine);
        }
    }

    pub(crate) fn waited(&self, state: &mut State, engine: usize) {
        let (generation, first) = (state.engines[engine].generation, state.engines[engine].first_promise);
        for older in state.engines.iter_mut().filter(|older| older.generation < generation) {
            if let Some(first) = first {
                older.leases.remove(usize::from(first));
            }
        }
        state.engines[engine].waited = true;
        self.serve(state, engine);
    }

    fn serve(&self, state: &mut State, engine: usize) {
        let opener = &mut state.engines[engine];
        opener.phase = Phase::Open;
        self.note_losses(state);
        let opener = &mut state.engines[engine];
        state.history.serves(opener.generation);
        for member in opener.view.in_sync().iter() {
            state.replicas[member].lost = false;
            opener.held[member] = state.replicas[member].last();
        }
    }
}
