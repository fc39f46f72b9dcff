//! A unix socket that answers whoever connects with one JSON object, the engine's report, and hangs
//! up: for `trivet status` and for people with `socat`.

use super::{Frontend, Port};
use crate::request::{IoError, IoReply};
use crate::volume::{Standing, VolumeStatus};
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use trivet_reactor::{Handle, Output, Reactor, Sent, SocketAddress, SocketError, Source};

/// Answers under way; more who ask wait to be accepted.
const ANSWERS_MAX: usize = 16;
const ACCEPT: u64 = 0;
const RETRY: u64 = 1;
const FIRST_ANSWER: u64 = 2;
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What an engine process says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct EngineReport {
    /// In words: `open`, `opening: …`, `paused: …`.
    pub state: String,
    /// Whether consumers get answers at once.
    pub serving: bool,
    /// Clients of all front ends.
    pub connections: usize,
    /// Everything else.
    pub volume: VolumeStatus,
}

impl EngineReport {
    /// The report that goes with a status.
    #[must_use]
    pub fn new(volume: VolumeStatus, connections: usize) -> Self {
        let word = match volume.standing {
            Standing::Opening => "opening",
            Standing::Open => "open",
            Standing::Degraded => "degraded",
            Standing::Paused => "paused",
            Standing::Closing => "closing",
            Standing::Closed => "closed",
            Standing::Fenced => "fenced",
            Standing::Failed => "failed",
        };
        let state = volume.reason.as_ref().map_or(word.to_owned(), |reason| format!("{word}: {reason}"));
        let serving = matches!(volume.standing, Standing::Open | Standing::Degraded);
        Self { state, serving, connections, volume }
    }
}

pub(crate) struct StatusSocket {
    reactor: Reactor,
    source: Source,
    listener: Handle,
    path: PathBuf,
    accepting: bool,
    answering: BTreeMap<u64, Handle>,
    next_answer: u64,
    stopping: bool,
}

impl StatusSocket {
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
            answering: BTreeMap::new(),
            next_answer: FIRST_ANSWER,
            stopping: false,
        })
    }

    fn answer(&mut self, socket: Handle, volume: &Port<'_>) {
        let report = EngineReport::new(volume.status(), volume.connections());
        match serde_json::to_vec(&report) {
            Ok(json) => {
                let json = vec![Bytes::from(json)];
                if self.reactor.send(self.source, self.next_answer, &socket, json) == Sent::UnderWay {
                    self.answering.insert(self.next_answer, socket);
                    self.next_answer += 1;
                }
            }
            Err(error) => tracing::error!(%error, "a report cannot be written as JSON"),
        }
    }
}

impl Frontend for StatusSocket {
    fn turn(&mut self, volume: &mut Port<'_>) {
        while let Some(completion) = self.reactor.take(self.source) {
            match (completion.token, completion.result) {
                (ACCEPT, Ok(Output::Accepted(socket))) => {
                    self.accepting = false;
                    self.answer(Handle::from(socket), volume);
                }
                (ACCEPT, result) => {
                    if let Err(error) = result {
                        tracing::warn!(%error, "nobody can be accepted at the status socket");
                    }
                    self.reactor.timer(self.source, RETRY, ACCEPT_AGAIN);
                }
                (RETRY, _) => self.accepting = false,
                (answer, result) => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "who asked for the status did not wait for it");
                    }
                    self.answering.remove(&answer);
                }
            }
        }
        if !self.accepting && !self.stopping && self.answering.len() < ANSWERS_MAX {
            self.accepting = true;
            self.reactor.accept(self.source, ACCEPT, &self.listener);
        }
    }

    fn completed(&mut self, tag: u64, _result: Result<IoReply, IoError>) {
        unreachable!("the status socket submits nothing, not even {tag}");
    }

    fn pump(&mut self, _volume: &mut Port<'_>) {}

    fn flush(&mut self) {}

    fn shut_down(&mut self) {
        self.stopping = true;
    }

    fn is_finished(&self) -> bool {
        self.stopping
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the status socket is gone already");
        }
    }
}
