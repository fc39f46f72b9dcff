//! Load that checks itself and outlives what it loads.
//!
//! A checker owns a region of a volume, divided into units: whole blocks or single sectors. Each
//! write gives its units new versions, and each unit's bytes name the seed, the unit and the
//! version. Of every unit the checker knows
//!
//! - `oldest`: the newest version acknowledged or returned by a read, which may never be lost, and
//! - `newest`: the newest version sent, acknowledged or not.
//!
//! A unit must hold exactly one version from `oldest ..= newest`, whole. Requests that overlap are
//! never in flight at once, so that this is all there is to know; overlaps are fio's part. Kill -9
//! takes no power away: every acknowledged write has to be there, flushed or not. After
//! [`Region::power_lost`] that holds of what was flushed, or written with FUA, alone.

mod pattern;
mod region;

pub use region::Region;

use crate::nbd::{NbdClient, Reply, Request};
use crate::{Random, patience};
use region::Intent;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// How many requests are in flight at most.
const DEPTH: usize = 32;
const RUN_UNITS_MAX: u64 = 16;

/// A running load. [`Checker::stop`] ends it and gives the region back.
#[derive(Debug)]
pub struct Checker {
    acknowledged: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    finished: mpsc::Receiver<Region>,
    thread: JoinHandle<()>,
}

/// What error replies mean to a [`Checker`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Errors {
    /// A fault must show as a delay.
    Forbidden,
    /// The engine is about to be fenced: its clients learn nothing of what they asked last.
    Unanswered,
}

impl Checker {
    /// Begins to load `region` through `uri`, connecting again whenever the connection is lost.
    ///
    /// # Panics
    /// When no thread can be started.
    #[must_use]
    pub fn start(uri: &str, region: Region, seed: u64) -> Self {
        Self::start_with(uri, region, seed, Errors::Forbidden)
    }

    /// The same through an engine that will lose the volume to another: error replies are as good as
    /// none.
    ///
    /// # Panics
    /// When no thread can be started.
    #[must_use]
    pub fn start_until_fenced(uri: &str, region: Region, seed: u64) -> Self {
        Self::start_with(uri, region, seed, Errors::Unanswered)
    }

    fn start_with(uri: &str, region: Region, seed: u64, errors: Errors) -> Self {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let connections = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, finished) = mpsc::channel();
        let mut load = Load {
            uri: uri.to_owned(),
            region,
            random: Random::new(seed),
            errors,
            acknowledged: Arc::clone(&acknowledged),
            connections: Arc::clone(&connections),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new()
            .name("checker".to_owned())
            .spawn(move || {
                load.run();
                sender.send(load.region).expect("the test waits for its region");
            })
            .expect("a thread can be started");
        Self { acknowledged, connections, stop, finished, thread }
    }

    /// How many requests have been answered with success.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// How many connections it has made: one, unless the engine went away.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Acquire)
    }

    /// Waits until `count` more requests than now have been acknowledged.
    ///
    /// # Panics
    /// When the load has failed, or makes no such progress within `bound`.
    pub fn wait_for_progress(&self, count: u64, bound: Duration) {
        let goal = self.acknowledged.load(Ordering::Acquire) + count;
        patience::wait_for(&format!("{count} more acknowledged requests"), bound, || {
            assert!(!self.thread.is_finished(), "the checker has failed, see above");
            (self.acknowledged.load(Ordering::Acquire) >= goal).then_some(())
        });
    }

    /// Ends the load once what is in flight has been answered.
    ///
    /// # Panics
    /// When the load has failed, or does not end soon.
    #[must_use]
    pub fn stop(self) -> Region {
        self.stop.store(true, Ordering::Release);
        let region = self.finished.recv_timeout(2 * patience::SOON);
        let region = region.unwrap_or_else(|e| panic!("the checker has failed or is stuck ({e}), see above"));
        self.thread.join().expect("it has sent its region");
        region
    }
}

struct Load {
    uri: String,
    region: Region,
    random: Random,
    errors: Errors,
    acknowledged: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// `None` when it is told to stop before there is a connection.
    fn connect(&self) -> Option<NbdClient> {
        patience::wait_for("a connection", 2 * patience::SOON, || {
            let stopping = self.stop.load(Ordering::Acquire);
            if stopping { Some(None) } else { NbdClient::connect(&self.uri).ok().map(Some) }
        })
    }

    fn run(&mut self) {
        while let Some(mut client) = self.connect() {
            self.connections.fetch_add(1, Ordering::AcqRel);
            let mut in_flight = HashMap::new();
            let ended = self.drive(&mut client, &mut in_flight);
            for intent in in_flight.into_values() {
                self.region.unanswered(&intent);
            }
            if let Err(error) = ended {
                let lost = matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::BrokenPipe
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionAborted
                );
                assert!(lost, "the connection ended in another way than by being lost: {error}");
            }
        }
    }

    /// Keeps the connection busy until it is lost or the load is stopped.
    fn drive(&mut self, client: &mut NbdClient, in_flight: &mut HashMap<u64, Intent>) -> io::Result<()> {
        loop {
            let stopping = self.stop.load(Ordering::Acquire);
            while !stopping && in_flight.len() < DEPTH {
                let Some((intent, request)) = self.next_request() else { break };
                match client.submit(&request) {
                    Ok(handle) => drop(in_flight.insert(handle, intent)),
                    Err(error) => {
                        self.region.unanswered(&intent);
                        return Err(error);
                    }
                }
            }
            if in_flight.is_empty() {
                return Ok(());
            }
            let reply = client.next_reply(2 * patience::SOON)?;
            let intent = in_flight.remove(&reply.handle).expect("the client checks handles");
            self.answered(&intent, &reply);
        }
    }

    fn answered(&mut self, intent: &Intent, reply: &Reply) {
        if reply.error != 0 && self.errors == Errors::Unanswered {
            return self.region.unanswered(intent);
        }
        assert_eq!(reply.error, 0, "{intent:?} failed: a fault must show as a delay, never as an error");
        self.region.answered(intent, &reply.data);
        self.acknowledged.fetch_add(1, Ordering::AcqRel);
    }

    /// `None` when the run chosen touches one in flight.
    fn next_request(&mut self) -> Option<(Intent, Request)> {
        if self.random.chance(3) {
            return Some(self.region.begin_flush());
        }
        let start = self.random.below(self.region.units());
        let count = (1 + self.random.below(RUN_UNITS_MAX)).min(self.region.units() - start);
        let run = self.region.claim(start, count)?;
        let choice = self.random.below(100);
        let force_unit_access = self.random.chance(10);
        Some(match choice {
            0..60 => self.region.begin_write(run, force_unit_access),
            60..66 => self.region.begin_zeroes(run, true),
            66..72 => self.region.begin_zeroes(run, false),
            _ => self.region.begin_read(run),
        })
    }
}
