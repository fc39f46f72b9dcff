//! Where records live: keys and values with compare-and-swap by revision.
//!
//! Invariants, whatever the implementation:
//! - a revision names one version of one key for ever; a commit's revision is above all before;
//! - a commit takes place as a whole or not at all, and is durable before it is answered;
//! - reads are linearizable with commits.

mod rocks;

pub use rocks::RocksStore;

use trivet_model::Revision;

/// A value and the revision of the commit that wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// The value.
    pub value: Vec<u8>,
    /// Changes with every commit that writes the key.
    pub revision: Revision,
}

/// One key's part in a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Which key.
    pub key: String,
    /// The revision it must have; `None`: it must not be there.
    pub expected: Option<Revision>,
    /// Its new value; `None` deletes it.
    pub value: Option<Vec<u8>>,
}

/// Keeps records. Calls block for the time of a synced write (below a millisecond to a few).
/// One implementation for one machine, [`RocksStore`]; etcd where managers must be many.
pub trait RecordStore: Send + Sync {
    /// The value of `key`, if it is there.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read.
    fn get(&self, key: &str) -> Result<Option<Stored>, StoreError>;

    /// Every key that begins with `prefix`, in order.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read.
    fn list(&self, prefix: &str) -> Result<Vec<(String, Stored)>, StoreError>;

    /// Carries out all changes if every key has the revision expected of it.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] when one has not: nothing has changed.
    fn commit(&self, changes: &[Change]) -> Result<Revision, CommitError>;

    /// Has the store give up earlier values of `key`, so that they are no more in its files: deleting or
    /// overwriting a value only hides it.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be written.
    fn erase(&self, key: &str) -> Result<(), StoreError>;
}

/// Why the store cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database failed.
    #[error("the record store failed to {operation}: {cause}")]
    Database {
        /// What was tried.
        operation: &'static str,
        /// RocksDB's words.
        cause: String,
    },
    /// A stored value is shorter than its revision.
    #[error("the record store holds a damaged value for '{key}': {length} bytes, at least 8 expected")]
    Damaged {
        /// Which key.
        key: String,
        /// What was found.
        length: usize,
    },
}

/// Why a commit did not take place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A key has another revision than expected.
    #[error("'{key}' has changed meanwhile")]
    Conflict {
        /// The first such key.
        key: String,
        /// The revision found; `None`: it is not there.
        actual: Option<Revision>,
    },
    /// The store failed; whether the commit took place shows when it is opened again.
    #[error(transparent)]
    Store(#[from] StoreError),
}
