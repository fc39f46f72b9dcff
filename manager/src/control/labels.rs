//! What is said of snapshots: labels, for people and programs.

use super::volumes::find;
use super::{Control, Refusal};
use crate::service::snapshots::snapshot_of;
use std::collections::BTreeMap;
use trivet_api::v1;

/// Labels of one snapshot, and the bytes of a key or value.
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 1024;

/// Refuses labels that are too many or too long.
pub(crate) fn check_labels<'a>(
    labels: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
) -> Result<(), Refusal> {
    let many = labels.len() > LABELS_MAX;
    let mut labels = labels;
    let long = labels
        .any(|(key, value)| key.is_empty() || key.len() > LABEL_BYTES_MAX || value.len() > LABEL_BYTES_MAX);
    if many || long { Err(Refusal::BadLabels { most: LABELS_MAX, bytes: LABEL_BYTES_MAX }) } else { Ok(()) }
}

impl Control {
    pub(super) fn label_snapshot(&self, request: &v1::LabelSnapshotRequest) -> Result<u32, Refusal> {
        let (record, _) = find(self.store.as_ref(), &request.volume)?;
        let id = snapshot_of(&record, &request.name)?.id;
        self.change_record(record.id, |record| {
            snapshot_of(record, &request.name)?;
            for snapshot in record.snapshots.iter_mut().filter(|known| known.id == id) {
                let labels: &mut BTreeMap<String, String> = &mut snapshot.labels;
                labels.retain(|key, _| !request.removed.contains(key));
                labels.extend(request.labels.clone());
                check_labels(labels.iter())?;
            }
            Ok(Vec::new())
        })?;
        Ok(0)
    }
}
