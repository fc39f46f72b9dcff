//! What the store does for itself: checkpoints, growth of the pool file, space under pressure.
//!
//! ```text
//!        freeze               stable              committed
//!  Idle ─────────► Flushing ─────────► Merging ─────────────► Idle
//! ```

use std::sync::Arc;

use trivet_disk::{DiskError, DiskOp};
use trivet_model::{BLOCK_SIZE_U64, Stamp};

use super::Store;
use super::cache::LEAF_BLOCKS;
use super::checkpoint::{CheckpointJob, CheckpointOutcome};
use super::header::{Header, Segment};
use super::layout::ZONE_BLOCKS;
use super::memtable::Memtable;
use super::request::{Action, RequestError};
use super::token::{Kind, token};
use super::volume::Volume;

/// The pool file grows by at least this many zones (64 MiB) ...
const GROWTH_ZONES_MIN: u64 = 16;
/// ... and at most this many (256 MiB) at a time.
const GROWTH_ZONES_MAX: u64 = 64;
/// Blocks kept free ahead of the writers (256 MiB), and a quarter of what is in use besides: the
/// more free space there is, the longer the runs that batches find.
const FREE_BLOCKS_MIN: u64 = (256 << 20) / BLOCK_SIZE_U64;
/// With fewer free blocks than this (32 MiB), what is free is given out faster than zeros can be written
/// ahead: large writes, which lose little where none were written.
const FREE_BLOCKS_SCARCE: u64 = (32 << 20) / BLOCK_SIZE_U64;
/// Quiet turns after which changes are checkpointed though nothing presses.
const QUIET_TURNS: u32 = 20;

#[derive(Debug, Default)]
pub(super) enum Phase {
    #[default]
    Idle,
    /// The frozen changes wait until they are stable.
    Flushing(Box<CheckpointJob>),
    /// The job is with the background thread.
    Merging,
}

/// Growth of the pool file that is under way.
#[derive(Clone, Copy, Debug)]
struct Growth {
    zones: u64,
    /// Zeros are being written into the new part.
    written: bool,
}

#[derive(Debug, Default)]
pub(super) struct Maintenance {
    pub(super) phase: Phase,
    /// Somebody asked for a checkpoint.
    pub(super) requested: bool,
    spare: Option<Memtable>,
    growing: Option<Growth>,
    /// Nobody will write any more: growth ends soon, and no new one starts.
    closing: bool,
    /// The last growth was refused for want of space; tried again after a quiet turn.
    growth_refused: bool,
    quiet_turns: u32,
}

impl Store {
    /// Nothing has been asked of the store for a while: writes what is only lazily written. The
    /// shell calls it every 50 ms or so of quiet.
    pub fn idle(&mut self) {
        self.maintenance.growth_refused = false;
        if self.failed.is_some() {
            return;
        }
        self.maintenance.quiet_turns += 1;
        let behind = self.volumes.iter().any(|(_, volume)| volume.progress != volume.progress_recorded);
        let unmarked = self.journal.stable_recorded() < self.flushing.stable.min(self.flushing.content);
        if self.batches.is_empty() && (behind || unmarked) && self.journal.room() > 1 {
            self.start_mark();
        }
        if self.maintenance.quiet_turns >= QUIET_TURNS {
            self.maintenance.quiet_turns = 0;
            self.maintenance.requested |= !self.active.is_empty();
        }
    }

    /// Nobody will write any more: checkpoints, and brings growth that is under way to its end. Once the
    /// store is quiescent, the device has nothing left to do for it.
    pub fn close(&mut self) {
        self.maintenance.closing = true;
        self.request_checkpoint();
    }

    /// Checkpoints as soon as possible, to give space back.
    pub fn request_checkpoint(&mut self) {
        self.maintenance.requested = true;
    }

    pub(super) fn note_busy(&mut self) {
        self.maintenance.quiet_turns = 0;
    }

    pub(super) fn maintain(&mut self) {
        self.allocator.release(self.flushing.stable, self.reads.oldest());
        if self.failed.is_some() {
            return;
        }
        self.grow_ahead();
        self.relieve_pressure();
        if matches!(self.maintenance.phase, Phase::Idle) && self.wants_checkpoint() {
            self.maintenance.phase = Phase::Flushing(self.freeze());
        }
        self.start_flush();
        if let Phase::Flushing(job) = &self.maintenance.phase
            && job.header.tail <= self.flushing.stable
            && let Phase::Flushing(job) = std::mem::replace(&mut self.maintenance.phase, Phase::Merging)
        {
            self.actions.push(Action::Checkpoint(job));
        }
    }

    fn wants_checkpoint(&self) -> bool {
        let journal_half = self.superblock.geometry.journal_blocks / 2;
        self.maintenance.requested
            || self.active.len() >= self.memtable_entries_max
            || self.journal.length() > journal_half
    }

    /// Sets the present changes apart for a checkpoint that ends at what has completed.
    pub(super) fn freeze(&mut self) -> Box<CheckpointJob> {
        assert!(self.frozen.is_none(), "one checkpoint at a time");
        self.maintenance.requested = false;
        let spare = self.maintenance.spare.take().unwrap_or_default();
        let frozen = Arc::new(std::mem::replace(&mut self.active, spare));
        self.frozen = Some(Arc::clone(&frozen));
        let tail = self.flushing.completed;
        self.flushing.wanted = self.flushing.wanted.max(tail);
        let mut segments = self.header.segments.clone();
        while segments.get(1).is_some_and(|next: &Segment| next.first <= tail) {
            segments.remove(0);
        }
        let header = Header {
            boot_epoch: self.journal.epoch(),
            boot: self.header.boot,
            zones: self.allocator.zones(),
            next_slot: self.volumes.next_slot(),
            tail,
            tail_previous_crc: self.completed_crc,
            segments,
            dropped: self.header.dropped.iter().filter(|dropped| dropped.sequence >= tail).copied().collect(),
            intact_limits: Vec::new(),
        };
        let volumes = self.volumes.iter().map(|(slot, volume)| (slot, volume.clone())).collect();
        self.volumes.iter_mut().for_each(|(_, volume)| volume.regions.forget_dirty());
        Box::new(CheckpointJob { geometry: self.superblock.geometry, frozen, header, volumes })
    }

    /// The background thread has ended what [`Action::Checkpoint`] asked for.
    pub fn checkpoint_finished(&mut self, outcome: CheckpointOutcome) {
        let done = match outcome.result {
            Ok(done) => done,
            Err(error) => return self.fail(&format!("checkpoint: {error}")),
        };
        self.checkpoints += 1;
        self.header = done.header;
        self.journal.move_tail(self.header.tail);
        self.allocator.quarantine_zones(done.freed, self.reads.next());
        self.allocator.quarantine_zones(done.lost, self.reads.next());
        for (slot, rest) in done.thinned {
            if let Some(volume) = self.volumes.get_mut(slot) {
                volume.thinned(rest);
                // The rest is in the volume's record: a stop need not wait for it.
                self.maintenance.requested |= !volume.thinning.is_empty() && !self.maintenance.closing;
            }
        }
        self.cache.remove_where(|key| {
            key.cut < Stamp::MAX && done.lowest.get(&key.slot).is_some_and(|lowest| *lowest <= key.cut)
        });
        for (slot, used) in done.used {
            if let Some(volume) = self.volumes.get_mut(slot) {
                volume.blocks_used = used;
            }
        }
        for slot in done.removed {
            self.volumes.remove(slot);
            self.cache.remove_where(|key| key.slot == slot);
        }
        if let Some(frozen) = &self.frozen {
            let ranges: Vec<_> = frozen.ranges().collect();
            if !ranges.is_empty() {
                self.cache.remove_where(|key| {
                    let first = key.index * LEAF_BLOCKS;
                    ranges.iter().any(|(slot, start, end)| {
                        *slot == key.slot && *start < first + LEAF_BLOCKS && first < *end
                    })
                });
            }
        }
        self.cache.update(&done.merged, &done.tags);
        self.maintenance.phase = Phase::Idle;
        if let Some(mut table) = self.frozen.take().and_then(Arc::into_inner) {
            table.clear();
            self.maintenance.spare = Some(table);
        }
    }

    /// Whether the store has work of its own that the next turn goes on with.
    pub(super) fn maintenance_is_idle(&self) -> bool {
        let Maintenance { phase, requested, growing, .. } = &self.maintenance;
        matches!(phase, Phase::Idle) && !requested && growing.is_none()
    }

    /// Grows the pool file before it is full, so that writers find space that is already written.
    fn grow_ahead(&mut self) {
        let free = self.allocator.free();
        let wanted = FREE_BLOCKS_MIN + self.allocator.taken() / 4;
        let closing = self.maintenance.closing;
        match self.maintenance.growing {
            Some(Growth { zones, written: true }) if closing || free < FREE_BLOCKS_SCARCE => {
                self.grow_to(Growth { zones, written: false });
            }
            None if !closing && free + self.allocator.quarantined() < wanted => {
                self.grow();
            }
            _ => {}
        }
    }

    fn grow(&mut self) -> bool {
        let zones = self.allocator.zones();
        let zones_max = self.superblock.geometry.zones();
        if self.maintenance.growing.is_some() || self.maintenance.growth_refused || zones >= zones_max {
            return false;
        }
        let step = (zones / 8).clamp(GROWTH_ZONES_MIN, GROWTH_ZONES_MAX);
        let written = self.allocator.free() >= FREE_BLOCKS_SCARCE;
        self.grow_to(Growth { zones: (zones + step).min(zones_max), written });
        true
    }

    fn grow_to(&mut self, growth: Growth) {
        let Growth { zones, written } = growth;
        self.maintenance.growing = Some(growth);
        let length = (self.superblock.geometry.data_start + zones * ZONE_BLOCKS) * BLOCK_SIZE_U64;
        self.submit_disk(token(Kind::Extend, zones, 0), DiskOp::Extend { length, written });
    }

    pub(super) fn extend_completed(&mut self, zones: u64, result: Result<(), DiskError>) {
        // Growth that was hurried is answered twice; the second time nothing is left to do.
        if self.maintenance.growing.take_if(|growth| growth.zones == zones).is_none() {
            return;
        }
        match result {
            Ok(()) => self.allocator.extend(zones),
            Err(DiskError::NoSpace { .. }) => self.maintenance.growth_refused = true,
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// The first queued write or place does not fit: frees what can be freed, or refuses it.
    fn relieve_pressure(&mut self) {
        let free = self.allocator.free();
        let write = self.writes.front().is_some_and(|write| write.crcs.len() as u64 > free);
        let place = self.places.front().is_some_and(|place| place.crcs.len() as u64 > free);
        if !(write || place) {
            return;
        }
        // Each of these ends in a completion, after which the write is looked at again.
        if self.maintenance.growing.is_some()
            || !self.batches.is_empty()
            || !matches!(self.maintenance.phase, Phase::Idle)
            || self.grow()
        {
            return;
        }
        if self.allocator.quarantined() > 0 && self.flushing.content > self.flushing.stable {
            self.flushing.wanted = self.flushing.completed;
            return;
        }
        let freeing = |volume: &Volume| volume.is_deleted() || !volume.thinning.is_empty();
        let deleting = self.volumes.iter().any(|(_, volume)| freeing(volume));
        if !self.active.is_empty() || deleting {
            self.maintenance.requested = true;
            return;
        }
        if self.allocator.quarantined() > 0 && !self.reads.is_empty() {
            return;
        }
        let refused = if write {
            self.writes.pop_front().map(|write| (write.id, write.slot))
        } else {
            self.places.pop_front().map(|place| (place.id, place.slot))
        };
        let Some((id, slot)) = refused else { return };
        if let Some(volume) = self.volumes.get_mut(slot) {
            volume.outstanding = volume.outstanding.saturating_sub(1);
        }
        self.maintenance.growth_refused = false;
        let total = self.allocator.zones() * ZONE_BLOCKS;
        let used = self.allocator.taken();
        self.complete(id, Err(RequestError::NoSpace { used, total }));
    }
}
