//! Members by number, and sets of them: one word each.

use std::fmt;

/// Names a member within one opening of a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberIndex(pub usize);

/// Most members that a set can name.
pub(super) const MEMBERS_MAX: usize = 32;

/// Some of a volume's members.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MemberSet(u32);

impl MemberSet {
    /// Nobody.
    pub const EMPTY: Self = Self(0);

    /// Everyone there could be.
    pub const ALL: Self = Self(u32::MAX);

    /// The set of one.
    #[must_use]
    pub const fn of(member: MemberIndex) -> Self {
        assert!(member.0 < MEMBERS_MAX, "a set names at most 32 members");
        Self(1 << member.0)
    }

    /// Whether nobody is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the member is in it.
    #[must_use]
    pub const fn contains(self, member: MemberIndex) -> bool {
        self.0 & Self::of(member).0 != 0
    }

    /// Those who are in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those who are in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those who are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) fn insert(&mut self, member: MemberIndex) {
        *self = self.union(Self::of(member));
    }

    /// Removes a member and answers whether it was there.
    pub(super) fn remove(&mut self, member: MemberIndex) -> bool {
        let there = self.contains(member);
        *self = self.without(Self::of(member));
        there
    }
}

impl IntoIterator for MemberSet {
    type Item = MemberIndex;
    type IntoIter = Members;

    fn into_iter(self) -> Members {
        Members(self.0)
    }
}

/// The members of a [`MemberSet`], in rising order.
#[derive(Clone, Debug)]
pub struct Members(u32);

impl Iterator for Members {
    type Item = MemberIndex;

    fn next(&mut self) -> Option<MemberIndex> {
        if self.0 == 0 {
            return None;
        }
        let index = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(MemberIndex(index))
    }
}

impl fmt::Debug for MemberSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.into_iter().map(|member| member.0)).finish()
    }
}
