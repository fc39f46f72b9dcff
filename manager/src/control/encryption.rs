//! Volumes that are encrypted: how their keys are guarded, and guarded otherwise.

use super::volumes::find;
use super::{Control, Refusal};
use crate::records::{self, EncryptionRecord};
use trivet_api::v1;
use trivet_keys::WrappedKey;
use trivet_model::{Revision, VolumeRecord};

/// What a request to make a volume says of its encryption.
pub(super) fn encryption_of(request: &v1::CreateVolumeRequest) -> Result<Option<WrappedKey>, Refusal> {
    match request.wrapped_key.as_str() {
        "" => Ok(None),
        text => WrappedKey::parse(text).map(Some).map_err(Refusal::MalformedKey),
    }
}

impl Control {
    pub(super) async fn rekey_volume(&self, request: v1::RekeyVolumeRequest) -> Result<u32, Refusal> {
        if request.data_key.is_empty() && !request.dry_run {
            return self.rewrap(&request);
        }
        self.rekey_data(request).await
    }

    /// Puts a data key that is wrapped otherwise in the place of the one that is kept. The data key is the same:
    /// whoever asks has taken it out and wrapped it again.
    fn rewrap(&self, request: &v1::RekeyVolumeRequest) -> Result<u32, Refusal> {
        let store = self.store.as_ref();
        let (record, _) = find(store, &request.name)?;
        self.settle_keys(&record)?;
        if record.next_key.is_some() {
            return Err(Refusal::Rekeying(record.name));
        }
        let wrapped = WrappedKey::parse(&request.wrapped_key).map_err(Refusal::MalformedKey)?;
        let (mut kept, revision) = self.encryption(&record)?;
        if Some(wrapped.data_key()) != record.key {
            return Err(Refusal::WrongKey(record.name));
        }
        if kept.key.to_text() != request.expected {
            return Err(Refusal::Raced);
        }
        kept.key = wrapped;
        records::write(store, &kept, Some(revision))?;
        // What it was wrapped in before must not open it any more.
        store.erase(&records::key::<EncryptionRecord>(&record.id.to_string()))?;
        tracing::info!(volume = %record.name, "its data key is wrapped anew");
        Ok(0)
    }

    /// How a volume's data key is guarded.
    pub(super) fn encryption(&self, record: &VolumeRecord) -> Result<(EncryptionRecord, Revision), Refusal> {
        if record.key.is_none() {
            return Err(Refusal::NotEncrypted(record.name.clone()));
        }
        let found = records::read::<EncryptionRecord>(self.store.as_ref(), &record.id.to_string())?;
        found.ok_or_else(|| Refusal::KeyDestroyed(record.name.clone()))
    }
}
