//! The protocol's side of the replica: which connection may do what, and who may write.
//!
//! Frames go in and the store's requests come out; the store's replies go in and frames come out.
//! No I/O, clock or thread: the shell in [`crate::server`] performs the [`Output`]s in order.
//!
//! Invariants:
//! - A volume has at most one connection that may write. Admitting an `Open` ends the one before
//!   at once, so that nothing of an older session is submitted after the newer one's promise.
//! - A promise never goes back: an `Open` below the durable one, or below one that is on its way to
//!   be durable, is refused.
//! - Who reads a copy that begins anew, or is deleted, is hung up on before: what a session reads is
//!   always the same copy.
//! - Every request is answered once, unless its connection has ended.
//! - Each connection has at most [`REQUESTS_MAX`] requests and about [`REQUEST_BYTES_MAX`] bytes in
//!   flight.

mod connection;
mod in_flight;
mod reply;
mod requests;
#[cfg(test)]
mod tests;
mod writers;

pub use connection::{ConnectionId, REQUEST_BYTES_MAX, REQUESTS_MAX};
pub use writers::Fenced;

use crate::planted::{self, PlantedFault};
use crate::pull::{PullOrder, RepairOrder};
use crate::store::{
    PoolStatistics, Reply, Request, RequestError, RequestId, Snapshot, VolumeProgress, VolumeStatistics,
};
use connection::{Connection, Connections, State};
use in_flight::InFlight;
use trivet_model::{BootId, Epoch, PoolId, Stamp, VolumeId};
use trivet_wire::{DecodeError, ErrorCode, Frame, Message, PullReport};
use writers::Writers;

/// What the sessions must know of the pool at the moment. The store is one; tests script another.
pub trait PoolFacts {
    /// A volume's figures and promises, if the pool has a replica of it.
    fn volume(&self, volume: VolumeId) -> Option<VolumeStatistics>;
    /// A volume's snapshots, in the order of their cuts.
    fn snapshots(&self, volume: VolumeId) -> Vec<Snapshot>;
    /// Those of every volume.
    fn volumes(&self) -> Vec<VolumeStatistics>;
    /// The pool's own.
    fn statistics(&self) -> PoolStatistics;
}

/// Who this server says it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its pool.
    pub pool: PoolId,
    /// The host's boot.
    pub boot: BootId,
}

/// What the shell must do, in order.
#[derive(Debug)]
pub enum Output {
    /// Give the store a request; its answer comes back by [`Sessions::completed`].
    Submit(RequestId, Request),
    /// Tell the store how far a volume is.
    Progress(VolumeId, VolumeProgress),
    /// Tell the store what other members hold for good, while this one is brought back.
    TrimTail(VolumeId, Stamp),
    /// Send a frame.
    Send(ConnectionId, Frame),
    /// Begin to pull for a session, in place of what it pulled before. The volume is its own.
    Pull(ConnectionId, PullOrder, SourceAddress),
    /// Begin to flatten a volume, unless that is under way, and say how far it is, by
    /// [`Sessions::pull_reported`] with this request.
    Flatten(ConnectionId, u64, VolumeId),
    /// Say how far a session's pull is, by [`Sessions::pull_reported`] with this request.
    ReportPull(ConnectionId, u64),
    /// The session ends: its pull, and repairs of which nothing has been handed to the store, end.
    EndPull(ConnectionId),
    /// Repair for a session; the end comes back by [`Sessions::completed`], as if the store had
    /// carried it out.
    Repair(ConnectionId, RequestId, RepairOrder, SourceAddress),
    /// End a connection: send what is queued for it, then close it and say
    /// [`Sessions::disconnected`].
    Close(ConnectionId, CloseReason),
}

/// Another replica server, to copy from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceAddress {
    /// The pool that it must have.
    pub pool: PoolId,
    /// The boot that its host must still be on, if that matters.
    pub boot: Option<BootId>,
    /// Where it listens: `host:port`.
    pub address: String,
    /// The session's epoch, for the header.
    pub epoch: Epoch,
}

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// Ours, which the peer has been told.
    #[error("closed: {detail} ({code:?})")]
    Ours {
        /// The kind.
        code: ErrorCode,
        /// For people.
        detail: String,
    },
    /// The peer's, as it said.
    #[error("the peer closes: {detail} ({code:?})")]
    Peers {
        /// The kind.
        code: ErrorCode,
        /// For people.
        detail: String,
    },
}

/// Every connection of a server, and what they ask of its store.
#[derive(Debug)]
pub struct Sessions {
    identity: Identity,
    connections: Connections,
    in_flight: InFlight,
    writers: Writers,
    stopping: bool,
}

impl Sessions {
    /// No connection yet.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            connections: Connections::default(),
            in_flight: InFlight::default(),
            writers: Writers::default(),
            stopping: false,
        }
    }

    /// A connection has been accepted.
    pub fn connected(&mut self) -> ConnectionId {
        self.connections.add()
    }

    /// A connection is gone. What it has in flight is carried out all the same; nobody is told.
    pub fn disconnected(&mut self, connection: ConnectionId) {
        if let Some(gone) = self.connections.remove(connection) {
            self.release(connection, &gone.state);
        }
    }

    /// A frame has arrived.
    pub fn received(
        &mut self,
        connection: ConnectionId,
        frame: Frame,
        pool: &dyn PoolFacts,
        out: &mut Vec<Output>,
    ) {
        let Some(known) = self.connections.get_mut(connection) else { return };
        if matches!(known.state, State::Closed) {
            return;
        }
        if let Message::Error { code, detail } = frame.message {
            return self.close(connection, CloseReason::Peers { code, detail }, out);
        }
        let refused = if frame.request == 0 {
            Some((ErrorCode::Malformed, "request 0 is not a request".to_owned()))
        } else if known.in_flight.contains(&frame.request) {
            Some((ErrorCode::Unexpected, format!("request {} is in flight already", frame.request)))
        } else if known.is_overloaded() {
            Some((ErrorCode::TooMuch, format!("more than {REQUESTS_MAX} requests in flight")))
        } else {
            None
        };
        if let Some((code, detail)) = refused {
            return self.close(connection, CloseReason::Ours { code, detail }, out);
        }
        if self.stopping {
            let detail = "the server is stopping".to_owned();
            return out.push(known.error(connection, frame.request, ErrorCode::Stopping, detail));
        }
        if let Err(reason) = self.dispatch(connection, frame, pool, out) {
            self.close(connection, reason, out);
        }
    }

    /// What arrived is not a frame.
    pub fn malformed(&mut self, connection: ConnectionId, error: DecodeError, out: &mut Vec<Output>) {
        self.close(connection, CloseReason::Ours { code: error.code(), detail: error.to_string() }, out);
    }

    /// Ends a connection for a reason of the shell's.
    pub fn close(&mut self, connection: ConnectionId, reason: CloseReason, out: &mut Vec<Output>) {
        let Some(known) = self.connections.get_mut(connection) else { return };
        if matches!(known.state, State::Closed) {
            return;
        }
        let state = known.enter(State::Closed);
        if let CloseReason::Ours { code, detail } = &reason {
            out.push(known.error(connection, 0, *code, detail.clone()));
        }
        if state.session().is_some_and(|session| session.writable) {
            out.push(Output::EndPull(connection));
        }
        out.push(Output::Close(connection, reason));
        self.release(connection, &state);
    }

    /// Hangs up on those who read a volume.
    fn end_readers(&mut self, volume: VolumeId, why: &str, out: &mut Vec<Output>) {
        if planted::is(PlantedFault::KeepReaders) {
            return;
        }
        let reads = |session: &connection::Session| session.volume == volume && !session.writable;
        for id in self.connections.ids() {
            if self.connections.get(id).and_then(|known| known.state.session()).is_some_and(reads) {
                let (code, detail) = (ErrorCode::NoSuchVolume, why.to_owned());
                self.close(id, CloseReason::Ours { code, detail }, out);
            }
        }
    }

    /// The store has answered.
    ///
    /// # Panics
    /// When nothing is in flight under this id: the store answers every request once.
    pub fn completed(
        &mut self,
        id: RequestId,
        result: Result<Reply, RequestError>,
        pool: &dyn PoolFacts,
        out: &mut Vec<Output>,
    ) {
        let entry = self.in_flight.remove(id);
        if let Some(volume) = entry.answer.promised() {
            self.writers.promise_finished(volume);
        }
        let Some(known) = self.connections.get_mut(entry.connection) else { return };
        known.finished(entry.request, entry.bytes);
        if matches!(known.state, State::Closed) {
            return;
        }
        let message = match (&known.state, result) {
            (State::Opening(session), Ok(Reply::Done)) => {
                reply::opened(session.volume, self.identity.boot, pool)
            }
            (_, Ok(reply)) => reply::success(&entry.answer, reply),
            (_, Err(error)) => reply::failure(&error),
        };
        let failed = matches!(message, Message::Error { .. });
        out.push(known.frame(entry.connection, entry.request, message));
        if matches!(known.state, State::Opening(_)) {
            let before = known.settle_opening(!failed);
            if failed {
                self.release(entry.connection, &before);
            }
        }
        self.settle(entry.connection, out);
    }

    /// The shell says how far a session's pull is.
    pub fn pull_reported(
        &self,
        connection: ConnectionId,
        request: u64,
        report: PullReport,
        out: &mut Vec<Output>,
    ) {
        if let Some(known) = self.connections.get(connection)
            && !matches!(known.state, State::Closed)
        {
            out.push(known.frame(connection, request, Message::PullReport(report)));
        }
    }

    /// Whether more should be received from a connection. Asked again after completions.
    #[must_use]
    pub fn may_receive(&self, connection: ConnectionId) -> bool {
        !self.in_flight.is_high() && self.connections.get(connection).is_some_and(Connection::may_receive)
    }

    /// Whether a connection has said `Hello`.
    #[must_use]
    pub fn has_greeted(&self, connection: ConnectionId) -> bool {
        self.connections.get(connection).is_some_and(|known| !matches!(known.state, State::Greeting))
    }

    /// Takes no more requests; closes each connection once what it has in flight is answered.
    pub fn stop(&mut self, out: &mut Vec<Output>) {
        self.stopping = true;
        for connection in self.connections.ids() {
            self.settle(connection, out);
        }
    }

    /// Whether the store still owes an answer.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// What waits for a connection's last answer: a `Close`, and the server's stop.
    fn settle(&mut self, connection: ConnectionId, out: &mut Vec<Output>) {
        let Some(known) = self.connections.get_mut(connection) else { return };
        if !known.in_flight.is_empty() {
            return;
        }
        if let State::Closing { request, .. } = known.state {
            out.push(known.frame(connection, request, Message::Done));
            let before = known.enter(State::Ready);
            self.release(connection, &before);
        }
        if self.stopping {
            let reason =
                CloseReason::Ours { code: ErrorCode::Stopping, detail: "the server is stopping".to_owned() };
            self.close(connection, reason, out);
        }
    }

    /// Gives back the right to write that a connection had in this state.
    fn release(&mut self, connection: ConnectionId, state: &State) {
        if let Some(session) = state.session()
            && session.writable
        {
            self.writers.release(session.volume, connection);
        }
    }
}
