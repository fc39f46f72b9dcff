//! How long to spin before sleeping.
//!
//! A wake-up from sleep costs several microseconds on both sides; a spin that ends empty costs a
//! core. The budget therefore follows what spinning would have brought lately: it halves when a
//! spin was in vain and doubles when an event came within the limit. Spinning yields the core at
//! every look; when somebody takes it, cores are scarce, and the loop sleeps for ever more turns
//! before it tries again.

use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Spin {
    limit: Duration,
    budget: Duration,
    /// Waits to sleep through before the next spin.
    rests: u32,
    /// How many rests the next contention brings.
    rests_next: u32,
    /// Whether this wait spins, and undisturbed so far.
    spinning: bool,
}

/// The least useful budget: about what a sleep and wake-up cost the processor.
const FLOOR: Duration = Duration::from_micros(2);
/// A look takes below a microsecond, unless another thread had the core in between.
const CONTENDED: Duration = Duration::from_micros(10);
const RESTS_MIN: u32 = 16;
const RESTS_MAX: u32 = 16 * 1024;

impl Spin {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, budget: limit, rests: 0, rests_next: RESTS_MIN, spinning: false }
    }

    /// Whether to measure and adapt at all.
    pub(crate) fn is_enabled(&self) -> bool {
        !self.limit.is_zero()
    }

    /// How long to spin in this wait.
    pub(crate) fn begin(&mut self) -> Duration {
        let resting = self.rests > 0;
        self.rests = self.rests.saturating_sub(1);
        self.spinning = !resting;
        if resting { Duration::ZERO } else { self.budget }
    }

    /// Learns how long one look at the ring took; answers whether to go on.
    pub(crate) fn looked(&mut self, took: Duration) -> bool {
        if took < CONTENDED {
            return true;
        }
        self.spinning = false;
        self.rests = self.rests_next;
        self.rests_next = (self.rests_next * 2).min(RESTS_MAX);
        false
    }

    /// Learns after how long a wait, spun and slept, the next event came.
    pub(crate) fn waited(&mut self, wait: Duration) {
        if !self.spinning {
            return;
        }
        if wait <= self.limit {
            self.rests_next = (self.rests_next / 2).max(RESTS_MIN);
            self.budget = (self.budget * 2).max(FLOOR).min(self.limit);
        } else if self.budget > FLOOR {
            self.budget /= 2;
        } else {
            self.budget = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);

    #[test]
    fn the_budget_shrinks_to_nothing_when_idle_and_grows_back_under_load() {
        let mut spin = Spin::new(LIMIT);
        for _ in 0..10 {
            spin.begin();
            spin.waited(Duration::from_millis(5));
        }
        assert_eq!(spin.begin(), Duration::ZERO);
        for _ in 0..10 {
            spin.begin();
            spin.waited(Duration::from_micros(20));
        }
        assert_eq!(spin.begin(), LIMIT);
        assert!(!Spin::new(Duration::ZERO).is_enabled());
    }

    #[test]
    fn contention_brings_ever_longer_rests_and_success_shorter_ones() {
        let mut spin = Spin::new(LIMIT);
        let mut rest = || {
            assert!(!spin.looked(Duration::from_millis(3)));
            let mut rests = 0;
            while spin.begin().is_zero() {
                spin.waited(Duration::ZERO);
                rests += 1;
            }
            rests
        };
        assert_eq!([rest(), rest(), rest()], [16, 32, 64]);
        for _ in 0..20 {
            spin.begin();
            assert!(spin.looked(Duration::from_micros(1)));
            spin.waited(Duration::from_micros(5));
        }
        assert!(!spin.looked(Duration::from_millis(3)));
        assert_eq!(spin.rests, RESTS_MIN);
    }
}
