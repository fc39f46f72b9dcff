//! Formatting and opening.
//!
//! Opening reads the checkpoint's header, the volumes and the free-space bitmaps, then replays the
//! journal from the checkpoint's tail (`recovery.rs`): its time is bound by the journal's length. It
//! then flushes, begins a new boot epoch and commits a header that says so: blocks of an older epoch
//! found behind the journal's end never count again.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use trivet_disk::{Disk, DiskError, extend_blocking, flush_blocking, read_blocking, write_blocking};
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64, BlockArena, BootId, PoolId, Stamp};

use super::Store;
use super::allocator::{Allocator, ZoneBits};
use super::cache::MapCache;
use super::checkpoint::{CheckpointError, decode_bits};
use super::entry::key;
use super::flush::Flushing;
use super::header::{Dropped, Header, Segment};
use super::journal::Journal;
use super::layout::{Geometry, SUPERBLOCK_OFFSETS, Superblock, SuperblockError, ZONE_BLOCKS};
use super::maintenance::Maintenance;
use super::memtable::Memtable;
use super::open_error::{FormatError, OpenError};
use super::read::Reads;
use super::record::Slot;
use super::recovery::{replay, write_again};
use super::volume::{Volume, VolumeTable};
use crate::meta::{MetaError, MetaStore};
use crate::planted::{self, PlantedFault};

/// How to open a pool.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Memory for the map: half of it for its cached part, the rest for changes since the last
    /// checkpoint. Bytes.
    pub map_budget_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { map_budget_bytes: 256 << 20 }
    }
}

/// How to format a pool.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// Its identity.
    pub pool: PoolId,
    /// The most data it may hold, in blocks.
    pub capacity_blocks: u64,
}

/// What opening found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenReport {
    /// Which pool.
    pub pool: PoolId,
    /// Journal blocks replayed.
    pub replayed_blocks: u64,
    /// Blocks of unstable writes whose data had not reached the medium.
    pub dropped_blocks: u64,
    /// Whether the host was restarted since: what was not stable may be missing.
    pub host_restarted: bool,
    /// Whether the device had failed a write or flush: what was not stable may be missing.
    pub device_failed: bool,
    /// What to call this boot of the host: another name than before when something may be missing.
    pub boot: BootId,
    /// What is wrong with a copy of the superblock that the other one made up for.
    pub superblock_repaired: Option<String>,
}

/// A pool as its medium says it is, nothing written yet.
pub(super) struct Loaded {
    pub(super) superblock: Superblock,
    pub(super) superblock_damage: Option<String>,
    pub(super) header: Header,
    pub(super) volumes: VolumeTable,
    pub(super) active: Memtable,
    pub(super) zones: u64,
    pub(super) bitmaps: BTreeMap<u32, ZoneBits>,
    pub(super) head: u64,
    pub(super) head_crc: u32,
    /// Everything before this journal block is known to be stable.
    pub(super) stable: u64,
    pub(super) dropped: Vec<Dropped>,
    /// What each volume's engine had told to be committed, as far as that is stable.
    pub(super) committed: BTreeMap<Slot, Stamp>,
    /// The device failed a write or flush after the pool was last opened.
    pub(super) device_failed: bool,
}

impl Store {
    /// Makes an empty pool on a device, and its first checkpoint.
    ///
    /// # Errors
    /// When either cannot be written.
    pub fn format(
        disk: &mut dyn Disk,
        meta: &dyn MetaStore,
        options: &FormatOptions,
    ) -> Result<(), FormatError> {
        let geometry = Geometry::for_capacity(options.capacity_blocks);
        let zones = geometry.zones().min(16);
        extend_blocking(disk, (geometry.data_start + zones * ZONE_BLOCKS) * BLOCK_SIZE_U64)?;
        write_superblocks(disk, &Superblock { pool: options.pool, boot_epoch: 0, geometry })?;
        let header = Header {
            boot_epoch: 0,
            boot: BootId::from_bytes([0; 16]),
            zones,
            next_slot: 0,
            tail: 0,
            tail_previous_crc: 0,
            segments: vec![Segment { epoch: 0, first: 0 }],
            dropped: Vec::new(),
            intact_limits: Vec::new(),
        };
        commit_header(meta, &header)?;
        Ok(())
    }

    /// Opens a pool: replays its journal and begins a new boot epoch. `boot` is the host's.
    ///
    /// # Errors
    /// When the device or the map's store fails, or the pool is corrupt.
    pub fn open(
        disk: &mut dyn Disk,
        meta: &dyn MetaStore,
        options: &StoreOptions,
        boot: BootId,
    ) -> Result<(Self, OpenReport), OpenError> {
        let mut loaded = load(disk, meta)?;
        // A pool just made has been opened on no boot yet.
        let host_restarted = loaded.header.boot != boot && loaded.header.boot_epoch > 0;
        let device_failed = loaded.device_failed;
        let report = OpenReport {
            pool: loaded.superblock.pool,
            replayed_blocks: loaded.head - loaded.header.tail,
            dropped_blocks: loaded.dropped.len() as u64,
            host_restarted,
            device_failed,
            boot: if device_failed { renamed(boot, loaded.header.boot_epoch) } else { boot },
            superblock_repaired: loaded.superblock_damage.take(),
        };
        let mut header = loaded.header.clone();
        header.boot_epoch += 1;
        header.boot = boot;
        header.dropped.append(&mut loaded.dropped);
        header.segments.push(Segment { epoch: header.boot_epoch, first: loaded.head });
        if host_restarted || device_failed {
            limit_intact(&mut loaded, &mut header);
        }
        loaded.superblock.boot_epoch = header.boot_epoch;
        // The flushes in here also make stable what replay found and kept.
        let solid = if device_failed { write_again(disk, &loaded) } else { Ok(()) };
        let written = solid.and_then(|()| Ok(write_superblocks(disk, &loaded.superblock)?));
        if let Err(error) = written {
            Self::note_failure(meta)?;
            return Err(error);
        }
        commit_header(meta, &header)?;
        let needs_checkpoint = !header.has_room();
        let mut store = Self::from_loaded(loaded, header, options);
        if needs_checkpoint {
            store.checkpoint_now(meta)?;
        }
        Ok((store, report))
    }

    /// The device has failed a write or flush, and the pool has stopped: notes it for the next
    /// opening, which may be on the same boot, while the device still shows what it has not written.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn note_failure(meta: &dyn MetaStore) -> Result<(), MetaError> {
        let mut commit = meta.begin()?;
        commit.put(key::FAILED, &[])?;
        commit.finish()
    }

    fn from_loaded(loaded: Loaded, header: Header, options: &StoreOptions) -> Self {
        let geometry = loaded.superblock.geometry;
        let mut taken = loaded.bitmaps;
        for (_, version) in loaded.active.points().filter(|(_, version)| !version.is_tombstone()) {
            let (zone, at) = geometry.zone_of(version.entry().physical);
            let bits = taken.entry(u32::try_from(zone).unwrap_or(u32::MAX)).or_default();
            bits[(at / 64) as usize] |= 1 << (at % 64);
        }
        let journal = Journal::new(
            loaded.superblock.pool,
            geometry,
            header.boot_epoch,
            header.tail,
            loaded.head,
            loaded.head_crc,
        );
        // An entry takes about 50 bytes, and there are two memtables at times; small pools keep
        // fewer, since what they supersede stays taken until the checkpoint.
        let of_memory = options.map_budget_bytes / 512;
        let of_space = usize::try_from(geometry.zones() * ZONE_BLOCKS / 16).unwrap_or(usize::MAX);
        let memtable_entries_max = of_memory.min(of_space).max(1024);
        let mut maintenance = Maintenance::default();
        let freeing = |volume: &Volume| volume.is_deleted() || !volume.thinning.is_empty();
        let deleting = loaded.volumes.iter().any(|(_, volume)| freeing(volume));
        maintenance.requested = deleting || !loaded.active.is_empty();
        Self {
            superblock: loaded.superblock,
            header,
            allocator: Allocator::new(geometry, loaded.zones, &taken),
            volumes: loaded.volumes,
            active: loaded.active,
            memtable_entries_max,
            frozen: None,
            cache: MapCache::new(options.map_budget_bytes / 2),
            journal,
            arena: BlockArena::new(),
            writes: Default::default(),
            records: Default::default(),
            places: Default::default(),
            pulled: Default::default(),
            held: Vec::new(),
            batches: Default::default(),
            next_batch: 0,
            completed_crc: loaded.head_crc,
            flushing: Flushing::starting_at(loaded.head),
            reads: Reads::default(),
            scans: 0,
            maintenance,
            checkpoints: 0,
            checksum_errors: 0,
            failed: None,
            device_silent: None,
            actions: Vec::new(),
        }
    }

    /// Checkpoints on this thread: only while opening.
    fn checkpoint_now(&mut self, meta: &dyn MetaStore) -> Result<(), OpenError> {
        let job = self.freeze();
        let outcome = job.run(meta);
        if let Err(error) = &outcome.result {
            return Err(OpenError::Map(error.clone()));
        }
        self.checkpoint_finished(outcome);
        Ok(())
    }
}

/// The host was restarted: of each volume, only what its engine had told to be committed, in a
/// record that was stable, is sure. (The highest stamp found would not do: stamps need not reach the
/// journal in their order, and what is lost leaves no trace.)
fn limit_intact(loaded: &mut Loaded, header: &mut Header) {
    for (slot, volume) in loaded.volumes.iter_mut() {
        let committed = loaded.committed.get(&slot).copied().unwrap_or(Stamp::ZERO);
        // Whatever is left: what is gone leaves no trace.
        if !planted::is(PlantedFault::OverclaimIntact) {
            let limit = volume.intact_limit.map_or(committed, |limit| limit.min(committed));
            volume.intact_limit = Some(limit);
            header.intact_limits.retain(|(of, _)| *of != slot);
            header.intact_limits.push((slot, limit));
        }
    }
}

fn commit_header(meta: &dyn MetaStore, header: &Header) -> Result<(), MetaError> {
    let mut commit = meta.begin()?;
    commit.put(key::HEADER, &header.encode())?;
    commit.delete(key::FAILED)?;
    commit.finish()
}

/// Another name for the host's boot: for who knows it, something may be missing since.
fn renamed(boot: BootId, boot_epoch: u64) -> BootId {
    let mut bytes = *boot.as_bytes();
    for (byte, other) in bytes.iter_mut().rev().zip(boot_epoch.to_le_bytes()) {
        *byte ^= !other;
    }
    BootId::from_bytes(bytes)
}

/// Writes both copies, one stable before the other is touched.
fn write_superblocks(disk: &mut dyn Disk, superblock: &Superblock) -> Result<(), DiskError> {
    let mut arena = BlockArena::new();
    for offset in SUPERBLOCK_OFFSETS {
        let mut block = arena.allocate(1);
        superblock.encode(&mut block);
        write_blocking(disk, offset, &block)?;
        flush_blocking(disk)?;
    }
    Ok(())
}

/// Reads a pool without changing anything.
pub(super) fn load(disk: &mut dyn Disk, meta: &dyn MetaStore) -> Result<Loaded, OpenError> {
    let (superblock, superblock_damage) = read_superblock(disk)?;
    let header = Header::decode(&meta.get(key::HEADER)?.ok_or(OpenError::NoCheckpoint)?)?;
    // Opening writes the superblocks first, then commits the header.
    let epochs = header.boot_epoch..=header.boot_epoch + 1;
    if !epochs.contains(&superblock.boot_epoch) {
        return Err(OpenError::Mismatch { pool_file: superblock.boot_epoch, map: header.boot_epoch });
    }
    let geometry = superblock.geometry;
    let zones_in_file = (disk.length() / BLOCK_SIZE_U64).saturating_sub(geometry.data_start) / ZONE_BLOCKS;
    if zones_in_file < header.zones {
        let expected = (geometry.data_start + header.zones * ZONE_BLOCKS) * BLOCK_SIZE_U64;
        return Err(OpenError::Short { expected, found: disk.length() });
    }
    let mut loaded = Loaded {
        superblock,
        superblock_damage,
        volumes: VolumeTable::with_next_slot(header.next_slot),
        active: Memtable::default(),
        zones: zones_in_file.min(geometry.zones()),
        bitmaps: load_bitmaps(meta)?,
        head: header.tail,
        head_crc: header.tail_previous_crc,
        stable: header.tail,
        dropped: Vec::new(),
        committed: BTreeMap::new(),
        device_failed: meta.get(key::FAILED)?.is_some(),
        header,
    };
    load_volumes(meta, &mut loaded)?;
    load_regions(meta, &mut loaded.volumes)?;
    replay(disk, &mut loaded)?;
    Ok(loaded)
}

fn read_superblock(disk: &mut dyn Disk) -> Result<(Superblock, Option<String>), OpenError> {
    let mut copies = Vec::new();
    for offset in SUPERBLOCK_OFFSETS {
        copies.push(if disk.length() < offset + BLOCK_SIZE_U64 {
            Err(SuperblockError::NotAPool)
        } else {
            Superblock::decode(&read_blocking(disk, offset, BLOCK_SIZE)?)
        });
    }
    let (second, first) = (copies.pop(), copies.pop());
    match (first, second) {
        (Some(Ok(first)), Some(Ok(second))) => {
            // They differ only when a crash came between writing the one and the other.
            Ok((if first.boot_epoch >= second.boot_epoch { first } else { second }, None))
        }
        (Some(Ok(good)), Some(Err(error))) => Ok((good, Some(format!("second copy: {error}")))),
        (Some(Err(error)), Some(Ok(good))) => Ok((good, Some(format!("first copy: {error}")))),
        (Some(Err(SuperblockError::Version { found })), _)
        | (_, Some(Err(SuperblockError::Version { found }))) => Err(OpenError::Version { found }),
        (Some(Err(first)), Some(Err(second))) => Err(OpenError::Superblock { first, second }),
        _ => unreachable!("there are two copies"),
    }
}

fn load_bitmaps(meta: &dyn MetaStore) -> Result<BTreeMap<u32, ZoneBits>, OpenError> {
    let mut bitmaps = BTreeMap::new();
    let mut failure = None;
    meta.scan(&[key::ZONES], &[key::ZONES + 1], &mut |stored, value| {
        let zone = key::parse_number(stored).unwrap_or(u32::MAX);
        match decode_bits(zone, value) {
            Ok(bits) => {
                bitmaps.insert(zone, bits);
                ControlFlow::Continue(())
            }
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failure.map_or(Ok(bitmaps), |error| Err(error.into()))
}

fn load_volumes(meta: &dyn MetaStore, loaded: &mut Loaded) -> Result<(), OpenError> {
    let mut failure = None;
    meta.scan(&[key::VOLUMES], &[key::VOLUMES + 1], &mut |stored, value| match (
        key::parse_number(stored),
        Volume::decode(value),
    ) {
        (Some(slot), Ok(mut volume)) => {
            volume.progress_recorded = volume.progress;
            loaded.volumes.insert(Slot(slot), volume);
            ControlFlow::Continue(())
        }
        (_, Err(error)) => {
            failure = Some(OpenError::Volume(error));
            ControlFlow::Break(())
        }
        (None, _) => {
            failure = Some(OpenError::Map(CheckpointError::Corrupt("key of a volume".to_owned())));
            ControlFlow::Break(())
        }
    })?;
    for (slot, limit) in &loaded.header.intact_limits {
        if let Some(volume) = loaded.volumes.get_mut(*slot) {
            volume.intact_limit = Some(volume.intact_limit.map_or(*limit, |old| old.min(*limit)));
        }
    }
    failure.map_or(Ok(()), Err)
}

fn load_regions(meta: &dyn MetaStore, volumes: &mut VolumeTable) -> Result<(), OpenError> {
    let mut damaged = false;
    meta.scan(&[key::REGIONS], &[key::REGIONS + 1], &mut |stored, value| {
        let loaded = key::parse_regions(stored).and_then(|(slot, chunk)| {
            volumes.get_mut(slot).map(|volume| volume.regions.load_chunk(chunk, value))
        });
        damaged = loaded != Some(true);
        if damaged { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let error = || CheckpointError::Corrupt("regions of a volume".to_owned());
    if damaged { Err(OpenError::Map(error())) } else { Ok(()) }
}
