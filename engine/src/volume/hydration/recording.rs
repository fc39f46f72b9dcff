//! The cursor, stable and on record: who opens the volume next begins there.

use super::chunks::{CHUNK_BLOCKS, Job};
use crate::volume::control::Purpose;
use crate::volume::planted::PlantedFault as Planted;
use crate::volume::{Action, VolumeCore, VolumeState};
use std::time::Duration;
use trivet_model::VolumeRecord;

/// How often the cursor is recorded, at most.
const RECORD_EVERY: Duration = Duration::from_secs(2);

impl VolumeCore {
    /// Has what is below the cursor made stable, to record it.
    pub(super) fn make_stable(&mut self, now: Duration) {
        let open = self.state == VolumeState::Open;
        let early = self.has_planted(Planted::RecordUnstableHydration);
        let Some(hydration) = self.hydration.as_deref_mut().filter(|_| open) else { return };
        let block = hydration.cursor * CHUNK_BLOCKS;
        let done = hydration.cursor == hydration.end;
        let due = done || now.saturating_sub(hydration.recorded_at) >= RECORD_EVERY;
        let ahead = block > hydration.recorded || done;
        if !due || !ahead || hydration.flushing || hydration.stable.is_some() {
            return;
        }
        hydration.recorded_at = now;
        if early {
            hydration.stable = Some(block);
            return self.run_errand(Purpose::Hydration);
        }
        hydration.flushing = true;
        let tag = hydration.job(Job::Flush { cursor: block });
        self.await_flush(now, tag);
    }

    /// Whether a cursor is stable and not recorded.
    pub(in crate::volume) fn awaits_hydration_record(&self) -> bool {
        self.hydration.as_ref().is_some_and(|hydration| hydration.stable.is_some())
    }

    /// The record with the cursor that is stable; nothing when it says so already.
    pub(in crate::volume) fn with_hydration(&self, record: &VolumeRecord) -> Option<VolumeRecord> {
        let hydration = self.hydration.as_ref()?;
        let stable = hydration.stable?;
        let mut wanted = record.clone();
        let import = wanted.import.as_mut()?;
        if stable >= hydration.end * CHUNK_BLOCKS {
            wanted.import = None;
        } else if import.hydrated < stable {
            import.hydrated = stable;
        } else {
            return None;
        }
        Some(wanted)
    }

    /// The record says how far hydration is.
    pub(in crate::volume) fn hydration_recorded(&mut self, now: Duration) {
        let Some(hydration) = &mut self.hydration else { return };
        let Some(stable) = hydration.stable.take() else { return };
        hydration.recorded = stable;
        if stable >= hydration.end * CHUNK_BLOCKS {
            assert!(hydration.blocked.is_empty(), "who waits for hydrated chunks is not blocked");
            self.hydration = None;
            tracing::info!(volume = %self.options.volume, "all of the volume's source is imported");
            self.actions.push(Action::StateChanged);
        }
        self.advance_hydration(now);
    }
}
