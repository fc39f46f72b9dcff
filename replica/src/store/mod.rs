//! The pool: thin, checksummed, journaled block storage for many volumes, as a synchronous state
//! machine. It holds no clock, socket or thread: requests, disk completions and checkpoint results
//! go in; [`Action`]s come out.
//!
//! ```text
//!  Write ─► queue ─► batch ─┬─► data, to free blocks ──┐
//!                           └─► journal, what went where┴─► apply to the memtable ─► acknowledge
//!  memtable ─ frozen, stable ─► merged into the map, one atomic commit ─► journal's tail moves
//!  Read  ─► memtable, frozen memtable, cached map ─► read runs ─► verify checksums ─► answer
//! ```
//!
//! Copy-on-write: data goes only to free blocks, so a torn data write is harmless. The journal is
//! written in parallel with the data; replay verifies unstable data by checksum (`recovery.rs`).

mod allocator;
mod apply;
mod cache;
mod changed;
mod checkpoint;
mod entry;
mod extents;
mod flush;
mod group_load;
mod group_merge;
mod header;
mod inspect;
mod journal;
mod layout;
mod lineage;
mod maintenance;
mod map_scan;
mod memtable;
mod open;
mod open_error;
mod place;
mod read;
mod record;
mod recovery;
mod regions;
mod request;
mod snapshots;
mod tags;
mod thinning;
mod token;
mod verified;
mod verify;
mod version;
mod volume;
mod write;

use std::sync::Arc;
use std::time::Duration;

use trivet_disk::{DiskCompletion, DiskOp, DiskToken};
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{BlockArena, BlockRange, SnapshotId, Stamp, VOLUME_BLOCKS_MAX, VolumeId};

use allocator::Allocator;
use cache::MapCache;
use changed::What;
use flush::Flushing;
use hashbrown::HashMap;
use header::Header;
use journal::Journal;
use layout::Superblock;
use lineage::Tie;
use maintenance::Maintenance;
use memtable::Memtable;
use place::{Pulled, QueuedPlace};
use read::{Purpose, Reads};
use record::{Record, Slot};
use volume::{Life, TAIL_EXTENTS_MAX, THINNINGS_MAX, VolumeTable};
use write::{Batch, QueuedRecord, QueuedWrite};

use crate::planted::{self, PlantedFault};

pub use changed::{CHANGED_RUNS_MAX, ChangedScan, ChangedScanned};
pub use checkpoint::{CheckpointError, CheckpointJob, CheckpointOutcome};
pub use entry::GroupError;
pub use group_load::{GroupLoad, GroupsLoaded};
pub use header::HeaderError;
pub use inspect::BlockVersion;
pub use layout::{Geometry, POOL_VERSION, SUPERBLOCK_OFFSETS, SuperblockError, ZONE_BLOCKS};
pub use lineage::{ANCESTORS_MAX, Parent};
pub use open::{FormatOptions, OpenReport, StoreOptions};
pub use open_error::{FormatError, OpenError};
pub use place::{PLACE_RUNS_MAX, PLACE_TOMBSTONES_MAX};
pub use request::{
    Action, AllocationExtent, ChangedPage, FetchedBlocks, Placement, PoolStatistics, ReadBlocks, Reply,
    Request, RequestError, RequestId, TailExtent, VerifiedBlocks, VolumeProgress, VolumeStatistics,
};
pub use snapshots::{SNAPSHOTS_MAX, Snapshot};
pub use verify::{Finding, VerifyReport, verify};
pub use volume::VolumeDecodeError;

/// An open pool.
#[derive(Debug)]
pub struct Store {
    superblock: Superblock,
    /// As last committed.
    header: Header,
    volumes: VolumeTable,
    active: Memtable,
    memtable_entries_max: usize,
    /// Being merged into the map; in front of the cache until the cache knows.
    frozen: Option<Arc<Memtable>>,
    cache: MapCache,
    allocator: Allocator,
    journal: Journal,
    arena: BlockArena,
    writes: std::collections::VecDeque<QueuedWrite>,
    records: std::collections::VecDeque<QueuedRecord>,
    places: std::collections::VecDeque<QueuedPlace>,
    /// The volumes that are pulled or repaired.
    pulled: HashMap<Slot, Pulled>,
    /// Promises that wait for their volume's earlier requests.
    held: Vec<(RequestId, Slot, Record)>,
    batches: std::collections::VecDeque<Batch>,
    next_batch: u64,
    /// Checksum of the journal block before `flushing.completed`.
    completed_crc: u32,
    flushing: Flushing,
    reads: Reads,
    /// Looks for what changed that are with the background thread.
    scans: usize,
    maintenance: Maintenance,
    /// Checkpoints finished since opening.
    checkpoints: u64,
    checksum_errors: u64,
    failed: Option<String>,
    device_silent: Option<Duration>,
    actions: Vec<Action>,
}

impl Store {
    /// Takes a request. It is answered by an [`Action::Complete`], never before
    /// [`Store::poll_actions`].
    pub fn submit(&mut self, id: RequestId, request: Request) {
        self.note_busy();
        if let Err(error) = self.accept(id, request) {
            self.complete(id, Err(error));
        }
    }

    /// An operation on the device has ended.
    pub fn disk_completed(&mut self, completion: DiskCompletion) {
        let (kind, number, part) = token::parse(completion.token);
        match kind {
            Some(token::Kind::Read) => self.read_completed(number, part, completion.result),
            Some(token::Kind::Extend) => self.extend_completed(number, completion.result.map(drop)),
            _ if self.failed.is_some() => {}
            Some(token::Kind::Batch) => match completion.result {
                Ok(_) => self.batch_completed(number),
                Err(error) => self.fail(&error.to_string()),
            },
            Some(token::Kind::Flush) => match completion.result {
                Ok(_) => self.flush_completed(),
                Err(_) if planted::is(PlantedFault::RetryFailedFlush) => self.flushing.retry(),
                Err(error) => self.fail(&error.to_string()),
            },
            None => unreachable!("a completion of somebody else's operation"),
        }
    }

    /// Makes the next batch of what is queued and hands out everything to do, in order.
    pub fn poll_actions(&mut self, out: &mut Vec<Action>) {
        self.maintain();
        self.release_held();
        self.start_batches();
        self.start_flush();
        out.append(&mut self.actions);
    }

    /// Notes how far a volume is. What is stable on all members leaves the tail.
    pub fn note_progress(&mut self, volume: VolumeId, progress: VolumeProgress) {
        if let Some(volume) = self.volumes.find(volume).and_then(|slot| self.volumes.get_mut(slot)) {
            volume.note_progress(progress);
        }
    }

    /// The other members hold everything up to `stable` for good. Whoever compares tails later begins
    /// there, or finds it in theirs: this replica, which is being brought up to them, need not list it.
    pub fn trim_tail(&mut self, volume: VolumeId, stable: Stamp) {
        if let Some(volume) = self.volumes.find(volume).and_then(|slot| self.volumes.get_mut(slot)) {
            volume.trim_tail(stable);
        }
    }

    /// A volume's figures and promises.
    #[must_use]
    pub fn volume(&self, volume: VolumeId) -> Option<VolumeStatistics> {
        let slot = self.volumes.find(volume)?;
        self.volumes.get(slot).map(|volume| volume.statistics())
    }

    /// A volume's snapshots, in the order of their cuts.
    #[must_use]
    pub fn snapshots(&self, volume: VolumeId) -> Vec<Snapshot> {
        let known = self.volumes.find(volume).and_then(|slot| self.volumes.get(slot));
        known.map(|volume| volume.snapshots.iter().collect()).unwrap_or_default()
    }

    /// Every volume's figures.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeStatistics> {
        let live = self.volumes.iter().filter(|(_, volume)| volume.is_live());
        live.map(|(_, volume)| volume.statistics()).collect()
    }

    /// The pool's figures.
    #[must_use]
    pub fn statistics(&self) -> PoolStatistics {
        let ancestors = self.volumes.iter().filter(|(_, volume)| volume.life == Life::Ancestor);
        PoolStatistics {
            blocks_total: self.superblock.geometry.zones() * ZONE_BLOCKS,
            blocks_used: self.allocator.taken(),
            blocks_kept: ancestors.map(|(_, volume)| volume.blocks_used).sum(),
            checksum_errors: self.checksum_errors,
            failed: self.failed.clone().or_else(|| {
                let silent = self.device_silent?;
                Some(format!("its device has not answered anything for {} s", silent.as_secs()))
            }),
        }
    }

    /// Why the pool has stopped, if it has: a write or flush of its device failed, or a checkpoint.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// For how long the device has owed answers and given none, if that is worth a word: the pool then
    /// says so of itself, although it has not stopped.
    pub const fn note_device_silent(&mut self, silent: Option<Duration>) {
        self.device_silent = silent;
    }

    /// Whether nothing is queued, in flight or waited for.
    #[must_use]
    pub fn is_quiescent(&self) -> bool {
        let queued = !self.writes.is_empty() || !self.records.is_empty() || !self.places.is_empty();
        let writing = queued || !self.batches.is_empty();
        let reading = !self.reads.is_empty() || self.scans > 0;
        let idle = !writing && !reading && self.held.is_empty() && self.actions.is_empty();
        idle && (self.failed.is_some() || (self.flushing.is_idle() && self.maintenance_is_idle()))
    }

    fn accept(&mut self, id: RequestId, request: Request) -> Result<(), RequestError> {
        if let Some(cause) = &self.failed
            && !request.only_reads()
        {
            return Err(RequestError::PoolFailed(cause.clone()));
        }
        match request {
            Request::Write { volume, start, stamp, crcs, tags, segments, stable } => {
                self.check_tags(volume, crcs.len(), tags.len())?;
                let count = u32::try_from(crcs.len()).unwrap_or(u32::MAX);
                let slot = self.admit_change(volume, BlockRange::new(start, count), IO_BLOCKS_MAX)?;
                self.writes.push_back(QueuedWrite { id, slot, start, stamp, crcs, tags, segments, stable });
            }
            Request::Discard { volume, range, stamp, stable } => {
                let slot = self.admit_change(volume, range, u32::MAX)?;
                self.note_discard(slot, range, stamp);
                let record = Record::Discard { slot, range, stamp };
                self.records.push_back(QueuedRecord { id, record, stable });
            }
            Request::Flush { volume } => {
                let slot = self.find(volume)?;
                self.flush(id, slot);
            }
            Request::Read { volume, at, range } => self.read(id, volume, at, range, Purpose::Read)?,
            Request::Fetch { volume, at, range } => self.read(id, volume, at, range, Purpose::Fetch)?,
            Request::Verify { volume, at, range, stamps_only } => {
                let purpose = if stamps_only { Purpose::Stamps } else { Purpose::Verify };
                self.read(id, volume, at, range, purpose)?;
            }
            Request::Inherit { volume, range } => {
                let slot = self.find_range(volume, range, IO_BLOCKS_MAX)?;
                self.inherit(id, slot, range);
            }
            Request::Changed { volume, at, since, start } => {
                self.changed(id, volume, What::Since { at, since }, start)?;
            }
            Request::Inherited { volume, start } => self.changed(id, volume, What::Inherited, start)?,
            Request::Place { volume, placement } => self.accept_place(id, volume, placement)?,
            Request::Allocation { volume, at, range } => {
                let slot = self.find_range(volume, range, u32::MAX)?;
                self.allocation(id, slot, at, range);
            }
            Request::Tail { volume, since } => {
                let slot = self.find(volume)?;
                let tail = self.volumes.get(slot).map(|volume| volume.tail_above(since)).unwrap_or_default();
                self.complete(id, Ok(Reply::Tail(tail)));
            }
            Request::Promise { volume, generation, epoch, session } => {
                let slot = self.find(volume)?;
                if planted::is(PlantedFault::SkipDurablePromise)
                    && let Some(volume) = self.volumes.get_mut(slot)
                {
                    (volume.generation, volume.epoch, volume.session) = (generation, epoch, session);
                    self.complete(id, Ok(Reply::Done));
                    return Ok(());
                }
                self.held.push((id, slot, Record::Promise { slot, generation, epoch, session }));
            }
            Request::CreateVolume { volume, blocks, parent, tagged } => {
                self.create_volume(id, volume, blocks, parent, tagged)?;
            }
            Request::Untie { volume } => {
                let slot = self.find(volume)?;
                self.records.push_back(QueuedRecord { id, record: Record::Untie { slot }, stable: true });
            }
            Request::DeleteVolume { volume } => match self.volumes.find(volume) {
                Some(slot) => self.held.push((id, slot, Record::Delete { slot })),
                None => self.wait_stable(id, self.flushing.content, Reply::Done),
            },
            Request::ResizeVolume { volume, blocks } => self.resize_volume(id, volume, blocks)?,
            Request::CreateSnapshot { volume, snapshot } => self.create_snapshot(id, volume, snapshot)?,
            Request::ResetVolume { volume } => {
                let (slot, next) = (self.find(volume)?, self.volumes.take_slot());
                self.held.push((id, slot, Record::Reset { slot, next }));
            }
            Request::DeleteSnapshot { volume, id: snapshot } => {
                let slot = self.find(volume)?;
                self.held.push((id, slot, Record::DeleteSnapshot { slot, id: snapshot }));
            }
        }
        Ok(())
    }

    fn create_volume(
        &mut self,
        id: RequestId,
        volume: VolumeId,
        blocks: u64,
        parent: Option<Parent>,
        tagged: bool,
    ) -> Result<(), RequestError> {
        let refuse = |reason| Err(RequestError::BadSize { asked: blocks, reason });
        if blocks == 0 || blocks > VOLUME_BLOCKS_MAX {
            return refuse("a volume has from one block to 64 TiB");
        }
        let tie = parent.map(|parent| self.tie_to(parent, tagged)).transpose()?;
        let present = self.volumes.find(volume).and_then(|slot| self.volumes.get(slot));
        if let Some(present) = present {
            if present.blocks != blocks {
                return refuse("the volume is there with another size");
            }
            if present.tie != tie {
                return refuse("the volume is there with another parent");
            }
            if present.tagged != tagged {
                return refuse("the volume is there; only one of the two is encrypted");
            }
            self.wait_stable(id, self.flushing.content, Reply::Done);
            return Ok(());
        }
        let queued = self
            .records_under_way()
            .any(|record| matches!(record, Record::Create { volume: other, .. } if *other == volume));
        if queued {
            return refuse("the volume is being created");
        }
        let slot = self.volumes.take_slot();
        let record = Record::Create { slot, volume, blocks, tie, tagged };
        self.records.push_back(QueuedRecord { id, record, stable: true });
        Ok(())
    }

    /// From where a clone of this parent is read.
    fn tie_to(&self, parent: Parent, tagged: bool) -> Result<Tie, RequestError> {
        let Parent { volume, snapshot } = parent;
        let slot = self.find(volume)?;
        let goes = |record: &Record| {
            record.slot() == slot
                && match record {
                    Record::Delete { .. } | Record::Reset { .. } => true,
                    Record::DeleteSnapshot { id, .. } => *id == snapshot,
                    _ => false,
                }
        };
        if self.records_under_way().any(goes) {
            return Err(RequestError::BadParent {
                volume,
                reason: "what it is to be made of is being deleted",
            });
        }
        let cut = self.cut(slot, Some(snapshot))?;
        if self.volumes.get(slot).is_some_and(|parent| parent.tagged != tagged) {
            return Err(RequestError::BadParent { volume, reason: "only one of the two is encrypted" });
        }
        if self.volumes.lineage(slot).len() >= ANCESTORS_MAX {
            let reason = "it is a clone of a clone, and so on, too many times; flatten it first";
            return Err(RequestError::BadParent { volume, reason });
        }
        Ok(Tie { parent: slot, cut })
    }

    fn resize_volume(&mut self, id: RequestId, volume: VolumeId, blocks: u64) -> Result<(), RequestError> {
        let slot = self.find(volume)?;
        let present = self.volumes.get(slot).map_or(0, |volume| volume.blocks);
        if blocks < present || blocks > VOLUME_BLOCKS_MAX {
            let reason = "a volume can only grow, up to 64 TiB";
            return Err(RequestError::BadSize { asked: blocks, reason });
        }
        let record = Record::Resize { slot, blocks };
        self.records.push_back(QueuedRecord { id, record, stable: true });
        Ok(())
    }

    fn create_snapshot(
        &mut self,
        id: RequestId,
        volume: VolumeId,
        snapshot: Snapshot,
    ) -> Result<(), RequestError> {
        let slot = self.find(volume)?;
        let refuse = |reason| Err(RequestError::BadSnapshot { id: snapshot.id, reason });
        let (mut coming, mut going) = (0, 0);
        for record in self.records_under_way() {
            match record {
                Record::Snapshot { slot: of, snapshot: other } if *of == slot => {
                    if other.id == snapshot.id || other.cut == snapshot.cut {
                        return refuse("it is being taken; ask again");
                    }
                    coming += 1;
                }
                Record::DeleteSnapshot { slot: of, id } if *of == slot => {
                    if *id == snapshot.id {
                        return refuse("it is being deleted");
                    }
                    going += 1;
                }
                _ => {}
            }
        }
        let Some(known) = self.volumes.get(slot) else { return Err(RequestError::NoSuchVolume(volume)) };
        match (known.snapshots.find(snapshot.id), known.snapshots.at(snapshot.cut)) {
            (Some(present), _) if present == snapshot => {
                self.wait_stable(id, self.flushing.content, Reply::Done);
                return Ok(());
            }
            (Some(_), _) => return refuse("it is there with another cut"),
            (None, Some(other)) if other.id != snapshot.id => {
                return refuse("another snapshot has the same cut");
            }
            (None, _) => {}
        }
        if snapshot.cut == Stamp::ZERO || snapshot.cut == Stamp::MAX {
            return refuse("no write has such a stamp");
        }
        let (kept, thinned) = (known.snapshots.len() + coming, known.thinning.len() + going);
        if kept >= SNAPSHOTS_MAX || thinned >= THINNINGS_MAX {
            return refuse("the volume has as many snapshots as a pool can keep; delete some first");
        }
        self.held.push((id, slot, Record::Snapshot { slot, snapshot }));
        Ok(())
    }

    /// Records accepted and not yet carried out, in the order in which they will be.
    fn records_under_way(&self) -> impl Iterator<Item = &Record> {
        let written = self.batches.iter().flat_map(|batch| batch.records());
        let queued = self.records.iter().map(|queued| &queued.record);
        let held = self.held.iter().map(|(_, _, record)| record);
        written.chain(queued).chain(held)
    }

    /// The cut of a snapshot, or above all stamps for the volume as it is now.
    fn cut(&self, slot: Slot, at: Option<SnapshotId>) -> Result<Stamp, RequestError> {
        let Some(at) = at else { return Ok(Stamp::MAX) };
        let snapshot = self.volumes.get(slot).and_then(|volume| volume.snapshots.find(at));
        snapshot.map(|snapshot| snapshot.cut).ok_or(RequestError::NoSuchSnapshot(at))
    }

    fn find(&self, volume: VolumeId) -> Result<Slot, RequestError> {
        self.volumes.find(volume).ok_or(RequestError::NoSuchVolume(volume))
    }

    fn find_range(&self, volume: VolumeId, range: BlockRange, most: u32) -> Result<Slot, RequestError> {
        let slot = self.find(volume)?;
        let blocks = self.volumes.get(slot).map_or(0, |volume| volume.blocks);
        if !range.fits(blocks) || range.count > most {
            return Err(RequestError::OutOfRange { range, blocks });
        }
        Ok(slot)
    }

    /// Every block of an encrypted volume comes with its tag, and none of another.
    fn check_tags(&self, volume: VolumeId, blocks: usize, tags: usize) -> Result<(), RequestError> {
        let known = self.volumes.get(self.find(volume)?);
        let expected = if known.is_some_and(|known| known.tagged) { blocks } else { 0 };
        if tags == expected { Ok(()) } else { Err(RequestError::Tags { volume, blocks, tags }) }
    }

    fn admit_change(&mut self, volume: VolumeId, range: BlockRange, most: u32) -> Result<Slot, RequestError> {
        let slot = self.find_range(volume, range, most)?;
        if let Some(volume) = self.volumes.get_mut(slot) {
            if volume.tail.len() >= TAIL_EXTENTS_MAX {
                return Err(RequestError::TailTooLong { extents: volume.tail.len() });
            }
            volume.outstanding += 1;
        }
        Ok(slot)
    }

    /// Lets promises and deletions go whose volume has nothing outstanding from before.
    fn release_held(&mut self) {
        let mut at = 0;
        while at < self.held.len() {
            let slot = self.held[at].1;
            if self.volumes.get(slot).is_some_and(|volume| volume.outstanding > 0) {
                at += 1;
                continue;
            }
            let (id, _, record) = self.held.remove(at);
            self.records.push_back(QueuedRecord { id, record, stable: true });
        }
    }

    fn submit_disk(&mut self, token: DiskToken, operation: DiskOp) {
        self.actions.push(Action::Disk(token, operation));
    }

    fn complete(&mut self, id: RequestId, result: Result<Reply, RequestError>) {
        self.actions.push(Action::Complete(id, result));
    }

    /// Stops the pool: nothing is written any more until it is reopened. Reads go on.
    fn fail(&mut self, cause: &str) {
        if self.failed.is_some() {
            return;
        }
        self.failed = Some(cause.to_owned());
        self.fail_writes(cause);
        let mut waiting = self.fail_flushes();
        waiting.extend(self.held.drain(..).map(|(id, ..)| id));
        for id in waiting {
            self.complete(id, Err(RequestError::PoolFailed(cause.to_owned())));
        }
    }
}
