//! Making, growing and deleting volumes.

use super::deletions::deletion_of;
use super::encryption::encryption_of;
use super::exports::check_no_export;
use super::reverts::check_not_reverting;
use super::{Control, Refusal, pools, settings};
use crate::records::{
    self, AttachmentRecord, DeletionRecord, EncryptionRecord, RecordError, ReplicaRecord, ScrubRecord,
    VolumeNameRecord, key,
};
use crate::replica_client::{ReplicaConnection, ReplicaError};
use crate::store::RecordStore;
use tokio::task::JoinSet;
use trivet_api::v1;
use trivet_keys::WrappedKey;
use trivet_model::record::is_volume_name;
use trivet_model::{
    Epoch, Generation, Member, MemberState, PoolId, Revision, VOLUME_BLOCKS_MAX, VolumeId, VolumeRecord,
};

/// Copies of a new volume when nobody says how many.
const COPIES_DEFAULT: usize = 3;

/// The record of the volume called `name`.
///
/// # Errors
/// [`Refusal::NoSuchVolume`], or the store's.
pub fn find(store: &dyn RecordStore, name: &str) -> Result<(VolumeRecord, Revision), Refusal> {
    let missing = || Refusal::NoSuchVolume(name.to_owned());
    let (index, _) = records::read::<VolumeNameRecord>(store, name)?.ok_or_else(missing)?;
    records::read::<VolumeRecord>(store, &index.volume.to_string())?.ok_or_else(missing)
}

/// How the volume is attached, if it is.
///
/// # Errors
/// [`RecordError`].
pub fn attachment(
    store: &dyn RecordStore,
    volume: VolumeId,
) -> Result<Option<(AttachmentRecord, Revision)>, RecordError> {
    records::read::<AttachmentRecord>(store, &volume.to_string())
}

impl Control {
    pub(super) async fn create_volume(&self, request: &v1::CreateVolumeRequest) -> Result<u32, Refusal> {
        let store = self.store.as_ref();
        let (name, blocks) = (&request.name, request.blocks);
        if !is_volume_name(name) {
            return Err(Refusal::BadName(name.clone()));
        }
        check_size(blocks)?;
        let encryption = encryption_of(request)?;
        if records::read::<VolumeNameRecord>(store, name)?.is_some() {
            return Err(Refusal::VolumeExists(name.clone()));
        }
        let settings = settings::of_new_volume(request)?;
        if settings.verified_reads && encryption.is_none() {
            return Err(Refusal::NothingToVerify(name.clone()));
        }
        let chosen = self.choose(request.copies).await?;
        let id = random_volume_id()?;
        let deletion = DeletionRecord { volume: id, pools: chosen.iter().map(|&(pool, _)| pool).collect() };
        let provisional = records::write(store, &deletion, None)?;
        make_copies(id, blocks, encryption.is_some(), &chosen).await?;
        let member = |(pool, replica): &(PoolId, ReplicaRecord)| Member {
            replica: *pool,
            address: replica.address.clone(),
            state: MemberState::InSync,
        };
        let record = VolumeRecord {
            id,
            name: name.clone(),
            blocks,
            generation: Generation::ZERO,
            owner: String::new(),
            epoch: Epoch(0),
            wait_owed: false,
            members: chosen.iter().map(member).collect(),
            snapshots: Vec::new(),
            lineage: Vec::new(),
            sharing: trivet_model::Sharing::Nothing,
            is_image: false,
            settings,
            copies: u32::try_from(chosen.len()).unwrap_or(u32::MAX),
            key: encryption.as_ref().map(WrappedKey::data_key),
            next_key: None,
            older_keys: Vec::new(),
            reverting: None,
            import: None,
        };
        let index = VolumeNameRecord { name: name.clone(), volume: id };
        let mut changes = vec![
            records::remove(&deletion, provisional),
            records::put(&record, None),
            records::put(&index, None),
        ];
        let encrypted = encryption.is_some();
        changes.extend(
            encryption.map(|key| records::put(&EncryptionRecord { volume: id, key, next: None }, None)),
        );
        store.commit(&changes)?;
        tracing::info!(volume = %name, blocks, copies = chosen.len(), encrypted, "made");
        Ok(1)
    }

    /// The servers that shall hold a new volume: those with the most free space.
    async fn choose(&self, copies: u32) -> Result<Vec<(PoolId, ReplicaRecord)>, Refusal> {
        let answers = pools::ask_all(self.store.as_ref()).await?;
        let known = answers.len();
        let mut able: Vec<(u64, PoolId, ReplicaRecord)> = answers
            .into_iter()
            .filter_map(|answer| match answer.report {
                Some(Ok(report)) if report.failed.is_empty() => {
                    let free = report.blocks_total.saturating_sub(report.blocks_used);
                    Some((free, report.pool, answer.replica))
                }
                _ => None,
            })
            .collect();
        let wanted = match usize::try_from(copies) {
            Ok(0) => COPIES_DEFAULT.min(known).max(1),
            Ok(copies) => copies,
            Err(_) => usize::MAX,
        };
        if able.len() < wanted {
            let asked = u32::try_from(wanted).unwrap_or(u32::MAX);
            return Err(Refusal::TooFewReplicas { asked, running: able.len(), known });
        }
        able.sort_by_key(|(free, _, replica)| (std::cmp::Reverse(*free), replica.number));
        able.truncate(wanted);
        able.sort_by_key(|(_, _, replica)| replica.number);
        Ok(able.into_iter().map(|(_, pool, replica)| (pool, replica)).collect())
    }

    pub(super) async fn delete_volume(&self, request: &v1::DeleteVolumeRequest) -> Result<u32, Refusal> {
        let store = self.store.as_ref();
        let (record, _) = find(store, &request.name)?;
        // One that is being reverted is used by nobody but its own engine, which ends with it.
        if record.reverting.is_none() {
            self.check_unused(&record, request.force)?;
        }
        check_no_export(store, &record)?;
        if record.is_image {
            return Err(Refusal::IsImage(record.name));
        }
        if request.dry_run {
            return Ok(0);
        }
        if record.reverting.is_some() {
            self.interrupt_revert(&record.name).await?;
        }
        let removed = self.remove_volume(&request.name);
        if record.reverting.is_some() && removed.is_err() {
            self.apply_processes().await?;
        }
        removed?;
        tracing::info!(volume = %record.name, id = %record.id, "deleted; its copies follow");
        self.carry_out_deletions(&pools::ask_all(store).await?).await?;
        Ok(0)
    }

    fn remove_volume(&self, name: &str) -> Result<(), Refusal> {
        let store = self.store.as_ref();
        let (record, revision) = find(store, name)?;
        if record.key.is_some() {
            self.destroy_key(record.id)?;
        }
        let index = VolumeNameRecord { name: record.name.clone(), volume: record.id };
        let Some(index_stored) = store.get(&key::<VolumeNameRecord>(&record.name))? else {
            return Err(Refusal::Raced);
        };
        let pools = record.members.iter().map(|member| member.replica);
        let (deletion, deletion_revision) = deletion_of(store, record.id, pools)?;
        let scrub = records::read::<ScrubRecord>(store, &record.id.to_string())?;
        let mut changes = vec![
            records::remove(&record, revision),
            records::remove(&index, index_stored.revision),
            records::put(&deletion, deletion_revision),
        ];
        changes.extend(scrub.map(|(scrub, revision)| records::remove(&scrub, revision)));
        store.commit(&changes)?;
        Ok(())
    }

    pub(super) async fn resize_volume(&self, request: &v1::ResizeVolumeRequest) -> Result<u32, Refusal> {
        let store = self.store.as_ref();
        let (mut record, revision) = find(store, &request.name)?;
        check_growth(&record, request.blocks)?;
        if request.blocks == record.blocks {
            return Ok(0);
        }
        self.check_unused(&record, false)?;
        if record.is_image {
            return Err(Refusal::IsImage(record.name));
        }
        // The copies first: a record never promises more than every member has. A crash in
        // between leaves copies that are too long, which the next attempt finds done.
        for member in &record.members {
            match resize_copy(member, record.id, request.blocks).await {
                // The engine has them grow when it brings them back.
                Err(error) if member.state != MemberState::InSync => {
                    tracing::info!(volume = %record.name, %error, "a copy that is not in sync grows later");
                }
                resized => resized?,
            }
        }
        record.blocks = request.blocks;
        records::write(store, &record, Some(revision))?;
        Ok(0)
    }

    /// Refuses while someone uses the volume.
    pub(super) fn check_unused(&self, record: &VolumeRecord, force: bool) -> Result<(), Refusal> {
        if attachment(self.store.as_ref(), record.id)?.is_some() {
            return Err(Refusal::Attached(record.name.clone()));
        }
        check_not_reverting(record)?;
        if !record.owner.is_empty() && !force {
            return Err(Refusal::Open { name: record.name.clone(), owner: record.owner.clone() });
        }
        Ok(())
    }
}

/// Makes a new volume's empty copies, all at once: each waits for its disk.
async fn make_copies(
    volume: VolumeId,
    blocks: u64,
    encrypted: bool,
    servers: &[(PoolId, ReplicaRecord)],
) -> Result<(), ReplicaError> {
    let mut making = JoinSet::new();
    for (pool, replica) in servers {
        let (pool, address) = (*pool, replica.address.clone());
        making.spawn(async move {
            let mut connection = ReplicaConnection::connect(&address, Some(pool)).await?;
            connection.create_volume(volume, blocks, encrypted).await
        });
    }
    making.join_all().await.into_iter().collect()
}

async fn resize_copy(member: &Member, volume: VolumeId, blocks: u64) -> Result<(), ReplicaError> {
    let mut connection = ReplicaConnection::connect(&member.address, Some(member.replica)).await?;
    connection.resize_volume(volume, blocks).await
}

/// Whether a volume may have this size from now on.
///
/// # Errors
/// [`Refusal::BadSize`] or [`Refusal::Shrinks`].
pub fn check_growth(record: &VolumeRecord, blocks: u64) -> Result<(), Refusal> {
    check_size(blocks)?;
    if blocks < record.blocks {
        return Err(Refusal::Shrinks { name: record.name.clone(), now: record.blocks, asked: blocks });
    }
    Ok(())
}

fn check_size(blocks: u64) -> Result<(), Refusal> {
    if (1..=VOLUME_BLOCKS_MAX).contains(&blocks) { Ok(()) } else { Err(Refusal::BadSize { blocks }) }
}

pub(super) fn random_volume_id() -> Result<VolumeId, Refusal> {
    random_id().map(VolumeId::from_random_bytes)
}

/// Bytes for a new identity.
pub(crate) fn random_id() -> Result<[u8; 16], Refusal> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(Refusal::Random)?;
    Ok(bytes)
}
