//! Which operations go wrong.

use crate::DiskOp;
use crate::random::Random;

/// A way for one operation to go wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A read fails.
    ReadError,
    /// A write fails, with any of its sectors written.
    WriteError,
    /// A flush fails. What it was to make stable is still read, but no later flush makes it stable.
    FlushError,
    /// An extension finds no space.
    NoSpace,
    /// A write stores one bit turned over, and reports success.
    FlippedBit,
    /// A read returns another place's blocks, and reports success.
    MisdirectedRead,
    /// A write goes to another place, and reports success.
    MisdirectedWrite,
}

/// How often faults happen by themselves: one in so many operations of the kind; 0 is never.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OneIn(pub u32);

/// The rate of each fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultRates {
    /// Of [`Fault::ReadError`].
    pub read_error: OneIn,
    /// Of [`Fault::WriteError`].
    pub write_error: OneIn,
    /// Of [`Fault::FlushError`].
    pub flush_error: OneIn,
    /// Of [`Fault::NoSpace`].
    pub no_space: OneIn,
    /// Of [`Fault::FlippedBit`].
    pub flipped_bit: OneIn,
    /// Of [`Fault::MisdirectedRead`].
    pub misdirected_read: OneIn,
    /// Of [`Fault::MisdirectedWrite`].
    pub misdirected_write: OneIn,
}

impl Fault {
    fn can_hit(self, operation: &DiskOp) -> bool {
        match operation {
            DiskOp::Read { .. } => matches!(self, Self::ReadError | Self::MisdirectedRead),
            DiskOp::Write { .. } => {
                matches!(self, Self::WriteError | Self::FlippedBit | Self::MisdirectedWrite)
            }
            DiskOp::Flush => self == Self::FlushError,
            DiskOp::Extend { .. } => self == Self::NoSpace,
        }
    }
}

impl FaultRates {
    fn all(&self) -> [(Fault, OneIn); 7] {
        [
            (Fault::ReadError, self.read_error),
            (Fault::WriteError, self.write_error),
            (Fault::FlushError, self.flush_error),
            (Fault::NoSpace, self.no_space),
            (Fault::FlippedBit, self.flipped_bit),
            (Fault::MisdirectedRead, self.misdirected_read),
            (Fault::MisdirectedWrite, self.misdirected_write),
        ]
    }
}

/// Faults to come: by rate, and scheduled ones with the operations of their kind to let pass.
#[derive(Debug, Default)]
pub(super) struct FaultPlan {
    rates: FaultRates,
    scheduled: Vec<(Fault, u64)>,
}

impl FaultPlan {
    pub(super) fn set_rates(&mut self, rates: FaultRates) {
        self.rates = rates;
    }

    pub(super) fn schedule(&mut self, fault: Fault, after: u64) {
        self.scheduled.push((fault, after));
    }

    /// What happens to the operation now submitted. Scheduled faults come first; one that is due
    /// while another happens waits for the next operation.
    pub(super) fn next(&mut self, operation: &DiskOp, random: &mut Random) -> Option<Fault> {
        let due = self.scheduled.iter().position(|(fault, after)| *after == 0 && fault.can_hit(operation));
        for (fault, after) in &mut self.scheduled {
            if fault.can_hit(operation) {
                *after = after.saturating_sub(1);
            }
        }
        if let Some(due) = due {
            return Some(self.scheduled.remove(due).0);
        }
        let drawn = self
            .rates
            .all()
            .into_iter()
            .filter(|(fault, _)| fault.can_hit(operation))
            .find(|(_, OneIn(rate))| *rate > 0 && random.below(u64::from(*rate)) == 0);
        drawn.map(|(fault, _)| fault)
    }
}
