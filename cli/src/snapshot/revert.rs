//! `trivet snapshot revert`.

use super::RevertArgs;
use crate::args::Format;
use crate::clock::{unix_seconds, utc_name};
use crate::cluster::command;
use crate::down::confirm;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::{json, say};
use crate::progress::Run;
use crate::scrub_view::ago;
use crate::view::{self, VolumeView};
use crate::volume::key::key_for;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use trivet_api::{Client, v1};
use trivet_model::size::ByteSize;

const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub(super) async fn run(arguments: &RevertArgs) -> Result<(), Failure> {
    let (volume, name) = (&arguments.volume, &arguments.snapshot);
    let (client, dir) = arguments.place.connect()?;
    let what = format!("cannot revert '{volume}' to snapshot '{name}'");
    let safety = match (&arguments.safety_snapshot, arguments.no_safety_snapshot) {
        (_, true) => String::new(),
        (Some(safety), false) => safety.clone(),
        (None, false) => format!("before-revert-{}", utc_name(unix_seconds())),
    };
    let revert = async |dry_run, data_key: Vec<u8>| {
        let (volume, snapshot, safety) = (volume.clone(), name.clone(), safety.clone());
        let request = v1::RevertVolumeRequest { volume, snapshot, safety, dry_run, data_key };
        client.revert_volume(request).await.map_err(|error| explain::api(&dir, &what, &error))
    };
    // First dry in any case: what cannot be reverted is not asked about.
    let before = view::volume(revert(true, Vec::new()).await?)?;
    let needs_key = !arguments.dry_run && (before.revert.is_none() || before.is_locked());
    let key = key_for(&client, &dir, volume, &what, (&arguments.key, needs_key)).await?;
    let changes = super::diff::changes(&client, &dir, volume, name, None).await?;
    let bytes =
        |holds| changes.iter().filter(|change| change.holds == holds).map(|change| change.length).sum();
    let (written, discarded): (u64, u64) = (bytes("data"), bytes("zeros"));
    let taken = before.snapshots.iter().find(|found| found.name == *name).map_or(0, |found| found.created);
    let kept = if safety.is_empty() {
        "what it is now is lost".to_owned()
    } else {
        format!("what it is now is kept as {volume}@{safety}")
    };
    let effect = format!(
        "{volume} to {volume}@{name}, taken {}: {} written and {} discarded since; {kept}",
        ago(taken, unix_seconds()),
        ByteSize(written),
        ByteSize(discarded),
    );
    if arguments.dry_run {
        say(&format!("would revert {effect}"));
        return Ok(());
    }
    confirm(&format!("This reverts {effect}."), arguments.yes || before.revert.is_some())?;
    let data_key = key.map(|key| key.expose().to_vec()).unwrap_or_default();
    revert(false, data_key).await?;
    let waiting = wait(&client, &dir, volume, written + discarded);
    let after = tokio::select! {
        after = waiting => after?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::new(
            "no longer waiting",
            format!("'{volume}' is not what it was at '{name}' yet; that goes on"),
            format!("see how far it is: {}", command(&dir, &format!("volume show {volume}"))),
        )),
    };
    match arguments.output.output {
        Format::Json => json(&after),
        Format::Table => say(&format!("reverted {effect}")),
    }
    Ok(())
}

/// Follows it until it is done.
async fn wait(client: &Client, dir: &Path, name: &str, total: u64) -> Result<VolumeView, Failure> {
    let began = Instant::now();
    let mut progress = Run::of_bytes(total);
    loop {
        let found = client.get_volume(v1::GetVolumeRequest { name: name.to_owned() }).await;
        let found = found.map_err(|error| {
            explain::api(dir, format!("cannot see how far volume '{name}' is; it goes on"), &error)
        })?;
        let volume = view::volume(found)?;
        let Some(revert) = &volume.revert else {
            // Until its engine has closed it, it is open, and some orders would be refused for that.
            if volume.attached || volume.owner.is_empty() {
                return Ok(volume);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        };
        if volume.is_locked() {
            let next = format!("give it: {}", command(dir, &format!("snapshot revert {name} {}", revert.to)));
            let what = format!("'{name}' is not reverted yet");
            return Err(Failure::new(what, "its engine waits for its key", next).exit(Exit::Conflict));
        }
        progress.tell_bytes(revert.changed_bytes.min(total), began.elapsed());
        if let Some(engine) = volume.engine.as_ref().filter(|engine| engine.restarts >= 5 && !volume.serving)
        {
            let cause = engine.last_failure.clone().unwrap_or_default();
            let next = format!("read {}", engine.log);
            return Err(Failure::new("its engine does not start", cause, next).exit(Exit::Failed));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
