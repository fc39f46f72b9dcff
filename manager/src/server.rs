//! The manager's process: its lock, its store, its sockets.

use crate::control::{Control, Refusal};
use crate::service::ManagerService;
use crate::store::{RocksStore, StoreError};
use crate::supervisor::Supervisor;
use crate::supervisor::run_lock::{RunLock, RunLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;
use trivet_api::v1::manager_server::ManagerServer;
use trivet_api::{Layout, LayoutError, v1};

/// The manager's name among its cluster's processes.
pub const MANAGER_NAME: &str = "manager";

/// Time for calls under way to finish when the manager stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// How to run a manager.
#[derive(Clone, Debug)]
pub struct ManagerOptions {
    /// The cluster.
    pub layout: Layout,
    /// The program that it starts its processes from.
    pub program: PathBuf,
    /// A TCP listener beside the unix socket; on the loopback interface only.
    pub listen: Option<SocketAddr>,
    /// How long a stale member's server may be away before the member is replaced; recorded. `None`: as the
    /// record says.
    pub replace_after: Option<Duration>,
}

/// Why the manager cannot run, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A manager runs already, or the lock cannot be had.
    #[error(transparent)]
    Lock(#[from] RunLockError),
    /// The cluster's folder.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The records are there, but do not make sense.
    #[error(transparent)]
    Control(#[from] Refusal),
    /// The address is for others too, and the protocol has no authentication yet.
    #[error("{0} is not on the loopback interface")]
    NotLoopback(SocketAddr),
    /// A listener.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// Where.
        address: String,
        /// The system's words.
        cause: io::Error,
    },
    /// The gRPC server.
    #[error("the control plane's server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Runs a manager until `stop` completes; then ends, and leaves replica servers and engines
/// running. `ready` is called once it answers.
///
/// # Errors
/// [`ServerError`].
pub async fn run(
    options: ManagerOptions,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(),
) -> Result<(), ServerError> {
    let layout = options.layout;
    let mut lock = RunLock::acquire(&layout.lock(MANAGER_NAME))?;
    let store = Arc::new(RocksStore::open(&layout.records())?);
    let supervisor = Supervisor::spawn();
    let control = Control::new(store.clone(), layout.clone(), options.program, supervisor.clone());
    // Before the first answer, so that no client meets a cluster half read.
    let (control, owner) = control.spawn().await?;
    if let Some(replace_after) = options.replace_after {
        let replace_after_seconds = Some(replace_after.as_secs());
        control.set_cluster(v1::SetClusterRequest { replace_after_seconds }).await?;
    }
    let socket = layout.manager_socket()?;
    let unix = listen_unix(&socket)?;
    let tcp = match options.listen {
        Some(address) => Some(listen_tcp(address).await?),
        None => None,
    };
    let service = ManagerServer::new(ManagerService::new(store, layout, control, supervisor));
    let announced = lock.announce_ready();
    announced.map_err(|cause| ServerError::Listen { address: socket.display().to_string(), cause })?;
    tracing::info!(socket = %socket.display(), "the manager answers");
    ready();
    serve(service, unix, tcp, stop).await?;
    // The owner ends with the last handle, after the change it is at: the lock and the store are
    // given back only then.
    if tokio::time::timeout(FAREWELL, owner).await.is_err() {
        tracing::warn!("a change is cut off; the records say how to go on");
    }
    // Under the lock still: the socket is this process's.
    if let Err(error) = std::fs::remove_file(&socket) {
        tracing::debug!(%error, "the socket stays");
    }
    drop(lock);
    Ok(())
}

/// Serves until `stop` completes; then says goodbye to the clients, lets calls under way finish
/// for a moment, and ends.
async fn serve(
    service: ManagerServer<ManagerService>,
    unix: UnixListener,
    tcp: Option<TcpListener>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    let (stopping, stopped) = watch::channel(false);
    let until_stop = |mut stopped: watch::Receiver<bool>| async move {
        if stopped.wait_for(|&stop| stop).await.is_err() {
            tracing::debug!("the server has ended");
        }
    };
    let over_unix = Server::builder()
        .add_service(service.clone())
        .serve_with_incoming_shutdown(UnixListenerStream::new(unix), until_stop(stopped.clone()));
    let over_tcp = async {
        let Some(listener) = tcp else { return Ok(()) };
        Server::builder()
            .add_service(service.clone())
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), until_stop(stopped.clone()))
            .await
    };
    let serving = async { tokio::try_join!(over_unix, over_tcp).map(|((), ())| ()) };
    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => return Ok(result?),
        () = stop => tracing::info!("stopping; replica servers and engines go on"),
    }
    stopping.send_replace(true);
    match tokio::time::timeout(FAREWELL, serving).await {
        Ok(result) => Ok(result?),
        Err(_elapsed) => Ok(()),
    }
}

/// Listens on a socket for its owner only. The lock has shown that what lies there is a dead
/// process's.
fn listen_unix(path: &Path) -> Result<UnixListener, ServerError> {
    let failed = |cause| ServerError::Listen { address: path.display().to_string(), cause };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Its folder is private to the owner, so nobody connects before the mode is set.
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

async fn listen_tcp(address: SocketAddr) -> Result<TcpListener, ServerError> {
    if !address.ip().is_loopback() {
        return Err(ServerError::NotLoopback(address));
    }
    let bound = TcpListener::bind(address).await;
    bound.map_err(|cause| ServerError::Listen { address: address.to_string(), cause })
}
