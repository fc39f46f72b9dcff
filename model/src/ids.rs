//! Newtypes for everything that is identified or counted.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Makes an identifier from 16 bytes; the caller supplies the randomness.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// Makes a random (version 4) identifier from 16 random bytes.
            #[must_use]
            pub fn from_random_bytes(bytes: [u8; 16]) -> Self {
                Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
            }

            /// The 16 bytes, as they stand on disk and wire.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id!(
    /// Names a volume for ever, across renames.
    VolumeId
);
uuid_id!(
    /// Names a snapshot of a volume for ever.
    SnapshotId
);
uuid_id!(
    /// Names a snapshot that is taken of several volumes at once.
    GroupId
);
uuid_id!(
    /// Names a pool: one disk's space, owned by one replica server.
    PoolId
);
uuid_id!(
    /// Names a host's boot, as Linux does in `/proc/sys/kernel/random/boot_id`. A pool whose boot
    /// id has changed may have lost what its device's volatile cache held.
    BootId
);
uuid_id!(
    /// Names a data key; made from it, so that a wrong key is told from the right one, and of no use to
    /// learn the key.
    KeyId
);

/// Names a host in the cluster.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub String);

/// Names a member of volumes: the replica server that keeps a copy, by its pool.
pub type ReplicaId = PoolId;

/// Counts the openings of a volume for writing; 24 bits, since it is the upper part of a
/// [`Stamp`](crate::Stamp). Fences older engines.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(u32);

impl Generation {
    /// No engine has opened the volume yet.
    pub const ZERO: Self = Self(0);
    /// The highest generation that fits a stamp.
    pub const MAX: Self = Self((1 << 24) - 1);

    /// Makes a generation; `None` above [`Generation::MAX`].
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        if value <= Self::MAX.0 { Some(Self(value)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The generation of the next opening; `None` once all 2^24 are used up.
    #[must_use]
    pub const fn next(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the membership changes within a volume record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
