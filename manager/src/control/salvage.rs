//! Salvage: going on with a copy that may lack acknowledged writes, because nothing better is left.
//!
//! One commit makes the copy the volume's only member, in a new generation, and names the others for
//! deletion: what they hold beyond it must never mix with what is written from now on. A crash
//! before the commit leaves all as it was, one after it leaves only deletions to be carried out.

use super::deletions::deletion_of;
use super::members::{Server, member_of, number_of, replacement, server};
use super::pools::{self, PoolAnswer, of_pool};
use super::volumes::find;
use super::{Control, Refusal};
use crate::records;
use crate::replica_client::ReplicaConnection;
use trivet_api::v1;
use trivet_model::{Epoch, Member, MemberState, VolumeRecord};

impl Control {
    pub(super) async fn salvage_volume(&self, request: &v1::SalvageVolumeRequest) -> Result<u32, Refusal> {
        let store = self.store.as_ref();
        let (record, _) = find(store, &request.name)?;
        self.check_salvageable(&record, request.force)?;
        if record.import.is_some() {
            // What was imported after this copy was left behind would be zeros.
            return Err(Refusal::ImportLost(record.name));
        }
        let answers = pools::ask_all(store).await?;
        let from = server(&answers, request.from)?;
        may_salvage(&record, &from, &answers, request.force)?;
        if request.dry_run {
            return Ok(from.number);
        }
        // The volume may have grown while it was away.
        let mut connection = ReplicaConnection::connect(&from.address, Some(from.pool)).await?;
        connection.resize_volume(record.id, record.blocks).await?;
        let kept_snapshots = connection.snapshots(record.id).await?;
        self.change_record(record.id, |record| {
            self.check_salvageable(record, request.force)?;
            let kept = may_salvage(record, &from, &answers, request.force)?.clone();
            let others = record.members.iter().map(|member| member.replica);
            let others = others.filter(|&pool| pool != from.pool);
            let (deletion, revision) = deletion_of(store, record.id, others)?;
            let generation = record.generation.next();
            record.generation = generation.ok_or_else(|| Refusal::NoGeneration(record.name.clone()))?;
            record.epoch = Epoch(record.epoch.0 + 1);
            record.owner.clear();
            // What this copy lacks of that is to be done again.
            for older in &mut record.older_keys {
                (older.rewritten, older.position) = (None, 0);
            }
            record.members = vec![Member { state: MemberState::InSync, ..kept }];
            // Those taken while it was away are lost with the other copies.
            record.snapshots.retain(|known| kept_snapshots.contains(&known.id));
            let there = |to| record.snapshots.iter().any(|known| known.id == to);
            record.reverting = record.reverting.take().filter(|reverting| there(reverting.to));
            let mut changes = Vec::new();
            if !deletion.pools.is_empty() {
                changes.push(records::put(&deletion, revision));
            }
            if let Some((replacement, revision)) = replacement(store, record.id)? {
                changes.push(records::remove(&replacement, revision));
            }
            Ok(changes)
        })?;
        tracing::warn!(volume = %record.name, replica = from.number, "salvaged: this copy alone counts now");
        Ok(from.number)
    }

    /// A revert that no copy can be had for must not stand in the way: its engine is fenced.
    fn check_salvageable(&self, record: &VolumeRecord, force: bool) -> Result<(), Refusal> {
        if record.reverting.is_some() { Ok(()) } else { self.check_unused(record, force) }
    }
}

/// The member to be kept; refuses while a copy that lacks nothing can be had.
fn may_salvage<'a>(
    record: &'a VolumeRecord,
    from: &Server,
    answers: &[PoolAnswer],
    force: bool,
) -> Result<&'a Member, Refusal> {
    let member = member_of(record, from)?;
    let copy = |member: &Member| match of_pool(answers, member.replica) {
        None => Err("the cluster has no such replica server".to_owned()),
        Some(answer) => answer.copy(record.id),
    };
    let name = || record.name.clone();
    if let Err(cause) = copy(member) {
        return Err(Refusal::NoCopy { name: name(), number: from.number, cause });
    }
    let in_sync = record.members.iter().filter(|member| member.state == MemberState::InSync);
    match in_sync.into_iter().find(|member| copy(member).is_ok()) {
        Some(sound) if !force => {
            Err(Refusal::NothingToSalvage { name: name(), number: number_of(answers, sound.replica) })
        }
        _ => Ok(member),
    }
}
