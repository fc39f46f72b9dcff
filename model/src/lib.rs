//! Trivet's vocabulary as types: identifiers, geometry, stamps, checksums, block buffers and the
//! volume record. This crate does no I/O and reads no clock; every other crate builds on it.
#![forbid(unsafe_code)]

pub mod authority;
pub mod buffer;
pub mod checksum;
pub mod geometry;
mod hex;
pub mod ids;
mod lineage;
mod older_key;
pub mod record;
mod scrub;
pub mod settings;
pub mod size;
pub mod stamp;
mod tag;

pub use authority::{Authority, AuthorityError, Revision};
pub use buffer::BlockArena;
pub use checksum::{BlockCrc, ZERO_BLOCK_CRC, block_crc};
pub use geometry::{BLOCK_SIZE, BLOCK_SIZE_U64, BlockRange, SECTOR_SIZE, VOLUME_BLOCKS_MAX};
pub use hex::Hex;
pub use ids::{BootId, Epoch, Generation, GroupId, KeyId, NodeId, PoolId, ReplicaId, SnapshotId, VolumeId};
pub use lineage::{Ancestor, LINEAGE_MAX, Sharing};
pub use older_key::{OLDER_KEYS_MAX, OlderKey, SEALED_KEY_BYTES};
pub use record::{
    GroupStep, InstantImport, Member, MemberState, Reverting, SNAPSHOTS_MAX, SnapshotOrder, SnapshotRecord,
    VolumeRecord,
};
pub use scrub::{ScrubCounts, ScrubOrder};
pub use settings::{Durability, RateLimit, VolumeSettings};
pub use stamp::Stamp;
pub use tag::{BlockTag, TAG_BYTES};
