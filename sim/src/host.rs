//! A replica's host: a device with a volatile cache, a map, and the server's process, whose loop is
//! that of `replica/src/server/event_loop.rs` without sockets.

use crate::Check;
use crate::cloning::{self, Flattening};
use crate::copying::{self, Copying};
use crate::network::{LINGER, Side};
use crate::random::Random;
use crate::swarm::{Fault, Profile};
use crate::template::{self, Template};
use crate::trace::Happening;
use crate::world::{Event, Node, VOLUME, World};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use trivet_disk::{
    CompletionOrder, Disk, DiskCompletion, DiskOp, DiskToken, Fault as DiskFault, FaultRates, FaultyDisk,
    OneIn,
};
use trivet_model::{BlockArena, BootId, Generation, PoolId};
use trivet_replica::meta::MemoryMeta;
use trivet_replica::session::{ConnectionId, Identity, Output, Sessions};
use trivet_replica::store::{
    Action, ChangedScan, CheckpointJob, GroupLoad, OpenError, RequestError, RequestId, Store, StoreOptions,
};
use trivet_wire::{BlockData, Frame, Message};

/// Quiet after which the store writes what is only lazily written.
const QUIET: Duration = Duration::from_millis(50);
/// Quiet periods of that length after which the loop goes to sleep for longer.
const QUIET_PERIODS: u32 = 40;
const TICK: Duration = Duration::from_secs(1);
/// Requests of the host itself have numbers from here on.
const OWN_REQUESTS: u64 = 1 << 60;

/// What of the unflushed writes is lost with the power.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Loses {
    /// Any sectors of any, as the device's seed says.
    Anything,
    All,
    /// One write, anywhere among those that survive.
    One,
}

/// What a background thread has been given.
#[derive(Debug)]
pub(crate) enum Job {
    Load(GroupLoad),
    Scan(Box<ChangedScan>),
    Checkpoint(Box<CheckpointJob>),
}

/// A replica server that runs.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) store: Store,
    pub(crate) sessions: Sessions,
    /// Connections, as the sessions and as the network know them.
    pub(crate) peers: Vec<(ConnectionId, usize)>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) copying: Copying,
    pub(crate) flattening: Flattening,
    /// Sessions of others' copies, and where their answers go.
    pub(crate) copies_from_here: Vec<(ConnectionId, (usize, u64, u64))>,
    turning: bool,
    jobs: Vec<Option<Job>>,
    last_request: Duration,
    quiet_periods: u32,
    quiet_timer: bool,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) pool: PoolId,
    pub(crate) disk: FaultyDisk,
    pub(crate) meta: Arc<MemoryMeta>,
    boot: u64,
    pub(crate) powered: bool,
    pub(crate) process: Option<Process>,
    /// Counts the server's starts.
    pub(crate) incarnation: u64,
    /// What waits while the process is stopped.
    pub(crate) held: Option<Vec<Event>>,
    pub(crate) arena: BlockArena,
    /// The device takes so many times longer.
    pub(crate) slowness: u32,
    disk_latency: Duration,
    /// The highest generation that it has promised to anyone.
    pub(crate) promised: Generation,
    /// The next opening of its pool knows that its device has failed.
    failure_noted: bool,
    /// When it last lost what it had for good.
    pub(crate) lost_disk: Option<Duration>,
    /// Its disk as it was at some time.
    pub(crate) kept: Option<crate::lost_disk::Kept>,
    /// When it last lost what its device's cache held.
    pub(crate) lost_power: Option<Duration>,
    own_requests: u64,
}

impl Host {
    pub(crate) fn new(index: usize, profile: &Profile, random: &mut Random) -> Self {
        let fill = if profile.has(Fault::CrowdedPool) { profile.fills[index] } else { 0 };
        let cloned = profile.has(Fault::Cloned).then(|| profile.hot.clone());
        let (worn, blocks, encrypted) = (profile.worn, profile.blocks, profile.encrypted);
        let (image, meta) = template::pool(Template { index, fill, worn, blocks, cloned, encrypted });
        Self {
            pool: template::pool_id(index),
            disk: FaultyDisk::new(image, random.next()),
            meta: Arc::new(meta),
            boot: 1,
            powered: true,
            process: None,
            incarnation: 0,
            held: None,
            arena: BlockArena::new(),
            slowness: 1,
            disk_latency: random.log_between(Duration::from_micros(20), Duration::from_millis(2)),
            promised: Generation::ZERO,
            failure_noted: false,
            lost_disk: None,
            kept: None,
            lost_power: None,
            own_requests: 0,
        }
    }

    /// It has been off, and is another boot now.
    pub(crate) const fn restarted(&mut self) {
        self.boot += 1;
    }

    fn boot_id(&self) -> BootId {
        template::boot_id(self.boot)
    }
}

/// A frame as it lies in the receiver's memory: payload on block borders, as direct I/O wants it.
pub(crate) fn landed(arena: &mut BlockArena, frame: Frame) -> Frame {
    let Frame { request, generation, epoch, message } = frame;
    let message = match message {
        Message::Write { start, stamp, progress, force_unit_access, data } => {
            let mut buffer = arena.allocate(data.blocks());
            data.segments.iter().for_each(|segment| buffer.extend_from_slice(segment));
            let data = BlockData { segments: vec![buffer.freeze()], ..data };
            Message::Write { start, stamp, progress, force_unit_access, data }
        }
        other => other,
    };
    Frame { request, generation, epoch, message }
}

impl World {
    /// Starts a replica server, if its host has power and none runs.
    pub(crate) fn start_replica(&mut self, index: usize) {
        let noted = std::mem::take(&mut self.hosts[index].failure_noted);
        if self.hosts[index].disk.has_failed() && !(noted && self.profile.has(Fault::RestartOnFailedDisk)) {
            self.cut_power(index, "restarted after an error of its device");
        }
        self.hosts[index].disk.forget_failure();
        let (now, striking) = (self.now, self.is_striking());
        // Power is lost again while the pool is opened, which writes and flushes twice.
        let cuts = striking && self.profile.has(Fault::ReplicaPower);
        let (fails, when) = (cuts && self.disk_random.one_in(6), self.disk_random.below(2));
        let rate = |fault| OneIn(if striking && self.profile.has(fault) { 40 } else { 0 });
        let rates = FaultRates {
            read_error: rate(Fault::ReadError),
            misdirected_read: rate(Fault::MisdirectedRead),
            ..FaultRates::default()
        };
        let host = &mut self.hosts[index];
        if host.process.is_some() {
            return;
        }
        host.powered = true;
        host.incarnation += 1;
        host.disk.set_fault_rates(FaultRates::default());
        host.disk.set_completion_order(CompletionOrder::Submission);
        if fails {
            host.disk.inject(self.disk_random.pick(&[DiskFault::WriteError, DiskFault::FlushError]), when);
        }
        let options = StoreOptions { map_budget_bytes: 1 << 20 };
        let boot = host.boot_id();
        let opened = Store::open(&mut host.disk, &*host.meta, &options, boot);
        host.disk.set_completion_order(CompletionOrder::Held);
        let (store, report) = match opened {
            Ok(opened) => opened,
            Err(OpenError::Disk(_)) => {
                // An error that was due to strike the server before: the host is restarted.
                self.cut_power(index, "its device failed while the pool was opened");
                return self.schedule(TICK, Event::StartReplica { host: index });
            }
            Err(_) if self.make_anew(index) => {
                return self.schedule(TICK, Event::StartReplica { host: index });
            }
            Err(error) => {
                return self
                    .fail(Check::Unopenable, format!("the pool of host {index} does not open: {error}"));
            }
        };
        if rates != FaultRates::default() {
            host.disk.set_fault_rates(rates);
        }
        let known = store.volume(VOLUME);
        if report.device_failed {
            host.lost_power = Some(now);
            self.oracle.host_lost_power(index, self.now);
        }
        let identity = Identity { pool: host.pool, boot: report.boot };
        host.process = Some(Process {
            store,
            sessions: Sessions::new(identity),
            peers: Vec::new(),
            outputs: Vec::new(),
            copying: Copying::default(),
            flattening: Flattening::default(),
            copies_from_here: Vec::new(),
            turning: false,
            jobs: Vec::new(),
            last_request: now,
            quiet_periods: 0,
            quiet_timer: false,
        });
        let incarnation = host.incarnation;
        let Some(known) = known else {
            return self.fail(Check::Promise, format!("host {index} has forgotten the volume"));
        };
        self.note(Happening::ReplicaStarts {
            host: index,
            replayed: report.replayed_blocks,
            dropped: report.dropped_blocks,
            last: known.last.as_u64(),
            intact: known.intact.as_u64(),
        });
        self.returned = true;
        let promised = self.hosts[index].promised;
        if known.generation < promised {
            let found = known.generation;
            self.fail(
                Check::Promise,
                format!("host {index} promised generation {promised} and comes back with {found}"),
            );
        }
        self.schedule(Duration::ZERO, Event::Turn { host: index, incarnation });
        self.schedule(TICK, Event::HostTick { host: index, incarnation });
        self.start_quiet_timer(index);
    }

    /// The process ends at once. What its device has taken by then stays, flushed or not.
    pub(crate) fn kill_replica(&mut self, index: usize, why: &'static str) {
        if self.has_stopped(index) {
            // As the server does when it notices.
            match Store::note_failure(&*self.hosts[index].meta) {
                Ok(()) => self.hosts[index].failure_noted = true,
                Err(error) => return self.fail(Check::Unopenable, error.to_string()),
            }
        }
        self.end_process(index, why);
        let tokens: Vec<DiskToken> = self.hosts[index].disk.in_flight().collect();
        for token in tokens {
            if self.disk_random.one_in(2) {
                self.hosts[index].disk.release(token);
            }
        }
        self.hosts[index].disk.abandon();
        for connection in self.network.open_at(Node::Host(index)) {
            self.vanish(connection, Side::Host, true);
        }
    }

    /// The host loses power: unflushed writes are lost, torn or kept.
    pub(crate) fn cut_power(&mut self, index: usize, why: &'static str) {
        let loses = if self.disk_random.one_in(4) { Loses::One } else { Loses::Anything };
        self.cut_power_losing(index, why, loses);
    }

    /// As [`World::cut_power`], with what is lost.
    pub(crate) fn cut_power_losing(&mut self, index: usize, why: &'static str, loses: Loses) {
        self.end_process(index, why);
        for connection in self.network.open_at(Node::Host(index)) {
            self.vanish(connection, Side::Host, false);
        }
        let seed = self.disk_random.next();
        let host = &mut self.hosts[index];
        let unflushed = host.disk.unflushed();
        let survivor = match loses {
            Loses::Anything => host.disk.crash(),
            Loses::All => {
                let sectors = unflushed.iter().map(|write| write.sectors).sum();
                host.disk.crash_with(&vec![false; sectors])
            }
            Loses::One => {
                let lost = self.disk_random.index(unflushed.len().max(1));
                let fates = unflushed.iter().enumerate();
                let survives: Vec<bool> =
                    fates.flat_map(|(at, write)| std::iter::repeat_n(at != lost, write.sectors)).collect();
                host.disk.crash_with(&survives)
            }
        };
        let image = survivor.into_image();
        host.disk = FaultyDisk::new(image, seed);
        host.boot += 1;
        host.powered = false;
        host.lost_power = Some(self.now);
        self.oracle.host_lost_power(index, self.now);
    }

    fn end_process(&mut self, index: usize, why: &'static str) {
        self.note(Happening::ReplicaEnds { host: index, why });
        let Some(process) = self.hosts[index].process.take() else { return };
        for job in process.jobs.into_iter().flatten() {
            // The map's store may have committed what nobody heard of.
            if let Job::Checkpoint(job) = job
                && self.disk_random.one_in(2)
            {
                drop(job.run(&*self.hosts[index].meta));
            }
        }
        self.hosts[index].incarnation += 1;
        self.cut_copies_from(index);
        self.resume(Node::Host(index));
    }

    /// Frees the space that another volume takes, as an administrator does.
    pub(crate) fn empty_pool(&mut self, index: usize) {
        self.own_request(index, trivet_replica::store::Request::DeleteVolume { volume: template::FILLER });
    }

    pub(crate) fn own_request(&mut self, index: usize, request: trivet_replica::store::Request) {
        let host = &mut self.hosts[index];
        host.own_requests += 1;
        let id = RequestId(OWN_REQUESTS + host.own_requests);
        if let Some(process) = &mut host.process {
            process.store.submit(id, request);
        }
        self.want_turn(index);
    }

    /// Does what the sessions say.
    pub(crate) fn perform_outputs(&mut self, index: usize, mut outputs: Vec<Output>) {
        for output in outputs.drain(..) {
            let Some(process) = &mut self.hosts[index].process else { return };
            match output {
                Output::Submit(id, request) => {
                    process.last_request = self.now;
                    process.quiet_periods = 0;
                    process.store.submit(id, request);
                    self.start_quiet_timer(index);
                }
                Output::Progress(volume, progress) => process.store.note_progress(volume, progress),
                Output::TrimTail(volume, stable) => process.store.trim_tail(volume, stable),
                Output::Pull(owner, order, from) => self.begin_pull(index, owner, order, &from),
                Output::Repair(owner, request, order, from) => {
                    self.begin_repair(index, (owner, request), order, &from);
                }
                Output::ReportPull(owner, request) => {
                    let report = process.copying.report(owner);
                    let mut answer = Vec::new();
                    process.sessions.pull_reported(owner, request, report, &mut answer);
                    self.perform_outputs(index, answer);
                }
                Output::EndPull(owner) => self.end_session_copies(index, owner),
                Output::Flatten(..) => unreachable!("there is no manager who asks for it"),
                Output::Send(peer, frame) => {
                    let copy = process.copies_from_here.iter().find(|(known, _)| *known == peer);
                    if let Some(&(_, back)) = copy {
                        self.tell_copy(back, frame);
                    } else if let Some(connection) = connection_of(process, peer) {
                        self.check_promise(index, connection, &frame);
                        let frame = self.told(index, connection, frame);
                        self.transmit(connection, Side::Engine, frame);
                    }
                }
                Output::Close(peer, _) => {
                    if let Some(connection) = connection_of(process, peer) {
                        self.hang_up(connection, Side::Host);
                        self.schedule(LINGER, Event::Forget { connection });
                    }
                }
            }
        }
        if let Some(process) = &mut self.hosts[index].process {
            process.outputs = outputs;
        }
        self.want_turn(index);
    }

    fn check_promise(&mut self, index: usize, connection: usize, frame: &Frame) {
        // A reader is promised nothing.
        let looks = self.is_reader(self.network.connections[connection].engine);
        if looks || !matches!(frame.message, Message::OpenReply(_)) {
            return;
        }
        let promised = self.hosts[index].promised;
        if frame.generation < promised {
            let found = frame.generation;
            self.fail(Check::Promise, format!("host {index} promised {promised} and opens for {found}"));
        }
        self.hosts[index].promised = promised.max(frame.generation);
    }

    /// Has the loop take a turn soon: what comes until then goes into the same batch.
    pub(crate) fn want_turn(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let incarnation = host.incarnation;
        if let Some(process) = &mut host.process
            && !std::mem::replace(&mut process.turning, true)
        {
            let after = self.random.between(Duration::ZERO, Duration::from_micros(30));
            self.schedule(after, Event::Turn { host: index, incarnation });
        }
    }

    pub(crate) fn turn(&mut self, index: usize, incarnation: u64) {
        if self.hosts[index].incarnation != incarnation {
            return;
        }
        let mut completions: Vec<DiskCompletion> = Vec::new();
        let mut actions = Vec::new();
        if let Some(process) = &mut self.hosts[index].process {
            process.turning = false;
        }
        loop {
            let host = &mut self.hosts[index];
            let Some(process) = &mut host.process else { return };
            host.disk.reap(false, &mut completions);
            let reaped = !completions.is_empty();
            for completion in completions.drain(..) {
                process.store.disk_completed(completion);
            }
            process.store.poll_actions(&mut actions);
            if actions.is_empty() && !reaped {
                let now = self.now;
                let mut submitted = process.flattening.advance(&mut process.store, now);
                submitted |= self.advance_copies(index);
                if submitted {
                    continue;
                }
                return;
            }
            for action in actions.drain(..) {
                self.act(index, incarnation, action);
            }
        }
    }

    fn act(&mut self, index: usize, incarnation: u64, action: Action) {
        let host = &mut self.hosts[index];
        let Some(process) = &mut host.process else { return };
        match action {
            Action::Disk(token, operation) => {
                let latency = latency(host, &operation, &mut self.disk_random);
                host.disk.submit(token, operation);
                if host.disk.in_flight().any(|in_flight| in_flight == token) {
                    self.schedule(latency, Event::DiskDone { host: index, incarnation, token });
                }
            }
            Action::LoadGroups(load) => self.give(index, incarnation, Job::Load(load)),
            Action::ScanChanged(scan) => self.give(index, incarnation, Job::Scan(scan)),
            Action::Checkpoint(job) => self.give(index, incarnation, Job::Checkpoint(job)),
            Action::Complete(id, result) if id.0 >= cloning::REQUESTS => {
                process.flattening.store_answered(id, result);
                self.want_turn(index);
            }
            Action::Complete(id, result) if id.0 >= copying::REQUESTS => {
                process.copying.store_answered(id, result);
                self.want_turn(index);
            }
            Action::Complete(id, _) if id.0 >= OWN_REQUESTS => {}
            Action::Complete(id, result) => {
                let fault = match &result {
                    Err(RequestError::Medium(_)) => Some(Fault::ReadError),
                    Err(RequestError::Checksum { .. }) => Some(Fault::MisdirectedRead),
                    Err(RequestError::NoSpace { .. }) => Some(Fault::CrowdedPool),
                    _ => None,
                };
                if let Some(fault) = fault {
                    *self.struck.entry(fault).or_default() += 1;
                }
                let mut outputs = std::mem::take(&mut process.outputs);
                process.sessions.completed(id, result, &process.store, &mut outputs);
                self.perform_outputs(index, outputs);
            }
        }
    }

    fn give(&mut self, index: usize, incarnation: u64, job: Job) {
        let Some(process) = &mut self.hosts[index].process else { return };
        let number = process.jobs.len();
        process.jobs.push(Some(job));
        let after = self.disk_random.log_between(Duration::from_micros(50), Duration::from_millis(20));
        self.schedule(after, Event::Background { host: index, incarnation, job: number });
    }

    pub(crate) fn background_done(&mut self, index: usize, incarnation: u64, job: usize) {
        let host = &mut self.hosts[index];
        if host.incarnation != incarnation {
            return;
        }
        let Some(process) = &mut host.process else { return };
        match process.jobs[job].take() {
            Some(Job::Scan(scan)) => process.store.changed_scanned(scan.run(&*host.meta)),
            Some(Job::Load(load)) => process.store.groups_loaded(load.run(&*host.meta)),
            Some(Job::Checkpoint(job)) => process.store.checkpoint_finished(job.run(&*host.meta)),
            None => {}
        }
        self.turn(index, incarnation);
    }

    pub(crate) fn disk_done(&mut self, index: usize, incarnation: u64, token: DiskToken) {
        if self.hosts[index].incarnation == incarnation {
            self.hosts[index].disk.release(token);
            self.want_turn(index);
        }
    }

    fn start_quiet_timer(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let incarnation = host.incarnation;
        if let Some(process) = &mut host.process
            && !std::mem::replace(&mut process.quiet_timer, true)
        {
            self.schedule(QUIET, Event::Quiet { host: index, incarnation });
        }
    }

    pub(crate) fn quiet(&mut self, index: usize, incarnation: u64) {
        if self.hosts[index].incarnation != incarnation {
            return;
        }
        let Some(process) = &mut self.hosts[index].process else { return };
        process.quiet_timer = false;
        if self.now.saturating_sub(process.last_request) >= QUIET {
            process.store.idle();
            process.quiet_periods += 1;
        }
        if process.quiet_periods < QUIET_PERIODS {
            self.start_quiet_timer(index);
        }
        self.turn(index, incarnation);
    }

    pub(crate) fn host_tick(&mut self, index: usize, incarnation: u64) {
        if self.hosts[index].incarnation != incarnation {
            return;
        }
        let Some(process) = &mut self.hosts[index].process else { return };
        if !process.quiet_timer {
            process.store.idle();
        }
        self.schedule(TICK, Event::HostTick { host: index, incarnation });
        self.turn(index, incarnation);
    }

    /// One operation of the device, soon, goes wrong.
    pub(crate) fn inject(&mut self, index: usize, fault: DiskFault) {
        let after = self.disk_random.below(6);
        self.hosts[index].disk.inject(fault, after);
    }

    /// Whether the store has stopped after an error of its device.
    pub(crate) fn has_stopped(&self, index: usize) -> bool {
        let process = self.hosts[index].process.as_ref();
        process.is_some_and(|process| process.store.statistics().failed.is_some())
    }

    /// Whether anything is under way in a replica server.
    pub(crate) fn is_quiescent(&self, index: usize) -> bool {
        let process = self.hosts[index].process.as_ref();
        process.is_some_and(|process| process.store.is_quiescent() && process.sessions.is_drained())
    }
}

fn connection_of(process: &Process, peer: ConnectionId) -> Option<usize> {
    process.peers.iter().find(|(known, _)| *known == peer).map(|(_, connection)| *connection)
}

fn latency(host: &Host, operation: &DiskOp, random: &mut Random) -> Duration {
    let mean = match operation {
        DiskOp::Read { .. } => host.disk_latency,
        DiskOp::Write { segments, .. } => {
            let blocks: usize = segments.iter().map(Bytes::len).sum::<usize>() / trivet_model::BLOCK_SIZE;
            host.disk_latency + Duration::from_micros(blocks as u64)
        }
        DiskOp::Flush => host.disk_latency * 4,
        DiskOp::Extend { .. } => host.disk_latency * 50,
    };
    (mean / 4 + random.exponential(mean)) * host.slowness
}
