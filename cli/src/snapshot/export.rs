//! `trivet snapshot export` and `unexport`.

use super::{ExportArgs, NameArgs};
use crate::args::Format;
use crate::explain;
use crate::failure::Failure;
use crate::output::{json, say};
use crate::up::wait_for_export;
use crate::view;
use trivet_api::v1;

pub(super) async fn export(arguments: &ExportArgs) -> Result<(), Failure> {
    let (volume, name) = (&arguments.volume, &arguments.snapshot);
    let layout = arguments.place.layout()?;
    let (client, dir) = arguments.place.connect()?;
    let request = v1::ExportSnapshotRequest {
        volume: volume.clone(),
        name: name.clone(),
        listen: arguments.listen.clone().unwrap_or_default(),
    };
    let asked = client.export_snapshot(request).await;
    asked.map_err(|error| {
        explain::api(&dir, format!("cannot export snapshot '{name}' of '{volume}'"), &error)
    })?;
    let export = wait_for_export(&client, &layout, volume, name).await?;
    match arguments.output.output {
        Format::Json => json(&export),
        Format::Table => {
            say(&[Some(export.uri), export.tcp_uri].into_iter().flatten().collect::<Vec<_>>().join("\n"))
        }
    }
    Ok(())
}

pub(super) async fn unexport(arguments: &NameArgs) -> Result<(), Failure> {
    let (volume, name) = (&arguments.volume, &arguments.snapshot);
    let (client, dir) = arguments.place.connect()?;
    let request = v1::UnexportSnapshotRequest { volume: volume.clone(), name: name.clone() };
    let ended = client.unexport_snapshot(request).await.map_err(|error| {
        explain::api(&dir, format!("cannot end the export of snapshot '{name}' of '{volume}'"), &error)
    })?;
    let shown = view::volume(ended)?;
    let snapshot = shown.snapshots.iter().find(|found| found.name == *name);
    match (arguments.output.output, snapshot) {
        (Format::Json, Some(snapshot)) => json(snapshot),
        _ => say(&format!("{volume}@{name} is exported no more")),
    }
    Ok(())
}
