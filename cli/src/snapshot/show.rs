//! `trivet snapshot list` and `show`.

use super::{ListArgs, NameArgs};
use crate::args::Format;
use crate::clock::{unix_seconds, utc_time};
use crate::cluster::command;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::{json, say, table};
use crate::scrub_view::ago;
use crate::view::{self, SnapshotView, VolumeView};
use std::path::Path;
use trivet_api::{Client, v1};

pub(super) async fn list(arguments: &ListArgs) -> Result<(), Failure> {
    let (client, dir) = arguments.place.connect()?;
    let volumes = match &arguments.volume {
        Some(name) => vec![volume(&client, &dir, name).await?],
        None => {
            let status = client.get_status(v1::GetStatusRequest {}).await;
            let status = status.map_err(|error| explain::api(&dir, "cannot list the snapshots", &error))?;
            view::cluster(status)?.volumes
        }
    };
    let snapshots: Vec<SnapshotView> = volumes.into_iter().flat_map(|volume| volume.snapshots).collect();
    match arguments.output.output {
        Format::Json => json(&snapshots),
        Format::Table if snapshots.is_empty() => {
            say("no snapshots: trivet snapshot create VOLUME takes one");
        }
        Format::Table => {
            let now = unix_seconds();
            let rows = snapshots.iter().map(|snapshot| {
                let labels = snapshot.labels.iter().map(|(key, value)| format!("{key}={value}"));
                vec![
                    snapshot.volume.clone(),
                    snapshot.name.clone(),
                    ago(snapshot.created, now),
                    snapshot.export.as_ref().map_or_else(|| "-".to_owned(), |export| export.state.clone()),
                    labels.collect::<Vec<_>>().join(" "),
                ]
            });
            say(&table(&["VOLUME", "SNAPSHOT", "TAKEN", "EXPORT", "LABELS"], rows.collect()));
        }
    }
    Ok(())
}

pub(super) async fn show(arguments: &NameArgs) -> Result<(), Failure> {
    let name = &arguments.snapshot;
    let (client, dir) = arguments.place.connect()?;
    let volume = volume(&client, &dir, &arguments.volume).await?;
    let found = volume.snapshots.iter().find(|found| found.name == *name);
    let snapshot = found.ok_or_else(|| {
        Failure::new(
            format!("cannot show snapshot '{name}'"),
            format!("volume '{}' has no snapshot '{name}'", volume.name),
            format!("see what there is: {}", command(&dir, &format!("snapshot list {}", volume.name))),
        )
        .exit(Exit::NotFound)
    })?;
    match arguments.output.output {
        Format::Json => json(snapshot),
        Format::Table => say(&as_text(snapshot)),
    }
    Ok(())
}

fn as_text(snapshot: &SnapshotView) -> String {
    let taken = format!("{} ({})", utc_time(snapshot.created), ago(snapshot.created, unix_seconds()));
    let mut facts = vec![
        ("name", snapshot.name.clone()),
        ("volume", snapshot.volume.clone()),
        ("id", snapshot.id.clone()),
        ("taken", taken),
        ("stamp", snapshot.stamp.clone()),
    ];
    if let Some(export) = &snapshot.export {
        facts.push(("export", export.state.clone()));
        facts.push(("uri", export.uri.clone()));
        facts.extend(export.tcp_uri.iter().map(|uri| ("tcp uri", uri.clone())));
        facts.push(("clients", export.connections.to_string()));
        facts.push(("log", export.engine.log.clone()));
        if !export.trouble.is_empty() {
            facts.push(("trouble", export.trouble.clone()));
        }
    }
    facts.extend(snapshot.labels.iter().map(|(key, value)| ("label", format!("{key}={value}"))));
    let lines: Vec<String> = facts.iter().map(|(name, value)| format!("{name:<12}{value}")).collect();
    lines.join("\n")
}

async fn volume(client: &Client, dir: &Path, name: &str) -> Result<VolumeView, Failure> {
    let found = client.get_volume(v1::GetVolumeRequest { name: name.to_owned() }).await;
    let found = found
        .map_err(|error| explain::api(dir, format!("cannot list snapshots of volume '{name}'"), &error))?;
    view::volume(found)
}
