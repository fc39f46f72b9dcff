//! What may stand in each unit of a region.

use super::pattern::{self, Content};
use crate::nbd::{NbdClient, Request};
use std::io;
use std::ops::Range;

/// A region of a volume and what is known of its units.
#[derive(Debug)]
pub struct Region {
    seed: u64,
    offset: u64,
    unit_bytes: u32,
    units: Vec<Unit>,
}

#[derive(Clone, Debug, Default)]
struct Unit {
    oldest: u32,
    newest: u32,
    /// What it is at least after a loss of power.
    stable: u32,
    /// Versions from `stable` on that are zeros. Version 0, never written, is one.
    zeros: Vec<u32>,
    in_flight: bool,
}

impl Unit {
    fn next(&mut self, zeros: bool) -> u32 {
        self.newest += 1;
        if zeros {
            self.zeros.push(self.newest);
        }
        self.newest
    }

    fn settle(&mut self, version: u32) {
        self.oldest = self.oldest.max(version);
    }

    fn settle_for_good(&mut self, version: u32) {
        self.stable = self.stable.max(version);
        let stable = self.stable;
        self.zeros.retain(|&zero| zero >= stable);
    }

    /// The oldest version that it may be, or `None` when none is allowed to look so.
    fn version_of(&self, content: Content) -> Option<u32> {
        match content {
            Content::Zeros if self.oldest == 0 => Some(0),
            Content::Zeros => self.zeros.iter().copied().find(|zero| *zero >= self.oldest),
            Content::Version(v) if v > self.newest || v < self.oldest || self.zeros.contains(&v) => None,
            Content::Version(v) => Some(v),
            Content::Damaged(_) => None,
        }
    }
}

/// A request in flight, as far as its answer changes what is known.
#[derive(Clone, Debug)]
pub(super) enum Intent {
    /// Of each unit the version that it had at least.
    Flush(Vec<u32>),
    Read(Range<usize>),
    Change(Change),
}

/// Of each unit the version that it gets.
#[derive(Clone, Debug)]
pub(super) struct Change {
    run: Range<usize>,
    versions: Vec<u32>,
    force_unit_access: bool,
}

impl Region {
    /// A region of `units` units of `unit_bytes` (a multiple of 512) from byte `offset`, all zeros.
    #[must_use]
    pub fn new(offset: u64, unit_bytes: u32, units: usize, seed: u64) -> Self {
        Self { seed, offset, unit_bytes, units: vec![Unit::default(); units] }
    }

    pub(super) fn units(&self) -> u64 {
        self.units.len() as u64
    }

    /// Marks a run of units as in flight, unless one of them is.
    pub(super) fn claim(&mut self, start: u64, count: u64) -> Option<Range<usize>> {
        let index = |unit: u64| usize::try_from(unit).expect("a unit's number is an index");
        let run = index(start)..index(start + count);
        let units = &mut self.units[run.clone()];
        if units.iter().any(|unit| unit.in_flight) {
            return None;
        }
        units.iter_mut().for_each(|unit| unit.in_flight = true);
        Some(run)
    }

    fn place(&self, run: &Range<usize>) -> (u64, u32) {
        let length = u32::try_from(run.len()).expect("runs are short") * self.unit_bytes;
        (self.offset + run.start as u64 * u64::from(self.unit_bytes), length)
    }

    pub(super) fn begin_flush(&self) -> (Intent, Request) {
        (Intent::Flush(self.units.iter().map(|unit| unit.oldest).collect()), Request::Flush)
    }

    pub(super) fn begin_read(&self, run: Range<usize>) -> (Intent, Request) {
        let (offset, length) = self.place(&run);
        (Intent::Read(run), Request::Read { offset, length })
    }

    pub(super) fn begin_write(&mut self, run: Range<usize>, force_unit_access: bool) -> (Intent, Request) {
        let (offset, length) = self.place(&run);
        let mut data = vec![0; usize::try_from(length).expect("64-bit machines only")];
        let versions: Vec<u32> = self.units[run.clone()].iter_mut().map(|unit| unit.next(false)).collect();
        let unit_bytes = data.len() / run.len();
        for ((bytes, number), &version) in data.chunks_exact_mut(unit_bytes).zip(run.clone()).zip(&versions) {
            pattern::fill(bytes, self.seed, number as u64, version);
        }
        let change = Change { run, versions, force_unit_access };
        (Intent::Change(change), Request::Write { offset, data, force_unit_access })
    }

    /// Zeros by `WRITE_ZEROES`, or by `TRIM`: a trimmed block reads as zeros, which is more than
    /// NBD promises but what `trivet` does. Parts of blocks are not trimmed, so sectors are zeroed.
    pub(super) fn begin_zeroes(&mut self, run: Range<usize>, trim: bool) -> (Intent, Request) {
        let (offset, length) = self.place(&run);
        let versions = self.units[run.clone()].iter_mut().map(|unit| unit.next(true)).collect();
        let request = if trim && self.unit_bytes.is_multiple_of(4096) {
            Request::Trim { offset, length }
        } else {
            Request::WriteZeroes { offset, length }
        };
        (Intent::Change(Change { run, versions, force_unit_access: false }), request)
    }

    /// Takes note of a success.
    pub(super) fn answered(&mut self, intent: &Intent, data: &[u8]) {
        match intent {
            Intent::Flush(versions) => {
                for (unit, &version) in self.units.iter_mut().zip(versions) {
                    unit.settle_for_good(version);
                }
            }
            Intent::Read(run) => {
                self.check(run.clone(), data);
                self.units[run.clone()].iter_mut().for_each(|unit| unit.in_flight = false);
            }
            Intent::Change(Change { run, versions, force_unit_access }) => {
                for (unit, &version) in self.units[run.clone()].iter_mut().zip(versions) {
                    unit.settle(version);
                    if *force_unit_access {
                        unit.settle_for_good(version);
                    }
                    unit.in_flight = false;
                }
            }
        }
    }

    /// Takes note that the connection was lost before the answer: old or new from now on.
    pub(super) fn unanswered(&mut self, intent: &Intent) {
        if let Intent::Read(run) | Intent::Change(Change { run, .. }) = intent {
            self.units[run.clone()].iter_mut().for_each(|unit| unit.in_flight = false);
        }
    }

    /// Takes note that all hosts lost power: what was not flushed may be lost.
    pub fn power_lost(&mut self) {
        self.units.iter_mut().for_each(|unit| unit.oldest = unit.stable);
    }

    /// Checks what a read returned, and holds the volume to it from now on.
    fn check(&mut self, run: Range<usize>, data: &[u8]) {
        let unit_bytes = usize::try_from(self.unit_bytes).expect("64-bit machines only");
        assert_eq!(data.len(), run.len() * unit_bytes, "a read's length");
        for (number, bytes) in run.zip(data.chunks_exact(unit_bytes)) {
            let content = pattern::parse(bytes, self.seed, number as u64);
            let unit = &mut self.units[number];
            let Some(version) = unit.version_of(content) else {
                panic!(
                    "unit {number} of {unit_bytes} bytes at byte {}: found {content:?}, allowed are versions \
                     {}..={} (zeros: {:?}); it begins {:02x?}",
                    self.offset + number as u64 * u64::from(self.unit_bytes),
                    unit.oldest,
                    unit.newest,
                    unit.zeros,
                    &bytes[..48]
                );
            };
            unit.settle(version);
        }
    }

    /// Reads the whole region and checks every unit. Nothing else may write to it meanwhile.
    ///
    /// # Errors
    /// When a read fails.
    ///
    /// # Panics
    /// When a unit holds what it must not.
    pub fn verify(&mut self, client: &mut NbdClient) -> io::Result<()> {
        let step = (1 << 20) / usize::try_from(self.unit_bytes).expect("64-bit machines only");
        for start in (0..self.units.len()).step_by(step) {
            let run = start..(start + step).min(self.units.len());
            let (offset, length) = self.place(&run);
            let data = client.read(offset, length)?;
            self.check(run, &data);
        }
        Ok(())
    }

    /// How many units have ever been written.
    #[must_use]
    pub fn units_written(&self) -> usize {
        self.units.iter().filter(|unit| unit.newest > 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(region: &mut Region, unit: u64) -> (Intent, Vec<u8>) {
        let run = region.claim(unit, 1).unwrap();
        let (intent, request) = region.begin_write(run, false);
        let Request::Write { data, .. } = request else { unreachable!() };
        (intent, data)
    }

    #[test]
    fn unanswered_is_old_or_new_until_read() {
        let mut region = Region::new(0, 4096, 4, 1);
        let (first, old) = write(&mut region, 2);
        region.answered(&first, &[]);
        let (second, new) = write(&mut region, 2);
        assert!(region.claim(1, 3).is_none(), "a unit in flight is not claimed twice");
        region.unanswered(&second);
        region.check(2..3, &old);
        region.check(2..3, &new);
        let reverted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| region.check(2..3, &old)));
        assert!(reverted.is_err(), "a version once returned must not revert");
    }

    #[test]
    #[should_panic(expected = "allowed are versions")]
    fn an_acknowledged_write_that_is_lost_is_noticed() {
        let mut region = Region::new(0, 512, 4, 1);
        let (first, _) = write(&mut region, 0);
        region.answered(&first, &[]);
        region.check(0..1, &[0; 512]);
    }

    #[test]
    fn what_was_not_flushed_may_be_lost_with_the_power() {
        let mut region = Region::new(0, 4096, 4, 1);
        let (first, old) = write(&mut region, 0);
        region.answered(&first, &[]);
        let (flush, _) = region.begin_flush();
        let (second, new) = write(&mut region, 0);
        region.answered(&second, &[]);
        region.answered(&flush, &[]);
        region.power_lost();
        region.check(0..1, &old);
        region.check(0..1, &new);
    }

    #[test]
    #[should_panic(expected = "allowed are versions")]
    fn a_flushed_write_that_is_lost_with_the_power_is_noticed() {
        let mut region = Region::new(0, 4096, 4, 1);
        let (first, _) = write(&mut region, 0);
        region.answered(&first, &[]);
        let (flush, _) = region.begin_flush();
        region.answered(&flush, &[]);
        region.power_lost();
        region.check(0..1, &[0; 4096]);
    }

    #[test]
    #[should_panic(expected = "allowed are versions")]
    fn a_trim_that_is_undone_is_noticed() {
        let mut region = Region::new(0, 4096, 4, 1);
        let (first, data) = write(&mut region, 0);
        region.answered(&first, &[]);
        let run = region.claim(0, 1).unwrap();
        let (trim, _) = region.begin_zeroes(run, true);
        region.answered(&trim, &[]);
        region.check(0..1, &data);
    }
}
