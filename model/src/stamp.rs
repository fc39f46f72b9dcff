//! The stamp: one number that orders every block version ever written to a volume.

use crate::Generation;
use serde::{Deserialize, Serialize};
use std::fmt;

/// 64 bits: generation (24) ‖ sequence (40). A write of `n` blocks takes `n` consecutive stamps.
/// Stamps serve write order, "changed since", snapshot ownership, delta rebuild, incremental
/// backup and the encryption nonce.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamp(u64);

const SEQUENCE_BITS: u32 = 40;
/// The highest sequence number within a generation.
pub const SEQUENCE_MAX: u64 = (1 << SEQUENCE_BITS) - 1;

impl Stamp {
    /// Above every stamp of a write.
    pub const MAX: Self = Self(u64::MAX);

    /// Before every write: the stamp of a block never written.
    pub const ZERO: Self = Self(0);

    /// Makes a stamp; `None` when `sequence` exceeds 40 bits.
    #[must_use]
    pub const fn new(generation: Generation, sequence: u64) -> Option<Self> {
        if sequence > SEQUENCE_MAX {
            return None;
        }
        Some(Self(((generation.get() as u64) << SEQUENCE_BITS) | sequence))
    }

    /// From its representation on disk and wire.
    #[must_use]
    pub const fn from_u64(raw: u64) -> Self {
        Self(raw)
    }

    /// Its representation on disk and wire.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The generation that wrote it.
    #[must_use]
    pub const fn generation(self) -> Generation {
        match Generation::new((self.0 >> SEQUENCE_BITS) as u32) {
            Some(generation) => generation,
            None => unreachable!(),
        }
    }

    /// The sequence number within the generation.
    #[must_use]
    pub const fn sequence(self) -> u64 {
        self.0 & SEQUENCE_MAX
    }

    /// The lowest stamp above this one, whether or not a write could have it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The stamp of the `n`th block of a write that begins at `self`.
    ///
    /// # Panics
    /// When the sequence would exceed 40 bits: the engine opens a new generation long before.
    #[must_use]
    pub const fn plus(self, n: u64) -> Self {
        assert!(self.sequence() + n <= SEQUENCE_MAX, "sequence of a stamp exceeds 40 bits");
        Self(self.0 + n)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation(), self.sequence())
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stamp({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_dominates_sequence() {
        let old = Stamp::new(Generation::new(1).unwrap(), SEQUENCE_MAX).unwrap();
        let new = Stamp::new(Generation::new(2).unwrap(), 0).unwrap();
        assert!(old < new);
        assert_eq!(old.generation().get(), 1);
        assert_eq!(old.sequence(), SEQUENCE_MAX);
        assert_eq!(format!("{new}"), "2.0");
    }

    #[test]
    fn sequence_is_capped() {
        assert!(Stamp::new(Generation::ZERO, SEQUENCE_MAX + 1).is_none());
        assert!(Generation::new(1 << 24).is_none());
        assert!(Generation::MAX.next().is_none());
    }
}
