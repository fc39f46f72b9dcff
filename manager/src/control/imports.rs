//! Volumes that are filled from a source while they are used: the manager records the source, the volume's
//! engine reads it (`engine/src/volume/hydration.rs`).

use super::volumes::find;
use super::{Control, Refusal};
use crate::records;
use trivet_api::v1;
use trivet_model::{BLOCK_SIZE_U64, Generation, InstantImport, VolumeRecord};

/// The longest URI of a source.
const SOURCE_BYTES_MAX: usize = 4096;

impl Control {
    /// Has a volume filled from a source, from its first opening on. What it does not have is the source's from
    /// then on, so nothing may ever have been written to it. One that is being filled goes on from where its source
    /// is now, if that has moved.
    pub(super) fn import_volume(&self, request: &v1::ImportVolumeRequest) -> Result<u32, Refusal> {
        let store = self.store.as_ref();
        let (record, revision) = find(store, &request.name)?;
        let v1::ImportVolumeRequest { name, source, bytes, fingerprint, dry_run } = request;
        let fits = *bytes > 0 && *bytes <= record.blocks * BLOCK_SIZE_U64;
        if !fits {
            return Err(Refusal::BadImport { volume: record.name, bytes: *bytes });
        }
        if source.len() > SOURCE_BYTES_MAX {
            return Err(Refusal::LongSource { bytes: source.len(), most: SOURCE_BYTES_MAX });
        }
        if let Some(under_way) = &record.import {
            if (under_way.bytes, under_way.fingerprint) != (*bytes, *fingerprint) {
                let volume = record.name.clone();
                return Err(Refusal::OtherSource { volume, from: under_way.source.clone() });
            }
            if under_way.source != *source && !dry_run {
                self.source_moved(&record, source)?;
            }
            return Ok(0);
        }
        let is_new = record.generation == Generation::ZERO && record.lineage.is_empty();
        if !is_new || record.is_image {
            return Err(Refusal::NotNew(record.name));
        }
        self.check_unused(&record, false)?;
        if *dry_run {
            return Ok(0);
        }
        let import =
            InstantImport { source: source.clone(), bytes: *bytes, fingerprint: *fingerprint, hydrated: 0 };
        records::write(store, &VolumeRecord { import: Some(import), ..record }, Some(revision))?;
        tracing::info!(volume = %name, %source, bytes, "it is to be filled from its source while it is used");
        Ok(1)
    }

    /// Its engine reads the record again within seconds.
    fn source_moved(&self, record: &VolumeRecord, source: &str) -> Result<(), Refusal> {
        self.change_record(record.id, |record| {
            if let Some(import) = &mut record.import {
                source.clone_into(&mut import.source);
            }
            Ok(Vec::new())
        })?;
        tracing::info!(volume = %record.name, %source, "its source has moved");
        Ok(())
    }
}

/// Refuses what needs all of a volume while a part of it is still its source's.
pub(crate) fn check_imported(record: &VolumeRecord) -> Result<(), Refusal> {
    if record.import.is_some() { Err(Refusal::ImportUnderWay(record.name.clone())) } else { Ok(()) }
}
