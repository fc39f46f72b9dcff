//! What is told of a scrub.

use super::Scrub;
use crate::volume::{VolumeCore, VolumeState};
use serde::Serialize;
use std::time::Duration;
use trivet_model::{BLOCK_SIZE_U64, ScrubCounts};

/// How far a scrub is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ScrubStatus {
    /// As ordered.
    pub run: u64,
    /// Whether it has come to the volume's end.
    pub finished: bool,
    /// Everything before this block is done.
    pub position: u64,
    /// The volume's blocks.
    pub total: u64,
    /// What it has found, before this engine began too.
    pub counts: ScrubCounts,
    /// As ordered.
    pub bytes_per_second_max: u64,
    /// Of the volume, in this engine so far.
    pub bytes_per_second: u64,
    /// When it will have ended, at this rate.
    pub seconds_left: Option<u64>,
    /// Why it does not get on now.
    pub waits: Option<String>,
}

impl VolumeCore {
    /// How far it is.
    #[must_use]
    pub fn scrub_status(&self, now: Duration) -> Option<ScrubStatus> {
        let scrub = self.scrub.as_ref()?;
        let elapsed = scrub.finished_at.unwrap_or(now).saturating_sub(scrub.began.0).as_millis();
        let done = u128::from(scrub.position.saturating_sub(scrub.began.1));
        let left = u128::from(self.blocks.saturating_sub(scrub.position));
        let number = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        Some(ScrubStatus {
            run: scrub.run,
            finished: scrub.finished_at.is_some(),
            position: scrub.position.min(self.blocks),
            total: self.blocks,
            counts: scrub.counts.clone(),
            bytes_per_second_max: scrub.pace.bytes_per_second(),
            bytes_per_second: number(done * u128::from(BLOCK_SIZE_U64) * 1000 / elapsed.max(1)),
            seconds_left: (done > 0).then(|| number(left * elapsed / done / 1000)),
            waits: self.what_scrub_waits_for(scrub),
        })
    }

    fn what_scrub_waits_for(&self, scrub: &Scrub) -> Option<String> {
        if scrub.finished_at.is_some() {
            None
        } else if self.state != VolumeState::Open || self.renewing {
            Some("the volume is not open".to_owned())
        } else if !self.required_are_ready() {
            Some("a member is away".to_owned())
        } else {
            scrub.trouble.clone()
        }
    }
}
