//! The command line: a file per noun, one error type with cause, next step and exit code.
#![forbid(unsafe_code)]

mod args;
mod bad_reads_view;
mod bench;
mod check;
mod clock;
mod cluster;
mod completion;
mod down;
mod explain;
mod failure;
mod image;
mod keys_view;
mod logging;
mod nbd;
mod output;
mod progress;
mod replica;
mod revert_view;
mod role;
mod scrub_view;
mod settings_view;
mod snapshot;
mod snapshot_view;
mod status;
mod up;
mod view;
mod volume;

use args::{Cli, Command};
use clap::Parser;
use failure::{Exit, Failure};
use std::process::ExitCode;

/// Runs the command that the process was started with.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    // The roles have runtimes of their own, or none.
    match cli.command {
        Command::Manager(arguments) => return role::manager::run(&arguments),
        Command::Replica(replica::ReplicaArgs { command: None, server: Some(server) }) => {
            return role::replica::run(&server);
        }
        Command::Engine(arguments) => return role::engine::run(&arguments),
        Command::Completion(arguments) => return completion::run(&arguments),
        Command::Check(arguments) => return check::run(&arguments),
        Command::Confine(arguments) => return image::confine::run(&arguments),
        _ => {}
    }
    logging::for_commands();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        Failure::new("cannot start", error, "free some file handles or threads (ulimit -a)")
            .exit(Exit::Machine)
    })?;
    runtime.block_on(async {
        match cli.command {
            Command::Up(arguments) => up::run(&arguments).await,
            Command::Down(arguments) => down::run(&arguments).await,
            Command::Status(arguments) => status::run(&arguments).await,
            Command::Volume(arguments) => volume::run(&arguments).await,
            Command::Snapshot(arguments) => snapshot::run(&arguments).await,
            Command::Replica(replica::ReplicaArgs { command: Some(command), .. }) => {
                replica::run(&command).await
            }
            Command::Import(arguments) => image::import(&arguments).await,
            Command::Export(arguments) => image::export(&arguments).await,
            Command::Bench(arguments) => bench::run(&arguments).await,
            _ => unreachable!("dispatched above"),
        }
    })
}
