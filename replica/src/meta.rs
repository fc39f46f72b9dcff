//! Where the map's checkpoints lie: an ordered key-value store with atomic, stable commits.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Why the map's store failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("map store: {operation} failed: {cause}")]
pub struct MetaError {
    operation: &'static str,
    cause: String,
}

impl MetaError {
    fn new(operation: &'static str, cause: impl ToString) -> Self {
        Self { operation, cause: cause.to_string() }
    }
}

/// What a scan calls for each key and value.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// An ordered key-value store. Reads may run beside a commit and see all of it or nothing.
pub trait MetaStore: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// When the store cannot be read or its checksums do not match.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError>;

    /// Calls `visit` with the keys from `from` on, below `until`, in order, until it breaks.
    ///
    /// # Errors
    /// As [`MetaStore::get`].
    fn scan(&self, from: &[u8], until: &[u8], visit: &mut Visit<'_>) -> Result<(), MetaError>;

    /// Begins a commit.
    ///
    /// # Errors
    /// When it cannot be begun.
    fn begin(&self) -> Result<Box<dyn MetaCommit + '_>, MetaError>;
}

/// A commit being made. Keys must come in strictly rising order. Dropped unfinished, it leaves
/// nothing.
pub trait MetaCommit {
    /// Sets a key.
    ///
    /// # Errors
    /// When it cannot be written.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), MetaError>;
    /// Removes a key.
    ///
    /// # Errors
    /// When it cannot be written.
    fn delete(&mut self, key: &[u8]) -> Result<(), MetaError>;
    /// Makes all of it visible and stable at once.
    ///
    /// # Errors
    /// When it cannot; then nothing of it is visible, though a crash may still reveal it whole.
    fn finish(self: Box<Self>) -> Result<(), MetaError>;
}

/// In memory, for tests and the simulator. Commits are stable at once.
#[derive(Debug, Default)]
pub struct MemoryMeta {
    entries: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl MemoryMeta {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Clone for MemoryMeta {
    fn clone(&self) -> Self {
        Self { entries: Mutex::new(self.entries().clone()) }
    }
}

impl MetaStore for MemoryMeta {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        Ok(self.entries().get(key).cloned())
    }

    fn scan(&self, from: &[u8], until: &[u8], visit: &mut Visit<'_>) -> Result<(), MetaError> {
        for (key, value) in self.entries().range(from.to_vec()..until.to_vec()) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn begin(&self) -> Result<Box<dyn MetaCommit + '_>, MetaError> {
        Ok(Box::new(MemoryCommit { store: self, changes: Vec::new() }))
    }
}

struct MemoryCommit<'a> {
    store: &'a MemoryMeta,
    changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl MemoryCommit<'_> {
    fn push(&mut self, key: &[u8], value: Option<&[u8]>) {
        assert!(
            self.changes.last().is_none_or(|(last, _)| last.as_slice() < key),
            "keys of a commit come in rising order"
        );
        self.changes.push((key.to_vec(), value.map(<[u8]>::to_vec)));
    }
}

impl MetaCommit for MemoryCommit<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), MetaError> {
        self.push(key, Some(value));
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), MetaError> {
        self.push(key, None);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), MetaError> {
        let mut entries = self.store.entries();
        for (key, value) in self.changes {
            match value {
                Some(value) => entries.insert(key, value),
                None => entries.remove(&key),
            };
        }
        Ok(())
    }
}

/// RocksDB. Its own log is off: a commit is one sorted table file, synced and then ingested
/// atomically, so that a checkpoint passes neither through a memtable nor a second log.
pub struct RocksMeta {
    db: rocksdb::DB,
    options: rocksdb::Options,
    staging: PathBuf,
}

impl std::fmt::Debug for RocksMeta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksMeta").field("staging", &self.staging).finish_non_exhaustive()
    }
}

/// Volume slot and group: the part of a key that bloom filters are made of.
const FILTER_PREFIX_BYTES: usize = 1 + 4 + 8;

impl RocksMeta {
    /// Opens the store in a folder, making it if it is not there.
    ///
    /// # Errors
    /// When it is damaged, in use, or cannot be made.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, MetaError> {
        let options = options(cache_bytes);
        let db = rocksdb::DB::open(&options, path).map_err(|error| MetaError::new("open", error))?;
        let staging = path.join(STAGING_FILE);
        if staging.exists() {
            std::fs::remove_file(&staging).map_err(|error| MetaError::new("clean-up", error))?;
        }
        Ok(Self { db, options, staging })
    }

    /// Opens the store in a folder to look at it; commits fail.
    ///
    /// # Errors
    /// When it is damaged or not there.
    pub fn open_read_only(path: &Path, cache_bytes: usize) -> Result<Self, MetaError> {
        let mut options = options(cache_bytes);
        options.create_if_missing(false);
        let db = rocksdb::DB::open_for_read_only(&options, path, false)
            .map_err(|error| MetaError::new("open", error))?;
        Ok(Self { db, options, staging: path.join(STAGING_FILE) })
    }
}

/// A commit's table while it is being written.
const STAGING_FILE: &str = "staging.sst";

fn options(cache_bytes: usize) -> rocksdb::Options {
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.set_paranoid_checks(true);
    options.set_compression_type(rocksdb::DBCompressionType::None);
    // Nothing passes through a memtable.
    options.set_write_buffer_size(1 << 20);
    options.set_max_background_jobs(2);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_target_file_size_base(16 << 20);
    options.set_max_bytes_for_level_base(64 << 20);
    options.set_level_compaction_dynamic_level_bytes(true);
    let mut table = rocksdb::BlockBasedOptions::default();
    table.set_block_cache(&rocksdb::Cache::new_lru_cache(cache_bytes));
    table.set_block_size(16 << 10);
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(false);
    table.set_cache_index_and_filter_blocks(true);
    options.set_block_based_table_factory(&table);
    options.set_prefix_extractor(rocksdb::SliceTransform::create_fixed_prefix(FILTER_PREFIX_BYTES));
    options
}

impl MetaStore for RocksMeta {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        self.db.get(key).map_err(|error| MetaError::new("read", error))
    }

    fn scan(&self, from: &[u8], until: &[u8], visit: &mut Visit<'_>) -> Result<(), MetaError> {
        let mut options = rocksdb::ReadOptions::default();
        options.set_total_order_seek(true);
        options.set_iterate_upper_bound(until.to_vec());
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek(from);
        while let Some((key, value)) = iterator.item() {
            if visit(key, value).is_break() {
                return Ok(());
            }
            iterator.next();
        }
        iterator.status().map_err(|error| MetaError::new("scan", error))
    }

    fn begin(&self) -> Result<Box<dyn MetaCommit + '_>, MetaError> {
        let writer = rocksdb::SstFileWriter::create(&self.options);
        writer.open(&self.staging).map_err(|error| MetaError::new("commit", error))?;
        Ok(Box::new(RocksCommit { store: self, writer }))
    }
}

struct RocksCommit<'a> {
    store: &'a RocksMeta,
    writer: rocksdb::SstFileWriter<'a>,
}

impl MetaCommit for RocksCommit<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), MetaError> {
        self.writer.put(key, value).map_err(|error| MetaError::new("commit", error))
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), MetaError> {
        self.writer.delete(key).map_err(|error| MetaError::new("commit", error))
    }

    fn finish(mut self: Box<Self>) -> Result<(), MetaError> {
        self.writer.finish().map_err(|error| MetaError::new("commit", error))?;
        let mut options = rocksdb::IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.store
            .db
            .ingest_external_file_opts(&options, vec![&self.store.staging])
            .map_err(|error| MetaError::new("commit", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dump(store: &dyn MetaStore) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        let visit = &mut |key: &[u8], value: &[u8]| {
            all.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        };
        store.scan(&[], &[255; 20], visit).unwrap();
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn rocksdb_agrees_with_memory_across_reopening(
            commits in prop::collection::vec(
                prop::collection::btree_map(0u32..40, prop::option::of(any::<u8>()), 1..20), 1..8))
        {
            let folder = tempfile::tempdir().unwrap();
            let memory = MemoryMeta::new();
            for commit in commits {
                let rocks = RocksMeta::open(folder.path(), 1 << 20).unwrap();
                prop_assert_eq!(dump(&rocks), dump(&memory));
                for store in [&rocks as &dyn MetaStore, &memory] {
                    let mut changes = store.begin().unwrap();
                    for (key, value) in &commit {
                        match value {
                            Some(value) => changes.put(&key.to_be_bytes(), &[*value]).unwrap(),
                            None => changes.delete(&key.to_be_bytes()).unwrap(),
                        }
                    }
                    changes.finish().unwrap();
                }
                drop(rocks.begin().unwrap());
                prop_assert_eq!(dump(&rocks), dump(&memory));
                prop_assert_eq!(rocks.get(&7u32.to_be_bytes()).unwrap(), memory.get(&7u32.to_be_bytes()).unwrap());
            }
        }
    }
}
