//! The core in a simulated world: model members, links that delay, break and come back, crashes,
//! power losses, full pools, bad media, all chosen by a seed.

mod checker;
mod client;
mod hydrating;
mod model_member;
mod resealing;
mod scrubbing;
mod tests;
mod world;

use super::PlantedFault;

/// SplitMix64 (Steele, Lea, Flood 2014): enough to choose events.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// True once in `n` times; never for 0.
    fn once_in(&mut self, n: u32) -> bool {
        n > 0 && self.below(n as usize) == 0
    }
}
