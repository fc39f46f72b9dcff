//! The write path: what is queued when the device is ready makes the next batch.
//!
//! A batch is one run of data where free space allows, and one run of journal blocks that says
//! where it went, written in parallel.
//!
//! Invariants
//! - Batches complete in the order they were started: a change is applied to the map and
//!   acknowledged only when its data, its records and all records before them were written.
//! - Data goes only to blocks that the allocator handed out.

use bytes::Bytes;
use trivet_disk::DiskOp;
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64, BlockCrc, BlockRange, Stamp};

use super::Store;
use super::entry::{BlockKey, Entry};
use super::memtable::Placed;
use super::record::{OTHER_RECORD_BYTES_MAX, Record, Slot, encode_write, write_record_bytes};
use super::request::{Reply, RequestError, RequestId, TailExtent};
use super::token::{Kind, token};
use super::volume::Volume;
use crate::planted::{self, PlantedFault};

/// Batches on their way to the device at once. More than one keeps the device busy while the
/// next is made; few, so that batches grow under load.
const BATCHES_MAX: usize = 2;
/// Data blocks in a batch (4 MiB).
const BATCH_BLOCKS_MAX: u64 = 1024;
/// Requests in a batch.
const BATCH_REQUESTS_MAX: usize = 1024;
/// Journal blocks that the largest batch may take: each request's records, once more for runs cut
/// by fragmentation, at their longest.
pub(super) const BATCH_JOURNAL_BLOCKS_MAX: u64 = 128;

/// A write that waits for its batch.
#[derive(Debug)]
pub(super) struct QueuedWrite {
    pub(super) id: RequestId,
    pub(super) slot: Slot,
    pub(super) start: u64,
    pub(super) stamp: Stamp,
    pub(super) crcs: Vec<BlockCrc>,
    pub(super) segments: Vec<Bytes>,
    pub(super) stable: bool,
}

/// A change without data that waits for its batch.
#[derive(Debug)]
pub(super) struct QueuedRecord {
    pub(super) id: RequestId,
    pub(super) record: Record,
    pub(super) stable: bool,
}

#[derive(Debug)]
pub(super) struct Batch {
    number: u64,
    /// Device operations not completed yet.
    operations: u32,
    /// The journal block after its last.
    end: u64,
    /// The checksum of its last journal block.
    last_crc: u32,
    changes: Vec<Change>,
    /// Whom to answer; the volume whose outstanding changes it counts among; whether to wait
    /// until it is stable.
    requests: Vec<(RequestId, Option<Slot>, bool)>,
}

#[derive(Debug)]
enum Change {
    /// Blocks `start..` now lie in these runs of pool blocks.
    Write {
        slot: Slot,
        start: u64,
        stamp: Stamp,
        crcs: Vec<BlockCrc>,
        runs: Runs,
    },
    Record(Record),
}

/// Runs of pool blocks: first block and length. Nearly always one.
#[derive(Debug, Default)]
struct Runs {
    first: (u64, u32),
    more: Vec<(u64, u32)>,
}

impl Runs {
    fn push(&mut self, physical: u64, count: u32) {
        if self.first.1 == 0 { self.first = (physical, count) } else { self.more.push((physical, count)) }
    }

    fn iter(&self) -> impl Iterator<Item = (u64, u32)> {
        std::iter::once(self.first).chain(self.more.iter().copied())
    }
}

/// Collects a batch's data into as few device writes as its pool blocks allow.
#[derive(Default)]
struct DataWrites {
    runs: Vec<(u64, Vec<Bytes>)>,
    next: u64,
}

impl DataWrites {
    fn push(&mut self, physical: u64, count: u32, segments: &mut Segments) {
        if self.runs.is_empty() || physical != self.next {
            self.runs.push((physical, Vec::new()));
        }
        self.next = physical + u64::from(count);
        if let Some((_, run)) = self.runs.last_mut() {
            segments.take_into(count as usize * BLOCK_SIZE, run);
        }
    }
}

/// Hands out a write's bytes piece by piece.
struct Segments(std::vec::IntoIter<Bytes>, Bytes);

impl Segments {
    fn take_into(&mut self, mut bytes: usize, out: &mut Vec<Bytes>) {
        while bytes > 0 {
            if self.1.is_empty() {
                let Some(next) = self.0.next() else { unreachable!("as many bytes as checksums") };
                self.1 = next;
            }
            let piece = self.1.split_to(bytes.min(self.1.len()));
            bytes -= piece.len();
            out.push(piece);
        }
    }
}

impl Store {
    /// Starts batches while there is something queued, the device is ready and there is room.
    pub(super) fn start_batches(&mut self) {
        while self.failed.is_none()
            && self.batches.len() < BATCHES_MAX
            && !(self.writes.is_empty() && self.records.is_empty())
            && self.journal.room() > BATCH_JOURNAL_BLOCKS_MAX
        {
            let admitted = self.admit_writes();
            if admitted == 0 && self.records.is_empty() {
                break;
            }
            self.start_batch(admitted);
        }
    }

    /// How many of the queued writes go into the next batch: as many as space and size allow.
    fn admit_writes(&self) -> usize {
        let mut blocks = 0;
        for (at, write) in self.writes.iter().take(BATCH_REQUESTS_MAX).enumerate() {
            blocks += write.crcs.len() as u64;
            if blocks > self.allocator.free() || (blocks > BATCH_BLOCKS_MAX && at > 0) {
                return at;
            }
        }
        self.writes.len().min(BATCH_REQUESTS_MAX)
    }

    fn start_batch(&mut self, admitted: usize) {
        let stable = self.flushing.stable;
        let mut batch = Batch {
            number: self.next_batch,
            operations: 0,
            end: 0,
            last_crc: 0,
            changes: Vec::with_capacity(admitted + self.records.len()),
            requests: Vec::with_capacity(admitted + self.records.len()),
        };
        self.next_batch += 1;
        let mut data = DataWrites::default();
        let mut wanted: u64 = self.writes.iter().take(admitted).map(|write| write.crcs.len() as u64).sum();
        let mut run = (0, 0);
        for _ in 0..admitted {
            let Some(write) = self.writes.pop_front() else { break };
            self.record_progress(write.slot, stable);
            batch.requests.push((write.id, Some(write.slot), write.stable));
            let runs = self.place(&write, &mut run, &mut wanted);
            let mut segments = Segments(write.segments.into_iter(), Bytes::new());
            let mut at = 0;
            for (physical, count) in runs.iter() {
                let crcs = &write.crcs[at..at + count as usize];
                let out = self.journal.record(&mut self.arena, stable, write_record_bytes(crcs.len()));
                encode_write(
                    out,
                    write.slot,
                    write.start + at as u64,
                    write.stamp.plus(at as u64),
                    physical,
                    crcs,
                );
                data.push(physical, count, &mut segments);
                at += count as usize;
            }
            let QueuedWrite { slot, start, stamp, crcs, .. } = write;
            batch.changes.push(Change::Write { slot, start, stamp, crcs, runs });
        }
        let records = self.records.len().min(BATCH_REQUESTS_MAX);
        for queued in self.records.drain(..records).collect::<Vec<_>>() {
            let slot = slot_of(&queued.record);
            self.record_progress(slot, stable);
            queued.record.encode(self.journal.record(&mut self.arena, stable, OTHER_RECORD_BYTES_MAX));
            let counted = matches!(queued.record, Record::Discard { .. }).then_some(slot);
            batch.requests.push((queued.id, counted, queued.stable));
            batch.changes.push(Change::Record(queued.record));
        }
        self.submit_batch(batch, data, stable);
    }

    /// Gives a write its pool blocks, out of the batch's present run as long as that lasts.
    fn place(&mut self, write: &QueuedWrite, run: &mut (u64, u32), wanted: &mut u64) -> Runs {
        let mut left = u32::try_from(write.crcs.len()).unwrap_or(u32::MAX);
        let mut runs = Runs::default();
        while left > 0 {
            if run.1 == 0 {
                let want = u32::try_from(*wanted).unwrap_or(u32::MAX);
                let Some(next) = self.allocator.allocate(want) else {
                    unreachable!("writes are admitted only when there are free blocks for them")
                };
                *run = next;
            }
            let count = left.min(run.1);
            runs.push(run.0, count);
            *run = (run.0 + u64::from(count), run.1 - count);
            *wanted -= u64::from(count);
            left -= count;
        }
        runs
    }

    /// Journals a volume's progress when it has moved since the journal last heard of it.
    fn record_progress(&mut self, slot: Slot, stable: u64) {
        let Some(volume) = self.volumes.get_mut(slot) else { return };
        if volume.progress == volume.progress_recorded {
            return;
        }
        volume.progress_recorded = volume.progress;
        let record = Record::Progress { slot, progress: volume.progress };
        record.encode(self.journal.record(&mut self.arena, stable, OTHER_RECORD_BYTES_MAX));
    }

    fn submit_batch(&mut self, mut batch: Batch, data: DataWrites, stable: u64) {
        let mut operation = 0;
        for (physical, segments) in data.runs {
            let offset = physical * BLOCK_SIZE_U64;
            self.submit_disk(token(Kind::Batch, batch.number, operation), DiskOp::Write { offset, segments });
            operation += 1;
        }
        for (offset, segments) in self.journal.finish_batch(&mut self.arena, stable) {
            self.submit_disk(token(Kind::Batch, batch.number, operation), DiskOp::Write { offset, segments });
            operation += 1;
        }
        batch.operations = operation;
        if planted::is(PlantedFault::AcknowledgeUnwritten) {
            for (id, slot, _) in std::mem::take(&mut batch.requests) {
                if let Some(volume) = slot.and_then(|slot| self.volumes.get_mut(slot)) {
                    volume.outstanding -= 1;
                }
                self.complete(id, Ok(Reply::Done));
            }
        }
        batch.end = self.journal.head();
        batch.last_crc = self.journal.previous_crc();
        self.batches.push_back(batch);
    }

    /// Writes a journal block that only says what is stable, and every volume's progress.
    pub(super) fn start_mark(&mut self) {
        let stable = self.flushing.stable;
        let behind: Vec<Slot> = self
            .volumes
            .iter()
            .filter(|(_, volume)| !volume.deleted && volume.progress != volume.progress_recorded)
            .map(|(slot, _)| slot)
            .collect();
        for slot in behind {
            self.record_progress(slot, stable);
        }
        let batch = Batch {
            number: self.next_batch,
            operations: 0,
            end: 0,
            last_crc: 0,
            changes: Vec::new(),
            requests: Vec::new(),
        };
        self.next_batch += 1;
        self.submit_batch(batch, DataWrites::default(), stable);
    }

    /// One of a batch's operations has completed. Applies and acknowledges every batch that is
    /// done with all before it done.
    pub(super) fn batch_completed(&mut self, number: u64) {
        let Some(batch) = self.batches.iter_mut().find(|batch| batch.number == number) else { return };
        batch.operations -= 1;
        while self.batches.front().is_some_and(|batch| batch.operations == 0) {
            let Some(batch) = self.batches.pop_front() else { break };
            self.flushing.completed = batch.end;
            self.completed_crc = batch.last_crc;
            let sequence = batch.end - 1;
            if !batch.changes.is_empty() {
                self.flushing.content = batch.end;
            }
            for change in batch.changes {
                self.apply(change, sequence);
            }
            for (id, slot, stable) in batch.requests {
                if let Some(volume) = slot.and_then(|slot| self.volumes.get_mut(slot)) {
                    volume.outstanding -= 1;
                }
                if stable {
                    self.wait_stable(id, batch.end, Reply::Done);
                } else {
                    self.complete(id, Ok(Reply::Done));
                }
            }
        }
    }

    fn apply(&mut self, change: Change, sequence: u64) {
        match change {
            Change::Write { slot, start, stamp, crcs, runs } => {
                let Some(volume) = self.volumes.get_mut(slot).filter(|volume| !volume.deleted) else {
                    for (physical, count) in runs.iter() {
                        for block in physical..physical + u64::from(count) {
                            self.allocator.quarantine(block, sequence, self.reads.next());
                        }
                    }
                    return;
                };
                let range = BlockRange::new(start, u32::try_from(crcs.len()).unwrap_or(u32::MAX));
                volume.note_written(TailExtent { range, stamp, discard: false });
                let physical = runs.iter().flat_map(|(first, count)| first..first + u64::from(count));
                for ((at, physical), crc) in physical.enumerate().zip(crcs) {
                    let key = BlockKey { slot, block: start + at as u64 };
                    let entry = Entry { stamp: stamp.plus(at as u64), physical, crc };
                    let gone = match self.active.insert(key, entry) {
                        Placed::Newest { superseded } => superseded,
                        Placed::Outdated => Some(physical),
                    };
                    if let Some(gone) = gone {
                        self.allocator.quarantine(gone, sequence, self.reads.next());
                    }
                }
            }
            Change::Record(record) => {
                let (allocator, barrier) = (&mut self.allocator, self.reads.next());
                let quarantine = |gone| allocator.quarantine(gone, sequence, barrier);
                apply_record(&mut self.volumes, &mut self.active, &record, quarantine);
                // A deleted volume's space comes back with the next checkpoint.
                self.maintenance.requested |= matches!(record, Record::Delete { .. });
            }
        }
    }

    /// Fails every queued and started write: the pool has stopped.
    pub(super) fn fail_writes(&mut self, cause: &str) {
        let error = RequestError::PoolFailed(cause.to_owned());
        let queued: Vec<RequestId> = self
            .writes
            .drain(..)
            .map(|write| write.id)
            .chain(self.records.drain(..).map(|record| record.id))
            .chain(self.batches.drain(..).flat_map(|batch| batch.requests).map(|(id, ..)| id))
            .collect();
        for id in queued {
            self.complete(id, Err(error.clone()));
        }
    }
}

fn slot_of(record: &Record) -> Slot {
    match record {
        Record::Write { slot, .. }
        | Record::Discard { slot, .. }
        | Record::Create { slot, .. }
        | Record::Delete { slot }
        | Record::Resize { slot, .. }
        | Record::Promise { slot, .. }
        | Record::Progress { slot, .. } => *slot,
    }
}

/// Carries out a record other than a write: the same for a live change and for replay. Calls
/// `superseded` with pool blocks that are no longer referenced.
pub(super) fn apply_record(
    volumes: &mut super::volume::VolumeTable,
    active: &mut super::memtable::Memtable,
    record: &Record,
    superseded: impl FnMut(u64),
) {
    match record {
        Record::Write { .. } => unreachable!("writes are applied block by block"),
        Record::Discard { slot, range, stamp } => {
            if let Some(volume) = volumes.get_mut(*slot).filter(|volume| !volume.deleted) {
                volume.note_written(TailExtent { range: *range, stamp: *stamp, discard: true });
                active.discard(*slot, *range, *stamp, superseded);
            }
        }
        Record::Create { slot, volume, blocks } => {
            if volumes.get(*slot).is_none() {
                volumes.insert(*slot, Volume::new(*volume, *blocks));
            }
        }
        Record::Delete { slot } => {
            volumes.mark_deleted(*slot);
            active.remove_volume(*slot, superseded);
        }
        Record::Resize { slot, blocks } => {
            if let Some(volume) = volumes.get_mut(*slot) {
                volume.blocks = volume.blocks.max(*blocks);
            }
        }
        Record::Promise { slot, generation, epoch, session } => {
            if let Some(volume) = volumes.get_mut(*slot)
                && *generation >= volume.generation
            {
                (volume.generation, volume.epoch, volume.session) = (*generation, *epoch, *session);
            }
        }
        Record::Progress { slot, progress } => {
            if let Some(volume) = volumes.get_mut(*slot) {
                volume.note_progress(*progress);
                volume.progress_recorded = volume.progress;
            }
        }
    }
}
