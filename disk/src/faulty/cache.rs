//! The volatile write cache: what readers see, what is stable, and the writes in between.

use crate::random::Random;
use crate::{DiskImage, DiskToken};
use trivet_model::SECTOR_SIZE;

/// Invariants: `writes` ascend in `sequence`; applying the live sectors of any of them, in order,
/// to `stable` gives a state that a crash may leave; applying all live ones gives `visible`, but
/// for bits flipped since and for what a failed write left out.
#[derive(Debug)]
pub(super) struct VolatileCache {
    visible: DiskImage,
    stable: DiskImage,
    writes: Vec<CachedWrite>,
    sequence: u64,
}

#[derive(Debug)]
pub(super) struct CachedWrite {
    pub(super) token: DiskToken,
    pub(super) offset: u64,
    pub(super) data: Vec<u8>,
    /// Which sectors no stable write has replaced since.
    live: Vec<bool>,
    sequence: u64,
    /// A flush of it, or it itself, failed: no later flush makes it stable.
    doomed: bool,
}

impl CachedWrite {
    pub(super) fn sectors(&self) -> usize {
        self.live.len()
    }

    /// Puts the sectors that `survives` says, as far as they are live, on an image.
    pub(super) fn apply(&self, image: &mut DiskImage, mut survives: impl FnMut(usize) -> bool) {
        for (index, sector) in self.data.chunks(SECTOR_SIZE).enumerate() {
            // Asked in any case, so that a choice's positions do not depend on liveness.
            if survives(index) & self.live[index] {
                image.write(self.offset + (index * SECTOR_SIZE) as u64, sector);
            }
        }
    }

    fn covers(&self, offset: u64) -> bool {
        (self.offset..self.offset + self.data.len() as u64).contains(&offset)
    }
}

impl VolatileCache {
    pub(super) fn new(image: DiskImage) -> Self {
        Self { visible: image.clone(), stable: image, writes: Vec::new(), sequence: 0 }
    }

    pub(super) fn visible(&self) -> &DiskImage {
        &self.visible
    }

    pub(super) fn stable(&self) -> &DiskImage {
        &self.stable
    }

    /// Completed writes that no flush has made stable, in the order of their completion.
    pub(super) fn unflushed(&self) -> &[CachedWrite] {
        &self.writes
    }

    /// The number of the last write completed.
    pub(super) fn last_write(&self) -> u64 {
        self.sequence
    }

    pub(super) fn write(&mut self, token: DiskToken, offset: u64, data: &[u8]) {
        self.visible.write(offset, data);
        self.keep(token, offset, data, false);
    }

    /// A write that reports failure: readers find any of its sectors, and so they do after a crash.
    pub(super) fn fail_write(&mut self, token: DiskToken, offset: u64, data: &[u8], random: &mut Random) {
        self.keep(token, offset, data, true);
        if let Some(write) = self.writes.last() {
            write.apply(&mut self.visible, |_| random.coin());
        }
    }

    fn keep(&mut self, token: DiskToken, offset: u64, data: &[u8], doomed: bool) {
        self.sequence += 1;
        let live = vec![true; data.len() / SECTOR_SIZE];
        let sequence = self.sequence;
        self.writes.push(CachedWrite { token, offset, data: data.to_vec(), live, sequence, doomed });
    }

    /// Makes the writes up to number `covers` stable, except doomed ones.
    pub(super) fn flush(&mut self, covers: u64) {
        let mut kept: Vec<CachedWrite> = Vec::new();
        for write in std::mem::take(&mut self.writes) {
            if write.doomed || write.sequence > covers {
                kept.push(write);
                continue;
            }
            write.apply(&mut self.stable, |_| true);
            // A crash may no longer bring back what an older, doomed write left there.
            for older in &mut kept {
                for index in 0..older.live.len() {
                    if write.covers(older.offset + (index * SECTOR_SIZE) as u64) {
                        older.live[index] = false;
                    }
                }
            }
        }
        self.writes = kept;
        self.writes.retain(|write| write.live.contains(&true));
    }

    /// A flush that reports failure.
    pub(super) fn fail_flush(&mut self, covers: u64) {
        for write in self.writes.iter_mut().filter(|write| write.sequence <= covers) {
            write.doomed = true;
        }
    }

    /// Appends zeros, stable at once.
    pub(super) fn grow(&mut self, length: u64) {
        self.visible.set_length(length);
        self.stable.set_length(length);
    }

    pub(super) fn flip_bit(&mut self, offset: u64, bit: u8) {
        self.visible.flip_bit(offset, bit);
        self.stable.flip_bit(offset, bit);
        for write in self.writes.iter_mut().filter(|write| write.covers(offset)) {
            let index = usize::try_from(offset - write.offset).expect("an index into memory");
            write.data[index] ^= 1 << bit;
        }
    }
}
