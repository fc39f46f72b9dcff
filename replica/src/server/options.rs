//! How a server is started, and why it is not.

use super::lock::LockError;
use crate::pool::PoolError;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use trivet_reactor::{SetupError, SocketError};

/// How to run a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The pool's directory; a pool is made in it if there is none.
    pub directory: PathBuf,
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// How the pool is opened, or made.
    pub pool: crate::pool::PoolOptions,
}

/// Why a server did not start, or ended other than by being asked.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The directory is in use, or cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// io_uring is not to be had.
    #[error(transparent)]
    Reactor(#[from] SetupError),
    /// The pool does not open.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The address cannot be listened at.
    #[error(transparent)]
    Listen(#[from] SocketError),
    /// The kernel does not say which port it chose.
    #[error("the listening socket's address cannot be read: {0}")]
    Address(io::Error),
    /// No thread for the map's store.
    #[error("a background thread could not be started: {0}")]
    Thread(io::Error),
    /// The device failed a write or flush, and works again: the pool must be opened anew.
    #[error("the pool has stopped: {0}; its device takes writes again: start the server once more")]
    PoolStopped(String),
    /// The ring itself failed.
    #[error("the event loop failed: {0}")]
    Loop(io::Error),
}
