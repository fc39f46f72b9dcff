//! Cutting the power: what of the unflushed writes survives, at random or by enumeration.

use super::FaultyDisk;
use crate::random::Random;
use crate::{Disk, DiskImage, DiskOp, DiskToken, MemoryDisk};
use std::ops::Range;
use trivet_model::SECTOR_SIZE;

/// A write that a crash may drop, tear or keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnflushedWrite {
    /// As submitted.
    pub token: DiskToken,
    /// Where it went, in bytes.
    pub offset: u64,
    /// How many 512-byte sectors it has; each survives or not.
    pub sectors: usize,
    /// Whether it had completed, or was still in flight.
    pub completed: bool,
}

/// Up to this many sectors, all their subsets are enumerated.
const SUBSETS_SECTORS_MAX: usize = 20;

impl FaultyDisk {
    /// The writes that a crash now decides on: the completed ones in the order of their
    /// completion, then those in flight in the order of their submission.
    #[must_use]
    pub fn unflushed(&self) -> Vec<UnflushedWrite> {
        let completed = self.cache.unflushed().iter().map(|write| UnflushedWrite {
            token: write.token,
            offset: write.offset,
            sectors: write.sectors(),
            completed: true,
        });
        let in_flight = self.in_flight.iter().filter_map(|operation| match &operation.operation {
            DiskOp::Write { offset, segments } => Some(UnflushedWrite {
                token: operation.token,
                offset: *offset,
                sectors: segments.iter().map(bytes::Bytes::len).sum::<usize>() / SECTOR_SIZE,
                completed: false,
            }),
            _ => None,
        });
        completed.chain(in_flight).collect()
    }

    /// The disk after a power cut in which exactly the chosen sectors survived; an extension in
    /// flight did not. This disk stays as it is: try another choice, or go on.
    ///
    /// `survives` has an entry for each sector of each write of [`unflushed`](Self::unflushed), in
    /// that order. Where writes overlap, the later one of those that survive is found.
    ///
    /// # Panics
    /// When `survives` is of another length.
    #[must_use]
    pub fn crash_with(&self, survives: &[bool]) -> MemoryDisk {
        let mut image = self.cache.stable().clone();
        let mut rest = survives;
        let mut next = |sectors: usize| {
            let (these, others) = rest.split_at(sectors);
            rest = others;
            these
        };
        for write in self.cache.unflushed() {
            let choice = next(write.sectors());
            write.apply(&mut image, |sector| choice[sector]);
        }
        for operation in &self.in_flight {
            if let DiskOp::Write { offset, segments } = &operation.operation {
                let data = segments.concat();
                let choice = next(data.len() / SECTOR_SIZE);
                let survivors =
                    data.chunks(SECTOR_SIZE).zip(choice).enumerate().filter(|(_, (_, kept))| **kept);
                for (index, (sector, _)) in survivors {
                    image.write(offset + (index * SECTOR_SIZE) as u64, sector);
                }
            }
        }
        assert!(rest.is_empty(), "more choices than unflushed sectors");
        self.survivor(image)
    }

    /// The disk after a power cut, as the seed decides: from nothing unflushed to everything, whole
    /// or torn, a prefix in time or any mixture. Cutting it again decides anew.
    pub fn crash(&mut self) -> MemoryDisk {
        let sizes = self.sizes();
        let survives = random_choice(&mut self.random, &sizes);
        let mut survivor = self.crash_with(&survives);
        for operation in &self.in_flight {
            if let DiskOp::Extend { length, .. } = operation.operation
                && self.random.coin()
                && (survivor.length()..=self.length_max).contains(&length)
            {
                survivor.image_mut().set_length(length);
            }
        }
        survivor
    }

    /// Every subset of the unflushed sectors, as choices for [`crash_with`](Self::crash_with).
    ///
    /// # Panics
    /// When there are more than 20 sectors, a million subsets.
    pub fn every_subset(&self) -> impl Iterator<Item = Vec<bool>> + use<> {
        let sectors: usize = self.sizes().iter().sum();
        assert!(sectors <= SUBSETS_SECTORS_MAX, "{sectors} unflushed sectors have too many subsets");
        (0..1_u64 << sectors).map(move |subset| bits(subset, sectors))
    }

    /// Every subset of the unflushed writes, as choices for [`crash_with`](Self::crash_with); and
    /// with each of these, every way to tear one of the writes: all subsets of its sectors up to
    /// eight, and of a longer write all prefixes, all suffixes and every single sector alone and
    /// missing.
    ///
    /// # Panics
    /// When there are more than 20 writes.
    pub fn every_tear(&self) -> impl Iterator<Item = Vec<bool>> + use<> {
        let mut ranges = Vec::new();
        let mut total = 0;
        for size in self.sizes() {
            ranges.push(total..total + size);
            total += size;
        }
        assert!(
            ranges.len() <= SUBSETS_SECTORS_MAX,
            "{} unflushed writes have too many subsets",
            ranges.len()
        );
        (0..1_u64 << ranges.len()).flat_map(move |subset| {
            let mut whole = vec![false; total];
            for (write, range) in ranges.iter().enumerate() {
                whole[range.clone()].fill(subset >> write & 1 == 1);
            }
            // A torn write takes the place of a dropped one only, so that none comes twice.
            let dropped: Vec<Range<usize>> = ranges
                .iter()
                .enumerate()
                .filter(|(w, _)| subset >> w & 1 == 0)
                .map(|(_, r)| r.clone())
                .collect();
            let base = whole.clone();
            let torn = dropped.into_iter().flat_map(move |range| {
                let base = base.clone();
                tears(range.len()).map(move |tear| {
                    let mut choice = base.clone();
                    choice[range.clone()].copy_from_slice(&tear);
                    choice
                })
            });
            std::iter::once(whole).chain(torn)
        })
    }

    fn sizes(&self) -> Vec<usize> {
        self.unflushed().iter().map(|write| write.sectors).collect()
    }

    fn survivor(&self, image: DiskImage) -> MemoryDisk {
        MemoryDisk::from(image).with_length_max(self.length_max)
    }
}

/// A choice in one of the styles that find different bugs: all or nothing, a prefix in time,
/// sector by sector, write by write.
fn random_choice(random: &mut Random, sizes: &[usize]) -> Vec<bool> {
    let total: usize = sizes.iter().sum();
    match random.below(6) {
        0 => vec![false; total],
        1 => vec![true; total],
        2 => {
            let end = random.index(total + 1);
            (0..total).map(|sector| sector < end).collect()
        }
        3 => (0..total).map(|_| random.coin()).collect(),
        _ => sizes.iter().flat_map(|size| random_fate(random, *size)).collect(),
    }
}

/// What survives of one write: nothing, everything, its beginning, or any of its sectors.
fn random_fate(random: &mut Random, sectors: usize) -> Vec<bool> {
    match random.below(4) {
        0 => vec![false; sectors],
        1 => vec![true; sectors],
        2 => {
            let end = random.index(sectors + 1);
            (0..sectors).map(|sector| sector < end).collect()
        }
        _ => (0..sectors).map(|_| random.coin()).collect(),
    }
}

fn bits(subset: u64, count: usize) -> Vec<bool> {
    (0..count).map(|bit| subset >> bit & 1 == 1).collect()
}

/// The ways a write of so many sectors can be torn, neither whole nor dropped.
fn tears(sectors: usize) -> Box<dyn Iterator<Item = Vec<bool>>> {
    if sectors <= 8 {
        let last = 1_u64 << sectors;
        return Box::new((1..last.saturating_sub(1)).map(move |subset| bits(subset, sectors)));
    }
    let shape =
        move |kept: Range<usize>| (0..sectors).map(|sector| kept.contains(&sector)).collect::<Vec<_>>();
    let prefixes = (1..sectors).map(move |end| shape(0..end));
    let suffixes = (1..sectors).map(move |start| shape(start..sectors));
    // The first and last sector alone or missing are among the prefixes and suffixes.
    let alone = (1..sectors - 1).map(move |sector| shape(sector..sector + 1));
    let missing =
        (1..sectors - 1).map(move |sector| shape(sector..sector + 1).iter().map(|kept| !kept).collect());
    Box::new(prefixes.chain(suffixes).chain(alone).chain(missing))
}
