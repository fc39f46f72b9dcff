//! `trivet volume rekey`.

use super::{RekeyArgs, key};
use crate::explain;
use crate::failure::Failure;
use crate::output::announce;
use crate::view;
use trivet_api::v1;

pub(super) async fn run(arguments: &RekeyArgs) -> Result<(), Failure> {
    let name = &arguments.name;
    let what = format!("cannot rekey volume '{name}'");
    let (holder, wrapper) = arguments.new.with(&arguments.old, &what)?;
    let (client, dir) = arguments.place.connect()?;
    let (data_key, found) = key::unlock(&client, &dir, name, &what, holder.as_ref()).await?;
    let wrapped = wrapper.wrap(&data_key).map_err(|error| Failure::new(&what, error, ""))?;
    let request = v1::RekeyVolumeRequest {
        name: name.clone(),
        expected: found.to_text(),
        wrapped_key: wrapped.to_text(),
    };
    let rekeyed = client.rekey_volume(request).await;
    let rekeyed = rekeyed.map_err(|error| explain::api(&dir, what, &error))?;
    let volume = view::volume(rekeyed)?;
    let unlocked_by = wrapped.method().kind();
    let line = match key::sharers(&client, &dir, &volume).await?.as_str() {
        "" => format!("{name} is unlocked by {unlocked_by} from now on; the old key opens it no more"),
        sharers => format!(
            "{name} is unlocked by {unlocked_by} from now on. {sharers} have the same data key, and are unlocked as \
             before: rekey them too, else their key opens what is left of this one"
        ),
    };
    announce(arguments.output, &volume, &line);
    Ok(())
}
