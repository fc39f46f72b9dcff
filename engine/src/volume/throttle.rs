//! How much of its consumers' I/O a volume lets pass: token buckets, one for I/Os and one for bytes.
//!
//! What the volume may not take yet stays where it is, at the head of the queue for the window
//! (`operation.rs`), and everything behind it with it: first come, first served, whoever asks, so that
//! nothing overtakes what it may depend on. A flush passes: it covers what was acknowledged, and that
//! was charged for. Nor does the engine's own work wait: that of `hydration.rs` goes to the head of the queue.
//!
//! A piece counts as one I/O, and as the bytes that travel for it, in whole blocks: what members have to
//! do for it. A piece is at most [`PIECE_BYTES_MAX`] long, and a bucket holds at least that, so it
//! passes whole and nothing is ever owed.
//!
//! Invariants:
//! - what passed between two moments is at most `per_second` times what lies between them, and `burst`;
//! - what is refused finds too little in one of the buckets: nothing is held back without need.

use super::planted::PlantedFault;
use super::{VolumeCore, VolumeState};
use std::time::Duration;
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{BLOCK_SIZE_U64, RateLimit, VolumeSettings};

/// The longest piece.
const PIECE_BYTES_MAX: u64 = IO_BLOCKS_MAX as u64 * BLOCK_SIZE_U64;
/// The core asks to be woken no sooner: each timer has its price (`docs/adr/0005`), and what has
/// gathered passes then. Buckets hold more than comes in that time (`trivet_model::settings`).
const WAKE_MIN: Duration = Duration::from_millis(1);

const NANOSECONDS: u128 = 1_000_000_000;

/// One limit. Contents are counted in billionths, of which `per_second` come in each nanosecond: exact,
/// whatever the rate.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    per_second: u128,
    full: u128,
    content: u128,
    as_of: Duration,
}

impl Bucket {
    /// A full one, which holds at least `least`.
    fn new(limit: RateLimit, least: u64, now: Duration) -> Self {
        let full = u128::from(limit.burst.max(least)) * NANOSECONDS;
        Self { per_second: u128::from(limit.per_second.max(1)), full, content: full, as_of: now }
    }

    fn content_at(&self, now: Duration) -> u128 {
        let gained = now.saturating_sub(self.as_of).as_nanos().saturating_mul(self.per_second);
        self.content.saturating_add(gained).min(self.full)
    }

    fn take(&mut self, now: Duration, amount: u64) {
        let content = self.content_at(now);
        self.content = content.saturating_sub(u128::from(amount) * NANOSECONDS);
        self.as_of = self.as_of.max(now);
    }

    /// How long until it holds this much.
    fn within(&self, now: Duration, amount: u64) -> Duration {
        let lacks = (u128::from(amount) * NANOSECONDS).saturating_sub(self.content_at(now));
        Duration::from_nanos(u64::try_from(lacks.div_ceil(self.per_second)).unwrap_or(u64::MAX))
    }
}

/// The limits of a volume that has any.
#[derive(Debug)]
pub(super) struct Throttle {
    iops: Option<Bucket>,
    bandwidth: Option<Bucket>,
    /// The head of the queue was refused.
    holds: bool,
}

impl Throttle {
    /// `None` where nothing is limited.
    pub(super) fn new(settings: &VolumeSettings, now: Duration) -> Option<Self> {
        let iops = settings.iops_limit.map(|limit| Bucket::new(limit, 1, now));
        let bandwidth = settings.bandwidth_limit.map(|limit| Bucket::new(limit, PIECE_BYTES_MAX, now));
        (iops.is_some() || bandwidth.is_some()).then_some(Self { iops, bandwidth, holds: false })
    }

    /// How long until a piece of so many bytes may pass.
    fn within(&self, now: Duration, bytes: u64) -> Duration {
        let iops = self.iops.map_or(Duration::ZERO, |bucket| bucket.within(now, 1));
        let bandwidth = self.bandwidth.map_or(Duration::ZERO, |bucket| bucket.within(now, bytes));
        iops.max(bandwidth)
    }

    /// Lets a piece pass, or holds it, and with it all behind it.
    fn admit(&mut self, now: Duration, bytes: u64) -> bool {
        self.holds = !self.within(now, bytes).is_zero();
        if !self.holds {
            for (bucket, amount) in [(&mut self.iops, 1), (&mut self.bandwidth, bytes)] {
                if let Some(bucket) = bucket {
                    bucket.take(now, amount);
                }
            }
        }
        !self.holds
    }
}

impl VolumeCore {
    /// Whether the head of the queue has to wait for a limit. A volume that is being closed is not
    /// limited: what was taken is to be finished.
    pub(super) fn is_throttled(&mut self, now: Duration, bytes: usize) -> bool {
        let overlooked = self.has_planted(PlantedFault::IgnoreLimits) || self.state != VolumeState::Open;
        let Some(throttle) = self.throttle.as_mut().filter(|_| !overlooked) else { return false };
        let held = throttle.holds;
        let throttled = !throttle.admit(now, bytes as u64);
        self.counters.throttled += u64::from(throttled && !held);
        throttled
    }

    /// How soon the core must be called for what a limit holds.
    pub(super) fn throttled_within(&self) -> Option<Duration> {
        let throttle = self.throttle.as_ref().filter(|throttle| throttle.holds)?;
        let first = self.waiting.front()?;
        Some(throttle.within(self.now, first.bytes() as u64).max(WAKE_MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(iops: Option<RateLimit>, bandwidth: Option<RateLimit>) -> VolumeSettings {
        VolumeSettings { iops_limit: iops, bandwidth_limit: bandwidth, ..VolumeSettings::default() }
    }

    /// The definition itself: of all windows that end now, none has had more than its due.
    struct Oracle {
        limit: RateLimit,
        passed: Vec<(Duration, u64)>,
    }

    impl Oracle {
        fn may_pass(&self, now: Duration, amount: u64) -> bool {
            let mut sum = u128::from(amount);
            let alone = sum <= u128::from(self.limit.burst);
            alone
                && self.passed.iter().rev().all(|(at, earlier)| {
                    sum += u128::from(*earlier);
                    let due = (now - *at).as_nanos() * u128::from(self.limit.per_second);
                    sum * NANOSECONDS <= due + u128::from(self.limit.burst) * NANOSECONDS
                })
        }
    }

    fn iops() -> impl Strategy<Value = RateLimit> {
        (1u64..5000, 1u64..50).prop_map(|(per_second, burst)| RateLimit { per_second, burst })
    }

    fn bandwidth() -> impl Strategy<Value = RateLimit> {
        (1u64..1 << 40, PIECE_BYTES_MAX..8 * PIECE_BYTES_MAX)
            .prop_map(|(per_second, burst)| RateLimit { per_second, burst })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

        #[test]
        fn passes_exactly_what_the_definition_allows(
            iops in prop::option::of(iops()),
            bandwidth in prop::option::of(bandwidth()),
            // Time since the last, in nanoseconds; blocks.
            asked in prop::collection::vec((prop_oneof![Just(0), 0u64..3_000_000_000, 0u64..200_000], 1u32..=IO_BLOCKS_MAX), 1..80),
        ) {
            let mut now = Duration::from_secs(1000);
            let Some(mut throttle) = Throttle::new(&settings(iops, bandwidth), now) else { return Ok(()) };
            let oracle = |limit| Oracle { limit, passed: Vec::new() };
            let (mut count, mut bytes) = (iops.map(oracle), bandwidth.map(oracle));
            for (after, blocks) in asked {
                now += Duration::from_nanos(after);
                let length = u64::from(blocks) * BLOCK_SIZE_U64;
                loop {
                    let allowed = count.as_ref().is_none_or(|oracle| oracle.may_pass(now, 1))
                        && bytes.as_ref().is_none_or(|oracle| oracle.may_pass(now, length));
                    let within = throttle.within(now, length);
                    prop_assert_eq!(throttle.admit(now, length), allowed);
                    prop_assert_eq!(within.is_zero(), allowed);
                    if allowed {
                        count.iter_mut().for_each(|oracle| oracle.passed.push((now, 1)));
                        bytes.iter_mut().for_each(|oracle| oracle.passed.push((now, length)));
                        break;
                    }
                    // Woken when it said, it passes; a nanosecond earlier it would not have.
                    now += within - Duration::from_nanos(1);
                    prop_assert!(!throttle.admit(now, length));
                    now += Duration::from_nanos(1);
                }
            }
        }
    }

    #[test]
    fn what_nobody_limits_has_no_throttle() {
        assert!(Throttle::new(&VolumeSettings::default(), Duration::ZERO).is_none());
    }

    #[test]
    fn the_largest_piece_passes_the_smallest_bucket() {
        let limit = RateLimit { per_second: 1, burst: 1 };
        let mut throttle = Throttle::new(&settings(None, Some(limit)), Duration::ZERO).unwrap();
        assert!(throttle.admit(Duration::ZERO, PIECE_BYTES_MAX));
        assert!(!throttle.admit(Duration::ZERO, 1));
        assert_eq!(throttle.within(Duration::ZERO, 1), Duration::from_secs(1));
    }

    #[test]
    fn no_clock_and_no_rate_overflow() {
        let limit = RateLimit { per_second: u64::MAX, burst: u64::MAX };
        let mut throttle = Throttle::new(&settings(Some(limit), Some(limit)), Duration::MAX).unwrap();
        assert!(throttle.admit(Duration::ZERO, PIECE_BYTES_MAX), "a clock that goes back takes nothing away");
        assert!(throttle.admit(Duration::MAX, PIECE_BYTES_MAX));
    }
}
