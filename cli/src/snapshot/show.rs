//! `trivet snapshot list` and `show`.

use super::size::freed_by;
use super::{ListArgs, NameArgs};
use crate::args::Format;
use crate::clock::{unix_seconds, utc_time};
use crate::cluster::command;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::{json, say, table};
use crate::scrub_view::ago;
use crate::snapshot_view::SnapshotView;
use crate::view::{self, VolumeView, size};
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
    let mut snapshots: Vec<SnapshotView> = Vec::new();
    for mut volume in volumes {
        if arguments.sizes {
            for at in 0..volume.snapshots.len() {
                let freed = freed_by(&client, &dir, &volume.snapshots, at).await?;
                volume.snapshots[at].freed_bytes = Some(freed);
            }
        }
        snapshots.append(&mut volume.snapshots);
    }
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
                    size(snapshot.freed_bytes),
                    snapshot.export.as_ref().map_or_else(|| "-".to_owned(), |export| export.state.clone()),
                    labels.collect::<Vec<_>>().join(" "),
                ]
            });
            say(&table(&["VOLUME", "SNAPSHOT", "TAKEN", ">FREES", "EXPORT", "LABELS"], rows.collect()));
        }
    }
    Ok(())
}

pub(super) async fn show(arguments: &NameArgs) -> Result<(), Failure> {
    let name = &arguments.snapshot;
    let (client, dir) = arguments.place.connect()?;
    let mut volume = volume(&client, &dir, &arguments.volume).await?;
    let at = volume.snapshots.iter().position(|found| found.name == *name);
    let at = at.ok_or_else(|| {
        Failure::new(
            format!("cannot show snapshot '{name}'"),
            format!("volume '{}' has no snapshot '{name}'", volume.name),
            format!("see what there is: {}", command(&dir, &format!("snapshot list {}", volume.name))),
        )
        .exit(Exit::NotFound)
    })?;
    // What is known of it is shown though no copy can be asked now.
    volume.snapshots[at].freed_bytes = freed_by(&client, &dir, &volume.snapshots, at).await.ok();
    let snapshot = &volume.snapshots[at];
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
        ("frees", format!("{} on each copy when it is deleted", size(snapshot.freed_bytes))),
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
