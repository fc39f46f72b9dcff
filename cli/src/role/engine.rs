//! `trivet engine`.

use super::key_socket::await_key;
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
use trivet_api::layout::export_name;
use trivet_api::{Layout, ManagerAuthority};
use trivet_engine::{Engine, EngineError, EngineOptions, OpenOptions};
use trivet_manager::control::ENGINE_OWNER;
use trivet_model::{SnapshotId, SnapshotRecord};

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
    /// Serve this snapshot of the volume (its id), for reading, at sockets of its own
    #[arg(long, value_name = "ID")]
    snapshot: Option<SnapshotId>,
    /// Serve nobody: only do what comes before the volume may be used
    #[arg(long, hide = true, conflicts_with_all = ["listen", "read_only", "snapshot"])]
    no_front_end: bool,
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
    let viewed = match arguments.snapshot {
        None => None,
        Some(id) => Some(record.snapshots.iter().find(|known| known.id == id).ok_or_else(|| {
            Failure::new(what, format!("it has no snapshot {id}"), "see what there is: trivet snapshot list")
                .exit(Exit::NotFound)
        })?),
    };
    let sockets = sockets(layout, &arguments.volume, viewed).map_err(|error| explain::layout(&error))?;
    let key = match record.key {
        None => None,
        Some(expected) => {
            let path = &sockets.key;
            Some(await_key(path, expected).map_err(|error| explain::system(what, path, &error))?)
        }
    };
    Ok(EngineOptions {
        volume: OpenOptions {
            authority: Arc::new(authority),
            volume: record.id,
            owner: format!("{ENGINE_OWNER} {}", std::process::id()),
            read_only: arguments.read_only || arguments.snapshot.is_some(),
            snapshot: arguments.snapshot,
            key,
            patience: None,
            // Cores are shared with replica servers here: sleep at once.
            spin: Duration::ZERO,
        },
        export_name: viewed.map(|viewed| format!("{}@{}", arguments.volume, viewed.name)),
        nbd_socket: Some(sockets.nbd).filter(|_| !arguments.no_front_end),
        nbd_address: arguments.listen,
        status_socket: Some(sockets.status),
        control_socket: sockets.control,
        stop_patience: STOP_PATIENCE,
    })
}

struct Sockets {
    nbd: PathBuf,
    status: PathBuf,
    control: Option<PathBuf>,
    /// Where the key of an encrypted volume is awaited.
    key: PathBuf,
}

/// A snapshot's are beside its volume's; nothing can be ordered of who only looks.
fn sockets(
    layout: &Layout,
    volume: &str,
    viewed: Option<&SnapshotRecord>,
) -> Result<Sockets, trivet_api::LayoutError> {
    let Some(viewed) = viewed else {
        return Ok(Sockets {
            nbd: layout.volume_socket(volume)?,
            status: layout.engine_status_socket(volume)?,
            control: Some(layout.engine_control_socket(volume)?),
            key: layout.engine_key_socket(volume)?,
        });
    };
    let export = export_name(volume, &viewed.name, viewed.id);
    Ok(Sockets {
        nbd: layout.export_socket(&export)?,
        status: layout.export_status_socket(&export)?,
        control: None,
        key: layout.export_key_socket(&export)?,
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
