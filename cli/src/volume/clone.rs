//! `trivet volume clone`, `seal` and `unseal`.

use super::{CloneArgs, NameArgs, change, key};
use crate::cluster::command;
use crate::explain;
use crate::failure::Failure;
use crate::output::announce;
use crate::view;
use trivet_api::v1;
use trivet_model::size::ByteSize;

pub(super) async fn run(arguments: &CloneArgs) -> Result<(), Failure> {
    let (of, name) = (&arguments.of, &arguments.name);
    let (client, dir) = arguments.place.connect()?;
    let what = format!("cannot clone '{}' as '{name}'", of.volume);
    // The clone's data key is its parent's, so it is known before anything is made.
    let given = (&arguments.key, arguments.attach);
    let data_key = key::key_for(&client, &dir, &of.volume, &what, given).await?;
    let request = v1::CloneVolumeRequest {
        of: of.volume.clone(),
        snapshot: of.snapshot.clone().unwrap_or_default(),
        name: name.clone(),
        copies: arguments.copies.unwrap_or(0),
        to: arguments.to.iter().map(|to| to.0).collect(),
        full: arguments.full,
    };
    let cloned = client.clone_volume(request).await;
    let cloned = cloned.map_err(|error| explain::api(&dir, what, &error))?;
    if arguments.attach {
        return change::attach_made(name, data_key, &arguments.place, arguments.output).await;
    }
    let volume = view::volume(cloned)?;
    let next = if arguments.to.is_empty() {
        "serve it with"
    } else {
        "its copies elsewhere are made while it is served:"
    };
    let line = format!(
        "{name}: {}, a clone of {}; {next} {}",
        ByteSize(volume.size_bytes),
        volume.parent.as_ref().map_or_else(|| of.volume.clone(), ToString::to_string),
        command(&dir, &format!("volume attach {name}"))
    );
    announce(arguments.output, &volume, &line);
    Ok(())
}

pub(super) async fn set_image(arguments: &NameArgs, is_image: bool) -> Result<(), Failure> {
    let name = &arguments.name;
    let (client, dir) = arguments.place.connect()?;
    let what = if is_image { "seal" } else { "unseal" };
    let set = client.set_image(v1::SetImageRequest { name: name.clone(), is_image }).await;
    let set = set.map_err(|error| explain::api(&dir, format!("cannot {what} volume '{name}'"), &error))?;
    let line = if is_image {
        let clone = command(&dir, &format!("volume clone {name} NEW"));
        format!("{name} is a golden image; make volumes of it with {clone}")
    } else {
        format!("{name} is a usual volume again")
    };
    announce(arguments.output, &view::volume(set)?, &line);
    Ok(())
}
