//! A checkpoint: the frozen memtable merged into the map, off the store's thread.
//!
//! Invariants
//! - The job holds only stable changes: the store starts it after a flush that covers them.
//! - Its commit is atomic: map, free-space bitmaps, volumes and header change together.
//! - A pool block's bit in the bitmaps is set exactly when an entry of the map names it; the job
//!   asserts both transitions.
//! - Live changes replace what the map holds; placed ones only what is older (`version.rs`).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Buf;

use super::allocator::{ZoneBits, count_set};
use super::entry::{BlockKey, Entry, GROUP_BLOCKS, Group, key};
use super::header::Header;
use super::layout::Geometry;
use super::map_scan::{decode_group, scan_groups};
use super::memtable::Memtable;
use super::record::Slot;
use super::version::Version;
use super::volume::Volume;
use crate::meta::{MetaCommit, MetaError, MetaStore};

/// A checkpoint to merge and write: give it to [`CheckpointJob::run`] on a background thread.
#[derive(Debug)]
pub struct CheckpointJob {
    pub(super) geometry: Geometry,
    pub(super) frozen: Arc<Memtable>,
    pub(super) header: Header,
    pub(super) volumes: Vec<(Slot, Volume)>,
}

/// A finished checkpoint: give it to `Store::checkpoint_finished`.
#[derive(Debug)]
pub struct CheckpointOutcome {
    pub(super) result: Result<CheckpointDone, CheckpointError>,
}

#[derive(Debug)]
pub(super) struct CheckpointDone {
    pub(super) header: Header,
    /// Blocks whose last reference is gone.
    pub(super) freed: BTreeMap<u32, ZoneBits>,
    /// Blocks of placed versions that did not stand: nothing ever referred to them in the map.
    pub(super) lost: BTreeMap<u32, ZoneBits>,
    /// Blocks in use by each volume now.
    pub(super) used: Vec<(Slot, u64)>,
    /// Deleted volumes of which nothing is left.
    pub(super) removed: Vec<Slot>,
    /// What the map got, in the order of blocks; discarded ranges apart.
    pub(super) merged: Vec<(BlockKey, Entry)>,
}

/// Why a checkpoint failed; the pool stops.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The map's store.
    #[error("{0}")]
    Meta(#[from] MetaError),
    /// The map holds something that makes no sense.
    #[error("map is corrupt: {0}")]
    Corrupt(String),
}

/// Groups held in memory at once while a long span is walked.
const PORTION_GROUPS: usize = 4096;

/// Blocks in use by each volume now, and deleted volumes of which nothing is left.
type VolumeOutcome = (Vec<(Slot, u64)>, Vec<Slot>);

#[derive(Default)]
struct ZoneChange {
    set: ZoneBits,
    clear: ZoneBits,
}

struct Merge<'a> {
    job: &'a CheckpointJob,
    meta: &'a dyn MetaStore,
    commit: Box<dyn MetaCommit + 'a>,
    zones: BTreeMap<u32, ZoneChange>,
    lost: BTreeMap<u32, ZoneBits>,
    used: BTreeMap<Slot, i64>,
    merged: Vec<(BlockKey, Entry)>,
    done: Option<(Slot, u64)>,
}

impl CheckpointJob {
    /// Merges and commits. Blocks for as long as the map's store takes.
    #[must_use]
    pub fn run(self, meta: &dyn MetaStore) -> CheckpointOutcome {
        CheckpointOutcome { result: self.merge(meta) }
    }

    fn merge(&self, meta: &dyn MetaStore) -> Result<CheckpointDone, CheckpointError> {
        let mut merge = Merge {
            job: self,
            meta,
            commit: meta.begin()?,
            zones: BTreeMap::new(),
            lost: BTreeMap::new(),
            used: BTreeMap::new(),
            merged: Vec::new(),
            done: None,
        };
        let mut points: Vec<_> = self.frozen.points().collect();
        points.sort_unstable_by_key(|(key, _)| *key);
        merge.commit.put(key::HEADER, &self.header.encode())?;
        merge.groups(&points)?;
        merge.regions()?;
        let (used, removed) = merge.volumes()?;
        let freed = merge.bitmaps()?;
        let Merge { commit, lost, merged, .. } = merge;
        commit.finish()?;
        Ok(CheckpointDone { header: self.header.clone(), freed, lost, used, removed, merged })
    }
}

impl Merge<'_> {
    /// Walks everything that changed, in the map's order. `points` are the memtable's, sorted.
    fn groups(&mut self, points: &[(BlockKey, Version)]) -> Result<(), CheckpointError> {
        let mut points = points.chunk_by(|(a, _), (b, _)| group_of(*a) == group_of(*b)).peekable();
        let mut spans: Vec<(Slot, u64, u64)> = self
            .job
            .frozen
            .ranges()
            .map(|(slot, start, end)| (slot, start / GROUP_BLOCKS, end.div_ceil(GROUP_BLOCKS)))
            .collect();
        let deleted = self.job.volumes.iter().filter(|(_, volume)| volume.deleted);
        spans.extend(deleted.map(|(slot, _)| (*slot, 0, u64::MAX)));
        spans.sort_unstable();
        for (slot, first, end) in spans {
            while let Some(changed) = points.next_if(|changed| group_of(changed[0].0) < (slot, first)) {
                self.changed(changed)?;
            }
            let mut from = first;
            loop {
                let portion = self.stored_groups(slot, from, end)?;
                let Some((last, _)) = portion.last() else { break };
                from = last + 1;
                for (group, stored) in portion {
                    while let Some(changed) = points.next_if(|changed| group_of(changed[0].0) < (slot, group))
                    {
                        self.changed(changed)?;
                    }
                    let changed = points.next_if(|changed| group_of(changed[0].0) == (slot, group));
                    self.group(slot, group, stored, changed.unwrap_or_default())?;
                }
            }
        }
        for changed in points {
            self.changed(changed)?;
        }
        Ok(())
    }

    /// The changed blocks of one group.
    fn changed(&mut self, changed: &[(BlockKey, Version)]) -> Result<(), CheckpointError> {
        let (slot, group) = group_of(changed[0].0);
        let stored = match self.meta.get(&key::group(slot, group))? {
            Some(value) => decode_group(slot, group, &value)?,
            None => Group::default(),
        };
        self.group(slot, group, stored, changed)
    }

    /// The first groups that the map holds of a span: a bounded portion.
    fn stored_groups(&self, slot: Slot, first: u64, end: u64) -> Result<Vec<(u64, Group)>, CheckpointError> {
        let mut found = Vec::new();
        scan_groups(self.meta, slot, first, end, &mut |group, stored| {
            found.push((group, stored));
            if found.len() < PORTION_GROUPS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(found)
    }

    fn group(
        &mut self,
        slot: Slot,
        group: u64,
        stored: Group,
        changed: &[(BlockKey, Version)],
    ) -> Result<(), CheckpointError> {
        // Neighbouring spans share the group that lies on their border.
        if self.done.is_some_and(|done| done >= (slot, group)) {
            return Ok(());
        }
        self.done = Some((slot, group));
        let deleted = self.job.volumes.iter().any(|(at, volume)| *at == slot && volume.deleted);
        let mut changed = changed.iter().peekable();
        let mut merged = Group::default();
        for (at, (place, old)) in merged.0.iter_mut().zip(stored.0).enumerate() {
            let block = BlockKey { slot, block: group * GROUP_BLOCKS + at as u64 };
            let point = changed.next_if(|(key, _)| *key == block).map(|(_, version)| *version);
            let new = if deleted { None } else { point.or_else(|| self.job.frozen.lookup(block)) };
            *place = if deleted { None } else { standing(new, old) };
            if let Some(point) = point {
                self.note_point(block, &point, *place)?;
            }
            if *place != old {
                note_change(&self.job.geometry, &mut self.zones, &mut self.used, slot, old, *place)?;
            }
        }
        if merged == stored {
            return Ok(());
        }
        let key = key::group(slot, group);
        if merged.is_empty() {
            self.commit.delete(&key)?
        } else {
            self.commit.put(&key, &merged.encode())?
        }
        Ok(())
    }

    /// A changed block's version stands, and the cache is to know it; or its pool block is lost.
    fn note_point(
        &mut self,
        key: BlockKey,
        point: &Version,
        standing: Option<Entry>,
    ) -> Result<(), CheckpointError> {
        let entry = point.entry();
        if standing == Some(entry) {
            self.merged.push((key, entry));
        } else if !entry.is_tombstone() {
            let (zone, word, bit) = bit_of(&self.job.geometry, entry.physical)?;
            self.lost.entry(zone).or_default()[word] |= bit;
        }
        Ok(())
    }

    /// Writes where the volumes have changed.
    fn regions(&mut self) -> Result<(), CheckpointError> {
        for (slot, volume) in &self.job.volumes {
            if volume.deleted {
                for chunk in volume.regions.chunks() {
                    self.commit.delete(&key::regions(*slot, chunk))?;
                }
                continue;
            }
            for (chunk, value) in volume.regions.dirty_chunks() {
                self.commit.put(&key::regions(*slot, chunk), &value)?;
            }
        }
        Ok(())
    }

    /// Writes the volumes; answers their use and which deleted ones are gone.
    fn volumes(&mut self) -> Result<VolumeOutcome, CheckpointError> {
        let (mut used, mut removed) = (Vec::new(), Vec::new());
        for (slot, volume) in &self.job.volumes {
            let key = key::numbered(key::VOLUMES, slot.0);
            if volume.deleted {
                removed.push(*slot);
                self.commit.delete(&key)?;
                continue;
            }
            let change = self.used.get(slot).copied().unwrap_or(0);
            let now = volume
                .blocks_used
                .checked_add_signed(change)
                .ok_or_else(|| CheckpointError::Corrupt(format!("blocks in use by volume {}", volume.id)))?;
            used.push((*slot, now));
            self.commit.put(&key, &Volume { blocks_used: now, ..volume.clone() }.encode())?;
        }
        Ok((used, removed))
    }

    /// Brings the free-space bitmaps up to date; answers the blocks that became free.
    fn bitmaps(&mut self) -> Result<BTreeMap<u32, ZoneBits>, CheckpointError> {
        let mut freed = BTreeMap::new();
        for (zone, change) in &self.zones {
            let key = key::numbered(key::ZONES, *zone);
            let mut bits = match self.meta.get(&key)? {
                Some(value) => decode_bits(*zone, &value)?,
                None => ZoneBits::default(),
            };
            for ((word, set), clear) in bits.iter_mut().zip(&change.set).zip(&change.clear) {
                if *word & clear != *clear || *word & set & !clear != 0 {
                    return Err(CheckpointError::Corrupt(format!(
                        "free-space bitmap of zone {zone} disagrees with the map"
                    )));
                }
                *word = (*word & !clear) | set;
            }
            match count_set(&bits) {
                0 => self.commit.delete(&key)?,
                _ => self.commit.put(&key, &encode_bits(&bits))?,
            }
            // A block that was freed and taken again within this checkpoint cannot be: it would
            // have been reused before the record that freed it was checkpointed.
            freed.insert(*zone, change.clear);
        }
        freed.retain(|_, bits| count_set(bits) > 0);
        Ok(freed)
    }
}

/// The group that a block lies in.
fn group_of(key: BlockKey) -> (Slot, u64) {
    (key.slot, key.block / GROUP_BLOCKS)
}

/// What the map holds after a change.
fn standing(new: Option<Version>, old: Option<Entry>) -> Option<Entry> {
    match (new, old) {
        // A discard of what nobody has written leaves no trace.
        (Some(new), None) if new.is_tombstone() && !new.leaves_trace => None,
        (Some(new), old) => Some(new.over(old)),
        (None, old) => old,
    }
}

/// Where the bitmaps have a pool block: zone, word and bit.
fn bit_of(geometry: &Geometry, physical: u64) -> Result<(u32, usize, u64), CheckpointError> {
    if !geometry.is_data(physical) {
        return Err(CheckpointError::Corrupt(format!("entry names pool block {physical}")));
    }
    let (zone, at) = geometry.zone_of(physical);
    let zone = u32::try_from(zone).or(Err(CheckpointError::Corrupt(format!("zone {zone}"))))?;
    Ok((zone, (at / 64) as usize, 1 << (at % 64)))
}

fn note_change(
    geometry: &Geometry,
    zones: &mut BTreeMap<u32, ZoneChange>,
    used: &mut BTreeMap<Slot, i64>,
    slot: Slot,
    old: Option<Entry>,
    new: Option<Entry>,
) -> Result<(), CheckpointError> {
    let use_change = used.entry(slot).or_default();
    let mut mark = |physical: u64, set: bool| -> Result<(), CheckpointError> {
        let (zone, word, bit) = bit_of(geometry, physical)?;
        let change = zones.entry(zone).or_default();
        let bits = if set { &mut change.set } else { &mut change.clear };
        if bits[word] & bit != 0 {
            return Err(CheckpointError::Corrupt(format!("pool block {physical} has two owners")));
        }
        bits[word] |= bit;
        Ok(())
    };
    // The same block in both is the same data under another stamp: nothing moves.
    if old.map(|entry| entry.physical) == new.map(|entry| entry.physical) {
        return Ok(());
    }
    if let Some(old) = old.filter(|old| !old.is_tombstone()) {
        mark(old.physical, false)?;
        *use_change -= 1;
    }
    if let Some(new) = new.filter(|new| !new.is_tombstone()) {
        mark(new.physical, true)?;
        *use_change += 1;
    }
    Ok(())
}

pub(crate) fn encode_bits(bits: &ZoneBits) -> Vec<u8> {
    bits.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(crate) fn decode_bits(zone: u32, mut value: &[u8]) -> Result<ZoneBits, CheckpointError> {
    if value.len() != size_of::<ZoneBits>() {
        return Err(CheckpointError::Corrupt(format!(
            "free-space bitmap of zone {zone} has {} bytes",
            value.len()
        )));
    }
    let mut bits = ZoneBits::default();
    bits.fill_with(|| value.get_u64_le());
    Ok(bits)
}
