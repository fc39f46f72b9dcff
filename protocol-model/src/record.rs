//! The volume record and its store.

use crate::replica::Stamp;
use crate::set::Set;
use crate::state::REPLICAS_MAX;

/// A member's standing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub enum Member {
    /// There is no such replica in this volume.
    #[default]
    Absent,
    /// Holds every acknowledged write.
    InSync,
    /// Receives; holds everything up to the stamp.
    Syncing(Stamp),
    /// Holds everything up to the stamp.
    Stale(Stamp),
}

impl Member {
    /// Up to where a member that is not in sync is known to hold everything.
    #[must_use]
    pub const fn since(self) -> Option<Stamp> {
        match self {
            Self::Syncing(since) | Self::Stale(since) => Some(since),
            Self::InSync | Self::Absent => None,
        }
    }
}

/// The record. Its revision counts swaps; the epoch, which counts some of them, is left out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Record {
    /// Compared by a swap: the new record's is one above.
    pub revision: u8,
    /// Openings.
    pub generation: u8,
    /// The last engine closed in good order.
    pub closed: bool,
    /// An opening dropped a member that it could not fence, and no later swap says that it has waited.
    pub wait_owed: bool,
    /// The members.
    pub members: [Member; REPLICAS_MAX],
}

impl Record {
    /// Who is in sync.
    #[must_use]
    pub fn in_sync(&self) -> Set {
        (0..REPLICAS_MAX).filter(|&m| self.members[m] == Member::InSync).collect()
    }

    /// Who is not, but could be.
    #[must_use]
    pub fn out_of_sync(&self) -> Set {
        (0..REPLICAS_MAX).filter(|&m| self.members[m].since().is_some()).collect()
    }
}

/// A conversation with the record's store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Swap {
    /// What it puts in.
    pub new: Record,
    /// The answer did not come: it may be done, or not, or be done later.
    pub unknown: bool,
}
