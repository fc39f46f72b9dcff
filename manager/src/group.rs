//! One snapshot over several volumes, at one moment and all or nothing.
//!
//! ```text
//!  all hold ─► all cut ─► records read ─► all confirm ─► one commit ─► all told
//!                             ▲  a record has changed meanwhile │
//!                             └─────────────────────────────────┘
//! ```
//!
//! No cut is taken before every engine holds its writes, and each holds until its own, so no write is in one
//! volume's snapshot that was asked for after the acknowledgement of one that is missing in another's. An engine
//! cuts only if it has held all the time; if one has not, nothing is recorded.
//!
//! The commit goes by the revisions of records read before the engines said that they are ready. An engine
//! that gives up changes its record, so a commit that is late fails; one that was opened anew has done so
//! too, and its cuts are of a generation that the record no longer has (`engine/src/volume/group.rs`).

use crate::control::Refusal;
use std::task::Poll;
use std::time::Duration;
use trivet_model::{GroupStep, Revision, SnapshotRecord, Stamp, VolumeRecord};

/// For how long engines hold writes at most.
const HOLD: Duration = Duration::from_secs(5);
/// How often the commit is tried when records change under it.
const COMMITS_MAX: usize = 10;

/// The volumes, as whoever coordinates sees them.
pub(crate) trait Volumes {
    /// Tells one volume's engine the next step; a cut is answered with its stamp.
    async fn tell(&self, volume: usize, step: GroupStep) -> Result<Option<Stamp>, Refusal>;
    /// The records, in the order of the volumes.
    fn read(&self) -> Result<Vec<(VolumeRecord, Revision)>, Refusal>;
    /// Writes all of them in one commit, or none because one has another revision: `false`.
    fn commit(&self, records: &[(VolumeRecord, Revision)]) -> Result<bool, Refusal>;
}

/// Takes the snapshots `wanted`, one of each volume.
///
/// # Errors
/// [`Refusal`]: nothing has been taken of any.
pub(crate) async fn take(volumes: &impl Volumes, wanted: &[SnapshotRecord]) -> Result<(), Refusal> {
    let taken = attempt(volumes, wanted).await;
    let last = if taken.is_ok() { GroupStep::Settle } else { GroupStep::Abandon };
    if let Err(refusal) = tell_all(volumes, wanted.len(), |_| last.clone()).await {
        // The record says what became of it, and the engine reads that by itself.
        tracing::debug!("an engine does not hear of the end of a snapshot: {refusal}");
    }
    taken
}

async fn attempt(volumes: &impl Volumes, wanted: &[SnapshotRecord]) -> Result<(), Refusal> {
    let count = wanted.len();
    let milliseconds = u64::try_from(HOLD.as_millis()).unwrap_or(u64::MAX);
    tell_all(volumes, count, |_| GroupStep::Hold { milliseconds }).await?;
    let cuts = tell_all(volumes, count, |volume| GroupStep::Cut(wanted[volume].clone())).await?;
    for _ in 0..COMMITS_MAX {
        let mut records = volumes.read()?;
        for (((record, _), cut), snapshot) in records.iter_mut().zip(&cuts).zip(wanted) {
            add(record, *cut, snapshot)?;
        }
        tell_all(volumes, count, |_| GroupStep::Confirm).await?;
        if volumes.commit(&records)? {
            return Ok(());
        }
    }
    Err(Refusal::Raced)
}

/// Puts a snapshot into a record, if the engine that has cut it still owns the volume.
fn add(record: &mut VolumeRecord, cut: Option<Stamp>, snapshot: &SnapshotRecord) -> Result<(), Refusal> {
    let (volume, name) = (record.name.clone(), snapshot.name.clone());
    let cut = cut.filter(|cut| cut.generation() == record.generation);
    let cut = cut.ok_or_else(|| Refusal::OpenedAnew(volume.clone()))?;
    if record.snapshots.iter().any(|known| known.name == name) {
        return Err(Refusal::SnapshotExists { volume, name });
    }
    record.snapshots.push(SnapshotRecord { cut, ..snapshot.clone() });
    Ok(())
}

/// Tells all at once; answers in the order of volumes, or the first refusal once all have answered.
async fn tell_all(
    volumes: &impl Volumes,
    count: usize,
    step: impl Fn(usize) -> GroupStep,
) -> Result<Vec<Option<Stamp>>, Refusal> {
    let mut told: Vec<_> = (0..count).map(|volume| Box::pin(volumes.tell(volume, step(volume)))).collect();
    let mut answers: Vec<Option<Result<_, Refusal>>> = (0..count).map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (telling, answer) in told.iter_mut().zip(&mut answers).filter(|(_, answer)| answer.is_none()) {
            if let Poll::Ready(said) = telling.as_mut().poll(context) {
                *answer = Some(said);
            }
        }
        if answers.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    answers.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
