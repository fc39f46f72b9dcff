//! The model: which steps can be taken, and what holds in every state.

use crate::action::Action;
use crate::bounds::{Bounds, Start};
use crate::history::History;
use crate::record::{Member, Record};
use crate::replica::{Replica, Version};
use crate::set::Set;
use crate::state::{BLOCKS_MAX, ENGINES, Engine, Phase, REPLICAS_MAX, Stage, State, Used, Violation};
use crate::variant::Variant;
use stateright::{Model, Property};

/// The protocol in a bounded world.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// How much may happen.
    pub bounds: Bounds,
    /// How the protocol deviates from what it should be.
    pub variants: Vec<Variant>,
    /// A situation to be looked for, instead of violations.
    pub sight: Option<Sight>,
}

/// A situation.
pub type Sight = fn(&Protocol, &State) -> bool;

/// The property that a [`Sight`] becomes.
pub const SIGHT: &str = "the situation is reached";

impl Protocol {
    /// The protocol as it should be.
    #[must_use]
    pub const fn new(bounds: Bounds) -> Self {
        Self { bounds, variants: Vec::new(), sight: None }
    }

    /// With a mistake.
    #[must_use]
    pub fn with(mut self, variant: Variant) -> Self {
        self.variants.push(variant);
        self
    }

    pub(crate) fn is(&self, variant: Variant) -> bool {
        self.variants.contains(&variant)
    }

    fn engine_actions(&self, state: &State, engine: usize, actions: &mut Vec<Action>) {
        let owner = &state.engines[engine];
        if owner.phase == Phase::Off {
            let lower = state.engines[..engine].iter().any(|lower| lower.phase == Phase::Off);
            if state.used.openings < self.bounds.openings && !lower {
                actions.push(Action::Claim { engine });
            }
            return;
        }
        actions.push(Action::Crash { engine });
        if self.may_decide(state, engine) {
            actions.push(Action::Decide { engine });
        }
        if owner.phase == Phase::Waiting {
            actions.push(Action::Wait { engine });
        }
        if let Some(swap) = owner.swap {
            if swap.unknown {
                actions.push(Action::Read { engine });
            } else {
                actions.push(Action::Swap { engine });
                if state.used.outages < self.bounds.outages {
                    actions.push(Action::SwapUnheard { engine });
                    if state.late.is_none() {
                        actions.push(Action::SwapOverdue { engine });
                    }
                }
            }
        }
        let quiet = owner.writes.items().is_empty() && owner.flush.is_none() && owner.swap.is_none();
        if owner.phase == Phase::Open {
            if quiet && state.used.closes < self.bounds.closes {
                actions.push(Action::Close { engine });
            }
            if owner.flush.is_none() && state.used.flushes < self.bounds.flushes {
                actions.push(Action::Flush { engine });
            }
            for block in (0..self.bounds.blocks).filter(|block| !owner.is_writing(*block)) {
                if state.used.writes < self.bounds.writes {
                    actions.push(Action::Write { engine, block });
                }
            }
        }
        for member in 0..self.bounds.replicas {
            self.member_actions(state, engine, member, actions);
        }
    }

    fn member_actions(&self, state: &State, engine: usize, member: usize, actions: &mut Vec<Action>) {
        let owner = &state.engines[engine];
        let breaks = state.used.breaks < self.bounds.breaks;
        if self.may_promise(state, engine, member) {
            actions.push(Action::Promise { engine, member });
        }
        if self.may_drop(state, engine, member) {
            actions.push(Action::Drop { engine, member });
        }
        if !owner.connected.contains(member) {
            return;
        }
        if breaks {
            actions.push(Action::Break { engine, member });
        }
        if Self::next_for(owner, member).is_some() {
            actions.push(Action::Deliver { engine, member, answered: true });
            if breaks {
                actions.push(Action::Deliver { engine, member, answered: false });
            }
        }
        if self.may_flush(state, engine, member) {
            actions.push(Action::FlushMember { engine, member });
        }
        if Self::may_resync(state, engine, member) {
            actions.push(Action::Resync { engine, member });
        }
        if self.may_flush_joined(state, engine, member) {
            actions.push(Action::FlushJoined { engine, member });
        }
        if Self::may_promote(state, engine, member) {
            actions.push(Action::Promote { engine, member });
        }
        for block in 0..self.bounds.blocks {
            if self.may_read(state, engine, member, block) {
                actions.push(Action::ReadBlock { engine, member, block });
            }
            if Self::rewrite_source(state, engine, member, block).is_some() {
                actions.push(Action::Rewrite { engine, member, block });
            }
            for source in (0..self.bounds.replicas).filter(|source| *source != member) {
                if self.may_pull(state, engine, member, source, block) {
                    actions.push(Action::Pull { engine, member, source, block });
                }
            }
        }
    }

    fn faults(&self, state: &State, actions: &mut Vec<Action>) {
        if state.late.is_some() {
            actions.push(Action::SwapLate);
        }
        for member in 0..self.bounds.replicas {
            if state.used.kills < self.bounds.kills {
                actions.push(Action::Kill { member });
            }
            if state.used.losses < self.bounds.losses {
                let outcomes = state.replicas[member].outcomes();
                for first in 0..outcomes[0] {
                    for second in 0..outcomes[1] {
                        actions.push(Action::LosePower { member, left: [first, second] });
                    }
                }
            }
        }
    }

    fn start(&self) -> State {
        let mut state = State {
            record: Record { closed: true, ..Record::default() },
            late: None,
            replicas: [Replica::default(); REPLICAS_MAX],
            engines: [Engine::default(); ENGINES],
            history: History::default(),
            used: Used::default(),
            violation: None,
        };
        for member in 0..self.bounds.replicas {
            state.record.members[member] = Member::InSync;
            state.replicas[member] = Replica::empty(self.bounds.blocks);
        }
        let everyone = Set::below(self.bounds.replicas);
        let behind = self.bounds.replicas - 1;
        let start = self.bounds.start;
        if start == Start::Closed {
            return state;
        }
        self.open_with(&mut state, everyone);
        if start == Start::Serving {
            state.used = Used::default();
            return state;
        }
        // The last block: reconciling comes to it last.
        let block = self.bounds.blocks - 1;
        self.write(&mut state, 0, block);
        for member in everyone.iter() {
            self.deliver(&mut state, 0, member, true);
        }
        for member in everyone.iter() {
            self.tell(&mut state, 0, member);
        }
        if start == Start::Diverged {
            self.write(&mut state, 0, block);
            self.deliver(&mut state, 0, behind, true);
            state.engines[0] = Engine::default();
            self.open_with(&mut state, everyone.without(Set::of(behind)));
        } else if start == Start::Behind {
            self.drop_member(&mut state, 0, behind);
            self.swap(&mut state, 0);
        }
        state.used = Used { writes: state.used.writes, ..Used::default() };
        state
    }

    /// An engine opens the volume with these members.
    fn open_with(&self, state: &mut State, members: Set) {
        self.claim(state, 0);
        for member in members.iter() {
            self.promise(state, 0, member);
        }
        self.decide(state, 0);
        if state.engines[0].swap.is_some() {
            self.swap(state, 0);
            self.decide(state, 0);
        }
        while let Some(member) = members.iter().find(|member| self.may_flush(state, 0, *member)) {
            self.flush_member(state, 0, member);
        }
        if state.engines[0].phase == Phase::Waiting {
            self.waited(state, 0);
        }
        assert_eq!(state.engines[0].phase, Phase::Open, "the first engine serves");
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.violation.is_some() {
            return;
        }
        for engine in 0..ENGINES {
            self.engine_actions(state, engine, actions);
        }
        self.faults(state, actions);
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = *before;
        match action {
            Action::Claim { engine } => self.claim(&mut state, engine),
            Action::Promise { engine, member } => self.promise(&mut state, engine, member),
            Action::Decide { engine } => self.decide(&mut state, engine),
            Action::Wait { engine } => self.waited(&mut state, engine),
            Action::Swap { engine } => self.swap(&mut state, engine),
            Action::SwapUnheard { engine } => self.swap_unheard(&mut state, engine),
            Action::SwapOverdue { engine } => self.swap_overdue(&mut state, engine),
            Action::SwapLate => self.swap_late(&mut state),
            Action::Read { engine } => self.read_record(&mut state, engine),
            Action::Write { engine, block } => self.write(&mut state, engine, block),
            Action::Deliver { engine, member, answered } => {
                self.deliver(&mut state, engine, member, answered)
            }
            Action::ReadBlock { engine, member, block } => self.read_block(&mut state, engine, member, block),
            Action::Flush { engine } => {
                state.used.flushes += 1;
                self.begin_flush(&mut state, engine);
            }
            Action::FlushMember { engine, member } => self.flush_member(&mut state, engine, member),
            Action::Drop { engine, member } => self.drop_member(&mut state, engine, member),
            Action::Resync { engine, member } => self.resync(&mut state, engine, member),
            Action::Pull { engine, member, source, block } => {
                self.pull(&mut state, engine, member, source, block)
            }
            Action::Rewrite { engine, member, block } => self.rewrite(&mut state, engine, member, block),
            Action::FlushJoined { engine, member } => self.flush_joined(&mut state, engine, member),
            Action::Promote { engine, member } => self.promote(&mut state, engine, member),
            Action::Close { engine } => {
                state.used.closes += 1;
                state.engines[engine].phase = Phase::Closing;
                self.send_swap(&mut state, engine, |record| {
                    record.closed = true;
                    record.wait_owed = false;
                });
            }
            Action::Break { engine, member } => self.break_connection(&mut state, engine, member),
            Action::Kill { member } => self.kill(&mut state, member),
            Action::LosePower { member, left } => self.lose_power(&mut state, member, left),
            Action::Crash { engine } => state.engines[engine] = Engine::default(),
        }
        self.forget_the_fenced(&mut state);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        if let Some(sight) = self.sight {
            return vec![Property::sometimes(SIGHT, sight)];
        }
        vec![
            Property::always(
                "1: acknowledged data is on every in-sync member",
                |model: &Self, state: &State| {
                    state
                        .record
                        .in_sync()
                        .iter()
                        .map(|m| &state.replicas[m])
                        .filter(|member| !member.lost)
                        .all(|member| {
                            (0..model.bounds.blocks).all(|block| {
                                state.history.possible(block).contains(usize::from(member.block(block).value))
                            })
                        })
                },
            ),
            Property::always("2: no acknowledgement after a newer generation served", |_, state: &State| {
                state.violation != Some(Violation::AcknowledgedTooLate)
            }),
            Property::always("3: promises never go back", |_, state: &State| {
                state.replicas.iter().all(|replica| replica.promised >= replica.promised_peak)
            }),
            Property::always("4: blocks are linearizable, and never revert", |_, state: &State| {
                state.violation != Some(Violation::NotLinearizable)
            }),
            Property::always(
                "5: in sync is never empty, and grows through Syncing only",
                |_, state: &State| state.violation != Some(Violation::WrongMembership),
            ),
            Property::always(
                "6: at rest all in-sync members are identical",
                |model: &Self, state: &State| {
                    state.engines.iter().all(|engine| model.is_alike_at_rest(state, engine))
                },
            ),
            Property::always("8: at promotion the target equals the source", |_, state: &State| {
                state.violation != Some(Violation::PromotedUnequal)
            }),
            Property::always(
                "what is flushed is on the medium of every in-sync member",
                |model: &Self, state: &State| {
                    state.record.in_sync().iter().all(|m| {
                        (0..model.bounds.blocks).all(|block| {
                            let versions = state.replicas[m].versions[block];
                            versions.items().iter().all(|version| {
                                state.history.survivors[block].contains(usize::from(version.value))
                            })
                        })
                    })
                },
            ),
            Property::always("1: data is not given up while a member surely has it", |_, state: &State| {
                state.violation != Some(Violation::LossChosen)
            }),
            Property::always("an opener keeps someone", |_, state: &State| {
                state.violation != Some(Violation::NobodyLeft)
            }),
        ]
    }
}

impl Protocol {
    fn is_alike_at_rest(&self, state: &State, engine: &Engine) -> bool {
        let members = engine.view.in_sync();
        let at_rest = engine.phase == Phase::Open
            && engine.view == state.record
            && engine.writes.items().is_empty()
            && members.is_subset(engine.connected);
        let differ = |block: usize| {
            let versions: Vec<Version> = members.iter().map(|m| state.replicas[m].block(block)).collect();
            versions.windows(2).any(|pair| pair[0] != pair[1])
        };
        !at_rest || !(0..self.bounds.blocks.min(BLOCKS_MAX)).any(differ)
    }
}

/// Situations that must be reached, lest the check be vacuous.
pub const SIGHTS: [(&str, Sight); 8] = [
    ("a serving engine has dropped a member", |_, state| {
        let dropped = |engine: &Engine| engine.view.members.iter().any(|m| matches!(m, Member::Stale(_)));
        state.engines.iter().any(|engine| engine.phase == Phase::Open && dropped(engine))
    }),
    ("everyone is in sync again", |model, state| {
        let promoted = |engine: &Engine| engine.resyncs.iter().any(|resync| resync.stage == Stage::Promoted);
        state.record.in_sync() == Set::below(model.bounds.replicas) && state.engines.iter().any(promoted)
    }),
    ("an opener serves after having waited", |_, state| {
        state.engines.iter().any(|engine| engine.phase == Phase::Open && engine.waited)
    }),
    ("a diverged block is to be rewritten", |_, state| {
        state.engines.iter().any(|engine| engine.resyncs.iter().any(|resync| !resync.diverged.is_empty()))
    }),
    ("a write is acknowledged after a newer generation has served", |_, state| {
        state.history.acknowledged_late
    }),
    ("an older engine answers a read while a newer one opens", |model, state| {
        let newer =
            |e: usize| state.engines.iter().any(|other| other.generation > state.engines[e].generation);
        let reads = |e: usize| (0..model.bounds.replicas).any(|m| model.may_read(state, e, m, 0));
        let promised = state.replicas.iter().any(|replica| replica.promised == state.record.generation);
        promised && (0..ENGINES).any(|e| newer(e) && reads(e))
    }),
    ("every in-sync member has lost power", |_, state| {
        state.record.in_sync().iter().all(|m| state.replicas[m].lost)
    }),
    ("a promotion's answer is lost while its engine goes on", |_, state| {
        state.engines.iter().any(|engine| {
            let unheard = |swap: &crate::record::Swap| {
                swap.unknown && *swap == crate::record::Swap { new: state.record, unknown: true }
            };
            engine.swap.as_ref().is_some_and(unheard)
                && engine.resyncs.iter().any(|r| r.stage == Stage::Flushed)
        })
    }),
];
