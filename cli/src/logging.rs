//! Where logs go and what of them.

use tracing_subscriber::EnvFilter;

/// Commands say what they have to say themselves: only errors, unless asked for more.
pub(crate) fn for_commands() {
    init("error");
}

/// Roles log their lives.
pub(crate) fn for_roles() {
    init("info");
}

fn init(default: &str) {
    let filter = std::env::var("TRIVET_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
}
