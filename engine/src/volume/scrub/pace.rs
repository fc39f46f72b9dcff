//! How fast a scrub may read: at most so many bytes a second, and a share of that while consumers want
//! the disks.
//!
//! The share is halved after each window during which consumers had much in flight or members took longer
//! than before, and grows back step by step. It never becomes nothing, so that a scrub of a busy volume
//! ends all the same.

use std::time::Duration;

/// The whole, in parts.
const SHARE_WHOLE: u32 = 16;
/// What may be read at once after a pause.
const BURST: Duration = Duration::from_millis(100);
const BURST_BYTES_MIN: i64 = 1 << 20;
/// How many times its least latency a member may take before it counts as strained,
const STRAIN_FACTOR: u32 = 2;
/// if it is also this much above that.
const STRAIN_ABOVE: Duration = Duration::from_millis(1);
/// The least latency that is remembered grows by one part in so many with each window: what was usual
/// an hour ago need not be today.
const FORGET: u32 = 256;

/// A token bucket that is paid afterwards: what is taken may exceed what is there.
#[derive(Debug)]
pub(in crate::volume) struct Pace {
    bytes_per_second: u64,
    share: u32,
    available: i64,
    filled_at: Duration,
    least: Duration,
}

impl Pace {
    pub(in crate::volume) const fn new(now: Duration, bytes_per_second: u64) -> Self {
        let least = Duration::ZERO;
        Self { bytes_per_second, share: SHARE_WHOLE, available: 0, filled_at: now, least }
    }

    pub(in crate::volume) const fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second
    }

    pub(in crate::volume) const fn set_rate(&mut self, bytes_per_second: u64) {
        self.bytes_per_second = bytes_per_second;
    }

    /// How long until the next window may begin.
    pub(in crate::volume) fn wait(&self, now: Duration) -> Duration {
        let debt = u64::try_from(-self.available_at(now)).unwrap_or(0);
        Duration::from_nanos(debt.saturating_mul(1_000_000_000) / self.rate())
    }

    /// A window was read: so many bytes, while consumers had much in flight or not, and members took
    /// `latency` to answer them.
    pub(in crate::volume) fn read(&mut self, now: Duration, bytes: u64, busy: bool, latency: Duration) {
        self.available = self.available_at(now).saturating_sub_unsigned(bytes);
        self.filled_at = now;
        let strained = self.is_strained(latency);
        self.share =
            if busy || strained { (self.share / 2).max(1) } else { (self.share + 1).min(SHARE_WHOLE) };
    }

    fn is_strained(&mut self, latency: Duration) -> bool {
        if latency.is_zero() {
            return false;
        }
        let least = if self.least.is_zero() { latency } else { self.least + self.least / FORGET };
        self.least = least.min(latency);
        latency > self.least * STRAIN_FACTOR && latency > self.least + STRAIN_ABOVE
    }

    fn rate(&self) -> u64 {
        (self.bytes_per_second / u64::from(SHARE_WHOLE) * u64::from(self.share)).max(1)
    }

    fn available_at(&self, now: Duration) -> i64 {
        let earned = |elapsed: Duration| {
            let bytes = elapsed.as_nanos() * u128::from(self.rate()) / 1_000_000_000;
            i64::try_from(bytes).unwrap_or(i64::MAX)
        };
        let burst = earned(BURST).max(BURST_BYTES_MIN);
        self.available.saturating_add(earned(now.saturating_sub(self.filled_at))).min(burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SECONDS: u64 = 10;

    /// Bytes read from `from` on for ten seconds, a MiB at a time.
    fn read(pace: &mut Pace, from: Duration, busy: bool, latency: Duration) -> u64 {
        let mut now = from;
        let mut bytes = 0;
        while now < from + Duration::from_secs(SECONDS) {
            let wait = pace.wait(now);
            if wait.is_zero() {
                bytes += MIB;
                pace.read(now, MIB, busy, latency);
            }
            now += wait.max(Duration::from_micros(10));
        }
        bytes
    }

    #[test]
    fn bounded_always_and_less_beside_much_other_work() {
        let mut pace = Pace::new(Duration::ZERO, 32 * MIB);
        let quiet = read(&mut pace, Duration::ZERO, false, Duration::ZERO);
        assert!((318 * MIB..=330 * MIB).contains(&quiet), "{quiet}");
        let busy = read(&mut pace, Duration::from_secs(10), true, Duration::ZERO);
        assert!((18 * MIB..40 * MIB).contains(&busy), "a sixteenth, once it has noticed: {busy}");
        let again = read(&mut pace, Duration::from_secs(30), false, Duration::ZERO);
        assert!((280 * MIB..330 * MIB).contains(&again), "{again}");
    }

    #[test]
    fn a_rising_latency_slows_it_and_a_high_one_alone_does_not() {
        let mut pace = Pace::new(Duration::ZERO, 32 * MIB);
        let usual = read(&mut pace, Duration::ZERO, false, Duration::from_millis(20));
        assert!(usual > 318 * MIB, "a slow disk is not a strained one: {usual}");
        let risen = read(&mut pace, Duration::from_secs(10), false, Duration::from_millis(50));
        assert!(risen < 60 * MIB, "{risen}");
    }
}
