//! `trivet volume list` and `show`.

use super::{ListArgs, NameArgs};
use crate::args::Format;
use crate::clock::unix_seconds;
use crate::explain;
use crate::failure::Failure;
use crate::output::{json, say, table};
use crate::scrub_view::ago;
use crate::view::{self, MemberView, VolumeView, copies, size};
use trivet_api::v1;
use trivet_model::size::ByteSize;

pub(super) async fn list(arguments: &ListArgs) -> Result<(), Failure> {
    let (client, dir) = arguments.place.connect()?;
    let status = client.get_status(v1::GetStatusRequest {}).await;
    let status = status.map_err(|error| explain::api(&dir, "cannot list the volumes", &error))?;
    let volumes = view::cluster(status)?.volumes;
    match arguments.output.output {
        Format::Json => json(&volumes),
        Format::Table if volumes.is_empty() => {
            say("no volumes: trivet volume create NAME --size 10GiB makes one");
        }
        Format::Table => {
            let has_clones = volumes.iter().any(|volume| volume.parent.is_some() || volume.image);
            let rows = volumes.iter().map(|volume| {
                let mut row = vec![
                    volume.name.clone(),
                    size(Some(volume.size_bytes)),
                    size(volume.used_bytes),
                    copies(volume),
                    volume.settings.durability.clone(),
                    volume.settings.rates().unwrap_or_else(|| "-".to_owned()),
                    volume.state.clone(),
                    volume.uri.clone().unwrap_or_else(|| "-".to_owned()),
                ];
                if has_clones {
                    row.push(origin(volume));
                }
                row
            });
            let mut headers =
                vec!["NAME", ">SIZE", ">USED", ">COPIES", "DURABILITY", "LIMITS", "STATE", "URI"];
            headers.extend(has_clones.then_some("ORIGIN"));
            say(&table(&headers, rows.collect()));
        }
    }
    Ok(())
}

pub(super) async fn show(arguments: &NameArgs) -> Result<(), Failure> {
    let name = &arguments.name;
    let (client, dir) = arguments.place.connect()?;
    let volume = client.get_volume(v1::GetVolumeRequest { name: name.clone() }).await;
    let volume =
        volume.map_err(|error| explain::api(&dir, format!("cannot show volume '{name}'"), &error))?;
    let volume = view::volume(volume)?;
    match arguments.output.output {
        Format::Json => json(&volume),
        Format::Table => say(&as_text(&volume)),
    }
    Ok(())
}

/// For the list: what a volume is a clone of, or that it is there to be cloned.
fn origin(volume: &VolumeView) -> String {
    match &volume.parent {
        _ if volume.image => "golden image".to_owned(),
        Some(parent) => format!("clone of {parent}"),
        None => "-".to_owned(),
    }
}

/// The schedule, the scrub under way and the last one.
fn scrubs(volume: &VolumeView) -> Vec<(&'static str, String)> {
    let Some(scrub) = &volume.scrub else { return Vec::new() };
    let last = scrub.last.as_ref().map_or("never".to_owned(), |last| {
        format!("{}: {}", ago(last.finished_at, unix_seconds()), last.counts)
    });
    let running = scrub.running.as_ref().map(|running| ("scrubbing", running.to_string()));
    let mut facts = vec![("scrubs", scrub.schedule()), ("scrubbed", last)];
    facts.extend(running);
    facts
}

/// How far the copies are that make what they share their own.
fn flattening(volume: &VolumeView) -> String {
    let of_copy = |member: &MemberView| match (member.tied, member.flattened_bytes) {
        (false, _) => format!("{} has everything", member.name),
        (true, None) => format!("{} has not begun", member.name),
        (true, Some(reached)) => format!("{} at {}", member.name, ByteSize(reached)),
    };
    let copies: Vec<String> = volume.members.iter().map(of_copy).collect();
    format!("it is being flattened: {}", copies.join(", "))
}

/// The copies there are, and those that there shall be.
fn how_many(volume: &VolumeView) -> String {
    let (members, wanted) = (volume.members.len(), volume.copies);
    if wanted == 0 || u32::try_from(members) == Ok(wanted) {
        return members.to_string();
    }
    format!("{members}, of {wanted} wanted")
}

fn as_text(volume: &VolumeView) -> String {
    let mut facts = vec![
        ("name", volume.name.clone()),
        ("id", volume.id.clone()),
        ("size", size(Some(volume.size_bytes))),
        ("used", size(volume.used_bytes)),
        ("state", volume.state.clone()),
        ("durability", volume.settings.durability.clone()),
        ("copies", how_many(volume)),
        ("generation", volume.generation.to_string()),
        ("epoch", volume.epoch.to_string()),
    ];
    facts.extend(volume.settings.limits().map(|limits| ("limits", limits)));
    facts.extend(volume.settings.verified_reads.then(|| ("reads", "verified".to_owned())));
    let optional = [("uri", volume.uri.clone()), ("tcp uri", volume.tcp_uri.clone())];
    facts.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    if !volume.trouble.is_empty() {
        facts.push(("trouble", volume.trouble.clone()));
    }
    if let Some(replacement) = &volume.replacement {
        let why = if replacement.asked { "as asked" } else { "it has been away too long" };
        facts.push(("replaced", format!("{} by {}, {why}", replacement.from, replacement.to)));
    }
    facts.extend(volume.revert.iter().map(|revert| ("reverting", revert.to_string())));
    facts.extend(volume.bad_reads.iter().map(|met| ("bad reads", met.to_string())));
    facts.extend(scrubs(volume));
    if let Some(parent) = &volume.parent {
        facts.push(("clone of", parent.to_string()));
        let shares = match volume.sharing {
            "nothing" => "nothing: all is its own".to_owned(),
            "flattening" => flattening(volume),
            _ => "what it has not written itself".to_owned(),
        };
        facts.push(("shares", shares));
    }
    if volume.image {
        facts.push(("golden", "it is read and cloned, and never changed".to_owned()));
    }
    if !volume.clones.is_empty() {
        facts.push(("clones", volume.clones.join(", ")));
    }
    if !volume.snapshots.is_empty() {
        facts.push(("snapshots", volume.snapshots.len().to_string()));
    }
    if let Some(encryption) = &volume.encryption {
        facts.push(("encrypted", format!("AES-256-GCM; unlocked by {}", encryption.unlocked_by)));
        if encryption.next_key.is_some() {
            let how = format!("trivet volume rekey {} --data, with its key, does it", volume.name);
            facts.push(("new key", format!("it has not gone over to it yet; {how}")));
        }
        facts.extend(encryption.resealing.iter().map(|resealing| ("encrypting", resealing.to_string())));
        facts.extend(encryption.older_keys.iter().map(|older| ("old key", older.to_string())));
    }
    if let Some(import) = &volume.import {
        facts.push(("imported", import.to_string()));
    }
    if volume.read_only {
        facts.push(("access", "read only".to_owned()));
    }
    if volume.attached {
        facts.push(("clients", volume.connections.to_string()));
    }
    if !volume.owner.is_empty() {
        facts.push(("open by", volume.owner.clone()));
    }
    if let Some(engine) = &volume.engine {
        facts.push(("log", engine.log.clone()));
    }
    let lines: Vec<String> = facts.iter().map(|(name, value)| format!("{name:<12}{value}")).collect();
    let rows = volume.members.iter().map(|member| {
        let seen = member.engine_state.as_ref().filter(|seen| *seen != member.state);
        vec![
            member.name.clone(),
            member.address.clone(),
            seen.map_or(member.state.to_owned(), |seen| format!("{}, engine says {seen}", member.state)),
            member.connection.clone().unwrap_or_else(|| "-".to_owned()),
            size(member.used_bytes),
            member.sync.map_or_else(|| "-".to_owned(), |sync| sync.to_string()),
        ]
    });
    let headers = ["REPLICA", "ADDRESS", "STATE", "CONNECTION", ">USED", "BROUGHT BACK"];
    let mut text = format!("{}\n\n{}", lines.join("\n"), table(&headers, rows.collect()));
    let exports = volume.snapshots.iter().filter_map(|snapshot| Some((snapshot, snapshot.export.as_ref()?)));
    let rows: Vec<Vec<String>> = exports
        .map(|(snapshot, export)| {
            vec![
                snapshot.name.clone(),
                export.state.clone(),
                export.connections.to_string(),
                export.uri.clone(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        text += &format!("\n\n{}", table(&["EXPORTED", "STATE", ">CLIENTS", "URI"], rows));
    }
    for member in &volume.members {
        if !member.trouble.is_empty() {
            text += &format!("\n! {}: {}", member.name, member.trouble);
        }
        if member.state != "in-sync" && member.sync.is_none() && !volume.serving {
            text += &format!("\n! {}: it is brought back when the volume is served", member.name);
        }
    }
    text
}
