//! The clones that are flattened: each with a job that asks the store, at the pace that all copies share.

use crate::pull::{Flatten, Output, Pace, PullError};
use crate::store::{Reply, RequestError, RequestId, Store};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use trivet_model::VolumeId;
use trivet_wire::{PullReport, PullState};

/// Requests of these jobs have this bit; neither the sessions' nor those of copies do.
const REQUESTS: u64 = 1 << 62;

/// Jobs by volume, so that they take turns in a fixed order. One that has failed is told of, and then forgotten.
pub(super) struct Flattening {
    jobs: BTreeMap<VolumeId, Flatten>,
    /// What the store has been asked: for which volume, under which id of its job.
    asked: HashMap<RequestId, (VolumeId, u64)>,
    next_request: u64,
}

impl Flattening {
    pub(super) fn new() -> Self {
        Self { jobs: BTreeMap::new(), asked: HashMap::new(), next_request: REQUESTS }
    }

    /// Begins to flatten a volume, unless that is under way; how far it is.
    pub(super) fn go_on(&mut self, volume: VolumeId, store: &Store) -> PullReport {
        if let Some(job) = self.jobs.get(&volume) {
            let report = job.report();
            if job.is_over() {
                self.jobs.remove(&volume);
            }
            return report;
        }
        let still = |state, position, detail: String| PullReport {
            state,
            position,
            copied_blocks: 0,
            diverged: Vec::new(),
            detail,
        };
        match store.volume(volume) {
            None => still(PullState::Failed, 0, RequestError::NoSuchVolume(volume).to_string()),
            Some(known) if !known.tied => still(PullState::Finished, known.blocks, String::new()),
            Some(known) => {
                tracing::info!(%volume, "flattening");
                self.jobs.insert(volume, Flatten::new(volume, known.blocks));
                still(PullState::Running, 0, String::new())
            }
        }
    }

    /// Takes the store's answer if it is to a job.
    pub(super) fn store_answered(
        &mut self,
        id: RequestId,
        result: Result<Reply, RequestError>,
    ) -> Option<Result<Reply, RequestError>> {
        let Some((volume, id)) = self.asked.remove(&id) else { return Some(result) };
        if let Some(job) = self.jobs.get_mut(&volume).filter(|job| !job.is_over()) {
            job.store_answered(id, result);
            match job.failure() {
                Some(cause) => tracing::warn!(%volume, %cause, "flattening has failed"),
                None if job.is_over() => tracing::info!(%volume, "flattened: it needs its parent no more"),
                None => {}
            }
        }
        None
    }

    /// Has every job take its next steps; true when the store was asked for something.
    pub(super) fn advance(&mut self, store: &mut Store, now: Duration, pace: &mut Pace) -> bool {
        let mut outputs = Vec::new();
        let mut submitted = false;
        for (volume, job) in &mut self.jobs {
            job.poll(now, pace, &mut outputs);
            for output in outputs.drain(..) {
                let Output::Submit(id, request) = output else { unreachable!("it has no source to ask") };
                let asked = RequestId(self.next_request);
                self.next_request += 1;
                self.asked.insert(asked, (*volume, id));
                store.submit(asked, request);
                submitted = true;
            }
        }
        submitted
    }

    /// Whether something waits for nothing but the pace.
    pub(super) fn wants_more(&self) -> bool {
        self.jobs.values().any(|job| !job.is_over())
    }

    /// The server stops.
    pub(super) fn stop(&mut self) {
        for job in self.jobs.values_mut() {
            job.fail(PullError::Link("the server is stopping".to_owned()));
        }
    }
}
