//! An authority in memory, for embedders without a manager and for tests.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use trivet_model::{Authority, AuthorityError, Revision, VolumeId, VolumeRecord};

/// Keeps volume records in this process. They are gone with it: whoever uses it must know members,
/// sizes and *generations* by other means, since an opening needs a generation above all that the
/// members have promised ([`crate::admin`] can ask them).
#[derive(Debug, Default)]
pub struct MemoryAuthority {
    records: Mutex<BTreeMap<VolumeId, (VolumeRecord, Revision)>>,
}

impl MemoryAuthority {
    /// An authority that knows no volume.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a record in place, whatever was there.
    pub fn insert(&self, record: VolumeRecord) {
        let mut records = self.records();
        let revision = records.get(&record.id).map_or(Revision(1), |(_, revision)| Revision(revision.0 + 1));
        records.insert(record.id, (record, revision));
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<VolumeId, (VolumeRecord, Revision)>> {
        // Every change is one insertion: a panic elsewhere leaves nothing half done.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Authority for MemoryAuthority {
    fn read(&self, volume: VolumeId) -> Result<(VolumeRecord, Revision), AuthorityError> {
        self.records().get(&volume).cloned().ok_or(AuthorityError::NotFound(volume))
    }

    fn swap(&self, expected: Revision, record: &VolumeRecord) -> Result<Revision, AuthorityError> {
        let mut records = self.records();
        let (kept, revision) = records.get_mut(&record.id).ok_or(AuthorityError::NotFound(record.id))?;
        if *revision != expected {
            return Err(AuthorityError::Conflict { volume: record.id, actual: *revision });
        }
        kept.clone_from(record);
        revision.0 += 1;
        Ok(*revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trivet_model::{Epoch, Generation, VolumeSettings};

    #[test]
    fn only_the_expected_revision_is_swapped() {
        let authority = MemoryAuthority::new();
        let id = VolumeId::from_bytes([1; 16]);
        assert_eq!(authority.read(id), Err(AuthorityError::NotFound(id)));
        let record = VolumeRecord {
            id,
            name: "v".to_owned(),
            blocks: 1,
            generation: Generation::ZERO,
            owner: String::new(),
            epoch: Epoch(0),
            wait_owed: false,
            members: Vec::new(),
            snapshots: Vec::new(),
            lineage: Vec::new(),
            sharing: trivet_model::Sharing::Nothing,
            is_image: false,
            settings: VolumeSettings::default(),
            copies: 0,
            key: None,
            next_key: None,
            older_keys: Vec::new(),
            reverting: None,
            import: None,
        };
        authority.insert(record.clone());
        let (_, revision) = authority.read(id).unwrap();
        let swapped = VolumeRecord { owner: "a".to_owned(), ..record };
        let next = authority.swap(revision, &swapped).unwrap();
        let refused = authority.swap(revision, &swapped);
        assert_eq!(refused, Err(AuthorityError::Conflict { volume: id, actual: next }));
        assert_eq!(authority.read(id).unwrap(), (swapped, next));
    }
}
