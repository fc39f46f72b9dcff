//! Requests from other threads: a bounded queue that the volume's thread takes as a whole, woken at
//! most once for all that came in meanwhile.
//!
//! Invariants:
//! - every [`Completer`] is called exactly once, if need be with [`IoError::Closed`] as it is
//!   dropped;
//! - once `closed` is set nothing enters the queue.

use crate::frontend::{Frontend, Port};
use crate::request::{IoError, IoReply, IoRequest};
use crate::volume::{VolumeState, VolumeStatus};
use std::fmt;
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;
use trivet_crypto::DataKey;
use trivet_model::{SnapshotOrder, VolumeSettings};
use trivet_reactor::{Reactor, Source, Waker};

/// Most requests that wait for the volume's thread to take them.
const WAITING_MAX: usize = 4096;

type Callback = Box<dyn FnOnce(Result<IoReply, IoError>) + Send>;

/// What becomes of a request's outcome.
pub(crate) struct Completer(Option<Callback>);

impl Completer {
    pub(crate) fn new(complete: impl FnOnce(Result<IoReply, IoError>) + Send + 'static) -> Self {
        Self(Some(Box::new(complete)))
    }

    pub(crate) fn complete(mut self, result: Result<IoReply, IoError>) {
        if let Some(complete) = self.0.take() {
            complete(result);
        }
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        if let Some(complete) = self.0.take() {
            complete(Err(IoError::Closed));
        }
    }
}

impl fmt::Debug for Completer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completer")
    }
}

/// What other threads ask of the volume's.
#[derive(Debug)]
pub(crate) enum Call {
    Request(IoRequest, Completer),
    Grow(u64, Completer),
    Snapshot(SnapshotOrder, Completer),
    Settings(Option<VolumeSettings>, Completer),
    Rekey(DataKey, Completer),
    Status(Sender<VolumeStatus>),
    Close { patience: Duration },
}

#[derive(Debug, Default)]
struct Inbox {
    calls: Vec<Call>,
    closed: bool,
}

/// How far the volume's life is, for threads that wait for it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) state: VolumeState,
    pub(crate) reason: Option<String>,
    /// Closed with everything finished.
    pub(crate) clean: bool,
    /// Its size; 0 before the record is read.
    pub(crate) blocks: u64,
}

/// What the volume's thread shares with others.
#[derive(Debug)]
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    taken: Condvar,
    seen: Mutex<Seen>,
    changed: Condvar,
    waker: Waker,
    thread: ThreadId,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here is left half done by a panic: every change is a push, a swap or an assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// To be called on the volume's thread.
    pub(crate) fn new(waker: Waker) -> Self {
        let seen = Seen { state: VolumeState::Claiming, reason: None, clean: false, blocks: 0 };
        Self {
            inbox: Mutex::default(),
            taken: Condvar::new(),
            seen: Mutex::new(seen),
            changed: Condvar::new(),
            waker,
            thread: std::thread::current().id(),
        }
    }

    /// Hands a call over; waits while too many wait, except on the volume's own thread, which is the
    /// one to take them. After the end the call is dropped, and with it its completer.
    pub(crate) fn call(&self, call: Call) {
        let mut inbox = lock(&self.inbox);
        if std::thread::current().id() != self.thread {
            inbox = self
                .taken
                .wait_while(inbox, |inbox| inbox.calls.len() >= WAITING_MAX && !inbox.closed)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if inbox.closed {
            drop(inbox);
            drop(call);
            return;
        }
        inbox.calls.push(call);
        drop(inbox);
        self.waker.wake();
    }

    fn take(&self, calls: &mut Vec<Call>) {
        std::mem::swap(&mut lock(&self.inbox).calls, calls);
        self.taken.notify_all();
    }

    /// The volume's thread ends.
    pub(crate) fn end(&self) {
        let mut inbox = lock(&self.inbox);
        inbox.closed = true;
        let left = std::mem::take(&mut inbox.calls);
        drop(inbox);
        drop(left);
        self.taken.notify_all();
        let mut seen = lock(&self.seen);
        if !seen.state.is_over() {
            seen.state = VolumeState::Closed;
            seen.reason = Some("the volume's thread has ended".to_owned());
        }
        drop(seen);
        self.changed.notify_all();
    }

    pub(crate) fn show(&self, seen: Seen) {
        *lock(&self.seen) = seen;
        self.changed.notify_all();
    }

    pub(crate) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Waits until the volume's life satisfies `condition`, at most `patience`; answers what was seen
    /// last.
    pub(crate) fn wait(&self, patience: Option<Duration>, condition: impl Fn(&Seen) -> bool) -> Seen {
        let seen = lock(&self.seen);
        let waits = |seen: &mut Seen| !condition(seen);
        let seen = match patience {
            None => self.changed.wait_while(seen, waits).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => {
                self.changed
                    .wait_timeout_while(seen, patience, waits)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        seen.clone()
    }
}

/// The front end that takes what other threads ask.
pub(crate) struct Handover {
    reactor: Reactor,
    source: Source,
    shared: std::sync::Arc<Shared>,
    calls: Vec<Call>,
    completers: Vec<Option<Completer>>,
    free: Vec<usize>,
    close: Option<Duration>,
    stopping: bool,
}

impl Handover {
    pub(crate) fn new(reactor: &Reactor, source: Source, shared: std::sync::Arc<Shared>) -> Self {
        Self {
            reactor: reactor.clone(),
            source,
            shared,
            calls: Vec::new(),
            completers: Vec::new(),
            free: Vec::new(),
            close: None,
            stopping: false,
        }
    }

    /// Whether someone has asked for the volume to be closed, and with what patience.
    pub(crate) fn take_close(&mut self) -> Option<Duration> {
        self.close.take()
    }

    fn note(&mut self, completer: Completer) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.completers.push(None);
            self.completers.len() - 1
        });
        self.completers[slot] = Some(completer);
        slot as u64
    }

    fn take_calls(&mut self, volume: &mut Port<'_>) {
        let mut calls = std::mem::take(&mut self.calls);
        self.shared.take(&mut calls);
        for call in calls.drain(..) {
            match call {
                Call::Request(request, completer) => {
                    let tag = self.note(completer);
                    volume.submit(tag, request);
                }
                Call::Grow(blocks, completer) => {
                    let tag = self.note(completer);
                    volume.grow(tag, blocks);
                }
                Call::Snapshot(order, completer) => {
                    let tag = self.note(completer);
                    volume.order_snapshot(tag, order);
                }
                Call::Rekey(key, completer) => {
                    let tag = self.note(completer);
                    volume.rekey(tag, key);
                }
                Call::Settings(wanted, completer) => {
                    let tag = self.note(completer);
                    volume.change_settings(tag, wanted);
                }
                Call::Status(sender) => {
                    if sender.send(volume.status()).is_err() {
                        tracing::debug!("who asked for the status did not wait for it");
                    }
                }
                Call::Close { patience } => self.close = Some(patience),
            }
        }
        self.calls = calls;
    }
}

impl Frontend for Handover {
    fn turn(&mut self, volume: &mut Port<'_>) {
        let mut woken = false;
        while self.reactor.take(self.source).is_some() {
            woken = true;
        }
        if woken {
            self.take_calls(volume);
        }
    }

    fn completed(&mut self, tag: u64, result: Result<IoReply, IoError>) {
        let slot = usize::try_from(tag).expect("tags are indices");
        let completer = self.completers[slot].take().expect("a request completes once");
        self.free.push(slot);
        completer.complete(result);
    }

    fn pump(&mut self, _volume: &mut Port<'_>) {}

    fn flush(&mut self) {}

    fn shut_down(&mut self) {
        self.stopping = true;
    }

    fn is_finished(&self) -> bool {
        self.stopping && self.free.len() == self.completers.len()
    }
}
