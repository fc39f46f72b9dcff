//! The server's one thread: sockets, sessions, store and disk, turn by turn.
//!
//! A turn takes everything that has happened since the last: bytes are decoded into frames, frames
//! go through the sessions to the store, the disk's completions go to the store. Then the store is
//! asked once what to do, so that all that came in together becomes one batch; and each connection
//! gets all its frames in one send.

mod outputs;
mod upkeep;

use super::ServerError;
use super::background::{Background, Finished};
use super::copying::{self, Copying};
use super::flattening::Flattening;
use super::peer::{Operation, Peer, Phase, Verdict};
use super::source_link::Thread;
use crate::session::{ConnectionId, Identity, Output, PoolFacts, Sessions};
use crate::store::{Action, PoolStatistics, Snapshot, Store, VolumeStatistics};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use trivet_disk::{Disk, DiskCompletion, UringFile};
use trivet_model::VolumeId;
use trivet_reactor::{
    Completion, Handle, Output as Outcome, Reactor, Source, Wait, prepare_accepted, prepare_shortcut,
};

/// Between looks at what takes too long.
const TICK: Duration = Duration::from_secs(1);

const ACCEPT: u64 = 0;
const ACCEPT_TIMER: u64 = 1;
const STOP: u64 = 2;
const BACKGROUND: u64 = 3;
const QUIET_TIMER: u64 = 4;
const TICK_TIMER: u64 = 5;
const ACCEPT_SHORTCUT: u64 = 6;
const PACE_TIMER: u64 = 7;
/// Tokens from here on are a peer's: twice its index, and one more for a send. Those of links to
/// sources are far above.
const PEERS: u64 = 16;

/// Tokens of the completions that do not belong to a peer.
pub(super) mod token {
    /// The server is asked to stop.
    pub(in crate::server) const STOP: u64 = super::STOP;
    /// A background thread has finished something.
    pub(in crate::server) const BACKGROUND: u64 = super::BACKGROUND;
}

impl PoolFacts for Store {
    fn volume(&self, volume: VolumeId) -> Option<VolumeStatistics> {
        Self::volume(self, volume)
    }

    fn snapshots(&self, volume: VolumeId) -> Vec<Snapshot> {
        Self::snapshots(self, volume)
    }

    fn volumes(&self) -> Vec<VolumeStatistics> {
        Self::volumes(self)
    }

    fn statistics(&self) -> PoolStatistics {
        Self::statistics(self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Serving,
    /// Answers what has been asked.
    Draining {
        since: Duration,
    },
    /// Waits for the last checkpoint.
    Checkpointing,
}

/// A failure of the device. The pool serves what needs no write, until the failure can be noted: then
/// the device works, and the pool is opened anew by whoever starts the server again.
#[derive(Debug)]
struct Failure {
    cause: String,
    /// Whether an attempt to note it is under way.
    noting: bool,
    noted: bool,
}

/// Somewhere to connect to.
struct Door {
    listener: Handle,
    token: u64,
    prepare: fn(OwnedFd) -> io::Result<Handle>,
    accepting: bool,
}

/// Everything that the thread owns.
pub(super) struct EventLoop {
    reactor: Reactor,
    source: Source,
    doors: Vec<Door>,
    store: Store,
    disk: UringFile,
    background: Background,
    sessions: Sessions,
    copying: Copying,
    flattening: Flattening,
    /// By `ConnectionId::index`.
    peers: Vec<Option<Peer>>,
    peers_count: usize,
    /// Peers to look at at the end of the turn.
    listed: Vec<usize>,
    /// Peers that are not listened to until some of what they asked is done; looked at every turn.
    paused: Vec<usize>,
    stage: Stage,
    last_request: Duration,
    quiet_periods: u32,
    quiet_timer: bool,
    pace_timer: bool,
    /// Why the pool has stopped, if it has.
    failure: Option<Failure>,
    /// When the device last answered, or had nothing to answer.
    disk_heard: Duration,
    outputs: Vec<Output>,
    actions: Vec<Action>,
    completions: Vec<DiskCompletion>,
}

/// What a loop is made of.
pub(super) struct Parts {
    pub(super) reactor: Reactor,
    pub(super) source: Source,
    pub(super) listener: Handle,
    /// Where processes of this host get in past the network stack.
    pub(super) shortcut: Option<Handle>,
    pub(super) store: Store,
    pub(super) disk: UringFile,
    pub(super) background: Background,
    pub(super) identity: Identity,
}

impl EventLoop {
    pub(super) fn new(parts: Parts) -> Self {
        let network =
            Door { listener: parts.listener, token: ACCEPT, prepare: prepare_accepted, accepting: false };
        let shortcut = parts.shortcut.map(|listener| Door {
            listener,
            token: ACCEPT_SHORTCUT,
            prepare: prepare_shortcut,
            accepting: false,
        });
        Self {
            reactor: parts.reactor,
            source: parts.source,
            doors: std::iter::once(network).chain(shortcut).collect(),
            store: parts.store,
            disk: parts.disk,
            background: parts.background,
            sessions: Sessions::new(parts.identity),
            copying: Copying::new(),
            flattening: Flattening::new(),
            peers: Vec::new(),
            peers_count: 0,
            listed: Vec::new(),
            paused: Vec::new(),
            stage: Stage::Serving,
            last_request: Duration::ZERO,
            quiet_periods: 0,
            quiet_timer: false,
            pace_timer: false,
            failure: None,
            disk_heard: Duration::ZERO,
            outputs: Vec::new(),
            actions: Vec::new(),
            completions: Vec::new(),
        }
    }

    /// Serves until asked to stop, and then until all is answered and checkpointed.
    ///
    /// # Errors
    /// The ring's; [`ServerError::PoolStopped`].
    pub(super) fn run(mut self) -> Result<(), ServerError> {
        self.accept();
        self.reactor.timer(self.source, TICK_TIMER, TICK);
        // Recovery may have left something to do.
        self.drive_store();
        self.start_quiet_timer();
        while !self.is_finished() {
            // A batch is over when its data and its records are written: one of the two is no news.
            if self.disk.in_flight() >= 2 {
                self.reactor.gather(2);
            }
            self.reactor.poll(Wait::Forever).map_err(ServerError::Loop)?;
            while let Some(completion) = self.reactor.take(self.source) {
                self.completed(completion);
            }
            self.drive_store();
            while self.resume_peers() | self.copy() {
                self.drive_store();
            }
            self.advance_peers();
            self.look_for_failure();
            if let Some(failure) = self.failure.take_if(|failure| failure.noted) {
                return Err(ServerError::PoolStopped(failure.cause));
            }
        }
        Ok(())
    }

    fn completed(&mut self, completion: Completion) {
        match completion.token {
            token @ (ACCEPT | ACCEPT_SHORTCUT) => self.accepted(token, completion.result),
            ACCEPT_TIMER => self.accept(),
            STOP => self.stop(),
            BACKGROUND => self.finished_in_background(),
            QUIET_TIMER => self.quiet(),
            TICK_TIMER => self.tick(),
            // The turn itself looks.
            PACE_TIMER => self.pace_timer = false,
            token if token & copying::TOKENS != 0 => {
                let thread = thread(&self.reactor, self.source);
                self.copying.link_completed(token, completion.result, &thread);
            }
            token => self.peer_completed(token, completion.result),
        }
    }

    fn peer_completed(&mut self, token: u64, result: io::Result<Outcome>) {
        let (index, operation) = parse(token);
        let Some(peer) = self.peers.get_mut(index).and_then(Option::as_mut) else {
            unreachable!("a peer stays until its operations have ended");
        };
        match (operation, result) {
            (Operation::Send, result) => peer.sent(result.is_ok()),
            (Operation::Receive, Ok(Outcome::Buffer(buffer))) => {
                if let Some(buffer) = peer.received(Some(buffer)) {
                    peer.decoder.filled(buffer);
                    self.decode(index);
                }
            }
            (Operation::Receive, _) => {
                peer.received(None);
            }
        }
        self.list(index);
    }

    /// Hands every frame that has arrived whole to the sessions, as long as they take more.
    fn decode(&mut self, index: usize) {
        while let Some(peer) = self.peers[index].as_mut()
            && peer.phase == Phase::Live
        {
            let id = peer.id;
            if !(peer.listens() && self.sessions.may_receive(id)) {
                return self.pause(index);
            }
            match peer.decoder.next() {
                Ok(Some(frame)) => self.sessions.received(id, frame, &self.store, &mut self.outputs),
                Ok(None) => return,
                Err(error) => self.sessions.malformed(id, error, &mut self.outputs),
            }
            self.perform();
        }
    }

    fn pause(&mut self, index: usize) {
        if let Some(peer) = self.peers[index].as_mut()
            && !std::mem::replace(&mut peer.paused, true)
        {
            self.paused.push(index);
        }
    }

    /// Listens again to those that may be; true if there were any, who may have asked for more.
    fn resume_peers(&mut self) -> bool {
        let mut resumed = false;
        for index in std::mem::take(&mut self.paused) {
            let Some(peer) = self.peers[index].as_mut() else { continue };
            peer.paused = false;
            if peer.phase == Phase::Live && !(peer.listens() && self.sessions.may_receive(peer.id)) {
                self.pause(index);
                continue;
            }
            resumed = true;
            self.list(index);
            self.decode(index);
        }
        resumed
    }

    /// Gives the store what the disk has finished, and does what it says; again while the disk
    /// finishes something at once.
    fn drive_store(&mut self) {
        loop {
            self.disk.reap(false, &mut self.completions);
            let reaped = !self.completions.is_empty();
            if reaped {
                self.disk_heard = self.reactor.now();
            }
            for completion in self.completions.drain(..) {
                self.store.disk_completed(completion);
            }
            self.store.poll_actions(&mut self.actions);
            if self.actions.is_empty() && !reaped {
                break;
            }
            self.act();
        }
    }

    fn act(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        let now = self.reactor.now();
        for action in actions.drain(..) {
            match action {
                Action::Disk(token, operation) => self.disk.submit(token, operation),
                Action::LoadGroups(load) => self.background.load(load),
                Action::ScanChanged(scan) => self.background.scan(scan),
                Action::Checkpoint(job) => self.background.checkpoint(job),
                Action::Complete(id, result) => {
                    let result = self.copying.store_answered(id, result, now);
                    if let Some(result) = result.and_then(|result| self.flattening.store_answered(id, result))
                    {
                        self.sessions.completed(id, result, &self.store, &mut self.outputs);
                        self.perform();
                    }
                }
            }
        }
        self.actions = actions;
    }

    fn finished_in_background(&mut self) {
        let Self { background, reactor, .. } = self;
        let mut noted = None;
        for finished in background.finished() {
            match finished {
                Finished::Resolved(job, result) => {
                    self.copying.resolved(job, result, &thread(reactor, self.source));
                }
                Finished::Groups(groups) => self.store.groups_loaded(groups),
                Finished::Scan(scanned) => self.store.changed_scanned(scanned),
                Finished::Checkpoint(outcome) => self.store.checkpoint_finished(outcome),
                Finished::FailureNoted(result) => noted = Some(result),
            }
        }
        if let Some(result) = noted {
            self.failure_noted(&result);
        }
    }

    fn look_for_failure(&mut self) {
        if let (None, Some(cause)) = (&self.failure, self.store.failure()) {
            tracing::error!(cause, "the pool has stopped");
            self.failure = Some(Failure { cause: cause.to_owned(), noting: true, noted: false });
            self.background.note_failure();
        }
    }

    fn failure_noted(&mut self, result: &io::Result<()>) {
        let Some(failure) = &mut self.failure else { return };
        (failure.noting, failure.noted) = (false, result.is_ok());
        if let Err(error) = result {
            tracing::warn!(%error, "the device takes no writes yet; until its failure is noted, \
                restart the host before this server");
        }
    }

    /// Tries again to note what could not be noted.
    pub(super) fn note_failure_again(&mut self) {
        if let Some(failure) = self.failure.as_mut().filter(|failure| !failure.noting) {
            failure.noting = true;
            self.background.note_failure();
        }
    }

    /// Starts every send and receive that this turn has made possible.
    fn advance_peers(&mut self) {
        let mut listed = std::mem::take(&mut self.listed);
        let now = self.reactor.now();
        for index in listed.drain(..) {
            let Some(peer) = self.peers[index].as_mut() else { continue };
            peer.listed = false;
            let verdict =
                peer.advance(&self.reactor, self.source, |operation| token_of(index, operation), now);
            if verdict == Verdict::Remove {
                self.remove(index);
            }
        }
        self.listed = listed;
    }

    fn remove(&mut self, index: usize) {
        if let Some(peer) = self.peers[index].take() {
            self.peers_count -= 1;
            self.end_copying(peer.id);
            self.sessions.disconnected(peer.id);
            self.accept();
        }
    }

    fn peer(&mut self, id: ConnectionId) -> Option<&mut Peer> {
        self.peers.get_mut(id.index()).and_then(Option::as_mut).filter(|peer| peer.id == id)
    }

    /// Has a peer looked at, at the end of the turn.
    fn list(&mut self, index: usize) {
        if let Some(peer) = self.peers[index].as_mut()
            && !std::mem::replace(&mut peer.listed, true)
        {
            self.listed.push(index);
        }
    }
}

/// What links to sources need of the loop.
fn thread(reactor: &Reactor, source: Source) -> Thread<'_> {
    Thread { reactor, source, now: reactor.now() }
}

fn token_of(index: usize, operation: Operation) -> u64 {
    PEERS + 2 * index as u64 + u64::from(operation == Operation::Send)
}

fn parse(token: u64) -> (usize, Operation) {
    let index = usize::try_from((token - PEERS) / 2).expect("made of an index");
    let operation = if (token - PEERS).is_multiple_of(2) { Operation::Receive } else { Operation::Send };
    (index, operation)
}
