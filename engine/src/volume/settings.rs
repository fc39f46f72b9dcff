//! Following what a volume's record says of durability and limits, and changing it.
//!
//! ```text
//!  changing: the record says so ─► in force here ─► all written before is settled ─► flushed ─► answered
//! ```
//!
//! In a volume that is *write-through*, every write and discard goes out as one that is to be stable
//! before it is answered. What members have queued when their device is ready shares a flush
//! (`replica/src/store/flush.rs`), so a queue of writes costs one flush a batch, and no round trip more.
//! A change is answered only when everything acknowledged until then is stable: from the answer on,
//! nothing that was acknowledged, ever, can be lost with the power.

use super::control::Purpose;
use super::planted::PlantedFault as Planted;
use super::state::READ_ONLY;
use super::throttle::Throttle;
use super::{Tag, VolumeCore};
use crate::request::{IoError, IoReply};
use std::time::Duration;
use trivet_model::{Durability, Stamp, VolumeRecord, VolumeSettings};

/// Settings being changed, or to be followed.
#[derive(Debug)]
pub(super) struct Changing {
    tag: Tag,
    /// What the record shall say; `None` for whatever it says.
    wanted: Option<VolumeSettings>,
    /// The record's are in force. What was written up to here is flushed once it is settled.
    until: Option<Stamp>,
}

impl VolumeCore {
    /// Has the record say these settings, and puts them in force; with `None`, those that the record
    /// has by now. Answered by an [`Action::Complete`](super::Action::Complete) when they are in force,
    /// and where writes are stable from now on, everything acknowledged before is, too.
    pub fn change_settings(&mut self, now: Duration, tag: Tag, wanted: Option<VolumeSettings>) {
        self.now = now;
        let refused = self.check_open().and_then(|()| {
            if self.options.read_only && wanted.is_some() {
                Err(READ_ONLY)
            } else if self.changing.is_some() {
                Err(IoError::Invalid("the volume's settings are being changed already"))
            } else {
                Ok(())
            }
        });
        if let Err(error) = refused {
            return self.complete(tag, Err(error));
        }
        self.changing = Some(Changing { tag, wanted, until: None });
        // A reading of the record that is under way may have begun too early: then the next one counts.
        if self.errand.is_none() {
            self.run_errand(Purpose::Settings);
        }
    }

    /// Whether the record is to be read or changed for settings.
    pub(super) fn awaits_settings(&self) -> bool {
        self.changing.as_ref().is_some_and(|changing| changing.until.is_none())
    }

    pub(super) fn take_changing_tag(&mut self) -> Option<Tag> {
        self.changing.take().map(|changing| changing.tag)
    }

    /// The record with the settings that are wanted; `None` when it has them.
    pub(super) fn with_settings(&self, record: &VolumeRecord) -> Option<VolumeRecord> {
        let wanted = self.changing.as_ref()?.wanted.as_ref()?;
        (*wanted != record.settings).then(|| VolumeRecord { settings: wanted.clone(), ..record.clone() })
    }

    /// The record has been read for its settings, or swapped: those it has are in force.
    pub(super) fn settings_recorded(&mut self, now: Duration) {
        let last = self.log.last();
        if let Some(changing) = &mut self.changing {
            changing.until = Some(last);
        }
        self.settle_settings(now);
        self.pump(now);
    }

    /// A write is settled: it may have been the last from before the change.
    pub(super) fn settle_settings(&mut self, now: Duration) {
        let Some(Changing { until: Some(until), .. }) = &self.changing else { return };
        if !self.log.is_settled_to(*until) {
            return;
        }
        let Some(Changing { tag, .. }) = self.changing.take() else { return };
        if self.is_write_through() && !self.has_planted(Planted::SkipSwitchFlush) {
            self.await_flush(now, tag);
        } else {
            self.complete(tag, Ok(IoReply::Done));
        }
    }

    /// Does as the record says from now on.
    pub(super) fn follow_settings(&mut self, now: Duration, settings: &VolumeSettings) {
        let limits = |settings: &VolumeSettings| (settings.iops_limit, settings.bandwidth_limit);
        if limits(settings) != limits(&self.settings) {
            self.throttle = Throttle::new(settings, now);
        }
        self.settings.clone_from(settings);
    }

    /// Whether a write is acknowledged only when it is stable.
    pub(super) fn is_write_through(&self) -> bool {
        self.settings.durability == Durability::WriteThrough
    }
}
