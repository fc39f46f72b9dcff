//! `trivet volume create`.

use super::{CreateArgs, change, key};
use crate::cluster::command;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::announce;
use crate::view;
use trivet_api::v1;
use trivet_model::record::is_volume_name;
use trivet_model::size::ByteSize;

/// Refuses what cannot name a volume.
pub(crate) fn check_name(name: &str) -> Result<(), Failure> {
    if is_volume_name(name) {
        return Ok(());
    }
    Err(Failure::new(
        format!("'{name}' cannot name a volume"),
        "a name is 1 to 63 of a-z, 0-9, '-', '_' and '.', and begins with a letter or digit",
        "choose another name, such as disk1",
    )
    .exit(Exit::Usage))
}

pub(super) async fn run(arguments: &CreateArgs) -> Result<(), Failure> {
    let name = &arguments.name;
    check_name(name)?;
    let (client, dir) = arguments.place.connect()?;
    let wrapped = if arguments.encrypt { Some(key::new_key(name, &arguments.key)?) } else { None };
    let request = v1::CreateVolumeRequest {
        name: name.clone(),
        blocks: arguments.size.blocks,
        copies: arguments.copies.unwrap_or(0),
        settings: Some(arguments.settings.to_wire()),
        wrapped_key: wrapped.as_ref().map(|(_, wrapped)| wrapped.to_text()).unwrap_or_default(),
    };
    let created = client.create_volume(request).await;
    let created =
        created.map_err(|error| explain::api(&dir, format!("cannot make volume '{name}'"), &error))?;
    if arguments.attach {
        let data_key = wrapped.map(|(data_key, _)| data_key);
        return change::attach_made(name, data_key, &arguments.place, arguments.output).await;
    }
    let volume = view::volume(created)?;
    let line = format!(
        "{name}: {}, {} copies; serve it with {}",
        ByteSize(volume.size_bytes),
        volume.members.len(),
        command(&dir, &format!("volume attach {name}"))
    );
    announce(arguments.output, &volume, &line);
    Ok(())
}
