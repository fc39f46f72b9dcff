//! How fast copying may be: as fast as it goes while nobody else wants the disk; while somebody does, as
//! fast as leaves the slowest of their requests not much slower than they are without it. One for the
//! whole server: pulls, and what other servers pull from it.
//!
//! What requests take while nothing is copied is measured before a copy begins, and in short rests of it.
//! Beside copying their 99th percentile may be [`TOLERATED`] times as long: each request that takes longer
//! than that lowers the rate by a twentieth, each other raises it by a hundredth of a twentieth, so that it
//! comes to rest where one in a hundred takes longer (stochastic approximation of a quantile: Robbins and
//! Monro, 1951). No percentile of a short while has to be known, which would be mostly noise. The mean would
//! not do: copying leaves most requests alone and holds up a few for long.

use super::latencies::Latencies;
use std::time::Duration;
use trivet_model::geometry::IO_BLOCKS_MAX;

/// Where it begins, in bytes a second; and the bounds within which it moves.
const RATE_FIRST: u64 = 16 << 20;
const RATE_MIN: u64 = 8 << 20;
const RATE_MAX: u64 = 128 << 20;
/// So long after an engine's last request, nobody else wants the disk.
const QUIET: Duration = Duration::from_millis(100);
/// How often copying rests, for how long, and how long what was copied before is still felt.
const REST_EVERY: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_millis(60);
const SETTLING: Duration = Duration::from_millis(10);
/// What 99 of 100 requests may take beside copying, in hundredths of what 99 take without.
const TOLERATED: u32 = 150;
/// What one request changes of the rate, as divisors.
const SLOW_LOWERS: u64 = 20;
const OTHERS_RAISE: u64 = 100 * SLOW_LOWERS;
/// What may be copied at once after a pause, and in one piece.
const BURST_BYTES: i64 = 256 << 10;
const PIECE_BLOCKS: u32 = 32;

/// A token bucket whose rate follows what it does to others. What is taken may exceed what is there: the
/// debt is waited for.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    available: i64,
    filled_at: Duration,
    foreground_at: Option<Duration>,
    /// When something was last copied.
    taken_at: Option<Duration>,
    /// What requests take while nothing is copied.
    alone: Latencies,
    /// What they may take beside copying; looked up in `alone` when it is needed first after a change.
    tolerated: Option<Duration>,
    rest_began: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            bytes_per_second: RATE_FIRST,
            available: BURST_BYTES,
            filled_at: Duration::ZERO,
            foreground_at: None,
            taken_at: None,
            alone: Latencies::default(),
            tolerated: None,
            rest_began: Duration::ZERO,
        }
    }
}

impl Pace {
    /// An engine has asked for something.
    pub fn note_foreground(&mut self, now: Duration) {
        if !self.is_limited(now) {
            // First of all, what they take without copying.
            self.rest_began = now;
        }
        self.foreground_at = Some(now);
    }

    /// A request of an engine that began then is done.
    pub fn foreground_took(&mut self, began: Duration, now: Duration) {
        let took = now.saturating_sub(began);
        match self.taken_at {
            Some(taken) if began < taken + SETTLING => self.adjust(took),
            _ => {
                self.alone.add(took);
                self.tolerated = None;
            }
        }
    }

    /// Whether so many bytes may be copied now; then they count as copied.
    pub fn take(&mut self, now: Duration, bytes: u64) -> bool {
        let allowed = self.allows(now);
        if allowed {
            self.taken_at = Some(now);
            if self.is_limited(now) {
                self.available = self.available.saturating_sub_unsigned(bytes);
            }
        }
        allowed
    }

    /// Whether something could be taken.
    pub fn allows(&mut self, now: Duration) -> bool {
        self.fill(now);
        if !self.is_limited(now) {
            return true;
        }
        if now >= self.rest_began + REST_EVERY {
            self.rest_began = now;
        }
        now >= self.rest_began + REST && self.available > 0
    }

    /// The most blocks to copy in one go: what a server is busy with at once, others wait for.
    #[must_use]
    pub fn piece_blocks(&self, now: Duration) -> u32 {
        if self.is_limited(now) { PIECE_BLOCKS } else { IO_BLOCKS_MAX }
    }

    fn is_limited(&self, now: Duration) -> bool {
        self.foreground_at.is_some_and(|at| now.saturating_sub(at) < QUIET)
    }

    /// A request took so long beside copying.
    fn adjust(&mut self, took: Duration) {
        if self.tolerated.is_none() {
            self.tolerated = self.alone.slowest().map(|alone| alone * TOLERATED / 100);
        }
        let Some(tolerated) = self.tolerated else { return };
        let rate = self.bytes_per_second;
        let slow = took > tolerated;
        let rate = if slow { rate - rate / SLOW_LOWERS } else { rate + rate / OTHERS_RAISE };
        self.bytes_per_second = rate.clamp(RATE_MIN, RATE_MAX);
    }

    fn fill(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.filled_at).as_micros();
        let earned = elapsed * u128::from(self.bytes_per_second) / 1_000_000;
        if earned > 0 {
            self.filled_at = now;
            let earned = i64::try_from(earned).unwrap_or(i64::MAX);
            self.available = self.available.saturating_add(earned).min(BURST_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const ALONE: Duration = Duration::from_micros(200);

    /// Bytes taken in so many seconds, asked every millisecond, beside requests that take `took` of the
    /// rate last allowed.
    fn taken(pace: &mut Pace, from: u64, seconds: u64, took: impl Fn(u64) -> Duration) -> u64 {
        let (mut taken, mut recent) = (0, 0);
        for ms in 0..seconds * 1000 {
            let now = Duration::from_secs(from) + Duration::from_millis(ms);
            pace.note_foreground(now);
            if ms % 50 == 0 {
                recent = 0;
            }
            while pace.take(now, 64 << 10) {
                taken += 64 << 10;
                recent += 64 << 10;
            }
            let rate = recent * 1000 / (ms % 50 + 1);
            let took = took(rate);
            pace.foreground_took(now, now + took);
        }
        taken
    }

    fn taken_when_quiet(pace: &mut Pace, now: Duration) -> u64 {
        (0..4096).take_while(|_| pace.take(now, MIB)).count() as u64 * MIB
    }

    #[test]
    fn without_foreground_work_there_is_no_limit_and_a_quiet_time_is_not_saved_up() {
        let mut pace = Pace::default();
        assert_eq!(taken_when_quiet(&mut pace, Duration::from_secs(1)), 4096 * MIB);
        let busy = taken(&mut pace, 2, 1, |rate| if rate > 0 { ALONE * 3 } else { ALONE });
        assert!(busy < 40 * MIB, "{}", busy / MIB);
    }

    #[test]
    fn it_rises_while_nobody_feels_it() {
        let mut pace = Pace::default();
        taken(&mut pace, 1, 20, |_| ALONE);
        let fast = taken(&mut pace, 21, 2, |_| ALONE);
        assert!(fast > 2 * 110 * MIB, "{}", fast / MIB);
    }

    #[test]
    fn it_falls_to_what_is_tolerated_and_no_further_than_its_least() {
        let slowed = |from: u64| move |rate: u64| if rate > from { ALONE * 3 } else { ALONE };
        let mut pace = Pace::default();
        taken(&mut pace, 1, 10, slowed(40 * MIB));
        let rate = taken(&mut pace, 11, 10, slowed(40 * MIB)) / 10;
        assert!((20 * MIB..60 * MIB).contains(&rate), "{}", rate / MIB);
        let mut pace = Pace::default();
        taken(&mut pace, 1, 10, |rate| if rate > 0 { ALONE * 3 } else { ALONE });
        let rate = taken(&mut pace, 11, 10, |rate| if rate > 0 { ALONE * 3 } else { ALONE }) / 10;
        assert!((6 * MIB..14 * MIB).contains(&rate), "{}", rate / MIB);
    }

    #[test]
    fn more_than_one_slow_request_in_a_hundred_lowers_it_and_fewer_do_not() {
        let rate_with_one_slow_in = |every: u64| {
            let mut pace = Pace::default();
            let start = Duration::from_secs(1);
            pace.note_foreground(start);
            (0..1000).for_each(|_| pace.foreground_took(start, start + ALONE));
            assert!(pace.take(start + REST, 1));
            for request in 1..=40_000 {
                let took = if request % every == 0 { ALONE * 3 } else { ALONE };
                pace.foreground_took(start + REST, start + REST + took);
            }
            pace.bytes_per_second
        };
        assert_eq!(rate_with_one_slow_in(50), RATE_MIN);
        assert!(rate_with_one_slow_in(200) > RATE_MAX / 2);
    }

    #[test]
    fn what_is_tolerated_follows_what_requests_take_alone() {
        let mut pace = Pace::default();
        let mut rate_after = |alone: Duration, beside: Duration, from: u64| {
            let start = Duration::from_secs(from);
            pace.note_foreground(start);
            (0..8 * 4096).for_each(|_| pace.foreground_took(start, start + alone));
            assert!(pace.take(start + REST, 1));
            (0..10_000).for_each(|_| pace.foreground_took(start + REST, start + REST + beside));
            pace.bytes_per_second
        };
        assert_eq!(rate_after(ALONE, ALONE * 3, 1), RATE_MIN);
        assert_eq!(rate_after(ALONE * 3, ALONE * 3, 2), RATE_MAX);
        assert_eq!(rate_after(ALONE, ALONE * 3, 3), RATE_MIN);
    }

    #[test]
    fn a_large_piece_is_waited_for_afterwards() {
        let mut pace = Pace::default();
        let busy = |pace: &mut Pace, ms: u64| {
            let now = Duration::from_secs(1) + Duration::from_millis(ms);
            pace.note_foreground(now);
            now
        };
        let busy_from = |pace: &mut Pace, from: u64, to: u64| {
            for ms in from..to {
                busy(pace, ms);
            }
        };
        busy_from(&mut pace, 0, 100);
        let now = busy(&mut pace, 100);
        assert!(pace.take(now, 16 * MIB));
        assert!(!pace.allows(now));
        busy_from(&mut pace, 100, 1000);
        let later = busy(&mut pace, 1000);
        assert!(!pace.take(later, 1));
        busy_from(&mut pace, 1000, 1200);
        let enough = busy(&mut pace, 1200);
        assert!(pace.take(enough, 1));
    }
}
