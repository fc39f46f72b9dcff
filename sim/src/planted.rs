//! Faults put into the product on purpose, to see that they are found.

use std::fmt;
use std::str::FromStr;

/// A fault to put into engine or replica. Without the feature `planted-faults` nothing is put in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    /// The engine acknowledges a write when the first member has answered.
    AcknowledgeFirstAnswer,
    /// The engine does not compare the members' tails.
    SkipReconcile,
    /// The engine does not order overlapping operations.
    IgnoreOverlaps,
    /// The engine answers a flush without asking the members.
    SkipFlush,
    /// A replica answers a promise before it is durable.
    SkipDurablePromise,
    /// A replica lets an older generation open the volume.
    AcceptOlderGeneration,
    /// The engine takes a member back that has lost what it acknowledged.
    TrustReturningMember,
    /// A replica serves an older session beside a newer one.
    KeepOlderSession,
    /// A replica claims to have lost nothing when its host lost power.
    OverclaimIntact,
    /// A replica answers a flush at once.
    AnswerUnflushed,
    /// A replica uses freed blocks again too early.
    ReuseUnstable,
    /// A replica answers writes before they are written.
    AcknowledgeUnwritten,
    /// A replica believes records whose data is torn.
    SkipReplayChecksum,
    /// The engine goes on without a member before the record says so.
    DropBeforeSwap,
    /// The engine answers without a lease.
    SkipLease,
    /// The engine does not wait for an older engine's lease.
    SkipLeaseWait,
    /// The engine promotes a member that has not answered all it was sent.
    PromoteBeforeDrain,
    /// The engine promotes a member without a flush.
    PromoteBeforeFlush,
    /// The engine leaves what only a returning member has.
    SkipDiverged,
    /// The engine believes that a returning member holds more than is sure.
    CopyTooLittle,
    /// The engine has a member copy before all is settled that was sent without it.
    PullBeforeSettled,
    /// The engine reads from members that are being brought back.
    ReadFromSyncing,
    /// The engine drops a member although nobody who stays has been heard of since.
    DropUnwitnessed,
    /// The engine reads from members whose drop may be on its way to the record.
    ReadFromLeaving,
    /// The engine does not record that a wait is owed to an older one.
    ForgetWait,
    /// A replica goes on after a flush of its device has failed, and flushes again.
    RetryFailedFlush,
    /// A replica does not tell discards among what has changed.
    ForgetDiscards,
    /// A scrub counts what differs when it looks first, beside writes in flight.
    TrustFirstComparison,
    /// A scrub only counts what it should repair.
    SkipScrubRepair,
    /// The engine goes on writing while members are told of a snapshot.
    WriteWhileCutting,
    /// The engine records a snapshot before every member keeps it.
    RecordSnapshotEarly,
    /// The engine does not tell a returning member of the snapshots taken meanwhile.
    ForgetSnapshotsOfReturning,
    /// A replica frees what a snapshot shows when it is overwritten in memory.
    ForgetOlderVersions,
    /// A replica, thinning out, frees what an older snapshot still shows.
    FreeSharedBlocks,
    /// A replica that pulls brings what the volume is now, not what snapshots show.
    PullHeadOnly,
    /// A replica merges versions below a cut into the state above it.
    MergeAcrossCut,
    /// A revert leaves what the snapshot shows as a hole.
    SkipRevertDiscards,
    /// A revert writes what the volume is.
    RevertToHead,
    /// A revert is recorded as done before its last writes are.
    RecordRevertEarly,
    /// An engine gives up a snapshot over several volumes without changing the record.
    WithdrawSilently,
    /// A reader believes members that the record has not vouched for since they were connected.
    BelieveUnvouched,
    /// A replica does not hang up on readers when its copy begins anew.
    KeepReaders,
    /// A discard in a clone leaves no tombstone where only the parent had a block.
    DiscardWithoutTombstone,
    /// A replica frees what clones read with the snapshot that they were made of.
    FreeWhatClonesRead,
    /// What a clone copies from its parent takes the place of what was written to the clone.
    FlattenOverNewer,
    /// A replica lets a clone's parent go before what it copied from there is stable.
    UntieUnflushed,
    /// A clone's first generation is not above its parent's.
    CloneInOldGeneration,
    /// The engine sends writes of a write-through volume like any others.
    SkipWriteThrough,
    /// The engine flushes nothing when a volume becomes write-through.
    SkipSwitchFlush,
    /// The engine forgets what a limit holds back.
    ForgetThrottled,
    /// The engine's limits hold nothing back.
    IgnoreLimits,
    /// The engine lets discards of what may still be the source's leave holes.
    DiscardWhileHydrating,
    /// The engine zeroes parts of blocks so that the volume does not have the block any more.
    ZeroPartsWhileHydrating,
    /// The engine lets consumers reach what is not imported yet.
    SkipHydration,
    /// The engine records how far an import is before that is stable.
    RecordUnstableHydration,
    /// The engine writes what the source has over what a consumer wrote.
    HydrateOverWrites,
    /// The engine seals all blocks of a write under its first stamp: one nonce for several blocks.
    SealUnderFirstStamp,
    /// The engine leaves the block's place out of its seal.
    SealWithoutPlace,
    /// The engine seals a clone's blocks under its parent's key.
    SealUnderParentsKey,
    /// The engine answers a verified read by what the first member says, whatever the witness does.
    TrustFirstAnswer,
    /// The engine goes on writing while the record goes over to another data key.
    WriteWhileRekeying,
    /// The engine seals blocks anew outside their place among other I/O.
    ResealBesideWrites,
    /// The engine says that all is sealed anew when the last of it has been begun.
    RecordResealedEarly,
    /// A replica that pulls places blocks without their tags.
    ForgetPlacedTags,
    /// A replica mixes up the tags of a group when it merges them.
    MixTagsInMerge,
}

impl Planted {
    /// All of them.
    pub const ALL: [Self; 65] = [
        Self::AcknowledgeFirstAnswer,
        Self::SkipReconcile,
        Self::IgnoreOverlaps,
        Self::SkipFlush,
        Self::SkipDurablePromise,
        Self::AcceptOlderGeneration,
        Self::TrustReturningMember,
        Self::KeepOlderSession,
        Self::OverclaimIntact,
        Self::AnswerUnflushed,
        Self::ReuseUnstable,
        Self::AcknowledgeUnwritten,
        Self::SkipReplayChecksum,
        Self::DropBeforeSwap,
        Self::SkipLease,
        Self::SkipLeaseWait,
        Self::PromoteBeforeDrain,
        Self::PromoteBeforeFlush,
        Self::SkipDiverged,
        Self::CopyTooLittle,
        Self::PullBeforeSettled,
        Self::ReadFromSyncing,
        Self::DropUnwitnessed,
        Self::ReadFromLeaving,
        Self::ForgetWait,
        Self::RetryFailedFlush,
        Self::ForgetDiscards,
        Self::TrustFirstComparison,
        Self::SkipScrubRepair,
        Self::WriteWhileCutting,
        Self::RecordSnapshotEarly,
        Self::ForgetSnapshotsOfReturning,
        Self::ForgetOlderVersions,
        Self::FreeSharedBlocks,
        Self::PullHeadOnly,
        Self::MergeAcrossCut,
        Self::SkipRevertDiscards,
        Self::RevertToHead,
        Self::RecordRevertEarly,
        Self::WithdrawSilently,
        Self::BelieveUnvouched,
        Self::KeepReaders,
        Self::DiscardWithoutTombstone,
        Self::FreeWhatClonesRead,
        Self::FlattenOverNewer,
        Self::UntieUnflushed,
        Self::CloneInOldGeneration,
        Self::SkipWriteThrough,
        Self::SkipSwitchFlush,
        Self::ForgetThrottled,
        Self::IgnoreLimits,
        Self::DiscardWhileHydrating,
        Self::ZeroPartsWhileHydrating,
        Self::SkipHydration,
        Self::RecordUnstableHydration,
        Self::HydrateOverWrites,
        Self::SealUnderFirstStamp,
        Self::SealWithoutPlace,
        Self::SealUnderParentsKey,
        Self::TrustFirstAnswer,
        Self::WriteWhileRekeying,
        Self::ResealBesideWrites,
        Self::RecordResealedEarly,
        Self::ForgetPlacedTags,
        Self::MixTagsInMerge,
    ];

    /// Whether seeds need more than a minute to find it: their worlds seldom come near (docs/testing.md,
    /// "Open").
    #[must_use]
    pub const fn is_rare(self) -> bool {
        matches!(
            self,
            Self::ReadFromLeaving
                | Self::ForgetWait
                | Self::BelieveUnvouched
                | Self::KeepReaders
                | Self::UntieUnflushed
                | Self::SkipSwitchFlush
                | Self::DropUnwitnessed
                | Self::RecordUnstableHydration
        )
    }

    /// Whether this build can plant anything.
    #[must_use]
    pub const fn is_possible() -> bool {
        cfg!(feature = "planted-faults")
    }

    #[cfg(feature = "planted-faults")]
    pub(crate) const fn in_engine(self) -> Option<trivet_engine::volume::PlantedFault> {
        use trivet_engine::volume::PlantedFault;
        match self {
            Self::AcknowledgeFirstAnswer => Some(PlantedFault::AcknowledgeFirstAnswer),
            Self::SkipReconcile => Some(PlantedFault::SkipReconcile),
            Self::IgnoreOverlaps => Some(PlantedFault::IgnoreOverlaps),
            Self::SkipFlush => Some(PlantedFault::SkipFlush),
            Self::TrustReturningMember => Some(PlantedFault::TrustReturningMember),
            Self::DropBeforeSwap => Some(PlantedFault::DropBeforeSwap),
            Self::SkipLease => Some(PlantedFault::SkipLease),
            Self::SkipLeaseWait => Some(PlantedFault::SkipLeaseWait),
            Self::PromoteBeforeDrain => Some(PlantedFault::PromoteBeforeDrain),
            Self::PromoteBeforeFlush => Some(PlantedFault::PromoteBeforeFlush),
            Self::SkipDiverged => Some(PlantedFault::SkipDiverged),
            Self::CopyTooLittle => Some(PlantedFault::CopyTooLittle),
            Self::PullBeforeSettled => Some(PlantedFault::PullBeforeSettled),
            Self::ReadFromSyncing => Some(PlantedFault::ReadFromSyncing),
            Self::DropUnwitnessed => Some(PlantedFault::DropUnwitnessed),
            Self::ReadFromLeaving => Some(PlantedFault::ReadFromLeaving),
            Self::ForgetWait => Some(PlantedFault::ForgetWait),
            Self::TrustFirstComparison => Some(PlantedFault::TrustFirstComparison),
            Self::SkipScrubRepair => Some(PlantedFault::SkipScrubRepair),
            Self::WriteWhileCutting => Some(PlantedFault::WriteWhileCutting),
            Self::RecordSnapshotEarly => Some(PlantedFault::RecordSnapshotEarly),
            Self::ForgetSnapshotsOfReturning => Some(PlantedFault::ForgetSnapshotsOfReturning),
            Self::BelieveUnvouched => Some(PlantedFault::BelieveUnvouched),
            Self::SkipWriteThrough => Some(PlantedFault::SkipWriteThrough),
            Self::SkipSwitchFlush => Some(PlantedFault::SkipSwitchFlush),
            Self::ForgetThrottled => Some(PlantedFault::ForgetThrottled),
            Self::IgnoreLimits => Some(PlantedFault::IgnoreLimits),
            Self::DiscardWhileHydrating => Some(PlantedFault::DiscardWhileHydrating),
            Self::ZeroPartsWhileHydrating => Some(PlantedFault::ZeroPartsWhileHydrating),
            Self::SkipHydration => Some(PlantedFault::SkipHydration),
            Self::RecordUnstableHydration => Some(PlantedFault::RecordUnstableHydration),
            Self::HydrateOverWrites => Some(PlantedFault::HydrateOverWrites),
            Self::SealUnderFirstStamp => Some(PlantedFault::SealUnderFirstStamp),
            Self::SealWithoutPlace => Some(PlantedFault::SealWithoutPlace),
            Self::SealUnderParentsKey => Some(PlantedFault::SealUnderParentsKey),
            Self::WriteWhileRekeying => Some(PlantedFault::WriteWhileRekeying),
            Self::ResealBesideWrites => Some(PlantedFault::ResealBesideWrites),
            Self::RecordResealedEarly => Some(PlantedFault::RecordResealedEarly),
            Self::SkipRevertDiscards => Some(PlantedFault::SkipRevertDiscards),
            Self::RevertToHead => Some(PlantedFault::RevertToHead),
            Self::RecordRevertEarly => Some(PlantedFault::RecordRevertEarly),
            Self::WithdrawSilently => Some(PlantedFault::WithdrawSilently),
            Self::TrustFirstAnswer => Some(PlantedFault::TrustFirstAnswer),
            _ => None,
        }
    }

    #[cfg(feature = "planted-faults")]
    const fn in_replica(self) -> Option<trivet_replica::planted::PlantedFault> {
        use trivet_replica::planted::PlantedFault;
        match self {
            Self::SkipDurablePromise => Some(PlantedFault::SkipDurablePromise),
            Self::AcceptOlderGeneration => Some(PlantedFault::AcceptOlderGeneration),
            Self::KeepOlderSession => Some(PlantedFault::KeepOlderSession),
            Self::OverclaimIntact => Some(PlantedFault::OverclaimIntact),
            Self::AnswerUnflushed => Some(PlantedFault::AnswerUnflushed),
            Self::ReuseUnstable => Some(PlantedFault::ReuseUnstable),
            Self::AcknowledgeUnwritten => Some(PlantedFault::AcknowledgeUnwritten),
            Self::SkipReplayChecksum => Some(PlantedFault::SkipReplayChecksum),
            Self::RetryFailedFlush => Some(PlantedFault::RetryFailedFlush),
            Self::ForgetDiscards => Some(PlantedFault::ForgetDiscards),
            Self::ForgetOlderVersions => Some(PlantedFault::ForgetOlderVersions),
            Self::FreeSharedBlocks => Some(PlantedFault::FreeSharedBlocks),
            Self::PullHeadOnly => Some(PlantedFault::PullHeadOnly),
            Self::MergeAcrossCut => Some(PlantedFault::MergeAcrossCut),
            Self::KeepReaders => Some(PlantedFault::KeepReaders),
            Self::DiscardWithoutTombstone => Some(PlantedFault::DiscardWithoutTombstone),
            Self::FreeWhatClonesRead => Some(PlantedFault::FreeWhatClonesRead),
            Self::FlattenOverNewer => Some(PlantedFault::FlattenOverNewer),
            Self::UntieUnflushed => Some(PlantedFault::UntieUnflushed),
            Self::ForgetPlacedTags => Some(PlantedFault::ForgetPlacedTags),
            Self::MixTagsInMerge => Some(PlantedFault::MixTagsInMerge),
            _ => None,
        }
    }
}

/// Makes this thread's replicas wrong as said, or right.
#[cfg(feature = "planted-faults")]
pub(crate) fn plant_in_replicas(planted: Option<Planted>) {
    trivet_replica::planted::plant(planted.and_then(Planted::in_replica));
}

#[cfg(not(feature = "planted-faults"))]
pub(crate) const fn plant_in_replicas(_planted: Option<Planted>) {}

impl fmt::Display for Planted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::swarm::dashed(&format!("{self:?}")))
    }
}

/// There is no planted fault of this name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownPlanted(String);

impl fmt::Display for UnknownPlanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing called '{}' can be planted; there are:", self.0)?;
        Planted::ALL.iter().try_for_each(|planted| write!(f, " {planted}"))
    }
}

impl std::error::Error for UnknownPlanted {}

impl FromStr for Planted {
    type Err = UnknownPlanted;

    fn from_str(text: &str) -> Result<Self, UnknownPlanted> {
        let found = Self::ALL.into_iter().find(|planted| planted.to_string() == text);
        found.ok_or(UnknownPlanted(text.to_owned()))
    }
}
