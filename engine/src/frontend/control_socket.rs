//! A unix socket by which the manager says what an engine shall do beside serving: one JSON object on a
//! line, answered by one, and the end.
//!
//! `{"scrub": …}` is the whole of what is wanted, and answered with the engine's report as on the status
//! socket. `{"snapshot": …}` is an order, answered when it is carried out: `{"error": …}`, null when all is
//! well; so is `{"follow": "settings"}`, carried out when the settings that the record has by now are in
//! force, and `{"rekey": …}` with a data key in hexadecimal digits, carried out when the volume has gone over to
//! it; that line is wiped when it has been read. All may be said again at any time: after a restart on either side, or when an answer was lost.

use super::status_socket::EngineReport;
use super::{Frontend, Port};
use crate::request::{IoError, IoReply};
use crate::volume::ScrubOrder;
use bytes::{Bytes, BytesMut};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use trivet_crypto::{DATA_KEY_BYTES, DataKey};
use trivet_model::{SnapshotOrder, Stamp};
use trivet_reactor::{Handle, Output, Reactor, Sent, SocketAddress, SocketError, Source};
use zeroize::Zeroize;

/// Callers at a time; more wait to be accepted.
const CALLERS_MAX: usize = 16;
/// A caller says what it wants within this, or is hung up on.
const SAYING_MAX: Duration = Duration::from_secs(2);
/// The longest line.
const LINE_BYTES_MAX: usize = 64 << 10;
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const TIMEOUT: u64 = 3;

/// Tokens are a caller's number and an operation; number 0 is the listener.
const fn token(caller: u64, operation: u64) -> u64 {
    (caller << 2) | operation
}

/// What the manager says.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Said {
    Order {
        snapshot: SnapshotOrder,
    },
    Follow {
        follow: Followed,
    },
    Grow {
        /// To so many blocks.
        grow: u64,
    },
    Rekey {
        /// To which key.
        rekey: KeyInDigits,
    },
    Wanted {
        /// The scrub that shall be under way, if one shall.
        scrub: Option<ScrubOrder>,
    },
}

/// A data key as 64 hexadecimal digits, read from where they lie: no copy of them is left.
#[derive(Debug)]
struct KeyInDigits(DataKey);

impl<'de> Deserialize<'de> for KeyInDigits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Digits)
    }
}

struct Digits;

impl Visitor<'_> for Digits {
    type Value = KeyInDigits;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("64 hexadecimal digits")
    }

    fn visit_str<E: serde::de::Error>(self, digits: &str) -> Result<KeyInDigits, E> {
        let mut bytes = [0; DATA_KEY_BYTES];
        let fits = digits.len() == 2 * bytes.len() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !fits {
            // It is not shown: it may be a key all the same.
            return Err(E::custom("a data key has 64 hexadecimal digits"));
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(E::custom)?;
        }
        Ok(KeyInDigits(DataKey::take(&mut bytes)))
    }
}

/// What of the volume's record is to be read again.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Followed {
    Settings,
}

/// What became of an order.
#[derive(Debug, Serialize)]
struct Outcome {
    error: Option<String>,
    /// Of a snapshot over several volumes.
    cut: Option<Stamp>,
}

/// Somebody who has connected.
struct Caller {
    socket: Handle,
    /// How much of the line has come.
    heard: usize,
    /// What was ordered is under way.
    waits: bool,
}

pub(crate) struct ControlSocket {
    reactor: Reactor,
    source: Source,
    listener: Handle,
    path: PathBuf,
    accepting: bool,
    callers: BTreeMap<u64, Caller>,
    /// Orders that have ended, to be answered.
    ended: Vec<(u64, Outcome)>,
    next_caller: u64,
    stopping: bool,
}

impl ControlSocket {
    /// Listens at `path`.
    ///
    /// # Errors
    /// [`SocketError`] with the cause and the next step.
    pub(crate) fn listen(reactor: &Reactor, path: PathBuf) -> Result<Self, SocketError> {
        let listener = trivet_reactor::listen(&SocketAddress::Unix(path.clone()))?;
        Ok(Self {
            reactor: reactor.clone(),
            source: reactor.source(),
            listener,
            path,
            accepting: false,
            callers: BTreeMap::new(),
            ended: Vec::new(),
            next_caller: 1,
            stopping: false,
        })
    }

    fn welcome(&mut self, socket: Handle) {
        let caller = self.next_caller;
        self.next_caller += 1;
        let buffer = BytesMut::with_capacity(LINE_BYTES_MAX);
        self.reactor.receive(self.source, token(caller, RECEIVE), &socket, buffer);
        self.reactor.timer(self.source, token(caller, TIMEOUT), SAYING_MAX);
        self.callers.insert(caller, Caller { socket, heard: 0, waits: false });
    }

    /// Something has come: the whole line is awaited.
    fn received(&mut self, caller: u64, mut buffer: BytesMut, volume: &mut Port<'_>) {
        let Some(Caller { socket, heard, waits }) = self.callers.get_mut(&caller) else { return };
        let Some(end) = buffer.iter().position(|&byte| byte == b'\n') else {
            if buffer.len() == buffer.capacity() || buffer.len() == *heard {
                self.hang_up(caller);
            } else {
                *heard = buffer.len();
                self.reactor.receive(self.source, token(caller, RECEIVE), socket, buffer);
            }
            return;
        };
        let said = serde_json::from_slice(&buffer[..end]);
        buffer.as_mut().zeroize();
        match said {
            Ok(Said::Wanted { scrub }) => {
                volume.want_scrub(scrub);
                let report = EngineReport::new(volume.status(), volume.connections());
                self.answer(caller, &report);
            }
            Ok(Said::Order { snapshot }) => {
                *waits = true;
                volume.order_snapshot(caller, snapshot);
            }
            Ok(Said::Follow { follow: Followed::Settings }) => {
                *waits = true;
                volume.change_settings(caller, None);
            }
            Ok(Said::Rekey { rekey: KeyInDigits(key) }) => {
                *waits = true;
                volume.rekey(caller, key);
            }
            Ok(Said::Grow { grow }) => {
                *waits = true;
                volume.grow(caller, grow);
            }
            Err(error) => {
                tracing::warn!(%error, "what is wanted of this engine makes no sense");
                self.hang_up(caller);
            }
        }
    }

    fn answer(&mut self, caller: u64, answer: &impl Serialize) {
        let Some(Caller { socket, .. }) = self.callers.get(&caller) else { return };
        let sent = match serde_json::to_vec(answer) {
            Ok(json) => self.reactor.send(self.source, token(caller, SEND), socket, vec![Bytes::from(json)]),
            Err(error) => unreachable!("an answer is always JSON: {error}"),
        };
        if sent != Sent::UnderWay {
            self.hang_up(caller);
        }
    }

    fn hang_up(&mut self, caller: u64) {
        if self.callers.remove(&caller).is_some() {
            self.reactor.cancel(self.source, token(caller, RECEIVE));
        }
    }
}

impl Frontend for ControlSocket {
    fn turn(&mut self, volume: &mut Port<'_>) {
        while let Some(completion) = self.reactor.take(self.source) {
            let (caller, operation) = (completion.token >> 2, completion.token & 3);
            match (caller, operation, completion.result) {
                (0, ACCEPT, Ok(Output::Accepted(socket))) => {
                    self.accepting = false;
                    self.welcome(Handle::from(socket));
                }
                (0, ACCEPT, result) => {
                    if let Err(error) = result {
                        tracing::warn!(%error, "nobody can be accepted at the control socket");
                    }
                    self.reactor.timer(self.source, token(0, TIMEOUT), ACCEPT_AGAIN);
                }
                (0, ..) => self.accepting = false,
                (_, RECEIVE, Ok(Output::Buffer(buffer))) => self.received(caller, buffer, volume),
                // It has said what it wants, and waits.
                (_, TIMEOUT, _) if self.callers.get(&caller).is_some_and(|caller| caller.waits) => {}
                (..) => self.hang_up(caller),
            }
        }
        if !self.accepting && !self.stopping && self.callers.len() < CALLERS_MAX {
            self.accepting = true;
            self.reactor.accept(self.source, token(0, ACCEPT), &self.listener);
        }
    }

    fn completed(&mut self, tag: u64, result: Result<IoReply, IoError>) {
        let outcome = match result {
            Ok(IoReply::Cut(cut)) => Outcome { error: None, cut: Some(cut) },
            Ok(_) => Outcome { error: None, cut: None },
            Err(error) => Outcome { error: Some(error.to_string()), cut: None },
        };
        self.ended.push((tag, outcome));
    }

    fn pump(&mut self, _volume: &mut Port<'_>) {}

    fn flush(&mut self) {
        for (caller, outcome) in std::mem::take(&mut self.ended) {
            self.answer(caller, &outcome);
        }
    }

    fn shut_down(&mut self) {
        self.stopping = true;
    }

    fn is_finished(&self) -> bool {
        self.stopping
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the control socket is gone already");
        }
    }
}
