//! A replica: what its device holds, what it has promised and what it has been told.

use crate::list::List;
use crate::state::BLOCKS_MAX;

/// Generation (above) and sequence (4 bits).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Stamp(u8);

impl Stamp {
    /// Before all writes.
    pub const ZERO: Self = Self(0);

    /// # Panics
    /// When a number does not fit: the bounds of the check are too large for the state.
    #[must_use]
    pub fn new(generation: u8, sequence: u8) -> Self {
        assert!(generation < 16 && sequence < 16, "stamps have 4 and 4 bits");
        Self(generation << 4 | sequence)
    }
}

impl std::fmt::Debug for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 >> 4, self.0 & 15)
    }
}

/// What stands in a block: 0 at first, then the number of the client's write.
pub type Value = u8;

/// A block's contents with its stamp.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Version {
    /// When it was written.
    pub stamp: Stamp,
    /// By which write of the client.
    pub value: Value,
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{:?}", self.value, self.stamp)
    }
}

/// The versions of a block that a loss of power may leave; see [`Replica::versions`].
pub type Versions = List<Version, 8>;

/// One replica.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct Replica {
    /// The generation promised.
    pub promised: u8,
    /// The highest that it has ever promised: for the check only.
    pub promised_peak: u8,
    /// Per block, by rising stamps: the first is on the medium, the last is the present one, and all but the
    /// first are in the device's cache.
    pub versions: [Versions; BLOCKS_MAX],
    /// As told by engines.
    pub committed: Stamp,
    /// As told before the last flush.
    pub committed_on_medium: Stamp,
    /// As told by engines.
    pub stable: Stamp,
    /// Set by a loss of power: only up to here is it sure to be whole.
    pub intact_limit: Option<Stamp>,
    /// Its host was restarted, and no engine has served since with it in sync: it may lack what it acknowledged.
    /// (A write that is lost whole leaves no trace, so `intact_limit` does not tell.)
    pub unsure: bool,
    /// It lost what was in its device's cache, and no engine has noticed: for the check only.
    pub lost: bool,
}

impl Replica {
    /// One whose blocks have never been written.
    #[must_use]
    pub fn empty(blocks: usize) -> Self {
        let mut replica = Self::default();
        for versions in &mut replica.versions[..blocks] {
            versions.push(Version::default());
        }
        replica
    }

    /// What a read finds.
    #[must_use]
    pub fn block(&self, block: usize) -> Version {
        self.versions[block].items().last().copied().unwrap_or_default()
    }

    /// The highest stamp that it holds.
    #[must_use]
    pub fn last(&self) -> Stamp {
        (0..BLOCKS_MAX).map(|block| self.block(block).stamp).max().unwrap_or_default()
    }

    /// As it answers an opening: it holds everything up to here.
    #[must_use]
    pub fn intact(&self) -> Stamp {
        self.intact_limit.map_or(self.last(), |limit| limit.min(self.last()))
    }

    /// A version arrives: the newest stands.
    pub fn place(&mut self, block: usize, version: Version) {
        if version.stamp > self.block(block).stamp {
            self.versions[block].push(version);
        }
    }

    /// The engine's word.
    pub fn told(&mut self, committed: Stamp, stable: Stamp) {
        self.committed = self.committed.max(committed);
        self.stable = self.stable.max(stable);
        if self.intact_limit.is_some_and(|limit| self.stable > limit) {
            self.intact_limit = None;
        }
    }

    /// What the device's cache holds goes to the medium.
    pub fn flush(&mut self) {
        for versions in &mut self.versions {
            if let Some(last) = versions.items().last().copied() {
                *versions = Versions::default();
                versions.push(last);
            }
        }
        self.committed_on_medium = self.committed;
    }

    /// How many versions each block may be left with.
    #[must_use]
    pub fn outcomes(&self) -> [u8; BLOCKS_MAX] {
        self.versions.map(|versions| u8::try_from(versions.items().len()).unwrap_or(u8::MAX).max(1))
    }

    /// Each unflushed write survives or not; `left` says which version of each block does.
    pub fn lose_power(&mut self, left: [u8; BLOCKS_MAX]) {
        self.lost |= self.versions.iter().any(|versions| versions.items().len() > 1);
        for (versions, left) in self.versions.iter_mut().zip(left) {
            if let Some(version) = versions.items().get(usize::from(left)).copied() {
                *versions = Versions::default();
                versions.push(version);
            }
        }
        self.committed = self.committed_on_medium;
        self.unsure = true;
        if self.committed < self.last() {
            let limit = self.committed;
            self.intact_limit = Some(self.intact_limit.map_or(limit, |before| before.min(limit)));
        }
    }
}
