//! What engine and replica say to each other, as types.

use crate::blocks::BlockData;
use crate::error_code::ErrorCode;
use bytes::Bytes;
use trivet_model::{BlockCrc, BlockRange, BootId, Epoch, Generation, PoolId, SnapshotId, Stamp, VolumeId};

/// A message with the header fields that every message carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Chosen by the requester, not zero, unique among its requests in flight; a reply repeats it.
    pub request: u64,
    /// The generation of the session. A replica answers [`ErrorCode::Fenced`] to lower ones than
    /// it has promised. Zero where no volume is open.
    pub generation: Generation,
    /// The volume record's epoch as the sender knows it.
    pub epoch: Epoch,
    /// The message.
    pub message: Message,
}

/// Every message of the protocol. A connection begins with `Hello`; volume I/O is allowed after
/// `Open` and until `Close`, one volume a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// First on a connection, from the client.
    Hello(Hello),
    /// Its answer.
    HelloReply(HelloReply),

    /// Promise the header's generation and epoch for this volume and open it for I/O.
    /// `writable: false` only looks: it promises nothing and may read.
    Open {
        /// Which volume.
        volume: VolumeId,
        /// Whether writes are meant; needs a generation above all promised before, or the one
        /// promised to this same opening (a reconnect), told apart by `session`.
        writable: bool,
        /// A random number chosen at each opening, the same on its reconnects.
        session: u64,
    },
    /// The promise is durable, and nothing of an older session will land any more.
    OpenReply(OpenReply),

    /// Write whole blocks. The blocks take consecutive stamps from `stamp`.
    Write {
        /// Block the data begins at.
        start: u64,
        /// The first block's stamp.
        stamp: Stamp,
        /// The volume's progress, piggybacked.
        progress: Progress,
        /// Answer only when it is stable.
        force_unit_access: bool,
        /// The data and its checksums.
        data: BlockData,
    },
    /// Make blocks read as zeros and free their space. One stamp a block, as for a write.
    Discard {
        /// The blocks; up to [`DISCARD_BLOCKS_MAX`].
        range: BlockRange,
        /// The first block's stamp.
        stamp: Stamp,
        /// The volume's progress, piggybacked.
        progress: Progress,
        /// Answer only when it is stable.
        force_unit_access: bool,
    },
    /// Make everything that this replica has acknowledged stable.
    Flush {
        /// The volume's progress, piggybacked.
        progress: Progress,
    },
    /// Tell progress when nothing else is said; also the keep-alive.
    Progress(Progress),
    /// `Write`, `Discard`, `Progress`, `Close`, `Repair`, `CreateSnapshot`, `DeleteSnapshot`, `Reset`, `View`,
    /// `CreateVolume`, `DeleteVolume` and `ResizeVolume` were carried out; `Pull` has begun.
    Done,
    /// `Flush` was carried out.
    FlushReply(FlushReply),

    /// Read whole blocks.
    Read {
        /// The blocks; up to `IO_BLOCKS_MAX`.
        range: BlockRange,
    },
    /// The blocks' contents; holes have no payload.
    ReadReply {
        /// Which of the blocks hold data: bit `i % 8` of byte `i / 8`, for block `i` of the range.
        present: Bytes,
        /// Of an encrypted volume, the present blocks' stamps, which they are opened by; else none.
        stamps: Vec<Stamp>,
        /// The present blocks, one after the other.
        data: BlockData,
    },
    /// Which ranges hold data, beginning at `range.start`.
    Allocation {
        /// The blocks asked about; the answer may cover less, but at least one block.
        range: BlockRange,
    },
    /// Consecutive extents, neighbours differing, at most [`EXTENTS_MAX`].
    AllocationReply {
        /// From the start of the range asked for.
        extents: Vec<Extent>,
    },
    /// Every write and discard whose stamp is above `since` and that is not overwritten since:
    /// what members compare when a volume opens.
    Tail {
        /// Exclusive lower bound.
        since: Stamp,
        /// Continue after this many entries: answers hold at most [`TAIL_ENTRIES_MAX`].
        skip: u32,
    },
    /// Entries in order of their first block.
    TailReply {
        /// At most [`TAIL_ENTRIES_MAX`].
        entries: Vec<TailEntry>,
        /// Whether entries remain.
        more: bool,
    },
    /// The newest version of every block from `start` on whose stamp is above `since`: how a member
    /// that comes back finds what it lacks. Works on any open volume.
    Changed {
        /// Exclusive lower bound.
        since: Stamp,
        /// The block to begin at.
        start: u64,
    },
    /// Entries in the order of blocks, none twice; runs with consecutive stamps are one entry.
    ChangedReply {
        /// At most [`TAIL_ENTRIES_MAX`]. They cover the blocks from `start` up to `next`.
        entries: Vec<TailEntry>,
        /// The block to go on from; `None` at the volume's end. An answer looks at a bounded part
        /// of the volume, so it may be empty and not the last.
        next: Option<u64>,
    },
    /// Read blocks together with their stamps and tombstones, to place them on another member.
    Fetch {
        /// The blocks; up to `IO_BLOCKS_MAX`.
        range: BlockRange,
    },
    /// The blocks of the range that have ever been written or discarded.
    FetchReply {
        /// In the order of blocks, none twice.
        versions: Vec<TailEntry>,
        /// The contents of those that are not discarded, in the same order.
        data: BlockData,
    },
    /// Read blocks from the medium and hold them against their checksums: a scrub's question.
    Verify {
        /// The blocks; up to `IO_BLOCKS_MAX`.
        range: BlockRange,
        /// Read nothing from the medium: what the map says is enough, and no block is called bad.
        stamps_only: bool,
    },
    /// What the blocks are by the map, and which of them the medium does not give back as they were
    /// stored. A bad block does not keep the others from being answered for.
    VerifyReply {
        /// As in `FetchReply`.
        versions: Vec<TailEntry>,
        /// The checksums of those that are not discarded, in the same order, as they were stored.
        crcs: Vec<BlockCrc>,
        /// Blocks whose bytes could not be read, or do not match their checksums: in the order of
        /// blocks, none twice. A device's error is told of all the blocks that were read in one go,
        /// so that only a question for a single block tells for sure.
        failed: Vec<BlockRange>,
    },
    /// Bring this replica up to a source in the background, for as long as this session lasts. The
    /// answer, `Done`, only says that it has begun. Another `Pull` takes the place of this one.
    Pull {
        /// The pool to pull from.
        source: PoolId,
        /// The boot on which its host is known to hold everything: on a later one it may have lost what
        /// was not stable, and is no source.
        boot: BootId,
        /// Where its server listens, `host:port`; up to [`ADDRESS_BYTES_MAX`] bytes.
        address: String,
        /// Both sides hold the same up to here.
        since: Stamp,
        /// The session's writes reach this replica from this stamp on. Below it, what the source
        /// does not have was never acknowledged and is reported as diverged.
        floor: Stamp,
        /// As in `PullStatus`.
        stable: Stamp,
    },
    /// How far is the pull? Asked of the session that began it.
    PullStatus {
        /// Every in-sync member holds everything up to here for good: it need not be in the tail of a
        /// member that becomes one. (It says nothing of what this one holds.)
        stable: Stamp,
    },
    /// Answers `PullStatus` and `Flatten`.
    PullReport(PullReport),
    /// Fetch blocks from a source, and place them anew where this replica has the same version or
    /// an older one. Answered by `Done` when all of them are placed.
    Repair {
        /// The blocks; up to `IO_BLOCKS_MAX`.
        range: BlockRange,
        /// The pool to fetch from.
        source: PoolId,
        /// Where its server listens, as in `Pull`.
        address: String,
    },
    /// Keep what was written up to a stamp. All of the session's earlier requests are carried out before;
    /// whoever asks writes nothing above the cut until the answer.
    CreateSnapshot {
        /// Its identity; done already if it is there with the same cut.
        id: SnapshotId,
        /// A stamp that no write has.
        cut: Stamp,
    },
    /// Let a snapshot go; done already if it is not there.
    DeleteSnapshot {
        /// Its identity.
        id: SnapshotId,
    },
    /// Begin anew with an empty replica: what is here cannot be brought up to the others. What this session
    /// asked before is carried out before, and gone.
    Reset,
    /// From here on `Read`, `Allocation`, `Changed`, `Fetch` and `Verify` on this connection see the volume
    /// as a snapshot shows it.
    View {
        /// Which; `None` for the volume as it is.
        at: Option<SnapshotId>,
    },
    /// End the session in good order.
    Close {
        /// The volume's final progress.
        progress: Progress,
    },

    /// Make an empty replica of a volume, or one of a clone, which is read from its parent where nothing was
    /// written to it; done already if it is there with the same size and parent.
    CreateVolume {
        /// Its identity.
        volume: VolumeId,
        /// Its size.
        blocks: u64,
        /// A clone's: the volume, with a replica in this pool, and its snapshot.
        parent: Option<(VolumeId, SnapshotId)>,
        /// Whether it is encrypted: every block comes with its tag then, else none does.
        tagged: bool,
    },
    /// Delete a replica and free its space; done already if it is not there.
    DeleteVolume {
        /// Its identity.
        volume: VolumeId,
    },
    /// Grow a volume; done already if it has that size. A smaller size is refused.
    ResizeVolume {
        /// Its identity.
        volume: VolumeId,
        /// Its new size.
        blocks: u64,
    },
    /// Have the replica of a clone copy what it reads from its parent, in the background and at a bounded
    /// rate, and then let the parent go. Said again, it tells how far that is; what is done, stays. Answered
    /// by `PullReport`, at once `Finished` where nothing is read from a parent.
    Flatten {
        /// Which volume.
        volume: VolumeId,
    },
    /// Ask for the pool's state.
    PoolStatus,
    /// The answer.
    PoolReport(PoolReport),

    /// A request failed; or, with request 0, the reason why the sender closes the connection.
    Error {
        /// The kind.
        code: ErrorCode,
        /// For people; at most [`DETAIL_BYTES_MAX`] bytes of UTF-8.
        detail: String,
    },
}

/// How far the whole volume is, as its engine knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Every in-sync member holds all writes up to it.
    pub committed: Stamp,
    /// Every in-sync member has all writes up to it on its medium. Tails reach down to it.
    pub stable: Stamp,
}

/// Opens a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Lowest protocol version the client speaks.
    pub version_min: u16,
    /// Highest protocol version the client speaks.
    pub version_max: u16,
}

/// Answers [`Hello`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HelloReply {
    /// The version that both will use.
    pub version: u16,
    /// Which pool this is; a client checks it against the member it meant.
    pub pool: PoolId,
}

/// The one protocol version there is.
pub const PROTOCOL_VERSION: u16 = 2;

/// Answers `Open`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenReply {
    /// Size of the replica's volume.
    pub blocks: u64,
    /// The highest stamp it holds.
    pub last: Stamp,
    /// It has everything it ever acknowledged up to here: all of it ([`Stamp::MAX`]) unless its host
    /// lost power. Then what lies above may be missing, without a trace.
    pub intact: Stamp,
    /// The volume's progress as the replica knows it.
    pub progress: Progress,
    /// The host's boot.
    pub boot: BootId,
    /// Its snapshots, in the order of their cuts; at most [`SNAPSHOTS_MAX`].
    pub snapshots: Vec<SnapshotEntry>,
}

/// A snapshot that a replica keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotEntry {
    /// Its identity.
    pub id: SnapshotId,
    /// It shows what was written up to this stamp.
    pub cut: Stamp,
}

/// Answers `Flush`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlushReply {
    /// Every stamp up to here that the replica acknowledged is stable on it.
    pub stable: Stamp,
}

/// A run of blocks alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// How many blocks.
    pub count: u32,
    /// Whether they hold data.
    pub allocated: bool,
}

/// A run of blocks that the tail speaks of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TailEntry {
    /// The blocks.
    pub range: BlockRange,
    /// The first block's stamp; the others follow consecutively.
    pub stamp: Stamp,
    /// Whether they are tombstones.
    pub discard: bool,
}

/// How far a pull is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PullReport {
    /// Whether it goes on.
    pub state: PullState,
    /// The walk has reached this block: everything before it is placed.
    pub position: u64,
    /// Blocks placed, tombstones included.
    pub copied_blocks: u64,
    /// Blocks on which this replica holds versions that were never acknowledged: the engine is to
    /// rewrite them. Each is reported once; at most [`DIVERGED_MAX`] a report.
    pub diverged: Vec<BlockRange>,
    /// Why it failed, for people; at most [`DETAIL_BYTES_MAX`] bytes of UTF-8.
    pub detail: String,
}

/// Whether a pull goes on; the numbers are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PullState {
    /// It goes on, or ranges that diverged are still to be reported.
    Running = 1,
    /// Everything is placed, and every diverged range has been reported, in this report at last.
    Finished = 2,
    /// It has ended early; what was placed stays. Also the answer where no pull was begun.
    Failed = 3,
    /// As failed; and no other will do better before this replica has begun anew ([`Message::Reset`]).
    Hopeless = 4,
}

impl PullState {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The state with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Running,
            2 => Self::Finished,
            3 => Self::Failed,
            4 => Self::Hopeless,
            _ => return None,
        })
    }
}

/// A pool's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolReport {
    /// Which pool.
    pub pool: PoolId,
    /// Space for data, in blocks.
    pub blocks_total: u64,
    /// Blocks that hold data.
    pub blocks_used: u64,
    /// Of them, those of deleted volumes that clones read from.
    pub blocks_kept: u64,
    /// Reads whose checksum did not match, since the server started.
    pub checksum_errors: u64,
    /// Set when the pool has stopped after an I/O error: why.
    pub failed: String,
    /// Every volume with a replica here.
    pub volumes: Vec<VolumeReport>,
}

/// A volume's replica in a [`PoolReport`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeReport {
    /// Which volume.
    pub volume: VolumeId,
    /// Its size.
    pub blocks: u64,
    /// Blocks that hold data.
    pub blocks_used: u64,
    /// The promised generation.
    pub generation: Generation,
    /// The highest stamp it holds.
    pub last: Stamp,
    /// Whether it is read from a parent where it has nothing of its own.
    pub tied: bool,
}

/// Most extents in an `AllocationReply`.
pub const EXTENTS_MAX: usize = 4096;
/// Most entries in a `TailReply` or a `ChangedReply`.
pub const TAIL_ENTRIES_MAX: usize = 4096;
/// Most volumes in a `PoolReport`.
pub const VOLUMES_MAX: usize = 4096;
/// Most snapshots that a volume may have.
pub const SNAPSHOTS_MAX: usize = 4096;
/// Longest detail of an error, in bytes.
pub const DETAIL_BYTES_MAX: usize = 1024;
/// Most blocks in one `Discard` (4 GiB).
pub const DISCARD_BLOCKS_MAX: u32 = 1 << 20;
/// Most ranges in a `PullReport`.
pub const DIVERGED_MAX: usize = 1024;
/// Longest address of a source, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 512;

impl Message {
    /// The blocks that it carries.
    #[must_use]
    pub const fn data(&self) -> Option<&BlockData> {
        match self {
            Self::Write { data, .. } | Self::ReadReply { data, .. } | Self::FetchReply { data, .. } => {
                Some(data)
            }
            _ => None,
        }
    }

    /// The blocks that it carries.
    #[must_use]
    pub const fn data_mut(&mut self) -> Option<&mut BlockData> {
        match self {
            Self::Write { data, .. } | Self::ReadReply { data, .. } | Self::FetchReply { data, .. } => {
                Some(data)
            }
            _ => None,
        }
    }
}
