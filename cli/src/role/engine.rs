//! `trivet engine`.

use super::stop_signal::on_stop;
use super::{announce, raise_limits, take_lock};
use crate::args::Place;
use crate::cluster::manager_address;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::logging;
use clap::Args;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use trivet_api::{Layout, ManagerAuthority};
use trivet_engine::{Engine, EngineError, EngineOptions, OpenOptions};
use trivet_manager::control::ENGINE_OWNER;
use trivet_model::SnapshotId;

/// Time for what is in flight when the engine is told to stop; shorter than the supervisor's
/// patience, so that it is never killed over a member that is away.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Serve one volume over NBD
#[derive(Args, Debug)]
pub(crate) struct EngineArgs {
    #[command(flatten)]
    place: Place,
    /// Which volume
    #[arg(long, value_name = "NAME")]
    volume: String,
    /// Listen on this loopback address beside the unix socket
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
    /// Serve it for reading only
    #[arg(long)]
    read_only: bool,
    /// Look at this snapshot of the volume (its id) instead of the volume as it is
    #[arg(long, requires = "read_only")]
    snapshot: Option<SnapshotId>,
    /// The file by which the supervisor knows this process
    #[arg(long, hide = true)]
    lock: Option<PathBuf>,
}

pub(crate) fn run(arguments: &EngineArgs) -> Result<(), Failure> {
    logging::for_roles();
    raise_limits();
    let what = format!("cannot serve volume '{}'", arguments.volume);
    if let Some(address) = arguments.listen.filter(|address| !address.ip().is_loopback()) {
        return Err(Failure::new(
            what,
            format!("{address} is not on the loopback interface"),
            "NBD here has no authentication yet: name a loopback address, such as 127.0.0.1:10809",
        )
        .exit(Exit::Usage));
    }
    let layout = arguments.place.layout()?;
    let mut lock = take_lock(&what, arguments.lock.as_deref())?;
    let engine = Engine::start(options(arguments, &layout, &what)?)
        .map_err(|error| explain::data_path(&what, &error.to_string()))?;
    let stop = engine.stop_handle();
    on_stop(move || stop.stop()).map_err(|error| explain::system(&what, Path::new("/proc/self"), &error))?;
    tracing::info!(volume = arguments.volume, "listening");
    announce(&mut lock);
    engine.wait().map_err(|error| explain_end(&what, &error))
}

fn options(arguments: &EngineArgs, layout: &Layout, what: &str) -> Result<EngineOptions, Failure> {
    let authority = ManagerAuthority::new(&manager_address(layout)?)
        .map_err(|error| explain::data_path(what, &error.to_string()))?;
    let (record, _) = authority
        .read_by_name(&arguments.volume)
        .map_err(|error| explain::api(layout.dir(), what, &error))?;
    let socket =
        |path: Result<PathBuf, trivet_api::LayoutError>| path.map_err(|error| explain::layout(&error));
    Ok(EngineOptions {
        volume: OpenOptions {
            authority: Arc::new(authority),
            volume: record.id,
            owner: format!("{ENGINE_OWNER} {}", std::process::id()),
            read_only: arguments.read_only,
            snapshot: arguments.snapshot,
            patience: None,
            // Cores are shared with replica servers here: sleep at once.
            spin: Duration::ZERO,
        },
        nbd_socket: Some(socket(layout.volume_socket(&arguments.volume))?),
        nbd_address: arguments.listen,
        status_socket: Some(socket(layout.engine_status_socket(&arguments.volume))?),
        control_socket: Some(socket(layout.engine_control_socket(&arguments.volume))?),
        stop_patience: STOP_PATIENCE,
    })
}

fn explain_end(what: &str, error: &EngineError) -> Failure {
    match error {
        EngineError::Fenced => Failure::new(
            "the engine has ended",
            error,
            "only one program may have a volume open: trivet volume show NAME says which",
        )
        .exit(Exit::Conflict),
        EngineError::Failed(cause) => explain::data_path(what, cause),
        EngineError::Close(_) => Failure::new(
            "the volume was not closed in good order",
            error,
            "nothing acknowledged is lost; the next opening settles the rest",
        ),
    }
}
