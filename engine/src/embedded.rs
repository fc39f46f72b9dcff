//! A volume within the caller's process: the handle that opens it, submits to it and closes it.

use crate::completion_queue::CompletionQueue;
use crate::errands::Errands;
use crate::event_loop::{ERRAND_DONE, EventLoop};
use crate::frontend::Frontend;
use crate::handover::{Call, Completer, Handover, Shared};
use crate::io_future::{IoFuture, promise};
use crate::request::{IoError, IoReply, IoRequest};
use crate::volume::{CoreOptions, VolumeState, VolumeStatus};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use trivet_crypto::DataKey;
use trivet_model::{Authority, SnapshotId, SnapshotOrder, VolumeId, VolumeSettings};
use trivet_reactor::{Options, Reactor, SetupError, SocketError};

/// How to open a volume.
#[derive(Clone)]
pub struct OpenOptions {
    /// Where the volume's record lives. Called on a thread of its own.
    pub authority: Arc<dyn Authority>,
    /// Which volume.
    pub volume: VolumeId,
    /// Who opens it, for people to read in the volume record: a host and process, say.
    pub owner: String,
    /// Look without promising: no generation is claimed, writes are refused, and an engine that has
    /// the volume open is not disturbed. What is read may be taken back while there is such an
    /// engine, or when the last one crashed.
    pub read_only: bool,
    /// Look at this snapshot instead of the volume as it is; only with `read_only`.
    pub snapshot: Option<SnapshotId>,
    /// The data key of an encrypted volume. A wrong one is refused before anything is touched.
    pub key: Option<DataKey>,
    /// How long [`Volume::open`] waits for members and authority; `None` for ever.
    pub patience: Option<Duration>,
    /// The longest that the volume's thread spins for the next event before it sleeps. Lowers
    /// latency where a core is to spare; zero for none.
    pub spin: Duration,
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("volume", &self.volume)
            .field("owner", &self.owner)
            .field("read_only", &self.read_only)
            .field("snapshot", &self.snapshot)
            .field("patience", &self.patience)
            .field("spin", &self.spin)
            .finish_non_exhaustive()
    }
}

/// Why a volume could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The volume's thread could not be started.
    #[error("a thread cannot be started: {0}")]
    Thread(#[source] io::Error),
    /// io_uring is not to be had.
    #[error(transparent)]
    Reactor(#[from] SetupError),
    /// A front end cannot listen.
    #[error(transparent)]
    Listen(#[from] SocketError),
    /// The system has no random numbers.
    #[error("no random number for the session: {0}")]
    Random(#[from] getrandom::Error),
    /// It cannot be opened at all: no record, no member, no generation left.
    #[error("the volume cannot be opened: {0}")]
    Failed(String),
    /// A newer engine opened it meanwhile.
    #[error("a newer engine has opened the volume")]
    Fenced,
    /// Not within the time given; what it waits for.
    #[error("the volume is not open after {} ms: {reason}", .waited.as_millis())]
    TimedOut {
        /// The patience given.
        waited: Duration,
        /// What it waits for.
        reason: String,
    },
}

/// Why a volume could not be closed in good order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseError {
    /// Not everything could be finished and flushed in time. What was acknowledged is on every
    /// member; the next opening settles the rest.
    #[error("closed without finishing all that was in flight")]
    Unfinished,
    /// A newer engine has the volume.
    #[error("a newer engine has opened the volume")]
    Fenced,
    /// The volume's thread has ended with an error.
    #[error("the volume's thread has failed")]
    Thread,
}

/// How long a dropped [`Volume`] waits for what is in flight.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// Makes a front end on the volume's thread.
pub(crate) type FrontendMaker = Box<dyn FnOnce(&Reactor) -> Result<Box<dyn Frontend>, SocketError> + Send>;

/// An open volume, served by a thread of its own. May be shared between threads.
///
/// Requests come in three styles: with a callback ([`submit`](Self::submit)), as a future that can
/// also be waited for ([`request`](Self::request)), or through a queue with an eventfd
/// ([`queue`](Self::queue)). Buffers change owner: what is written is given as [`bytes::Bytes`] and
/// must not change until it completes, because it is checksummed once and then sent to every
/// member; a guest's memory, which a guest may change at any time, must be copied. What is read
/// comes as `Bytes` too, uncopied from the socket.
///
/// Requests that overlap are carried out in the order of their submission; others in any order. A
/// write is acknowledged when every in-sync member's device has accepted it, or where the volume is
/// write-through has it stable; a flush makes stable what was acknowledged before. Nothing fails because a member is away: it waits.
///
/// Dropping a volume closes it, waiting up to 5 seconds for what is in flight.
#[derive(Debug)]
pub struct Volume {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Volume {
    /// Opens a volume and waits until it serves.
    ///
    /// # Errors
    /// [`OpenError`]; the volume is closed again then.
    pub fn open(options: OpenOptions) -> Result<Self, OpenError> {
        let patience = options.patience;
        let volume = Self::start(options, Vec::new())?;
        volume.wait_open(patience)?;
        Ok(volume)
    }

    /// Starts to open a volume; front ends listen when this returns.
    pub(crate) fn start(options: OpenOptions, makers: Vec<FrontendMaker>) -> Result<Self, OpenError> {
        let session = getrandom::u64()?;
        let (report, started) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("volume".to_owned())
            .spawn(move || serve(options, session, makers, &report))
            .map_err(OpenError::Thread)?;
        match receive(&started) {
            Some(Ok(shared)) => Ok(Self { shared, thread: Some(thread) }),
            Some(Err(error)) => Err(error),
            None => Err(OpenError::Failed("its thread has panicked".to_owned())),
        }
    }

    /// Waits until the volume serves.
    ///
    /// # Errors
    /// [`OpenError`] when it never will, or not within `patience`.
    pub(crate) fn wait_open(&self, patience: Option<Duration>) -> Result<(), OpenError> {
        let decided = |state: VolumeState| state == VolumeState::Open || state.is_over();
        let seen = self.shared.wait(patience, |seen| decided(seen.state));
        let reason = seen.reason.unwrap_or_default();
        match seen.state {
            VolumeState::Open => Ok(()),
            VolumeState::Fenced => Err(OpenError::Fenced),
            state if state.is_over() => Err(OpenError::Failed(reason)),
            _ => Err(OpenError::TimedOut { waited: patience.unwrap_or_default(), reason }),
        }
    }

    /// Submits a request; `complete` is called on the volume's thread, and must be quick. It may
    /// submit more. Waits while more than 4096 requests have not been taken by that thread.
    pub fn submit(
        &self,
        request: IoRequest,
        complete: impl FnOnce(Result<IoReply, IoError>) + Send + 'static,
    ) {
        self.shared.call(Call::Request(request, Completer::new(complete)));
    }

    /// Submits a request as a future, which any executor can await and any thread
    /// [wait](IoFuture::wait) for.
    pub fn request(&self, request: IoRequest) -> IoFuture {
        let (completer, future) = promise();
        self.shared.call(Call::Request(request, completer));
        future
    }

    /// Makes a queue for up to `depth` requests at a time, with an eventfd.
    ///
    /// # Errors
    /// The system's, when it has no eventfd to give.
    pub fn queue(&self, depth: usize) -> io::Result<CompletionQueue> {
        CompletionQueue::new(Arc::clone(&self.shared), depth)
    }

    /// Grows the volume to `blocks` blocks of 4096 bytes, on all members and in its record. Completes
    /// with [`IoReply::Done`].
    pub fn grow(&self, blocks: u64) -> IoFuture {
        let (completer, future) = promise();
        self.shared.call(Call::Grow(blocks, completer));
        future
    }

    /// The volume's size in blocks of 4096 bytes.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.shared.seen().blocks
    }

    /// Waits until the volume has another size than `known`, by whoever grows it, or is over; at most
    /// `patience`. Answers its size then. How a consumer that has to tell a guest learns of it.
    #[must_use]
    pub fn wait_for_growth(&self, known: u64, patience: Option<Duration>) -> u64 {
        self.shared.wait(patience, |seen| seen.blocks != known || seen.state.is_over()).blocks
    }

    /// Takes or deletes a snapshot, on all members and in the record. Completes with [`IoReply::Done`];
    /// [`OpenOptions::snapshot`] reads one. One at a time; asking again for the same changes nothing.
    pub fn order_snapshot(&self, order: SnapshotOrder) -> IoFuture {
        let (completer, future) = promise();
        self.shared.call(Call::Snapshot(order, completer));
        future
    }

    /// Changes how durable acknowledged writes are, and how much I/O the volume takes, in the volume's
    /// record and here. Completes with [`IoReply::Done`] once that is in force; when writes are to be
    /// stable from now on, everything acknowledged before is stable, too, by then.
    ///
    /// What others change in the record is followed by itself within five seconds, or at once with
    /// [`Volume::follow_settings`].
    pub fn change_settings(&self, settings: VolumeSettings) -> IoFuture {
        let (completer, future) = promise();
        self.shared.call(Call::Settings(Some(settings), completer));
        future
    }

    /// Follows the settings that the record has by now. Completes as [`Volume::change_settings`] does.
    pub fn follow_settings(&self) -> IoFuture {
        let (completer, future) = promise();
        self.shared.call(Call::Settings(None, completer));
        future
    }

    /// Goes over to the data key that the volume's record names as its next one. Completes with [`IoReply::Done`]
    /// once the record says so: from then on this key opens the volume, and all that is written is encrypted under
    /// it. What was written before is encrypted anew in the background.
    pub fn rekey(&self, key: DataKey) -> IoFuture {
        let (completer, future) = promise();
        self.shared.call(Call::Rekey(key, completer));
        future
    }

    /// The volume's state; `None` once it is closed.
    #[must_use]
    pub fn status(&self) -> Option<VolumeStatus> {
        let (sender, status) = channel();
        self.shared.call(Call::Status(sender));
        status.recv().ok()
    }

    /// Takes no more requests, finishes those in flight, flushes, and closes. What cannot be finished
    /// within `patience`, because a member is away, is answered [`IoError::Closed`].
    ///
    /// # Errors
    /// [`CloseError`]; it is closed all the same.
    pub fn close(mut self, patience: Duration) -> Result<(), CloseError> {
        self.shared.call(Call::Close { patience });
        self.join()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn join(&mut self) -> Result<(), CloseError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        match thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "the volume's io_uring has failed");
                return Err(CloseError::Thread);
            }
            Err(_panic) => return Err(CloseError::Thread),
        }
        let seen = self.shared.seen();
        match seen.state {
            VolumeState::Fenced => Err(CloseError::Fenced),
            _ if !seen.clean => Err(CloseError::Unfinished),
            _ => Ok(()),
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.shared.call(Call::Close { patience: DROP_PATIENCE });
            if let Err(error) = self.join() {
                tracing::warn!(%error, "a dropped volume was not closed in good order");
            }
        }
    }
}

fn receive<T>(started: &Receiver<T>) -> Option<T> {
    started.recv().ok()
}

/// Ends the queue however the thread ends.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The volume's thread.
fn serve(
    options: OpenOptions,
    session: u64,
    makers: Vec<FrontendMaker>,
    report: &SyncSender<Result<Arc<Shared>, OpenError>>,
) -> io::Result<()> {
    let started = prepare(options, session, makers);
    let (event_loop, shared) = match started {
        Ok((event_loop, shared)) => (Ok(event_loop), Ok(shared)),
        Err(error) => (Err(()), Err(error)),
    };
    let end = shared.as_ref().ok().map(|shared| EndOnDrop(Arc::clone(shared)));
    if report.send(shared).is_err() {
        // Nobody waits for the volume any more.
        return Ok(());
    }
    let result = event_loop.map_or(Ok(()), EventLoop::run);
    drop(end);
    result
}

fn prepare(
    options: OpenOptions,
    session: u64,
    makers: Vec<FrontendMaker>,
) -> Result<(EventLoop, Arc<Shared>), OpenError> {
    let reactor = Reactor::new(Options { spin: options.spin, ..Options::default() })?;
    let calls = reactor.source();
    let shared = Arc::new(Shared::new(reactor.waker(calls, 0)));
    let handover = Handover::new(&reactor, calls, Arc::clone(&shared));
    let source = reactor.source();
    let waker = reactor.waker(source, ERRAND_DONE);
    let errands = Errands::start(options.authority, options.volume, waker).map_err(OpenError::Thread)?;
    let frontends = makers.into_iter().map(|make| make(&reactor)).collect::<Result<Vec<_>, _>>()?;
    let OpenOptions { volume, owner, read_only, snapshot, key, .. } = options;
    let core = CoreOptions { volume, owner, session, read_only, snapshot, key };
    let handover = (handover, Arc::clone(&shared));
    Ok((EventLoop::new(reactor, source, core, errands, handover, frontends), shared))
}
