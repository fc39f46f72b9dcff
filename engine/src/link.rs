//! One member's connection on the volume's io_uring thread.
//!
//! ```text
//!          due              address known          connected
//! Waiting ─────▶ Resolving ──────────────▶ Connecting ───────▶ Up
//!    ▲               │                         │               │
//!    └── after a pause that grows with each failure in a row ──┘
//! ```
//!
//! Everything that a turn of the loop has for a member leaves in one send; everything that one
//! receive brings is decoded in one go. A broken connection is made again for ever, until the volume
//! is over.
//!
//! Invariants:
//! - a completion counts only if its token names the present connection (`serial`);
//! - at most one receive and one send are in flight on a connection.

use crate::volume::{MemberFault, MemberIndex, VolumeCore};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;
use trivet_reactor::{Completion, Handle, Output, Reactor, Sent, SocketAddress, Source};
use trivet_wire::{Decoder, Encoder, Frame};

/// The first pause before a connection is made again; each failure in a row doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A connection that was up for so long was well.
const UP_WELL: Duration = Duration::from_millis(100);
/// How long an attempt to connect may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

const CONNECT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;

#[derive(Debug)]
enum State {
    Waiting { until: Duration },
    Resolving,
    Connecting { socket: Handle, since: Duration },
    Up { socket: Handle, since: Duration },
    Over,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Link {
    member: MemberIndex,
    address: String,
    state: State,
    serial: u32,
    pause: Duration,
    decoder: Decoder,
    encoder: Encoder,
    sending: bool,
}

/// What a link needs of its thread.
pub(crate) struct Thread<'a> {
    pub(crate) reactor: &'a Reactor,
    pub(crate) source: Source,
    pub(crate) now: Duration,
}

/// Which link, connection and operation a completion belongs to.
fn token(member: MemberIndex, serial: u32, operation: u64) -> u64 {
    (u64::from(serial) << 16) | ((member.0 as u64) << 8) | operation
}

/// The link that a token belongs to.
pub(crate) const fn member_of(token: u64) -> usize {
    (token >> 8) as usize & 0xff
}

impl Link {
    /// A link that is due to connect at once.
    pub(crate) fn new(member: MemberIndex, address: String) -> Self {
        Self {
            member,
            address,
            state: State::Waiting { until: Duration::ZERO },
            serial: 0,
            pause: PAUSE_MIN,
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            sending: false,
        }
    }

    /// The member has moved: the next connection goes there.
    pub(crate) fn readdress(&mut self, address: String) {
        self.address = address;
        if matches!(self.state, State::Waiting { .. } | State::Over) {
            self.pause = PAUSE_MIN;
            self.state = State::Waiting { until: Duration::ZERO };
        }
    }

    /// When it wants its turn, besides on completions.
    pub(crate) fn due(&self) -> Option<Duration> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Connecting { since, .. } => Some(since + CONNECT_MAX),
            State::Resolving | State::Up { .. } | State::Over => None,
        }
    }

    /// Takes the next step if it is due. Answers a `host:port` that is to be resolved off this
    /// thread.
    pub(crate) fn advance(&mut self, thread: &Thread<'_>, core: &mut VolumeCore) -> Option<String> {
        match &self.state {
            State::Waiting { until } if thread.now >= *until => {
                if let Ok(address) = self.address.parse::<SocketAddr>() {
                    self.connect(thread, core, address);
                    return None;
                }
                self.state = State::Resolving;
                Some(self.address.clone())
            }
            State::Connecting { since, .. } if thread.now >= *since + CONNECT_MAX => {
                self.broke(thread, core, "the connection cannot be made: no answer".to_owned());
                None
            }
            _ => None,
        }
    }

    /// The address has been looked up.
    pub(crate) fn resolved(
        &mut self,
        thread: &Thread<'_>,
        core: &mut VolumeCore,
        result: Result<SocketAddr, String>,
    ) {
        if matches!(self.state, State::Resolving) {
            match result {
                Ok(address) => self.connect(thread, core, address),
                Err(cause) => self.broke(thread, core, cause),
            }
        }
    }

    fn connect(&mut self, thread: &Thread<'_>, core: &mut VolumeCore, address: SocketAddr) {
        self.serial += 1;
        self.decoder = Decoder::new();
        self.encoder = Encoder::new();
        self.sending = false;
        if let Some(socket) = trivet_reactor::connect_shortcut(address) {
            self.state = State::Connecting { socket, since: thread.now };
            return self.connected(thread, core);
        }
        let address = SocketAddress::Tcp(address);
        match trivet_reactor::socket(&address) {
            Ok(socket) => {
                let token = token(self.member, self.serial, CONNECT);
                thread.reactor.connect(thread.source, token, &socket, &address);
                self.state = State::Connecting { socket, since: thread.now };
            }
            Err(error) => self.broke(thread, core, error.to_string()),
        }
    }

    /// Adds a frame to what this turn sends. A link that broke in this very turn, after the core had
    /// decided to send, drops it: the core has been told, and asks again on the next connection.
    pub(crate) fn push(&mut self, frame: &Frame) {
        if matches!(self.state, State::Up { .. }) {
            self.encoder.push(frame);
        }
    }

    /// Sends what the turn has gathered, unless the last send is still under way.
    pub(crate) fn flush(&mut self, thread: &Thread<'_>) {
        if let State::Up { socket, .. } = &self.state
            && !self.sending
            && !self.encoder.is_empty()
        {
            let token = token(self.member, self.serial, SEND);
            let sent = thread.reactor.send(thread.source, token, socket, self.encoder.take());
            self.sending = sent == Sent::UnderWay;
        }
    }

    /// An operation of this link has ended.
    pub(crate) fn completed(&mut self, thread: &Thread<'_>, core: &mut VolumeCore, completion: Completion) {
        if (completion.token >> 16) != u64::from(self.serial) {
            return;
        }
        match (completion.token & 0xff, completion.result) {
            (CONNECT, Ok(_)) => self.connected(thread, core),
            (RECEIVE, Ok(Output::Buffer(buffer))) if !buffer.is_empty() => {
                self.decoder.filled(buffer);
                self.decode(thread, core);
            }
            (RECEIVE, Ok(_)) => {
                self.broke(thread, core, "the replica server closed the connection".to_owned())
            }
            (SEND, Ok(_)) => self.sending = false,
            (_, Ok(_)) => {}
            (_, Err(error)) => self.broke(thread, core, error.to_string()),
        }
    }

    fn connected(&mut self, thread: &Thread<'_>, core: &mut VolumeCore) {
        if let State::Connecting { socket, .. } = &self.state {
            self.state = State::Up { socket: socket.clone(), since: thread.now };
            self.receive(thread);
            core.connected(thread.now, self.member);
        }
    }

    fn receive(&mut self, thread: &Thread<'_>) {
        if let State::Up { socket, .. } = &self.state {
            let token = token(self.member, self.serial, RECEIVE);
            let buffer = self.decoder.buffer();
            if self.decoder.lends_payload() {
                thread.reactor.receive_whole(thread.source, token, socket, buffer);
            } else {
                thread.reactor.receive(thread.source, token, socket, buffer);
            }
        }
    }

    fn decode(&mut self, thread: &Thread<'_>, core: &mut VolumeCore) {
        loop {
            match self.decoder.next() {
                Ok(Some(frame)) => core.received(thread.now, self.member, frame),
                Ok(None) => return self.receive(thread),
                Err(error) => return self.broke(thread, core, error.to_string()),
            }
        }
    }

    fn broke(&mut self, thread: &Thread<'_>, core: &mut VolumeCore, cause: String) {
        self.hang_up(thread.now);
        core.disconnected(thread.now, self.member, MemberFault::Unreachable(cause));
    }

    /// Ends the present connection, and makes no other.
    pub(crate) fn forget(&mut self, now: Duration) {
        self.hang_up(now);
        self.state = State::Over;
    }

    /// Ends the present connection, and makes another after a pause.
    pub(crate) fn hang_up(&mut self, now: Duration) {
        // One that the member ends as soon as it is asked anything has failed, too.
        if matches!(self.state, State::Up { since, .. } if now >= since + UP_WELL) {
            self.pause = PAUSE_MIN;
        }
        let until = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        self.serial += 1;
        let old = std::mem::replace(&mut self.state, State::Waiting { until });
        if let State::Connecting { socket, .. } | State::Up { socket, .. } = old
            && let Err(error) = socket.shut_down(Shutdown::Both)
        {
            tracing::trace!(%error, "the other side was first to hang up");
        }
    }
}
