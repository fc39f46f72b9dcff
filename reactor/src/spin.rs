//! How long to spin before sleeping.
//!
//! A wake-up from sleep costs several microseconds on both sides; a spin that ends empty costs a
//! core. The budget therefore follows what spinning would have brought lately: it halves when a
//! spin was in vain and doubles when an event came within the limit.

use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Spin {
    limit: Duration,
    budget: Duration,
}

/// The least useful budget: about what a sleep and wake-up cost the processor.
const FLOOR: Duration = Duration::from_micros(2);

impl Spin {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, budget: limit }
    }

    /// Whether to measure and adapt at all.
    pub(crate) fn is_enabled(&self) -> bool {
        !self.limit.is_zero()
    }

    pub(crate) fn budget(&self) -> Duration {
        self.budget
    }

    /// Learns after how long a wait, spun and slept, the next event came.
    pub(crate) fn waited(&mut self, wait: Duration) {
        self.budget = if wait <= self.limit {
            (self.budget * 2).max(FLOOR).min(self.limit)
        } else if self.budget > FLOOR {
            self.budget / 2
        } else {
            Duration::ZERO
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_shrinks_to_nothing_when_idle_and_grows_back_under_load() {
        let limit = Duration::from_micros(50);
        let mut spin = Spin::new(limit);
        for _ in 0..10 {
            spin.waited(Duration::from_millis(5));
        }
        assert_eq!(spin.budget(), Duration::ZERO);
        for _ in 0..10 {
            spin.waited(Duration::from_micros(20));
        }
        assert_eq!(spin.budget(), limit);
        assert!(!Spin::new(Duration::ZERO).is_enabled());
    }
}
