//! One accepted connection: its socket, what is received and what is to be sent.

use crate::session::ConnectionId;
use bytes::BytesMut;
use std::net::Shutdown;
use std::time::Duration;
use trivet_reactor::{Handle, Reactor, Sent, Source};
use trivet_wire::{Decoder, Encoder};

/// Frames not yet handed to the kernel above which nothing more is taken: a peer that asks and
/// does not listen stops being heard.
const UNSENT_BYTES_HIGH: usize = 8 << 20;
/// What is received from a peer that has been told why its connection ends is thrown away.
const DISCARD_BYTES: usize = 16 * 1024;
/// How long a peer may take to say `Hello`.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// How long one send may take: after it, the peer takes nothing.
const SEND_MAX: Duration = Duration::from_secs(60);
/// How long to go on listening after the last word, so that the peer reads it: closing a socket
/// with bytes unread resets the connection, and the peer's kernel drops what had arrived there.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// ```text
///       session says close            sent           peer closes, or time is up
/// Live ---------------------> Ending ------> Lingering ----------------------+
///   |                            |                                            v
///   +--- peer closes, error -----+------------------------------------------> Gone
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Live,
    /// The last frames are being sent.
    Ending,
    /// All is said; the peer's rest is thrown away.
    Lingering,
    /// Shut down; its operations are coming back.
    Gone,
}

/// What to do with a peer whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Keep,
    /// No operation of it is in flight any more.
    Remove,
}

/// The operations of peers, as part of their tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    Receive,
    Send,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: ConnectionId,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) phase: Phase,
    socket: Handle,
    receiving: bool,
    sending: bool,
    /// When the phase or the send in flight began.
    since: Duration,
    /// The peer has said its last; it may still listen.
    finished: bool,
    /// Whether it is in the list of those to look at.
    pub(super) listed: bool,
    /// Whether it is not listened to: frames may lie undecoded.
    pub(super) paused: bool,
}

impl Peer {
    pub(super) fn new(id: ConnectionId, socket: Handle, now: Duration) -> Self {
        Self {
            id,
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            phase: Phase::Live,
            socket,
            receiving: false,
            sending: false,
            since: now,
            finished: false,
            listed: false,
            paused: false,
        }
    }

    /// A receive has ended. Returns what is to be decoded, if anything.
    pub(super) fn received(&mut self, buffer: Option<BytesMut>) -> Option<BytesMut> {
        self.receiving = false;
        match buffer {
            Some(buffer) if !buffer.is_empty() => (self.phase == Phase::Live).then_some(buffer),
            Some(_) if self.phase == Phase::Ending => {
                self.finished = true;
                None
            }
            _ => {
                self.give_up();
                None
            }
        }
    }

    /// A send has ended.
    pub(super) fn sent(&mut self, successful: bool) {
        self.sending = false;
        if !successful {
            self.give_up();
        }
    }

    /// Sends what is queued, then ends the connection.
    pub(super) fn end(&mut self, now: Duration) {
        if self.phase == Phase::Live {
            self.phase = Phase::Ending;
            self.since = now;
        }
    }

    /// Ends the connection as it stands.
    pub(super) fn give_up(&mut self) {
        if self.phase == Phase::Gone {
            return;
        }
        self.phase = Phase::Gone;
        self.shut_down(Shutdown::Both);
    }

    /// Whether it takes enough of what is sent to it to be asked for more.
    pub(super) const fn listens(&self) -> bool {
        self.encoder.bytes() <= UNSENT_BYTES_HIGH
    }

    /// Starts what is to be started: one send of all that is queued, and a receive if it may.
    pub(super) fn advance(
        &mut self,
        reactor: &Reactor,
        source: Source,
        token: impl Fn(Operation) -> u64,
        now: Duration,
    ) -> Verdict {
        let unsent = self.encoder.bytes();
        if self.phase != Phase::Gone && !self.sending && unsent > 0 {
            self.since = now;
            let sent = reactor.send(source, token(Operation::Send), &self.socket, self.encoder.take());
            self.sending = sent == Sent::UnderWay;
        }
        if self.phase == Phase::Ending && !self.sending {
            self.phase = Phase::Lingering;
            self.since = now;
            self.shut_down(Shutdown::Write);
            if self.finished {
                self.give_up();
            }
        }
        let verdict = match self.phase {
            _ if self.receiving || (self.finished && self.phase != Phase::Gone) => Verdict::Keep,
            Phase::Live if self.paused => Verdict::Keep,
            Phase::Live | Phase::Ending | Phase::Lingering => {
                self.receive(reactor, source, token(Operation::Receive));
                Verdict::Keep
            }
            Phase::Gone if !self.sending => Verdict::Remove,
            Phase::Gone => Verdict::Keep,
        };
        debug_assert!(verdict != Verdict::Remove || !(self.receiving || self.sending));
        verdict
    }

    /// Why the connection must end for its slowness, if it must.
    pub(super) fn overdue(&self, greeted: bool, now: Duration) -> Option<&'static str> {
        let age = now.saturating_sub(self.since);
        match self.phase {
            Phase::Live if !greeted && age > GREETING_MAX => Some("no Hello within 10 seconds"),
            Phase::Live | Phase::Ending if self.sending && age > SEND_MAX => {
                Some("nothing taken for 60 seconds")
            }
            Phase::Lingering if age > LINGER_MAX => Some("the peer does not close"),
            _ => None,
        }
    }

    fn receive(&mut self, reactor: &Reactor, source: Source, token: u64) {
        let buffer = match self.phase {
            Phase::Live => self.decoder.buffer(),
            _ => BytesMut::with_capacity(DISCARD_BYTES),
        };
        self.receiving = true;
        if self.phase == Phase::Live && self.decoder.lends_payload() {
            reactor.receive_whole(source, token, &self.socket, buffer);
        } else {
            reactor.receive(source, token, &self.socket, buffer);
        }
    }

    fn shut_down(&self, how: Shutdown) {
        match self.socket.shut_down(how) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotConnected => {}
            Err(error) => tracing::warn!(%error, "a connection cannot be shut down"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Identity, Sessions};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use trivet_model::{BootId, PoolId};

    fn peer() -> (Peer, UnixStream) {
        let identity = Identity { pool: PoolId::from_bytes([1; 16]), boot: BootId::from_bytes([2; 16]) };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let id = Sessions::new(identity).connected();
        (Peer::new(id, Handle::from(OwnedFd::from(ours)), Duration::ZERO), theirs)
    }

    #[test]
    fn only_the_silent_and_the_stuck_are_overdue() {
        let (mut peer, _theirs) = peer();
        assert_eq!(peer.overdue(false, GREETING_MAX), None);
        assert!(peer.overdue(false, GREETING_MAX * 2).is_some(), "no Hello");
        assert_eq!(peer.overdue(true, SEND_MAX * 2), None, "an idle session may be silent");
        peer.sending = true;
        assert_eq!(peer.overdue(true, SEND_MAX), None);
        assert!(peer.overdue(true, SEND_MAX * 2).is_some(), "takes nothing");
    }

    #[test]
    fn a_peer_that_has_been_told_the_end_may_linger_only_so_long() {
        let (mut peer, _theirs) = peer();
        peer.phase = Phase::Lingering;
        assert_eq!(peer.overdue(true, LINGER_MAX), None);
        assert!(peer.overdue(true, LINGER_MAX * 2).is_some());
        assert_eq!(peer.received(Some(BytesMut::from(&b"rest"[..]))), None, "its rest is thrown away");
        assert_eq!(peer.phase, Phase::Lingering);
        assert_eq!(peer.received(Some(BytesMut::new())), None);
        assert_eq!(peer.phase, Phase::Gone, "it has closed");
    }
}
