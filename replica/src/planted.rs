//! Faults planted in the replica, to prove that the simulator sees them. Without the feature
//! `planted-faults` nothing can be planted, and the hooks compile to nothing.

/// A way for the replica to be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlantedFault {
    /// A promise is answered before it is durable, and never written.
    SkipDurablePromise,
    /// An opening with a lower generation than the promised one is let in.
    AcceptOlderGeneration,
    /// An older session goes on beside the newer one.
    KeepOlderSession,
    /// After a loss of power everything up to the highest stamp found is called intact.
    OverclaimIntact,
    /// A flush is answered at once.
    AnswerUnflushed,
    /// A freed block is used again before the record that freed it is stable.
    ReuseUnstable,
    /// A batch's writes are answered before journal and data are written.
    AcknowledgeUnwritten,
    /// Replay believes records whose data did not reach the medium.
    SkipReplayChecksum,
    /// After a flush of the device has failed, it is flushed again, and that is believed.
    RetryFailedFlush,
    /// Discards are not told among what has changed.
    ForgetDiscards,
    /// What a snapshot shows is freed when it is overwritten in memory.
    ForgetOlderVersions,
    /// Thinning out frees what an older snapshot still shows.
    FreeSharedBlocks,
    /// A pull brings what the volume is now, not what snapshots show.
    PullHeadOnly,
    /// Versions below a cut are merged into the state above it.
    MergeAcrossCut,
    /// Who reads a copy is not hung up on when it begins anew.
    KeepReaders,
    /// A discard in a clone leaves no tombstone where the clone had nothing: the parent's block shows.
    DiscardWithoutTombstone,
    /// A snapshot that clones read from is deleted with what it shows.
    FreeWhatClonesRead,
    /// What a clone copies from its parent takes the place of what was written to the clone.
    FlattenOverNewer,
    /// A clone's parent is let go before what was copied from it is stable.
    UntieUnflushed,
    /// What is placed gets no tag of its own.
    ForgetPlacedTags,
    /// The tags of a group get into the map in another order.
    MixTagsInMerge,
}

#[cfg(feature = "planted-faults")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<PlantedFault>> = const { std::cell::Cell::new(None) };
}

/// Makes every replica of this thread wrong from now on.
#[cfg(feature = "planted-faults")]
pub fn plant(fault: Option<PlantedFault>) {
    PLANTED.set(fault);
}

#[cfg(feature = "planted-faults")]
pub(crate) fn is(fault: PlantedFault) -> bool {
    PLANTED.get() == Some(fault)
}

#[cfg(not(feature = "planted-faults"))]
pub(crate) const fn is(_fault: PlantedFault) -> bool {
    false
}
