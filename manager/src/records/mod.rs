//! The records the manager keeps: one file each, with its key, its layout and its round trip.
//!
//! A record's key is `kind/id`; its value is JSON with a `version` beside its fields. A version
//! that is not the one this program writes is refused, never guessed at.

mod attachment;
mod cluster;
mod deletion;
mod encryption;
mod export;
mod node;
mod replacement;
mod replica;
mod scrub;
mod volume;

pub use attachment::AttachmentRecord;
pub use cluster::{ClusterRecord, REPLACE_AFTER_DEFAULT};
pub use deletion::DeletionRecord;
pub use encryption::EncryptionRecord;
pub use export::ExportRecord;
pub use node::NodeRecord;
pub use replacement::{ReplacementReason, ReplacementRecord};
pub use replica::ReplicaRecord;
pub use scrub::{FinishedScrub, RunningScrub, ScrubRecord};
pub use volume::VolumeNameRecord;

use crate::store::{Change, CommitError, RecordStore, StoreError, Stored};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use trivet_model::Revision;

/// A kind of record.
pub trait Record: Serialize + DeserializeOwned {
    /// The first part of its keys.
    const KIND: &'static str;
    /// Of its layout; raised when the layout changes.
    const VERSION: u32;

    /// The second part of its key.
    fn id(&self) -> String;
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The value is not the record's JSON.
    #[error("the record '{key}' cannot be understood: {cause}")]
    Malformed {
        /// Which record.
        key: String,
        /// Where the JSON is wrong.
        cause: serde_json::Error,
    },
    /// The record was written by another version.
    #[error("the record '{key}' has version {found}; this program knows version {expected}")]
    Version {
        /// Which record.
        key: String,
        /// The version found.
        found: u32,
        /// The version this program writes.
        expected: u32,
    },
}

#[derive(Serialize)]
struct EnvelopeRef<'a, R> {
    version: u32,
    #[serde(flatten)]
    record: &'a R,
}

#[derive(Deserialize)]
struct Envelope<R> {
    #[serde(flatten)]
    record: R,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// The key of the record of kind `R` with this id.
#[must_use]
pub fn key<R: Record>(id: &str) -> String {
    format!("{}/{id}", R::KIND)
}

/// A record's value.
#[must_use]
pub fn encode<R: Record>(record: &R) -> Vec<u8> {
    // Records are plain structs with string keys, which JSON can always express.
    match serde_json::to_vec(&EnvelopeRef { version: R::VERSION, record }) {
        Ok(bytes) => bytes,
        Err(error) => unreachable!("a record is always JSON: {error}"),
    }
}

/// A record from its value.
///
/// # Errors
/// [`RecordError::Malformed`] or [`RecordError::Version`].
pub fn decode<R: Record>(key: &str, value: &[u8]) -> Result<R, RecordError> {
    let malformed = |cause| RecordError::Malformed { key: key.to_owned(), cause };
    let found = serde_json::from_slice::<VersionOnly>(value).map_err(malformed)?.version;
    if found != R::VERSION {
        return Err(RecordError::Version { key: key.to_owned(), found, expected: R::VERSION });
    }
    serde_json::from_slice::<Envelope<R>>(value).map(|envelope| envelope.record).map_err(malformed)
}

/// Reads a record.
///
/// # Errors
/// [`RecordError`] when the store fails or the value is not a record of this kind and version.
pub fn read<R: Record>(store: &dyn RecordStore, id: &str) -> Result<Option<(R, Revision)>, RecordError> {
    let key = key::<R>(id);
    let Some(Stored { value, revision }) = store.get(&key)? else { return Ok(None) };
    Ok(Some((decode(&key, &value)?, revision)))
}

/// Reads every record of a kind, in order of their ids.
///
/// # Errors
/// [`RecordError`] when the store fails or one of the values is damaged.
pub fn list<R: Record>(store: &dyn RecordStore) -> Result<Vec<(R, Revision)>, RecordError> {
    let stored = store.list(&key::<R>(""))?;
    stored.into_iter().map(|(key, stored)| Ok((decode(&key, &stored.value)?, stored.revision))).collect()
}

/// The change that writes `record` over revision `expected`, or anew.
#[must_use]
pub fn put<R: Record>(record: &R, expected: Option<Revision>) -> Change {
    Change { key: key::<R>(&record.id()), expected, value: Some(encode(record)) }
}

/// The change that removes the record at revision `expected`.
#[must_use]
pub fn remove<R: Record>(record: &R, expected: Revision) -> Change {
    Change { key: key::<R>(&record.id()), expected: Some(expected), value: None }
}

/// Writes one record.
///
/// # Errors
/// [`CommitError`].
pub fn write<R: Record>(
    store: &dyn RecordStore,
    record: &R,
    expected: Option<Revision>,
) -> Result<Revision, CommitError> {
    store.commit(&[put(record, expected)])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fmt::Debug;

    /// A record comes back, and its bytes are these: what stands in people's stores.
    pub(crate) fn assert_layout<R: Record + PartialEq + Debug>(record: &R, json: &str) {
        let bytes = encode(record);
        assert_eq!(std::str::from_utf8(&bytes).unwrap(), json);
        assert_eq!(&decode::<R>("k", &bytes).unwrap(), record);
    }

    #[test]
    fn another_version_is_refused() {
        let record = NodeRecord { id: trivet_model::NodeId("here".into()) };
        let text = String::from_utf8(encode(&record)).unwrap();
        let newer = text.replace("\"version\":1", "\"version\":2");
        let error = decode::<NodeRecord>("node/here", newer.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "the record 'node/here' has version 2; this program knows version 1");
        assert!(matches!(decode::<NodeRecord>("k", b"{}"), Err(RecordError::Malformed { .. })));
        assert!(matches!(decode::<NodeRecord>("k", b"{\"version\":1}"), Err(RecordError::Malformed { .. })));
    }
}
