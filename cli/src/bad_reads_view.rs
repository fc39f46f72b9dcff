//! What is shown of reads that gave back something else than was written.

use serde::Serialize;
use std::fmt;
use trivet_api::v1;

/// What an engine, since it started, was given back otherwise than it was written, and did not pass on.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Debug)]
pub(crate) struct BadReadsView {
    /// Blocks that a copy found changed on its medium.
    pub(crate) medium_blocks: u64,
    /// Reads that a copy's device failed.
    pub(crate) device_errors: u64,
    /// Answers that were changed on their way.
    pub(crate) wire_answers: u64,
    /// Blocks of an encrypted volume that a copy gave back otherwise than they were written.
    pub(crate) forged_blocks: u64,
    /// Blocks of which verified reads found that a copy has another version than stands.
    pub(crate) stale_blocks: u64,
}

impl BadReadsView {
    /// Nothing, if nothing was met.
    pub(crate) fn new(met: v1::BadReads) -> Option<Self> {
        let v1::BadReads { medium_blocks, device_errors, wire_answers, forged_blocks, stale_blocks } = met;
        let view = Self { medium_blocks, device_errors, wire_answers, forged_blocks, stale_blocks };
        (met != v1::BadReads::default()).then_some(view)
    }
}

impl fmt::Display for BadReadsView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (self.medium_blocks, "block", "changed on a medium"),
            (self.device_errors, "read", "failed by a device"),
            (self.wire_answers, "answer", "changed on the way"),
            (self.forged_blocks, "block", "not as encrypted"),
            (self.stale_blocks, "block", "older than what stands"),
        ];
        let met = kinds.into_iter().filter(|(count, ..)| *count > 0);
        let met: Vec<String> = met
            .map(|(count, what, how)| format!("{count} {what}{} {how}", if count == 1 { "" } else { "s" }))
            .collect();
        write!(f, "{}, none of which was passed on", met.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_met_is_told() {
        assert_eq!(BadReadsView::new(v1::BadReads::default()), None);
        let met = v1::BadReads { medium_blocks: 3, stale_blocks: 1, ..v1::BadReads::default() };
        let words =
            "3 blocks changed on a medium, 1 block older than what stands, none of which was passed on";
        assert_eq!(BadReadsView::new(met).unwrap().to_string(), words);
    }
}
