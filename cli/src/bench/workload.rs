//! What the bench does next: kinds, offsets and data, from one seed. Pure.

use bytes::Bytes;
use clap::ValueEnum;

/// The access pattern, by the names that fio gives them; randrw is half and half.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Pattern {
    Read,
    Write,
    Randread,
    Randwrite,
    Randrw,
}

impl Pattern {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Randrw => "randrw",
        }
    }

    pub(crate) fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Randread)
    }
}

/// A request's kind, for the figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
}

/// The next request.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) kind: Kind,
    pub(crate) offset: u64,
    /// For a write.
    pub(crate) data: Bytes,
}

/// Twice this many random bytes are kept; every write takes its data from some place in them, so
/// that neighbouring writes differ without being made anew.
const RANDOM_BYTES: usize = 4 << 20;

/// An endless sequence of requests.
#[derive(Debug)]
pub(crate) struct Workload {
    pattern: Pattern,
    block_bytes: u32,
    blocks: u64,
    flush_every: u64,
    random: SplitMix,
    data: Bytes,
    next_block: u64,
    writes_since_flush: u64,
}

impl Workload {
    /// Requests of `block_bytes` over a disk of `disk_bytes`; a flush after every `flush_every`
    /// writes, unless that is 0. The disk has room for at least one request.
    pub(crate) fn new(
        pattern: Pattern,
        block_bytes: u32,
        disk_bytes: u64,
        flush_every: u64,
        seed: u64,
    ) -> Self {
        let blocks = disk_bytes / u64::from(block_bytes);
        assert!(blocks > 0, "the disk is smaller than one request");
        let mut random = SplitMix(seed);
        let data =
            if pattern.writes() { random.bytes(RANDOM_BYTES + block_bytes as usize) } else { Bytes::new() };
        Self { pattern, block_bytes, blocks, flush_every, random, data, next_block: 0, writes_since_flush: 0 }
    }

    /// The next request.
    pub(crate) fn step(&mut self) -> Step {
        if self.flush_every > 0 && self.writes_since_flush >= self.flush_every {
            self.writes_since_flush = 0;
            return Step { kind: Kind::Flush, offset: 0, data: Bytes::new() };
        }
        let (kind, block) = match self.pattern {
            Pattern::Read => (Kind::Read, self.sequential()),
            Pattern::Write => (Kind::Write, self.sequential()),
            Pattern::Randread => (Kind::Read, self.random.below(self.blocks)),
            Pattern::Randwrite => (Kind::Write, self.random.below(self.blocks)),
            Pattern::Randrw => {
                let kind = if self.random.next().is_multiple_of(2) { Kind::Read } else { Kind::Write };
                (kind, self.random.below(self.blocks))
            }
        };
        let data = if kind == Kind::Write { self.payload() } else { Bytes::new() };
        self.writes_since_flush += u64::from(kind == Kind::Write);
        Step { kind, offset: block * u64::from(self.block_bytes), data }
    }

    fn sequential(&mut self) -> u64 {
        let block = self.next_block;
        self.next_block = (block + 1) % self.blocks;
        block
    }

    fn payload(&mut self) -> Bytes {
        const PLACES: u64 = (RANDOM_BYTES / 8) as u64;
        let place = usize::try_from(self.random.below(PLACES) * 8).unwrap_or(0);
        self.data.slice(place..place + self.block_bytes as usize)
    }
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform below `bound`, by Lemire's multiplication (its bias is below 2^-32 here).
    fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.next()) * u128::from(bound);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    fn bytes(&mut self, length: usize) -> Bytes {
        let mut bytes = Vec::with_capacity(length.next_multiple_of(8));
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        Bytes::from(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(pattern: Pattern, flush_every: u64, count: usize) -> Vec<Step> {
        let mut workload = Workload::new(pattern, 4096, 16 * 4096 + 100, flush_every, 1);
        (0..count).map(|_| workload.step()).collect()
    }

    #[test]
    fn random_offsets_are_aligned_inside_and_everywhere() {
        let steps = steps(Pattern::Randrw, 0, 2000);
        let mut seen = [0; 16];
        for step in &steps {
            assert_eq!(step.offset % 4096, 0);
            seen[usize::try_from(step.offset / 4096).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&count| count > 60), "{seen:?}");
        let reads = steps.iter().filter(|step| step.kind == Kind::Read).count();
        assert!((900..1100).contains(&reads), "{reads} of 2000");
    }

    #[test]
    fn sequential_offsets_wrap() {
        let offsets: Vec<u64> = steps(Pattern::Read, 0, 18).iter().map(|step| step.offset / 4096).collect();
        assert_eq!(offsets, (0..16).chain(0..2).collect::<Vec<_>>());
    }

    #[test]
    fn flushes_follow_their_writes() {
        let kinds: Vec<Kind> = steps(Pattern::Randwrite, 2, 6).iter().map(|step| step.kind).collect();
        use Kind::{Flush, Write};
        assert_eq!(kinds, [Write, Write, Flush, Write, Write, Flush]);
    }

    #[test]
    fn writes_have_data_that_differs() {
        let steps = steps(Pattern::Write, 0, 2);
        assert_eq!(steps[0].data.len(), 4096);
        assert_ne!(steps[0].data, steps[1].data);
    }
}
