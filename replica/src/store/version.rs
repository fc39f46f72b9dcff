//! A version of a block in the memtable, and what it is worth against older tables.
//!
//! Between two versions of a block the one with the higher stamp stands. A live write is known to be
//! newer than whatever the tables below hold, so a lookup that finds one looks no further. A
//! placed version (one that another member held, or a live one that comes behind such) is not: it
//! must be compared with the frozen memtable and the map, by every lookup and by the merge.

use trivet_model::{BlockCrc, Stamp};

use super::entry::Entry;

/// How a version came here, and thereby what it stands against.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// Written by the engine in the order of stamps: stands against everything below.
    Live,
    /// Copied from another member: stands against older stamps.
    Placed,
    /// Copied to repair: stands against the same stamp, too, whose data is bad.
    Repaired,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Version {
    pub(crate) stamp: Stamp,
    pub(super) physical: u64,
    pub(super) crc: BlockCrc,
    pub(crate) origin: Origin,
    /// A tombstone that must reach the map even where the map has nothing: some member may hold an
    /// older version of the block, and learns of the discard only from here.
    pub(crate) leaves_trace: bool,
}

const _: () = assert!(size_of::<Version>() == 24, "as an entry: the memtable's budget counts on it");

impl Version {
    pub(crate) fn new(entry: Entry, origin: Origin) -> Self {
        let Entry { stamp, physical, crc } = entry;
        Self { stamp, physical, crc, origin, leaves_trace: false }
    }

    /// A discard that another member holds.
    pub(crate) fn placed_tombstone(stamp: Stamp) -> Self {
        Self { leaves_trace: true, ..Self::new(Entry::tombstone(stamp), Origin::Placed) }
    }

    pub(crate) fn entry(&self) -> Entry {
        Entry { stamp: self.stamp, physical: self.physical, crc: self.crc }
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.entry().is_tombstone()
    }

    /// Whether it stands where a table below holds `below`.
    pub(crate) fn stands_against(&self, below: &Entry) -> bool {
        match self.origin {
            Origin::Live => true,
            Origin::Placed => self.stamp > below.stamp,
            Origin::Repaired => self.stamp > below.stamp || self.is_same_data(below),
        }
    }

    /// What a lookup sees of the two.
    pub(crate) fn over(&self, below: Option<Entry>) -> Entry {
        below.filter(|below| !self.stands_against(below)).unwrap_or_else(|| self.entry())
    }

    /// Whether it takes the place of `present` in the same table.
    pub(super) fn replaces(&self, present: &Self) -> bool {
        match self.origin {
            // An equal stamp is the same write sent again.
            Origin::Live => self.stamp >= present.stamp,
            Origin::Placed | Origin::Repaired => self.stands_against(&present.entry()),
        }
    }

    /// The newer of two versions in one table: it inherits what the older stood against, and a
    /// tombstone over data, or over a tombstone that leaves a trace, leaves one.
    pub(super) fn in_place_of(self, old: &Self) -> Self {
        let had_data = old.leaves_trace || !old.is_tombstone();
        let leaves_trace = self.is_tombstone() && (self.leaves_trace || had_data);
        let origin = if old.origin == Origin::Live { Origin::Live } else { self.origin };
        Self { origin, leaves_trace, ..self }
    }

    fn is_same_data(&self, other: &Entry) -> bool {
        self.stamp == other.stamp && !self.is_tombstone() && !other.is_tombstone()
    }
}
