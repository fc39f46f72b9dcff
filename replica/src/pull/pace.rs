//! How fast copying may be: as fast as it goes while nobody else wants the disk; while somebody does, as
//! fast as leaves the slowest of their requests about as quick as they are without it. One for the whole
//! server: pulls, and what other servers pull from it.
//!
//! What requests take while nothing is copied is measured before a copy begins, and in short rests of it.
//! Beside copying their 99th percentile may be [`TOLERATED`] times as long; the rate falls by a quarter
//! in every window in which it was longer, and rises by a tenth in every other (AIMD, as TCP's congestion
//! control, but by ratios both ways: disks differ by orders of magnitude). The mean would not do: copying
//! leaves most requests alone and holds up a few for long.

use super::latencies::Latencies;
use std::time::Duration;
use trivet_model::geometry::IO_BLOCKS_MAX;

/// Where it begins, in bytes a second; and the bounds within which it moves.
const RATE_FIRST: u64 = 16 << 20;
const RATE_MIN: u64 = 8 << 20;
const RATE_MAX: u64 = 128 << 20;
/// So long after an engine's last request, nobody else wants the disk.
const QUIET: Duration = Duration::from_millis(100);
/// How long requests are watched before the rate is set anew.
const WINDOW: Duration = Duration::from_millis(250);
/// How often copying rests, for how long, and how long what was copied before is still felt.
const REST_EVERY: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_millis(60);
const SETTLING: Duration = Duration::from_millis(10);
/// What the slowest requests may take beside copying, in hundredths of what they take without.
const TOLERATED: u32 = 115;
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
    /// What requests take while nothing is copied, and beside copying.
    alone: Latencies,
    beside: Latencies,
    window_began: Duration,
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
            beside: Latencies::default(),
            window_began: Duration::ZERO,
            rest_began: Duration::ZERO,
        }
    }
}

impl Pace {
    /// An engine has asked for something.
    pub fn note_foreground(&mut self, now: Duration) {
        if !self.is_limited(now) {
            // First of all, what they take without copying.
            (self.rest_began, self.window_began) = (now, now);
            self.beside = Latencies::default();
        }
        self.foreground_at = Some(now);
    }

    /// A request of an engine that began then is done.
    pub fn foreground_took(&mut self, began: Duration, now: Duration) {
        let took = now.saturating_sub(began);
        match self.taken_at {
            Some(taken) if began < taken + SETTLING => self.beside.add(took),
            _ => self.alone.add(took),
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
        self.adjust(now);
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

    fn adjust(&mut self, now: Duration) {
        if now >= self.window_began + WINDOW {
            self.window_began = now;
            if let (Some(alone), Some(beside)) = (self.alone.slowest(), self.beside.slowest()) {
                let rate = self.bytes_per_second;
                let slower = beside * 100 > alone * TOLERATED;
                let rate = if slower { rate - rate / 4 } else { rate + rate / 10 };
                self.bytes_per_second = rate.clamp(RATE_MIN, RATE_MAX);
                self.beside.fade();
            }
        }
        if now >= self.rest_began + REST_EVERY {
            self.rest_began = now;
        }
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
