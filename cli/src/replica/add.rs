//! `trivet replica add`.

use super::{AddArgs, number};
use crate::cluster::command;
use crate::explain;
use crate::failure::Failure;
use crate::output::announce;
use crate::view::{self, VolumeView, replica_name};
use std::path::Path;
use trivet_api::v1;

pub(super) async fn run(arguments: &AddArgs) -> Result<(), Failure> {
    let name = &arguments.volume;
    let (client, dir) = arguments.place.connect()?;
    let request = v1::AddReplicaRequest { volume: name.clone(), to: number(arguments.to) };
    let added = client.add_replica(request).await;
    let added =
        added.map_err(|error| explain::api(&dir, format!("cannot add a copy of volume '{name}'"), &error))?;
    let volume = view::volume(added.volume.unwrap_or_default())?;
    let replica = replica_name(added.replica);
    let line = format!("{name} has a new copy on {replica}; {}", what_follows(&volume, &dir));
    announce(arguments.output, &volume, &line);
    Ok(())
}

/// What becomes of a new copy.
pub(super) fn what_follows(volume: &VolumeView, dir: &Path) -> String {
    let name = &volume.name;
    if is_brought_back(volume) {
        format!("{} shows how far it is", command(dir, &format!("volume show {name}")))
    } else if volume.attached {
        "it stays behind as long as the volume is attached for reading only".to_owned()
    } else {
        let attach = command(dir, &format!("volume attach {name}"));
        format!("it stays behind until the volume is attached: {attach}")
    }
}

/// Whether an engine is there that brings copies in sync.
pub(super) fn is_brought_back(volume: &VolumeView) -> bool {
    volume.attached && !volume.read_only
}
