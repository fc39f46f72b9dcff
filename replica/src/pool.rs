//! A pool's folder: the file `pool` with superblocks, journal and data, and the folder `map` with
//! the checkpointed map.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trivet_disk::UringFile;
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64, BootId, PoolId};
use trivet_reactor::Reactor;

use crate::meta::{MetaError, MetaStore, RocksMeta};
use crate::store::{
    FormatError, FormatOptions, OpenError, OpenReport, POOL_VERSION, SUPERBLOCK_OFFSETS, Store, StoreOptions,
    VerifyReport, ZONE_BLOCKS, verify,
};

/// How to open or make a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Memory for the map, in bytes; an eighth of it besides serves the map's store.
    pub map_budget_bytes: usize,
    /// The most data a new pool may hold, in bytes; `None`: the file system's size.
    pub capacity_bytes: Option<u64>,
}

/// A pool that is open: what a server runs.
pub struct OpenPool {
    /// The state machine.
    pub store: Store,
    /// Its device.
    pub disk: UringFile,
    /// Its map, for the background thread.
    pub meta: Arc<dyn MetaStore>,
    /// What opening found.
    pub report: OpenReport,
}

/// Why a pool's folder does not open.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The folder holds something else.
    #[error(
        "{} is not a pool: it has no file 'pool' and is not empty; name an empty folder to make a new pool, or the right one",
        path.display()
    )]
    NotAPool {
        /// Which folder.
        path: PathBuf,
    },
    /// There is nothing.
    #[error("there is no pool in {}; check the folder's name", path.display())]
    Missing {
        /// Which folder.
        path: PathBuf,
    },
    /// The file system is too small for any pool.
    #[error("{} has room for {bytes} bytes; a pool needs at least 64 MiB", path.display())]
    TooSmall {
        /// Which folder.
        path: PathBuf,
        /// The capacity that was asked for or found.
        bytes: u64,
    },
    /// The pool file.
    #[error("{0}")]
    File(#[from] trivet_disk::OpenError),
    /// The map.
    #[error("{}: {error}; if the map is damaged, remove this replica and let it be rebuilt", path.display())]
    Map {
        /// Which folder.
        path: PathBuf,
        /// What is wrong.
        error: MetaError,
    },
    /// Formatting.
    #[error("{}: a new pool could not be written: {error}", path.display())]
    Format {
        /// Which folder.
        path: PathBuf,
        /// What is wrong.
        error: FormatError,
    },
    /// Another program's.
    #[error("the pool in {} has format version {found}, and this program knows version {POOL_VERSION}; run the trivet that made it", path.display())]
    Version {
        /// Which folder.
        path: PathBuf,
        /// The pool's.
        found: u32,
    },
    /// Recovery.
    #[error("the pool in {} does not open: {error}; run 'trivet check' on it, then remove this replica and let it be rebuilt", path.display())]
    Open {
        /// Which folder.
        path: PathBuf,
        /// What is wrong.
        error: OpenError,
    },
    /// The operating system.
    #[error("{}: {operation} failed: {error}", path.display())]
    System {
        /// Which folder or file.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Its answer.
        error: io::Error,
    },
}

impl PoolError {
    fn open(path: &Path, error: OpenError) -> Self {
        let path = path.to_path_buf();
        match error {
            OpenError::Version { found } => Self::Version { path, found },
            error => Self::Open { path, error },
        }
    }
}

const POOL_FILE: &str = "pool";
/// The pool file while it is being formatted; its last name says that it is whole.
const NEW_FILE: &str = "pool.new";
const MAP_FOLDER: &str = "map";
/// What a server puts beside them.
const LOCK_FILE: &str = "lock";
/// Says that the device failed a write or flush while the pool was open.
const FAILURE_FILE: &str = "device-failed";
/// As much is written to it: a full file system must not take it.
const FAILURE_FILE_BYTES: usize = 64 << 10;
const CAPACITY_MIN_BYTES: u64 = 64 << 20;
/// What the pool file leaves free for the map, so that a full file system refuses writes cleanly
/// and checkpoints go on: a 32nd of the file system within these bounds.
const MAP_RESERVE_MIN_BYTES: u64 = 16 << 20;
const MAP_RESERVE_MAX_BYTES: u64 = 1 << 30;

/// Opens the pool in a folder, making it first if the folder is empty or not there.
///
/// # Errors
/// With the cause and the next step.
pub fn open_or_create(reactor: &Reactor, path: &Path, options: &PoolOptions) -> Result<OpenPool, PoolError> {
    let system = |operation| {
        let path = path.to_path_buf();
        move |error| PoolError::System { path, operation, error }
    };
    if !path.join(POOL_FILE).exists() {
        fs::create_dir_all(path).map_err(system("making the folder"))?;
        if !is_empty_but_for_ours(path).map_err(system("reading the folder"))? {
            return Err(PoolError::NotAPool { path: path.to_path_buf() });
        }
        create(reactor, path, options)?;
    }
    let mut disk = UringFile::open(reactor, &path.join(POOL_FILE))?;
    let file_system = file_system_bytes(path).map_err(system("asking for the file system's size"))?;
    disk.keep_free((file_system / 32).clamp(MAP_RESERVE_MIN_BYTES, MAP_RESERVE_MAX_BYTES));
    let meta = open_map(path, options.map_budget_bytes / 8)?;
    let boot = boot_id().map_err(system("reading the boot id"))?;
    if path.join(FAILURE_FILE).exists() {
        let noted = Store::note_failure(&meta);
        noted.map_err(|error| PoolError::Map { path: path.to_path_buf(), error })?;
        fs::remove_file(path.join(FAILURE_FILE)).map_err(system("removing the note of a failure"))?;
    }
    let store_options = StoreOptions { map_budget_bytes: options.map_budget_bytes };
    let (store, report) =
        Store::open(&mut disk, &meta, &store_options, boot).map_err(|error| PoolError::open(path, error))?;
    Ok(OpenPool { store, disk, meta: Arc::new(meta), report })
}

/// Notes for the next opening that the device has failed a write or flush (ADR 8), and sees whether it
/// takes both again: in the folder, and in the pool's file, by writing a superblock's copy as it is.
///
/// # Errors
/// The system's: the device does not work yet.
pub fn note_failure(path: &Path) -> io::Result<()> {
    let mut note = fs::File::create(path.join(FAILURE_FILE))?;
    note.write_all(&[0; FAILURE_FILE_BYTES])?;
    note.sync_all()?;
    fs::File::open(path)?.sync_all()?;
    let pool = fs::File::options().read(true).write(true).open(path.join(POOL_FILE))?;
    let mut superblock = [0; BLOCK_SIZE];
    pool.read_exact_at(&mut superblock, SUPERBLOCK_OFFSETS[1])?;
    pool.write_all_at(&superblock, SUPERBLOCK_OFFSETS[1])?;
    pool.sync_data()
}

/// Proves the invariants of the closed pool in a folder, changing nothing. With `data`, reads
/// every block in use; `progress` is called with blocks verified and blocks to verify.
///
/// # Errors
/// When there is no pool or it cannot be looked at; what is wrong with it is in the report.
pub fn check(
    reactor: &Reactor,
    path: &Path,
    data: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport, PoolError> {
    if !path.join(POOL_FILE).exists() {
        return Err(PoolError::Missing { path: path.to_path_buf() });
    }
    let mut disk = UringFile::open(reactor, &path.join(POOL_FILE))?;
    let meta = match RocksMeta::open_read_only(&path.join(MAP_FOLDER), CHECK_CACHE_BYTES) {
        Ok(meta) => meta,
        Err(error) => return Ok(VerifyReport::unreadable_map(&error)),
    };
    verify(&mut disk, &meta, data, progress).map_err(|error| PoolError::open(path, error))
}

const CHECK_CACHE_BYTES: usize = 32 << 20;

fn open_map(path: &Path, cache_bytes: usize) -> Result<RocksMeta, PoolError> {
    RocksMeta::open(&path.join(MAP_FOLDER), cache_bytes)
        .map_err(|error| PoolError::Map { path: path.to_path_buf(), error })
}

/// Whether nothing is there but what an interrupted format or a server's lock leaves.
fn is_empty_but_for_ours(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name: OsString = entry?.file_name();
        if ![NEW_FILE, MAP_FOLDER, LOCK_FILE].iter().any(|ours| name == *ours) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn create(reactor: &Reactor, path: &Path, options: &PoolOptions) -> Result<(), PoolError> {
    let system = |operation| {
        let path = path.to_path_buf();
        move |error| PoolError::System { path, operation, error }
    };
    let new_file = path.join(NEW_FILE);
    // An interrupted format has held nothing yet.
    if new_file.exists() {
        fs::remove_file(&new_file).map_err(system("removing an unfinished pool"))?;
    }
    if path.join(MAP_FOLDER).exists() {
        fs::remove_dir_all(path.join(MAP_FOLDER)).map_err(system("removing an unfinished map"))?;
    }
    let bytes = match options.capacity_bytes {
        Some(bytes) => bytes,
        None => file_system_bytes(path).map_err(system("asking for the file system's size"))?,
    };
    if bytes < CAPACITY_MIN_BYTES {
        return Err(PoolError::TooSmall { path: path.to_path_buf(), bytes });
    }
    let mut pool = [0; 16];
    getrandom::fill(&mut pool)
        .map_err(|error| system("asking for random bytes")(io::Error::other(error.to_string())))?;
    let format = FormatOptions {
        pool: PoolId::from_random_bytes(pool),
        capacity_blocks: (bytes / BLOCK_SIZE_U64).next_multiple_of(ZONE_BLOCKS),
    };
    let mut disk = UringFile::create(reactor, &new_file)?;
    let meta = open_map(path, 1 << 20)?;
    Store::format(&mut disk, &meta, &format)
        .map_err(|error| PoolError::Format { path: path.to_path_buf(), error })?;
    drop(disk);
    fs::rename(&new_file, path.join(POOL_FILE)).map_err(system("naming the new pool"))?;
    let folder = fs::File::open(path).map_err(system("opening the folder"))?;
    folder.sync_all().map_err(system("syncing the folder"))
}

fn file_system_bytes(path: &Path) -> io::Result<u64> {
    let statistics = rustix::fs::statvfs(path)?;
    Ok(statistics.f_blocks * statistics.f_frsize)
}

fn boot_id() -> io::Result<BootId> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    text.trim().parse().map_err(io::Error::other)
}
