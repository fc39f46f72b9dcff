//! The shell of a replica server: one io_uring thread for sockets and the pool's file, two
//! threads for the map's key-value store, one for names to be looked up, one to note failures of the
//! device. All decisions are the sessions', the store's and the pulls'.

mod background;
mod copying;
mod event_loop;
mod flattening;
mod lock;
mod options;
mod peer;
mod source_link;
mod stop;

pub use lock::{DirectoryLock, LockError};
pub use options::{ServerError, ServerOptions};
pub use stop::StopHandle;

use crate::pool::{self, PoolError};
use crate::session::Identity;
use crate::store::OpenReport;
use background::Background;
use event_loop::{EventLoop, Parts, token};
use std::net::SocketAddr;
use trivet_reactor::{Options, Reactor, SocketAddress, listen, listen_shortcut, local_address};

/// Opens the pool, or makes it, and serves it on this thread until `stop` is used. `ready` is told
/// the address once connections are accepted.
///
/// # Errors
/// [`ServerError`] with the cause and, where there is one, the next step.
pub fn run(
    options: &ServerOptions,
    stop: &StopHandle,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServerError> {
    let lock = DirectoryLock::take(&options.directory)?;
    let reactor = Reactor::new(Options::default())?;
    // Before the pool: recovery takes time, and an occupied port should be known at once.
    let listener = listen(&SocketAddress::Tcp(options.listen))?;
    let address = match local_address(&listener).map_err(ServerError::Address)? {
        SocketAddress::Tcp(address) => address,
        SocketAddress::Unix(_) => options.listen,
    };
    let shortcut = listen_shortcut(address)
        .inspect_err(
            |error| tracing::warn!(%error, "processes of this host must connect through the network stack"),
        )
        .ok();
    let opened = match pool::open_or_create(&reactor, &options.directory, &options.pool) {
        Err(error @ PoolError::NotAPool { .. }) => {
            lock.withdraw()?;
            return Err(error.into());
        }
        other => other?,
    };
    log_recovery(&opened.report);
    let source = reactor.source();
    let waker = reactor.waker(source, token::BACKGROUND);
    let background =
        Background::start(&opened.meta, &options.directory, &waker).map_err(ServerError::Thread)?;
    stop.attach(reactor.waker(source, token::STOP));
    let event_loop = EventLoop::new(Parts {
        reactor,
        source,
        listener,
        shortcut,
        store: opened.store,
        disk: opened.disk,
        background,
        identity: Identity { pool: opened.report.pool, boot: opened.report.boot },
    });
    tracing::info!(%address, pool = %opened.report.pool, "serving");
    ready(address);
    event_loop.run()
}

fn log_recovery(report: &OpenReport) {
    let OpenReport { replayed_blocks, dropped_blocks, host_restarted, device_failed, .. } = report;
    if *replayed_blocks > 0 || *host_restarted || *device_failed {
        tracing::info!(
            replayed_blocks,
            dropped_blocks,
            host_restarted,
            device_failed,
            "the pool was recovered"
        );
    }
    if let Some(damage) = &report.superblock_repaired {
        tracing::warn!(damage, "a copy of the superblock was repaired");
    }
}
