//! `trivet snapshot create` and `delete`.

use super::{CreateArgs, DeleteArgs};
use crate::args::Format;
use crate::clock::{unix_seconds, utc_name};
use crate::down::confirm;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::{json, say};
use crate::scrub_view::ago;
use crate::view;
use trivet_api::v1;

pub(super) async fn create(arguments: &CreateArgs) -> Result<(), Failure> {
    let volume = &arguments.volume;
    let name = arguments.snapshot.clone().unwrap_or_else(|| utc_name(unix_seconds()));
    let (client, dir) = arguments.place.connect()?;
    let labels = arguments.labels.iter().cloned().collect();
    let request = v1::CreateSnapshotRequest { volume: volume.clone(), name: name.clone(), labels };
    let taken = client.create_snapshot(request).await;
    let taken = taken.map_err(|error| {
        explain::api(&dir, format!("cannot take snapshot '{name}' of '{volume}'"), &error)
    })?;
    let found = view::volume(taken)?.snapshots.into_iter().find(|found| found.name == name);
    match (arguments.output.output, found) {
        (Format::Json, Some(found)) => json(&found),
        (Format::Table, Some(_)) => say(&format!("{volume}@{name} is taken")),
        (_, None) => {
            return Err(Failure::new(
                format!("snapshot '{name}' of '{volume}' is gone again"),
                "somebody else has deleted it",
                "",
            )
            .exit(Exit::NotFound));
        }
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
