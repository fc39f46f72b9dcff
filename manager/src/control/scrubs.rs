//! Scrubs: begun when someone asks or their time has come, followed, and resumed after any restart.
//!
//! Engines scrub; the manager remembers. In each round every engine concerned is told which scrub shall
//! be under way, from which block on, and says how far it is; that is put into the record every few
//! seconds. An engine that starts anew is thus told where to go on. The rounds change records by
//! compare-and-swap, on a task of their own: an engine that hangs keeps nobody waiting.

use super::volumes::{attachment, find};
use super::{Control, Refusal};
use crate::engine_report::{ScrubReport, want};
use crate::records::{self, FinishedScrub, RecordError, ScrubRecord};
use crate::store::{CommitError, RecordStore};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use trivet_api::{Layout, v1};
use trivet_model::{Revision, ScrubOrder, VolumeId, VolumeRecord};

/// What each member may read a second, unless someone says otherwise.
pub const SCRUB_BYTES_PER_SECOND_DEFAULT: u64 = 100 << 20;
/// How often a position is put into the record.
const SAVED_EVERY: Duration = Duration::from_secs(3);

/// What the rounds remember. A new manager begins with nothing.
#[derive(Debug, Default)]
struct Known {
    /// When the position was saved.
    saved: HashMap<VolumeId, Instant>,
    /// Volumes whose engines are known to scrub nothing, as is wanted.
    quiet: HashMap<VolumeId, Instant>,
}

/// How long it is believed that an engine scrubs nothing.
const QUIET_FOR: Duration = Duration::from_secs(60);

/// The rounds.
#[derive(Debug, Default)]
pub(super) struct Scrubs {
    round: Option<JoinHandle<Known>>,
}

impl Scrubs {
    /// Whether a round is under way.
    #[cfg(test)]
    pub(super) fn is_busy(&self) -> bool {
        self.round.as_ref().is_some_and(|round| !round.is_finished())
    }
}

impl Control {
    /// Begins, ends or schedules scrubs.
    pub(super) async fn scrub_volume(&self, request: &v1::ScrubVolumeRequest) -> Result<u32, Refusal> {
        use v1::scrub_volume_request::Action;
        let store = self.store.as_ref();
        let (volume, _) = find(store, &request.name)?;
        let found = records::read::<ScrubRecord>(store, &volume.id.to_string())?;
        let (mut record, revision) = found
            .map_or_else(|| (unscrubbed(volume.id), None), |(record, revision)| (record, Some(revision)));
        let now = unix_seconds();
        if let Some(every) = request.every_seconds {
            record.every_seconds = (every > 0).then_some(every);
            record.scheduled_at = now;
        }
        if request.bytes_per_second_max > 0 {
            record.bytes_per_second = request.bytes_per_second_max;
        }
        match request.action() {
            Action::Unspecified => {}
            Action::Start => {
                let attached = attachment(store, volume.id)?;
                if attached.is_none_or(|(attachment, _)| attachment.read_only) {
                    return Err(Refusal::NotServed(volume.name));
                }
                if record.running.is_none() {
                    record.begin(now);
                    tracing::info!(volume = %volume.name, "a scrub begins");
                }
            }
            Action::Stop => record.running = None,
        }
        records::write(store, &record, revision)?;
        if request.action() == Action::Stop {
            // The rounds say it again to an engine that does not answer now.
            let _stopped = want(&self.layout.engine_control_socket(&volume.name)?, None).await;
        }
        Ok(0)
    }

    /// One round, unless one is still under way.
    pub(super) async fn follow_scrubs(&mut self) {
        let known = match self.scrubs.round.take() {
            Some(round) if !round.is_finished() => {
                self.scrubs.round = Some(round);
                return;
            }
            Some(round) => round.await.unwrap_or_else(|error| {
                tracing::error!(%error, "a round of scrubs came to no end");
                Known::default()
            }),
            None => Known::default(),
        };
        let (store, layout) = (Arc::clone(&self.store), self.layout.clone());
        self.scrubs.round = Some(tokio::spawn(async move { round(store, &layout, known).await }));
    }
}

const fn unscrubbed(volume: VolumeId) -> ScrubRecord {
    ScrubRecord {
        volume,
        every_seconds: None,
        scheduled_at: 0,
        bytes_per_second: SCRUB_BYTES_PER_SECOND_DEFAULT,
        runs: 0,
        running: None,
        last: None,
    }
}

async fn round(store: Arc<dyn RecordStore>, layout: &Layout, mut known: Known) -> Known {
    let records = match records::list::<ScrubRecord>(store.as_ref()) {
        Ok(records) => records,
        Err(error) => {
            tracing::warn!("scrubs: {error}");
            return known;
        }
    };
    for (record, revision) in records {
        let volume = record.volume;
        if let Err(error) = follow(&store, layout, record, revision, &mut known).await {
            tracing::warn!(%volume, "scrub: {error}");
        }
    }
    known
}

/// Sees to one volume.
async fn follow(
    store: &Arc<dyn RecordStore>,
    layout: &Layout,
    mut record: ScrubRecord,
    revision: Revision,
    known: &mut Known,
) -> Result<(), Refusal> {
    let id = record.volume;
    let Some((volume, served)) = served(store.as_ref(), id)? else { return Ok(()) };
    if !served {
        return Ok(());
    }
    let mut revision = revision;
    if record.is_due(unix_seconds()) {
        record.begin(unix_seconds());
        tracing::info!(volume = %volume.name, "a scrub begins: its time has come");
        match save(store.as_ref(), &record, revision)? {
            Some(saved) => revision = saved,
            None => return Ok(()),
        }
    }
    let socket = layout.engine_control_socket(&volume.name)?;
    let Some(running) = &record.running else {
        let is_quiet = known.quiet.get(&id).is_some_and(|since| since.elapsed() < QUIET_FOR);
        if !is_quiet && want(&socket, None).await.is_some() {
            known.quiet.insert(id, Instant::now());
        }
        return Ok(());
    };
    known.quiet.remove(&id);
    let order = ScrubOrder {
        run: running.run,
        position: running.position,
        bytes_per_second: record.bytes_per_second,
        counts: running.counts.clone(),
    };
    let Some(report) = want(&socket, Some(&order)).await else { return Ok(()) };
    let found = report.volume.scrub.filter(|scrub| scrub.run == order.run);
    let due = known.saved.get(&id).is_none_or(|saved| saved.elapsed() >= SAVED_EVERY);
    if let Some(found) = found
        && note(&mut record, found, due, unix_seconds())
        && save(store.as_ref(), &record, revision)?.is_some()
    {
        known.saved.insert(id, Instant::now());
        tell_end(&volume, &record);
    }
    Ok(())
}

/// The volume, and whether an engine may scrub it.
fn served(store: &dyn RecordStore, id: VolumeId) -> Result<Option<(VolumeRecord, bool)>, RecordError> {
    let Some((volume, _)) = records::read::<VolumeRecord>(store, &id.to_string())? else { return Ok(None) };
    let attached = attachment(store, id)?;
    Ok(Some((volume, attached.is_some_and(|(attachment, _)| !attachment.read_only))))
}

/// Puts what an engine said into the record; whether it is to be saved.
fn note(record: &mut ScrubRecord, found: ScrubReport, due: bool, now: u64) -> bool {
    let Some(running) = &mut record.running else { return false };
    if found.finished {
        record.last = Some(FinishedScrub {
            run: running.run,
            started_at: running.started_at,
            finished_at: now,
            counts: found.counts,
        });
        record.running = None;
        return true;
    }
    if !due || found.position <= running.position {
        return false;
    }
    (running.position, running.counts) = (found.position, found.counts);
    true
}

fn tell_end(volume: &VolumeRecord, record: &ScrubRecord) {
    if let (None, Some(last)) = (&record.running, &record.last) {
        let counts = &last.counts;
        if counts.unrepairable > 0 {
            tracing::error!(volume = %volume.name, ?counts, "scrubbed: some blocks could not be mended");
        } else {
            tracing::info!(volume = %volume.name, ?counts, "scrubbed");
        }
    }
}

/// Writes the record; `None` when someone has changed it meanwhile, whose word stands.
fn save(
    store: &dyn RecordStore,
    record: &ScrubRecord,
    expected: Revision,
) -> Result<Option<Revision>, Refusal> {
    match records::write(store, record, Some(expected)) {
        Ok(revision) => Ok(Some(revision)),
        Err(CommitError::Conflict { .. }) => Ok(None),
        Err(CommitError::Store(error)) => Err(error.into()),
    }
}

/// By the wall clock: it decides when a scrub begins, and never what is right.
#[allow(clippy::disallowed_methods, reason = "schedules are meant in the time of people")]
fn unix_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
