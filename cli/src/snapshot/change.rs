//! `trivet snapshot create` and `delete`.

use super::freeze::Frozen;
use super::{CreateArgs, DeleteArgs, LabelArgs};
use crate::args::Format;
use crate::clock::{unix_seconds, utc_name};
use crate::down::confirm;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::{json, say};
use crate::scrub_view::ago;
use crate::snapshot_view::SnapshotView;
use crate::view;
use serde::Serialize;
use trivet_api::v1;

/// Snapshots of several volumes at one moment.
#[derive(Serialize, Debug)]
struct Taken<'a> {
    snapshots: &'a [SnapshotView],
    /// For how long writes were held.
    held_microseconds: u64,
}

pub(super) async fn create(arguments: &CreateArgs) -> Result<(), Failure> {
    let (volumes, name) = volumes_and_name(arguments)?;
    let name = name.unwrap_or_else(|| utc_name(unix_seconds()));
    let (client, dir) = arguments.place.connect()?;
    let labels = arguments.labels.iter().cloned().collect();
    let mut frozen = Frozen::begin(arguments)?;
    let taken = if let [volume] = &volumes[..] {
        let request = v1::CreateSnapshotRequest { volume: volume.clone(), name: name.clone(), labels };
        client.create_snapshot(request).await.map(|taken| (vec![taken], None))
    } else {
        let request = v1::CreateGroupSnapshotRequest { volumes: volumes.clone(), name: name.clone(), labels };
        let taken = client.create_group_snapshot(request).await;
        taken.map(|taken| (taken.volumes, Some(taken.held_microseconds)))
    };
    let thawed = frozen.end();
    let of = volumes.join("', '");
    let (taken, held) = taken
        .map_err(|error| explain::api(&dir, format!("cannot take snapshot '{name}' of '{of}'"), &error))?;
    let mut found: Vec<SnapshotView> = Vec::new();
    for volume in taken {
        let gone = || {
            let cause = "somebody else has deleted it";
            Failure::new(format!("snapshot '{name}' of '{of}' is gone again"), cause, "").exit(Exit::NotFound)
        };
        let snapshot = view::volume(volume)?.snapshots.into_iter().find(|found| found.name == name);
        found.push(snapshot.ok_or_else(gone)?);
    }
    match (arguments.output.output, &found[..]) {
        (Format::Json, [one]) if arguments.volumes.is_empty() => json(one),
        (Format::Json, snapshots) => json(&Taken { snapshots, held_microseconds: held.unwrap_or(0) }),
        (Format::Table, all) => {
            let names: Vec<String> = all.iter().map(|taken| format!("{}@{name}", taken.volume)).collect();
            let are = if all.len() == 1 { "is" } else { "are" };
            let held =
                held.map(|held| format!("; writes waited for {}.{} ms", held / 1000, held % 1000 / 100));
            say(&format!("{} {are} taken{}", names.join(", "), held.unwrap_or_default()));
        }
    }
    // Said last: the snapshot is there all the same.
    thawed
}

/// Of `VOLUME [SNAPSHOT]`, or `--volume VOLUME... [SNAPSHOT]`.
fn volumes_and_name(arguments: &CreateArgs) -> Result<(Vec<String>, Option<String>), Failure> {
    let CreateArgs { names, volumes, .. } = arguments;
    match (&volumes[..], &names[..]) {
        ([], [volume, rest @ ..]) => Ok((vec![volume.clone()], rest.first().cloned())),
        ([_, ..], [] | [_]) => Ok((volumes.clone(), names.first().cloned())),
        _ => Err(Failure::new(
            "cannot take a snapshot",
            "with --volume, only the snapshot's name is given besides",
            "name all volumes with --volume, or one without",
        )
        .exit(Exit::Usage)),
    }
}

pub(super) async fn label(arguments: &LabelArgs) -> Result<(), Failure> {
    let (volume, name) = (&arguments.volume, &arguments.snapshot);
    let (client, dir) = arguments.place.connect()?;
    let request = v1::LabelSnapshotRequest {
        volume: volume.clone(),
        name: name.clone(),
        labels: arguments.labels.iter().cloned().collect(),
        removed: arguments.removed.clone(),
    };
    let labelled = client.label_snapshot(request).await;
    let labelled = labelled.map_err(|error| {
        explain::api(&dir, format!("cannot label snapshot '{name}' of '{volume}'"), &error)
    })?;
    let found = view::volume(labelled)?.snapshots.into_iter().find(|found| found.name == *name);
    let labels = found.as_ref().into_iter().flat_map(|found| &found.labels);
    let labels: Vec<String> = labels.map(|(key, value)| format!("{key}={value}")).collect();
    match (arguments.output.output, &found) {
        (Format::Json, Some(found)) => json(found),
        _ => say(&format!("{volume}@{name} {}", labels.join(" "))),
    }
    Ok(())
}

pub(super) async fn delete(arguments: &DeleteArgs) -> Result<(), Failure> {
    let (volume, name) = (&arguments.volume, &arguments.snapshot);
    let (client, dir) = arguments.place.connect()?;
    let what = format!("cannot delete snapshot '{name}' of '{volume}'");
    let delete = async |dry_run| {
        let (volume, name, force) = (volume.clone(), name.clone(), arguments.force);
        let request = v1::DeleteSnapshotRequest { volume, name, dry_run, force };
        let deleted = client.delete_snapshot(request).await;
        deleted.map_err(|error| explain::api(&dir, &what, &error))
    };
    // First dry in any case: what cannot be deleted is not asked about.
    let before = view::volume(delete(true).await?)?;
    let taken = before.snapshots.iter().find(|found| found.name == *name).map(|found| found.created);
    let lost = match taken {
        Some(taken) => format!("snapshot {volume}@{name}, taken {}", ago(taken, unix_seconds())),
        None => format!("snapshot {volume}@{name}"),
    };
    if arguments.dry_run {
        say(&format!("would delete {lost}"));
        return Ok(());
    }
    confirm(&format!("This deletes {lost}."), arguments.yes)?;
    delete(false).await?;
    say(&format!("deleted {lost}"));
    Ok(())
}
