//! The configuration authority: where volume records live, outside the replicas.

use crate::{VolumeId, VolumeRecord};
use serde::{Deserialize, Serialize};

/// Names one version of a record; every successful swap makes a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// Reads and swaps volume records. Calls block; an engine makes them on a thread of their own.
/// PacificA (MSR-TR-2008-25) calls this the configuration manager.
pub trait Authority: Send + Sync {
    /// The record and its revision, linearizable with every swap.
    ///
    /// # Errors
    /// [`AuthorityError::NotFound`] or [`AuthorityError::Unreachable`].
    fn read(&self, volume: VolumeId) -> Result<(VolumeRecord, Revision), AuthorityError>;

    /// Replaces the record if its revision is still `expected`, and answers the new revision.
    ///
    /// # Errors
    /// [`AuthorityError::Conflict`] when it is not; [`AuthorityError::Unreachable`] leaves it
    /// unknown whether the swap took place: read again.
    fn swap(&self, expected: Revision, record: &VolumeRecord) -> Result<Revision, AuthorityError>;
}

/// Why a record could not be read or swapped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// No such volume.
    #[error("there is no record of volume {0}")]
    NotFound(VolumeId),
    /// Someone else swapped first.
    #[error("the record of volume {volume} has changed (now at revision {})", actual.0)]
    Conflict {
        /// Whose record.
        volume: VolumeId,
        /// The revision found.
        actual: Revision,
    },
    /// The record store does not answer.
    #[error("the manager cannot be reached: {0}")]
    Unreachable(String),
}
