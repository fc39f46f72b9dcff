//! Which processes the records ask for, and the commands that start them.

use super::exports::export_process;
use crate::records::{self, AttachmentRecord, ExportRecord, RecordError, ReplicaRecord};
use crate::store::RecordStore;
use crate::supervisor::ProcessSpec;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use trivet_api::Layout;
use trivet_model::VolumeRecord;

/// What an engine process under the manager's care begins its entry as a volume's owner with.
pub const ENGINE_OWNER: &str = "engine process";

/// The name of the process that serves a volume.
#[must_use]
pub fn engine_name(volume: &str) -> String {
    format!("engine-{volume}")
}

/// Every process that shall run: all replica servers, and an engine for each attached volume, for each that
/// is being reverted, and for each exported snapshot.
pub(super) fn wanted(
    store: &dyn RecordStore,
    layout: &Layout,
    program: &Path,
) -> Result<Vec<ProcessSpec>, RecordError> {
    let mut specs = Vec::new();
    for (replica, _) in records::list::<ReplicaRecord>(store)? {
        specs.push(replica_spec(layout, program, &replica));
    }
    let mut attached = BTreeSet::new();
    for (attachment, _) in records::list::<AttachmentRecord>(store)? {
        attached.insert(attachment.volume);
        let id = attachment.volume.to_string();
        if let Some((volume, _)) = records::read::<VolumeRecord>(store, &id)? {
            specs.push(engine_spec(layout, program, &volume, &attachment));
        }
    }
    for (volume, _) in records::list::<VolumeRecord>(store)? {
        if volume.reverting.is_some() && !attached.contains(&volume.id) {
            let mut arguments = engine_arguments(layout, &volume, None);
            arguments.push("--no-front-end".to_owned());
            specs.push(spec(layout, program, engine_name(&volume.name), arguments));
        }
    }
    for (export, _) in records::list::<ExportRecord>(store)? {
        if let Some((volume, _)) = records::read::<VolumeRecord>(store, &export.volume.to_string())? {
            specs.extend(export_spec(layout, program, &volume, &export));
        }
    }
    Ok(specs)
}

fn replica_spec(layout: &Layout, program: &Path, replica: &ReplicaRecord) -> ProcessSpec {
    let mut arguments = vec![
        "replica".to_owned(),
        "--dir".to_owned(),
        text(&layout.replica(replica.number)),
        "--listen".to_owned(),
        replica.address.clone(),
    ];
    if let Some(bytes) = replica.capacity_bytes {
        arguments.extend(["--capacity".to_owned(), bytes.to_string()]);
    }
    spec(layout, program, replica.process_name(), arguments)
}

fn engine_spec(
    layout: &Layout,
    program: &Path,
    volume: &VolumeRecord,
    attachment: &AttachmentRecord,
) -> ProcessSpec {
    let mut arguments = engine_arguments(layout, volume, attachment.listen.as_ref());
    if attachment.read_only {
        arguments.push("--read-only".to_owned());
    }
    spec(layout, program, engine_name(&volume.name), arguments)
}

/// None once the snapshot is gone.
fn export_spec(
    layout: &Layout,
    program: &Path,
    volume: &VolumeRecord,
    export: &ExportRecord,
) -> Option<ProcessSpec> {
    let snapshot = volume.snapshots.iter().find(|known| known.id == export.snapshot)?;
    let mut arguments = engine_arguments(layout, volume, export.listen.as_ref());
    arguments.extend(["--snapshot".to_owned(), snapshot.id.to_string()]);
    Some(spec(layout, program, export_process(&volume.name, snapshot), arguments))
}

fn engine_arguments(layout: &Layout, volume: &VolumeRecord, listen: Option<&String>) -> Vec<String> {
    let mut arguments =
        ["engine", "--dir", &text(layout.dir()), "--volume", &volume.name].map(str::to_owned).to_vec();
    if let Some(address) = listen {
        arguments.extend(["--listen".to_owned(), address.clone()]);
    }
    arguments
}

fn spec(layout: &Layout, program: &Path, name: String, mut arguments: Vec<String>) -> ProcessSpec {
    let lock: PathBuf = layout.lock(&name);
    arguments.extend(["--lock".to_owned(), text(&lock)]);
    ProcessSpec { program: program.to_owned(), arguments, lock, log: layout.log(&name), name }
}

/// A layout's paths are UTF-8: `Layout::open` refuses others.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
