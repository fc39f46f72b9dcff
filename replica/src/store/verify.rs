//! The offline proof of a pool's invariants: what `trivet check` runs.
//!
//! Every entry of the map names a data block within the file; no block has two owners; the
//! free-space bitmaps say exactly what the entries say; every volume's count of blocks in use is
//! right; no block is newer than its region says; a group's states agree on what they share; what clones
//! read is there, and nothing is kept that none reads; and, when asked for, every block's stored bytes match
//! its checksum.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;

use trivet_disk::{Disk, read_blocking};
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64, PoolId, Stamp, VolumeId, block_crc};

use super::allocator::{ZoneBits, count_set};
use super::checkpoint::CheckpointError;
use super::entry::{BlockKey, Entry, GROUP_BLOCKS, Group, key};
use super::layout::ZONE_BLOCKS;
use super::lineage::ANCESTORS_MAX;
use super::map_scan::scan_layers;
use super::open::{Loaded, load};
use super::open_error::OpenError;
use super::record::Slot;
use super::snapshots::{NO_SNAPSHOTS, Snapshots};
use super::volume::{Life, Volume};
use crate::meta::{MetaError, MetaStore};

/// Something wrong with a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// One copy of the superblock is damaged; the next opening repairs it from the other.
    Superblock(String),
    /// The pool does not open: superblock, journal or map.
    Unopenable(String),
    /// The map cannot be read to its end.
    Map(String),
    /// A block of data does not match its checksum, or cannot be read.
    Data {
        /// Whose.
        volume: VolumeId,
        /// The volume's block.
        block: u64,
        /// The pool's block.
        physical: u64,
        /// What is wrong.
        cause: String,
    },
    /// A pool block has two owners.
    TwoOwners {
        /// The pool's block.
        physical: u64,
    },
    /// An entry names a block outside the data region.
    OutOfPlace {
        /// Whose.
        volume: VolumeId,
        /// The volume's block.
        block: u64,
        /// What the entry names.
        physical: u64,
    },
    /// Blocks that a bitmap calls used and no entry names, or the other way round.
    Bitmap {
        /// Which zone.
        zone: u32,
        /// Called used, named by nobody.
        leaked: u32,
        /// Named, called free.
        unprotected: u32,
    },
    /// A volume's regions do not know of a block's version: a member that comes back would miss it.
    Region {
        /// Whose.
        volume: VolumeId,
        /// The volume's block.
        block: u64,
    },
    /// A group's states do not agree with each other, or with what lists their layers.
    Layer {
        /// Whose.
        volume: VolumeId,
        /// Which group of blocks.
        group: u64,
        /// The layer, by the cut that it lies above.
        layer: Stamp,
    },
    /// A clone reads from a volume or a cut that is not there, or something is kept for clones that there
    /// are not.
    Lineage {
        /// Whose.
        volume: VolumeId,
        /// What is wrong.
        cause: &'static str,
    },
    /// A volume's count of blocks in use is wrong.
    Count {
        /// Whose.
        volume: VolumeId,
        /// As recorded.
        recorded: u64,
        /// As counted.
        counted: u64,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock(what) => write!(f, "superblock: {what}; the next opening repairs it"),
            Self::Unopenable(what) => write!(f, "the pool does not open: {what}"),
            Self::Map(what) => write!(f, "map: {what}"),
            Self::Data { volume, block, physical, cause } => {
                write!(f, "data: volume {volume} block {block} (pool block {physical}): {cause}")
            }
            Self::TwoOwners { physical } => write!(f, "map: pool block {physical} has two owners"),
            Self::OutOfPlace { volume, block, physical } => {
                write!(
                    f,
                    "map: volume {volume} block {block} names pool block {physical}, which holds no data"
                )
            }
            Self::Bitmap { zone, leaked, unprotected } => write!(
                f,
                "free space: zone {zone} has {leaked} blocks that nobody owns and {unprotected} that are owned and called free"
            ),
            Self::Region { volume, block } => {
                write!(f, "map: volume {volume} does not know that the region of block {block} has changed")
            }
            Self::Layer { volume, group, layer } => {
                write!(f, "map: volume {volume} group {group}: the state above {layer} makes no sense")
            }
            Self::Lineage { volume, cause } => write!(f, "map: volume {volume}: {cause}"),
            Self::Count { volume, recorded, counted } => {
                write!(f, "volume {volume}: {recorded} blocks in use recorded, {counted} counted")
            }
        }
    }
}

/// What a verification saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Which pool, if that much could be read.
    pub pool: Option<PoolId>,
    /// Volumes seen.
    pub volumes: u64,
    /// Blocks in use, by the map and the journal.
    pub blocks_used: u64,
    /// Blocks whose data was read and matched.
    pub blocks_verified: u64,
    /// What is wrong; empty when all is well.
    pub findings: Vec<Finding>,
}

impl VerifyReport {
    /// The report on a pool whose map does not even open.
    pub(crate) fn unreadable_map(error: &MetaError) -> Self {
        Self { findings: vec![Finding::Map(error.to_string())], ..Self::default() }
    }
}

/// More findings than this are not listed: the pool is to be rebuilt.
const FINDINGS_MAX: usize = 1000;

/// Proves a closed pool's invariants without changing it. With `data`, reads every block in use;
/// `progress` is called with blocks verified and blocks to verify.
///
/// # Errors
/// [`OpenError::Version`]: such a pool is not damaged, it is another program's.
pub fn verify(
    disk: &mut dyn Disk,
    meta: &dyn MetaStore,
    data: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport, OpenError> {
    let mut report = VerifyReport::default();
    let loaded = match load(disk, meta) {
        Ok(loaded) => loaded,
        Err(error @ OpenError::Version { .. }) => return Err(error),
        Err(error) => {
            report.findings.push(Finding::Unopenable(error.to_string()));
            return Ok(report);
        }
    };
    report.pool = Some(loaded.superblock.pool);
    report.findings.extend(loaded.superblock_damage.clone().map(Finding::Superblock));
    let mut walk = Walk {
        loaded: &loaded,
        report,
        owned: BTreeMap::new(),
        journaled: BTreeMap::new(),
        used: BTreeMap::new(),
        layered: BTreeSet::new(),
        blocks: Vec::new(),
        wants_data: data,
    };
    for (slot, volume) in loaded.volumes.iter() {
        walk.report.volumes += u64::from(volume.is_live());
        walk.lineage(slot, volume);
        if let Err(error) = walk.volume(meta, slot) {
            walk.find(Finding::Map(error.to_string()));
        }
    }
    walk.bitmaps();
    walk.counts();
    if data {
        walk.data(disk, progress);
    }
    Ok(walk.report)
}

struct Walk<'a> {
    loaded: &'a Loaded,
    report: VerifyReport,
    /// Blocks that an entry of the map names.
    owned: BTreeMap<u32, ZoneBits>,
    /// Blocks that an entry of the journal names.
    journaled: BTreeMap<u32, ZoneBits>,
    used: BTreeMap<Slot, u64>,
    /// The groups' states above the lowest layer, of the volume looked at.
    layered: BTreeSet<(Slot, Stamp, u64)>,
    /// Every version of a block that is seen, kept when data is to be verified.
    blocks: Vec<(u64, BlockKey, Entry)>,
    wants_data: bool,
}

impl Walk<'_> {
    fn find(&mut self, finding: Finding) {
        if self.report.findings.len() < FINDINGS_MAX {
            self.report.findings.push(finding);
        }
    }

    /// What clones need is there, and what is kept is needed.
    fn lineage(&mut self, slot: Slot, volume: &Volume) {
        let volumes = &self.loaded.volumes;
        let cause = match volume.tie {
            Some(_) if volume.is_deleted() => Some("it is deleted and reads from a parent"),
            Some(tie) if tie.parent >= slot => Some("its parent is no older than itself"),
            Some(tie) => match volumes.get(tie.parent).filter(|parent| !parent.is_deleted()) {
                None => Some("its parent is not there"),
                Some(parent) if parent.snapshots.at(tie.cut).is_none() => Some("its parent has no such cut"),
                Some(_) => None,
            },
            None => None,
        };
        // Ties are followed only where they lead downwards.
        let deep = cause.is_none() && volumes.lineage(slot).len() > ANCESTORS_MAX;
        let for_nobody = volume.snapshots.kept().any(|cut| !volumes.is_read_from(slot, cut))
            || (volume.life == Life::Ancestor && !volumes.has_clones(slot));
        let named = volume.life == Life::Ancestor && volume.snapshots.iter().next().is_some();
        let causes = [
            cause,
            deep.then_some("it has too many ancestors"),
            for_nobody.then_some("it is kept for clones, and there are none"),
            named.then_some("it is deleted and has snapshots"),
        ];
        for cause in causes.into_iter().flatten() {
            self.find(Finding::Lineage { volume: volume.id, cause });
        }
    }

    fn volume(&mut self, meta: &dyn MetaStore, slot: Slot) -> Result<(), CheckpointError> {
        let loaded = self.loaded;
        let volume = loaded.volumes.get(slot).filter(|volume| !volume.is_deleted());
        let snapshots = volume.map_or(&NO_SNAPSHOTS, |volume| &volume.snapshots);
        let tagged = loaded.volumes.get(slot).is_some_and(|volume| volume.tagged);
        let mut newest: BTreeMap<u64, Entry> = BTreeMap::new();
        let mut states: Vec<(Stamp, Group)> = Vec::new();
        let mut of_group = None;
        scan_layers(meta, slot, 0, u64::MAX, &mut |group, layer, state, tags| {
            if of_group.is_some_and(|of_group| of_group != group) {
                self.group(slot, of_group.unwrap_or(group), &states, snapshots, &mut newest);
                states.clear();
            }
            of_group = Some(group);
            let data = state.0.iter().flatten().filter(|entry| !entry.is_tombstone()).count();
            if tags.len() != if tagged { data } else { 0 } {
                let what =
                    format!("group {group} of volume slot {}: {} tags of {data} blocks", slot.0, tags.len());
                self.find(Finding::Map(what));
            }
            states.push((layer, state));
            ControlFlow::Continue(())
        })?;
        if let Some(group) = of_group {
            self.group(slot, group, &states, snapshots, &mut newest);
        }
        self.layers(meta, slot)?;
        // Entries of the journal own blocks that the checkpointed bitmaps do not know yet.
        for (key, version) in loaded.active.points().filter(|(key, _)| key.slot == slot) {
            self.region(key, version.entry());
            if version.is_tombstone() {
                continue;
            }
            self.own(key, version.entry(), false);
            let below = newest.get(&key.block).filter(|below| !snapshots.part(version.stamp, below.stamp));
            if below.is_some_and(|below| !version.stands_against(below)) {
                continue;
            }
            self.in_use(key, version.entry());
        }
        Ok(())
    }

    /// One group's states, the highest layer first.
    fn group(
        &mut self,
        slot: Slot,
        group: u64,
        states: &[(Stamp, Group)],
        snapshots: &Snapshots,
        newest: &mut BTreeMap<u64, Entry>,
    ) {
        let volume = self.loaded.volumes.get(slot).filter(|volume| !volume.is_deleted());
        let mut owned: BTreeSet<u64> = BTreeSet::new();
        for (index, (layer, state)) in states.iter().enumerate() {
            let after = snapshots.interval_of_layer(*layer).after;
            let nobodys = |volume: &Volume| *layer >= volume.ceiling() && volume.thinning.is_empty();
            if volume.is_some_and(|volume| *layer > volume.layer_highest || nobodys(volume)) {
                self.find(Finding::Layer { volume: self.volume_id(slot), group, layer: *layer });
            }
            if index == 0 {
                let blocks = state.0.iter().enumerate().filter_map(|(at, entry)| Some((at, (*entry)?)));
                newest.extend(blocks.map(|(at, entry)| (group * GROUP_BLOCKS + at as u64, entry)));
            }
            // What it only repeats, the next state below its interval must say as well.
            let below = states[index..].iter().find(|(layer, _)| *layer < after);
            for (at, entry) in state.0.iter().enumerate() {
                let Some(entry) = entry else { continue };
                let key = BlockKey { slot, block: group * GROUP_BLOCKS + at as u64 };
                if volume.is_some() {
                    self.region(key, *entry);
                }
                if entry.stamp <= after {
                    if below.is_none_or(|(_, below)| below.0[at] != Some(*entry)) {
                        self.find(Finding::Layer { volume: self.volume_id(slot), group, layer: *layer });
                    }
                    continue;
                }
                if entry.is_tombstone() || !owned.insert(entry.physical) {
                    continue;
                }
                self.own(key, *entry, true);
                let outdated = self.loaded.active.versions_of(key).any(|version| {
                    version.stands_against(entry) && !snapshots.part(entry.stamp, version.stamp)
                });
                if volume.is_some() && !outdated {
                    self.in_use(key, *entry);
                }
            }
        }
        self.layered.extend(
            states.iter().filter(|(layer, _)| *layer > Stamp::ZERO).map(|(layer, _)| (slot, *layer, group)),
        );
    }

    /// What says which groups have states above the lowest layer says so of these and no others.
    fn layers(&mut self, meta: &dyn MetaStore, slot: Slot) -> Result<(), CheckpointError> {
        let mut missing = std::mem::take(&mut self.layered);
        let mut wrong = None;
        let (from, until) = (key::layered(slot, Stamp::ZERO, 0), key::layered(slot, Stamp::MAX, u64::MAX));
        meta.scan(&from, &until, &mut |stored, _| {
            let listed = key::parse_layered(stored);
            if !listed.is_some_and(|listed| missing.remove(&listed)) {
                wrong = listed.or(wrong);
            }
            ControlFlow::Continue(())
        })?;
        if let Some((_, layer, group)) = wrong.or(missing.first().copied()) {
            self.find(Finding::Layer { volume: self.volume_id(slot), group, layer });
        }
        Ok(())
    }

    fn region(&mut self, key: BlockKey, entry: Entry) {
        let Some(volume) = self.loaded.volumes.get(key.slot) else { return };
        if !volume.regions.covers(key.block, entry.stamp) {
            self.find(Finding::Region { volume: volume.id, block: key.block });
        }
    }

    fn in_use(&mut self, key: BlockKey, entry: Entry) {
        self.report.blocks_used += 1;
        if self.wants_data {
            self.blocks.push((entry.physical, key, entry));
        }
    }

    fn own(&mut self, key: BlockKey, entry: Entry, checkpointed: bool) {
        let geometry = self.loaded.superblock.geometry;
        let in_file = geometry.data_start + self.loaded.zones * ZONE_BLOCKS;
        if !geometry.is_data(entry.physical) || entry.physical >= in_file {
            let volume = self.volume_id(key.slot);
            return self.find(Finding::OutOfPlace { volume, block: key.block, physical: entry.physical });
        }
        if checkpointed {
            *self.used.entry(key.slot).or_default() += 1;
        }
        let (zone, at) = geometry.zone_of(entry.physical);
        let zone = u32::try_from(zone).unwrap_or(u32::MAX);
        let (word, bit) = ((at / 64) as usize, 1 << (at % 64));
        let has = |bits: Option<&ZoneBits>| bits.is_some_and(|bits| bits[word] & bit != 0);
        // What the journal names, the checkpointed bitmaps must still call free.
        let twice = has(self.owned.get(&zone))
            || has(self.journaled.get(&zone))
            || (!checkpointed && has(self.loaded.bitmaps.get(&zone)));
        let owned = if checkpointed { &mut self.owned } else { &mut self.journaled };
        owned.entry(zone).or_default()[word] |= bit;
        if twice {
            self.find(Finding::TwoOwners { physical: entry.physical });
        }
    }

    fn volume_id(&self, slot: Slot) -> VolumeId {
        self.loaded.volumes.get(slot).map_or(VolumeId::from_bytes([0; 16]), |volume| volume.id)
    }

    fn bitmaps(&mut self) {
        let empty = ZoneBits::default();
        let zones: std::collections::BTreeSet<u32> =
            self.owned.keys().chain(self.loaded.bitmaps.keys()).copied().collect();
        for zone in zones {
            let owned = self.owned.get(&zone).unwrap_or(&empty);
            let known = self.loaded.bitmaps.get(&zone).unwrap_or(&empty);
            let (mut leaked, mut unprotected) = (empty, empty);
            for (at, (owned, known)) in owned.iter().zip(known).enumerate() {
                leaked[at] = known & !owned;
                unprotected[at] = owned & !known;
            }
            let (leaked, unprotected) = (count_set(&leaked), count_set(&unprotected));
            if leaked + unprotected > 0 {
                self.find(Finding::Bitmap { zone, leaked, unprotected });
            }
        }
    }

    fn counts(&mut self) {
        let volumes: Vec<_> =
            self.loaded.volumes.iter().map(|(slot, v)| (slot, v.id, v.blocks_used, v.is_deleted())).collect();
        for (slot, volume, recorded, deleted) in volumes {
            let counted = self.used.get(&slot).copied().unwrap_or(0);
            if !deleted && recorded != counted {
                self.find(Finding::Count { volume, recorded, counted });
            }
        }
    }

    /// Reads every block in use in the order of the pool, in runs.
    fn data(&mut self, disk: &mut dyn Disk, progress: &mut dyn FnMut(u64, u64)) {
        let mut blocks = std::mem::take(&mut self.blocks);
        blocks.sort_unstable_by_key(|(physical, ..)| *physical);
        let total = blocks.len() as u64;
        let mut done = 0;
        for run in blocks.chunk_by(|a, b| a.0 + 1 == b.0) {
            for run in run.chunks(256) {
                self.verify_run(disk, run);
                done += run.len() as u64;
                progress(done, total);
            }
        }
    }

    fn verify_run(&mut self, disk: &mut dyn Disk, run: &[(u64, BlockKey, Entry)]) {
        match read_blocking(disk, run[0].0 * BLOCK_SIZE_U64, run.len() * BLOCK_SIZE) {
            Ok(data) => {
                for (block, (_, key, entry)) in data.chunks_exact(BLOCK_SIZE).zip(run) {
                    let found = block_crc(block);
                    if found == entry.crc {
                        self.report.blocks_verified += 1;
                    } else {
                        let cause =
                            format!("checksum {:#010x} where {:#010x} is recorded", found.0, entry.crc.0);
                        self.bad_data(*key, entry.physical, cause);
                    }
                }
            }
            Err(error) if run.len() == 1 => self.bad_data(run[0].1, run[0].0, error.to_string()),
            // One bad block fails a whole run: find out which.
            Err(_) => run.chunks(1).for_each(|single| self.verify_run(disk, single)),
        }
    }

    fn bad_data(&mut self, key: BlockKey, physical: u64, cause: String) {
        let volume = self.volume_id(key.slot);
        self.find(Finding::Data { volume, block: key.block, physical, cause });
    }
}
