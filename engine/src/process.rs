//! An engine as a process of its own: one volume, served over NBD until told to stop.

use crate::embedded::{CloseError, FrontendMaker, OpenError, OpenOptions, Volume};
use crate::frontend::Frontend;
use crate::frontend::control_socket::ControlSocket;
use crate::frontend::nbd_server::NbdServer;
use crate::frontend::status_socket::StatusSocket;
use crate::handover::{Call, Shared};
use crate::volume::{VolumeState, VolumeStatus};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use trivet_reactor::{Reactor, SocketAddress};

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The volume. Its `patience` is ignored: a process waits for members as long as it runs.
    pub volume: OpenOptions,
    /// What the NBD export is called; as the volume without a name of its own.
    pub export_name: Option<String>,
    /// Serve NBD at this unix socket.
    pub nbd_socket: Option<PathBuf>,
    /// Serve NBD at this TCP address.
    pub nbd_address: Option<SocketAddr>,
    /// Answer the [`EngineReport`](crate::EngineReport) as JSON to whoever connects to this unix
    /// socket.
    pub status_socket: Option<PathBuf>,
    /// Take what else is wanted of the engine, such as a scrub, at this unix socket.
    pub control_socket: Option<PathBuf>,
    /// How long a stop waits for what is in flight.
    pub stop_patience: Duration,
}

/// A running engine. NBD clients may connect at once, and are served from when the volume is open.
#[derive(Debug)]
pub struct Engine {
    volume: Volume,
    stop: StopHandle,
}

/// Tells an [`Engine`] to stop, from any thread.
#[derive(Clone, Debug)]
pub struct StopHandle {
    shared: Arc<Shared>,
    patience: Duration,
}

/// Why an engine ended otherwise than by being told to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The volume cannot be opened: its record or its members are missing.
    #[error("the volume cannot be opened: {0}")]
    Failed(String),
    /// A newer engine has the volume. Starting again would take it back.
    #[error("a newer engine has opened the volume")]
    Fenced,
    /// It was told to stop, but not all that was in flight could be finished in time.
    #[error(transparent)]
    Close(CloseError),
}

impl StopHandle {
    /// Stops the engine: takes no more requests, finishes those in flight, closes the volume. Does
    /// not wait; [`Engine::wait`] returns when it is done.
    pub fn stop(&self) {
        self.shared.call(Call::Close { patience: self.patience });
    }
}

impl Engine {
    /// Starts to open the volume; its sockets listen when this returns.
    ///
    /// # Errors
    /// [`OpenError`] when a socket cannot listen, or io_uring is not to be had.
    pub fn start(options: EngineOptions) -> Result<Self, OpenError> {
        let mut makers: Vec<FrontendMaker> = Vec::new();
        let nbd = options.nbd_socket.map(SocketAddress::Unix);
        for address in nbd.into_iter().chain(options.nbd_address.map(SocketAddress::Tcp)) {
            let name = options.export_name.clone();
            makers.push(Box::new(move |reactor: &Reactor| {
                Ok(Box::new(NbdServer::listen(reactor, &address, name)?) as Box<dyn Frontend>)
            }));
        }
        if let Some(path) = options.status_socket {
            makers.push(Box::new(move |reactor: &Reactor| {
                Ok(Box::new(StatusSocket::listen(reactor, path)?) as Box<dyn Frontend>)
            }));
        }
        if let Some(path) = options.control_socket {
            makers.push(Box::new(move |reactor: &Reactor| {
                Ok(Box::new(ControlSocket::listen(reactor, path)?) as Box<dyn Frontend>)
            }));
        }
        let volume = Volume::start(options.volume, makers)?;
        let stop = StopHandle { shared: Arc::clone(volume.shared()), patience: options.stop_patience };
        Ok(Self { volume, stop })
    }

    /// A handle that stops it.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// The volume's state; `None` once it has ended.
    #[must_use]
    pub fn status(&self) -> Option<VolumeStatus> {
        self.volume.status()
    }

    /// Waits until the volume is open.
    ///
    /// # Errors
    /// [`OpenError`] when it never will be, or not within `patience`.
    pub fn wait_open(&self, patience: Option<Duration>) -> Result<(), OpenError> {
        self.volume.wait_open(patience)
    }

    /// Runs until it is told to stop, is fenced, or cannot open the volume; then everything is closed.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn wait(self) -> Result<(), EngineError> {
        let seen = self.volume.shared().wait(None, |seen| seen.state.is_over());
        let closed = self.volume.close(self.stop.patience);
        match seen.state {
            VolumeState::Failed => Err(EngineError::Failed(seen.reason.unwrap_or_default())),
            VolumeState::Fenced => Err(EngineError::Fenced),
            _ => closed.map_err(EngineError::Close),
        }
    }
}
