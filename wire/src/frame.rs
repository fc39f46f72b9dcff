//! What engine and replica say to each other, as types.

use bytes::Bytes;
use trivet_model::checksum::block_crcs;
use trivet_model::{BLOCK_SIZE, BlockCrc, BlockRange, BootId, Epoch, Generation, PoolId, Stamp, VolumeId};

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
    /// `Write`, `Discard`, `Progress`, `Close`, `CreateVolume`, `DeleteVolume` and `ResizeVolume`
    /// were carried out.
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
    /// End the session in good order.
    Close {
        /// The volume's final progress.
        progress: Progress,
    },

    /// Make an empty replica of a volume; done already if it is there with the same size.
    CreateVolume {
        /// Its identity.
        volume: VolumeId,
        /// Its size.
        blocks: u64,
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
pub const PROTOCOL_VERSION: u16 = 1;

/// Answers `Open`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenReply {
    /// Size of the replica's volume.
    pub blocks: u64,
    /// The highest stamp it holds.
    pub last: Stamp,
    /// It has everything it ever acknowledged up to here. Below `last` only after the host lost
    /// power: what lies above may be missing.
    pub intact: Stamp,
    /// The volume's progress as the replica knows it.
    pub progress: Progress,
    /// The host's boot.
    pub boot: BootId,
}

/// Answers `Flush`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlushReply {
    /// Every stamp up to here that the replica acknowledged is stable on it.
    pub stable: Stamp,
}

/// Whole blocks and their checksums, made once in the engine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BlockData {
    /// One checksum a block.
    pub crcs: Vec<BlockCrc>,
    /// `crcs.len()` blocks. In segments, each of whole blocks, so that nobody needs to join them.
    pub segments: Vec<Bytes>,
}

impl BlockData {
    /// Takes blocks whose checksums are known already.
    ///
    /// # Panics
    /// When there is not exactly one checksum a block, or a segment is not of whole blocks.
    #[must_use]
    pub fn new(crcs: Vec<BlockCrc>, segments: Vec<Bytes>) -> Self {
        let data = Self { crcs, segments };
        assert!(data.is_consistent(), "{} checksums for {} segments", data.crcs.len(), data.segments.len());
        data
    }

    /// Takes blocks and makes their checksums.
    ///
    /// # Panics
    /// When a segment is not of whole blocks.
    #[must_use]
    pub fn checksummed(segments: Vec<Bytes>) -> Self {
        let crcs = segments.iter().flat_map(|segment| block_crcs(segment)).collect();
        Self { crcs, segments }
    }

    /// How many blocks.
    #[must_use]
    pub const fn blocks(&self) -> usize {
        self.crcs.len()
    }

    /// Length of the blocks in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.crcs.len() * BLOCK_SIZE
    }

    /// Whether every block still has the contents its checksum was made of.
    ///
    /// # Errors
    /// The index of the first block that has not.
    ///
    /// # Panics
    /// When there is not exactly one checksum a block.
    pub fn verify(&self) -> Result<(), usize> {
        assert!(self.is_consistent(), "{} checksums for {} segments", self.crcs.len(), self.segments.len());
        let found = self.segments.iter().flat_map(|segment| block_crcs(segment));
        match self.crcs.iter().zip(found).position(|(expected, found)| *expected != found) {
            Some(index) => Err(index),
            None => Ok(()),
        }
    }

    pub(crate) fn is_consistent(&self) -> bool {
        let bytes: usize = self.segments.iter().map(Bytes::len).sum();
        let whole = self.segments.iter().all(|segment| segment.len().is_multiple_of(BLOCK_SIZE));
        whole && bytes == self.bytes()
    }
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

/// A pool's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolReport {
    /// Which pool.
    pub pool: PoolId,
    /// Space for data, in blocks.
    pub blocks_total: u64,
    /// Blocks that hold data.
    pub blocks_used: u64,
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
}

/// Kinds of errors; the numbers are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum ErrorCode {
    /// The frame or its fields make no sense; the connection closes.
    Malformed = 1,
    /// No protocol version in common; the connection closes.
    Version = 2,
    /// A message that this state of the connection does not allow; the connection closes.
    Unexpected = 3,
    /// A newer generation has been promised; the session is over for ever.
    Fenced = 4,
    /// The pool has no replica of this volume.
    NoSuchVolume = 5,
    /// The range lies beyond the volume.
    OutOfRange = 6,
    /// A block's checksum did not match its data as received.
    ChecksumOnWire = 7,
    /// A block's checksum did not match its data as read from the medium.
    ChecksumOnMedium = 8,
    /// The device reported an error for this request.
    Medium = 9,
    /// No space is left in the pool.
    NoSpace = 10,
    /// The pool has stopped after an I/O error and must be reopened.
    PoolFailed = 11,
    /// The volume exists with another size, or the size is not allowed.
    BadSize = 12,
    /// More in flight than the replica takes; the connection closes.
    TooMuch = 13,
    /// The volume is open for writing by a session and cannot be deleted.
    Busy = 14,
    /// The server is stopping; connect again later.
    Stopping = 15,
    /// Too many writes lie above the volume's stable stamp: flush, tell progress, and try again.
    TailTooLong = 16,
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The kind with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Malformed,
            2 => Self::Version,
            3 => Self::Unexpected,
            4 => Self::Fenced,
            5 => Self::NoSuchVolume,
            6 => Self::OutOfRange,
            7 => Self::ChecksumOnWire,
            8 => Self::ChecksumOnMedium,
            9 => Self::Medium,
            10 => Self::NoSpace,
            11 => Self::PoolFailed,
            12 => Self::BadSize,
            13 => Self::TooMuch,
            14 => Self::Busy,
            15 => Self::Stopping,
            16 => Self::TailTooLong,
            _ => return None,
        })
    }
}

/// Most extents in an `AllocationReply`.
pub const EXTENTS_MAX: usize = 4096;
/// Most entries in a `TailReply`.
pub const TAIL_ENTRIES_MAX: usize = 4096;
/// Most volumes in a `PoolReport`.
pub const VOLUMES_MAX: usize = 4096;
/// Longest detail of an error, in bytes.
pub const DETAIL_BYTES_MAX: usize = 1024;
/// Most blocks in one `Discard` (4 GiB).
pub const DISCARD_BLOCKS_MAX: u32 = 1 << 20;
