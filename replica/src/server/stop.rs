//! Asking a running server to stop, from another thread.

use std::sync::{Arc, Mutex, PoisonError};
use trivet_reactor::Waker;

/// Stops a server in good order: it answers what it has been asked, writes a checkpoint and
/// returns. Clones stop the same server.
#[derive(Clone, Debug, Default)]
pub struct StopHandle(Arc<Mutex<Stop>>);

#[derive(Debug, Default)]
struct Stop {
    asked: bool,
    waker: Option<Waker>,
}

impl StopHandle {
    /// A handle for a server to be started.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the server to stop; before its start, too. Takes a lock: not for signal handlers, but
    /// for the thread that waits for signals.
    pub fn stop(&self) {
        let mut stop = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stop.asked = true;
        if let Some(waker) = &stop.waker {
            waker.wake();
        }
    }

    /// Wakes the server's loop when asked, at once if that has been before.
    pub(super) fn attach(&self, waker: Waker) {
        let mut stop = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stop.asked {
            waker.wake();
        }
        stop.waker = Some(waker);
    }
}
