//! `trivet volume scrub`.

use super::ScrubArgs;
use crate::args::Format;
use crate::cluster::command;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::{json, say};
use crate::progress::Step;
use crate::scrub_view::{FinishedView, ScrubView};
use crate::view;
use std::path::Path;
use std::time::Duration;
use trivet_api::v1::scrub_volume_request::Action;
use trivet_api::{Client, v1};

const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How often it is told how far it is where no terminal shows it.
const LOOKS_A_LINE: u32 = 10;

pub(super) async fn run(arguments: &ScrubArgs) -> Result<(), Failure> {
    let name = &arguments.name;
    let (client, dir) = arguments.place.connect()?;
    let schedules = arguments.every.is_some() || arguments.never;
    let action = match (arguments.stop, schedules) {
        (true, _) => Action::Stop,
        (false, true) => Action::Unspecified,
        (false, false) => Action::Start,
    };
    let request = v1::ScrubVolumeRequest {
        name: name.clone(),
        action: action.into(),
        bytes_per_second_max: arguments.rate.unwrap_or(0),
        every_seconds: if arguments.never { Some(0) } else { arguments.every },
    };
    let asked = client.scrub_volume(request).await;
    let asked = asked.map_err(|error| explain::api(&dir, format!("cannot scrub volume '{name}'"), &error))?;
    let scrub = view::volume(asked)?.scrub;
    let Some(scrub) = scrub else { return Err(vanished(&dir, name)) };
    if action != Action::Start {
        let line = if action == Action::Stop {
            format!("{name} is not being scrubbed; scrubbed {}", scrub.schedule())
        } else {
            format!("{name} is scrubbed {}", scrub.schedule())
        };
        announce(arguments, &scrub, &line);
        return Ok(());
    }
    let run = scrub.running.as_ref().map(|running| running.run);
    let Some(run) = run.or_else(|| scrub.last.as_ref().map(|last| last.run)) else {
        return Err(vanished(&dir, name));
    };
    let scrub = tokio::select! {
        scrub = follow(&client, &dir, name, run) => scrub?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::new(
            "no longer watching",
            format!("the scrub of volume '{name}' goes on without this command"),
            format!(
                "see how far it is: {}; end it: {}",
                command(&dir, &format!("volume show {name}")),
                command(&dir, &format!("volume scrub {name} --stop"))
            ),
        )),
    };
    match scrub.last.as_ref().filter(|last| last.run == run) {
        Some(last) => {
            announce(arguments, &scrub, &format!("{name} is scrubbed: {}", last.counts));
            judge(&dir, name, last)
        }
        None => Err(Failure::new(
            format!("the scrub of volume '{name}' did not come to its end"),
            "someone has ended it",
            format!("begin anew: {}", command(&dir, &format!("volume scrub {name}"))),
        )),
    }
}

fn announce(arguments: &ScrubArgs, scrub: &ScrubView, line: &str) {
    match arguments.output.output {
        Format::Json => json(scrub),
        Format::Table => say(line),
    }
}

/// Watches a scrub until it runs no more.
async fn follow(client: &Client, dir: &Path, name: &str, run: u64) -> Result<ScrubView, Failure> {
    let mut step = Step::begin(&format!("scrubbing {name}"));
    for look in 1_u32.. {
        let found = client.get_volume(v1::GetVolumeRequest { name: name.to_owned() }).await;
        let found = found.map_err(|error| {
            explain::api(dir, format!("cannot see how far the scrub of '{name}' is; it goes on"), &error)
        })?;
        let scrub = view::volume(found)?.scrub;
        let Some(scrub) = scrub else { return Err(vanished(dir, name)) };
        let Some(running) = scrub.running.as_ref().filter(|running| running.run == run) else {
            return Ok(scrub);
        };
        if step.is_shown() || look.is_multiple_of(LOOKS_A_LINE) {
            step.tell(running.to_string());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    unreachable!("it is looked for ever")
}

fn judge(dir: &Path, name: &str, last: &FinishedView) -> Result<(), Failure> {
    let counts = &last.counts;
    if counts.unrepairable == 0 {
        return Ok(());
    }
    let blocks: Vec<String> = counts.unrepairable_blocks.iter().map(u64::to_string).collect();
    Err(Failure::new(
        format!("{} blocks of volume '{name}' could not be mended", counts.unrepairable),
        format!(
            "every copy of them is bad, or a repair failed: blocks {} of 4 KiB each{}",
            blocks.join(", "),
            if blocks.len() as u64 == counts.unrepairable { "" } else { ", and others" }
        ),
        format!(
            "write them anew from a backup; what else has a bad copy, and why, is in {}",
            dir.join("log").join(format!("engine-{name}.log")).display()
        ),
    )
    .exit(Exit::Data))
}

fn vanished(dir: &Path, name: &str) -> Failure {
    Failure::new(
        format!("nothing is known of scrubs of volume '{name}'"),
        "it was deleted, or the manager is of another version",
        format!("see what there is: {}", command(dir, "volume list")),
    )
    .exit(Exit::NotFound)
}
