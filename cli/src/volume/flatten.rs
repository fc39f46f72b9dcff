//! `trivet volume flatten`.

use super::FlattenArgs;
use crate::cluster::command;
use crate::explain;
use crate::failure::Failure;
use crate::output::announce;
use crate::progress::Step;
use crate::view::{self, VolumeView};
use std::path::Path;
use std::time::{Duration, Instant};
use trivet_api::{ApiError, Client, v1};
use trivet_model::size::ByteSize;

const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Where no terminal shows progress, a line after so many looks.
const LOOKS_A_LINE: u32 = 20;

pub(super) async fn run(arguments: &FlattenArgs) -> Result<(), Failure> {
    let name = &arguments.name;
    let (client, dir) = arguments.place.connect()?;
    let begun = client.flatten_volume(v1::FlattenVolumeRequest { name: name.clone() }).await;
    let failed = |error: ApiError| explain::api(&dir, format!("cannot flatten volume '{name}'"), &error);
    let begun = view::volume(begun.map_err(failed)?)?;
    if begun.sharing == "nothing" {
        announce(arguments.output, &begun, &format!("{name} shares nothing"));
        return Ok(());
    }
    if arguments.background {
        let look = command(&dir, &format!("volume show {name}"));
        announce(arguments.output, &begun, &format!("{name} is being flattened; {look} says how far it is"));
        return Ok(());
    }
    let following = follow(&client, &dir, name);
    let done = tokio::select! {
        done = following => done?,
        _ = tokio::signal::ctrl_c() => {
            let look = command(&dir, &format!("volume show {name}"));
            announce(arguments.output, &begun, &format!("it goes on; {look} says how far it is"));
            return Ok(());
        }
    };
    announce(arguments.output, &done, &format!("{name} shares nothing any more"));
    Ok(())
}

/// Watches until all copies have everything.
async fn follow(client: &Client, dir: &Path, name: &str) -> Result<VolumeView, Failure> {
    let mut step = Step::begin(&format!("flattening {name}"));
    let began = began();
    for look in 1_u32.. {
        let found = client.get_volume(v1::GetVolumeRequest { name: name.to_owned() }).await;
        let found = found.map_err(|error| {
            explain::api(dir, format!("cannot see how far '{name}' is flattened; it goes on"), &error)
        })?;
        let volume = view::volume(found)?;
        if volume.sharing == "nothing" {
            return Ok(volume);
        }
        if step.is_shown() || look.is_multiple_of(LOOKS_A_LINE) {
            step.tell(progress(&volume, began.elapsed()));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    unreachable!("it is looked for ever")
}

#[allow(clippy::disallowed_methods, reason = "people are told how long it takes")]
fn began() -> Instant {
    Instant::now()
}

/// How far the slowest copy is, at which rate, and how long it takes yet.
fn progress(volume: &VolumeView, elapsed: Duration) -> String {
    let tied = volume.members.iter().filter(|member| member.tied);
    let positions: Vec<u64> = tied.map(|member| member.flattened_bytes.unwrap_or(0)).collect();
    let (Some(reached), copies) = (positions.iter().copied().min(), positions.len()) else {
        return "every copy has everything".to_owned();
    };
    let rate = reached / elapsed.as_secs().max(1);
    let left = volume.size_bytes.saturating_sub(reached) / rate.max(1);
    let (reached, size, rate) = (ByteSize(reached), ByteSize(volume.size_bytes), ByteSize(rate));
    format!("{copies} copies to go, {reached} of {size} looked through, {rate}/s, {left} s left")
}
