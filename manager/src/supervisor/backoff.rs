//! How long to wait before a process that died is started again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// A process that ran this long was well: its next death counts as the first.
const WELL_AFTER: Duration = Duration::from_secs(30);

/// Counts deaths in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Backoff {
    deaths: u32,
}

impl Backoff {
    /// The pause after a death that followed `ran_for` of life: 100 ms, doubling up to 10 s.
    pub(super) fn after_death(&mut self, ran_for: Duration) -> Duration {
        if ran_for >= WELL_AFTER {
            self.deaths = 0;
        }
        let pause = FIRST.saturating_mul(1_u32.checked_shl(self.deaths).unwrap_or(u32::MAX)).min(LONGEST);
        self.deaths = self.deaths.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_a_bound_and_forgets_after_a_long_life() {
        let mut backoff = Backoff::default();
        let short = Duration::from_millis(5);
        let pauses: Vec<u128> = (0..9).map(|_| backoff.after_death(short).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        for _ in 0..100 {
            assert_eq!(backoff.after_death(short), LONGEST);
        }
        assert_eq!(backoff.after_death(WELL_AFTER), FIRST);
    }
}
