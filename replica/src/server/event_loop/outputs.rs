//! Carrying out what the sessions say, and what they have ordered to be copied.

use super::{EventLoop, PACE_TIMER, thread};
use crate::session::{ConnectionId, Output};
use crate::store::{Request, RequestId};
use std::time::Duration;
use trivet_wire::{Frame, PullReport};

/// Between looks at whether the pace allows more to be copied.
const PACE_TICK: Duration = Duration::from_millis(5);

impl EventLoop {
    /// Does what the sessions say.
    pub(super) fn perform(&mut self) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Submit(id, request) => {
                    self.last_request = self.reactor.now();
                    self.quiet_periods = 0;
                    self.start_quiet_timer();
                    self.submit(id, request);
                }
                Output::Pull(connection, order, from) => {
                    let Self { copying, store, background, reactor, .. } = self;
                    let thread = thread(reactor, self.source);
                    copying.pull(connection, order, from, store, background, &thread);
                }
                Output::Repair(connection, request, order, from) => {
                    let Self { copying, store, background, reactor, .. } = self;
                    let thread = thread(reactor, self.source);
                    copying.repair(connection, request, order, from, store, background, &thread);
                }
                Output::ReportPull(connection, request) => {
                    let report = self.copying.report(connection);
                    self.tell(connection, request, report);
                }
                Output::Flatten(connection, request, volume) => {
                    let report = self.flattening.go_on(volume, &self.store);
                    self.tell(connection, request, report);
                }
                Output::EndPull(connection) => self.end_copying(connection),
                Output::Progress(volume, progress) => self.store.note_progress(volume, progress),
                Output::TrimTail(volume, stable) => self.store.trim_tail(volume, stable),
                Output::Send(to, frame) => self.send(to, &frame),
                Output::Close(connection, reason) => {
                    tracing::info!(connection = connection.index(), %reason, "connection ends");
                    let now = self.reactor.now();
                    if let Some(peer) = self.peer(connection) {
                        peer.end(now);
                        self.list(connection.index());
                    }
                }
            }
        }
        self.outputs = outputs;
    }

    /// Tells how far a copy is.
    fn tell(&mut self, connection: ConnectionId, request: u64, report: PullReport) {
        let mut answer = Vec::with_capacity(1);
        self.sessions.pull_reported(connection, request, report, &mut answer);
        for output in answer {
            if let Output::Send(to, frame) = output {
                self.send(to, &frame);
            }
        }
    }

    /// Asks the store on behalf of a session.
    fn submit(&mut self, id: RequestId, request: Request) {
        match request {
            Request::Fetch { .. } => {
                let thread = thread(&self.reactor, self.source);
                self.copying.fetch(id, request, &mut self.store, &thread);
            }
            Request::Changed { .. } | Request::Verify { .. } => self.store.submit(id, request),
            _ => {
                self.copying.note_foreground(id, &request, self.reactor.now());
                self.store.submit(id, request);
            }
        }
    }

    fn send(&mut self, to: ConnectionId, frame: &Frame) {
        if let Some(peer) = self.peer(to) {
            peer.encoder.push(frame);
            self.list(to.index());
        }
    }

    /// Moves on what is copied from other servers, and by them; true when the store was asked.
    pub(super) fn copy(&mut self) -> bool {
        let thread = thread(&self.reactor, self.source);
        let mut ended = Vec::new();
        let mut submitted = self.copying.advance(&mut self.store, &thread, &mut ended);
        submitted |= self.flattening.advance(&mut self.store, thread.now, &mut self.copying.pace);
        let waits = self.copying.waits_for_pace(&thread)
            || (self.flattening.wants_more() && !self.copying.pace.allows(thread.now));
        if !self.pace_timer && waits {
            self.pace_timer = true;
            self.reactor.timer(self.source, PACE_TIMER, PACE_TICK);
        }
        for (id, result) in ended {
            self.sessions.completed(id, result, &self.store, &mut self.outputs);
        }
        self.perform();
        submitted
    }

    pub(super) fn end_copying(&mut self, connection: ConnectionId) {
        let thread = thread(&self.reactor, self.source);
        self.copying.end(connection, &mut self.store, &thread);
    }
}
