//! The protocol, and other ones that are not right.

/// A deviation from the protocol. Each leads to a violation, in a world that `tests/mistakes.rs` names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Variant {
    // What anyone might get wrong.
    /// Acknowledge without a member as soon as the swap that drops it is sent.
    AcknowledgeBeforeDrop,
    /// A promise is forgotten when the replica restarts.
    PromiseNotDurable,
    /// Reads need no lease.
    ReadWithoutLease,
    /// An opener never waits for leases to end.
    OpenWithoutWaiting,
    /// Promote a member before it has everything that was sent before it joined.
    PromoteBeforeDrain,
    /// Promote a member without flushing it.
    PromoteWithoutFlush,
    /// Reconcile by the member with the highest stamp, and rewrite nothing.
    ReconcileByLongestLog,
    /// A dropped member's `since` is the last stamp sent, not the committed one. Does no harm alone: see
    /// `tests/mistakes.rs`.
    SinceTooHigh,
    /// The walk passes over blocks on which the member is ahead.
    PullSkipsDiverged,
    /// Copied blocks replace newer ones.
    PullIgnoresStamps,
    /// The walk begins while writes from before the member received anything are in flight.
    PullBeforeSettled,
    /// A member that is made `Syncing` loses its `since`.
    SyncingForgetsSince,
    /// The walk begins at `since`, whatever the member lost since then.
    BaseIgnoresIntact,
    /// The last in-sync member may be dropped.
    DropLast,
    /// A round of flushes does not await a member that has joined and is not promoted yet.
    FlushSkipsJoined,
    /// A swap whose answer is lost is taken as not done when the record does not show it.
    UnknownSwapForgotten,

    // What docs/protocol.md said, or left open, when this model was written (ADR 7), and first corrections of that.
    /// The read lease counts in-sync members only, not those that have joined.
    LeaseWithoutJoined,
    /// A member that is being dropped is still read from.
    ReadFromLeaving,
    /// A member whose promotion is under way and that fails is no longer counted on.
    PromotingForgotten,
    /// An opener drops members although none that promised is sure to hold what it acknowledged.
    OpenWithoutWhole,
    /// An opener takes a member for one that lost nothing when nothing of what it lost has left a trace.
    WholeByIntact,
    /// A member is dropped while no other is connected.
    DropUnseen,
    /// The wait that an opening owes is forgotten when it crashes.
    WaitForgotten,
    /// An opening lowers `since` only when it also drops someone.
    LowerOnlyWithDrop,
    /// An opening lowers the `since` of `Stale` members only, not of `Syncing` ones.
    LowerOnlyStale,
    /// Members that are not in sync are told the progress of those that are.
    SyncingToldProgress,
    /// Members are told progress while they are being made alike.
    ReconcilingToldProgress,
    /// As `SyncingToldProgress`, but the swap to `Syncing` records the member's base; a later attempt that finds a lower one does not.
    BaseRecordedOnce,
    /// After reconciling, `committed` is the beginning of the new generation, though nothing was written in it.
    CommittedJumps,
    /// After the swap that an opening does, members are made alike at once, even those opened again
    /// since the swap's `since` was worked out.
    DecideOnce,
}

impl Variant {
    /// First corrections of what was written, which do not go far enough.
    pub const HALF_MEASURES: [Self; 2] = [Self::WholeByIntact, Self::BaseRecordedOnce];

    /// What anyone might get wrong.
    pub const MISTAKES: [Self; 16] = [
        Self::AcknowledgeBeforeDrop,
        Self::PromiseNotDurable,
        Self::ReadWithoutLease,
        Self::OpenWithoutWaiting,
        Self::PromoteBeforeDrain,
        Self::PromoteWithoutFlush,
        Self::ReconcileByLongestLog,
        Self::SinceTooHigh,
        Self::PullSkipsDiverged,
        Self::PullIgnoresStamps,
        Self::PullBeforeSettled,
        Self::SyncingForgetsSince,
        Self::BaseIgnoresIntact,
        Self::DropLast,
        Self::FlushSkipsJoined,
        Self::UnknownSwapForgotten,
    ];

    /// The protocol as it was written: all of these at once.
    pub const AS_WRITTEN: [Self; 12] = [
        Self::LeaseWithoutJoined,
        Self::ReadFromLeaving,
        Self::PromotingForgotten,
        Self::OpenWithoutWhole,
        Self::DropUnseen,
        Self::WaitForgotten,
        Self::LowerOnlyWithDrop,
        Self::LowerOnlyStale,
        Self::SyncingToldProgress,
        Self::ReconcilingToldProgress,
        Self::CommittedJumps,
        Self::DecideOnce,
    ];
}
