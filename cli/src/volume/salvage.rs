//! `trivet volume salvage`.

use super::SalvageArgs;
use crate::cluster::command;
use crate::down::confirm;
use crate::explain;
use crate::failure::Failure;
use crate::output::say;
use crate::view::{self, MemberView, VolumeView, replica_name};
use trivet_api::v1;
use trivet_model::{MemberState, Stamp};

pub(super) async fn run(arguments: &SalvageArgs) -> Result<(), Failure> {
    let (name, from) = (&arguments.name, arguments.from.0);
    let (client, dir) = arguments.place.connect()?;
    let salvage = async |dry_run| {
        let request = v1::SalvageVolumeRequest { name: name.clone(), from, dry_run, force: arguments.force };
        let salvaged = client.salvage_volume(request).await;
        salvaged.map_err(|error| explain::api(&dir, format!("cannot salvage volume '{name}'"), &error))
    };
    // First dry in any case: what cannot be salvaged is not asked about.
    let before = view::volume(salvage(true).await?)?;
    let report = describe(&before, from);
    if arguments.dry_run {
        say(&format!(
            "would go on with the copy of volume '{name}' on {} alone\n{report}",
            replica_name(from)
        ));
        return Ok(());
    }
    confirm(
        &format!(
            "This goes on with the copy of volume '{name}' on {} alone.\n{report}\n",
            replica_name(from)
        ),
        arguments.yes,
    )?;
    salvage(false).await?;
    say(&format!(
        "volume '{name}' goes on with the copy on {} alone\n{report}\nserve it with {}; \
         its other copies are made anew then",
        replica_name(from),
        command(&dir, &format!("volume attach {name}")),
    ));
    Ok(())
}

/// What each copy holds, and what may be lost.
fn describe(volume: &VolumeView, from: u32) -> String {
    let mut lines: Vec<String> = volume.members.iter().map(line).collect();
    if let Some(chosen) = volume.member(from) {
        lines.extend(losses(volume, chosen));
    }
    lines.join("\n")
}

fn line(member: &MemberView) -> String {
    let held = match (&member.last, member.trouble.as_str()) {
        (Some(last), "") => format!("highest stamp {last}"),
        (_, trouble) => format!("cannot be had: {trouble}"),
    };
    let since = member.since.as_ref().map(|since| format!(", complete up to stamp {since}"));
    format!("  {}: {}{}, {held}", member.name, member.state, since.unwrap_or_default())
}

fn losses(volume: &VolumeView, chosen: &MemberView) -> Vec<String> {
    let mut lines = Vec::new();
    let others = || volume.members.iter().filter(|member| member.replica != chosen.replica);
    match chosen.stamps.state {
        MemberState::InSync => lines.push("  it is in sync: nothing acknowledged is lost".to_owned()),
        MemberState::Stale { since } => {
            lines.push(format!("  may be lost: what was acknowledged after stamp {since}"));
        }
        MemberState::Syncing { since } => lines.push(format!(
            "  may be lost: what was acknowledged after stamp {since}; its copying was cut off, so that newer \
             blocks stand beside older ones"
        )),
    }
    let last = chosen.stamps.last.unwrap_or(Stamp::ZERO);
    let newest =
        others().filter_map(|member| Some((member.stamps.last?, member))).max_by_key(|(last, _)| *last);
    if let Some((newest, member)) = newest.filter(|(newest, _)| *newest > last) {
        lines.push(format!("  {} is {} ahead of it", member.name, distance(last, newest)));
    }
    let away: Vec<&str> = others()
        .filter(|member| member.stamps.state == MemberState::InSync && member.stamps.last.is_none())
        .map(|member| member.name.as_str())
        .collect();
    if !away.is_empty() {
        lines.push(format!("  in sync but not to be had: {}; what only they hold is lost", away.join(", ")));
    }
    lines
}

/// In words: within a generation stamps count blocks.
fn distance(from: Stamp, to: Stamp) -> String {
    if from.generation() == to.generation() {
        format!("{} written blocks", to.sequence() - from.sequence())
    } else {
        format!("{} openings", to.generation().get() - from.generation().get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trivet_model::Generation;

    #[test]
    fn distances_are_in_blocks_or_openings() {
        let stamp =
            |generation, sequence| Stamp::new(Generation::new(generation).unwrap(), sequence).unwrap();
        assert_eq!(distance(stamp(2, 5), stamp(2, 12)), "7 written blocks");
        assert_eq!(distance(stamp(2, 5), stamp(4, 1)), "2 openings");
    }
}
