//! `trivet down`.

use crate::args::Place;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::say;
use crate::progress::Step;
use clap::Args;
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use trivet_api::Layout;
use trivet_manager::server::MANAGER_NAME;
use trivet_manager::supervisor::{known_processes, stop_holders};

/// Stop the local cluster; its data stays
#[derive(Args, Debug)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    place: Place,
    /// Delete the cluster's folder too: all volumes and all data
    #[arg(long)]
    delete_data: bool,
    /// Only say what would be stopped and lost
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(arguments: &DownArgs) -> Result<(), Failure> {
    let layout = arguments.place.layout()?;
    if arguments.dry_run {
        return dry_run(&layout, arguments.delete_data);
    }
    if arguments.delete_data {
        confirm(
            &format!("This deletes {} with all its volumes and data.", layout.dir().display()),
            arguments.yes,
        )?;
    }
    let stopped = stop(&layout).await?;
    if arguments.delete_data {
        delete(&layout)?;
        say(&format!("stopped {} and deleted {}", processes(stopped), layout.dir().display()));
    } else if stopped == 0 {
        say(&format!("nothing runs in {}", layout.dir().display()));
    } else {
        say(&format!("stopped {}; the data stays in {}", processes(stopped), layout.dir().display()));
    }
    Ok(())
}

/// `1 process`, `4 processes`.
pub(crate) fn processes(count: usize) -> String {
    if count == 1 { "1 process".to_owned() } else { format!("{count} processes") }
}

/// Stops what runs, in the order of dependence: the manager, lest it starts things again; then
/// the engines, which close their volumes at the replicas; then the replicas.
pub(crate) async fn stop(layout: &Layout) -> Result<usize, Failure> {
    let failed = |error: std::io::Error| explain::system("cannot stop the cluster", &layout.run(), &error);
    let mut step = Step::begin("stopping");
    let mut stopped = 0;
    for group in [MANAGER_NAME, "export-", "engine-", "replica-"] {
        let names = known_processes(&layout.run()).map_err(failed)?;
        let locks: Vec<PathBuf> =
            names.iter().filter(|name| name.starts_with(group)).map(|name| layout.lock(name)).collect();
        if step.is_shown() {
            step.tell(format!("stopping {}", group.trim_end_matches('-')));
        }
        stopped += stop_holders(&locks).await.map_err(failed)?;
    }
    Ok(stopped)
}

fn delete(layout: &Layout) -> Result<(), Failure> {
    let failed = |error: std::io::Error| explain::system("cannot delete the data", layout.dir(), &error);
    if let Some(dir) = layout.short_socket_dir().map_err(|error| explain::layout(&error))? {
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    std::fs::remove_dir_all(layout.dir()).map_err(failed)
}

fn dry_run(layout: &Layout, delete_data: bool) -> Result<(), Failure> {
    let failed = |error: std::io::Error| explain::system("cannot look at the cluster", &layout.run(), &error);
    for name in known_processes(&layout.run()).map_err(failed)? {
        let holder = trivet_manager::supervisor::run_lock::holder(&layout.lock(&name)).map_err(failed)?;
        if let Some(holder) = holder {
            say(&format!("would stop {name} (pid {})", holder.pid()));
        }
    }
    if delete_data {
        say(&format!("would delete {} with all its volumes and data", layout.dir().display()));
    }
    Ok(())
}

/// Asks on a terminal; elsewhere `--yes` is needed.
pub(crate) fn confirm(warning: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(
            "this needs to be confirmed",
            warning,
            "add --yes if you mean it; --dry-run only shows what would be lost",
        )
        .exit(Exit::Usage));
    }
    eprint!("{warning} Go on? [y/N] ");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::new("nothing was deleted", "you did not say yes", ""))
}
