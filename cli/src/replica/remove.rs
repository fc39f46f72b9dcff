//! `trivet replica remove`.

use super::RemoveArgs;
use crate::cluster::command;
use crate::down::confirm;
use crate::explain;
use crate::failure::Failure;
use crate::output::say;
use crate::view::{self, VolumeView, replica_name, size};
use trivet_api::v1;

pub(super) async fn run(arguments: &RemoveArgs) -> Result<(), Failure> {
    let (name, number) = (&arguments.volume, arguments.from.0);
    let (client, dir) = arguments.place.connect()?;
    let remove = async |dry_run| {
        let request = v1::RemoveReplicaRequest { volume: name.clone(), from: number, dry_run };
        let what = || format!("cannot remove the copy of volume '{name}' on {}", replica_name(number));
        client.remove_replica(request).await.map_err(|error| explain::api(&dir, what(), &error))
    };
    // First dry in any case: what cannot be removed is not asked about.
    let before = view::volume(remove(true).await?.volume.unwrap_or_default())?;
    let lost = describe(&before, number);
    if arguments.dry_run {
        say(&format!("would remove {lost}"));
        return Ok(());
    }
    confirm(&format!("This removes {lost}."), arguments.yes)?;
    remove(false).await?;
    let again = command(&dir, &format!("volume set {name} --copies {}", before.members.len()));
    say(&format!("removed {lost}; to have another made elsewhere: {again}"));
    Ok(())
}

fn describe(volume: &VolumeView, number: u32) -> String {
    let leaver = volume.member(number);
    let name = replica_name(number);
    let in_sync = volume.members.iter().filter(|m| m.state == "in-sync" && m.name != name).count();
    format!(
        "the copy of volume '{}' on {name} ({}, {} of data); copies in sync without it: {in_sync}",
        volume.name,
        leaver.map_or("unknown", |leaver| leaver.state),
        size(leaver.and_then(|leaver| leaver.used_bytes)),
    )
}
