//! The `trivet` binary.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    trivet_cli::run()
}
