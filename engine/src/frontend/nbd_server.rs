//! Serves NBD clients on the volume's thread: listens, accepts, and moves bytes between sockets and
//! the protocol's [`Connection`]s.
//!
//! Nobody is accepted before the volume is open, so that a client that connects early is delayed
//! rather than refused.
//!
//! Invariants:
//! - at most one receive and one send are in flight on a connection;
//! - a client is forgotten only when the volume has answered all it asked.

use super::nbd::{Connection, ExportInfo, Tag};
use super::{Frontend, Port};
use crate::request::{IoError, IoReply};
use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;
use trivet_model::BLOCK_SIZE_U64;
use trivet_reactor::{
    Completion, Handle, Output, Reactor, Sent, SocketAddress, SocketError, Source, prepare_accepted,
};

/// Most clients at a time; more wait to be accepted.
const CLIENTS_MAX: usize = 256;
/// How long to wait after the system refused to accept a connection.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;

/// Tokens are a client's number and an operation; number 0 is the listener.
const fn token(client: u64, operation: u64) -> u64 {
    (client << 2) | operation
}

#[derive(Debug)]
struct Client {
    connection: Connection,
    socket: Handle,
    sending: bool,
    /// Its socket has failed: nothing more is sent or received.
    gone: bool,
}

/// A front end that offers the volume as an NBD export, under a name and as the default one.
pub(crate) struct NbdServer {
    reactor: Reactor,
    source: Source,
    listener: Handle,
    /// What it is called; the volume's own name without one.
    name: Option<String>,
    /// A unix socket's file, to be removed.
    path: Option<PathBuf>,
    accepting: bool,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    requests: Requests,
    stopping: bool,
}

/// Whose requests the volume has, by tag.
#[derive(Debug, Default)]
struct Requests {
    slots: Vec<Option<(u64, Tag)>>,
    free: Vec<usize>,
}

impl Requests {
    fn add(&mut self, client: u64, tag: Tag) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some((client, tag));
        slot as u64
    }

    fn take(&mut self, tag: u64) -> (u64, Tag) {
        let slot = usize::try_from(tag).expect("tags are indices");
        self.free.push(slot);
        self.slots[slot].take().expect("a request completes once")
    }
}

impl NbdServer {
    /// Listens at `address`.
    ///
    /// # Errors
    /// [`SocketError`] with the cause and the next step.
    pub(crate) fn listen(
        reactor: &Reactor,
        address: &SocketAddress,
        name: Option<String>,
    ) -> Result<Self, SocketError> {
        let listener = trivet_reactor::listen(address)?;
        let path = match address {
            SocketAddress::Unix(path) => Some(path.clone()),
            SocketAddress::Tcp(_) => None,
        };
        Ok(Self {
            reactor: reactor.clone(),
            source: reactor.source(),
            listener,
            name,
            path,
            accepting: false,
            clients: BTreeMap::new(),
            next_client: 1,
            requests: Requests::default(),
            stopping: false,
        })
    }

    fn remove_socket(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::debug!(%error, path = %path.display(), "the NBD socket is gone already");
        }
    }

    fn accept(&mut self) {
        self.accepting = true;
        self.reactor.accept(self.source, token(0, ACCEPT), &self.listener);
    }

    fn accepted(&mut self, result: std::io::Result<Output>, volume: &Port<'_>) {
        self.accepting = false;
        match result {
            Ok(Output::Accepted(socket)) if !self.stopping => self.welcome(socket, volume),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "an NBD client cannot be accepted");
                self.accepting = true;
                self.reactor.timer(self.source, token(0, SEND), ACCEPT_AGAIN);
            }
        }
    }

    fn welcome(&mut self, socket: OwnedFd, volume: &Port<'_>) {
        let socket = match prepare_accepted(socket) {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(%error, "an NBD client's socket cannot be set up"),
        };
        let connection = Connection::new(ExportInfo {
            name: self.name.clone().unwrap_or_else(|| volume.name().to_owned()),
            description: "Trivet volume".to_owned(),
            size_bytes: volume.blocks() * BLOCK_SIZE_U64,
            read_only: volume.read_only(),
            changed_since: volume.changed_since(),
        });
        tracing::info!(client = self.next_client, "NBD client connected");
        self.clients.insert(self.next_client, Client { connection, socket, sending: false, gone: false });
        self.next_client += 1;
    }

    fn client_event(&mut self, completion: Completion) {
        let Some(client) = self.clients.get_mut(&(completion.token >> 2)) else { return };
        match (completion.token & 3, completion.result) {
            (RECEIVE, Ok(Output::Buffer(buffer))) => client.connection.received(buffer),
            (SEND, Ok(_)) => client.sending = false,
            (operation, result) => {
                if operation == SEND {
                    client.sending = false;
                }
                if let Err(error) = result {
                    tracing::debug!(%error, "an NBD client's socket failed");
                }
                client.gone = true;
                client.connection.end_of_input();
            }
        }
    }

    fn flush_client(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.sending {
            return;
        }
        let mut out = Vec::new();
        client.connection.take_output(&mut out);
        if !client.gone && !out.is_empty() {
            let sent = self.reactor.send(self.source, token(id, SEND), &client.socket, out);
            client.sending = sent == Sent::UnderWay;
        }
        if !client.sending
            && let Some(reason) = client.connection.is_finished()
        {
            tracing::info!(client = id, %reason, "NBD client disconnected");
            if let Err(error) = client.socket.shut_down(Shutdown::Both) {
                tracing::trace!(%error, "the client was first to hang up");
            }
            self.clients.remove(&id);
            return;
        }
        if !client.gone && client.connection.wants_input() {
            let buffer = client.connection.buffer();
            self.reactor.receive(self.source, token(id, RECEIVE), &client.socket, buffer);
        }
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.remove_socket();
    }
}

impl Frontend for NbdServer {
    fn turn(&mut self, volume: &mut Port<'_>) {
        while let Some(completion) = self.reactor.take(self.source) {
            match completion.token {
                t if t == token(0, ACCEPT) => self.accepted(completion.result, volume),
                t if t == token(0, SEND) => self.accepting = false,
                _ => self.client_event(completion),
            }
        }
        if !self.accepting && !self.stopping && volume.is_open() && self.clients.len() < CLIENTS_MAX {
            self.accept();
        }
        self.pump(volume);
    }

    fn completed(&mut self, tag: u64, result: Result<IoReply, IoError>) {
        let (client, tag) = self.requests.take(tag);
        let client = self.clients.get_mut(&client).expect("clients outlive their requests");
        client.connection.complete(tag, result);
    }

    fn pump(&mut self, volume: &mut Port<'_>) {
        for (&id, client) in &mut self.clients {
            while let Some((tag, request)) = client.connection.next_request() {
                volume.submit(self.requests.add(id, tag), request);
            }
        }
    }

    fn flush(&mut self) {
        let ids: Vec<u64> = self.clients.keys().copied().collect();
        for id in ids {
            self.flush_client(id);
        }
    }

    fn shut_down(&mut self) {
        self.stopping = true;
        self.reactor.cancel(self.source, token(0, ACCEPT));
        self.remove_socket();
        for client in self.clients.values_mut() {
            client.connection.shut_down();
        }
    }

    fn is_finished(&self) -> bool {
        self.stopping && self.clients.is_empty()
    }

    fn connections(&self) -> usize {
        self.clients.len()
    }
}
