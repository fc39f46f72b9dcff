//! Clones: volumes made of what another one holds, and golden images to make them of.
//!
//! A clone's copies lie in the pools of the parent's copies and read from them; nothing is copied. Such a pool
//! keeps what its clones read, whatever is deleted, so a snapshot that a clone was made of can go as soon as
//! the clone is there, and so can its parent.
//!
//! Invariants:
//! - a copy that shares is made only of a copy that was in sync before and after, under one epoch: else it might
//!   have begun anew in between, and hold less than it names;
//! - copies elsewhere begin as stale since ever, like all that are added.

use super::imports::check_imported;
use super::members::{Server, check_room, read, server};
use super::pools::{self, PoolAnswer, of_pool};
use super::reverts::check_not_reverting;
use super::volumes::{attachment, find, random_id, random_volume_id};
use super::{Control, Refusal};
use crate::engine_report::order;
use crate::records::{
    self, DeletionRecord, EncryptionRecord, ReplacementReason, ReplacementRecord, VolumeNameRecord,
};
use crate::replica_client::{ReplicaConnection, ReplicaError};
use crate::service::snapshots::{snapshot_of, unix_seconds};
use trivet_api::v1;
use trivet_model::record::is_volume_name;
use trivet_model::{
    LINEAGE_MAX, Member, MemberState, OlderKey, Sharing, SnapshotId, SnapshotOrder, SnapshotRecord, Stamp,
    VolumeRecord,
};
use trivet_wire::ErrorCode;

/// What a golden image's own snapshot is called.
pub(super) const IMAGE_SNAPSHOT: &str = "image";

/// What a clone is made of.
struct Origin {
    parent: VolumeRecord,
    snapshot: SnapshotRecord,
    /// The snapshot was taken for the clone alone, and goes when the clone is there.
    passing: bool,
}

impl Control {
    pub(super) async fn clone_volume(&self, request: &v1::CloneVolumeRequest) -> Result<u32, Refusal> {
        let store = self.store.as_ref();
        let name = &request.name;
        if !is_volume_name(name) {
            return Err(Refusal::BadName(name.clone()));
        }
        if records::read::<VolumeNameRecord>(store, name)?.is_some() {
            return Err(Refusal::VolumeExists(name.clone()));
        }
        let (parent, revision) = find(store, &request.of)?;
        check_imported(&parent)?;
        if parent.lineage.len() >= LINEAGE_MAX {
            return Err(Refusal::LineageTooLong(parent.name));
        }
        let snapshot = match request.snapshot.as_str() {
            "" if parent.is_image => Some(snapshot_of(&parent, IMAGE_SNAPSHOT)?.clone()),
            "" => None,
            named => Some(snapshot_of(&parent, named)?.clone()),
        };
        if let Some(snapshot) = snapshot {
            return self.make_clone(request, Origin { parent, snapshot, passing: false }).await;
        }
        // Half a revert is no state to begin with; the snapshots of such a volume are.
        check_not_reverting(&parent)?;
        check_present_key(&parent, None)?;
        let id = SnapshotId::from_random_bytes(random_id()?);
        // Should the manager end before the clone is there, people can delete it.
        let snapshot = new_snapshot(id, format!("clone-{:.8}", id.to_string()));
        let attached = attachment(store, parent.id)?;
        if attached.is_some_and(|(attachment, _)| !attachment.read_only) {
            return self.clone_served(request, parent, snapshot).await;
        }
        let mut visit = self.visit(parent, revision).await?;
        let made = match visit.take(store, snapshot).await {
            Ok((snapshot, parent)) => {
                let made = self.make_clone(request, Origin { parent, snapshot, passing: true }).await;
                if let Err(error) = visit.let_go(store).await {
                    tracing::warn!(volume = %request.of, %error, "the snapshot of a clone stays");
                }
                made
            }
            Err(refusal) => Err(refusal),
        };
        visit.end().await;
        made
    }

    /// Makes a clone of a volume that an engine serves for writing: the engine takes the snapshot.
    async fn clone_served(
        &self,
        request: &v1::CloneVolumeRequest,
        parent: VolumeRecord,
        snapshot: SnapshotRecord,
    ) -> Result<u32, Refusal> {
        let socket = self.layout.engine_control_socket(&parent.name)?;
        let failed = |cause| Refusal::SnapshotFailed { volume: parent.name.clone(), cause };
        let id = snapshot.id;
        order(&socket, &SnapshotOrder::Create(snapshot)).await.map_err(failed)?;
        let (now, _) = read(self.store.as_ref(), parent.id)?;
        let snapshot = now.snapshots.iter().find(|known| known.id == id).cloned().ok_or(Refusal::Raced)?;
        let made = self.make_clone(request, Origin { parent: now, snapshot, passing: true }).await;
        if let Err(error) = order(&socket, &SnapshotOrder::Delete(id)).await {
            tracing::warn!(volume = %request.of, %error, "the snapshot of a clone stays");
        }
        made
    }

    async fn make_clone(&self, request: &v1::CloneVolumeRequest, origin: Origin) -> Result<u32, Refusal> {
        let store = self.store.as_ref();
        let Origin { parent, snapshot, passing } = &origin;
        let id = random_volume_id()?;
        check_present_key(parent, Some(snapshot))?;
        // The clone has its parent's data key, wrapped as the parent's is now; from then on each for itself.
        let encryption = match parent.key {
            Some(_) => {
                let key = self.encryption(parent)?.0.wrapped(parent.key).cloned().ok_or(Refusal::Raced)?;
                Some(EncryptionRecord { volume: id, key, next: None })
            }
            None => None,
        };
        let answers = pools::ask_all(store).await?;
        let sharing = sharing_copies(parent, &answers, request)?;
        let elsewhere = other_servers(parent, &answers, request)?;
        let chosen = sharing.iter().map(|member| member.replica).chain(elsewhere.iter().map(|to| to.pool));
        let deletion = DeletionRecord { volume: id, pools: chosen.collect() };
        let provisional = records::write(store, &deletion, None)?;
        for member in &sharing {
            let mut pool = ReplicaConnection::connect(&member.address, Some(member.replica)).await?;
            let of = (parent.id, snapshot.id);
            let made = pool.create_clone(id, parent.blocks, of, parent.key.is_some()).await;
            made.map_err(|error| match error {
                ReplicaError::Refused { code: ErrorCode::BadParent, detail, .. } => {
                    Refusal::NotCloned { name: parent.name.clone(), cause: detail }
                }
                error => Refusal::Replica(error),
            })?;
        }
        for to in &elsewhere {
            let mut pool = ReplicaConnection::connect(&to.address, Some(to.pool)).await?;
            pool.create_volume(id, parent.blocks, parent.key.is_some()).await?;
        }
        if read(store, parent.id)?.0.epoch != parent.epoch {
            return Err(Refusal::Raced);
        }
        let added = |to: &Server| Member {
            replica: to.pool,
            address: to.address.clone(),
            state: MemberState::Stale { since: Stamp::ZERO },
        };
        let members = sharing.iter().cloned().chain(elsewhere.iter().map(added)).collect();
        let mut clone = parent.clone_of(snapshot, id, request.name.clone(), members);
        if let Some(of) = clone.lineage.first_mut().filter(|_| *passing) {
            of.snapshot_name.clear();
        }
        if request.full {
            clone.sharing = Sharing::Flattening;
        }
        let staying = if elsewhere.is_empty() { sharing.len() } else { elsewhere.len() };
        clone.copies = u32::try_from(staying).unwrap_or(u32::MAX);
        let index = VolumeNameRecord { name: clone.name.clone(), volume: id };
        let mut changes = vec![
            records::remove(&deletion, provisional),
            records::put(&clone, None),
            records::put(&index, None),
        ];
        changes.extend(encryption.map(|encryption| records::put(&encryption, None)));
        // The copy that shares goes once another is in sync.
        if let (Some(from), Some(to)) = (sharing.first(), elsewhere.first()) {
            let reason = ReplacementReason::Asked;
            let leaving = ReplacementRecord { volume: id, from: from.replica, to: to.pool, reason };
            changes.push(records::put(&leaving, None));
        }
        store.commit(&changes)?;
        tracing::info!(volume = %clone.name, of = %parent.name, sharing = sharing.len(), elsewhere = elsewhere.len(),
            "cloned");
        Ok(1)
    }

    pub(super) fn flatten_volume(&self, name: &str) -> Result<u32, Refusal> {
        let (record, _) = find(self.store.as_ref(), name)?;
        if record.sharing == Sharing::Parent {
            self.change_record(record.id, |record| {
                record.sharing = Sharing::Flattening;
                Ok(Vec::new())
            })?;
            tracing::info!(volume = %name, "it is to be flattened");
        }
        Ok(0)
    }

    /// Makes a volume a golden image, or a usual one again.
    pub(super) async fn set_image(&self, request: &v1::SetImageRequest) -> Result<u32, Refusal> {
        let store = self.store.as_ref();
        let (record, revision) = find(store, &request.name)?;
        if record.is_image == request.is_image {
            return Ok(0);
        }
        self.check_unused(&record, false)?;
        check_imported(&record)?;
        if !request.is_image {
            // Its snapshot stays: clones may be made of it as before.
            records::write(store, &VolumeRecord { is_image: false, ..record }, Some(revision))?;
            return Ok(0);
        }
        let id = record.id;
        let has_one = record.snapshots.iter().find(|known| known.name == IMAGE_SNAPSHOT);
        if has_one.is_some() {
            return Err(Refusal::SnapshotExists { volume: record.name, name: IMAGE_SNAPSHOT.to_owned() });
        }
        let mut visit = self.visit(record, revision).await?;
        let snapshot = new_snapshot(SnapshotId::from_random_bytes(random_id()?), IMAGE_SNAPSHOT.to_owned());
        let taken = visit.take(store, snapshot).await;
        visit.end().await;
        taken?;
        self.change_record(id, |record| {
            record.is_image = true;
            Ok(Vec::new())
        })?;
        tracing::info!(volume = %request.name, "a golden image");
        Ok(0)
    }
}

/// Refuses what a clone's own data key would not open: it has its parent's present one, and no older ones.
fn check_present_key(parent: &VolumeRecord, of: Option<&SnapshotRecord>) -> Result<(), Refusal> {
    let needed = |older: &OlderKey| match of {
        None => older.rewritten.is_none(),
        Some(snapshot) => older.is_needed_at(snapshot.cut),
    };
    if parent.older_keys.iter().any(needed) {
        let snapshot = of.map(|snapshot| snapshot.name.clone());
        return Err(Refusal::OlderKey { volume: parent.name.clone(), snapshot });
    }
    Ok(())
}

fn new_snapshot(id: SnapshotId, name: String) -> SnapshotRecord {
    SnapshotRecord { id, name, cut: Stamp::ZERO, created: unix_seconds(), labels: Default::default() }
}

/// The parent's copies that the clone's can share with: one if all shall be elsewhere in the end.
fn sharing_copies(
    parent: &VolumeRecord,
    answers: &[PoolAnswer],
    request: &v1::CloneVolumeRequest,
) -> Result<Vec<Member>, Refusal> {
    let works = |member: &&Member| {
        member.state == MemberState::InSync
            && of_pool(answers, member.replica).is_some_and(|answer| answer.copy(parent.id).is_ok())
    };
    let able: Vec<Member> = parent.members.iter().filter(works).cloned().collect();
    if able.is_empty() {
        return Err(Refusal::NoCopyInSync(parent.name.clone()));
    }
    let wanted = match (request.to.is_empty(), request.copies) {
        (false, _) => 1,
        (true, 0) => able.len(),
        (true, copies) => usize::try_from(copies).unwrap_or(usize::MAX),
    };
    if able.len() < wanted {
        let name = parent.name.clone();
        return Err(Refusal::TooFewToShare { name, asked: request.copies, able: able.len() });
    }
    Ok(able.into_iter().take(wanted).collect())
}

/// The servers that copies are asked for on which share nothing.
fn other_servers(
    parent: &VolumeRecord,
    answers: &[PoolAnswer],
    request: &v1::CloneVolumeRequest,
) -> Result<Vec<Server>, Refusal> {
    let mut chosen: Vec<Server> = Vec::new();
    let sizes = parent.members.iter().filter_map(|member| of_pool(answers, member.replica));
    let needed = sizes.filter_map(|answer| Some(answer.copy(parent.id).ok()?.blocks_used)).max().unwrap_or(0);
    for &number in &request.to {
        let to = server(answers, number)?;
        if parent.members.iter().any(|member| member.replica == to.pool) {
            return Err(Refusal::SharesThere { name: parent.name.clone(), number });
        }
        if chosen.contains(&to) {
            return Err(Refusal::ServerNamedTwice(number));
        }
        check_room(answers, &to, &request.name, needed)?;
        chosen.push(to);
    }
    Ok(chosen)
}
