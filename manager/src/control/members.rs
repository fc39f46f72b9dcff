//! Who keeps copies of a volume: adding, removing and replacing members of its record.
//!
//! Invariants:
//! - the record changes by compare-and-swap only, computed from a fresh reading of it: what an engine
//!   changes at the same time is never lost;
//! - a new member begins as stale since ever; only the engine calls it in sync, once it is;
//! - a copy that is in sync, and whose server answers, always remains.

use super::deletions::{deletion_of, spare};
use super::pools::{self, PoolAnswer, of_pool};
use super::volumes::find;
use super::{Control, Refusal};
use crate::records::{self, ReplacementReason, ReplacementRecord, ReplicaRecord, key};
use crate::replica_client::{ReplicaConnection, ReplicaError};
use crate::store::{Change, CommitError, RecordStore};
use trivet_api::v1;
use trivet_model::{Epoch, Member, MemberState, PoolId, Revision, Stamp, VolumeId, VolumeRecord};
use trivet_wire::ErrorCode;

/// How often a change is computed anew because an engine changed the record in between. Engines do
/// so a few times in a membership change, never continually.
const ATTEMPTS_MAX: u32 = 32;

/// What a change of members does to how many a volume shall have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// Nothing.
    AsBefore,
    /// Someone asked for one more or one less: so many it shall have.
    Follows,
}

/// How many members a volume has but for the substitute in a replacement that goes on without `leaver`.
fn lasting(record: &VolumeRecord, store: &dyn RecordStore, leaver: Option<PoolId>) -> Result<u32, Refusal> {
    let goes_on = replacement(store, record.id)?
        .is_some_and(|(replacement, _)| Some(replacement.from) != leaver && Some(replacement.to) != leaver);
    let members = record.members.len() - usize::from(goes_on);
    Ok(u32::try_from(members).unwrap_or(u32::MAX))
}

/// A server of the cluster, whose pool is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Server {
    pub(super) number: u32,
    pub(super) address: String,
    pub(super) pool: PoolId,
}

impl Control {
    pub(super) async fn add_replica(&self, request: &v1::AddReplicaRequest) -> Result<u32, Refusal> {
        let (record, _) = find(self.store.as_ref(), &request.volume)?;
        let answers = pools::ask_all(self.store.as_ref()).await?;
        let to = destination(&record, &answers, request.to)?;
        self.add_member(record.id, &to, None, Wanted::Follows).await?;
        tracing::info!(volume = %record.name, replica = to.number, "a copy is added");
        Ok(to.number)
    }

    pub(super) async fn remove_replica(&self, request: &v1::RemoveReplicaRequest) -> Result<u32, Refusal> {
        let (record, _) = find(self.store.as_ref(), &request.volume)?;
        let answers = pools::ask_all(self.store.as_ref()).await?;
        let from = server(&answers, request.from)?;
        may_remove(&record, &from, &answers)?;
        if !request.dry_run {
            self.remove_member(record.id, &from, &answers, Wanted::Follows)?;
            tracing::info!(volume = %record.name, replica = from.number, "a copy is removed");
        }
        Ok(from.number)
    }

    pub(super) async fn replace_replica(&self, request: &v1::ReplaceReplicaRequest) -> Result<u32, Refusal> {
        let (record, _) = find(self.store.as_ref(), &request.volume)?;
        if replacement(self.store.as_ref(), record.id)?.is_some() {
            return Err(Refusal::Replacing(record.name));
        }
        let answers = pools::ask_all(self.store.as_ref()).await?;
        let from = server(&answers, request.from)?;
        member_of(&record, &from)?;
        let to = destination(&record, &answers, request.to)?;
        let reason = ReplacementReason::Asked;
        let replacement = ReplacementRecord { volume: record.id, from: from.pool, to: to.pool, reason };
        self.add_member(record.id, &to, Some(&replacement), Wanted::AsBefore).await?;
        tracing::info!(volume = %record.name, from = from.number, to = to.number, "a copy is being replaced");
        Ok(to.number)
    }

    /// Makes an empty copy, and a stale member of it: the engine does the rest.
    pub(super) async fn add_member(
        &self,
        volume: VolumeId,
        to: &Server,
        replacement: Option<&ReplacementRecord>,
        wanted: Wanted,
    ) -> Result<(), Refusal> {
        let store = self.store.as_ref();
        let (record, _) = read(store, volume)?;
        // First the record of what may have to be deleted again: from now on a crash leaves a
        // copy that someone knows of.
        let (deletion, revision) = deletion_of(store, volume, [to.pool])?;
        let provisional = records::write(store, &deletion, revision)?;
        let mut connection = ReplicaConnection::connect(&to.address, Some(to.pool)).await?;
        // What is left of an earlier copy there. While an engine still has it open, the server refuses.
        connection.delete_volume(volume).await.map_err(|error| match error {
            ReplicaError::Refused { code: ErrorCode::Busy, .. } => {
                Refusal::StillOpen { name: record.name.clone(), number: to.number }
            }
            error => Refusal::Replica(error),
        })?;
        connection.create_volume(volume, record.blocks, record.key.is_some()).await?;
        self.change_record(volume, |record| {
            if record.members.iter().any(|member| member.replica == to.pool) {
                return Err(Refusal::AlreadyMember { name: record.name.clone(), number: to.number });
            }
            record.members.push(Member {
                replica: to.pool,
                address: to.address.clone(),
                state: MemberState::Stale { since: Stamp::ZERO },
            });
            record.epoch = Epoch(record.epoch.0 + 1);
            if wanted == Wanted::Follows && record.copies > 0 {
                record.copies = record.copies.max(lasting(record, store, None)?);
            }
            let begun = replacement.map(|replacement| records::put(replacement, None));
            Ok([spare(&deletion, provisional, to.pool)].into_iter().chain(begun).collect())
        })
    }

    /// Takes a member out of the record, and has its copy deleted as soon as its server can do so.
    pub(super) fn remove_member(
        &self,
        volume: VolumeId,
        from: &Server,
        answers: &[PoolAnswer],
        wanted: Wanted,
    ) -> Result<(), Refusal> {
        let store = self.store.as_ref();
        self.change_record(volume, |record| {
            may_remove(record, from, answers)?;
            record.members.retain(|member| member.replica != from.pool);
            record.epoch = Epoch(record.epoch.0 + 1);
            if wanted == Wanted::Follows && record.copies > 0 {
                record.copies = record.copies.min(lasting(record, store, Some(from.pool))?);
            }
            let (deletion, revision) = deletion_of(store, volume, [from.pool])?;
            let mut others = vec![records::put(&deletion, revision)];
            // Its replacement is done, or has come to nothing.
            if let Some((replacement, revision)) = replacement_with(store, volume, from.pool)? {
                others.push(records::remove(&replacement, revision));
            }
            Ok(others)
        })
    }

    /// Changes a volume's record, and other records of the owner's with it, in one commit. The change
    /// is computed again whenever an engine was faster.
    pub(super) fn change_record(
        &self,
        volume: VolumeId,
        change: impl Fn(&mut VolumeRecord) -> Result<Vec<Change>, Refusal>,
    ) -> Result<(), Refusal> {
        let store = self.store.as_ref();
        let record_key = key::<VolumeRecord>(&volume.to_string());
        for _ in 0..ATTEMPTS_MAX {
            let (mut record, revision) = read(store, volume)?;
            let mut others = change(&mut record)?;
            let mut changes = vec![records::put(&record, Some(revision))];
            changes.append(&mut others);
            match store.commit(&changes) {
                Err(CommitError::Conflict { key, .. }) if key == record_key => {}
                result => return Ok(result.map(|_| ())?),
            }
        }
        Err(Refusal::Raced)
    }
}

pub(super) fn read(store: &dyn RecordStore, volume: VolumeId) -> Result<(VolumeRecord, Revision), Refusal> {
    let found = records::read::<VolumeRecord>(store, &volume.to_string())?;
    found.ok_or_else(|| Refusal::NoSuchVolume(volume.to_string()))
}

/// The replacement under way in a volume.
pub(super) fn replacement(
    store: &dyn RecordStore,
    volume: VolumeId,
) -> Result<Option<(ReplacementRecord, Revision)>, Refusal> {
    Ok(records::read::<ReplacementRecord>(store, &volume.to_string())?)
}

/// The same, if this pool has a part in it.
pub(super) fn replacement_with(
    store: &dyn RecordStore,
    volume: VolumeId,
    pool: PoolId,
) -> Result<Option<(ReplacementRecord, Revision)>, Refusal> {
    let found = replacement(store, volume)?;
    Ok(found.filter(|(replacement, _)| replacement.from == pool || replacement.to == pool))
}

/// The server with this number.
pub(super) fn server(answers: &[PoolAnswer], number: u32) -> Result<Server, Refusal> {
    let answer = answers.iter().find(|answer| answer.replica.number == number);
    known(&answer.ok_or(Refusal::NoSuchReplica(number))?.replica)
}

fn known(replica: &ReplicaRecord) -> Result<Server, Refusal> {
    let pool = replica.pool.ok_or(Refusal::ReplicaNotMet(replica.number))?;
    Ok(Server { number: replica.number, address: replica.address.clone(), pool })
}

/// The number of the server that has this pool; 0 when the cluster has none.
#[must_use]
pub fn number_of(answers: &[PoolAnswer], pool: PoolId) -> u32 {
    of_pool(answers, pool).map_or(0, |answer| answer.replica.number)
}

pub(super) fn member_of<'a>(record: &'a VolumeRecord, server: &Server) -> Result<&'a Member, Refusal> {
    let missing = || Refusal::NotMember { name: record.name.clone(), number: server.number };
    record.members.iter().find(|member| member.replica == server.pool).ok_or_else(missing)
}

/// Refuses when no copy that is in sync and answers would remain.
fn may_remove(record: &VolumeRecord, from: &Server, answers: &[PoolAnswer]) -> Result<(), Refusal> {
    let (name, number) = (record.name.clone(), from.number);
    member_of(record, from)?;
    let others = record.members.iter().filter(|member| member.replica != from.pool);
    let in_sync: Vec<&Member> = others.filter(|member| member.state == MemberState::InSync).collect();
    if in_sync.is_empty() {
        return Err(Refusal::LastInSync { name, number });
    }
    let answers = |member: &&Member| {
        of_pool(answers, member.replica).is_some_and(|answer| answer.copy(record.id).is_ok())
    };
    if in_sync.iter().any(answers) { Ok(()) } else { Err(Refusal::NoneWouldAnswer { name, number }) }
}

/// Refuses where a server does not work, or has less room than a copy of a volume needs.
pub(super) fn check_room(
    answers: &[PoolAnswer],
    to: &Server,
    volume: &str,
    needed: u64,
) -> Result<(), Refusal> {
    let number = to.number;
    let answer = of_pool(answers, to.pool).ok_or(Refusal::NoSuchReplica(number))?;
    let report = answer.working().map_err(|cause| Refusal::ReplicaAway { number, cause })?;
    let free = report.blocks_total.saturating_sub(report.blocks_used);
    if free < needed {
        return Err(Refusal::NoRoom { name: volume.to_owned(), number, free, needed });
    }
    Ok(())
}

/// The server for one more copy: the one with this number, or for 0 the one with the most free space.
pub(super) fn destination(
    record: &VolumeRecord,
    answers: &[PoolAnswer],
    number: u32,
) -> Result<Server, Refusal> {
    let is_member = |pool| record.members.iter().any(|member| member.replica == pool);
    let copies = record.members.iter().filter_map(|member| of_pool(answers, member.replica));
    let sizes = copies.filter_map(|answer| Some(answer.copy(record.id).ok()?.blocks_used));
    let needed = sizes.max().unwrap_or(0);
    if number != 0 {
        let to = server(answers, number)?;
        let name = record.name.clone();
        if is_member(to.pool) {
            return Err(Refusal::AlreadyMember { name, number });
        }
        check_room(answers, &to, &name, needed)?;
        return Ok(to);
    }
    let able = answers.iter().filter_map(|answer| {
        let to = known(&answer.replica).ok().filter(|to| !is_member(to.pool))?;
        let report = answer.working().ok()?;
        let free = report.blocks_total.saturating_sub(report.blocks_used);
        // A copy that is still being deleted there may yet be open.
        let held = report.volumes.iter().any(|copy| copy.volume == record.id);
        (free >= needed && !held).then_some((free, to))
    });
    let most = able.min_by_key(|(free, to)| (std::cmp::Reverse(*free), to.number));
    most.map(|(_, to)| to).ok_or_else(|| Refusal::NoServerFree(record.name.clone()))
}
