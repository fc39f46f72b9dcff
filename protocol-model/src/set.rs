//! Sets of small numbers: replicas, blocks, values.

use std::fmt;

/// A set of numbers below 8.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Set(u8);

impl Set {
    /// Nothing.
    pub const EMPTY: Self = Self(0);

    /// The set of one.
    #[must_use]
    pub const fn of(item: usize) -> Self {
        Self(1 << item)
    }

    /// The numbers below `count`, which is below 8.
    #[must_use]
    pub const fn below(count: usize) -> Self {
        Self((1 << count) - 1)
    }

    /// Whether it is in it.
    #[must_use]
    pub const fn contains(self, item: usize) -> bool {
        self.0 & (1 << item) != 0
    }

    /// Adds it.
    pub const fn insert(&mut self, item: usize) {
        self.0 |= 1 << item;
    }

    /// Takes it out.
    pub const fn remove(&mut self, item: usize) {
        self.0 &= !(1 << item);
    }

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of it is in `other`.
    #[must_use]
    pub const fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Whether nothing is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The lowest.
    #[must_use]
    pub fn first(self) -> Option<usize> {
        self.iter().next()
    }

    /// Its numbers, rising.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..8).filter(move |item| self.contains(*item))
    }
}

impl FromIterator<usize> for Set {
    fn from_iter<I: IntoIterator<Item = usize>>(items: I) -> Self {
        items.into_iter().fold(Self::EMPTY, |set, item| set.union(Self::of(item)))
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
