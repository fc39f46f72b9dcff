//! Wake-ups from other threads.
//!
//! Only a reactor that sleeps, or is about to, costs its waker a system call. Both sides write
//! their flag before they read the other's, all sequentially consistent, so one of them sees the
//! other: the waker sets `any` and then looks at `sleeping`; the reactor sets `sleeping` and then
//! looks at `any`.

use crate::Source;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Wakes a reactor from any thread: a completion ([`Output::Done`](crate::Output::Done)) appears
/// under the token it was made with. Several wakes before that completion are one.
#[derive(Clone, Debug)]
pub struct Waker {
    target: Arc<Target>,
    doorbell: Arc<Doorbell>,
}

/// What all wakers of a reactor share with it.
#[derive(Debug)]
pub(crate) struct Doorbell {
    event: OwnedFd,
    any: AtomicBool,
    sleeping: AtomicBool,
}

#[derive(Debug)]
struct Target {
    source: Source,
    token: u64,
    pending: AtomicBool,
}

impl Waker {
    /// Wakes. After a call, at least one completion will be delivered that the reactor's thread
    /// sees later than everything the caller did before.
    pub fn wake(&self) {
        if self.target.pending.swap(true, Ordering::SeqCst) {
            return;
        }
        self.doorbell.any.store(true, Ordering::SeqCst);
        if self.doorbell.sleeping.swap(false, Ordering::SeqCst) {
            self.doorbell.ring();
        }
    }
}

impl Doorbell {
    fn ring(&self) {
        let one = 1_u64;
        // SAFETY: reads eight live bytes; the descriptor is open as long as `self`.
        let written = unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), 8) };
        debug_assert_eq!(written, 8, "an eventfd far from overflow accepts a write");
    }
}

/// The reactor's side.
#[derive(Debug)]
pub(crate) struct Wakers {
    doorbell: Arc<Doorbell>,
    targets: Vec<Arc<Target>>,
}

impl Wakers {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes no memory. Blocking, because io_uring waits on blocking descriptors only.
        let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `event` was just opened and is nobody else's.
        let event = unsafe { OwnedFd::from_raw_fd(event) };
        let doorbell = Doorbell { event, any: AtomicBool::new(false), sleeping: AtomicBool::new(false) };
        Ok(Self { doorbell: Arc::new(doorbell), targets: Vec::new() })
    }

    /// A second descriptor of the eventfd, for the read that stays in flight.
    pub(crate) fn event(&self) -> io::Result<OwnedFd> {
        self.doorbell.event.try_clone()
    }

    pub(crate) fn add(&mut self, source: Source, token: u64) -> Waker {
        // A target that only this list still holds can never be woken again.
        self.targets.retain(|t| Arc::strong_count(t) > 1 || t.pending.load(Ordering::SeqCst));
        let target = Arc::new(Target { source, token, pending: AtomicBool::new(false) });
        self.targets.push(Arc::clone(&target));
        Waker { target, doorbell: Arc::clone(&self.doorbell) }
    }

    /// Announces sleep; `false` if a wake has come in, and the reactor must not sleep.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.doorbell.sleeping.store(true, Ordering::SeqCst);
        if self.pending() {
            self.awake();
            return false;
        }
        true
    }

    pub(crate) fn awake(&self) {
        self.doorbell.sleeping.store(false, Ordering::SeqCst);
    }

    pub(crate) fn pending(&self) -> bool {
        self.doorbell.any.load(Ordering::SeqCst)
    }

    /// Calls `deliver` for each waker used since the last call.
    pub(crate) fn collect(&self, mut deliver: impl FnMut(Source, u64)) {
        if !self.pending() {
            return;
        }
        // Cleared before the flags are looked at: a wake that comes in between sets it again.
        self.doorbell.any.store(false, Ordering::SeqCst);
        for target in &self.targets {
            if target.pending.swap(false, Ordering::SeqCst) {
                deliver(target.source, target.token);
            }
        }
    }
}
