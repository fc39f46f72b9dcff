//! What does not happen on request: accepting, quiet, slow peers, and the server's stop.

use super::{ACCEPT_TIMER, EventLoop, QUIET_TIMER, Stage, TICK, TICK_TIMER};
use crate::server::peer::{Peer, Phase};
use crate::session::CloseReason;
use std::io;
use std::time::Duration;
use trivet_reactor::Output as Outcome;
use trivet_wire::ErrorCode;

/// Most connections at a time; beyond, they wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// Quiet after which the store writes what is only lazily written.
const QUIET: Duration = Duration::from_millis(50);
/// Quiet periods of that length after which the loop goes to sleep for longer.
const QUIET_PERIODS: u32 = 40;
/// How long a stop waits for peers to take their last answers.
const FAREWELL_MAX: Duration = Duration::from_secs(5);
/// How long a device may owe answers before the pool tells whoever asks, so that its copies are replaced.
const DEVICE_SILENT: Duration = Duration::from_secs(5);
/// How long to wait after the system refused to accept a connection.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

impl EventLoop {
    pub(super) fn accept(&mut self) {
        if self.peers_count >= CONNECTIONS_MAX || self.stage != Stage::Serving {
            return;
        }
        for door in &mut self.doors {
            if !std::mem::replace(&mut door.accepting, true) {
                self.reactor.accept(self.source, door.token, &door.listener);
            }
        }
    }

    pub(super) fn accepted(&mut self, token: u64, result: io::Result<Outcome>) {
        let door = self.doors.iter_mut().find(|door| door.token == token).expect("only doors accept");
        door.accepting = false;
        let socket = match result {
            Ok(Outcome::Accepted(fd)) => (door.prepare)(fd),
            Ok(other) => unreachable!("an accept yields {other:?}"),
            Err(error) => Err(error),
        };
        match socket {
            Ok(socket) if self.stage == Stage::Serving => {
                let id = self.sessions.connected();
                let index = id.index();
                if index >= self.peers.len() {
                    self.peers.resize_with(index + 1, || None);
                }
                self.peers[index] = Some(Peer::new(id, socket, self.reactor.now()));
                self.peers_count += 1;
                self.list(index);
                self.accept();
            }
            Ok(_) => {}
            Err(error) => {
                if self.stage == Stage::Serving {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    self.reactor.timer(self.source, ACCEPT_TIMER, ACCEPT_AGAIN);
                }
            }
        }
    }

    /// Writes what is lazily written once nothing has been asked for a while.
    pub(super) fn quiet(&mut self) {
        self.quiet_timer = false;
        let quiet_for = self.reactor.now().saturating_sub(self.last_request);
        if quiet_for >= QUIET {
            self.store.idle();
            self.quiet_periods += 1;
        }
        if self.quiet_periods < QUIET_PERIODS {
            self.start_quiet_timer();
        }
    }

    pub(super) fn start_quiet_timer(&mut self) {
        if !self.quiet_timer {
            self.quiet_timer = true;
            self.reactor.timer(self.source, QUIET_TIMER, QUIET);
        }
    }

    /// Ends connections that take too long, and lets a sleeping store look up.
    pub(super) fn tick(&mut self) {
        self.reactor.timer(self.source, TICK_TIMER, TICK);
        if !self.quiet_timer {
            self.store.idle();
        }
        let now = self.reactor.now();
        if self.disk.in_flight() == 0 {
            self.disk_heard = now;
        }
        self.note_failure_again();
        let silent = now.saturating_sub(self.disk_heard);
        self.store.note_device_silent((silent >= DEVICE_SILENT).then_some(silent));
        self.copying.tick(&super::thread(&self.reactor, self.source));
        let farewell_over =
            matches!(self.stage, Stage::Draining { since } if now.saturating_sub(since) > FAREWELL_MAX);
        for index in 0..self.peers.len() {
            let Some(peer) = self.peers[index].as_mut() else { continue };
            let greeted = self.sessions.has_greeted(peer.id);
            if farewell_over {
                peer.give_up();
            } else if let Some(why) = peer.overdue(greeted, now) {
                if greeted || peer.phase != Phase::Live {
                    tracing::info!(connection = index, why, "connection given up");
                    peer.give_up();
                } else {
                    let reason = CloseReason::Ours { code: ErrorCode::Unexpected, detail: why.to_owned() };
                    let id = peer.id;
                    self.sessions.close(id, reason, &mut self.outputs);
                    self.perform();
                }
            }
            self.list(index);
        }
    }

    pub(super) fn stop(&mut self) {
        if self.stage == Stage::Serving {
            tracing::info!("stopping");
            self.stage = Stage::Draining { since: self.reactor.now() };
            for door in &self.doors {
                self.reactor.cancel(self.source, door.token);
            }
            self.copying.stop(&mut self.store);
            self.flattening.stop();
            self.sessions.stop(&mut self.outputs);
            self.perform();
        }
    }

    /// Moves a stop on; true at its end.
    pub(super) fn is_finished(&mut self) -> bool {
        if matches!(self.stage, Stage::Draining { .. }) && self.sessions.is_drained() && self.peers_count == 0
        {
            self.stage = Stage::Checkpointing;
            self.store.close();
            self.drive_store();
        }
        self.stage == Stage::Checkpointing && self.store.is_quiescent()
    }
}
