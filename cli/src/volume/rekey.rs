//! `trivet volume rekey`.

use super::{RekeyArgs, key};
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::{announce, say};
use crate::view::{self, MemberView, ReplicaView, VolumeView, size};
use std::path::Path;
use trivet_api::{Client, v1};
use trivet_crypto::DataKey;
use trivet_keys::{KeyHolder, KeyWrapper, WrappedKey, new_data_key};

pub(super) async fn run(arguments: &RekeyArgs) -> Result<(), Failure> {
    match (arguments.data, arguments.dry_run) {
        (false, _) => wrap_anew(arguments).await,
        (true, true) => only_say(arguments).await,
        (true, false) => encrypt_anew(arguments).await,
    }
}

/// The same data key, unlocked otherwise from now on.
async fn wrap_anew(arguments: &RekeyArgs) -> Result<(), Failure> {
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
        ..v1::RekeyVolumeRequest::default()
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

/// Another data key, which the volume goes over to at once; its data follows in the background.
async fn encrypt_anew(arguments: &RekeyArgs) -> Result<(), Failure> {
    let name = &arguments.name;
    let what = what(name);
    let keeper;
    let (holder, wrapper): (&dyn KeyHolder, &dyn KeyWrapper);
    let rewrapping;
    if arguments.new.is_given() {
        rewrapping = arguments.new.with(&arguments.old, &what)?;
        (holder, wrapper) = (rewrapping.0.as_ref(), rewrapping.1.as_ref());
    } else {
        keeper = arguments.old.holder(&what)?.ok_or_else(|| {
            let next = "give it: trivet volume rekey --help lists how";
            Failure::new(&what, "its present key was not given", next).exit(Exit::Usage)
        })?;
        (holder, wrapper) = (keeper.as_ref(), keeper.as_ref());
    }
    let (client, dir) = arguments.place.connect()?;
    let before = present(&client, &dir, name).await?;
    let (_, found) = key::unlock(&client, &dir, name, &what, holder).await?;
    let (data_key, wrapped) = next_key(&before, holder, wrapper, &what)?;
    let plan = Plan::of(&client, &dir, before).await?;
    let request = v1::RekeyVolumeRequest {
        name: name.clone(),
        expected: found.to_text(),
        wrapped_key: wrapped.to_text(),
        data_key: data_key.expose().to_vec(),
        dry_run: false,
    };
    let rekeyed = client.rekey_volume(request).await;
    let rekeyed = rekeyed.map_err(|error| explain::api(&dir, what, &error))?;
    if let Some(warning) = plan.warning() {
        eprintln!("warning: {warning}");
    }
    let line = format!(
        "{name} has a new data key, unlocked by {}. {} of data follow in the background: trivet volume show {name} \
         says how far that is. {}",
        wrapped.method().kind(),
        size(plan.volume.used_bytes),
        plan.what_stays()
    );
    announce(arguments.output, &view::volume(rekeyed)?, &line);
    Ok(())
}

/// The one that was chosen before, if the volume has not gone over to it yet and it can be had.
fn next_key(
    before: &v1::VolumeStatus,
    holder: &dyn KeyHolder,
    wrapper: &dyn KeyWrapper,
    what: &str,
) -> Result<(DataKey, WrappedKey), Failure> {
    let pending = before.encryption.as_ref().map_or("", |encryption| &encryption.next_wrapped_key);
    if let Ok(wrapped) = WrappedKey::parse(pending)
        && let Ok(key) = holder.unwrap(&wrapped)
    {
        return Ok((key, wrapped));
    }
    let failed = |error| Failure::new(what, error, "");
    let key = new_data_key().map_err(failed)?;
    let wrapped = wrapper.wrap(&key).map_err(failed)?;
    Ok((key, wrapped))
}

async fn only_say(arguments: &RekeyArgs) -> Result<(), Failure> {
    let name = &arguments.name;
    let (client, dir) = arguments.place.connect()?;
    let request =
        v1::RekeyVolumeRequest { name: name.clone(), dry_run: true, ..v1::RekeyVolumeRequest::default() };
    let before = client.rekey_volume(request).await;
    let before = before.map_err(|error| explain::api(&dir, what(name), &error))?;
    let plan = Plan::of(&client, &dir, before).await?;
    let used = size(plan.volume.used_bytes);
    let text = format!("would encrypt {used} of '{name}' anew, under a new data key. {}", plan.what_stays());
    say(&plan.warning().map_or(text.clone(), |warning| format!("{text}. {warning}")));
    Ok(())
}

/// Servers on which there may not be as much room as the copy takes now.
fn crowded(volume: &VolumeView, replicas: &[ReplicaView]) -> Vec<String> {
    if volume.snapshots.is_empty() {
        return Vec::new();
    }
    let of_member = |member: &MemberView| {
        let replica = replicas.iter().find(|replica| replica.name == member.name)?;
        let free = replica.size_bytes?.saturating_sub(replica.used_bytes?);
        (free < member.used_bytes?).then(|| format!("{} has {} free", replica.name, size(Some(free))))
    };
    volume.members.iter().filter_map(of_member).collect()
}

fn what(name: &str) -> String {
    format!("cannot encrypt the data of volume '{name}' anew")
}

async fn present(client: &Client, dir: &Path, name: &str) -> Result<v1::VolumeStatus, Failure> {
    let found = client.get_volume(v1::GetVolumeRequest { name: name.to_owned() }).await;
    found.map_err(|error| explain::api(dir, what(name), &error))
}

/// A volume before its data is encrypted anew.
struct Plan {
    volume: VolumeView,
    /// Others that have its old data key.
    sharers: String,
    /// The servers of its copies that may not have room for it.
    crowded: Vec<String>,
}

impl Plan {
    async fn of(client: &Client, dir: &Path, before: v1::VolumeStatus) -> Result<Self, Failure> {
        let volume = view::volume(before)?;
        let sharers = key::sharers(client, dir, &volume).await?;
        let status = client.get_status(v1::GetStatusRequest {}).await;
        let status = status.map_err(|error| explain::api(dir, what(&volume.name), &error))?;
        let crowded = crowded(&volume, &view::cluster(status)?.replicas);
        Ok(Self { volume, sharers, crowded })
    }

    /// What that may cost.
    fn warning(&self) -> Option<String> {
        let used = size(self.volume.used_bytes);
        (!self.crowded.is_empty()).then(|| {
            format!(
                "Snapshots keep what is replaced, so that it takes up to {used} more on each server, and {}: without \
                 that room it stops, and writes to volumes there fail. Delete snapshots first, or make room.",
                self.crowded.join(", ")
            )
        })
    }

    /// What who has the old data key can still read, and until when.
    fn what_stays(&self) -> String {
        let behind = self.volume.members.iter().filter(|member| member.state != "in-sync").count();
        let snapshots = match self.volume.snapshots.len() {
            0 => None,
            1 => Some("its snapshot".to_owned()),
            count => Some(format!("its {count} snapshots")),
        };
        let behind = match behind {
            0 => None,
            1 => Some("a copy that is not in sync".to_owned()),
            count => Some(format!("{count} copies that are not in sync")),
        };
        let needed_by: Vec<String> = [snapshots, behind].into_iter().flatten().collect();
        let old = if needed_by.is_empty() {
            "The old data key is destroyed when all is done".to_owned()
        } else {
            let needed_by = needed_by.join(" and ");
            format!("The old data key stays for {needed_by}, and is destroyed when none of that needs it")
        };
        match self.sharers.as_str() {
            "" => old,
            sharers => format!("{old}; {sharers} have it too, and keep it"),
        }
    }
}
