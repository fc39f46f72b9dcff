//! Faults planted in the core, to prove that the simulations see them. Not part of what is shipped.

use super::VolumeCore;

/// A way for the core to be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlantedFault {
    /// A write is acknowledged when the first member has answered.
    AcknowledgeFirstAnswer,
    /// The members' tails are not compared on opening.
    SkipReconcile,
    /// Overlapping operations are not ordered.
    IgnoreOverlaps,
    /// A member that comes back is not asked whether it still has what it acknowledged.
    TrustReturningMember,
    /// A flush is answered without asking the members.
    SkipFlush,
}

impl VolumeCore {
    /// Makes the core wrong from now on.
    pub fn plant(&mut self, fault: Option<PlantedFault>) {
        self.planted = fault;
    }
}
