//! What goes into and comes out of the store.

use bytes::Bytes;
use trivet_disk::{DiskOp, DiskToken};
use trivet_model::{BlockCrc, BlockRange, BlockTag, Epoch, Generation, SnapshotId, Stamp, VolumeId};

use super::changed::ChangedScan;
use super::checkpoint::CheckpointJob;
use super::group_load::GroupLoad;
use super::lineage::Parent;
use super::snapshots::Snapshot;

/// Names a request in flight; chosen by the caller, unique among those in flight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// How far the whole volume is, as its engine said last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VolumeProgress {
    /// Every in-sync member holds all writes up to it.
    pub committed: Stamp,
    /// Every in-sync member has them on its medium; tails reach down to it.
    pub stable: Stamp,
}

/// A request. Every one is answered by exactly one [`Action::Complete`].
#[derive(Debug)]
pub enum Request {
    /// Write whole blocks; `stamp` is the first block's.
    Write {
        /// Which volume.
        volume: VolumeId,
        /// First block.
        start: u64,
        /// The first block's stamp.
        stamp: Stamp,
        /// One checksum a block, already verified against the data by the caller.
        crcs: Vec<BlockCrc>,
        /// One tag a block of an encrypted volume, else none.
        tags: Vec<BlockTag>,
        /// Whole blocks each, block-aligned in memory (`BlockArena`).
        segments: Vec<Bytes>,
        /// Complete only when stable.
        stable: bool,
    },
    /// Leave tombstones and free the space.
    Discard {
        /// Which volume.
        volume: VolumeId,
        /// The blocks.
        range: BlockRange,
        /// The first block's stamp.
        stamp: Stamp,
        /// Complete only when stable.
        stable: bool,
    },
    /// Make everything completed before stable (of all volumes).
    Flush {
        /// Which volume's stable stamp to answer.
        volume: VolumeId,
    },
    /// Read blocks; checksums are verified.
    Read {
        /// Which volume.
        volume: VolumeId,
        /// As this snapshot shows them; as they are now without one.
        at: Option<SnapshotId>,
        /// The blocks.
        range: BlockRange,
    },
    /// Which blocks hold data.
    Allocation {
        /// Which volume.
        volume: VolumeId,
        /// As this snapshot shows them; as they are now without one.
        at: Option<SnapshotId>,
        /// The blocks; the answer may cover fewer, at least one.
        range: BlockRange,
    },
    /// Writes and discards above `since`.
    Tail {
        /// Which volume.
        volume: VolumeId,
        /// Exclusive lower bound of the stamps.
        since: Stamp,
    },
    /// The newest versions above `since`, from block `start` on, in the order of blocks; the answer
    /// covers a bounded part of the volume.
    Changed {
        /// Which volume.
        volume: VolumeId,
        /// As this snapshot shows them; as they are now without one.
        at: Option<SnapshotId>,
        /// Exclusive lower bound of the stamps.
        since: Stamp,
        /// The block to begin at.
        start: u64,
    },
    /// Read blocks with their versions; checksums are verified.
    Fetch {
        /// Which volume.
        volume: VolumeId,
        /// As this snapshot shows them; as they are now without one.
        at: Option<SnapshotId>,
        /// The blocks.
        range: BlockRange,
    },
    /// Read blocks from the medium, verify their checksums, and answer the versions, and which of them
    /// are bad. Fails only when the map cannot be read.
    Verify {
        /// Which volume.
        volume: VolumeId,
        /// As this snapshot shows them; as they are now without one.
        at: Option<SnapshotId>,
        /// The blocks.
        range: BlockRange,
        /// Read nothing from the medium.
        stamps_only: bool,
    },
    /// Take versions that another member holds. Between two versions of a block the higher stamp
    /// stands. While places of older versions may come, [`Store::begin_pull`] holds.
    ///
    /// [`Store::begin_pull`]: super::Store::begin_pull
    Place {
        /// Which volume.
        volume: VolumeId,
        /// What to take.
        placement: Placement,
    },
    /// Make a promise durable. Completes when it is stable and all requests on the volume that
    /// were submitted before have completed. The caller has checked that it does not go back.
    Promise {
        /// Which volume.
        volume: VolumeId,
        /// The promised generation.
        generation: Generation,
        /// The epoch.
        epoch: Epoch,
        /// The opening's random number.
        session: u64,
    },
    /// Make an empty replica, or a clone: a replica that is read from its parent where nothing was written to
    /// it. Stable when complete. Done already if it is there, same size and parent. The stamps of what is
    /// written to a clone must be above the parent's cut.
    CreateVolume {
        /// Its identity.
        volume: VolumeId,
        /// Its size.
        blocks: u64,
        /// A clone's parent, with a replica in this pool.
        parent: Option<Parent>,
        /// Whether it is encrypted: each of its blocks comes with a tag then, for ever. So is a clone if its parent is.
        tagged: bool,
    },
    /// The data that a clone is read from its ancestors, as it or one of its snapshots shows it: runs of
    /// blocks from block `start` on; the answer covers a bounded part of the volume.
    Inherited {
        /// Which volume.
        volume: VolumeId,
        /// The block to begin at.
        start: u64,
    },
    /// Read the blocks that a clone is read from its ancestors, with their versions.
    Inherit {
        /// Which volume.
        volume: VolumeId,
        /// The blocks.
        range: BlockRange,
    },
    /// Nothing of a clone is inherited any more: let its parent go. Stable when complete.
    Untie {
        /// Which volume.
        volume: VolumeId,
    },
    /// Delete a replica; its space is freed in the background. Stable when complete.
    DeleteVolume {
        /// Its identity.
        volume: VolumeId,
    },
    /// Grow a volume. Stable when complete.
    ResizeVolume {
        /// Its identity.
        volume: VolumeId,
        /// New size.
        blocks: u64,
    },
    /// Begin anew with an empty replica of the same size and promise; the space of what it had, snapshots
    /// included, is freed in the background. Stable when complete. What was submitted before is carried
    /// out before, and gone; what comes before the answer may be gone too.
    ResetVolume {
        /// Which volume.
        volume: VolumeId,
    },
    /// Keep what was written up to a stamp. Stable when complete, and done already if it is there. All
    /// requests on the volume submitted before have completed by then; whoever asks writes nothing above
    /// the cut until it is answered.
    CreateSnapshot {
        /// Which volume.
        volume: VolumeId,
        /// What to keep.
        snapshot: Snapshot,
    },
    /// Let a snapshot go; its space is freed in the background. Stable when complete, and done already if
    /// it is not there.
    DeleteSnapshot {
        /// Which volume.
        volume: VolumeId,
        /// Its identity.
        id: SnapshotId,
    },
}

impl Request {
    /// Whether it changes nothing, and so is served by a pool that has stopped.
    pub(super) const fn only_reads(&self) -> bool {
        matches!(
            self,
            Self::Read { .. }
                | Self::Allocation { .. }
                | Self::Tail { .. }
                | Self::Changed { .. }
                | Self::Inherited { .. }
                | Self::Inherit { .. }
                | Self::Fetch { .. }
                | Self::Verify { .. }
        )
    }
}

/// Versions to place: at most `IO_BLOCKS_MAX` blocks of data, [`PLACE_TOMBSTONES_MAX`] discarded
/// ones and [`PLACE_RUNS_MAX`] runs.
///
/// [`PLACE_TOMBSTONES_MAX`]: super::PLACE_TOMBSTONES_MAX
/// [`PLACE_RUNS_MAX`]: super::PLACE_RUNS_MAX
#[derive(Debug, Default)]
pub struct Placement {
    /// Runs of blocks, none twice.
    pub versions: Vec<TailExtent>,
    /// One checksum a block that is not discarded, already verified against the data.
    pub crcs: Vec<BlockCrc>,
    /// Their tags, if the volume is encrypted.
    pub tags: Vec<BlockTag>,
    /// Those blocks one after the other; whole blocks each, block-aligned in memory.
    pub segments: Vec<Bytes>,
    /// Whether data stands against the same stamp, too: what is here cannot be read.
    pub repair: bool,
}

/// A request's success.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Carried out.
    Done,
    /// `Flush`: every completed stamp up to here is stable.
    Flushed {
        /// The volume's highest stable stamp.
        stable: Stamp,
    },
    /// `Read`.
    Blocks(ReadBlocks),
    /// `Allocation`: consecutive extents from the range's start.
    Allocation(Vec<AllocationExtent>),
    /// `Tail`: in order of first block.
    Tail(Vec<TailExtent>),
    /// `Changed` and `Inherited`.
    Changed(ChangedPage),
    /// `Fetch` and `Inherit`.
    Fetched(FetchedBlocks),
    /// `Verify`.
    Verified(VerifiedBlocks),
}

/// Blocks read.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct ReadBlocks {
    /// For every block of the range, its checksum, or `None` for a hole.
    pub crcs: Vec<Option<BlockCrc>>,
    /// The present blocks' stamps, if the volume is encrypted.
    pub stamps: Vec<Stamp>,
    /// Their tags.
    pub tags: Vec<BlockTag>,
    /// The present blocks' contents, one after the other, in segments of whole blocks.
    pub segments: Vec<Bytes>,
}

/// What changed in a part of a volume.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct ChangedPage {
    /// In the order of blocks, none twice; at most [`CHANGED_RUNS_MAX`].
    ///
    /// [`CHANGED_RUNS_MAX`]: super::CHANGED_RUNS_MAX
    pub versions: Vec<TailExtent>,
    /// The block to go on from; `None` at the volume's end.
    pub next: Option<u64>,
}

/// Blocks with their versions.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct FetchedBlocks {
    /// Of the blocks that have one, in order.
    pub versions: Vec<TailExtent>,
    /// Checksums of those that are not discarded.
    pub crcs: Vec<BlockCrc>,
    /// Their tags, if the volume is encrypted.
    pub tags: Vec<BlockTag>,
    /// Their contents, one after the other, in segments of whole blocks.
    pub segments: Vec<Bytes>,
}

/// Blocks held against their checksums.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct VerifiedBlocks {
    /// Of the blocks that have one, in order.
    pub versions: Vec<TailExtent>,
    /// Checksums of those that are not discarded, as they were stored.
    pub crcs: Vec<BlockCrc>,
    /// Those whose bytes could not be read or do not match, in order.
    pub failed: Vec<BlockRange>,
}

/// A run of blocks alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocationExtent {
    /// How many blocks.
    pub count: u32,
    /// Whether they hold data.
    pub allocated: bool,
}

/// A run of versions: of the tail, or of what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailExtent {
    /// The blocks.
    pub range: BlockRange,
    /// The first block's stamp; consecutive from there.
    pub stamp: Stamp,
    /// Whether they are tombstones.
    pub discard: bool,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No replica of this volume is in the pool.
    #[error("the pool has no replica of volume {0}")]
    NoSuchVolume(VolumeId),
    /// Beyond the volume, empty, or too long.
    #[error("{range} do not lie within the volume's {blocks} blocks")]
    OutOfRange {
        /// What was asked for.
        range: BlockRange,
        /// The volume's size.
        blocks: u64,
    },
    /// The stored bytes have changed on the medium.
    #[error(
        "block {block}: checksum {found:#010x} where {expected:#010x} was stored (pool block {physical})"
    )]
    Checksum {
        /// The volume's block.
        block: u64,
        /// The pool's block.
        physical: u64,
        /// As recorded.
        expected: u32,
        /// As read.
        found: u32,
    },
    /// The device failed this read.
    #[error("{0}")]
    Medium(String),
    /// No space, after what can be freed was freed.
    #[error("the pool is full: {used} of {total} blocks hold data")]
    NoSpace {
        /// Blocks in use.
        used: u64,
        /// The pool's capacity in blocks.
        total: u64,
    },
    /// The volume is there with another size, or would shrink, or the size is not allowed.
    #[error("size of {asked} blocks refused: {reason}")]
    BadSize {
        /// The size asked for.
        asked: u64,
        /// Why not.
        reason: &'static str,
    },
    /// The volume has no such snapshot.
    #[error("the volume has no snapshot {0}")]
    NoSuchSnapshot(SnapshotId),
    /// A snapshot cannot be taken.
    #[error("snapshot {id} refused: {reason}")]
    BadSnapshot {
        /// Which.
        id: SnapshotId,
        /// Why.
        reason: &'static str,
    },
    /// A clone cannot be made.
    #[error("clone of volume {volume} refused: {reason}")]
    BadParent {
        /// The parent.
        volume: VolumeId,
        /// Why.
        reason: &'static str,
    },
    /// Blocks of an encrypted volume without their tags, or tags with blocks of another.
    #[error("{blocks} blocks with {tags} tags: every block of an encrypted volume has one, and no other has")]
    Tags {
        /// Which volume.
        volume: VolumeId,
        /// How many came.
        blocks: usize,
        /// With so many tags.
        tags: usize,
    },
    /// The engine lets too much pile up above the volume's stable stamp.
    #[error("{extents} writes are above the volume's stable stamp; flush first")]
    TailTooLong {
        /// How many.
        extents: usize,
    },
    /// The peer that a repair or pull copies from cannot be reached, or does not answer rightly.
    #[error("{0}")]
    Source(String),
    /// A write or flush failed earlier; the pool has stopped until it is reopened.
    #[error("the pool has stopped: {0}")]
    PoolFailed(String),
}

/// What the shell must do next, in order.
#[derive(Debug)]
pub enum Action {
    /// Start an operation on the pool's device and bring back its completion.
    Disk(DiskToken, DiskOp),
    /// Look these groups up in the map's checkpoint, off this thread; answer `Store::groups_loaded`.
    LoadGroups(GroupLoad),
    /// Look up what changed, off this thread; answer `Store::changed_scanned`.
    ScanChanged(Box<ChangedScan>),
    /// Merge and write a checkpoint, off this thread; answer `Store::checkpoint_finished`.
    Checkpoint(Box<CheckpointJob>),
    /// A request is answered.
    Complete(RequestId, Result<Reply, RequestError>),
}

/// The pool's figures.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PoolStatistics {
    /// Space for data, in blocks.
    pub blocks_total: u64,
    /// Blocks that hold data or are on their way to be free.
    pub blocks_used: u64,
    /// Of them, those of deleted volumes that clones read from, as of the last checkpoint.
    pub blocks_kept: u64,
    /// Reads whose checksum did not match, since opening.
    pub checksum_errors: u64,
    /// Why the pool has stopped, if it has, or why it gets nowhere.
    pub failed: Option<String>,
}

/// A volume's figures and promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStatistics {
    /// Its identity.
    pub volume: VolumeId,
    /// Size in blocks.
    pub blocks: u64,
    /// Whether it is encrypted.
    pub tagged: bool,
    /// Blocks that held data at the last checkpoint: about a second ago when it is quiet.
    pub blocks_used: u64,
    /// Promised generation.
    pub generation: Generation,
    /// Promised epoch.
    pub epoch: Epoch,
    /// The promised opening's random number.
    pub session: u64,
    /// Highest stamp held.
    pub last: Stamp,
    /// Everything acknowledged up to here is there: [`Stamp::MAX`] unless the host lost power.
    pub intact: Stamp,
    /// Progress as last told.
    pub progress: VolumeProgress,
    /// Whether it is read from a parent where it has nothing of its own.
    pub tied: bool,
}
