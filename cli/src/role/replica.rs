//! `trivet replica`.

use super::stop_signal::on_stop;
use super::{announce, raise_limits, take_lock};
use crate::args::byte_size;
use crate::explain;
use crate::failure::Failure;
use crate::logging;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use trivet_replica::pool::PoolOptions;
use trivet_replica::server::{self, ServerOptions, StopHandle};

/// How to serve a pool.
#[derive(Args, Debug)]
#[group(multiple = true)]
pub(crate) struct ServerArgs {
    /// The pool's folder; an empty one becomes a new pool
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Where engines and the manager reach it; port 0 picks one
    #[arg(long, value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// Space that a new pool may take [default: the file system's]
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    capacity: Option<u64>,
    /// Memory for the map; 64 MiB for each TiB in use is enough to work
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = byte_size)]
    map_budget: u64,
    /// The file by which the supervisor knows this process
    #[arg(long, hide = true)]
    lock: Option<PathBuf>,
}

pub(crate) fn run(arguments: &ServerArgs) -> Result<(), Failure> {
    logging::for_roles();
    raise_limits();
    let what = format!("cannot serve the pool in {}", arguments.dir.display());
    let mut lock = take_lock(&what, arguments.lock.as_deref())?;
    let options = ServerOptions {
        directory: arguments.dir.clone(),
        listen: arguments.listen,
        pool: PoolOptions {
            map_budget_bytes: usize::try_from(arguments.map_budget).unwrap_or(usize::MAX),
            capacity_bytes: arguments.capacity,
        },
    };
    let stop = StopHandle::new();
    let stopper = stop.clone();
    on_stop(move || stopper.stop()).map_err(|error| explain::system(&what, &arguments.dir, &error))?;
    server::run(&options, &stop, |address| {
        if lock.is_none() {
            eprintln!("serving {} on {address}; Ctrl-C stops it", options.directory.display());
        }
        announce(&mut lock);
    })
    .map_err(|error| explain::data_path(&what, &error.to_string()))
}
