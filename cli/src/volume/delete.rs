//! `trivet volume delete`.

use super::{DeleteArgs, key};
use crate::down::confirm;
use crate::explain;
use crate::failure::Failure;
use crate::output::say;
use crate::view::{self, VolumeView, size};
use trivet_api::v1;
use trivet_model::size::ByteSize;

pub(super) async fn run(arguments: &DeleteArgs) -> Result<(), Failure> {
    let name = &arguments.name;
    let (client, dir) = arguments.place.connect()?;
    let delete = async |dry_run| {
        let request = v1::DeleteVolumeRequest { name: name.clone(), dry_run, force: arguments.force };
        let deleted = client.delete_volume(request).await;
        deleted.map_err(|error| explain::api(&dir, format!("cannot delete volume '{name}'"), &error))
    };
    // First dry in any case: what cannot be deleted is not asked about.
    let lost = match delete(true).await?.volume {
        Some(volume) => {
            let volume = view::volume(volume)?;
            describe(&volume, &key::sharers(&client, &dir, &volume).await?)
        }
        None => format!("volume '{name}'"),
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

fn describe(volume: &VolumeView, sharers: &str) -> String {
    format!(
        "volume '{}' of {}, with {} of data in {} copies{}{}",
        volume.name,
        ByteSize(volume.size_bytes),
        size(volume.used_bytes),
        volume.members.len(),
        match volume.snapshots.len() {
            0 => String::new(),
            1 => ", and its snapshot".to_owned(),
            count => format!(", and its {count} snapshots"),
        },
        match (&volume.encryption, sharers) {
            (None, _) => String::new(),
            (Some(_), "") => "; its key first, so that no copy can be read any more".to_owned(),
            (Some(_), sharers) => {
                format!("; its key first, but whoever unlocks {sharers} has the same data key")
            }
        }
    )
}
