//! `trivet volume attach`, `detach` and `resize`.

use super::{AttachArgs, NameArgs, ResizeArgs, key};
use crate::args::{Output, Place};
use crate::explain;
use crate::failure::Failure;
use crate::output::announce;
use crate::up::wait_for_engine;
use crate::view;
use trivet_api::v1;
use trivet_crypto::DataKey;
use trivet_model::size::ByteSize;

pub(super) async fn attach(arguments: &AttachArgs) -> Result<(), Failure> {
    let name = &arguments.name;
    let what = format!("cannot attach volume '{name}'");
    let data_key = match arguments.key.holder(&what)? {
        None => None,
        Some(holder) => {
            let (client, dir) = arguments.place.connect()?;
            Some(key::unlock(&client, &dir, name, &what, holder.as_ref()).await?.0)
        }
    };
    attach_with(arguments, data_key).await
}

/// The same, the data key being known.
pub(super) async fn attach_with(arguments: &AttachArgs, data_key: Option<DataKey>) -> Result<(), Failure> {
    let name = &arguments.name;
    let layout = arguments.place.layout()?;
    let (client, dir) = arguments.place.connect()?;
    let request = v1::AttachVolumeRequest {
        name: name.clone(),
        listen: arguments.listen.clone().unwrap_or_default(),
        read_only: arguments.read_only,
        force: arguments.force,
        data_key: data_key.map(|key| key.expose().to_vec()).unwrap_or_default(),
    };
    let asked = client.attach_volume(request).await;
    asked.map_err(|error| explain::api(&dir, format!("cannot attach volume '{name}'"), &error))?;
    let volume = wait_for_engine(&client, &layout, name).await?;
    let uris: Vec<&str> =
        [&volume.uri, &volume.tcp_uri].into_iter().filter_map(|uri| uri.as_deref()).collect();
    announce(arguments.output, &volume, &uris.join("\n"));
    Ok(())
}

/// Attaches a volume that has just been made.
pub(super) async fn attach_made(
    name: &str,
    data_key: Option<DataKey>,
    place: &Place,
    output: Output,
) -> Result<(), Failure> {
    let (name, place, key) = (name.to_owned(), place.clone(), key::KeyArgs::default());
    let attach = AttachArgs { name, listen: None, read_only: false, force: false, key, place, output };
    attach_with(&attach, data_key).await
}

pub(super) async fn detach(arguments: &NameArgs) -> Result<(), Failure> {
    let name = &arguments.name;
    let (client, dir) = arguments.place.connect()?;
    let detached = client.detach_volume(v1::DetachVolumeRequest { name: name.clone() }).await;
    let detached =
        detached.map_err(|error| explain::api(&dir, format!("cannot detach volume '{name}'"), &error))?;
    announce(arguments.output, &view::volume(detached)?, &format!("{name} is detached; its data stays"));
    Ok(())
}

pub(super) async fn resize(arguments: &ResizeArgs) -> Result<(), Failure> {
    let name = &arguments.name;
    let (client, dir) = arguments.place.connect()?;
    let request = v1::ResizeVolumeRequest { name: name.clone(), blocks: arguments.size.blocks };
    let resized = client.resize_volume(request).await;
    let resized =
        resized.map_err(|error| explain::api(&dir, format!("cannot resize volume '{name}'"), &error))?;
    let volume = view::volume(resized)?;
    announce(arguments.output, &volume, &format!("{name} has {}", ByteSize(volume.size_bytes)));
    Ok(())
}
