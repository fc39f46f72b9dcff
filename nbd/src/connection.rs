//! One connection with many requests in flight, without its socket.

use crate::expected::{Expected, Finished};
use crate::handshake::{Export, Handshake, Wanted};
use crate::replies::Replies;
use crate::request::goodbye;
use crate::{ProtocolError, Request};
use bytes::{Bytes, BytesMut};
use std::collections::{HashMap, VecDeque};

/// What has happened on a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The handshake is done: requests may be submitted.
    Agreed(Export),
    /// A request has finished.
    Finished(Finished),
}

/// The client's side of a connection. Its shell asks [`Connection::advance`] until nothing more comes
/// of it, then sends and receives what [`Connection::halves`] gives it, and says what it has sent.
#[derive(Debug)]
pub struct Connection {
    handshake: Option<Handshake>,
    replies: Replies,
    received: BytesMut,
    to_send: VecDeque<Bytes>,
    in_flight: HashMap<u64, Expected>,
}

impl Connection {
    /// A connection that will ask for this export.
    #[must_use]
    pub fn new(export: &str, wanted: Wanted) -> Self {
        Self {
            handshake: Some(Handshake::new(export, wanted)),
            replies: Replies::default(),
            received: BytesMut::new(),
            to_send: VecDeque::new(),
            in_flight: HashMap::new(),
        }
    }

    /// What has been received and is not yet understood, to add to at its end; and what is to be sent,
    /// in order.
    pub const fn halves(&mut self) -> (&mut BytesMut, &VecDeque<Bytes>) {
        (&mut self.received, &self.to_send)
    }

    /// The next thing that has happened.
    ///
    /// # Errors
    /// When the server breaks the protocol; the connection must be closed then.
    pub fn advance(&mut self) -> Result<Option<Event>, ProtocolError> {
        if let Some(handshake) = &mut self.handshake {
            let Some(export) = handshake.advance(&mut self.received, &mut self.to_send)? else {
                return Ok(None);
            };
            self.handshake = None;
            return Ok(Some(Event::Agreed(export)));
        }
        Ok(self.replies.next(&mut self.received, &mut self.in_flight)?.map(Event::Finished))
    }

    /// Queues a request under a handle that no other in flight has.
    ///
    /// # Errors
    /// When a write is longer than a request can say.
    ///
    /// # Panics
    /// Before the handshake is done, or when the handle is in use.
    pub fn submit(&mut self, handle: u64, request: Request) -> Result<(), ProtocolError> {
        assert!(self.handshake.is_none(), "requests come behind the handshake");
        self.to_send.push_back(request.header(handle)?);
        let before = self.in_flight.insert(handle, Expected::new(&request));
        assert!(before.is_none(), "handle {handle} is in flight already");
        if let Request::Write { data, .. } = request {
            self.to_send.push_back(data);
        }
        Ok(())
    }

    /// Queues the goodbye. Nothing may be in flight.
    pub fn disconnect(&mut self) {
        self.to_send.push_back(goodbye());
    }

    /// So many bytes of what is to be sent have been sent.
    pub fn sent(&mut self, mut count: usize) {
        while let Some(first) = self.to_send.front_mut() {
            if count < first.len() {
                *first = first.slice(count..);
                return;
            }
            count -= first.len();
            self.to_send.pop_front();
        }
    }

    /// How many requests are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}
