//! `trivet status`.

use crate::args::{Format, Output, Place};
use crate::explain;
use crate::failure::Failure;
use crate::output::{json, say, table};
use crate::snapshot_view::{ExportView, SnapshotView};
use crate::view::{self, ClusterView, ProcessView, VolumeView, copies, size};
use clap::Args;
use trivet_api::v1;

/// Show the processes, pools and volumes of a cluster
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(arguments: &StatusArgs) -> Result<(), Failure> {
    let (client, dir) = arguments.place.connect()?;
    let status = client
        .get_status(v1::GetStatusRequest {})
        .await
        .map_err(|error| explain::api(&dir, "cannot learn the cluster's state", &error))?;
    let view = view::cluster(status)?;
    match arguments.output.output {
        Format::Json => json(&view),
        Format::Table => say(&as_text(&view)),
    }
    Ok(())
}

fn as_text(view: &ClusterView) -> String {
    let mut text = format!("cluster {} on {}, trivet {}\n\n", view.dir, view.node, view.version);
    let mut rows = vec![vec![
        "manager".into(),
        "running".into(),
        view.manager_pid.to_string(),
        "-".into(),
        "-".into(),
        "-".into(),
    ]];
    for replica in &view.replicas {
        rows.push(vec![
            replica.name.clone(),
            replica.process.state.to_owned(),
            pid(&replica.process),
            size(replica.used_bytes),
            size(replica.size_bytes),
            replica.address.clone(),
        ]);
    }
    text += &table(&["PROCESS", "STATE", ">PID", ">USED", ">POOL", "ADDRESS"], rows);
    text += "\n\n";
    if view.volumes.is_empty() {
        text += "no volumes: trivet volume create NAME --size 10GiB makes one\n";
    } else {
        let rows = view.volumes.iter().map(|volume| {
            vec![
                volume.name.clone(),
                size(Some(volume.size_bytes)),
                size(volume.used_bytes),
                copies(volume),
                volume.engine.as_ref().map_or_else(|| "-".to_owned(), pid),
                volume.state.clone(),
            ]
        });
        text += &table(&["VOLUME", ">SIZE", ">USED", ">COPIES", ">ENGINE PID", "STATE"], rows.collect());
        text += "\n";
    }
    let exports: Vec<Vec<String>> = exports(view)
        .map(|(snapshot, export)| {
            let name = format!("{}@{}", snapshot.volume, snapshot.name);
            vec![name, export.connections.to_string(), pid(&export.engine), export.state.clone()]
        })
        .collect();
    if !exports.is_empty() {
        text += &format!("\n{}\n", table(&["EXPORT", ">CLIENTS", ">ENGINE PID", "STATE"], exports));
    }
    for line in troubles(view) {
        text += &format!("\n! {line}");
    }
    text.trim_end().to_owned()
}

fn exports(view: &ClusterView) -> impl Iterator<Item = (&SnapshotView, &ExportView)> {
    let snapshots = view.volumes.iter().flat_map(|volume| &volume.snapshots);
    snapshots.filter_map(|snapshot| Some((snapshot, snapshot.export.as_ref()?)))
}

fn troubles(view: &ClusterView) -> Vec<String> {
    let mut lines = Vec::new();
    for replica in &view.replicas {
        if !replica.trouble.is_empty() {
            lines.push(format!("{}: {} (log: {})", replica.name, replica.trouble, replica.process.log));
        }
        if let Some(errors @ 1..) = replica.checksum_errors {
            lines.push(format!("{}: {errors} reads met damaged blocks", replica.name));
        }
    }
    for volume in &view.volumes {
        if let (true, false, Some(engine)) = (volume.attached, volume.serving, &volume.engine) {
            lines.push(format!("{}: {} (log: {})", volume.name, volume.trouble, engine.log));
        }
        if volume.is_degraded() {
            lines.push(degraded(volume));
        }
    }
    for (snapshot, export) in exports(view).filter(|(_, export)| !export.serving) {
        let (volume, name, log) = (&snapshot.volume, &snapshot.name, &export.engine.log);
        lines.push(format!("{volume}@{name}: {} (log: {log})", export.trouble));
    }
    if view.deletions_pending > 0 {
        lines.push(format!(
            "deleted or removed copies of {} volumes still take space in pools that do not answer",
            view.deletions_pending
        ));
    }
    lines
}

/// Who lacks what, and what becomes of it.
fn degraded(volume: &VolumeView) -> String {
    let in_sync = volume.members.iter().filter(|member| member.state == "in-sync").count();
    let behind: Vec<String> = volume
        .members
        .iter()
        .filter(|member| member.state != "in-sync")
        .map(|member| match &member.sync {
            Some(sync) => format!("{} is brought back ({sync})", member.name),
            None if member.trouble.is_empty() => format!("{} is {}", member.name, member.state),
            None => format!("{} is {} ({})", member.name, member.state, member.trouble),
        })
        .collect();
    let replacement = volume.replacement.as_ref();
    let replacement =
        replacement.map(|replacement| format!("; {} replaces {}", replacement.to, replacement.from));
    format!(
        "{}: degraded, {in_sync} of {} copies in sync: {}{}",
        volume.name,
        volume.members.len(),
        behind.join(", "),
        replacement.unwrap_or_default()
    )
}

fn pid(process: &ProcessView) -> String {
    process.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())
}
