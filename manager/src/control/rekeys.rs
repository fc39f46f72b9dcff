//! Having the data of volumes encrypted anew, under other data keys.
//!
//! ```text
//!  one commit: the new key, wrapped, and the record names it as the next
//!      ─► the volume's engine is told the key, and swaps it into the record; it seals the blocks anew
//!      ─► the old key's wrapping is destroyed
//!      ─► once nothing needs it, the old key that the record keeps under the new one is destroyed
//! ```
//!
//! Only the first step is somebody's wish; the others follow from the records in rounds, whoever dies meanwhile.
//! What is destroyed leaves a trace in its record until the store has given up the files that held it, so that
//! this is done again after a crash.

use super::reverts::check_not_reverting;
use super::volumes::{attachment, find};
use super::{Control, Refusal};
use crate::engine_report::{self, OrderError};
use crate::records::{self, EncryptionRecord};
use std::time::Duration;
use trivet_api::v1;
use trivet_crypto::{DATA_KEY_BYTES, DataKey};
use trivet_keys::WrappedKey;
use trivet_model::{OLDER_KEYS_MAX, VolumeRecord};

/// How long an engine that is asked for it may take to go over to another key.
const ORDERED: Duration = Duration::from_secs(10);
/// The same in a round.
const TOLD_AGAIN: Duration = Duration::from_secs(1);

impl Control {
    /// Has the data encrypted anew under the key of the request, which whoever asks has wrapped.
    pub(super) async fn rekey_data(&self, mut request: v1::RekeyVolumeRequest) -> Result<u32, Refusal> {
        let store = self.store.as_ref();
        let bytes = <&mut [u8; DATA_KEY_BYTES]>::try_from(request.data_key.as_mut_slice());
        let key = bytes.ok().map(DataKey::take);
        let (record, _) = find(store, &request.name)?;
        self.settle_keys(&record)?;
        let (kept, _) = self.encryption(&record)?;
        let wanted = key.as_ref().map(DataKey::id);
        if wanted.is_some() && record.key == wanted {
            return Ok(0);
        }
        self.check_rekeyed(&record)?;
        if request.dry_run {
            return Ok(0);
        }
        let wrapped = WrappedKey::parse(&request.wrapped_key).map_err(Refusal::MalformedKey)?;
        let key = key.filter(|key| key.id() == wrapped.data_key());
        let key = key.ok_or_else(|| Refusal::WrongKey(record.name.clone()))?;
        if kept.key.to_text() != request.expected {
            return Err(Refusal::Raced);
        }
        self.keep_key(record.id, key.clone())?;
        let chosen = self.change_record(record.id, |record| {
            self.check_rekeyed(record)?;
            let (mut kept, revision) = self.encryption(record)?;
            if Some(kept.key.data_key()) != record.key {
                // It has gone over to the one that is next here, which must not be lost.
                return Err(Refusal::Raced);
            }
            record.next_key = Some(wrapped.data_key());
            kept.next = Some(wrapped.clone());
            Ok(vec![records::put(&kept, Some(revision))])
        });
        if let Err(refusal) = chosen {
            self.drop_key(record.id, key.id());
            return Err(refusal);
        }
        tracing::info!(volume = %record.name, key = %key.id(), "its data is to have another key");
        let told = self.tell_key(&record, &key, ORDERED).await;
        let (record, _) = find(store, &request.name)?;
        // What counts is the record, whatever the engine says.
        let told = told.and(if record.key == Some(key.id()) { Ok(()) } else { Err(OrderError::Silent) });
        told.map_err(|cause| Refusal::NotRekeyedYet { volume: record.name.clone(), cause })?;
        self.settle_keys(&record)?;
        Ok(1)
    }

    async fn tell_key(
        &self,
        record: &VolumeRecord,
        key: &DataKey,
        patience: Duration,
    ) -> Result<(), OrderError> {
        let socket = self.layout.engine_control_socket(&record.name);
        let socket = socket.map_err(|error| OrderError::Unreachable(error.to_string()))?;
        engine_report::rekey(&socket, key, patience).await
    }

    /// Whether a volume's data can be encrypted anew now.
    fn check_rekeyed(&self, record: &VolumeRecord) -> Result<(), Refusal> {
        let name = || record.name.clone();
        check_not_reverting(record)?;
        if record.is_resealing() {
            return Err(Refusal::Resealing(name()));
        }
        if record.older_keys.len() >= OLDER_KEYS_MAX {
            return Err(Refusal::TooManyKeys { volume: name(), most: OLDER_KEYS_MAX });
        }
        match attachment(self.store.as_ref(), record.id)? {
            Some((attached, _)) if !attached.read_only => Ok(()),
            _ => Err(Refusal::NotReencrypted(name())),
        }
    }

    /// One round: engines are told the keys that they have not gone over to yet, and keys that are not needed any
    /// more are destroyed.
    pub(super) async fn follow_keys(&self) -> Result<(), Refusal> {
        for (record, _) in records::list::<VolumeRecord>(self.store.as_ref())? {
            if record.key.is_none() {
                continue;
            }
            if let Err(error) = self.settle_keys(&record) {
                tracing::warn!(volume = %record.name, "keys: {error}");
            }
            let next = record.next_key.and_then(|next| self.kept_key(record.id, next));
            if let Some(key) = next
                && let Err(error) = self.tell_key(&record, &key, TOLD_AGAIN).await
            {
                tracing::debug!(volume = %record.name, %error, "it has its old key still");
            }
        }
        Ok(())
    }

    /// Destroys what has no use any more of a volume's keys.
    pub(super) fn settle_keys(&self, record: &VolumeRecord) -> Result<(), Refusal> {
        self.destroy_old_wrapping(record)?;
        self.destroy_older_keys(record)
    }

    /// Once the record has gone over to the next key, what unlocks the one before it is destroyed. That `next` is
    /// still there says that this has begun and may not be done.
    fn destroy_old_wrapping(&self, record: &VolumeRecord) -> Result<(), Refusal> {
        let store = self.store.as_ref();
        let id = record.id.to_string();
        let Some((mut kept, mut revision)) = records::read::<EncryptionRecord>(store, &id)? else {
            return Ok(());
        };
        let Some(next) = kept.next.clone().filter(|next| Some(next.data_key()) == record.key) else {
            return Ok(());
        };
        if kept.key != next {
            kept.key = next;
            revision = records::write(store, &kept, Some(revision))?;
        }
        store.erase(&records::key::<EncryptionRecord>(&id))?;
        kept.next = None;
        records::write(store, &kept, Some(revision))?;
        self.forget_other_keys(record.id, record.key);
        tracing::info!(volume = %record.name, "its old key unlocks it no more");
        Ok(())
    }

    /// Keys that the record keeps under newer ones, and that nothing needs, are destroyed. One without what it was
    /// sealed in says that this has begun and may not be done.
    fn destroy_older_keys(&self, record: &VolumeRecord) -> Result<(), Refusal> {
        let store = self.store.as_ref();
        if record.unneeded_keys() == 0 {
            return Ok(());
        }
        self.change_record(record.id, |record| {
            let unneeded = record.unneeded_keys();
            record.older_keys[..unneeded].iter_mut().for_each(|older| older.sealed = None);
            Ok(Vec::new())
        })?;
        store.erase(&records::key::<VolumeRecord>(&record.id.to_string()))?;
        self.change_record(record.id, |record| {
            record.older_keys.retain(|older| older.sealed.is_some());
            Ok(Vec::new())
        })?;
        tracing::info!(volume = %record.name, "an older data key, which nothing needs any more, is destroyed");
        Ok(())
    }
}
