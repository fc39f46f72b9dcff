//! How long requests took lately, kept as a histogram of quarter octaves that fades.

use std::time::Duration;

/// Four for each power of two, from 4 µs on to hours.
const BUCKETS: usize = 128;
/// So many samples are kept before all counts are halved.
const SAMPLES_MAX: u32 = 4096;
/// With fewer samples than this, nothing is said.
const SAMPLES_MIN: u32 = 32;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], total: 0 }
    }
}

impl Latencies {
    pub(super) fn add(&mut self, took: Duration) {
        if self.total >= SAMPLES_MAX {
            self.fade();
        }
        self.counts[bucket(took)] += 1;
        self.total += 1;
    }

    /// Lets what there is count for half as much.
    pub(super) fn fade(&mut self) {
        for count in &mut self.counts {
            *count /= 2;
        }
        self.total = self.counts.iter().sum();
    }

    /// The 99th percentile, to a fifth; `None` while too little is known.
    pub(super) fn slowest(&self) -> Option<Duration> {
        if self.total < SAMPLES_MIN {
            return None;
        }
        let mut above = self.total / 100;
        for (bucket, &count) in self.counts.iter().enumerate().rev() {
            if count > above {
                return Some(least_of(bucket));
            }
            above -= count;
        }
        None
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(4);
    let octave = micros.ilog2();
    let quarter = (micros >> (octave - 2)) & 3;
    (4 * (octave as usize - 2) + usize::try_from(quarter).unwrap_or(0)).min(BUCKETS - 1)
}

fn least_of(bucket: usize) -> Duration {
    Duration::from_micros((4 + bucket as u64 % 4) << (bucket / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_begins_where_it_says() {
        for bucket_ in 0..BUCKETS {
            assert_eq!(bucket(least_of(bucket_)), bucket_);
        }
    }

    #[test]
    fn the_slowest_are_the_last_in_a_hundred() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.slowest(), None);
        for sample in 0..1000 {
            let slow = sample % 50 == 0;
            latencies.add(Duration::from_micros(if slow { 4096 } else { 128 }));
        }
        assert_eq!(latencies.slowest(), Some(Duration::from_micros(4096)));
        latencies.fade();
        (0..3000).for_each(|_| latencies.add(Duration::from_micros(128)));
        assert_eq!(latencies.slowest(), Some(Duration::from_micros(128)));
    }
}
