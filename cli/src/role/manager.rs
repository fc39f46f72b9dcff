//! `trivet manager`.

use super::{lock_failure, raise_limits};
use crate::args::Place;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::logging;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use trivet_api::Layout;
use trivet_manager::{ManagerOptions, ServerError, server};

/// Keep the records and watch the other processes
#[derive(Args, Debug)]
pub(crate) struct ManagerArgs {
    #[command(flatten)]
    place: Place,
    /// Answer on this loopback address too
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
    /// Seconds until the copy on a replica server that does not answer is replaced by one on another; it
    /// is remembered [default: as before; in a new cluster 600]
    #[arg(long, value_name = "SECONDS")]
    replace_after: Option<u64>,
    /// Start the other processes with this program, which is given their arguments: a script, say, that
    /// puts each into a network namespace or control group of its own and becomes `trivet`
    #[arg(long, value_name = "PROGRAM", env = "TRIVET_LAUNCHER", hide = true)]
    launcher: Option<PathBuf>,
}

pub(crate) fn run(arguments: &ManagerArgs) -> Result<(), Failure> {
    logging::for_roles();
    raise_limits();
    let failed =
        |error| explain::system("cannot run the manager", std::path::Path::new("/proc/self"), &error);
    let layout = Layout::create(&arguments.place.dir()?).map_err(|error| explain::layout(&error))?;
    let program = match &arguments.launcher {
        Some(launcher) => launcher.clone(),
        None => std::env::current_exe().map_err(failed)?,
    };
    let replace_after = arguments.replace_after.map(Duration::from_secs);
    let options = ManagerOptions { layout, program, listen: arguments.listen, replace_after };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        // Taken and ignored: the end of a terminal session is not the manager's.
        let _hangup = signal(SignalKind::hangup()).map_err(failed)?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        server::run(options, stop, || ()).await.map_err(|error| explain_server(&error))
    })
}

fn explain_server(error: &ServerError) -> Failure {
    let what = "cannot run the manager";
    match error {
        ServerError::Lock(error) => lock_failure(what, error),
        ServerError::Layout(error) => explain::layout(error),
        ServerError::Listen { address, cause } => explain::system(what, std::path::Path::new(address), cause),
        ServerError::NotLoopback(_) => Failure::new(
            what,
            error,
            "the control plane has no authentication yet: name a loopback address, such as 127.0.0.1:7400",
        )
        .exit(Exit::Usage),
        ServerError::Store(_) | ServerError::Control(_) | ServerError::Serve(_) => {
            explain::data_path(what, &error.to_string())
        }
    }
}
