//! The data keys of volumes that are unlocked: in memory, for as long as the volume is attached, so that an
//! engine that is started again gets its key again. A manager that is started again has none: engines that
//! run keep theirs; one that has to be started waits for somebody to unlock the volume once more.
//!
//! An engine that waits for its key listens at a socket of its own, in a folder that only this user can enter;
//! the key is pushed there. Nobody can ask for it.

use super::exports::export;
use super::{Control, Refusal};
use crate::records::{self, EncryptionRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use trivet_api::layout::export_name;
use trivet_crypto::{DATA_KEY_BYTES, DataKey};
use trivet_model::{KeyId, VolumeId, VolumeRecord};

/// How long an engine may take to look at its key.
const HANDING_OVER: Duration = Duration::from_secs(2);

/// What an engine says of a key that fits.
pub const KEY_TAKEN: u8 = b'1';

/// The keys, shared with who tells people which volumes wait for theirs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unlocked(Arc<Mutex<Keys>>);

/// A volume has two while it goes over to another one.
type Keys = BTreeMap<(VolumeId, KeyId), DataKey>;

impl Unlocked {
    pub(crate) fn has(&self, record: &VolumeRecord) -> bool {
        record.key.is_some_and(|key| self.get(record.id, key).is_some())
    }

    fn get(&self, volume: VolumeId, key: KeyId) -> Option<DataKey> {
        self.with(|keys| keys.get(&(volume, key)).cloned())
    }

    fn with<R>(&self, act: impl FnOnce(&mut Keys) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Control {
    /// Judges the key that came with a request, and wipes it from there.
    pub(super) fn key_of(record: &VolumeRecord, bytes: &mut Vec<u8>) -> Result<Option<DataKey>, Refusal> {
        let given = <&mut [u8; DATA_KEY_BYTES]>::try_from(bytes.as_mut_slice()).ok().map(DataKey::take);
        let empty = std::mem::take(bytes).is_empty();
        match (record.key, given) {
            (None, None) if empty => Ok(None),
            (None, _) => Err(Refusal::NotEncrypted(record.name.clone())),
            (Some(expected), Some(key)) if key.id() == expected => Ok(Some(key)),
            (Some(_), None) if empty => Ok(None),
            (Some(_), _) => Err(Refusal::WrongKey(record.name.clone())),
        }
    }

    /// Keeps a key for its volume's engine.
    pub(super) fn keep_key(&self, volume: VolumeId, key: DataKey) -> Result<(), Refusal> {
        trivet_keys::guard_process().map_err(Refusal::Unguarded)?;
        self.unlocked.with(|keys| keys.insert((volume, key.id()), key));
        Ok(())
    }

    /// A volume's key of this name, if it is here.
    pub(super) fn kept_key(&self, volume: VolumeId, key: KeyId) -> Option<DataKey> {
        self.unlocked.get(volume, key)
    }

    /// Forgets one of a volume's keys.
    pub(super) fn drop_key(&self, volume: VolumeId, key: KeyId) {
        self.unlocked.with(|keys| drop(keys.remove(&(volume, key))));
    }

    pub(super) fn forget_key(&self, volume: VolumeId) {
        self.forget_other_keys(volume, None);
    }

    pub(super) fn forget_other_keys(&self, volume: VolumeId, but: Option<KeyId>) {
        self.unlocked.with(|keys| keys.retain(|(of, key), _| *of != volume || Some(*key) == but));
    }

    /// Hands the keys that are here to the engines that wait for them: of the volumes, and of their snapshots
    /// that are exported.
    pub(super) async fn hand_over_keys(&self) -> Result<(), Refusal> {
        let store = self.store.as_ref();
        let volumes: BTreeSet<VolumeId> =
            self.unlocked.with(|keys| keys.keys().map(|(volume, _)| *volume).collect());
        for volume in volumes {
            let Some((record, _)) = records::read::<VolumeRecord>(store, &volume.to_string())? else {
                continue;
            };
            let mut sockets = vec![self.layout.engine_key_socket(&record.name)?];
            for snapshot in &record.snapshots {
                if export(store, snapshot.id)?.is_some() {
                    let name = export_name(&record.name, &snapshot.name, snapshot.id);
                    sockets.push(self.layout.export_key_socket(&name)?);
                }
            }
            let Some(key) = record.key.and_then(|key| self.kept_key(volume, key)) else { continue };
            for socket in sockets {
                match tokio::time::timeout(HANDING_OVER, hand_over(&socket, &key)).await {
                    Ok(Ok(true)) => tracing::info!(volume = %record.name, "its engine has its key"),
                    Ok(Ok(false)) => tracing::error!(volume = %record.name, "its engine refuses its key"),
                    // It does not wait for one: it has it, or is not up yet.
                    Ok(Err(_)) => {}
                    Err(_elapsed) => {
                        tracing::warn!(volume = %record.name, "its engine does not take its key")
                    }
                }
            }
        }
        Ok(())
    }

    /// Refuses what needs the key of an encrypted volume while it is not here.
    pub(super) fn check_unlocked(&self, record: &VolumeRecord) -> Result<(), Refusal> {
        let locked = record.key.is_some() && !self.unlocked.has(record);
        if locked { Err(Refusal::NotUnlocked(record.name.clone())) } else { Ok(()) }
    }

    /// Destroys what a volume's data key is wrapped in: whatever becomes of the copies, nobody can read them.
    pub(super) fn destroy_key(&self, volume: VolumeId) -> Result<(), Refusal> {
        self.forget_key(volume);
        let store = self.store.as_ref();
        if let Some((record, revision)) = records::read::<EncryptionRecord>(store, &volume.to_string())? {
            store.commit(&[records::remove(&record, revision)])?;
        }
        Ok(store.erase(&records::key::<EncryptionRecord>(&volume.to_string()))?)
    }
}

/// Whether the key fitted.
async fn hand_over(socket: &Path, key: &DataKey) -> std::io::Result<bool> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(key.expose()).await?;
    Ok(stream.read_u8().await? == KEY_TAKEN)
}
