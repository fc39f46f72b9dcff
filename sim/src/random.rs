//! Chance, out of the seed alone: SplitMix64 (Steele, Lea, Flood 2014). Every part of the world draws
//! from a stream of its own, so that a fault that is switched off changes as little else as possible.

use std::time::Duration;

#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The stream that `label` names.
    pub(crate) fn stream(seed: u64, label: u64) -> Self {
        let mut random = Self(seed ^ label.wrapping_mul(0xd6e8_feb8_6659_fd93));
        random.next();
        Self(random.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("below a usize")
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.index(among.len())]
    }

    /// From 0 up to, not including, 1.
    fn fraction(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).expect("32 bits")) / f64::from(u32::MAX)
    }

    pub(crate) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + (most - least).mul_f64(self.fraction())
    }

    /// Each order of magnitude as likely as any other.
    pub(crate) fn log_between(&mut self, least: Duration, most: Duration) -> Duration {
        least.mul_f64((most.as_secs_f64() / least.as_secs_f64()).powf(self.fraction()))
    }

    /// The pause between events that come at random, `mean` on average and at most ten times that.
    pub(crate) fn exponential(&mut self, mean: Duration) -> Duration {
        mean.mul_f64((-(1.0 - self.fraction()).max(1e-9).ln()).min(10.0))
    }
}
