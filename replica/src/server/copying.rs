//! Everything that this server copies from others: pulls and repairs, each with a connection of its
//! own, and the pace that they share with those who copy from here.
//!
//! Invariants
//! - A failure in here touches the job that it belongs to, never a session.
//! - Once a session has ended, nothing more is handed to the store on its behalf.

use super::background::Background;
use super::source_link::{SourceLink, Thread};
use crate::pull::{Job, Output, Pace, Pull, PullError, PullOrder, Repair, RepairOrder};
use crate::session::{ConnectionId, SourceAddress};
use crate::store::{Reply, Request, RequestError, RequestId, Store};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use trivet_model::{BLOCK_SIZE_U64, Stamp};
use trivet_reactor::Output as Outcome;
use trivet_wire::{PullReport, PullState};

/// Tokens of links: this bit, the job's number, two bits of the operation.
pub(super) const TOKENS: u64 = 1 << 62;
/// Requests that jobs hand to the store have this bit; the sessions' are small.
const REQUESTS: u64 = 1 << 63;

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

struct Running {
    job: Job,
    link: SourceLink,
    owner: Owner,
    /// Nothing more is wanted of source and store; a pull stays to be asked about.
    over: bool,
}

/// Pulls and repairs under way. Keyed by number, so that they take turns in a fixed order.
pub(super) struct Copying {
    jobs: BTreeMap<u64, Running>,
    next_job: u64,
    /// What the store has been asked: by which job, under which id of its own.
    asked: HashMap<RequestId, (u64, u64)>,
    next_request: u64,
    pub(super) pace: Pace,
    /// One of the engines' requests, and when it was asked: how long it takes tells the pace.
    probe: Option<(RequestId, Duration)>,
    /// Fetches of others that wait for the pace.
    deferred: VecDeque<(RequestId, Request)>,
}

impl Copying {
    pub(super) fn new() -> Self {
        Self {
            jobs: BTreeMap::new(),
            next_job: 0,
            asked: HashMap::new(),
            next_request: REQUESTS,
            pace: Pace::default(),
            probe: None,
            deferred: VecDeque::new(),
        }
    }

    pub(super) fn pull(
        &mut self,
        connection: ConnectionId,
        order: PullOrder,
        from: SourceAddress,
        store: &mut Store,
        background: &Background,
        thread: &Thread<'_>,
    ) {
        self.end_where(store, thread, |owner| owner == Owner::Pull(connection));
        tracing::info!(volume = %order.volume, source = %from.address, since = %order.since, "pulling");
        store.begin_pull(order.volume, order.floor);
        let owner = Owner::Pull(connection);
        let pull = Pull::new(order, &store.snapshots(order.volume));
        self.start(owner, Job::Pull(Box::new(pull)), order.generation, from, background, thread);
    }

    #[allow(clippy::too_many_arguments, reason = "an order, who gave it, and what it is done with")]
    pub(super) fn repair(
        &mut self,
        connection: ConnectionId,
        request: RequestId,
        order: RepairOrder,
        from: SourceAddress,
        store: &mut Store,
        background: &Background,
        thread: &Thread<'_>,
    ) {
        store.begin_pull(order.volume, Stamp::ZERO);
        let owner = Owner::Repair(connection, request);
        self.start(owner, Job::Repair(Repair::new(order)), order.generation, from, background, thread);
    }

    fn start(
        &mut self,
        owner: Owner,
        mut job: Job,
        generation: trivet_model::Generation,
        from: SourceAddress,
        background: &Background,
        thread: &Thread<'_>,
    ) {
        let number = self.next_job;
        self.next_job += 1;
        let token = TOKENS | number << 2;
        let mut link = SourceLink::new(from, job.volume(), generation, token, thread.now);
        match link.start(thread) {
            Ok(None) => {}
            Ok(Some(address)) => background.resolve(number, address),
            Err(error) => job.fail(error),
        }
        self.jobs.insert(number, Running { job, link, owner, over: false });
    }

    /// How far a session's pull is.
    pub(super) fn report(&mut self, connection: ConnectionId) -> PullReport {
        let owner = Owner::Pull(connection);
        let pull = self.jobs.values_mut().find(|running| running.owner == owner);
        match pull.map(|running| &mut running.job) {
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

    /// A session is over: nothing more is handed to the store for it.
    pub(super) fn end(&mut self, connection: ConnectionId, store: &mut Store, thread: &Thread<'_>) {
        self.end_where(store, thread, |owner| owner == Owner::Pull(connection));
        for running in self.jobs.values_mut().filter(|running| running.owner.connection() == connection) {
            running.job.fail(PullError::Link("the session has ended".to_owned()));
        }
    }

    /// The server stops: what can be given up, is.
    pub(super) fn stop(&mut self, store: &mut Store) {
        for running in self.jobs.values_mut() {
            running.job.fail(PullError::Link("the server is stopping".to_owned()));
        }
        for (id, request) in self.deferred.drain(..) {
            store.submit(id, request);
        }
    }

    fn end_where(&mut self, store: &mut Store, thread: &Thread<'_>, ends: impl Fn(Owner) -> bool) {
        self.jobs.retain(|_, running| {
            let goes = ends(running.owner);
            if goes && !running.over {
                running.link.close(thread);
                store.end_pull(running.job.volume());
            }
            !goes
        });
    }

    pub(super) fn link_completed(&mut self, token: u64, result: io::Result<Outcome>, thread: &Thread<'_>) {
        let number = (token & !TOKENS) >> 2;
        let Some(running) = self.jobs.get_mut(&number) else { return };
        let mut answers = Vec::new();
        let outcome = running.link.completed(thread, token & 3, result, &mut answers);
        for (id, message) in answers {
            running.job.source_answered(id, message);
        }
        if let Err(error) = outcome {
            running.job.fail(error);
        }
    }

    pub(super) fn resolved(&mut self, number: u64, result: Result<SocketAddr, String>, thread: &Thread<'_>) {
        if let Some(running) = self.jobs.get_mut(&number)
            && let Err(error) = running.link.resolved(thread, result)
        {
            running.job.fail(error);
        }
    }

    /// Takes the store's answer if it is to a job.
    pub(super) fn store_answered(
        &mut self,
        id: RequestId,
        result: Result<Reply, RequestError>,
        now: Duration,
    ) -> Option<Result<Reply, RequestError>> {
        if id.0 & REQUESTS == 0 {
            self.foreground_answered(id, now);
            return Some(result);
        }
        let (number, id) = self.asked.remove(&id)?;
        if let Some(running) = self.jobs.get_mut(&number) {
            running.job.store_answered(id, result);
        }
        None
    }

    /// An engine asks for something.
    pub(super) fn note_foreground(&mut self, id: RequestId, request: &Request, now: Duration) {
        self.pace.note_foreground(now);
        let compares = matches!(request, Request::Read { .. } | Request::Write { .. });
        if self.probe.is_none() && compares {
            self.probe = Some((id, now));
        }
    }

    /// A request of an engine has been answered.
    fn foreground_answered(&mut self, id: RequestId, now: Duration) {
        if let Some((_, began)) = self.probe.take_if(|(probe, _)| *probe == id) {
            self.pace.foreground_took(began, now);
        }
    }

    /// Lets a fetch of another server go to the store, or wait for the pace.
    pub(super) fn fetch(&mut self, id: RequestId, request: Request, store: &mut Store, thread: &Thread<'_>) {
        self.deferred.push_back((id, request));
        self.serve(store, thread);
    }

    fn serve(&mut self, store: &mut Store, thread: &Thread<'_>) -> bool {
        let mut served = false;
        while let Some((_, Request::Fetch { range, .. })) = self.deferred.front()
            && self.pace.take(thread.now, u64::from(range.count) * BLOCK_SIZE_U64)
            && let Some((id, request)) = self.deferred.pop_front()
        {
            store.submit(id, request);
            served = true;
        }
        served
    }

    /// Has every job take its next steps. Adds repairs that have ended to `ended`; true when the
    /// store was asked for something.
    pub(super) fn advance(
        &mut self,
        store: &mut Store,
        thread: &Thread<'_>,
        ended: &mut Vec<(RequestId, Result<Reply, RequestError>)>,
    ) -> bool {
        let mut submitted = self.serve(store, thread);
        let mut outputs = Vec::new();
        for (number, running) in &mut self.jobs {
            if running.over {
                continue;
            }
            if running.link.is_open() {
                let snapshots = |volume| store.snapshots(volume);
                running.job.poll(thread.now, &mut self.pace, snapshots, &mut outputs);
            }
            for output in outputs.drain(..) {
                match output {
                    Output::Ask(id, message) => running.link.ask(id, &message),
                    Output::Submit(id, request) => {
                        let asked = RequestId(self.next_request);
                        self.next_request += 1;
                        self.asked.insert(asked, (*number, id));
                        store.submit(asked, request);
                        submitted = true;
                    }
                }
            }
            running.link.flush(thread);
            if running.job.is_over() {
                running.over = true;
                running.link.close(thread);
                store.end_pull(running.job.volume());
                note_end(&running.job);
            }
        }
        self.jobs.retain(|_, running| match (&running.job, running.owner) {
            (Job::Repair(repair), Owner::Repair(_, request)) if running.over => {
                let result = repair.result().cloned().unwrap_or(Ok(()));
                ended.push((request, result.map(|()| Reply::Done).map_err(request_error)));
                false
            }
            _ => true,
        });
        submitted
    }

    /// Gives up on sources that take too long.
    pub(super) fn tick(&mut self, thread: &Thread<'_>) {
        for running in self.jobs.values_mut() {
            if let Some(error) = running.link.overdue(thread.now) {
                running.job.fail(error);
            }
        }
    }

    /// Whether something waits for nothing but the pace.
    pub(super) fn waits_for_pace(&mut self, thread: &Thread<'_>) -> bool {
        let wants = !self.deferred.is_empty() || self.jobs.values().any(|running| !running.over);
        wants && !self.pace.allows(thread.now)
    }
}

fn request_error(error: PullError) -> RequestError {
    match error {
        PullError::Store(error) => error,
        other => RequestError::Source(other.to_string()),
    }
}

fn note_end(job: &Job) {
    match job {
        Job::Pull(pull) => match pull.failure() {
            Some(cause) => tracing::warn!(volume = %pull.volume(), %cause, "the pull has failed"),
            None => tracing::info!(volume = %pull.volume(), "the pull is over"),
        },
        Job::Repair(repair) => {
            if let Some(Err(cause)) = repair.result() {
                tracing::warn!(volume = %repair.volume(), %cause, "a repair has failed");
            }
        }
    }
}
