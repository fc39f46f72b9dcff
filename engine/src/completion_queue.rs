//! Requests through a queue whose completions an eventfd announces, as event loops of hypervisors
//! want them. The model is libblkio's `blkioq`.

use crate::handover::{Call, Completer, Shared};
use crate::request::{IoError, IoReply, IoRequest};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A finished request.
#[derive(Debug, PartialEq, Eq)]
pub struct Completion {
    /// As submitted.
    pub user_data: u64,
    /// Its outcome.
    pub result: Result<IoReply, IoError>,
}

/// The queue has its depth of requests already; take completions first. Gives the request back.
#[derive(Debug, thiserror::Error)]
#[error("the queue is full: {depth} requests are submitted and their completions not taken")]
pub struct QueueFull {
    /// The queue's depth.
    pub depth: usize,
    /// The request that did not fit.
    pub request: IoRequest,
}

/// What an eventfd takes: a number as the host writes it.
#[allow(clippy::host_endian_bytes, reason = "it is the kernel of this host that reads it")]
const ONE: [u8; 8] = 1u64.to_ne_bytes();

#[derive(Debug, Default)]
struct Finished {
    completions: VecDeque<Completion>,
    announced: bool,
    enabled: bool,
}

#[derive(Debug)]
struct Inner {
    finished: Mutex<Finished>,
    arrived: Condvar,
    event: OwnedFd,
}

/// A queue of requests to one volume. May be shared between threads, but one queue for each thread
/// has less to wait for.
///
/// The eventfd is made non-blocking, and announces nothing until it is
/// [enabled](Self::set_completion_fd_enabled). It becomes readable when completions are there to be
/// taken; [`take`](Self::take) clears it.
#[derive(Debug)]
pub struct CompletionQueue {
    shared: Arc<Shared>,
    inner: Arc<Inner>,
    depth: usize,
    occupied: AtomicUsize,
}

impl Inner {
    fn finished(&self) -> MutexGuard<'_, Finished> {
        // A panic leaves nothing half done: changes are pushes and assignments.
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complete(&self, completion: Completion) {
        let mut finished = self.finished();
        finished.completions.push_back(completion);
        self.announce(&mut finished);
        drop(finished);
        self.arrived.notify_all();
    }

    fn announce(&self, finished: &mut Finished) {
        if finished.enabled && !finished.announced && !finished.completions.is_empty() {
            finished.announced = true;
            if let Err(error) = rustix::io::write(&self.event, &ONE) {
                tracing::error!(%error, "a completion eventfd refuses a write");
            }
        }
    }

    fn clear(&self, finished: &mut Finished) {
        if std::mem::take(&mut finished.announced) {
            let mut count = [0; 8];
            match rustix::io::read(&self.event, &mut count) {
                // Whoever polls it may have read it.
                Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => tracing::error!(%error, "a completion eventfd refuses a read"),
            }
        }
    }
}

impl CompletionQueue {
    pub(crate) fn new(shared: Arc<Shared>, depth: usize) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let inner = Inner { finished: Mutex::default(), arrived: Condvar::new(), event };
        Ok(Self { shared, inner: Arc::new(inner), depth, occupied: AtomicUsize::new(0) })
    }

    /// Submits a request. Its place in the queue is free again when its completion is taken.
    ///
    /// # Errors
    /// [`QueueFull`] with the request.
    pub fn submit(&self, user_data: u64, request: IoRequest) -> Result<(), QueueFull> {
        let place = |occupied: usize| (occupied < self.depth).then_some(occupied + 1);
        if self.occupied.fetch_update(Ordering::AcqRel, Ordering::Acquire, place).is_err() {
            return Err(QueueFull { depth: self.depth, request });
        }
        let inner = Arc::clone(&self.inner);
        let completer = Completer::new(move |result| inner.complete(Completion { user_data, result }));
        self.shared.call(Call::Request(request, completer));
        Ok(())
    }

    /// The eventfd: poll it for reading.
    #[must_use]
    pub fn completion_fd(&self) -> BorrowedFd<'_> {
        self.inner.event.as_fd()
    }

    /// Whether completions are announced. Enabling announces those that are there already, so none is
    /// missed in between.
    pub fn set_completion_fd_enabled(&self, enabled: bool) {
        let mut finished = self.inner.finished();
        finished.enabled = enabled;
        self.inner.announce(&mut finished);
    }

    /// Appends up to `most` completions to `completions` without waiting, and answers how many. Once
    /// none is left the eventfd is clear.
    pub fn take(&self, completions: &mut Vec<Completion>, most: usize) -> usize {
        let mut finished = self.inner.finished();
        self.take_some(&mut finished, completions, most)
    }

    /// Like [`take`](Self::take), but waits until there are `least` completions or `timeout` is over.
    pub fn wait(&self, completions: &mut Vec<Completion>, least: usize, timeout: Duration) -> usize {
        let finished = self.inner.finished();
        let few = |finished: &mut Finished| finished.completions.len() < least;
        let waited = self.inner.arrived.wait_timeout_while(finished, timeout, few);
        let (mut finished, _) = waited.unwrap_or_else(PoisonError::into_inner);
        self.take_some(&mut finished, completions, usize::MAX)
    }

    fn take_some(&self, finished: &mut Finished, completions: &mut Vec<Completion>, most: usize) -> usize {
        let count = finished.completions.len().min(most);
        completions.extend(finished.completions.drain(..count));
        if finished.completions.is_empty() {
            self.inner.clear(finished);
        }
        self.occupied.fetch_sub(count, Ordering::AcqRel);
        count
    }
}
