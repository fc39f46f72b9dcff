//! Faults planted in the core, to prove that the checkers see them.

use super::VolumeCore;

/// A mistake that the core makes when told to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    not(any(test, feature = "planted-faults")),
    allow(unreachable_pub, reason = "it is public where faults can be planted")
)]
pub enum PlantedFault {
    /// A write is acknowledged when the first member has answered.
    AcknowledgeFirstAnswer,
    /// The members' tails are not compared on opening.
    SkipReconcile,
    /// Overlapping operations are not ordered.
    IgnoreOverlaps,
    /// A flush is answered without asking the members.
    SkipFlush,
    /// A member that comes back is not asked whether it still has what it acknowledged.
    TrustReturningMember,
    /// A member is left out before the record says so.
    DropBeforeSwap,
    /// Requests are answered without a lease.
    SkipLease,
    /// An opener does not wait for the lease of an engine that it could not fence everywhere.
    SkipLeaseWait,
    /// A member is promoted before what was sent to it has been answered.
    PromoteBeforeDrain,
    /// A member is promoted without a flush.
    PromoteBeforeFlush,
    /// Blocks that only the returning member has are left as they are.
    SkipDiverged,
    /// A member that comes back is believed to hold more than is sure.
    CopyTooLittle,
    /// A member is copied to before all that was sent without it is settled.
    PullBeforeSettled,
    /// Members that are being brought back are read from.
    ReadFromSyncing,
    /// A member is dropped although nobody who stays has been heard of since.
    DropUnwitnessed,
    /// Members whose drop may be on its way to the record are read from.
    ReadFromLeaving,
    /// The record is not told that a wait is owed to an older engine.
    ForgetWait,
    /// A scrub counts what differs when it looks first, beside writes in flight.
    TrustFirstComparison,
    /// A scrub only counts what it should repair.
    SkipScrubRepair,
    /// Writes go on while members are told of a snapshot.
    WriteWhileCutting,
    /// A snapshot is recorded before every member keeps it.
    RecordSnapshotEarly,
    /// A member that comes back is not told of the snapshots that were taken meanwhile.
    ForgetSnapshotsOfReturning,
    /// A revert leaves what the snapshot shows as a hole.
    SkipRevertDiscards,
    /// A revert writes what the volume is.
    RevertToHead,
    /// A revert is recorded as done before its last writes are.
    RecordRevertEarly,
    /// What an engine gives up of a snapshot over several volumes it gives up without changing the record.
    WithdrawSilently,
    /// A reader believes members that the record has not vouched for since they were connected.
    BelieveUnvouched,
    /// Writes of a write-through volume are sent like any others.
    SkipWriteThrough,
    /// Nothing is flushed when a volume becomes write-through.
    SkipSwitchFlush,
    /// What a limit holds back is forgotten.
    ForgetThrottled,
    /// Limits hold nothing back.
    IgnoreLimits,
    /// All blocks of a write are sealed under its first stamp: one nonce for several blocks.
    SealUnderFirstStamp,
    /// Where a block lies takes no part in its seal.
    SealWithoutPlace,
    /// A clone's blocks are sealed under its parent's key.
    SealUnderParentsKey,
    /// A verified read is answered by what the first member says, whatever the witness does.
    TrustFirstAnswer,
    /// Discards of what may still be the source's leave holes.
    DiscardWhileHydrating,
    /// Parts of blocks are zeroed so that the volume does not have the block any more.
    ZeroPartsWhileHydrating,
    /// Consumers reach chunks that are not hydrated.
    SkipHydration,
    /// How far hydration is gets recorded before it is stable.
    RecordUnstableHydration,
    /// What a consumer wrote is written over with the source's.
    HydrateOverWrites,
    /// What an encrypted volume under import has of a chunk, one member says.
    HydrateOnOneWord,
    /// A consumer's request that failed counts as having written its whole chunks.
    BelieveFailedOverwrites,
    /// Writes go on while the record goes over to another data key.
    WriteWhileRekeying,
    /// Blocks are sealed anew outside their place among other I/O.
    ResealBesideWrites,
    /// All is said to be sealed anew when the last of it has been begun.
    RecordResealedEarly,
}

impl VolumeCore {
    /// Makes the core make a mistake from now on.
    #[cfg(any(test, feature = "planted-faults"))]
    pub fn plant(&mut self, fault: Option<PlantedFault>) {
        self.planted = fault;
    }

    #[cfg(any(test, feature = "planted-faults"))]
    pub(super) fn has_planted(&self, fault: PlantedFault) -> bool {
        self.planted == Some(fault)
    }

    #[cfg(not(any(test, feature = "planted-faults")))]
    #[allow(clippy::unused_self, reason = "it has a fault only where one can be planted")]
    pub(super) const fn has_planted(&self, _fault: PlantedFault) -> bool {
        false
    }
}
