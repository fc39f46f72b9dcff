//! The side thread that makes the calls which block: the authority's, and name resolution.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use trivet_model::{Authority, AuthorityError, Revision, VolumeId, VolumeRecord};
use trivet_reactor::Waker;

/// A call to make.
#[derive(Debug)]
pub(crate) enum Errand {
    /// Read the volume record.
    Read,
    /// Swap it.
    Swap { expected: Revision, record: Box<VolumeRecord> },
    /// Look a member's `host:port` up.
    Resolve { member: usize, address: String },
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Finished {
    /// As [`Authority::read`] answered.
    Read(Box<Result<(VolumeRecord, Revision), AuthorityError>>),
    /// As [`Authority::swap`] answered.
    Swapped(Result<Revision, AuthorityError>),
    /// The member's address.
    Resolved { member: usize, result: Result<SocketAddr, String> },
}

/// The thread's two ends. It ends by itself once this is dropped and the call under way returns;
/// nobody waits for it, since a manager that hangs must not keep an engine from ending.
#[derive(Debug)]
pub(crate) struct Errands {
    given: Sender<Errand>,
    finished: Receiver<Finished>,
}

impl Errands {
    /// Starts the thread; `waker` tells when something is finished.
    ///
    /// # Errors
    /// The system's, when it has no thread to give.
    pub(crate) fn start(authority: Arc<dyn Authority>, volume: VolumeId, waker: Waker) -> io::Result<Self> {
        let (given, errands) = channel::<Errand>();
        let (done, finished) = channel();
        std::thread::Builder::new().name("errands".to_owned()).spawn(move || {
            for errand in errands {
                if done.send(run(&*authority, volume, errand)).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        Ok(Self { given, finished })
    }

    pub(crate) fn give(&self, errand: Errand) {
        self.given.send(errand).expect("the errands' thread ends only when it panics");
    }

    pub(crate) fn finished(&self) -> Option<Finished> {
        self.finished.try_recv().ok()
    }
}

fn run(authority: &dyn Authority, volume: VolumeId, errand: Errand) -> Finished {
    match errand {
        Errand::Read => Finished::Read(Box::new(authority.read(volume))),
        Errand::Swap { expected, record } => Finished::Swapped(authority.swap(expected, &record)),
        Errand::Resolve { member, address } => Finished::Resolved { member, result: resolve(&address) },
    }
}

fn resolve(address: &str) -> Result<SocketAddr, String> {
    let mut found =
        address.to_socket_addrs().map_err(|error| format!("{address} cannot be looked up: {error}"))?;
    found.next().ok_or_else(|| format!("{address} has no address"))
}
