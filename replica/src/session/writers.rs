//! Who may write to which volume: fencing.
//!
//! A replica promises a (generation, session number) and refuses whatever is below for ever. The
//! promise counts from the moment it is admitted, long before it is durable: refusing too early
//! is always safe, and what a promise on its way has superseded must not come back.

use super::ConnectionId;
use crate::planted::{self, PlantedFault};
use hashbrown::HashMap;
use trivet_model::{Epoch, Generation, VolumeId};

/// What an opening asks a replica to promise, and what it has promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Promise {
    pub(super) generation: Generation,
    pub(super) epoch: Epoch,
    /// Tells a reconnect of the same opening from another engine that won the same generation
    /// by mistake.
    pub(super) session: u64,
}

/// Why an `Open` is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "generation {asked_generation} at epoch {asked_epoch} comes too late: \
     generation {generation} at epoch {epoch} has been promised{}",
    if *.other_session { " to another opening" } else { "" }
)]
pub struct Fenced {
    /// As asked.
    pub asked_generation: Generation,
    /// As asked.
    pub asked_epoch: Epoch,
    /// As promised.
    pub generation: Generation,
    /// As promised.
    pub epoch: Epoch,
    /// Whether the same generation was promised to another opening.
    pub other_session: bool,
}

#[derive(Debug, Default)]
struct Volume {
    writer: Option<ConnectionId>,
    /// Promises admitted and not yet finished.
    pending: usize,
    /// The last promise admitted; counts while any is pending.
    admitted: Promise,
}

/// Every volume that is open for writing, or about to be.
#[derive(Debug, Default)]
pub(super) struct Writers {
    volumes: HashMap<VolumeId, Volume>,
}

impl Writers {
    /// Admits an opening above the `durable` promise and all that are on their way. Returns the
    /// connection that it supersedes.
    pub(super) fn admit(
        &mut self,
        volume: VolumeId,
        durable: Promise,
        asked: Promise,
        by: ConnectionId,
    ) -> Result<Option<ConnectionId>, Fenced> {
        let promised = match self.volumes.get(&volume) {
            Some(known) if known.pending > 0 => known.admitted,
            _ => durable,
        };
        let same = asked.generation == promised.generation;
        let newer = asked.generation > promised.generation;
        let reconnect = same && asked.session == promised.session;
        let let_in = planted::is(PlantedFault::AcceptOlderGeneration);
        if !let_in && (!(newer || reconnect) || asked.epoch < promised.epoch) {
            return Err(Fenced {
                asked_generation: asked.generation,
                asked_epoch: asked.epoch,
                generation: promised.generation,
                epoch: promised.epoch,
                other_session: same && !reconnect,
            });
        }
        let known = self.volumes.entry(volume).or_default();
        known.pending += 1;
        known.admitted = asked;
        Ok(known.writer.replace(by))
    }

    /// A promise is durable, or has failed: from now on the store's word counts.
    pub(super) fn promise_finished(&mut self, volume: VolumeId) {
        let known = self.volumes.get_mut(&volume).expect("a finished promise was admitted");
        known.pending -= 1;
        self.forget_if_idle(volume);
    }

    /// A connection stops writing, if it is still the one that may.
    pub(super) fn release(&mut self, volume: VolumeId, connection: ConnectionId) {
        if let Some(known) = self.volumes.get_mut(&volume)
            && known.writer == Some(connection)
        {
            known.writer = None;
            self.forget_if_idle(volume);
        }
    }

    /// Whether a connection may write, or is about to.
    pub(super) fn is_open(&self, volume: VolumeId) -> bool {
        self.volumes.get(&volume).is_some_and(|known| known.writer.is_some())
    }

    fn forget_if_idle(&mut self, volume: VolumeId) {
        if self.volumes.get(&volume).is_some_and(|known| known.writer.is_none() && known.pending == 0) {
            self.volumes.remove(&volume);
        }
    }
}
