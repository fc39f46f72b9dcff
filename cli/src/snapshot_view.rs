//! What is shown of a snapshot, and of its being served.

use crate::view::{ProcessView, process, standing};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use trivet_api::v1;
use trivet_model::SnapshotRecord;
use trivet_nbd::unix_uri;

#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub(crate) struct SnapshotView {
    pub(crate) volume: String,
    pub(crate) name: String,
    pub(crate) id: String,
    /// In seconds since 1970.
    pub(crate) created: u64,
    /// It shows what was written up to this stamp.
    pub(crate) stamp: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// What deleting it would free on each copy, where that was asked.
    pub(crate) freed_bytes: Option<u64>,
    /// While it is served beside its volume.
    pub(crate) export: Option<ExportView>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub(crate) struct ExportView {
    pub(crate) uri: String,
    pub(crate) tcp_uri: Option<String>,
    /// The engine's own word, or its process's, as of a volume.
    pub(crate) state: String,
    /// Why it is not simply open; empty when it is.
    pub(crate) trouble: String,
    pub(crate) serving: bool,
    pub(crate) connections: u32,
    pub(crate) engine: ProcessView,
}

impl SnapshotView {
    pub(crate) fn new(volume: &str, taken: &SnapshotRecord, exports: &[v1::SnapshotExport]) -> Self {
        let found = exports.iter().find(|export| export.snapshot == taken.name);
        Self {
            export: found.map(|found| ExportView::new(&format!("{volume}@{}", taken.name), found)),
            volume: volume.to_owned(),
            name: taken.name.clone(),
            id: taken.id.to_string(),
            created: taken.created,
            stamp: taken.cut.to_string(),
            labels: taken.labels.clone(),
            freed_bytes: None,
        }
    }
}

impl ExportView {
    fn new(name: &str, found: &v1::SnapshotExport) -> Self {
        let attachment = found.attachment.clone().unwrap_or_default();
        let engine = found.engine.clone().unwrap_or_default();
        let process = process(engine.process.unwrap_or_default());
        let (state, trouble) = standing(&process, &engine.state, &engine.reason);
        Self {
            uri: unix_uri(name, Path::new(&attachment.socket)),
            tcp_uri: (!attachment.listen.is_empty()).then(|| format!("nbd://{}/{name}", attachment.listen)),
            state,
            trouble,
            serving: engine.serving,
            connections: engine.connections,
            engine: process,
        }
    }
}
