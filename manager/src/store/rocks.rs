//! Records in an embedded RocksDB.
//!
//! A value is `revision (u64, little-endian) ‖ bytes`. The last revision given out is the value of
//! the empty key, written in the same batch as what it names. RocksDB's log is on and synced with
//! every commit: an answered commit survives a crash of process or host.

use super::{Change, CommitError, RecordStore, StoreError, Stored};
use rocksdb::{
    BottommostLevelCompaction, CompactOptions, DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions,
};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use trivet_model::Revision;

/// The key of the last revision; no record's key is empty.
const LAST_REVISION: &[u8] = b"";
const REVISION_BYTES: usize = size_of::<u64>();

/// A store in a folder of its own. RocksDB locks the folder: one process at a time.
pub struct RocksStore {
    db: DB,
    /// Holds the last revision. Commits are one after the other under this lock, which makes the
    /// comparison and the write one step.
    last: Mutex<u64>,
}

impl std::fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksStore").field("path", &self.db.path()).finish_non_exhaustive()
    }
}

impl RocksStore {
    /// Opens the store in `dir`, and makes it if it is not there.
    ///
    /// # Errors
    /// [`StoreError`] when RocksDB cannot open it or its counter is damaged.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        // Some kilobytes of records: RocksDB's defaults are for gigabytes.
        options.set_write_buffer_size(1 << 20);
        options.set_max_open_files(32);
        options.set_keep_log_file_num(2);
        options.set_max_background_jobs(1);
        let db = DB::open(&options, dir).map_err(database("open"))?;
        let last = match db.get(LAST_REVISION).map_err(database("read"))? {
            None => 0,
            Some(bytes) => split("", &bytes)?.revision.0,
        };
        Ok(Self { db, last: Mutex::new(last) })
    }

    fn check(&self, change: &Change) -> Result<(), CommitError> {
        assert!(!change.key.is_empty(), "the empty key is the store's own");
        let actual = self.get(&change.key)?.map(|stored| stored.revision);
        if actual == change.expected {
            return Ok(());
        }
        Err(CommitError::Conflict { key: change.key.clone(), actual })
    }
}

impl RecordStore for RocksStore {
    fn get(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        match self.db.get(key).map_err(database("read"))? {
            None => Ok(None),
            Some(bytes) => split(key, &bytes).map(Some),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Stored)>, StoreError> {
        let mut found = Vec::new();
        for entry in self.db.iterator(IteratorMode::From(prefix.as_bytes(), Direction::Forward)) {
            let (key, value) = entry.map_err(database("list"))?;
            if !key.starts_with(prefix.as_bytes()) {
                break;
            }
            if *key == *LAST_REVISION {
                continue;
            }
            let key = String::from_utf8_lossy(&key).into_owned();
            let stored = split(&key, &value)?;
            found.push((key, stored));
        }
        Ok(found)
    }

    fn commit(&self, changes: &[Change]) -> Result<Revision, CommitError> {
        // A panic under the lock leaves the counter at a committed value: poison means nothing.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            self.check(change)?;
        }
        let revision = Revision(*last + 1);
        let mut batch = WriteBatch::default();
        batch.put(LAST_REVISION, revision.0.to_le_bytes());
        for change in changes {
            match &change.value {
                Some(value) => batch.put(&change.key, [&revision.0.to_le_bytes(), value.as_slice()].concat()),
                None => batch.delete(&change.key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options).map_err(database("write"))?;
        *last = revision.0;
        Ok(revision)
    }

    fn erase(&self, key: &str) -> Result<(), StoreError> {
        // Out of the log, then out of every table.
        self.db.flush().map_err(database("flush"))?;
        let before = self.tables_around(key)?;
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        self.db.compact_range_opt(Some(key), Some(key), &options);
        // It does not say whether it could: a table that is still there was not written anew.
        let after = self.tables_around(key)?;
        match before.intersection(&after).next() {
            None => Ok(()),
            Some(table) => {
                let cause =
                    format!("{table}, which may hold what is to be erased, could not be written anew");
                Err(StoreError::Database { operation: "erase from", cause })
            }
        }
    }
}

impl RocksStore {
    /// The tables that may hold a key.
    fn tables_around(&self, key: &str) -> Result<BTreeSet<String>, StoreError> {
        let key = key.as_bytes();
        let tables = self.db.live_files().map_err(database("list the files of"))?;
        let around = tables.into_iter().filter(|table| {
            let starts = table.start_key.as_deref().is_none_or(|start| start <= key);
            starts && table.end_key.as_deref().is_none_or(|end| end >= key)
        });
        Ok(around.map(|table| table.name).collect())
    }
}

fn database(operation: &'static str) -> impl FnOnce(rocksdb::Error) -> StoreError {
    move |error| StoreError::Database { operation, cause: error.into_string() }
}

fn split(key: &str, bytes: &[u8]) -> Result<Stored, StoreError> {
    let Some((revision, value)) = bytes.split_first_chunk::<REVISION_BYTES>() else {
        return Err(StoreError::Damaged { key: key.to_owned(), length: bytes.len() });
    };
    Ok(Stored { value: value.to_vec(), revision: Revision(u64::from_le_bytes(*revision)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// What a caller expects of a key, relative to the truth.
    #[derive(Clone, Debug)]
    enum Guess {
        Right,
        Absent,
        Stale,
    }

    #[derive(Clone, Debug)]
    struct Attempt {
        key: u8,
        guess: Guess,
        value: Option<Vec<u8>>,
    }

    fn attempt() -> impl Strategy<Value = Attempt> {
        let guess = prop_oneof![3 => Just(Guess::Right), 1 => Just(Guess::Absent), 1 => Just(Guess::Stale)];
        let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9));
        (0..4u8, guess, value).prop_map(|(key, guess, value)| Attempt { key, guess, value })
    }

    type Oracle = BTreeMap<String, Stored>;

    fn changes(oracle: &Oracle, attempts: &[Attempt]) -> Vec<Change> {
        let mut changes: Vec<Change> = Vec::new();
        for attempt in attempts {
            let key = format!("k/{}", attempt.key);
            if changes.iter().any(|change| change.key == key) {
                continue;
            }
            let actual = oracle.get(&key).map(|stored| stored.revision);
            let expected = match attempt.guess {
                Guess::Right => actual,
                Guess::Absent => None,
                Guess::Stale => Some(Revision(actual.map_or(1, |revision| revision.0 - 1))),
            };
            changes.push(Change { key, expected, value: attempt.value.clone() });
        }
        changes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn behaves_as_a_map_with_revisions(
            script in proptest::collection::vec(
                (proptest::collection::vec(attempt(), 1..4), any::<bool>()), 1..40),
        ) {
            let temp = tempfile::tempdir().unwrap();
            let mut store = RocksStore::open(temp.path()).unwrap();
            let mut oracle = Oracle::new();
            let mut last = Revision(0);
            for (attempts, reopen) in script {
                let changes = changes(&oracle, &attempts);
                let wrong = changes.iter().find(|change| {
                    oracle.get(&change.key).map(|stored| stored.revision) != change.expected
                });
                match (store.commit(&changes), wrong) {
                    (Ok(revision), None) => {
                        prop_assert!(revision > last);
                        last = revision;
                        for change in changes {
                            match change.value {
                                Some(value) => { oracle.insert(change.key, Stored { value, revision }); }
                                None => { oracle.remove(&change.key); }
                            }
                        }
                    }
                    (Err(CommitError::Conflict { key, .. }), Some(change)) => {
                        prop_assert_eq!(key, change.key.clone());
                    }
                    (result, wrong) => prop_assert!(false, "{result:?} where {wrong:?} is wrong"),
                }
                if reopen {
                    drop(store);
                    store = RocksStore::open(temp.path()).unwrap();
                }
                let listed: Oracle = store.list("k/").unwrap().into_iter().collect();
                prop_assert_eq!(&listed, &oracle);
            }
        }
    }

    #[test]
    fn of_many_swappers_one_wins_each_round() {
        let temp = tempfile::tempdir().unwrap();
        let store = RocksStore::open(temp.path()).unwrap();
        let swap = |expected| store.commit(&[Change { key: "n".into(), expected, value: Some(vec![1]) }]);
        let mut expected = None;
        for _ in 0..20 {
            let won = std::thread::scope(|scope| {
                let rivals: Vec<_> = (0..4).map(|_| scope.spawn(|| swap(expected))).collect();
                rivals.into_iter().filter_map(|rival| rival.join().unwrap().ok()).collect::<Vec<_>>()
            });
            assert_eq!(won.len(), 1);
            expected = Some(won[0]);
        }
    }

    #[test]
    fn a_prefix_lists_only_its_own() {
        let temp = tempfile::tempdir().unwrap();
        let store = RocksStore::open(temp.path()).unwrap();
        for key in ["a/1", "a/2", "ab", "b/1"] {
            store.commit(&[Change { key: key.into(), expected: None, value: Some(vec![]) }]).unwrap();
        }
        let keys: Vec<String> = store.list("a/").unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["a/1", "a/2"]);
        assert_eq!(store.list("").unwrap().len(), 4, "the counter is not a record");
    }
}
