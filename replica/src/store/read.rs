//! The read path: look up, read runs, verify every block's checksum.
//!
//! Invariants
//! - A pool block that a read in flight looks at is not reused before the read has ended: reads
//!   are numbered, and the allocator waits for those that began before a block was superseded.
//! - Only applied changes are visible.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use hashbrown::HashSet;
use trivet_disk::{DiskError, DiskOp};
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{
    BLOCK_SIZE, BLOCK_SIZE_U64, BlockRange, BlockTag, SnapshotId, Stamp, VolumeId, block_crc,
};

use super::Store;
use super::cache::{LEAF_BLOCKS, LeafKey};
use super::entry::{BlockKey, Entry};
use super::extents::append;
use super::group_load::{GroupLoad, GroupsLoaded};
use super::lineage::Tie;
use super::record::Slot;
use super::request::{
    Action, AllocationExtent, FetchedBlocks, ReadBlocks, Reply, RequestError, RequestId, TailExtent,
    VerifiedBlocks,
};
use super::token::{Kind, token};
use super::verified::verified;
use super::version::Origin;

/// An allocation query answers at most so many blocks at once: what it makes us load is bounded.
const ALLOCATION_BLOCKS_MAX: u64 = 64 * LEAF_BLOCKS;

/// What is wanted of the blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Read,
    Allocation,
    Fetch,
    Verify,
    /// As `Verify`, by the map alone.
    Stamps,
    /// As `Fetch`, of what only ancestors have.
    Inherit,
}

/// A request whose leaves are being looked up.
#[derive(Debug)]
pub(super) struct PendingLookup {
    id: RequestId,
    slot: Slot,
    at: Option<SnapshotId>,
    range: BlockRange,
    purpose: Purpose,
}

#[derive(Debug)]
struct ReadInFlight {
    id: RequestId,
    purpose: Purpose,
    start: u64,
    /// Tombstones included, where they are asked for.
    versions: Vec<TailExtent>,
    /// Those that hold data.
    entries: Vec<Option<Entry>>,
    /// Their tags, if the volume is encrypted.
    tags: Vec<BlockTag>,
    /// What is read in one go each.
    runs: Vec<Run>,
    left: usize,
    failure: Option<RequestError>,
}

/// Blocks that lie next to each other in the pool.
#[derive(Debug)]
pub(super) struct Run {
    first: u64,
    pub(super) count: u64,
    /// Once they are read.
    pub(super) data: Option<Bytes>,
}

/// Reads by number; those that ended leave a gap until they are the oldest.
#[derive(Debug, Default)]
pub(super) struct Reads {
    in_flight: VecDeque<Option<ReadInFlight>>,
    oldest: u64,
    waiting: Vec<PendingLookup>,
    loading: HashSet<LeafKey>,
}

impl Reads {
    /// The number that the next read gets.
    pub(super) fn next(&self) -> u64 {
        self.oldest + self.in_flight.len() as u64
    }

    /// Every read numbered below this has ended.
    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.waiting.is_empty()
    }

    fn end(&mut self, number: u64) -> Option<ReadInFlight> {
        let index = usize::try_from(number.checked_sub(self.oldest)?).unwrap_or(usize::MAX);
        let read = self.in_flight.get_mut(index)?.take();
        while self.in_flight.front().is_some_and(Option::is_none) {
            self.in_flight.pop_front();
            self.oldest += 1;
        }
        read
    }
}

impl Store {
    pub(super) fn read(
        &mut self,
        id: RequestId,
        volume: VolumeId,
        at: Option<SnapshotId>,
        range: BlockRange,
        purpose: Purpose,
    ) -> Result<(), RequestError> {
        let slot = self.find_range(volume, range, IO_BLOCKS_MAX)?;
        self.lookup(PendingLookup { id, slot, at, range, purpose });
        Ok(())
    }

    pub(super) fn allocation(
        &mut self,
        id: RequestId,
        slot: Slot,
        at: Option<SnapshotId>,
        range: BlockRange,
    ) {
        let until = range.end().min((range.start / LEAF_BLOCKS + 1) * LEAF_BLOCKS + ALLOCATION_BLOCKS_MAX);
        let count = u32::try_from(until - range.start).unwrap_or(u32::MAX);
        self.lookup(PendingLookup {
            id,
            slot,
            at,
            range: BlockRange::new(range.start, count),
            purpose: Purpose::Allocation,
        });
    }

    pub(super) fn inherit(&mut self, id: RequestId, slot: Slot, range: BlockRange) {
        self.lookup(PendingLookup { id, slot, at: None, range, purpose: Purpose::Inherit });
    }

    /// Goes on with a lookup if everything it needs is in memory; asks for what is not.
    fn lookup(&mut self, lookup: PendingLookup) {
        // It may have been deleted while a leaf was looked up.
        let cut = match self.cut(lookup.slot, lookup.at) {
            Ok(cut) => cut,
            Err(error) => return self.complete(lookup.id, Err(error)),
        };
        let lineage = self.volumes.lineage(lookup.slot);
        let mut entries = Vec::with_capacity(lookup.range.count as usize);
        let mut missing = Vec::new();
        let inherits = lookup.purpose == Purpose::Inherit;
        let cut = if inherits { self.lowest_cut(lookup.slot) } else { cut };
        for block in lookup.range.blocks() {
            let key = BlockKey { slot: lookup.slot, block };
            let found = match self.own(key, cut) {
                Ok(None) => self.inherited(key, &lineage),
                Ok(Some(_)) if inherits => Ok(None),
                found => found,
            };
            match found {
                Ok(entry) => entries.push(entry),
                Err(leaf) if missing.last() == Some(&leaf) => {}
                Err(leaf) => missing.push(leaf),
            }
        }
        if missing.is_empty() {
            return self.looked_up(lookup, cut, &lineage, entries);
        }
        missing.retain(|leaf| self.reads.loading.insert(*leaf));
        if !missing.is_empty() {
            let load = GroupLoad { keys: missing, checkpoints: self.checkpoints };
            self.actions.push(Action::LoadGroups(load));
        }
        self.reads.waiting.push(lookup);
    }

    /// What a cut shows of a block, as far as the volume has something of its own; the leaf to load when
    /// memory does not tell.
    fn own(&mut self, key: BlockKey, cut: Stamp) -> Result<Option<Entry>, LeafKey> {
        if cut == Stamp::MAX { self.newest(key) } else { self.shown(key, cut) }
    }

    /// The data that the nearest ancestor shows of a block; the leaf to load when memory does not tell. What it
    /// has discarded is just a hole here: no copy of the clone ever held what lies below.
    fn inherited(&mut self, key: BlockKey, lineage: &[Tie]) -> Result<Option<Entry>, LeafKey> {
        for tie in lineage {
            let found = self.shown(BlockKey { slot: tie.parent, ..key }, tie.cut)?;
            if found.is_some() {
                return Ok(found.filter(|entry| !entry.is_tombstone()));
            }
        }
        Ok(None)
    }

    /// The newest applied version of a block; the leaf to load when memory does not tell.
    fn newest(&mut self, key: BlockKey) -> Result<Option<Entry>, LeafKey> {
        let active = self.active.lookup(key);
        if let Some(version) = active
            && version.origin == Origin::Live
        {
            return Ok(Some(version.entry()));
        }
        // What was placed must be compared with the tables below.
        let frozen = self.frozen.as_ref().and_then(|frozen| frozen.lookup(key));
        let below = match frozen {
            Some(version) if version.origin == Origin::Live => Some(version.entry()),
            frozen => {
                let leaf = LeafKey::of(key);
                let stored = self.cache.get(leaf).map(|found| found.get(key.block)).ok_or(leaf)?;
                frozen.map(|version| version.over(stored)).or(stored)
            }
        };
        Ok(active.map(|version| version.over(below)).or(below))
    }

    /// What a snapshot shows of a block; the leaf to load when memory does not tell.
    fn shown(&mut self, key: BlockKey, cut: Stamp) -> Result<Option<Entry>, LeafKey> {
        let leaf = LeafKey::at(key, cut);
        let mut found = self.cache.get(leaf).map(|found| found.get(key.block)).ok_or(leaf)?;
        for table in self.frozen.as_deref().into_iter().chain([&self.active]) {
            if let Some(version) = table.lookup_at(key, cut) {
                found = Some(version.over(found));
            }
        }
        Ok(found)
    }

    fn looked_up(&mut self, lookup: PendingLookup, cut: Stamp, lineage: &[Tie], entries: Vec<Option<Entry>>) {
        let mut versions = Vec::new();
        if matches!(lookup.purpose, Purpose::Fetch | Purpose::Verify | Purpose::Stamps | Purpose::Inherit) {
            for (block, entry) in lookup.range.blocks().zip(&entries) {
                if let Some(entry) = entry {
                    append(&mut versions, block, entry.stamp, entry.is_tombstone());
                }
            }
        }
        let entries: Vec<Option<Entry>> =
            entries.into_iter().map(|entry| entry.filter(|entry| !entry.is_tombstone())).collect();
        if lookup.purpose == Purpose::Allocation {
            let extents = extents_of(&entries);
            self.complete(lookup.id, Ok(Reply::Allocation(extents)));
            return;
        }
        if lookup.purpose == Purpose::Stamps {
            let crcs = entries.iter().flatten().map(|entry| entry.crc).collect();
            let found = VerifiedBlocks { versions, crcs, failed: Vec::new() };
            return self.complete(lookup.id, Ok(Reply::Verified(found)));
        }
        let (id, purpose, start) = (lookup.id, lookup.purpose, lookup.range.start);
        let tagged = self.volumes.get(lookup.slot).is_some_and(|volume| volume.tagged);
        let tags = match tagged.then(|| self.tags_of(&lookup, cut, lineage, &entries)) {
            Some(Err(block)) => {
                let error = RequestError::Medium(format!("the map has no tag of block {block}"));
                return self.complete(id, Err(error));
            }
            Some(Ok(tags)) => tags,
            None => Vec::new(),
        };
        let (runs, failure) = (Vec::new(), None);
        self.start_read(ReadInFlight { id, purpose, start, versions, entries, tags, runs, left: 0, failure });
    }

    /// The tags of what was just looked up, so that whatever the tables say of it is still there; the block
    /// that has none otherwise. Of a pool block, the newest table that names it knows best, then the leaf that
    /// names it: the volume's, or an ancestor's.
    fn tags_of(
        &mut self,
        lookup: &PendingLookup,
        cut: Stamp,
        lineage: &[Tie],
        entries: &[Option<Entry>],
    ) -> Result<Vec<BlockTag>, u64> {
        let levels =
            std::iter::once((lookup.slot, cut)).chain(lineage.iter().map(|tie| (tie.parent, tie.cut)));
        let mut tags = Vec::with_capacity(entries.len());
        for (block, entry) in lookup.range.blocks().zip(entries) {
            let Some(Entry { physical, .. }) = entry else { continue };
            let newest = self.active.tags.get(*physical);
            let newer = newest.or_else(|| self.frozen.as_ref()?.tags.get(*physical));
            let tag = newer.or_else(|| {
                levels.clone().find_map(|(slot, cut)| {
                    let leaf = self.cache.get(LeafKey::at(BlockKey { slot, block }, cut))?;
                    leaf.get(block).filter(|entry| entry.physical == *physical)?;
                    leaf.tag(block)
                })
            });
            tags.push(tag.ok_or(block)?);
        }
        Ok(tags)
    }

    fn start_read(&mut self, mut read: ReadInFlight) {
        let number = self.reads.next();
        for entry in read.entries.iter().flatten() {
            match read.runs.last_mut() {
                Some(run) if run.first + run.count == entry.physical => run.count += 1,
                _ => read.runs.push(Run { first: entry.physical, count: 1, data: None }),
            }
        }
        if read.runs.is_empty() {
            return self.end_read(read);
        }
        for (part, run) in read.runs.iter().enumerate() {
            let buffer = self.arena.allocate(usize::try_from(run.count).unwrap_or(usize::MAX));
            let part = u32::try_from(part).unwrap_or(u32::MAX);
            let operation = DiskOp::Read { offset: run.first * BLOCK_SIZE_U64, buffer };
            self.submit_disk(token(Kind::Read, number, part), operation);
        }
        read.left = read.runs.len();
        self.reads.in_flight.push_back(Some(read));
    }

    pub(super) fn read_completed(&mut self, number: u64, run: usize, result: Result<BytesMut, DiskError>) {
        let Some(index) = number.checked_sub(self.reads.oldest) else { return };
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let Some(Some(read)) = self.reads.in_flight.get_mut(index) else { return };
        match result {
            Ok(data) => read.runs[run].data = Some(data.freeze()),
            // What is asked is just which blocks cannot be read.
            Err(_) if read.purpose == Purpose::Verify => {}
            Err(error) => read.failure = Some(RequestError::Medium(error.to_string())),
        }
        read.left -= 1;
        if read.left > 0 {
            return;
        }
        if let Some(read) = self.reads.end(number) {
            self.end_read(read);
        }
    }

    fn end_read(&mut self, read: ReadInFlight) {
        let id = read.id;
        if read.purpose == Purpose::Verify {
            let (found, changed) = verified(read.start, read.versions, &read.entries, &read.runs);
            self.checksum_errors += changed;
            return self.complete(id, Ok(Reply::Verified(found)));
        }
        let result = verify(read);
        if matches!(result, Err(RequestError::Checksum { .. })) {
            self.checksum_errors += 1;
        }
        self.complete(id, result);
    }

    /// The background thread has looked up what [`Action::LoadGroups`] asked for.
    pub fn groups_loaded(&mut self, loaded: GroupsLoaded) {
        let mut failures = Vec::new();
        for (key, leaf) in loaded.leaves {
            self.reads.loading.remove(&key);
            match leaf {
                // Read before a checkpoint that has finished since: it may be outdated.
                Ok(_) if loaded.checkpoints != self.checkpoints => {}
                Ok(leaf) => self.cache.insert(key, leaf),
                Err(error) => failures.push((key, error.to_string())),
            }
        }
        for lookup in std::mem::take(&mut self.reads.waiting) {
            let leaves = lookup.range.start / LEAF_BLOCKS..=(lookup.range.end() - 1) / LEAF_BLOCKS;
            let cut = match lookup.purpose {
                Purpose::Inherit => Ok(self.lowest_cut(lookup.slot)),
                _ => self.cut(lookup.slot, lookup.at),
            };
            let own = cut.map(|cut| (lookup.slot, cut)).into_iter();
            let inherited = self.volumes.lineage(lookup.slot).into_iter().map(|tie| (tie.parent, tie.cut));
            let looked_at: Vec<(Slot, Stamp)> = own.chain(inherited).collect();
            let failed = failures
                .iter()
                .find(|(key, _)| looked_at.contains(&(key.slot, key.cut)) && leaves.contains(&key.index));
            match failed {
                Some((_, cause)) => self.complete(lookup.id, Err(RequestError::Medium(cause.clone()))),
                None => self.lookup(lookup),
            }
        }
    }
}

fn extents_of(entries: &[Option<Entry>]) -> Vec<AllocationExtent> {
    let mut extents: Vec<AllocationExtent> = Vec::new();
    for allocated in entries.iter().map(Option::is_some) {
        match extents.last_mut() {
            Some(last) if last.allocated == allocated => last.count += 1,
            _ => extents.push(AllocationExtent { count: 1, allocated }),
        }
    }
    extents
}

/// Checks every block against its entry's checksum, and answers what was asked for.
fn verify(read: ReadInFlight) -> Result<Reply, RequestError> {
    if let Some(failure) = read.failure {
        return Err(failure);
    }
    let segments: Vec<Bytes> = read.runs.into_iter().filter_map(|run| run.data).collect();
    let mut blocks = segments.iter().flat_map(|segment| segment.chunks_exact(BLOCK_SIZE));
    for (at, entry) in read.entries.iter().enumerate() {
        let Some(entry) = entry else { continue };
        let Some(block) = blocks.next() else { unreachable!("a read fills what it asked for") };
        let found = block_crc(block);
        if found != entry.crc {
            return Err(RequestError::Checksum {
                block: read.start + at as u64,
                physical: entry.physical,
                expected: entry.crc.0,
                found: found.0,
            });
        }
    }
    let crcs = read.entries.iter().map(|entry| entry.map(|entry| entry.crc));
    let (versions, tags) = (read.versions, read.tags);
    Ok(match read.purpose {
        Purpose::Fetch | Purpose::Inherit => {
            Reply::Fetched(FetchedBlocks { versions, crcs: crcs.flatten().collect(), tags, segments })
        }
        Purpose::Read | Purpose::Allocation | Purpose::Verify | Purpose::Stamps => {
            let of_tagged = read.entries.iter().flatten().take(tags.len());
            let stamps = of_tagged.map(|entry| entry.stamp).collect();
            Reply::Blocks(ReadBlocks { crcs: crcs.collect(), stamps, tags, segments })
        }
    })
}
