//! A visit to a volume that no engine has open: taking a snapshot of it without one.
//!
//! The manager does what an engine does that writes nothing. It claims the next generation in the record, and
//! opens every copy that is in sync under it: from then on no older engine changes one. The copies must be alike,
//! which they are when their last engine closed in good order; making them so is an engine's work. Then each
//! keeps the snapshot, and the record gets it. An engine that opens the volume meanwhile claims a generation above,
//! and the visit fails.

use super::{Control, Refusal};
use crate::records;
use crate::replica_client::ReplicaConnection;
use crate::store::RecordStore;
use trivet_model::{Generation, MemberState, Revision, SnapshotRecord, Stamp, VolumeRecord};
use trivet_wire::Progress;

/// A volume whose copies in sync are open to the manager.
pub(super) struct Visit {
    record: VolumeRecord,
    revision: Revision,
    copies: Vec<ReplicaConnection>,
    /// What every copy holds, and nothing above.
    progress: Progress,
}

impl Control {
    /// Opens a volume that nobody uses.
    pub(super) async fn visit(&self, record: VolumeRecord, revision: Revision) -> Result<Visit, Refusal> {
        let name = record.name.clone();
        if !record.owner.is_empty() {
            return Err(Refusal::Open { name, owner: record.owner });
        }
        let generation = record.generation.next();
        let generation = generation.ok_or_else(|| Refusal::NoGeneration(name.clone()))?;
        let claimed = VolumeRecord { generation, ..record };
        let revision = records::write(self.store.as_ref(), &claimed, Some(revision))?;
        let in_sync = claimed.members.iter().filter(|member| member.state == MemberState::InSync);
        let session = session()?;
        let (mut copies, mut held) = (Vec::new(), Vec::new());
        for member in in_sync {
            let mut copy = ReplicaConnection::connect(&member.address, Some(member.replica)).await?;
            let opened = copy.open_to_write(claimed.id, (generation, claimed.epoch), session).await?;
            held.push((opened.last, opened.progress.committed));
            copies.push(copy);
        }
        let Some(&(last, _)) = held.first() else { return Err(Refusal::NoCopyInSync(name)) };
        let alike = held.iter().all(|of_copy| *of_copy == (last, last));
        let progress = Progress { committed: last, stable: last };
        let visit = Visit { record: claimed, revision, copies, progress };
        if alike {
            return Ok(visit);
        }
        visit.end().await;
        Err(Refusal::NotClosed(name))
    }
}

impl Visit {
    /// Has every copy keep a snapshot, and then the record.
    pub(super) async fn take(
        &mut self,
        store: &dyn RecordStore,
        mut snapshot: SnapshotRecord,
    ) -> Result<(SnapshotRecord, VolumeRecord), Refusal> {
        snapshot.cut = first_stamp(self.record.generation);
        for copy in &mut self.copies {
            copy.create_snapshot(snapshot.id, snapshot.cut).await?;
        }
        self.record.snapshots.push(snapshot.clone());
        self.revision = records::write(store, &self.record, Some(self.revision))?;
        Ok((snapshot, self.record.clone()))
    }

    /// Takes the last snapshot out of the record again, and has the copies let it go.
    pub(super) async fn let_go(&mut self, store: &dyn RecordStore) -> Result<(), Refusal> {
        let Some(snapshot) = self.record.snapshots.pop() else { return Ok(()) };
        self.revision = records::write(store, &self.record, Some(self.revision))?;
        for copy in &mut self.copies {
            copy.delete_snapshot(snapshot.id).await?;
        }
        Ok(())
    }

    /// Closes the copies. One that cannot be told notices that it is alone.
    pub(super) async fn end(mut self) {
        for copy in &mut self.copies {
            if let Err(error) = copy.close(self.progress).await {
                tracing::info!(volume = %self.record.name, %error, "a copy is left without a word");
            }
        }
    }
}

/// No write has it: the visit's generation writes nothing.
fn first_stamp(generation: Generation) -> Stamp {
    match Stamp::new(generation, 1) {
        Some(stamp) => stamp,
        None => unreachable!("a sequence of one fits"),
    }
}

fn session() -> Result<u64, Refusal> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(Refusal::Random)?;
    Ok(u64::from_le_bytes(bytes))
}
