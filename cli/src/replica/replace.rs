//! `trivet replica replace`.

use super::add::{is_brought_back, what_follows};
use super::{ReplaceArgs, number};
use crate::cluster::command;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::announce;
use crate::progress::Step;
use crate::view::{self, VolumeView, replica_name};
use std::path::Path;
use std::time::Duration;
use trivet_api::{Client, v1};

const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How often it is told how far it is where no terminal shows it.
const LOOKS_A_LINE: u32 = 10;

pub(super) async fn run(arguments: &ReplaceArgs) -> Result<(), Failure> {
    let (name, from) = (&arguments.volume, arguments.from.0);
    let (client, dir) = arguments.place.connect()?;
    let what = format!("cannot replace the copy of volume '{name}' on {}", replica_name(from));
    let request = v1::ReplaceReplicaRequest { volume: name.clone(), from, to: number(arguments.to) };
    let begun = client.replace_replica(request).await;
    let begun = begun.map_err(|error| explain::api(&dir, &what, &error))?;
    let volume = view::volume(begun.volume.unwrap_or_default())?;
    let (to, to_name) = (begun.replica, replica_name(begun.replica));
    if !is_brought_back(&volume) {
        let line = format!(
            "{name} has a new copy on {to_name}, which replaces the one on {} once it is in sync; {}",
            replica_name(from),
            what_follows(&volume, &dir)
        );
        announce(arguments.output, &volume, &line);
        return Ok(());
    }
    let waiting = wait(&client, &dir, name, from, to);
    let volume = tokio::select! {
        volume = waiting => volume?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::new(
            "no longer waiting",
            format!("the copy on {to_name} is not in sync yet; the replacement goes on"),
            format!("see how far it is: {}", command(&dir, &format!("volume show {name}"))),
        )),
    };
    announce(arguments.output, &volume, &format!("{name} has its copy on {to_name} now"));
    Ok(())
}

/// Waits until the manager has removed the old copy.
async fn wait(client: &Client, dir: &Path, name: &str, from: u32, to: u32) -> Result<VolumeView, Failure> {
    let to_name = replica_name(to);
    let mut step = Step::begin(&format!("bringing {to_name} in sync"));
    for look in 0_u32.. {
        let found = client.get_volume(v1::GetVolumeRequest { name: name.to_owned() }).await;
        let found = found.map_err(|error| {
            explain::api(dir, format!("cannot see how far volume '{name}' is; it goes on"), &error)
        })?;
        let volume = view::volume(found)?;
        match (volume.member(from), volume.member(to)) {
            (None, Some(_)) => return Ok(volume),
            (_, member) if volume.replacement.is_none() => {
                return Err(given_up(dir, &to_name, member.is_some()));
            }
            (_, member) => {
                let how_far = member.map(|member| match &member.sync {
                    Some(sync) => format!("{to_name}: {sync}"),
                    None if member.trouble.is_empty() => format!("{to_name}: {}", member.state),
                    None => format!("{to_name}: {} ({})", member.state, member.trouble),
                });
                if step.is_shown() || look.is_multiple_of(LOOKS_A_LINE) {
                    step.tell(how_far.unwrap_or_default());
                }
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    unreachable!("it is looked for ever")
}

fn given_up(dir: &Path, to: &str, kept: bool) -> Failure {
    let cause = if kept {
        format!("someone removed the replacement; the copy on {to} stays beside the old one")
    } else {
        format!(
            "the copy on {to} was removed before it was in sync: by someone, or its server was away too long"
        )
    };
    let next = format!("see which replica servers run: {}", command(dir, "status"));
    Failure::new("the replacement was given up", cause, next).exit(Exit::Failed)
}
