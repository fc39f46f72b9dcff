//! The course of a run, and what supervisors and operators do in it.
//!
//! ```text
//! Faults ──▶ Calm ──▶ Draining ──▶ Resting ──▶ Scrubbing ──▶ Reading ──▶ Reopening ──▶ Over
//!   │  all is mended  no more      all is    blocks rot,   all is read  power is lost,
//!   │                 requests     answered  one member's               the volume opens again
//!   │                                        copy of each
//! ```
//!
//! From `Calm` on nothing goes wrong, and every stage must end within [`BOUND`].

use crate::Check;
use crate::swarm::Fault;
use crate::trace::Happening;
use crate::world::{Event, World};
use std::time::Duration;
use trivet_model::{Epoch, MemberState};

/// How often supervisors look.
pub(crate) const WATCH: Duration = Duration::from_millis(250);
/// How long clients go on after everything was mended, at least.
const CALM: Duration = Duration::from_secs(2);
/// How long all is at rest before it is compared: idle members are told of the progress, and writes
/// that found no space are offered again, each second.
const REST: Duration = Duration::from_secs(4);
/// Within this, everything asked is answered and the volume is whole: twice the silence after which a
/// member is given up, an outage of the record, and the operator's part.
const BOUND: Duration = Duration::from_secs(90);

/// Where a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Faults,
    Calm {
        until: Duration,
    },
    Draining {
        since: Duration,
    },
    Resting {
        since: Duration,
        until: Duration,
    },
    /// With the record's epoch when the scrub began: of members that come and go it misses some.
    Scrubbing {
        since: Duration,
        epoch: Epoch,
    },
    Reading {
        since: Duration,
    },
    Reopening {
        since: Duration,
    },
    Over,
}

impl World {
    pub(crate) fn watch(&mut self) {
        self.schedule(WATCH, Event::Watch);
        self.supervise_replicas();
        self.supervise_engines();
        self.check_scrubs();
        self.look_after_keys();
        let whole = self.engines[self.desired].is_whole() && self.is_connected(self.desired);
        if self.returned && whole {
            self.returned = false;
            self.check_returned();
        }
        self.move_on();
    }

    /// A pool that has stopped is opened again.
    fn supervise_replicas(&mut self) {
        for host in 0..self.hosts.len() {
            if self.hosts[host].held.is_none() && self.has_stopped(host) {
                self.kill_replica(host, "its pool has stopped");
                self.schedule(WATCH, Event::StartReplica { host });
            }
        }
    }

    fn supervise_engines(&mut self) {
        for index in 0..self.engines.len() {
            let host = &self.engines[index];
            if host.held.is_some() {
                continue;
            }
            if host.state().is_some_and(trivet_engine::volume::VolumeState::is_over) {
                self.kill_engine(index, true, "is over");
            } else if self.has_lost_member(index) {
                // What the engine asks of the operator then.
                self.kill_engine(index, true, "detached and attached for a member that lost writes");
            }
            let wanted = index == self.desired;
            let contends = self.profile.has(Fault::Contention) && !self.is_reader(index);
            let comes_back = wanted || (contends && self.is_striking());
            let soon = if wanted { 3 } else { 12 };
            if self.engines[index].engine.is_none() && comes_back && self.random.one_in(soon) {
                self.start_engine(index);
            }
        }
    }

    /// Whether an engine waits for somebody to reattach the volume.
    fn has_lost_member(&self, index: usize) -> bool {
        let Some(engine) = &self.engines[index].engine else { return false };
        !self.engines[index].is_whole()
            && engine.core.reason().is_some_and(|reason| reason.contains("lost power"))
    }

    /// Whether an engine has cut for a group, and has not heard yet what became of it.
    fn is_awaiting_group(&self) -> bool {
        let engine = self.engines[self.desired].engine.as_ref();
        engine.is_some_and(|engine| engine.core.has_snapshot_under_way())
    }

    fn is_at_rest(&self) -> bool {
        let members = &self.records.record.members;
        self.engines[self.desired].is_whole()
            && self.is_connected(self.desired)
            && self.requests_in_flight(self.desired) == 0
            && !self.is_awaiting_group()
            && self.is_rekeyed()
            && members.iter().all(|member| member.state == MemberState::InSync)
            && self.records.record.import.is_none()
            && (0..self.hosts.len()).all(|host| self.is_quiescent(host))
    }

    fn move_on(&mut self) {
        let now = self.now;
        match self.stage {
            Stage::Faults if now >= self.profile.run_for => {
                self.note(Happening::Note("everything is mended"));
                self.stage = Stage::Calm { until: now + CALM.max(self.profile.gap * 6) };
                self.mend_all();
            }
            Stage::Calm { until } if now >= until => self.stage = Stage::Draining { since: now },
            Stage::Draining { since } if self.is_at_rest() => {
                self.stage = Stage::Resting { since, until: now + REST };
            }
            Stage::Resting { since, until } if now >= until => {
                if self.is_at_rest() {
                    self.note(Happening::Note("at rest"));
                    self.check_rest();
                    self.rot_disjointly();
                    self.begin_scrub(self.desired, 1 << 30);
                    self.stage = Stage::Scrubbing { since: now, epoch: self.records.record.epoch };
                } else {
                    self.stage = Stage::Draining { since };
                }
            }
            Stage::Scrubbing { since, epoch } if self.records.record.epoch != epoch => {
                if now >= since + BOUND {
                    self.not_live();
                } else if self.is_at_rest() && !self.is_scrubbing() {
                    self.begin_scrub(self.desired, 1 << 30);
                    self.stage = Stage::Scrubbing { since, epoch: self.records.record.epoch };
                }
            }
            Stage::Scrubbing { .. } if self.is_at_rest() && self.is_scrubbed() => {
                self.check_scrub_at_rest();
                self.check_rest();
                self.stage = Stage::Reading { since: now };
                if self.profile.has(Fault::Rekey) {
                    // One that has no keys but those that are left.
                    self.kill_engine(self.desired, true, "ended before all is read");
                    self.start_engine(self.desired);
                }
                self.ask_everything(self.desired);
            }
            Stage::Scrubbing { since, .. } if now < since + BOUND => self.check_scrub_at_rest(),
            Stage::Reading { .. } if self.is_at_rest() => {
                self.check_pools();
                self.note(Happening::Note("power is lost everywhere"));
                self.kill_engine(self.desired, false, "power lost everywhere");
                for host in 0..self.hosts.len() {
                    self.cut_power(host, "power lost everywhere");
                    self.start_replica(host);
                }
                self.start_engine(self.desired);
                self.stage = Stage::Reopening { since: now };
            }
            Stage::Reopening { .. } if self.is_at_rest() => {
                self.check_rest();
                self.check_pools();
                self.stage = Stage::Over;
            }
            Stage::Draining { since }
            | Stage::Scrubbing { since, .. }
            | Stage::Reading { since }
            | Stage::Reopening { since }
                if now >= since + BOUND =>
            {
                self.not_live();
            }
            _ => {}
        }
    }

    fn not_live(&mut self) {
        let engine = &self.engines[self.desired];
        let why = engine.engine.as_ref().and_then(|engine| engine.core.reason());
        let detail = format!(
            "{:?} after {BOUND:?} without a fault: engine {} is {:?} ({}), {} requests wait, members {:?}, quiet {:?}",
            self.stage,
            self.desired,
            engine.state(),
            why.unwrap_or_default(),
            self.requests_in_flight(self.desired),
            self.records.record.members.iter().map(|member| member.state).collect::<Vec<_>>(),
            (0..self.hosts.len()).map(|host| self.is_quiescent(host)).collect::<Vec<_>>(),
        );
        self.fail(Check::Liveness, detail);
    }
}
