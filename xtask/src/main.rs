//! The project's own tools: `cargo run --release -p trivet-xtask -- bench`.
#![forbid(unsafe_code)]

mod bench;
mod clones;
mod compare;
mod document;
mod encryption;
mod faults;
mod groups;
mod resync;
mod snapshots;

use std::process::ExitCode;

const USAGE: &str = "usage: xtask bench [options]   (make bench)
       xtask compare --before PATH [options]
       xtask faults [ROW ...]  (make faults)
       xtask resync [options]  (make resync-bench)
       xtask snapshots [options]  (make snapshot-bench)
       xtask groups [options]  (make group-bench)
       xtask clones [options]  (make clone-bench)
       xtask encryption [options]  (make encryption-bench)";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let result = match arguments.next().as_deref() {
        Some("bench") => bench::run(arguments),
        Some("compare") => compare::run(arguments),
        Some("resync") => resync::run(arguments),
        Some("snapshots") => snapshots::run(arguments),
        Some("groups") => groups::run(arguments),
        Some("clones") => clones::run(arguments),
        Some("encryption") => encryption::run(arguments),
        Some("faults") => faults::run(arguments),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
