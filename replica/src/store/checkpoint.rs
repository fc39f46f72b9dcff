//! A checkpoint: the frozen memtable merged into the map, off the store's thread.
//!
//! Invariants
//! - The job holds only stable changes: the store starts it after a flush that covers them.
//! - Its commit is atomic: map, free-space bitmaps, volumes and header change together.
//! - A pool block's bit in the bitmaps is set exactly when an entry of the map names it; the job
//!   asserts both transitions.
//! - A state of a group names, of every block, what the cuts of its interval up to the next show. A
//!   version belongs to the interval that its stamp lies in; states above only repeat it.
//! - Live changes replace what the map holds; placed ones only what is older (`version.rs`).
//! - A discard in a clone is merged into every group that an ancestor has a state of, so that it hides it.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Buf;
use trivet_model::Stamp;

use super::allocator::{ZoneBits, count_set};
use super::entry::{BlockKey, Entry, GROUP_BLOCKS, Group, key};
use super::group_merge::{GroupMerge, Stored};
use super::header::Header;
use super::layout::Geometry;
use super::lineage::Tie;
use super::map_scan::{decode_group, scan_groups, scan_layers};
use super::memtable::Memtable;
use super::record::Slot;
use super::snapshots::NO_SNAPSHOTS;
use super::tags::Tags;
use super::thinning::{self, Thinning};
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
    pub(super) result: Result<Box<CheckpointDone>, CheckpointError>,
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
    /// What the map got, in the order of blocks; discarded ranges and what only snapshots show apart.
    pub(super) merged: Vec<(BlockKey, Entry)>,
    /// The tags of those that have one.
    pub(super) tags: Tags,
    /// The lowest stamp that came into the map, by volume: cuts at or above it may show other blocks.
    pub(super) lowest: BTreeMap<Slot, Stamp>,
    /// How far the first thinning of each volume is; `None` where it is over.
    pub(super) thinned: Vec<(Slot, Option<Thinning>)>,
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

/// States of groups held in memory at once while a long span is walked, but for the last group's.
const PORTION_STATES: usize = 4096;

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
    tags: Tags,
    lowest: BTreeMap<Slot, Stamp>,
    thinned: Vec<(Slot, Option<Thinning>)>,
    /// Groups that got a state in a layer above the lowest, and those that lost one.
    layered: BTreeMap<(Slot, Stamp, u64), bool>,
    done: Option<(Slot, u64)>,
}

/// A group to merge: where its versions stand among all, and the layer to begin at if it is thinned.
#[derive(Default)]
struct Due {
    points: Range<usize>,
    floor: Option<Stamp>,
}

type DueGroups = BTreeMap<(Slot, u64), Due>;

/// Groups of a span, each with all its states; and where the span goes on.
type Portion = (BTreeMap<u64, Vec<Stored>>, Option<u64>);

impl CheckpointJob {
    /// Merges and commits. Blocks for as long as the map's store takes.
    #[must_use]
    pub fn run(self, meta: &dyn MetaStore) -> CheckpointOutcome {
        CheckpointOutcome { result: self.merge(meta).map(Box::new) }
    }

    fn volume(&self, slot: Slot) -> Option<&Volume> {
        let at = self.volumes.binary_search_by_key(&slot, |(slot, _)| *slot).ok()?;
        Some(&self.volumes[at].1)
    }

    /// What a volume is read from where it has nothing of its own.
    fn lineage(&self, slot: Slot) -> impl Iterator<Item = Tie> + '_ {
        let tie = |slot: Slot| self.volume(slot).and_then(|volume| volume.tie);
        std::iter::successors(tie(slot), move |above| tie(above.parent))
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
            tags: Tags::default(),
            lowest: BTreeMap::new(),
            thinned: Vec::new(),
            layered: BTreeMap::new(),
            done: None,
        };
        let mut points: Vec<_> = self.frozen.points().collect();
        points.sort_unstable_by_key(|(key, version)| (*key, version.stamp));
        merge.commit.put(key::HEADER, &self.header.encode())?;
        merge.groups(&points)?;
        merge.layers()?;
        merge.regions()?;
        let (used, removed) = merge.volumes()?;
        let freed = merge.bitmaps()?;
        let Merge { commit, lost, merged, tags, lowest, thinned, .. } = merge;
        commit.finish()?;
        let header = self.header.clone();
        Ok(CheckpointDone { header, freed, lost, used, removed, merged, tags, lowest, thinned })
    }
}

impl Merge<'_> {
    /// Walks everything that changed, in the map's order. `points` are the memtable's, sorted.
    fn groups(&mut self, points: &[(BlockKey, Version)]) -> Result<(), CheckpointError> {
        let due = self.due(points)?;
        let mut due = due.into_iter().peekable();
        let mut spans: Vec<(Slot, u64, u64)> = self
            .job
            .frozen
            .ranges()
            .map(|(slot, start, end)| (slot, start / GROUP_BLOCKS, end.div_ceil(GROUP_BLOCKS)))
            .collect();
        let deleted = self.job.volumes.iter().filter(|(_, volume)| volume.is_deleted());
        spans.extend(deleted.map(|(slot, _)| (*slot, 0, u64::MAX)));
        spans.sort_unstable();
        for (slot, first, end) in spans {
            while let Some((at, of_group)) = due.next_if(|(at, _)| *at < (slot, first)) {
                self.group(at, None, &points[of_group.points], of_group.floor)?;
            }
            let mut next = Some(first);
            while let Some(from) = next {
                let (portion, rest) = self.groups_of_span(points, slot, from, end)?;
                next = rest;
                for (group, stored) in portion {
                    while let Some((at, of_group)) = due.next_if(|(at, _)| *at < (slot, group)) {
                        self.group(at, None, &points[of_group.points], of_group.floor)?;
                    }
                    let of_group = due.next_if(|(at, _)| *at == (slot, group));
                    let of_group = of_group.map(|(_, of_group)| of_group).unwrap_or_default();
                    self.group((slot, group), Some(stored), &points[of_group.points], of_group.floor)?;
                }
            }
        }
        for (at, of_group) in due {
            self.group(at, None, &points[of_group.points], of_group.floor)?;
        }
        Ok(())
    }

    /// The groups that have changed blocks, and those whose turn it is to be thinned.
    fn due(&mut self, points: &[(BlockKey, Version)]) -> Result<DueGroups, CheckpointError> {
        let mut due = DueGroups::new();
        let mut first = 0;
        for of_group in points.chunk_by(|(a, _), (b, _)| group_of(*a) == group_of(*b)) {
            let range = first..first + of_group.len();
            first = range.end;
            due.insert(group_of(of_group[0].0), Due { points: range, floor: None });
        }
        for (slot, volume) in self.job.volumes.iter().filter(|(_, volume)| !volume.is_deleted()) {
            let Some(begun) = volume.thinning.front() else { continue };
            let (groups, rest) = thinning::portion(self.meta, *slot, *begun)?;
            let floor = volume.snapshots.interval_of_layer(begun.from).after;
            for group in groups {
                due.entry((*slot, group)).or_default().floor = Some(floor);
            }
            self.thinned.push((*slot, rest));
        }
        Ok(due)
    }

    /// The first groups of a span that the map holds, of a clone's those that it is read from elsewhere, too:
    /// a bounded portion.
    fn groups_of_span(
        &self,
        points: &[(BlockKey, Version)],
        slot: Slot,
        first: u64,
        end: u64,
    ) -> Result<Portion, CheckpointError> {
        let mut found: BTreeMap<u64, Vec<Stored>> = BTreeMap::new();
        let mut rest = None;
        let mut states = 0;
        scan_layers(self.meta, slot, first, end, &mut |group, layer, state, tags| {
            if states >= PORTION_STATES && !found.contains_key(&group) {
                rest = Some(group);
                return ControlFlow::Break(());
            }
            states += 1;
            found.entry(group).or_default().push(Stored { layer, state, tags });
            ControlFlow::Continue(())
        })?;
        for Tie { parent, cut } in self.job.lineage(slot) {
            let until = rest.unwrap_or(end);
            let mut seen = 0;
            scan_groups(self.meta, parent, first, until, cut, &mut |group, _, _| {
                if seen >= PORTION_STATES {
                    rest = Some(group);
                    return ControlFlow::Break(());
                }
                seen += 1;
                found.entry(group).or_default();
                ControlFlow::Continue(())
            })?;
            // What the ancestor has in the memtable is merged by this checkpoint, and not in the map yet.
            let from = BlockKey { slot: parent, block: first * GROUP_BLOCKS };
            let of_parent = &points[points.partition_point(|(key, _)| *key < from)..];
            let groups = of_parent.iter().map(|(key, _)| group_of(*key));
            for (_, group) in groups.take_while(|group| *group < (parent, rest.unwrap_or(end))) {
                found.entry(group).or_default();
            }
        }
        if let Some(rest) = rest {
            found.split_off(&rest);
        }
        Ok((found, rest))
    }

    /// The states of a group in the layers from `floor` up, and the next one below.
    fn states(&self, slot: Slot, group: u64, floor: Stamp) -> Result<Vec<Stored>, CheckpointError> {
        let mut found = Vec::new();
        let volume = self.job.volume(slot);
        if volume.is_none_or(|volume| volume.layer_highest == Stamp::ZERO) {
            let layer = Stamp::ZERO;
            if let Some(value) = self.meta.get(&key::group(slot, group, layer))? {
                let (state, tags) = decode_group(slot, group, &value)?;
                found.push(Stored { layer, state, tags });
            }
            return Ok(found);
        }
        scan_layers(self.meta, slot, group, group + 1, &mut |_, layer, state, tags| {
            found.push(Stored { layer, state, tags });
            if layer < floor { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(found)
    }

    /// Merges one group. `stored` are all its states, if they are known.
    fn group(
        &mut self,
        (slot, group): (Slot, u64),
        stored: Option<Vec<Stored>>,
        changed: &[(BlockKey, Version)],
        thinned_from: Option<Stamp>,
    ) -> Result<(), CheckpointError> {
        // Neighbouring spans share the group that lies on their border.
        if self.done.is_some_and(|done| done >= (slot, group)) {
            return Ok(());
        }
        self.done = Some((slot, group));
        let job = self.job;
        let volume = job.volume(slot).filter(|volume| !volume.is_deleted());
        let versions =
            if volume.is_none() { Vec::new() } else { versions_of(&job.frozen, slot, group, changed) };
        let lowest = versions.iter().map(|(_, version)| version.stamp).min();
        if let Some(lowest) = lowest {
            let of_volume = self.lowest.entry(slot).or_insert(lowest);
            *of_volume = lowest.min(*of_volume);
        }
        let snapshots = volume.map_or(&NO_SNAPSHOTS, |volume| &volume.snapshots);
        let floor = if volume.is_none() {
            Some(Stamp::ZERO)
        } else {
            lowest.map(|lowest| snapshots.interval(lowest).after)
        };
        let Some(floor) = floor.into_iter().chain(thinned_from).min() else { return Ok(()) };
        let stored = match stored {
            Some(stored) => stored,
            None => self.states(slot, group, floor)?,
        };
        // Where nothing is hidden, a discard of nothing leaves no trace, as on a copy that is not tied.
        let inherited = match versions.iter().any(|(_, version)| version.is_tombstone()) {
            true => self.inherited(slot, group)?,
            false => Group::default(),
        };
        let merged = GroupMerge::new(volume, &inherited, floor, &stored, &versions);
        let tagged = volume.is_some_and(|volume| volume.tagged);
        let tags = tagged.then(|| tags_of(&job.frozen, &stored, &versions));
        for (layer, state) in &merged.changes {
            let key = key::group(slot, group, *layer);
            match state {
                Some(state) => self.commit.put(&key, &encode(slot, group, state, tags.as_ref())?)?,
                None => self.commit.delete(&key)?,
            }
            let had = stored.iter().any(|stored| stored.layer == *layer);
            if *layer > Stamp::ZERO && had != state.is_some() {
                self.layered.insert((slot, *layer, group), state.is_some());
            }
        }
        self.note_blocks(slot, &merged)?;
        self.note_versions(slot, group, changed, &merged, tags.as_ref())
    }

    /// What a clone's ancestors show of a group: by the map, and by the memtable, which this checkpoint merges.
    fn inherited(&self, slot: Slot, group: u64) -> Result<Group, CheckpointError> {
        let mut inherited = Group::default();
        for Tie { parent, cut } in self.job.lineage(slot) {
            let mut shown = Group::default();
            scan_groups(self.meta, parent, group, group + 1, cut, &mut |_, state, _| {
                shown = state;
                ControlFlow::Continue(())
            })?;
            for (block, (place, shown)) in (group * GROUP_BLOCKS..).zip(inherited.0.iter_mut().zip(shown.0)) {
                let newer = self.job.frozen.lookup_at(BlockKey { slot: parent, block }, cut);
                let shown = newer.map(|version| version.over(shown)).or(shown);
                *place = place.or(shown);
            }
        }
        Ok(inherited)
    }

    /// Counts and marks the pool blocks that a group's states name now and did not before, and those
    /// that they name no more.
    fn note_blocks(&mut self, slot: Slot, merged: &GroupMerge) -> Result<(), CheckpointError> {
        let use_change = self.used.entry(slot).or_default();
        for (of, other, set) in
            [(&merged.before, &merged.after, false), (&merged.after, &merged.before, true)]
        {
            for physical in of.difference(other) {
                *use_change += if set { 1 } else { -1 };
                let (zone, word, bit) = bit_of(&self.job.geometry, *physical)?;
                let change = self.zones.entry(zone).or_default();
                let bits = if set { &mut change.set } else { &mut change.clear };
                if bits[word] & bit != 0 {
                    return Err(CheckpointError::Corrupt(format!("pool block {physical} has two owners")));
                }
                bits[word] |= bit;
            }
        }
        Ok(())
    }

    /// Changed blocks whose newest version has changed, the cache is to know; pool blocks of versions
    /// that no state names are lost.
    fn note_versions(
        &mut self,
        slot: Slot,
        group: u64,
        changed: &[(BlockKey, Version)],
        merged: &GroupMerge,
        tags: Option<&Tags>,
    ) -> Result<(), CheckpointError> {
        for of_block in changed.chunk_by(|(a, _), (b, _)| a == b) {
            let key = of_block[0].0;
            let at = usize::try_from(key.block - group * GROUP_BLOCKS).unwrap_or(usize::MAX);
            if let Some(entry) = merged.newest.0[at]
                && merged.newest_before.0[at] != Some(entry)
            {
                self.merged.push((BlockKey { slot, block: key.block }, entry));
                self.tags.extend(tags.and_then(|tags| Some((entry.physical, tags.get(entry.physical)?))));
            }
            for (_, version) in of_block.iter().filter(|(_, version)| !version.is_tombstone()) {
                let physical = version.entry().physical;
                if !merged.after.contains(&physical) && !merged.before.contains(&physical) {
                    let (zone, word, bit) = bit_of(&self.job.geometry, physical)?;
                    self.lost.entry(zone).or_default()[word] |= bit;
                }
            }
        }
        Ok(())
    }

    /// Writes which groups have states above the lowest layer.
    fn layers(&mut self) -> Result<(), CheckpointError> {
        for ((slot, layer, group), present) in std::mem::take(&mut self.layered) {
            let key = key::layered(slot, layer, group);
            if present { self.commit.put(&key, &[])? } else { self.commit.delete(&key)? }
        }
        Ok(())
    }

    /// Writes where the volumes have changed.
    fn regions(&mut self) -> Result<(), CheckpointError> {
        for (slot, volume) in &self.job.volumes {
            if volume.is_deleted() {
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
            if volume.is_deleted() {
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
            let mut image = Volume { blocks_used: now, ..volume.clone() };
            if let Some((_, rest)) = self.thinned.iter().find(|(thinned, _)| thinned == slot) {
                image.thinned(*rest);
            }
            self.commit.put(&key, &image.encode())?;
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

/// Every version of a group's blocks that the memtable has, by their place in the group, older first.
fn versions_of(
    table: &Memtable,
    slot: Slot,
    group: u64,
    changed: &[(BlockKey, Version)],
) -> Vec<(usize, Version)> {
    let first = group * GROUP_BLOCKS;
    let place = |block: u64| usize::try_from(block - first).unwrap_or(usize::MAX);
    let mut versions: Vec<(usize, Version)> =
        changed.iter().map(|(key, version)| (place(key.block), *version)).collect();
    if table.has_ranges() {
        for block in first..first + GROUP_BLOCKS {
            let discarded = table.range_versions(BlockKey { slot, block });
            versions.extend(discarded.map(|version| (place(block), version)));
        }
    }
    versions.sort_by_key(|(_, version)| version.stamp);
    versions
}

/// The tags of all that a merge may put into a group's states: what came last names its pool block now.
fn tags_of(table: &Memtable, stored: &[Stored], versions: &[(usize, Version)]) -> Tags {
    let mut tags = Tags::default();
    for Stored { tags: of_state, .. } in stored.iter().rev() {
        tags.extend(of_state.iter().copied());
    }
    let new = versions.iter().map(|(_, version)| version.entry().physical);
    tags.extend(new.filter_map(|physical| Some((physical, table.tags.get(physical)?))));
    tags
}

fn encode(slot: Slot, group: u64, state: &Group, tags: Option<&Tags>) -> Result<Vec<u8>, CheckpointError> {
    let Some(tags) = tags else { return Ok(state.encode()) };
    let missing =
        |physical| format!("group {group} of volume slot {}: no tag of pool block {physical}", slot.0);
    state.encode_tagged(tags).map_err(|physical| CheckpointError::Corrupt(missing(physical)))
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
