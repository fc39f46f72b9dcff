//! Why a change to the cluster was refused.

use crate::engine_report::OrderError;
use crate::records::RecordError;
use crate::replica_client::ReplicaError;
use crate::store::{CommitError, StoreError};
use tonic::Status;
use trivet_api::failure::refusal;
use trivet_api::{FailureKind, LayoutError};
use trivet_model::settings::LimitError;
use trivet_model::size::ByteSize;
use trivet_model::{BLOCK_SIZE_U64, VOLUME_BLOCKS_MAX};
use trivet_wire::ErrorCode;

/// Why a change did not take place.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such volume.
    #[error("there is no volume '{0}'")]
    NoSuchVolume(String),
    /// The name is taken.
    #[error("there is a volume '{0}' already")]
    VolumeExists(String),
    /// The name cannot be one.
    #[error(
        "'{0}' is no volume name: 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit"
    )]
    BadName(String),
    /// The size is not allowed.
    #[error(
        "a size of {} is not allowed: from {} to {}",
        ByteSize(.blocks.saturating_mul(BLOCK_SIZE_U64)),
        ByteSize(BLOCK_SIZE_U64),
        ByteSize(VOLUME_BLOCKS_MAX * BLOCK_SIZE_U64)
    )]
    BadSize {
        /// As asked.
        blocks: u64,
    },
    /// Volumes grow only.
    #[error(
        "volume '{name}' has {}, and a volume cannot go to {}: it grows only, up to 64 TiB",
        ByteSize(.now * BLOCK_SIZE_U64),
        ByteSize(.asked.saturating_mul(BLOCK_SIZE_U64))
    )]
    Shrinks {
        /// Which.
        name: String,
        /// Its blocks.
        now: u64,
        /// As asked.
        asked: u64,
    },
    /// The engine did not grow it, or not say so.
    #[error("volume '{volume}' has not grown: {cause}")]
    GrowthFailed {
        /// Which volume.
        volume: String,
        /// Why.
        cause: OrderError,
    },
    /// The volume is attached.
    #[error("volume '{0}' is attached")]
    Attached(String),
    /// The volume is attached in another way than asked for.
    #[error("volume '{0}' is attached already, in another way")]
    AttachedOtherwise(String),
    /// Nobody could do it.
    #[error("volume '{0}' is not attached for writing, and only its engine can scrub it")]
    NotServed(String),
    /// Nobody could do it.
    #[error("volume '{0}' is not attached for writing, and only its engine can take and delete snapshots")]
    NotWritten(String),
    /// The name cannot be one.
    #[error(
        "'{0}' is no snapshot name: 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit"
    )]
    BadSnapshotName(String),
    /// Too many labels, or too long ones.
    #[error(
        "a snapshot has at most {most} labels, of at most {bytes} bytes a key or value, and no empty key"
    )]
    BadLabels {
        /// How many.
        most: usize,
        /// How long.
        bytes: usize,
    },
    /// No such snapshot.
    #[error("volume '{volume}' has no snapshot '{name}'")]
    NoSuchSnapshot {
        /// Which volume.
        volume: String,
        /// Which snapshot.
        name: String,
    },
    /// The name is taken.
    #[error("volume '{volume}' has a snapshot '{name}' already")]
    SnapshotExists {
        /// Which volume.
        volume: String,
        /// Which snapshot.
        name: String,
    },
    /// An engine did not do its part of a snapshot over several volumes, or not say so.
    #[error("volume '{volume}': {cause}")]
    GroupNotTaken {
        /// Whose engine.
        volume: String,
        /// Why.
        cause: OrderError,
    },
    /// What was cut is of an engine that is none any more.
    #[error("volume '{0}' has been opened anew meanwhile")]
    OpenedAnew(String),
    /// A snapshot over volumes that are not several.
    #[error("volume '{0}' is named twice")]
    NamedTwice(String),
    /// One copy on each.
    #[error("replica-{0} is named twice")]
    ServerNamedTwice(u32),
    /// Nobody uses it meanwhile.
    #[error("volume '{volume}' is being reverted to its snapshot '{name}'")]
    Reverting {
        /// Which volume.
        volume: String,
        /// Which snapshot.
        name: String,
    },
    /// There is no room for another.
    #[error("volume '{volume}' has as many snapshots as it may have: {most}")]
    TooManySnapshots {
        /// Which volume.
        volume: String,
        /// How many.
        most: u32,
    },
    /// It cannot be filled from there.
    #[error("volume '{volume}' cannot be filled from a source of {bytes} bytes")]
    BadImport {
        /// Which volume.
        volume: String,
        /// Of its source.
        bytes: u64,
    },
    /// No record takes a URI of this length.
    #[error("the URI of the source has {bytes} bytes, and may have {most}")]
    LongSource {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        most: usize,
    },
    /// It is being filled from something else.
    #[error("volume '{volume}' is being imported from {from}, and this is another source")]
    OtherSource {
        /// Which volume.
        volume: String,
        /// What it is being filled from.
        from: String,
    },
    /// Not all of its source is in it.
    #[error("volume '{0}' is still being imported")]
    ImportUnderWay(String),
    /// A copy that was left behind lacks what was imported since.
    #[error("volume '{0}' was still being imported: a copy that is not in sync lacks parts of its source")]
    ImportLost(String),
    /// It may hold something.
    #[error("volume '{0}' was opened before, or is a clone: only a new one can be imported at once")]
    NotNew(String),
    /// Somebody may be reading it.
    #[error("volume '{volume}': its snapshot '{name}' is exported")]
    Exported {
        /// Which volume.
        volume: String,
        /// Which snapshot.
        name: String,
    },
    /// Time goes one way.
    #[error("snapshot '{since}' of volume '{volume}' is newer than '{until}'")]
    SnapshotOrder {
        /// Which volume.
        volume: String,
        /// Named as the older one.
        since: String,
        /// Named as the newer one.
        until: String,
    },
    /// It is read and cloned, and never written.
    #[error("volume '{0}' is a golden image: it is read and cloned, and never changed")]
    IsImage(String),
    /// Its copies may differ, and only an engine can make them alike.
    #[error("volume '{0}' was not closed in good order, and its copies may differ")]
    NotClosed(String),
    /// A pool does not make the clone.
    #[error("volume '{name}' cannot be cloned: {cause}")]
    NotCloned {
        /// The parent.
        name: String,
        /// Why not.
        cause: String,
    },
    /// Clones of clones of clones.
    #[error("volume '{0}' has as many ancestors as a volume can have")]
    LineageTooLong(String),
    /// Where the parent has no copies, nothing can be shared.
    #[error("{asked} copies need as many copies of volume '{name}' that are in sync and answer: {able} do")]
    TooFewToShare {
        /// The parent.
        name: String,
        /// Copies asked for.
        asked: u32,
        /// The parent's copies that can be had.
        able: usize,
    },
    /// Who asks for a server wants a copy that shares nothing.
    #[error("volume '{name}' has a copy on replica-{number}: a clone shares with it there")]
    SharesThere {
        /// The parent.
        name: String,
        /// Which server.
        number: u32,
    },
    /// There is nobody to ask.
    #[error("volume '{0}' has no copy in sync")]
    NoCopyInSync(String),
    /// The engine did not do it, or not say so.
    #[error("volume '{volume}': {cause}")]
    SnapshotFailed {
        /// Which volume.
        volume: String,
        /// Why.
        cause: OrderError,
    },
    /// A limit that makes no sense.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// They are recorded; the engine has not said that it follows them.
    #[error("the settings of volume '{volume}' are recorded, but may not be in force yet: {cause}")]
    SettingsNotFollowed {
        /// Which volume.
        volume: String,
        /// Why.
        cause: OrderError,
    },
    /// An engine that is not the manager's has it open.
    #[error("volume '{name}' is open: {owner}")]
    Open {
        /// Which.
        name: String,
        /// Who, in its own words.
        owner: String,
    },
    /// More copies than servers.
    #[error("{asked} copies need as many replica servers: {running} of {known} answer")]
    TooFewReplicas {
        /// Copies asked for.
        asked: u32,
        /// Servers that answer.
        running: usize,
        /// Servers there are.
        known: usize,
    },
    /// The cluster has another number of replica servers.
    #[error("this cluster has {have} replica servers, not {asked}, and their number cannot be changed yet")]
    ReplicaCount {
        /// Servers there are.
        have: u32,
        /// As asked.
        asked: u32,
    },
    /// A number of replica servers that makes no sense.
    #[error("a cluster has 1 to {max} replica servers, not {asked}")]
    BadReplicaCount {
        /// As asked.
        asked: u32,
        /// The most.
        max: u32,
    },
    /// An address that nobody can listen on.
    #[error("cannot listen on {address}: {cause}")]
    Address {
        /// As asked.
        address: String,
        /// The system's words.
        cause: std::io::Error,
    },
    /// The protocol has no authentication yet.
    #[error(
        "cannot listen on {address}: it is not on the loopback interface, and NBD here has no authentication yet"
    )]
    NotLoopback {
        /// As asked.
        address: String,
    },
    /// No port is free.
    #[error("no free port between {first} and {last} on the loopback interface")]
    NoPort {
        /// The lowest tried.
        first: u16,
        /// The highest tried.
        last: u16,
    },
    /// The record has changed since it was read.
    #[error("the record has changed meanwhile (now at revision {revision})")]
    Conflict {
        /// The revision found.
        revision: u64,
    },
    /// Somebody else changed the same records at the same time.
    #[error("the volume was changed by someone else at the same time")]
    Raced,
    /// A swap that would change what a volume is.
    #[error("a swap cannot change a volume's {0}")]
    Identity(&'static str),
    /// An engine did not end.
    #[error("the engine of volume '{0}' has not ended in time")]
    EngineStays(String),
    /// No such replica server.
    #[error("there is no replica server replica-{0}")]
    NoSuchReplica(u32),
    /// The server's pool is not known yet.
    #[error("replica-{0} has not been up yet")]
    ReplicaNotMet(u32),
    /// The server cannot take a copy now.
    #[error("replica-{number} takes no copy now: {cause}")]
    ReplicaAway {
        /// Which server.
        number: u32,
        /// Why.
        cause: String,
    },
    /// The server has a copy already.
    #[error("volume '{name}' has a copy on replica-{number} already")]
    AlreadyMember {
        /// Which volume.
        name: String,
        /// Which server.
        number: u32,
    },
    /// The server has no copy.
    #[error("volume '{name}' has no copy on replica-{number}")]
    NotMember {
        /// Which volume.
        name: String,
        /// Which server.
        number: u32,
    },
    /// The engine has not noticed yet that an earlier copy was removed.
    #[error("an engine still uses the old copy of volume '{name}' on replica-{number}")]
    StillOpen {
        /// Which volume.
        name: String,
        /// Which server.
        number: u32,
    },
    /// Nowhere to put another copy.
    #[error("no replica server without a copy of volume '{0}' answers and has room for one")]
    NoServerFree(String),
    /// The server asked for cannot take the copy.
    #[error(
        "replica-{number} has {} free, and a copy of volume '{name}' takes {}",
        ByteSize(.free * BLOCK_SIZE_U64),
        ByteSize(.needed * BLOCK_SIZE_U64)
    )]
    NoRoom {
        /// Which volume.
        name: String,
        /// Which server.
        number: u32,
        /// Its free blocks.
        free: u64,
        /// The blocks of the copy.
        needed: u64,
    },
    /// Every write would be lost.
    #[error("replica-{number} holds the only copy of volume '{name}' that is in sync")]
    LastInSync {
        /// Which volume.
        name: String,
        /// Which server.
        number: u32,
    },
    /// The volume could not be served.
    #[error("without replica-{number}, no copy of volume '{name}' that is in sync would answer")]
    NoneWouldAnswer {
        /// Which volume.
        name: String,
        /// Which server.
        number: u32,
    },
    /// One at a time.
    #[error("a copy of volume '{0}' is being replaced already")]
    Replacing(String),
    /// Salvage is for when nothing else helps.
    #[error(
        "there is nothing to salvage: the copy of volume '{name}' on replica-{number} is in sync and answers"
    )]
    NothingToSalvage {
        /// Which volume.
        name: String,
        /// Which server.
        number: u32,
    },
    /// The copy to be kept cannot be had.
    #[error("the copy of volume '{name}' on replica-{number} cannot be had: {cause}")]
    NoCopy {
        /// Which volume.
        name: String,
        /// Which server.
        number: u32,
        /// Why.
        cause: String,
    },
    /// What should be a wrapped key is none.
    #[error("what should be a wrapped data key makes no sense: {0}")]
    MalformedKey(trivet_keys::MalformedKey),
    /// An encrypted volume, and no key.
    #[error("volume '{0}' is encrypted, and its key was not given")]
    Locked(String),
    /// An encrypted volume whose key is not here.
    #[error("volume '{0}' is encrypted, and not unlocked")]
    NotUnlocked(String),
    /// Another volume's key.
    #[error("the key given is not that of volume '{0}'")]
    WrongKey(String),
    /// A key, and nothing to use it for.
    #[error("volume '{0}' is not encrypted")]
    NotEncrypted(String),
    /// Nothing tells which copy of a block is right.
    #[error(
        "reads of volume '{0}' cannot be verified: it is not encrypted, so nothing would tell which copy is right"
    )]
    NothingToVerify(String),
    /// Its deletion has begun.
    #[error("the key of volume '{0}' has been destroyed: nobody can read it any more")]
    KeyDestroyed(String),
    /// Another data key is on its way.
    #[error("volume '{0}' is going over to another data key")]
    Rekeying(String),
    /// One after the other.
    #[error("the data of volume '{0}' is being encrypted anew already")]
    Resealing(String),
    /// Its snapshots need them, or copies that are not in sync.
    #[error(
        "snapshots and copies of volume '{volume}' need {most} older data keys already, the most there can be"
    )]
    TooManyKeys {
        /// Which volume.
        volume: String,
        /// How many.
        most: usize,
    },
    /// Nobody could do it.
    #[error("volume '{0}' is not attached for writing, and only its engine can encrypt its data anew")]
    NotReencrypted(String),
    /// It is recorded; the engine has not said that it has done it.
    #[error("volume '{volume}' has not gone over to its new data key yet: {cause}")]
    NotRekeyedYet {
        /// Which volume.
        volume: String,
        /// Why.
        cause: OrderError,
    },
    /// A clone has the volume's present key alone.
    #[error(
        "a clone would need an older data key of volume '{volume}', which {} still sealed under",
        .snapshot.as_ref().map_or("some of its data is".to_owned(), |name| format!("its snapshot '{name}' may be"))
    )]
    OlderKey {
        /// The parent.
        volume: String,
        /// Which snapshot; the volume as it is without one.
        snapshot: Option<String>,
    },
    /// A key would not be safe here.
    #[error("this process cannot be kept from leaving core files, so it takes no key: {0}")]
    Unguarded(std::io::Error),
    /// There are no generations left.
    #[error("volume '{0}' has been opened as often as is possible")]
    NoGeneration(String),
    /// A replica server did not do its part.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// Randomness for an identity could not be had.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// The cluster's folder.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A record could not be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manager is being stopped.
    #[error("the manager is stopping")]
    Stopping,
}

impl From<CommitError> for Refusal {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict { .. } => Self::Raced,
            CommitError::Store(error) => Self::Store(error),
        }
    }
}

impl Refusal {
    /// The kind that callers act upon.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::NoSuchVolume(_)
            | Self::NoSuchSnapshot { .. }
            | Self::NoSuchReplica(_)
            | Self::NotMember { .. } => FailureKind::NotFound,
            Self::VolumeExists(_) | Self::SnapshotExists { .. } | Self::AlreadyMember { .. } => {
                FailureKind::Exists
            }
            Self::BadName(_)
            | Self::BadSnapshotName(_)
            | Self::BadLabels { .. }
            | Self::SnapshotOrder { .. }
            | Self::NamedTwice(_)
            | Self::ServerNamedTwice(_)
            | Self::BadImport { .. }
            | Self::LongSource { .. }
            | Self::BadSize { .. }
            | Self::Shrinks { .. }
            | Self::BadReplicaCount { .. }
            | Self::NotLoopback { .. }
            | Self::SharesThere { .. }
            | Self::LineageTooLong(_)
            | Self::Limit(_)
            | Self::Identity(_)
            | Self::MalformedKey(_)
            | Self::Locked(_)
            | Self::NotUnlocked(_)
            | Self::WrongKey(_)
            | Self::NotEncrypted(_)
            | Self::NothingToVerify(_) => FailureKind::Invalid,
            Self::KeyDestroyed(_) => FailureKind::Data,
            Self::OtherSource { .. }
            | Self::ImportUnderWay(_)
            | Self::ImportLost(_)
            | Self::NotNew(_)
            | Self::Attached(_)
            | Self::AttachedOtherwise(_)
            | Self::NotServed(_)
            | Self::NotReencrypted(_)
            | Self::Rekeying(_)
            | Self::Resealing(_)
            | Self::TooManyKeys { .. }
            | Self::OlderKey { .. }
            | Self::NotWritten(_)
            | Self::Exported { .. }
            | Self::NotClosed(_)
            | Self::NotCloned { .. }
            | Self::IsImage(_)
            | Self::Reverting { .. }
            | Self::TooManySnapshots { .. }
            | Self::OpenedAnew(_)
            | Self::SnapshotFailed { cause: OrderError::Refused(_), .. }
            | Self::GroupNotTaken { cause: OrderError::Refused(_), .. }
            | Self::GrowthFailed { cause: OrderError::Refused(_), .. }
            | Self::Open { .. }
            | Self::ReplicaCount { .. }
            | Self::Address { .. }
            | Self::LastInSync { .. }
            | Self::NoneWouldAnswer { .. }
            | Self::Replacing(_)
            | Self::StillOpen { .. }
            | Self::NothingToSalvage { .. }
            | Self::Raced => FailureKind::InUse,
            Self::Conflict { revision } => FailureKind::Conflict { revision: *revision },
            Self::Replica(ReplicaError::Refused { code: ErrorCode::NoSpace, .. }) => FailureKind::NoSpace,
            Self::Replica(ReplicaError::Refused { code: ErrorCode::Busy, .. }) => FailureKind::InUse,
            Self::NoRoom { .. } => FailureKind::NoSpace,
            Self::Replica(_)
            | Self::TooFewReplicas { .. }
            | Self::TooFewToShare { .. }
            | Self::ReplicaNotMet(_)
            | Self::ReplicaAway { .. }
            | Self::NoServerFree(_)
            | Self::NoCopyInSync(_)
            | Self::NoCopy { .. } => FailureKind::Replica,
            Self::NoPort { .. }
            | Self::EngineStays(_)
            | Self::SnapshotFailed { .. }
            | Self::GroupNotTaken { .. }
            | Self::SettingsNotFollowed { .. }
            | Self::NotRekeyedYet { .. }
            | Self::GrowthFailed { .. }
            | Self::NoGeneration(_)
            | Self::Random(_)
            | Self::Unguarded(_)
            | Self::Layout(_)
            | Self::Record(_)
            | Self::Store(_)
            | Self::Stopping => FailureKind::Internal,
        }
    }
}

impl From<Refusal> for Status {
    fn from(error: Refusal) -> Self {
        refusal(error.kind(), &error.to_string(), error.next_step())
    }
}
