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
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64, BlockCrc, BlockTag, Stamp};

use super::Store;
use super::apply::{Change, Runs};
use super::place::{PLACE_RUNS_MAX, PLACE_TOMBSTONES_MAX, QueuedPlace, Resolved};
use super::record::{OTHER_RECORD_BYTES_MAX, Record, Slot, TAGGED_RECORD_BLOCKS_MAX, WriteRecord};
use super::request::{Reply, RequestError, RequestId, TailExtent};
use super::snapshots::NO_SNAPSHOTS;
use super::token::{Kind, token};
use super::version::Origin;
use crate::planted::{self, PlantedFault};

/// Batches on their way to the device at once. More than one keeps the device busy while the
/// next is made; few, so that batches grow under load.
const BATCHES_MAX: usize = 2;
/// Data blocks in a batch (4 MiB).
const BATCH_BLOCKS_MAX: u64 = 1024;
/// Of them, placed ones (1 MiB), so that a copy does not delay the writes that come meanwhile.
const BATCH_PLACED_BLOCKS_MAX: u64 = 256;
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
    pub(super) tags: Vec<BlockTag>,
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

impl Batch {
    fn new(number: u64) -> Self {
        Self { number, operations: 0, end: 0, last_crc: 0, changes: Vec::new(), requests: Vec::new() }
    }

    /// The changes without data.
    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.changes.iter().filter_map(|change| match change {
            Change::Record(record) => Some(record),
            Change::Write { .. } => None,
        })
    }
}

/// What is admitted to the next batch, of each queue from its front.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Admitted {
    writes: usize,
    places: usize,
    /// Blocks of data at most.
    blocks: u64,
}

/// A batch, and where its data goes.
struct Making {
    batch: Batch,
    data: DataWrites,
    /// What is left of the run of pool blocks last allocated.
    run: (u64, u32),
    /// Blocks for which none is allocated yet, at most.
    wanted: u64,
    stable: u64,
}

/// Consecutive blocks of a write or place.
struct DataRun {
    origin: Origin,
    slot: Slot,
    start: u64,
    stamp: Stamp,
    crcs: Vec<BlockCrc>,
    tags: Vec<BlockTag>,
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
    fn new(segments: Vec<Bytes>) -> Self {
        Self(segments.into_iter(), Bytes::new())
    }

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
            && !(self.writes.is_empty() && self.records.is_empty() && self.places.is_empty())
            && self.journal.room() > BATCH_JOURNAL_BLOCKS_MAX
        {
            let admitted = self.admit();
            if admitted.writes + admitted.places == 0 && self.records.is_empty() {
                break;
            }
            self.start_batch(admitted);
        }
    }

    /// How much of what is queued goes into the next batch: as much as space and size allow. Writes
    /// come first; a place goes along with every batch.
    fn admit(&self) -> Admitted {
        let free = self.allocator.free();
        let mut admitted = Admitted { writes: 0, places: 0, blocks: 0 };
        for write in self.writes.iter().take(BATCH_REQUESTS_MAX) {
            let blocks = admitted.blocks + write.crcs.len() as u64;
            if blocks > free || (blocks > BATCH_BLOCKS_MAX && admitted.writes > 0) {
                break;
            }
            admitted.blocks = blocks;
            admitted.writes += 1;
        }
        let (mut placed, mut runs, mut tombstones) = (0, 0, 0);
        for place in self.places.iter().take(BATCH_REQUESTS_MAX) {
            placed += place.crcs.len() as u64;
            runs += place.versions.len();
            tombstones += place.tombstones();
            let too_much = placed > BATCH_PLACED_BLOCKS_MAX
                || runs > PLACE_RUNS_MAX
                || tombstones > PLACE_TOMBSTONES_MAX;
            if admitted.blocks + place.crcs.len() as u64 > free || (too_much && admitted.places > 0) {
                break;
            }
            admitted.blocks += place.crcs.len() as u64;
            admitted.places += 1;
        }
        admitted
    }

    fn start_batch(&mut self, admitted: Admitted) {
        let stable = self.flushing.stable;
        let mut batch = Batch::new(self.next_batch);
        let requests = admitted.writes + admitted.places + self.records.len();
        batch.changes.reserve(requests);
        batch.requests.reserve(requests);
        self.next_batch += 1;
        let data = DataWrites::default();
        let mut making = Making { batch, data, run: (0, 0), wanted: admitted.blocks, stable };
        for write in self.writes.drain(..admitted.writes).collect::<Vec<_>>() {
            self.record_progress(write.slot, stable);
            making.batch.requests.push((write.id, Some(write.slot), write.stable));
            let QueuedWrite { slot, start, stamp, crcs, tags, segments, .. } = write;
            let run = DataRun { origin: Origin::Live, slot, start, stamp, crcs, tags };
            self.put_data(&mut making, run, &mut Segments::new(segments));
        }
        for place in self.places.drain(..admitted.places).collect::<Vec<_>>() {
            self.record_progress(place.slot, stable);
            making.batch.requests.push((place.id, Some(place.slot), false));
            self.put_place(&mut making, place);
        }
        let records = self.records.len().min(BATCH_REQUESTS_MAX);
        for queued in self.records.drain(..records).collect::<Vec<_>>() {
            let slot = queued.record.slot();
            self.record_progress(slot, stable);
            let counted = matches!(queued.record, Record::Discard { .. }).then_some(slot);
            making.batch.requests.push((queued.id, counted, queued.stable));
            self.put_record(&mut making, queued.record);
        }
        // What was meant for blocks that a discard has outdated has never been written.
        for block in making.run.0..making.run.0 + u64::from(making.run.1) {
            self.allocator.quarantine(block, 0, 0);
        }
        self.submit_batch(making.batch, making.data, stable);
    }

    fn put_record(&mut self, making: &mut Making, record: Record) {
        record.encode(self.journal.record(&mut self.arena, making.stable, OTHER_RECORD_BYTES_MAX));
        making.batch.changes.push(Change::Record(record));
    }

    fn put_data(&mut self, making: &mut Making, run: DataRun, segments: &mut Segments) {
        let DataRun { origin, slot, start, stamp, crcs, tags } = run;
        let runs = self.locate(making, u32::try_from(crcs.len()).unwrap_or(u32::MAX));
        let mut at = 0;
        for (physical, count) in runs.iter() {
            let end = at + count as usize;
            let in_record = if tags.is_empty() { end - at } else { TAGGED_RECORD_BLOCKS_MAX };
            for first in (at..end).step_by(in_record) {
                let part = first..end.min(first + in_record);
                let record = WriteRecord {
                    origin,
                    slot,
                    start: start + first as u64,
                    stamp: stamp.plus(first as u64),
                    physical: physical + (first - at) as u64,
                    crcs: &crcs[part.clone()],
                    tags: if tags.is_empty() { &[] } else { &tags[part] },
                };
                record.encode(self.journal.record(&mut self.arena, making.stable, record.bytes()));
            }
            making.data.push(physical, count, segments);
            at = end;
        }
        making.batch.changes.push(Change::Write { origin, slot, start, stamp, crcs, tags, runs });
    }

    /// Writes what stands of a place; what a discard has outdated since becomes its tombstone.
    fn put_place(&mut self, making: &mut Making, place: QueuedPlace) {
        let QueuedPlace { slot, origin, versions, crcs, tags, segments, .. } = place;
        let mut segments = Segments::new(segments);
        let (mut crcs, mut tags) = (crcs.into_iter(), tags.into_iter());
        for run in versions {
            let snapshots = self.volumes.get(slot).map_or(&NO_SNAPSHOTS, |volume| &volume.snapshots);
            let resolved = match self.pulled.get(&slot) {
                Some(pulled) => pulled.resolve(slot, run, snapshots),
                None => Resolved { standing: vec![run], above: Vec::new() },
            };
            for TailExtent { range, stamp, .. } in resolved.above {
                self.put_record(making, Record::PlaceTombstones { slot, range, stamp });
            }
            for piece in resolved.standing {
                let count = piece.range.count as usize;
                let count = if run.discard { 0 } else { count };
                let taken: Vec<BlockCrc> = crcs.by_ref().take(count).collect();
                let tags: Vec<BlockTag> = tags.by_ref().take(count).collect();
                if piece.discard {
                    segments.take_into(taken.len() * BLOCK_SIZE, &mut Vec::new());
                    let (range, stamp) = (piece.range, piece.stamp);
                    self.put_record(making, Record::PlaceTombstones { slot, range, stamp });
                } else {
                    let (start, stamp) = (piece.range.start, piece.stamp);
                    let run = DataRun { origin, slot, start, stamp, crcs: taken, tags };
                    self.put_data(making, run, &mut segments);
                }
            }
        }
    }

    /// Finds pool blocks, out of the batch's present run as long as that lasts.
    fn locate(&mut self, making: &mut Making, blocks: u32) -> Runs {
        let mut left = blocks;
        let mut runs = Runs::default();
        while left > 0 {
            if making.run.1 == 0 {
                let want = u32::try_from(making.wanted).unwrap_or(u32::MAX);
                let Some(next) = self.allocator.allocate(want) else {
                    unreachable!("what has data is admitted only when there are free blocks for it")
                };
                making.run = next;
            }
            let (first, length) = making.run;
            let count = left.min(length);
            runs.push(first, count);
            making.run = (first + u64::from(count), length - count);
            making.wanted -= u64::from(count);
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
            .filter(|(_, volume)| volume.is_live() && volume.progress != volume.progress_recorded)
            .map(|(slot, _)| slot)
            .collect();
        for slot in behind {
            self.record_progress(slot, stable);
        }
        let batch = Batch::new(self.next_batch);
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

    /// Fails every queued and started write: the pool has stopped.
    pub(super) fn fail_writes(&mut self, cause: &str) {
        let error = RequestError::PoolFailed(cause.to_owned());
        let queued: Vec<RequestId> = self
            .writes
            .drain(..)
            .map(|write| write.id)
            .chain(self.places.drain(..).map(|place| place.id))
            .chain(self.records.drain(..).map(|record| record.id))
            .chain(self.batches.drain(..).flat_map(|batch| batch.requests).map(|(id, ..)| id))
            .collect();
        for id in queued {
            self.complete(id, Err(error.clone()));
        }
    }
}
