//! What goes wrong, when, and for how long.

use crate::host::Loses;
use crate::network::Side;
use crate::random::Random;
use crate::stages::Stage;
use crate::swarm::Fault;
use crate::trace::Happening;
use crate::world::{Event, Mending, Node, World};
use std::time::Duration;
use trivet_disk::Fault as DiskFault;

/// How long a process is away at least and at most.
const AWAY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(8));
/// How long something hangs: at times longer than an engine waits for an answer.
const HANG: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(25));
/// How long an engine is alone with a host.
const ISOLATED: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(20));

impl World {
    /// Whether faults may happen now.
    pub(crate) fn is_striking(&self) -> bool {
        self.stage == Stage::Faults
    }

    /// Draws how often each fault strikes, and lets it begin.
    pub(crate) fn begin_strikes(&mut self, seed: u64) {
        let scale = self.profile.scale;
        for (label, fault) in (100..).zip(Fault::ALL) {
            if self.profile.has(fault) && fault.strikes() {
                let mut random = Random::stream(seed, label);
                let mean = random.log_between(scale / 10, scale);
                let first = random.exponential(mean);
                self.strikes.insert(fault, (random, mean));
                self.schedule(first, Event::Strike { fault, again: true });
            }
        }
    }

    /// What has just been opened is unsettled in ways of its own: some faults like to strike then.
    pub(crate) fn strike_soon(&mut self) {
        let unsettling =
            [Fault::TotalPower, Fault::ReplicaPower, Fault::KillReplica, Fault::KillEngine, Fault::Takeover];
        for fault in unsettling {
            if let Some((random, _)) = self.strikes.get_mut(&fault)
                && random.one_in(8)
            {
                let after = random.log_between(Duration::from_micros(100), Duration::from_millis(500));
                self.schedule(after, Event::Strike { fault, again: false });
            }
        }
    }

    pub(crate) fn strike(&mut self, fault: Fault, again: bool) {
        let Some((mut random, mean)) = self.strikes.remove(&fault).filter(|_| self.is_striking()) else {
            return;
        };
        self.note(Happening::Struck(fault));
        if !matches!(fault, Fault::RottenMetadata | Fault::OlderDisk) {
            // Those count where they take effect.
            self.count(fault);
        }
        self.strike_with(fault, &mut random);
        let next = random.exponential(mean);
        self.strikes.insert(fault, (random, mean));
        if again {
            self.schedule(next, Event::Strike { fault, again });
        }
    }

    fn strike_with(&mut self, fault: Fault, random: &mut Random) {
        let host = random.index(self.hosts.len());
        let engine = self.a_running_engine(random);
        let away = random.log_between(AWAY.0, AWAY.1);
        let hang = random.log_between(HANG.0, HANG.1);
        match fault {
            Fault::BreakLink => {
                let open = self.network.open_at(Node::Host(host));
                if !open.is_empty() {
                    let connection = random.pick(&open);
                    self.reset(connection);
                }
            }
            Fault::ClogLink => {
                for to in directions(random) {
                    self.block(engine, host, to);
                    self.mend_after(hang, Mending::Link { engine, host, to });
                }
            }
            Fault::Partition => self.partition(random, hang),
            Fault::Isolation => self.isolate(engine, host, random),
            Fault::KillReplica => {
                if self.hosts[host].process.is_some() {
                    self.kill_replica(host, "killed");
                    self.schedule(away, Event::StartReplica { host });
                    if self.profile.has(Fault::SlowReturn) {
                        self.count(Fault::SlowReturn);
                        self.hosts[host].slowness = random.pick(&[200, 500, 1000]);
                        self.mend_after(away + hang, Mending::Disk(host));
                    }
                }
            }
            Fault::ReplicaPower => {
                self.cut_power(host, "power lost");
                self.schedule(away, Event::StartReplica { host });
            }
            Fault::PauseReplica => {
                if self.hosts[host].held.is_none() {
                    self.hosts[host].held = Some(Vec::new());
                    self.mend_after(hang, Mending::ResumeHost(host));
                }
            }
            Fault::SlowDisk => {
                self.hosts[host].slowness = random.pick(&[5, 50, 500]);
                self.mend_after(hang, Mending::Disk(host));
            }
            Fault::WriteError => self.inject(host, DiskFault::WriteError),
            Fault::FlushError => self.inject(host, DiskFault::FlushError),
            Fault::KillEngine => {
                self.kill_engine(engine, true, "killed");
                if random.one_in(2) {
                    let soon = random.log_between(Duration::from_millis(1), Duration::from_secs(1));
                    self.schedule(soon, Event::StartEngine { engine: self.desired });
                }
            }
            Fault::EnginePower => self.kill_engine(engine, false, "power lost"),
            Fault::PauseEngine => self.pause_engine(engine, hang),
            Fault::CloseEngine => {
                if self.engines[engine].held.is_none() {
                    let patience = random.pick(&[Duration::from_millis(100), Duration::from_secs(10)]);
                    self.with_core(engine, |core, now| core.close(now, patience));
                }
            }
            Fault::Takeover => {
                self.desired = random.index(self.profile.engines);
                self.start_engine(self.desired);
            }
            Fault::RecordOutage => {
                self.records.away += 1;
                self.mend_after(hang, Mending::Record);
            }
            Fault::RecordTouch => self.records.touch(random),
            Fault::Grow => {
                if self.engines[engine].held.is_none() {
                    self.ask_to_grow(engine, random.below(4));
                }
            }
            Fault::Snapshot => {
                if self.engines[engine].held.is_none() {
                    self.ask_to_snapshot(engine, random);
                }
            }
            Fault::Reader => self.strike_reader(random, hang),
            Fault::Cloned => self.disturb_lineage(host, random),
            Fault::Settings => {
                if self.engines[engine].held.is_none() {
                    self.ask_to_set(engine, random);
                }
            }
            Fault::Revert => self.strike_revert(random),
            Fault::Rekey => self.strike_rekey(engine),
            Fault::Group => {
                if self.engines[engine].held.is_none() {
                    self.strike_group(engine, random);
                }
            }
            Fault::Imported => self.lose_source(random, hang),
            Fault::TotalPower => self.total_power_loss(random),
            Fault::Scrub => {
                if self.engines[engine].held.is_none() {
                    let bytes_per_second = random.pick(&[1 << 20, 1 << 30]);
                    self.begin_scrub(engine, bytes_per_second);
                }
            }
            Fault::RottenData => self.rot_some(random),
            Fault::RottenMetadata => self.rot_metadata(host, random),
            Fault::OlderDisk => self.exchange_disk(host, random),
            Fault::CorruptFrame
            | Fault::ReadError
            | Fault::CrowdedPool
            | Fault::Contention
            | Fault::RecordLoss
            | Fault::ClockDrift
            | Fault::RestartOnFailedDisk
            | Fault::MisdirectedRead
            | Fault::OldVersions
            | Fault::SlowReturn => unreachable!("does not strike at moments"),
        }
    }

    fn a_running_engine(&self, random: &mut Random) -> usize {
        let running: Vec<usize> =
            (0..self.profile.engines).filter(|index| self.engines[*index].engine.is_some()).collect();
        if running.is_empty() { self.desired } else { random.pick(&running) }
    }

    /// An engine stops, and goes on after a while.
    pub(crate) fn pause_engine(&mut self, engine: usize, hang: Duration) {
        if self.engines[engine].held.is_none() {
            self.engines[engine].held = Some(Vec::new());
            self.mend_after(hang, Mending::ResumeEngine(engine));
        }
    }

    /// Cuts one host, or one engine, off from everybody.
    fn partition(&mut self, random: &mut Random, hang: Duration) {
        let directions = directions(random);
        let links: Vec<(usize, usize)> = if random.one_in(2) {
            let host = random.index(self.hosts.len());
            (0..self.engines.len()).map(|engine| (engine, host)).collect()
        } else {
            let engine = self.a_running_engine(random);
            (0..self.hosts.len()).map(|host| (engine, host)).collect()
        };
        for (engine, host) in links {
            for to in &directions {
                self.block(engine, host, *to);
                self.mend_after(hang, Mending::Link { engine, host, to: *to });
            }
        }
    }

    /// All hosts, the engines' with them at times, lose power.
    pub(crate) fn total_power_loss(&mut self, random: &mut Random) {
        let engines = random.one_in(2);
        let loses = if random.one_in(3) { Loses::All } else { Loses::Anything };
        for engine in 0..self.engines.len() {
            if engines {
                self.kill_engine(engine, false, "power lost everywhere");
            }
        }
        for host in 0..self.hosts.len() {
            self.cut_power_losing(host, "power lost everywhere", loses);
            let back = random.log_between(AWAY.0, AWAY.1);
            self.schedule(back, Event::StartReplica { host });
        }
    }

    /// Leaves an engine alone with one host, and another engine with the rest.
    fn isolate(&mut self, engine: usize, host: usize, random: &mut Random) {
        let lasts = random.log_between(ISOLATED.0, ISOLATED.1);
        for one in 0..self.engines.len() {
            for other in 0..self.hosts.len() {
                if (one == engine) != (other == host) {
                    for to in [Side::Engine, Side::Host] {
                        self.block(one, other, to);
                        self.mend_after(lasts, Mending::Link { engine: one, host: other, to });
                    }
                }
            }
        }
        self.records.cut_off.push(engine);
        self.mend_after(lasts, Mending::RecordLink { engine });
        let others = self.profile.engines - 1;
        self.desired = (engine + 1 + random.index(others)) % self.profile.engines;
        let soon = random.log_between(Duration::from_millis(1), Duration::from_secs(1));
        self.schedule(soon, Event::StartEngine { engine: self.desired });
    }

    pub(crate) fn mend_after(&mut self, after: Duration, what: Mending) {
        self.schedule(after, Event::Mend { what, mended: self.mended });
    }

    pub(crate) fn mend(&mut self, what: Mending) {
        match what {
            Mending::Link { engine, host, to } => self.unblock(engine, host, to, false),
            Mending::ResumeHost(host) => self.resume(Node::Host(host)),
            Mending::ResumeEngine(engine) => self.resume(Node::Engine(engine)),
            Mending::Disk(host) => self.hosts[host].slowness = 1,
            Mending::RecordLink { engine } => {
                if let Some(at) = self.records.cut_off.iter().position(|&cut_off| cut_off == engine) {
                    self.records.cut_off.swap_remove(at);
                }
            }
            Mending::Source => self.source_away = self.source_away.saturating_sub(1),
            Mending::Record => self.records.away = self.records.away.saturating_sub(1),
        }
    }

    /// Nothing is wrong any more, and nothing goes wrong.
    pub(crate) fn mend_all(&mut self) {
        self.mended += 1;
        for engine in 0..self.engines.len() {
            if engine != self.desired {
                self.kill_engine(engine, true, "not wanted any more");
            }
            self.resume(Node::Engine(engine));
            for host in 0..self.hosts.len() {
                for to in [Side::Engine, Side::Host] {
                    self.unblock(engine, host, to, true);
                }
            }
        }
        self.source_away = 0;
        self.records.away = 0;
        self.records.cut_off.clear();
        for host in 0..self.hosts.len() {
            self.resume(Node::Host(host));
            self.hosts[host].slowness = 1;
            self.hosts[host].disk.clear_faults();
            self.start_replica(host);
            if self.profile.has(Fault::CrowdedPool) {
                self.empty_pool(host);
            }
        }
    }
}

/// One direction of a link, or both.
fn directions(random: &mut Random) -> Vec<Side> {
    match random.below(3) {
        0 => vec![Side::Host],
        1 => vec![Side::Engine],
        _ => vec![Side::Host, Side::Engine],
    }
}
