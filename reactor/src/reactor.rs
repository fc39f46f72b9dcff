//! The handle that everybody on the thread shares, and the turn of the loop.

use crate::Handle;
use crate::clock::Clock;
use crate::direct::Direct;
use crate::mailbox::{Completion, Mailboxes, Output, Source};
use crate::operation::{Kind, Operation, Progress, cancelled};
use crate::ring::{Entered, Features, Ring};
use crate::segments::Segments;
use crate::setup_error::SetupError;
use crate::slab::{OperationId, Slab};
use crate::socket_address::{RawAddress, SocketAddress};
use crate::spin::Spin;
use crate::timers::Timers;
use crate::waker::{Waker, Wakers};
use bytes::{Bytes, BytesMut};
use io_uring::opcode;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How a reactor is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Submission entries of the ring: how many operations one system call submits. More may be in
    /// flight.
    pub entries: u32,
    /// The longest spin before a sleep; zero for none. Worth it only where a core is to spare.
    pub spin: Duration,
}

impl Default for Options {
    /// 256 entries, no spinning.
    fn default() -> Self {
        Self { entries: 256, spin: Duration::ZERO }
    }
}

/// How long [`Reactor::poll`] may wait for a first completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until there is one.
    Forever,
    /// At most this long.
    For(Duration),
}

/// The event loop of one thread. Clones are handles to the same loop.
#[derive(Clone)]
pub struct Reactor(Rc<RefCell<Inner>>);

/// Invariant: a slot of `slab` is occupied exactly while the kernel, the submission queue or the
/// backlog holds an entry of that id.
struct Inner {
    ring: Ring,
    slab: Slab,
    mailboxes: Mailboxes,
    timers: Timers,
    wakers: Wakers,
    clock: Clock,
    now: Duration,
    spin: Spin,
    /// How many completions the first sleep of the next poll waits for.
    gather: u32,
    direct: Direct,
    /// Why wake-ups from other threads no longer arrive; reported by the next poll.
    broken: Option<io::Error>,
}

/// How far a send is when it has been asked for.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// All of it; there is no completion.
    Whole,
    /// The rest follows; a completion tells its end.
    UnderWay,
}

/// The user data of cancellations, whose own completions tell nothing that the cancelled
/// operation's does not. No slot has this number.
const CANCELLATION: u64 = u64::MAX;
/// On drop, how long to wait for the kernel to let go.
const DRAIN_MAX: Duration = Duration::from_secs(5);

impl Reactor {
    /// Sets up a ring with the best of what this kernel offers.
    ///
    /// # Errors
    /// [`SetupError`] with the cause and the next step.
    pub fn new(options: Options) -> Result<Self, SetupError> {
        let diagnose = |e| SetupError::diagnose(e, options.entries);
        let ring = Ring::new(options.entries)?;
        let wakers = Wakers::new().map_err(diagnose)?;
        let doorbell = Handle::from(wakers.event().map_err(diagnose)?);
        let mut mailboxes = Mailboxes::default();
        let nobody = mailboxes.open();
        let mut inner = Inner {
            ring,
            slab: Slab::default(),
            mailboxes,
            timers: Timers::default(),
            wakers,
            clock: Clock::start(),
            now: Duration::ZERO,
            spin: Spin::new(options.spin),
            gather: 1,
            direct: Direct::default(),
            broken: None,
        };
        inner.begin(nobody, 0, &doorbell, Kind::Doorbell { count: 0 });
        Ok(Self(Rc::new(RefCell::new(inner))))
    }

    /// Which kernel features are in use.
    #[must_use]
    pub fn features(&self) -> Features {
        self.0.borrow().ring.features()
    }

    /// Opens a mailbox.
    #[must_use]
    pub fn source(&self) -> Source {
        self.0.borrow_mut().mailboxes.open()
    }

    /// Closes a mailbox whose owner goes away: what it holds and what still comes is dropped.
    /// Left open, it would keep [`poll`](Reactor::poll) from waiting.
    pub fn close_source(&self, source: Source) {
        self.0.borrow_mut().mailboxes.close(source);
    }

    /// Fills the whole spare capacity of `buffer` from the file, continuing short reads. The file's
    /// end before that is the error `UnexpectedEof`.
    pub fn read_at(&self, to: Source, token: u64, file: &Handle, offset: u64, buffer: BytesMut) {
        self.begin(to, token, file, Kind::Read { offset, buffer });
    }

    /// Writes the segments one after the other from `offset`, continuing short writes.
    pub fn write_at(&self, to: Source, token: u64, file: &Handle, offset: u64, segments: Vec<Bytes>) {
        self.begin(to, token, file, Kind::Write { offset, segments: Segments::new(segments) });
    }

    /// Makes a file's completed writes stable (fdatasync).
    pub fn sync_data(&self, to: Source, token: u64, file: &Handle) {
        self.begin(to, token, file, Kind::SyncData);
    }

    /// Allocates a file's space, growing it where needed (fallocate).
    pub fn allocate(&self, to: Source, token: u64, file: &Handle, offset: u64, length: u64) {
        self.begin(to, token, file, Kind::Allocate { offset, length });
    }

    /// Appends what arrives, at least one byte, to the spare capacity of `buffer`. No new bytes
    /// mean that the peer has closed.
    pub fn receive(&self, to: Source, token: u64, socket: &Handle, buffer: BytesMut) {
        self.begin(to, token, socket, Kind::Receive { buffer, whole: false });
    }

    /// As [`Reactor::receive`], but waits until the spare capacity is full: one completion where the
    /// length to come is known, instead of one for each of the pieces in which it arrives. Fewer bytes
    /// mean that the stream has ended, or that the kernel (before 5.19) gave up early.
    pub fn receive_whole(&self, to: Source, token: u64, socket: &Handle, buffer: BytesMut) {
        self.begin(to, token, socket, Kind::Receive { buffer, whole: true });
    }

    /// Sends all of the segments, continuing short sends. What the socket has room for is sent at
    /// once, mostly all of it: then there is no completion to wait for or to wake up for. Have one
    /// send in flight on a socket at a time: the kernel may mix the bytes of several.
    pub fn send(&self, to: Source, token: u64, socket: &Handle, segments: Vec<Bytes>) -> Sent {
        let mut segments = Segments::new(segments);
        self.0.borrow_mut().direct.send(socket, &mut segments);
        if segments.remaining() == 0 {
            return Sent::Whole;
        }
        self.begin(to, token, socket, Kind::Send { segments });
        Sent::UnderWay
    }

    /// Accepts one connection.
    pub fn accept(&self, to: Source, token: u64, listener: &Handle) {
        self.begin(to, token, listener, Kind::Accept);
    }

    /// Connects a socket made by [`socket`](crate::socket).
    pub fn connect(&self, to: Source, token: u64, socket: &Handle, address: &SocketAddress) {
        match RawAddress::new(address) {
            Ok(address) => self.begin(to, token, socket, Kind::Connect { address: Box::new(address) }),
            Err(error) => self.0.borrow_mut().mailboxes.put(to, token, Err(error)),
        }
    }

    /// Completes once [`now`](Reactor::now) has advanced by `after`.
    pub fn timer(&self, to: Source, token: u64, after: Duration) {
        let mut inner = self.0.borrow_mut();
        let deadline = inner.now.saturating_add(after);
        inner.timers.start(deadline, to, token);
    }

    /// Asks every operation under this token to end. Each completes, with `ECANCELED` unless it
    /// came to its end before; a transfer in parts may have moved some of them.
    pub fn cancel(&self, to: Source, token: u64) {
        self.0.borrow_mut().cancel(to, token);
    }

    /// Makes a waker whose wakes complete under `token`, with [`Output::Done`].
    #[must_use]
    pub fn waker(&self, to: Source, token: u64) -> Waker {
        self.0.borrow_mut().wakers.add(to, token)
    }

    /// One turn of the loop: submits what was started, waits as allowed if no mailbox holds a
    /// completion, and puts what has finished into the mailboxes. A signal ends the wait early.
    ///
    /// # Errors
    /// The kernel's, when it refuses the ring as such; operations' errors are in their completions.
    pub fn poll(&self, wait: Wait) -> io::Result<()> {
        self.0.borrow_mut().poll(None, wait)
    }

    /// Like [`poll`](Reactor::poll), but waits for a completion of this one source, whatever
    /// arrives for others meanwhile.
    ///
    /// # Errors
    /// As for [`poll`](Reactor::poll).
    pub fn poll_source(&self, source: Source, wait: Wait) -> io::Result<()> {
        self.0.borrow_mut().poll(Some(source), wait)
    }

    /// If the next poll sleeps, it waits for `count` completions rather than one. Only for whoever knows that
    /// so many will come by themselves and soon, and that one alone is no news: each wake-up saved is
    /// time for the others on the same cores. (A time limit would cost more than it saves: in a
    /// virtual machine every short timer is an exit to the host.)
    pub fn gather(&self, count: u32) {
        self.0.borrow_mut().gather = count;
    }

    /// Takes the next completion out of a mailbox.
    #[must_use]
    pub fn take(&self, source: Source) -> Option<Completion> {
        self.0.borrow_mut().mailboxes.take(source)
    }

    /// Time since the reactor's start, monotonic, as read once in the last turn.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.borrow().now
    }

    fn begin(&self, to: Source, token: u64, handle: &Handle, kind: Kind) {
        self.0.borrow_mut().begin(to, token, handle, kind);
    }
}

impl Inner {
    fn begin(&mut self, to: Source, token: u64, handle: &Handle, kind: Kind) {
        let mut operation = Operation { to, token, handle: handle.clone(), kind, cancelled: false };
        if let Some(outcome) = operation.trivial_outcome() {
            self.mailboxes.put(to, token, outcome);
            return;
        }
        let id = self.slab.insert(operation);
        self.submit(id);
    }

    fn submit(&mut self, id: OperationId) {
        let entry = self.slab.prepare(id);
        // SAFETY: the entry points into its slot and to the buffers that the operation there owns.
        // Slots do not move, and `settle` alone empties one, once the entry's completion is reaped
        // (or the entry withdrawn before the kernel saw it); on drop, what is in flight is leaked.
        unsafe { self.ring.push(entry) };
    }

    fn cancel(&mut self, to: Source, token: u64) {
        for _ in 0..self.timers.cancel(to, token) {
            self.mailboxes.put(to, token, Err(cancelled()));
        }
        for id in self.slab.find(to, token) {
            self.cancel_operation(id);
        }
    }

    fn cancel_operation(&mut self, id: OperationId) {
        self.slab.get_mut(id).cancelled = true;
        let entry = opcode::AsyncCancel::new(id.0).build().user_data(CANCELLATION);
        // SAFETY: a cancellation points to no memory.
        unsafe { self.ring.push(entry) };
    }

    fn poll(&mut self, source: Option<Source>, wait: Wait) -> io::Result<()> {
        let deadline = match wait {
            Wait::No => Some(Duration::ZERO),
            Wait::Forever => None,
            Wait::For(time) => Some(self.clock.read().saturating_add(time)),
        };
        let mut over = wait == Wait::No;
        // Of this poll alone: by the next one, some of them may have come without a sleep.
        let mut gather = std::mem::replace(&mut self.gather, 1);
        loop {
            let may_wait = !over && !self.mailboxes.holds(source);
            let entered = if may_wait { self.wait(deadline, gather)? } else { self.ring.submit()? };
            gather = 1;
            self.now = self.clock.read();
            self.collect();
            if let Some(error) = self.broken.take() {
                return Err(error);
            }
            over |= self.mailboxes.holds(source)
                || entered == Entered::Interrupted
                || deadline.is_some_and(|deadline| deadline <= self.now);
            if over && !self.ring.has_backlog() {
                return Ok(());
            }
        }
    }

    /// Submits, and waits for an event or the nearest of all deadlines.
    fn wait(&mut self, deadline: Option<Duration>, gather: u32) -> io::Result<Entered> {
        let nearest = [deadline, self.timers.nearest()].into_iter().flatten().min();
        if self.spin.is_enabled() {
            let start = self.clock.read();
            let entered = self.spin_then_sleep(start, nearest, gather);
            self.spin.waited(self.clock.read().saturating_sub(start));
            return entered;
        }
        self.sleep(nearest, gather)
    }

    fn spin_then_sleep(
        &mut self,
        start: Duration,
        nearest: Option<Duration>,
        gather: u32,
    ) -> io::Result<Entered> {
        let budget = self.spin.begin();
        if budget.is_zero() {
            return self.sleep(nearest, gather);
        }
        if self.ring.submit()? == Entered::Interrupted {
            return Ok(Entered::Interrupted);
        }
        let until = start.saturating_add(budget);
        let mut now = self.clock.read();
        while !self.ring.is_ready() && !self.wakers.pending() {
            if nearest.is_some_and(|nearest| nearest <= now) {
                return Ok(Entered::Returned);
            }
            std::thread::yield_now();
            let before = std::mem::replace(&mut now, self.clock.read());
            if now >= until || !self.spin.looked(now.saturating_sub(before)) {
                return self.sleep(nearest, gather);
            }
        }
        self.ring.submit()
    }

    fn sleep(&mut self, nearest: Option<Duration>, gather: u32) -> io::Result<Entered> {
        let at_most = nearest.map(|nearest| nearest.saturating_sub(self.clock.read()));
        if at_most == Some(Duration::ZERO) || !self.wakers.fall_asleep() {
            return self.ring.submit();
        }
        let entered = self.ring.submit_and_wait(gather, at_most);
        self.wakers.awake();
        entered
    }

    /// Moves everything that has happened into the mailboxes.
    fn collect(&mut self) {
        while let Some((id, result)) = self.ring.reap() {
            if id != CANCELLATION {
                self.settle(OperationId(id), result);
            }
        }
        let Self { wakers, mailboxes, timers, now, .. } = self;
        wakers.collect(|source, token| mailboxes.put(source, token, Ok(Output::Done)));
        while let Some((source, token)) = timers.expire(*now) {
            mailboxes.put(source, token, Ok(Output::Done));
        }
    }

    fn settle(&mut self, id: OperationId, result: i32) {
        match self.slab.advance(id, result) {
            Progress::Continue => self.submit(id),
            Progress::Finished(outcome) => {
                let operation = self.slab.remove(id);
                match operation.kind {
                    Kind::Doorbell { .. } => self.broken = outcome.err(),
                    _ => self.mailboxes.put(operation.to, operation.token, outcome),
                }
            }
        }
    }
}

impl Drop for Inner {
    /// The kernel must be through with all memory of ours before that is freed: cancels what is
    /// in flight and waits for it. What does not end in time (a device that hangs) is leaked.
    fn drop(&mut self) {
        let withdrawn: Vec<u64> = self.ring.withdraw_backlog().filter(|id| *id != CANCELLATION).collect();
        for id in withdrawn {
            drop(self.slab.remove(OperationId(id)));
        }
        for id in self.slab.all() {
            self.cancel_operation(id);
        }
        self.now = self.clock.read();
        let deadline = self.now + DRAIN_MAX;
        while self.slab.len() > 0 && self.now < deadline {
            if let Err(error) = self.ring.submit_and_wait(1, Some(deadline - self.now)) {
                tracing::warn!(%error, "the ring of a dropped reactor does not answer");
                break;
            }
            self.now = self.clock.read();
            self.collect();
        }
        if self.slab.len() > 0 {
            tracing::warn!(
                operations = self.slab.len(),
                "operations outlive their reactor; leaking their memory"
            );
            self.slab.leak();
        }
    }
}
