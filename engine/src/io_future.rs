//! A request's outcome as a future, and as something a thread can wait for.

use crate::handover::Completer;
use crate::request::{IoError, IoReply};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Debug, Default)]
struct Slot {
    outcome: Option<Result<IoReply, IoError>>,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct Promise {
    slot: Mutex<Slot>,
    kept: Condvar,
}

/// A submitted request. Dropping it does not cancel the request.
///
/// It yields its outcome once: polling it again after that waits for ever.
#[derive(Debug)]
#[must_use = "the request is under way; wait for its outcome"]
pub struct IoFuture(Arc<Promise>);

/// A completer and the future that it completes.
pub(crate) fn promise() -> (Completer, IoFuture) {
    let promise = Arc::new(Promise::default());
    let kept = Arc::clone(&promise);
    let completer = Completer::new(move |result| {
        let mut slot = kept.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.outcome = Some(result);
        let waker = slot.waker.take();
        drop(slot);
        kept.kept.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    });
    (completer, IoFuture(promise))
}

impl IoFuture {
    /// Waits for the outcome, on a thread that may block.
    ///
    /// # Errors
    /// The request's.
    pub fn wait(self) -> Result<IoReply, IoError> {
        let slot = self.0.slot.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slot = self
            .0
            .kept
            .wait_while(slot, |slot| slot.outcome.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        slot.outcome.take().unwrap_or(Err(IoError::Closed))
    }
}

impl Future for IoFuture {
    type Output = Result<IoReply, IoError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.0.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = slot.outcome.take() {
            return Poll::Ready(outcome);
        }
        slot.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_reaches_who_waits_and_who_polls() {
        let (completer, future) = promise();
        let thread = std::thread::spawn(move || future.wait());
        completer.complete(Ok(IoReply::Done));
        assert_eq!(thread.join().unwrap(), Ok(IoReply::Done));

        let (completer, mut future) = promise();
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut future).poll(&mut context).is_pending());
        drop(completer);
        assert_eq!(Pin::new(&mut future).poll(&mut context), Poll::Ready(Err(IoError::Closed)));
    }
}
