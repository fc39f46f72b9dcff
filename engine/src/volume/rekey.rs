//! Going over to another data key while the volume is served.
//!
//! ```text
//!  ordered, with the key ─► the record is read ─► no write gets a stamp ─► the record: the new key, and the last
//!  stamp of the old ─► writes go on, sealed under the new one; blocks are sealed anew in the background (reseal.rs)
//! ```
//!
//! The record says which key the volume shall have next before anybody is told that key; an order for another
//! one comes to nothing. Swapping the new key in is the one point at which anything changes: from when it is asked
//! for until it is known what became of it, no write gets a stamp, so that whatever has a stamp was sealed under the
//! key that the record names for it. Before that, and while nobody can be asked, I/O goes on. What is on its way has
//! its stamps, and is sealed already: nothing need be drained.
//!
//! The old key stays in the record, sealed under the new one, for as long as something needs it.

use super::control::Purpose;
use super::planted::PlantedFault as Planted;
use super::seal::Ciphers;
use super::state::Failure;
use super::{Tag, VolumeCore, VolumeState};
use crate::request::{IoError, IoReply};
use std::time::Duration;
use trivet_crypto::{DataKey, seal_older};
use trivet_model::{Hex, OLDER_KEYS_MAX, OlderKey, VolumeRecord};

/// An order to go over to a key.
#[derive(Debug)]
pub(super) struct Rekeying {
    pub(super) tag: Tag,
    key: DataKey,
    /// The record has been asked for since: what it says counts.
    is_asked: bool,
    /// It has been asked to have the key, and may have it.
    is_undecided: bool,
}

impl VolumeCore {
    /// Goes over to the data key that the record names as the next one. Answered by an
    /// [`Action::Complete`](super::Action::Complete) once the record says so: from then on all is sealed under it,
    /// and what was before is sealed anew in the background. Done already where the record says so.
    pub fn rekey(&mut self, now: Duration, tag: Tag, key: DataKey) {
        self.now = now;
        let present = self.options.key.as_ref().map(DataKey::id);
        let refused = self.check_changeable().and_then(|()| {
            if present.is_none() {
                Err(IoError::Invalid("the volume is not encrypted"))
            } else if self.rekeying.is_some() {
                Err(IoError::Invalid("the volume is going over to another key already"))
            } else {
                Ok(())
            }
        });
        if let Err(error) = refused {
            return self.complete(tag, Err(error));
        }
        if present == Some(key.id()) {
            return self.complete(tag, Ok(IoReply::Done));
        }
        // A conversation with the authority that is under way may have begun too early: then the next one counts.
        let is_asked = self.errand.is_none();
        self.rekeying = Some(Rekeying { tag, key, is_asked, is_undecided: false });
        if is_asked {
            self.run_errand(Purpose::Keys);
        }
    }

    /// Whether no write gets a stamp, since it is not known yet which key it would be sealed under.
    pub(super) fn is_rekeying(&self) -> bool {
        let serving = matches!(self.state, VolumeState::Open | VolumeState::Closing);
        let undecided = self.rekeying.as_ref().is_some_and(|rekeying| rekeying.is_undecided);
        serving && undecided && !self.has_planted(Planted::WriteWhileRekeying)
    }

    /// The record is asked to be this from now on.
    pub(super) fn note_rekeying(&mut self, wanted: &VolumeRecord) {
        if let Some(rekeying) = &mut self.rekeying {
            rekeying.is_undecided |= wanted.key == Some(rekeying.key.id());
        }
    }

    pub(super) fn awaits_keys_record(&self) -> bool {
        let serving = matches!(self.state, VolumeState::Open | VolumeState::Closing);
        serving && (self.rekeying.is_some() || self.awaits_reseal_record())
    }

    /// The record as it should be; `None` when it is so.
    pub(super) fn with_keys(&self, record: &VolumeRecord) -> Option<VolumeRecord> {
        let mut wanted = record.clone();
        if let Some(Rekeying { key, .. }) = &self.rekeying {
            if let Some(present) = self.options.key.as_ref().filter(|_| self.may_rekey(record, key)) {
                (wanted.key, wanted.next_key) = (record.next_key, None);
                wanted.older_keys.push(OlderKey {
                    key: present.id(),
                    until: self.log.last(),
                    sealed: Some(Hex(seal_older(key, present))),
                    position: 0,
                    changed: 0,
                    rewritten: None,
                });
            }
        } else {
            self.note_resealed(&mut wanted.older_keys);
        }
        (wanted != *record).then_some(wanted)
    }

    fn may_rekey(&self, record: &VolumeRecord, to: &DataKey) -> bool {
        let present = self.options.key.as_ref().map(DataKey::id);
        record.key == present && record.next_key == Some(to.id()) && record.older_keys.len() < OLDER_KEYS_MAX
    }

    /// The record says what it should, or that somebody else wants something else.
    pub(super) fn keys_recorded(&mut self, now: Duration) {
        let Some((record, _)) = &self.record else { return };
        match self.rekeying.take() {
            None => return self.resealing_recorded(now),
            Some(Rekeying { tag, key, .. }) if record.key == Some(key.id()) => self.gone_over(now, tag, key),
            Some(rekeying) if !rekeying.is_asked => {
                // It was ordered while something else was being recorded.
                self.rekeying = Some(Rekeying { is_asked: true, ..rekeying });
                self.resealing_recorded(now);
                self.run_errand(Purpose::Keys);
            }
            Some(Rekeying { tag, .. }) => {
                let why = if record.older_keys.len() < OLDER_KEYS_MAX {
                    "the record does not name this key as the volume's next"
                } else {
                    "the record keeps as many older data keys as it can"
                };
                self.complete(tag, Err(IoError::Invalid(why)));
            }
        }
        self.release_held_writes(now);
        self.begin_flush(now);
        self.begin_resealing(now);
        self.check_closing(now);
    }

    /// The record has the new key.
    fn gone_over(&mut self, now: Duration, tag: Tag, key: DataKey) {
        let Some((record, _)) = &self.record else { return };
        match Ciphers::new(&key, record) {
            Ok(ciphers) => self.ciphers = Some(ciphers),
            Err(older) => {
                self.complete(tag, Err(IoError::Closed));
                self.hang_up(now);
                return self.fail(now, Failure::OlderKey(older));
            }
        }
        tracing::info!(volume = %self.options.volume, key = %key.id(), "it has another data key");
        self.options.key = Some(key);
        self.resealing = None;
        self.complete(tag, Ok(IoReply::Done));
    }

    /// Keys that have been destroyed are forgotten here, too.
    pub(super) fn forget_older_keys(&mut self, record: &VolumeRecord) {
        let (Some(key), Some(ciphers)) = (&self.options.key, &self.ciphers) else { return };
        if record.key == Some(key.id())
            && ciphers.differ(record)
            && let Ok(ciphers) = Ciphers::new(key, record)
        {
            self.ciphers = Some(ciphers);
        }
    }
}
