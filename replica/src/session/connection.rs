//! One connection's state, and the table of all connections.

use super::Output;
use trivet_model::{Epoch, Generation, SnapshotId, VolumeId};
use trivet_wire::{ErrorCode, Frame, Message, Progress};

/// Most requests of a connection in flight; one more closes it. From half of it on
/// [`Sessions::may_receive`](super::Sessions::may_receive) says no: a shell that asks before each
/// frame keeps a peer's flood in that peer's own socket, and never gets here.
pub const REQUESTS_MAX: usize = 1024;
/// Bytes of payload, brought or asked for, in flight on a connection, with the same two limits.
pub const REQUEST_BYTES_MAX: usize = 64 << 20;

/// Names a connection; never used again for another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnectionId {
    pub(super) index: u32,
    pub(super) serial: u32,
}

impl ConnectionId {
    /// Its place in a table of connections; free for another once this one is gone.
    #[must_use]
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// Counts the connections that had this place before.
    #[must_use]
    pub const fn serial(self) -> u32 {
        self.serial
    }
}

/// A volume opened on a connection.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) volume: VolumeId,
    pub(super) writable: bool,
    pub(super) generation: Generation,
    pub(super) epoch: Epoch,
    /// What is read is seen as this snapshot shows it.
    pub(super) at: Option<SnapshotId>,
    /// As told to the store last.
    pub(super) progress: Progress,
}

/// ```text
///                             Open to read
///             Hello          +--------------------------> Open --Close--> Closing
/// Greeting ----------> Ready +                             ^                 |
///                       ^ ^  +--Open to write--> Opening --+ promise durable |
///                       | |                         |                        |
///                       | +---- promise failed -----+                        |
///                       +------------- nothing in flight any more -----------+
///
/// any --> Closed
/// ```
#[derive(Debug)]
pub(super) enum State {
    /// Nothing has been said.
    Greeting,
    /// A version is agreed; no volume is open.
    Ready,
    /// The promise is on its way to be durable.
    Opening(Session),
    /// I/O is allowed.
    Open(Session),
    /// `Close` has come; answered when nothing is in flight.
    Closing { session: Session, request: u64 },
    /// Nothing is taken or answered any more; the shell hangs up.
    Closed,
}

impl State {
    pub(super) const fn session(&self) -> Option<&Session> {
        match self {
            Self::Opening(session) | Self::Open(session) | Self::Closing { session, .. } => Some(session),
            Self::Greeting | Self::Ready | Self::Closed => None,
        }
    }

    const fn leads_to(&self, next: &Self) -> bool {
        matches!(
            (self, next),
            (Self::Greeting | Self::Opening(_) | Self::Closing { .. }, Self::Ready)
                | (Self::Ready, Self::Opening(_) | Self::Open(_))
                | (Self::Opening(_), Self::Open(_))
                | (Self::Open(_), Self::Closing { .. })
                | (
                    Self::Greeting | Self::Ready | Self::Opening(_) | Self::Open(_) | Self::Closing { .. },
                    Self::Closed
                )
        )
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) state: State,
    /// The wire's request ids that the store has not answered. Few: searching them costs less
    /// than hashing.
    pub(super) in_flight: Vec<u64>,
    bytes: usize,
}

impl Connection {
    fn new() -> Self {
        Self { state: State::Greeting, in_flight: Vec::new(), bytes: 0 }
    }

    /// The one place where the state changes; returns the one before.
    pub(super) fn enter(&mut self, next: State) -> State {
        assert!(self.state.leads_to(&next), "a connection goes from {:?} to {next:?}", self.state);
        std::mem::replace(&mut self.state, next)
    }

    /// After the promise: the volume is open, or nothing has happened. Returns the state before.
    pub(super) fn settle_opening(&mut self, durable: bool) -> State {
        let next = match &self.state {
            State::Opening(session) if durable => State::Open(session.clone()),
            _ => State::Ready,
        };
        self.enter(next)
    }

    pub(super) fn started(&mut self, request: u64, bytes: usize) {
        self.in_flight.push(request);
        self.bytes += bytes;
    }

    pub(super) fn finished(&mut self, request: u64, bytes: usize) {
        let at = self.in_flight.iter().position(|&r| r == request);
        self.in_flight.swap_remove(at.expect("what the store answers was in flight"));
        self.bytes -= bytes;
    }

    pub(super) const fn is_overloaded(&self) -> bool {
        self.in_flight.len() >= REQUESTS_MAX || self.bytes >= REQUEST_BYTES_MAX
    }

    pub(super) fn may_receive(&self) -> bool {
        self.in_flight.len() < REQUESTS_MAX / 2
            && self.bytes < REQUEST_BYTES_MAX / 2
            && !matches!(self.state, State::Closed)
    }

    /// A message to this peer, with the header that its session has.
    pub(super) fn frame(&self, connection: ConnectionId, request: u64, message: Message) -> Output {
        let (generation, epoch) = match self.state.session() {
            Some(session) => (session.generation, session.epoch),
            None => (Generation::ZERO, Epoch::default()),
        };
        Output::Send(connection, Frame { request, generation, epoch, message })
    }

    pub(super) fn error(
        &self,
        connection: ConnectionId,
        request: u64,
        code: ErrorCode,
        detail: String,
    ) -> Output {
        self.frame(connection, request, Message::Error { code, detail })
    }
}

/// All connections, by an index that is used again and a serial number that is not.
#[derive(Debug, Default)]
pub(super) struct Connections {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    serial: u32,
    connection: Option<Connection>,
}

impl Connections {
    pub(super) fn add(&mut self) -> ConnectionId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { serial: 0, connection: None });
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 connections")
        });
        let slot = &mut self.slots[index as usize];
        slot.serial = slot.serial.wrapping_add(1);
        slot.connection = Some(Connection::new());
        ConnectionId { index, serial: slot.serial }
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        let slot = self.slots.get_mut(id.index()).filter(|slot| slot.serial == id.serial)?;
        let connection = slot.connection.take()?;
        self.free.push(id.index);
        Some(connection)
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        self.slots.get(id.index()).filter(|slot| slot.serial == id.serial)?.connection.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.slots.get_mut(id.index()).filter(|slot| slot.serial == id.serial)?.connection.as_mut()
    }

    pub(super) fn ids(&self) -> Vec<ConnectionId> {
        (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.connection.is_some())
            .map(|(index, slot)| ConnectionId { index, serial: slot.serial })
            .collect()
    }
}
