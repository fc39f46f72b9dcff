//! How fast copying may be: as fast as it goes while nobody else wants the disk, at a bounded rate
//! while somebody does. One for the whole server: pulls, and what other servers pull from it.

use std::time::Duration;

/// While the server is busy with its engines' requests: bytes a second.
pub const PACE_DEFAULT_BYTES: u64 = 64 << 20;
/// So long after an engine's last request, nobody else wants the disk.
const QUIET: Duration = Duration::from_millis(100);
/// What may be copied at once after a pause.
const BURST_BYTES: i64 = 1 << 20;

/// A token bucket. What is taken may exceed what is there: the debt is waited for.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    available: i64,
    filled_at: Duration,
    foreground_at: Option<Duration>,
}

impl Pace {
    /// A pace of so many bytes a second while there is foreground work.
    #[must_use]
    pub const fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, available: BURST_BYTES, filled_at: Duration::ZERO, foreground_at: None }
    }

    /// An engine has asked for something.
    pub const fn note_foreground(&mut self, now: Duration) {
        self.foreground_at = Some(now);
    }

    /// Whether so many bytes may be copied now; then they count as copied.
    pub fn take(&mut self, now: Duration, bytes: u64) -> bool {
        self.fill(now);
        if !self.is_limited(now) {
            return true;
        }
        if self.available <= 0 {
            return false;
        }
        self.available = self.available.saturating_sub_unsigned(bytes);
        true
    }

    /// Whether something could be taken.
    pub fn allows(&mut self, now: Duration) -> bool {
        self.fill(now);
        !self.is_limited(now) || self.available > 0
    }

    fn is_limited(&self, now: Duration) -> bool {
        self.foreground_at.is_some_and(|at| now.saturating_sub(at) < QUIET)
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

    /// Bytes taken in a second, asked every millisecond.
    fn taken(pace: &mut Pace, from: Duration, busy: bool) -> u64 {
        let mut taken = 0;
        for ms in 0..1000 {
            let now = from + Duration::from_millis(ms);
            if busy {
                pace.note_foreground(now);
            }
            while taken < 4096 * MIB && pace.take(now, 64 << 10) {
                taken += 64 << 10;
            }
        }
        taken
    }

    #[test]
    fn bounded_beside_foreground_work_and_free_without() {
        let mut pace = Pace::new(64 * MIB);
        let busy = taken(&mut pace, Duration::ZERO, true);
        assert!((64 * MIB..66 * MIB).contains(&busy), "{busy}");
        assert_eq!(taken(&mut pace, Duration::from_secs(1), false), 4096 * MIB, "no limit when quiet");
        let busy = taken(&mut pace, Duration::from_secs(2), true);
        assert!((64 * MIB..66 * MIB).contains(&busy), "a quiet time is not saved up: {busy}");
    }

    #[test]
    fn a_large_piece_is_waited_for_afterwards() {
        let mut pace = Pace::new(MIB);
        let now = Duration::from_secs(1);
        pace.note_foreground(now);
        assert!(pace.take(now, 2 * MIB));
        assert!(!pace.allows(now));
        let later = now + Duration::from_millis(900);
        pace.note_foreground(later);
        assert!(!pace.take(later, 1));
        let enough = now + Duration::from_millis(1100);
        pace.note_foreground(enough);
        assert!(pace.take(enough, 1));
    }
}
