//! The loop's clock: monotonic, counted from the reactor's start.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    #[allow(
        clippy::disallowed_methods,
        reason = "the reactor is the shell whose clock is injected elsewhere"
    )]
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn read(&self) -> Duration {
        self.start.elapsed()
    }
}
