//! Waiting for conditions, with a bound. The one place that reads the clock and pauses.

use std::time::{Duration, Instant};

/// How long anything that should happen soon may take on a loaded machine with two cores.
pub const SOON: Duration = Duration::from_secs(60);

/// How long a long program (fio, nbdcopy) may run before it counts as stuck.
pub const LONG: Duration = Duration::from_secs(600);

/// The present moment.
#[allow(clippy::disallowed_methods, reason = "the harness is a shell: it watches real processes")]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Asks `condition` until it answers `Some`.
///
/// # Panics
/// When it has not within `bound`.
#[allow(clippy::disallowed_methods, reason = "polling real processes needs a pause between two looks")]
pub fn wait_for<T>(what: &str, bound: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = now() + bound;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(now() < deadline, "waited {bound:?} in vain: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Pauses until a moment.
#[allow(clippy::disallowed_methods, reason = "a slow link takes its time")]
pub fn until(moment: Instant) {
    std::thread::sleep(moment.saturating_duration_since(now()));
}
