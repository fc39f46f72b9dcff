//! A connection that this server makes to another one, to copy from it.

use crate::pull::PullError;
use crate::session::SourceAddress;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;
use trivet_model::{Generation, VolumeId};
use trivet_reactor::{Handle, Output, Reactor, Sent, SocketAddress, Source};
use trivet_wire::{Decoder, Encoder, Envelope, Frame, Hello, Message, PROTOCOL_VERSION};

/// How long the source may take to be found, connected to and opened.
const OPENING_MAX: Duration = Duration::from_secs(10);
/// How long it may be silent when it owes an answer.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The operations of a link, as part of its tokens.
pub(super) const CONNECT: u64 = 0;
pub(super) const RECEIVE: u64 = 1;
pub(super) const SEND: u64 = 2;

const HELLO: u64 = 1;
const OPEN: u64 = 2;
/// Requests of the job get its ids, this much higher.
const JOB: u64 = 16;

/// ```text
/// Resolving ─► Connecting ─► Greeting ─► Opening ─► Open     any ─► Closed
///     └── the address is one ──┘ └ over the shortcut ┘
/// ```
#[derive(Debug)]
enum State {
    Resolving,
    Connecting(Handle),
    Greeting(Handle),
    Opening(Handle),
    Open(Handle),
    Closed,
}

/// What the link needs of the loop.
pub(super) struct Thread<'a> {
    pub(super) reactor: &'a Reactor,
    pub(super) source: Source,
    pub(super) now: Duration,
}

#[derive(Debug)]
pub(super) struct SourceLink {
    to: SourceAddress,
    volume: VolumeId,
    generation: Generation,
    /// The first token of this link's operations.
    token: u64,
    state: State,
    decoder: Decoder,
    encoder: Encoder,
    sending: bool,
    unanswered: usize,
    /// When something came last, or the link was made.
    heard: Duration,
}

impl SourceLink {
    pub(super) fn new(
        to: SourceAddress,
        volume: VolumeId,
        generation: Generation,
        token: u64,
        now: Duration,
    ) -> Self {
        Self {
            to,
            volume,
            generation,
            token,
            state: State::Resolving,
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            sending: false,
            unanswered: 0,
            heard: now,
        }
    }

    /// What is to be looked up off this thread, unless the address needs no looking up.
    pub(super) fn start(&mut self, thread: &Thread<'_>) -> Result<Option<String>, PullError> {
        match self.to.address.parse::<SocketAddr>() {
            Ok(address) => self.connect(thread, address).map(|()| None),
            Err(_) => Ok(Some(self.to.address.clone())),
        }
    }

    /// The address has been looked up.
    pub(super) fn resolved(
        &mut self,
        thread: &Thread<'_>,
        result: Result<SocketAddr, String>,
    ) -> Result<(), PullError> {
        match self.state {
            State::Resolving => self.connect(thread, result.map_err(PullError::Link)?),
            _ => Ok(()),
        }
    }

    fn connect(&mut self, thread: &Thread<'_>, address: SocketAddr) -> Result<(), PullError> {
        if let Some(socket) = trivet_reactor::connect_shortcut(address) {
            self.greet(thread, socket);
            return Ok(());
        }
        let address = SocketAddress::Tcp(address);
        let socket = trivet_reactor::socket(&address).map_err(|error| PullError::Link(error.to_string()))?;
        thread.reactor.connect(thread.source, self.token + CONNECT, &socket, &address);
        self.state = State::Connecting(socket);
        Ok(())
    }

    fn greet(&mut self, thread: &Thread<'_>, socket: Handle) {
        let hello = Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION };
        self.push(HELLO, &Message::Hello(hello));
        self.state = State::Greeting(socket);
        self.receive(thread);
    }

    /// Whether the job's requests may be sent.
    pub(super) const fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Adds a request of the job's.
    pub(super) fn ask(&mut self, id: u64, message: &Message) {
        self.push(id + JOB, message);
    }

    fn push(&mut self, request: u64, message: &Message) {
        let envelope = Envelope { request, generation: self.generation, epoch: self.to.epoch };
        self.encoder.push_message(envelope, message);
        self.unanswered += 1;
    }

    /// Sends what has been gathered, unless the last send is still under way.
    pub(super) fn flush(&mut self, thread: &Thread<'_>) {
        if !self.sending
            && !self.encoder.is_empty()
            && let Some(socket) = self.socket()
        {
            let sent =
                thread.reactor.send(thread.source, self.token + SEND, &socket.clone(), self.encoder.take());
            self.sending = sent == Sent::UnderWay;
        }
    }

    /// An operation has ended. Adds what the source has answered to the job: its id, the message.
    pub(super) fn completed(
        &mut self,
        thread: &Thread<'_>,
        operation: u64,
        result: io::Result<Output>,
        answers: &mut Vec<(u64, Message)>,
    ) -> Result<(), PullError> {
        if matches!(self.state, State::Closed) {
            return Ok(());
        }
        let address = &self.to.address;
        match (operation, result) {
            (CONNECT, Ok(_)) => {
                if let State::Connecting(socket) = &self.state {
                    let socket = socket.clone();
                    self.greet(thread, socket);
                }
                Ok(())
            }
            (RECEIVE, Ok(Output::Buffer(buffer))) if !buffer.is_empty() => {
                self.heard = thread.now;
                self.decoder.filled(buffer);
                self.decode(answers)?;
                self.receive(thread);
                Ok(())
            }
            (RECEIVE, Ok(_)) => Err(PullError::Link(format!("{address} closed the connection"))),
            (_, Ok(_)) => {
                self.sending = false;
                Ok(())
            }
            (_, Err(error)) => Err(PullError::Link(format!("{address}: {error}"))),
        }
    }

    fn decode(&mut self, answers: &mut Vec<(u64, Message)>) -> Result<(), PullError> {
        let malformed = |error: trivet_wire::DecodeError| PullError::Link(error.to_string());
        while let Some(frame) = self.decoder.next().map_err(malformed)? {
            let Frame { request, message, .. } = frame;
            self.unanswered = self.unanswered.saturating_sub(1);
            match (&self.state, request, message) {
                (State::Greeting(socket), HELLO, Message::HelloReply(reply)) => {
                    if reply.pool != self.to.pool {
                        let (address, wanted, found) = (&self.to.address, self.to.pool, reply.pool);
                        let detail = format!("at {address} is pool {found}, not {wanted}");
                        return Err(PullError::Link(detail));
                    }
                    self.state = State::Opening(socket.clone());
                    self.push(OPEN, &Message::Open { volume: self.volume, writable: false, session: 0 });
                }
                (State::Opening(socket), OPEN, Message::OpenReply(reply)) => {
                    if self.to.boot.is_some_and(|boot| boot != reply.boot) {
                        let detail = format!("{}: its host has been restarted meanwhile", self.to.address);
                        return Err(PullError::Link(detail));
                    }
                    self.state = State::Open(socket.clone());
                }
                (State::Open(_), JOB.., message) => answers.push((request - JOB, message)),
                (_, _, Message::Error { code, detail }) => return Err(PullError::Refused { code, detail }),
                _ => return Err(PullError::Nonsense("a message out of turn")),
            }
        }
        Ok(())
    }

    fn receive(&mut self, thread: &Thread<'_>) {
        let Some(socket) = self.socket().cloned() else { return };
        let token = self.token + RECEIVE;
        let buffer = self.decoder.buffer();
        if self.decoder.lends_payload() {
            thread.reactor.receive_whole(thread.source, token, &socket, buffer);
        } else {
            thread.reactor.receive(thread.source, token, &socket, buffer);
        }
    }

    /// Why the source must be given up, if it must.
    pub(super) fn overdue(&self, now: Duration) -> Option<PullError> {
        let silence = now.saturating_sub(self.heard);
        let late = match self.state {
            State::Open(_) => self.unanswered > 0 && silence > SILENCE_MAX,
            State::Closed => false,
            _ => silence > OPENING_MAX,
        };
        late.then(|| PullError::Link(format!("{} does not answer", self.to.address)))
    }

    /// Ends the connection; its operations come back and are let go.
    pub(super) fn close(&mut self, thread: &Thread<'_>) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Connecting(_) => thread.reactor.cancel(thread.source, self.token + CONNECT),
            State::Greeting(socket) | State::Opening(socket) | State::Open(socket) => {
                if let Err(error) = socket.shut_down(Shutdown::Both)
                    && error.kind() != io::ErrorKind::NotConnected
                {
                    tracing::warn!(%error, "a connection cannot be shut down");
                }
            }
            State::Resolving | State::Closed => {}
        }
    }

    const fn socket(&self) -> Option<&Handle> {
        match &self.state {
            State::Greeting(socket) | State::Opening(socket) | State::Open(socket) => Some(socket),
            State::Resolving | State::Connecting(_) | State::Closed => None,
        }
    }
}
