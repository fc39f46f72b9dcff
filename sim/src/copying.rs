//! Pulls and repairs between replica servers: what `replica/src/server/copying.rs` does, without
//! sockets. A job has a session of its own at its source; what they say to each other arrives after a
//! while, in order, or never once either process has ended.

use crate::host::Process;
use crate::world::{Event, World};
use std::collections::HashMap;
use trivet_model::{BootId, Generation, Stamp, VolumeId};
use trivet_replica::pull::{Job, Output as JobOutput, Pace, Pull, PullError, PullOrder, Repair, RepairOrder};
use trivet_replica::session::{ConnectionId, SourceAddress};
use trivet_replica::store::{Reply, RequestError, RequestId};
use trivet_wire::frame::PROTOCOL_VERSION;
use trivet_wire::{Frame, Hello, Message, PullReport, PullState};

/// Requests that jobs hand to the store have numbers from here on.
pub(crate) const REQUESTS: u64 = 1 << 61;
/// Wire requests of a job's: two for the greeting, then the job's own, moved by this.
const FIRST_REQUEST: u64 = 16;
const HELLO: u64 = 1;
const OPEN: u64 = 2;
/// A copy may be cut off by chance, once in so many messages.
const CUT_ONE_IN: u64 = 400;

/// For whom a job is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    Pull(ConnectionId),
    Repair(ConnectionId, RequestId),
}

impl Owner {
    const fn connection(self) -> ConnectionId {
        match self {
            Self::Pull(connection) | Self::Repair(connection, _) => connection,
        }
    }
}

#[derive(Debug)]
struct Running {
    number: u64,
    job: Job,
    owner: Owner,
    generation: Generation,
    volume: VolumeId,
    /// Host, its process, and our session there.
    source: Option<(usize, u64, ConnectionId)>,
    /// The boot that the source must be on.
    boot: Option<BootId>,
    open: bool,
    over: bool,
}

/// The jobs of a process.
#[derive(Debug)]
pub(crate) struct Copying {
    jobs: Vec<Running>,
    next_job: u64,
    asked: HashMap<RequestId, (u64, u64)>,
    next_request: u64,
    pace: Pace,
}

impl Default for Copying {
    fn default() -> Self {
        // The pace is a matter of speed, and virtual time costs nothing.
        let pace = Pace::default();
        Self { jobs: Vec::new(), next_job: 0, asked: HashMap::new(), next_request: REQUESTS, pace }
    }
}

impl Copying {
    pub(crate) fn report(&mut self, connection: ConnectionId) -> PullReport {
        let found = self.jobs.iter_mut().find(|running| running.owner == Owner::Pull(connection));
        match found.map(|running| &mut running.job) {
            Some(Job::Pull(pull)) => pull.report(),
            _ => PullReport {
                state: PullState::Failed,
                position: 0,
                copied_blocks: 0,
                diverged: Vec::new(),
                detail: "this session has begun no pull".to_owned(),
            },
        }
    }

    fn find(&mut self, number: u64) -> Option<&mut Running> {
        self.jobs.iter_mut().find(|running| running.number == number)
    }

    /// Takes the store's answer if it is to a job.
    pub(crate) fn store_answered(&mut self, id: RequestId, result: Result<Reply, RequestError>) {
        if let Some((number, id)) = self.asked.remove(&id)
            && let Some(running) = self.find(number)
        {
            running.job.store_answered(id, result);
        }
    }
}

impl World {
    pub(crate) fn begin_pull(
        &mut self,
        index: usize,
        owner: ConnectionId,
        order: PullOrder,
        from: &SourceAddress,
    ) {
        self.end_copies(index, |running| running == Owner::Pull(owner));
        let Some(process) = &mut self.hosts[index].process else { return };
        process.store.begin_pull(order.volume, order.floor);
        let snapshots = process.store.snapshots(order.volume);
        let (volume, generation) = (order.volume, order.generation);
        self.begin_copy(
            index,
            Owner::Pull(owner),
            Job::Pull(Box::new(Pull::new(order, &snapshots))),
            volume,
            generation,
            from,
        );
    }

    pub(crate) fn begin_repair(
        &mut self,
        index: usize,
        owner: (ConnectionId, RequestId),
        order: RepairOrder,
        from: &SourceAddress,
    ) {
        let Some(process) = &mut self.hosts[index].process else { return };
        process.store.begin_pull(order.volume, Stamp::ZERO);
        let (volume, generation) = (order.volume, order.generation);
        let owner = Owner::Repair(owner.0, owner.1);
        self.begin_copy(index, owner, Job::Repair(Repair::new(order)), volume, generation, from);
    }

    fn begin_copy(
        &mut self,
        index: usize,
        owner: Owner,
        mut job: Job,
        volume: VolumeId,
        generation: Generation,
        from: &SourceAddress,
    ) {
        let found = self.hosts.iter().position(|host| host.pool == from.pool && host.process.is_some());
        let source = found.and_then(|host| {
            let incarnation = self.hosts[host].incarnation;
            let process = self.hosts[host].process.as_mut()?;
            Some((host, incarnation, process.sessions.connected()))
        });
        if source.is_none() {
            job.fail(PullError::Link("nobody listens there".to_owned()));
        }
        let Some(process) = &mut self.hosts[index].process else { return };
        let number = process.copying.next_job;
        process.copying.next_job += 1;
        process.copying.jobs.push(Running {
            number,
            job,
            owner,
            generation,
            volume,
            source,
            boot: from.boot,
            open: false,
            over: false,
        });
        let hello = Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION };
        self.ask_source(index, number, HELLO, Message::Hello(hello));
        let open = Message::Open { volume, writable: false, session: 0 };
        self.ask_source(index, number, OPEN, open);
    }

    /// Sends a job's question to its source.
    fn ask_source(&mut self, index: usize, number: u64, request: u64, message: Message) {
        let after = self.network.latency;
        let incarnation = self.hosts[index].incarnation;
        let Some(process) = &mut self.hosts[index].process else { return };
        let Some(running) = process.copying.find(number) else { return };
        let Some((host, source_incarnation, peer)) = running.source else { return };
        let generation = if request < FIRST_REQUEST { Generation::ZERO } else { running.generation };
        let frame = Frame { request, generation, epoch: trivet_model::Epoch(0), message };
        self.schedule(
            after,
            Event::CopyAsks {
                host,
                incarnation: source_incarnation,
                peer,
                back: (index, incarnation, number),
                frame,
            },
        );
    }

    /// A job's question reaches its source.
    pub(crate) fn copy_asks(
        &mut self,
        (host, incarnation, peer): (usize, u64, ConnectionId),
        back: (usize, u64, u64),
        frame: Frame,
    ) {
        let cut = self.is_striking() && self.random.one_in(CUT_ONE_IN);
        if self.hosts[host].incarnation != incarnation || cut {
            return self.copy_cut(back, "the source is gone");
        }
        let Some(process) = &mut self.hosts[host].process else { return };
        if !process.copies_from_here.iter().any(|(known, _)| *known == peer) {
            process.copies_from_here.push((peer, back));
        }
        let Process { sessions, store, outputs, .. } = process;
        let mut outputs = std::mem::take(outputs);
        sessions.received(peer, frame, store, &mut outputs);
        self.perform_outputs(host, outputs);
    }

    /// A source says something to a job.
    pub(crate) fn tell_copy(&mut self, back: (usize, u64, u64), frame: Frame) {
        let after = self.network.latency;
        let (host, incarnation, number) = back;
        self.schedule(after, Event::CopyAnswered { host, incarnation, number, frame });
    }

    pub(crate) fn copy_answered(&mut self, (host, incarnation, number): (usize, u64, u64), frame: Frame) {
        if self.hosts[host].incarnation != incarnation {
            return;
        }
        let Some(process) = &mut self.hosts[host].process else { return };
        let Some(running) = process.copying.find(number) else { return };
        match (frame.request, frame.message) {
            (HELLO, Message::HelloReply(_)) => {}
            (OPEN, Message::OpenReply(reply)) if running.boot.is_none_or(|boot| boot == reply.boot) => {
                running.open = true;
            }
            (OPEN, Message::OpenReply(_)) => {
                running.job.fail(PullError::Link("the source's host has been restarted".to_owned()));
            }
            (HELLO | OPEN, other) => running.job.fail(PullError::Link(format!("{other:?}"))),
            (0, other) => running.job.fail(PullError::Link(format!("{other:?}"))),
            (request, message) => running.job.source_answered(request - FIRST_REQUEST, message),
        }
        self.want_turn(host);
    }

    fn copy_cut(&mut self, (host, incarnation, number): (usize, u64, u64), why: &str) {
        if self.hosts[host].incarnation == incarnation
            && let Some(process) = &mut self.hosts[host].process
            && let Some(running) = process.copying.find(number)
        {
            running.job.fail(PullError::Link(why.to_owned()));
            self.want_turn(host);
        }
    }

    /// A source's process has ended: those who copy from it find out.
    pub(crate) fn cut_copies_from(&mut self, index: usize) {
        for host in 0..self.hosts.len() {
            let Some(process) = &mut self.hosts[host].process else { continue };
            for running in &mut process.copying.jobs {
                if running.source.is_some_and(|(source, ..)| source == index) {
                    running.job.fail(PullError::Link("the source has ended".to_owned()));
                }
            }
            self.want_turn(host);
        }
    }

    /// A session is over: nothing more is handed to the store for it.
    pub(crate) fn end_session_copies(&mut self, index: usize, connection: ConnectionId) {
        self.end_copies(index, |owner| owner == Owner::Pull(connection));
        let Some(process) = &mut self.hosts[index].process else { return };
        for running in
            process.copying.jobs.iter_mut().filter(|running| running.owner.connection() == connection)
        {
            running.job.fail(PullError::Link("the session has ended".to_owned()));
        }
    }

    fn end_copies(&mut self, index: usize, ends: impl Fn(Owner) -> bool) {
        let Some(process) = &mut self.hosts[index].process else { return };
        let Process { copying, store, .. } = process;
        copying.jobs.retain(|running| {
            let goes = ends(running.owner);
            if goes && !running.over {
                store.end_pull(running.volume);
            }
            !goes
        });
    }

    /// Has every job take its next steps; true when the store was asked for something.
    pub(crate) fn advance_copies(&mut self, index: usize) -> bool {
        let now = self.now;
        let Some(process) = &mut self.hosts[index].process else { return false };
        let Process { copying, store, sessions, outputs, .. } = process;
        let Copying { jobs, asked, next_request, pace, .. } = copying;
        let (mut steps, mut questions, mut submitted) = (Vec::new(), Vec::new(), false);
        let mut ended: Vec<(RequestId, Result<Reply, RequestError>)> = Vec::new();
        for running in jobs.iter_mut().filter(|running| !running.over) {
            if running.open {
                running.job.poll(now, pace, |volume| store.snapshots(volume), &mut steps);
            }
            for step in steps.drain(..) {
                match step {
                    JobOutput::Ask(id, message) => {
                        questions.push((running.number, id + FIRST_REQUEST, message))
                    }
                    JobOutput::Submit(id, request) => {
                        let mine = RequestId(*next_request);
                        *next_request += 1;
                        asked.insert(mine, (running.number, id));
                        store.submit(mine, request);
                        submitted = true;
                    }
                }
            }
            if running.job.is_over() {
                running.over = true;
                store.end_pull(running.volume);
                if let (Job::Repair(repair), Owner::Repair(_, request)) = (&running.job, running.owner) {
                    let result = repair.result().cloned().unwrap_or(Ok(()));
                    let failed = |error: PullError| RequestError::Source(error.to_string());
                    ended.push((request, result.map(|()| Reply::Done).map_err(failed)));
                }
            }
        }
        jobs.retain(|running| !(running.over && matches!(running.owner, Owner::Repair(..))));
        if !ended.is_empty() {
            let mut told = std::mem::take(outputs);
            for (request, result) in ended {
                sessions.completed(request, result, store, &mut told);
            }
            self.perform_outputs(index, told);
        }
        for (number, request, message) in questions {
            self.ask_source(index, number, request, message);
        }
        submitted
    }
}
