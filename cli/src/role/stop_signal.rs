//! SIGTERM and SIGINT for processes whose main thread is busy with io_uring.

use std::io;
use tokio::signal::unix::{SignalKind, signal};

/// Calls `stop` at the first SIGTERM or SIGINT, on a thread that waits for them. SIGHUP is taken
/// and ignored: the end of a terminal session is not the end of a server.
pub(super) fn on_stop(stop: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let signals = {
        let _guard = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let (mut terminate, mut interrupt, _hangup) = signals;
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        tracing::info!("asked to stop");
        stop();
    })?;
    Ok(())
}
