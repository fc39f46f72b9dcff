//! The threads that make calls which block: to the map's key-value store, and to the resolver.
//!
//! Loading groups and writing checkpoints have a thread each: a read that waits for a group must
//! not wait for a checkpoint, which takes seconds. Nor must either wait for a name server, or for a
//! device that may have failed for good.

use crate::meta::MetaStore;
use crate::pool;
use crate::store::{ChangedScan, ChangedScanned, CheckpointJob, CheckpointOutcome, GroupLoad, GroupsLoaded};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use trivet_reactor::Waker;

/// What a background thread has done.
#[derive(Debug)]
pub(super) enum Finished {
    Groups(GroupsLoaded),
    Scan(ChangedScanned),
    FailureNoted(io::Result<()>),
    Checkpoint(CheckpointOutcome),
    /// For which job a name was looked up.
    Resolved(u64, Result<SocketAddr, String>),
}

/// What the thread that reads the map is given: groups for the cache, and short looks for changes.
#[derive(Debug)]
enum Reading {
    Load(GroupLoad),
    Scan(Box<ChangedScan>),
}

/// All threads. Dropping it waits until they have finished what they were given.
#[derive(Debug)]
pub(super) struct Background {
    readings: Worker<Reading>,
    checkpoints: Worker<Box<CheckpointJob>>,
    names: Worker<(u64, String)>,
    failures: Worker<()>,
    finished: Receiver<Finished>,
}

impl Background {
    /// Starts the threads; `waker` tells the loop that [`Background::finished`] has something.
    pub(super) fn start(meta: &Arc<dyn MetaStore>, directory: &Path, waker: &Waker) -> io::Result<Self> {
        let (done, finished) = channel();
        let map = Arc::clone(meta);
        let readings =
            Worker::start("map-load", done.clone(), waker.clone(), move |reading: Reading| match reading {
                Reading::Load(load) => Finished::Groups(load.run(&*map)),
                Reading::Scan(scan) => Finished::Scan(scan.run(&*map)),
            })?;
        let writer = Arc::clone(meta);
        let checkpoints =
            Worker::start("checkpoint", done.clone(), waker.clone(), move |job: Box<CheckpointJob>| {
                Finished::Checkpoint(job.run(&*writer))
            })?;
        let names = Worker::start("names", done.clone(), waker.clone(), |(job, address): (u64, String)| {
            Finished::Resolved(job, resolve(&address))
        })?;
        let directory = directory.to_path_buf();
        let failures = Worker::start("note-failure", done, waker.clone(), move |()| {
            Finished::FailureNoted(pool::note_failure(&directory))
        })?;
        Ok(Self { readings, checkpoints, names, failures, finished })
    }

    pub(super) fn load(&self, load: GroupLoad) {
        self.readings.give(Reading::Load(load));
    }

    pub(super) fn scan(&self, scan: Box<ChangedScan>) {
        self.readings.give(Reading::Scan(scan));
    }

    /// Notes for the next opening that the device has failed.
    pub(super) fn note_failure(&self) {
        self.failures.give(());
    }

    /// Looks a `host:port` up.
    pub(super) fn resolve(&self, job: u64, address: String) {
        self.names.give((job, address));
    }

    pub(super) fn checkpoint(&self, job: Box<CheckpointJob>) {
        self.checkpoints.give(job);
    }

    /// What has been finished since.
    pub(super) fn finished(&self) -> impl Iterator<Item = Finished> + '_ {
        self.finished.try_iter()
    }
}

fn resolve(address: &str) -> Result<SocketAddr, String> {
    let failed = |cause: &str| format!("{address} cannot be looked up: {cause}");
    let mut found = address.to_socket_addrs().map_err(|error| failed(&error.to_string()))?;
    found.next().ok_or_else(|| failed("it has no address"))
}

#[derive(Debug)]
struct Worker<Job> {
    /// `None` only while dropping.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl<Job: Send + 'static> Worker<Job> {
    fn start(
        name: &str,
        done: Sender<Finished>,
        waker: Waker,
        work: impl Fn(Job) -> Finished + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, given) = channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            for job in given {
                if done.send(work(job)).is_err() {
                    // The loop is gone, and nobody wants the rest.
                    return;
                }
                waker.wake();
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    fn give(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("taken only while dropping");
        jobs.send(job).expect("a background thread ends only when it panics");
    }
}

impl<Job> Drop for Worker<Job> {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a background thread of the pool has panicked");
        }
    }
}
