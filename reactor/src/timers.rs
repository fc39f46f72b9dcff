//! Timers. They live here, not in the ring: the nearest deadline bounds the wait, so that a timer
//! costs no submission, no completion and no kernel timer of its own.

use crate::Source;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// Keyed by deadline; the counter keeps timers of one deadline in the order of their start.
    armed: BTreeMap<(Duration, u64), (Source, u64)>,
    started: u64,
}

impl Timers {
    pub(crate) fn start(&mut self, deadline: Duration, to: Source, token: u64) {
        self.armed.insert((deadline, self.started), (to, token));
        self.started += 1;
    }

    pub(crate) fn nearest(&self) -> Option<Duration> {
        self.armed.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// The next timer whose deadline has been reached.
    pub(crate) fn expire(&mut self, now: Duration) -> Option<(Source, u64)> {
        let entry = self.armed.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// Removes the timers of this token; answers how many there were.
    pub(crate) fn cancel(&mut self, to: Source, token: u64) -> usize {
        let before = self.armed.len();
        self.armed.retain(|_, timer| *timer != (to, token));
        before - self.armed.len()
    }
}
