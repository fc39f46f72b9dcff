//! The messages' numbers on the wire, and for each what a frame of it may carry.

use crate::frame::{
    ADDRESS_BYTES_MAX, DETAIL_BYTES_MAX, DIVERGED_MAX, EXTENTS_MAX, Message, SNAPSHOTS_MAX, TAIL_ENTRIES_MAX,
    VOLUMES_MAX,
};
use crate::header::Flags;
use std::ops::RangeInclusive;
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{BLOCK_SIZE, TAG_BYTES};

pub(crate) const BLOCKS_MAX: usize = IO_BLOCKS_MAX as usize;

// Lengths of the parts that bodies are made of, in bytes.
const ID: usize = 16;
const U8: usize = 1;
const U16: usize = 2;
const U32: usize = 4;
const U64: usize = 8;
const STAMP: usize = U64;
const PROGRESS: usize = STAMP + STAMP;
pub(crate) const RANGE: usize = U64 + U32;
pub(crate) const CRC: usize = U32;
pub(crate) const TAG: usize = TAG_BYTES;
/// What goes with a block that is read of an encrypted volume: its stamp, too, which it opens by.
pub(crate) const SEAL: usize = TAG + STAMP;
pub(crate) const EXTENT: usize = U32 + U8;
pub(crate) const TAIL_ENTRY: usize = RANGE + STAMP + U8;
pub(crate) const VOLUME_REPORT: usize = ID + U64 + U64 + U32 + STAMP + U8;

const HELLO: usize = U16 + U16;
const HELLO_REPLY: usize = U16 + ID;
const OPEN: usize = ID + U64;
pub(crate) const SNAPSHOT_ENTRY: usize = ID + STAMP;
const OPEN_REPLY: usize = U64 + STAMP + STAMP + PROGRESS + ID;
const OPEN_REPLY_MAX: usize = OPEN_REPLY + SNAPSHOTS_MAX * SNAPSHOT_ENTRY;
const WRITE: usize = U64 + STAMP + PROGRESS;
const DISCARD: usize = RANGE + STAMP + PROGRESS;
const PRESENT_MAX: usize = BLOCKS_MAX.div_ceil(8);
const TAIL: usize = STAMP + U32;
const CHANGED: usize = STAMP + U64;
const CHANGED_REPLY: usize = U64;
const VERSIONS: usize = U16;
const VERSIONS_MAX: usize = VERSIONS + BLOCKS_MAX * (TAIL_ENTRY + CRC);
const FETCH_REPLY_MAX: usize = VERSIONS_MAX + BLOCKS_MAX * TAG;
const VERIFY_REPLY_MAX: usize = VERSIONS_MAX + BLOCKS_MAX * RANGE;
const PULL: usize = ID + ID + STAMP + STAMP + STAMP;
const PULL_REPORT: usize = U8 + U64 + U64 + U16;
const PULL_REPORT_MAX: usize = PULL_REPORT + DETAIL_BYTES_MAX + DIVERGED_MAX * RANGE;
const REPAIR: usize = RANGE + ID;
const SIZED_VOLUME: usize = ID + U64;
const NEW_VOLUME: usize = SIZED_VOLUME + ID + ID;
const POOL_REPORT: usize = ID + U64 + U64 + U64 + U64 + U16;
const POOL_REPORT_MAX: usize = POOL_REPORT + DETAIL_BYTES_MAX + VOLUMES_MAX * VOLUME_REPORT;
const ERROR: usize = U16;

const _: () = assert!(WRITE == 32 && OPEN_REPLY == 56 && DISCARD == 36);
const _: () = assert!(TAIL_ENTRY == 21 && VOLUME_REPORT == 45);
const _: () = assert!(OPEN_REPLY_MAX <= POOL_REPORT_MAX);
const _: () = assert!(POOL_REPORT_MAX <= 256 * 1024, "the most a decoder holds of a fixed part");

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, fixed $fixed:expr, blocks $blocks:expr, flags $flags:expr;)*) => {
        /// Which message a frame carries; the numbers are on the wire.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Kind {
            $(#[doc = concat!("[`Message::", stringify!($name), "`]")] $name,)*
        }

        impl Kind {
            pub(crate) const fn number(self) -> u16 {
                match self { $(Self::$name => $number,)* }
            }

            pub(crate) const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// How long the fixed part may be.
            pub(crate) const fn fixed_bytes(self) -> RangeInclusive<usize> {
                match self { $(Self::$name => $fixed,)* }
            }

            /// How long the payload may be.
            pub(crate) const fn payload_bytes_max(self) -> usize {
                BLOCK_SIZE * match self { $(Self::$name => $blocks,)* }
            }

            /// Every flag it knows.
            pub(crate) const fn flags(self) -> Flags {
                match self { $(Self::$name => $flags,)* }
            }
        }
    };
}

const fn exactly(bytes: usize) -> RangeInclusive<usize> {
    bytes..=bytes
}

kinds! {
    Hello = 1, fixed exactly(HELLO), blocks 0, flags Flags::NONE;
    HelloReply = 2, fixed exactly(HELLO_REPLY), blocks 0, flags Flags::NONE;
    Error = 3, fixed ERROR..=ERROR + DETAIL_BYTES_MAX, blocks 0, flags Flags::NONE;
    Done = 4, fixed exactly(0), blocks 0, flags Flags::NONE;
    Open = 16, fixed exactly(OPEN), blocks 0, flags Flags::WRITABLE;
    OpenReply = 17, fixed OPEN_REPLY..=OPEN_REPLY_MAX, blocks 0, flags Flags::NONE;
    Close = 18, fixed exactly(PROGRESS), blocks 0, flags Flags::NONE;
    Progress = 19, fixed exactly(PROGRESS), blocks 0, flags Flags::NONE;
    Write = 32, fixed WRITE + CRC..=WRITE + BLOCKS_MAX * (CRC + TAG), blocks BLOCKS_MAX, flags Flags::FORCE_UNIT_ACCESS.with(Flags::TAGGED);
    Discard = 33, fixed exactly(DISCARD), blocks 0, flags Flags::FORCE_UNIT_ACCESS;
    Flush = 34, fixed exactly(PROGRESS), blocks 0, flags Flags::NONE;
    FlushReply = 35, fixed exactly(STAMP), blocks 0, flags Flags::NONE;
    Read = 36, fixed exactly(RANGE), blocks 0, flags Flags::NONE;
    ReadReply = 37, fixed 1..=PRESENT_MAX + BLOCKS_MAX * (CRC + SEAL), blocks BLOCKS_MAX, flags Flags::TAGGED;
    Allocation = 38, fixed exactly(RANGE), blocks 0, flags Flags::NONE;
    AllocationReply = 39, fixed EXTENT..=EXTENTS_MAX * EXTENT, blocks 0, flags Flags::NONE;
    Tail = 40, fixed exactly(TAIL), blocks 0, flags Flags::NONE;
    TailReply = 41, fixed 0..=TAIL_ENTRIES_MAX * TAIL_ENTRY, blocks 0, flags Flags::MORE;
    Changed = 42, fixed exactly(CHANGED), blocks 0, flags Flags::NONE;
    ChangedReply = 43, fixed CHANGED_REPLY..=CHANGED_REPLY + TAIL_ENTRIES_MAX * TAIL_ENTRY, blocks 0, flags Flags::NONE;
    Fetch = 44, fixed exactly(RANGE), blocks 0, flags Flags::NONE;
    FetchReply = 45, fixed VERSIONS..=FETCH_REPLY_MAX, blocks BLOCKS_MAX, flags Flags::TAGGED;
    Verify = 46, fixed exactly(RANGE), blocks 0, flags Flags::STAMPS_ONLY;
    VerifyReply = 47, fixed VERSIONS..=VERIFY_REPLY_MAX, blocks 0, flags Flags::NONE;
    Pull = 48, fixed PULL + 1..=PULL + ADDRESS_BYTES_MAX, blocks 0, flags Flags::NONE;
    PullStatus = 49, fixed exactly(STAMP), blocks 0, flags Flags::NONE;
    PullReport = 50, fixed PULL_REPORT..=PULL_REPORT_MAX, blocks 0, flags Flags::NONE;
    Repair = 51, fixed REPAIR + 1..=REPAIR + ADDRESS_BYTES_MAX, blocks 0, flags Flags::NONE;
    CreateSnapshot = 52, fixed exactly(SNAPSHOT_ENTRY), blocks 0, flags Flags::NONE;
    DeleteSnapshot = 53, fixed exactly(ID), blocks 0, flags Flags::NONE;
    View = 54, fixed exactly(ID), blocks 0, flags Flags::NONE;
    Reset = 55, fixed exactly(0), blocks 0, flags Flags::NONE;
    CreateVolume = 64, fixed exactly(NEW_VOLUME), blocks 0, flags Flags::TAGGED;
    DeleteVolume = 65, fixed exactly(ID), blocks 0, flags Flags::NONE;
    ResizeVolume = 66, fixed exactly(SIZED_VOLUME), blocks 0, flags Flags::NONE;
    PoolStatus = 67, fixed exactly(0), blocks 0, flags Flags::NONE;
    PoolReport = 68, fixed POOL_REPORT..=POOL_REPORT_MAX, blocks 0, flags Flags::NONE;
    Flatten = 69, fixed exactly(ID), blocks 0, flags Flags::NONE;
}

impl Message {
    /// Which message it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::HelloReply(_) => Kind::HelloReply,
            Self::Open { .. } => Kind::Open,
            Self::OpenReply(_) => Kind::OpenReply,
            Self::Write { .. } => Kind::Write,
            Self::Discard { .. } => Kind::Discard,
            Self::Flush { .. } => Kind::Flush,
            Self::Progress(_) => Kind::Progress,
            Self::Done => Kind::Done,
            Self::FlushReply(_) => Kind::FlushReply,
            Self::Read { .. } => Kind::Read,
            Self::ReadReply { .. } => Kind::ReadReply,
            Self::Allocation { .. } => Kind::Allocation,
            Self::AllocationReply { .. } => Kind::AllocationReply,
            Self::Tail { .. } => Kind::Tail,
            Self::TailReply { .. } => Kind::TailReply,
            Self::Changed { .. } => Kind::Changed,
            Self::ChangedReply { .. } => Kind::ChangedReply,
            Self::Fetch { .. } => Kind::Fetch,
            Self::FetchReply { .. } => Kind::FetchReply,
            Self::Verify { .. } => Kind::Verify,
            Self::VerifyReply { .. } => Kind::VerifyReply,
            Self::Pull { .. } => Kind::Pull,
            Self::PullStatus { .. } => Kind::PullStatus,
            Self::PullReport(_) => Kind::PullReport,
            Self::Repair { .. } => Kind::Repair,
            Self::CreateSnapshot { .. } => Kind::CreateSnapshot,
            Self::DeleteSnapshot { .. } => Kind::DeleteSnapshot,
            Self::View { .. } => Kind::View,
            Self::Reset => Kind::Reset,
            Self::Close { .. } => Kind::Close,
            Self::CreateVolume { .. } => Kind::CreateVolume,
            Self::DeleteVolume { .. } => Kind::DeleteVolume,
            Self::ResizeVolume { .. } => Kind::ResizeVolume,
            Self::PoolStatus => Kind::PoolStatus,
            Self::Flatten { .. } => Kind::Flatten,
            Self::PoolReport(_) => Kind::PoolReport,
            Self::Error { .. } => Kind::Error,
        }
    }

    pub(crate) const fn flags(&self) -> Flags {
        let own = match self {
            Self::Write { force_unit_access, .. } | Self::Discard { force_unit_access, .. } => {
                Flags::FORCE_UNIT_ACCESS.when(*force_unit_access)
            }
            Self::Open { writable, .. } => Flags::WRITABLE.when(*writable),
            Self::TailReply { more, .. } => Flags::MORE.when(*more),
            Self::Verify { stamps_only, .. } => Flags::STAMPS_ONLY.when(*stamps_only),
            Self::CreateVolume { tagged, .. } => Flags::TAGGED.when(*tagged),
            _ => Flags::NONE,
        };
        match self.data() {
            Some(data) => own.with(Flags::TAGGED.when(!data.tags.is_empty())),
            None => own,
        }
    }
}
