//! `trivet completion`.

use crate::args::Cli;
use crate::failure::Failure;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Print completions for a shell
#[derive(Args, Debug)]
#[command(
    after_help = "Example, for bash:\n  trivet completion bash > ~/.local/share/bash-completion/completions/trivet"
)]
pub(crate) struct CompletionArgs {
    /// Which shell
    shell: Shell,
}

pub(crate) fn run(arguments: &CompletionArgs) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "trivet", &mut text);
    crate::output::say(String::from_utf8_lossy(&text).trim_end());
    Ok(())
}
