//! The harness of the end-to-end tests: real `trivet` processes, a block checker that outlives
//! them, and clients written apart from the product's own, so that a mistake in one is not made
//! twice. The suites are in `tests/`, one file a behaviour; `docs/testing.md` says what each covers.
//!
//! The harness panics where something is wrong: its callers are tests.
#![forbid(unsafe_code)]

pub mod bad_disk;
pub mod blockdev;
pub mod checker;
pub mod cluster;
pub mod command;
pub mod control_group;
pub mod encrypted;
pub mod fills;
pub mod gates;
pub mod hosts;
mod launcher;
pub mod loaded;
pub mod namespaces;
pub mod nbd;
pub mod patience;
pub mod pool;
pub mod process;
pub mod proxy;
pub mod random;
pub mod replica;
pub mod scratch;
pub mod slow_source;
pub mod web;

pub use checker::Checker;
pub use cluster::{Cluster, Setup};
pub use loaded::Loaded;
pub use nbd::NbdClient;
pub use process::Role;
pub use random::Random;
pub use scratch::Scratch;
pub use slow_source::SlowSource;

/// Says that a test did not run and why. For what a machine may rightly lack (root, `/dev/fuse`, a
/// Debian package), never for what the product lacks.
pub fn not_run(why: &str) {
    eprintln!("DID NOT RUN: {why}");
}

/// Ends the test early, saying that it did not run and why; see [`not_run`].
#[macro_export]
macro_rules! did_not_run {
    ($($why:tt)*) => {{
        $crate::not_run(&format!($($why)*));
        return;
    }};
}

/// Ends the test early unless all these programs are installed.
#[macro_export]
macro_rules! needs_programs {
    ($($program:literal),+ $(,)?) => {
        for program in [$($program),+] {
            if !$crate::command::is_installed(program) {
                $crate::did_not_run!("{program} is not installed (make deps)");
            }
        }
    };
}
