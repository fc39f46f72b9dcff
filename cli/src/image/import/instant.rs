//! `trivet import --instant`: the volume's engine reads from the source what the volume does not have
//! yet, and copies it in the background (`engine/src/volume/hydration.rs`).

use super::image_server::ImageServer;
use super::steps::{check_fits, too_small};
use super::{
    BLOCK_SIZE_U64, ByteSize, Exit, Failure, Format, ImportArgs, Origin, Volumes, announce, whole_blocks,
};
use crate::cluster::command;
use crate::nbd::NbdClient;
use crate::output::say;
use crate::progress::Run;
use crate::view::VolumeView;
use std::io;
use std::time::{Duration, Instant};
use trivet_api::{Layout, v1};
use trivet_nbd::{Request, Server, Uri, Wanted, fingerprint, fingerprint_runs, unix_uri};

/// How often it is looked how far an import is.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

pub(super) async fn run(arguments: &ImportArgs, origin: &Origin, layout: Layout) -> Result<(), Failure> {
    match origin {
        Origin::Nbd(_) if arguments.format.is_some_and(|format| format != Format::Raw) => {
            let next = "have the server serve the disk: qemu-nbd -f qcow2, for one; or leave --format away";
            let cause = "what an NBD server holds is taken as it is";
            Err(Failure::new("cannot import that", cause, next).exit(Exit::Usage))
        }
        Origin::Nbd(uri) => import(arguments, (arguments.source.as_str(), uri), layout, arguments.wait).await,
        Origin::Path(path) => {
            let mut server = ImageServer::start(arguments, path, &layout).await?;
            let (text, uri) = server.uri();
            tokio::select! {
                imported = import(arguments, (&text, &uri), layout, true) => imported?,
                hopeless = server.hopeless() => return Err(hopeless),
            }
            server.check_unchanged()
        }
        Origin::Url(_) => {
            let next = "download it, and import the file; or leave --instant away";
            let cause = "what is downloaded is there only when all of it is";
            Err(Failure::new("cannot import that instantly", cause, next).exit(Exit::Usage))
        }
    }
}

/// Imports from an NBD server; with `stays`, until all is imported.
async fn import(
    arguments: &ImportArgs,
    (text, uri): (&str, &Uri),
    layout: Layout,
    stays: bool,
) -> Result<(), Failure> {
    let name = &arguments.volume;
    let volumes = Volumes::of(layout)?;
    let source = Source::look_at(text, uri).await?;
    let found = volumes.find(name).await?;
    let created = found.is_none();
    match found {
        Some(volume) if volume.import.is_some() => {
            // The manager sees to it that this is its source.
            if arguments.dry_run {
                say(&format!("would go on with the import into '{name}'"));
                return Ok(());
            }
        }
        Some(volume) => {
            check_fits(arguments, &volume, source.bytes)?;
            if arguments.dry_run {
                let bytes = ByteSize(source.bytes);
                say(&format!(
                    "would serve volume '{name}', which is there, and copy {bytes} into it meanwhile"
                ));
                return Ok(());
            }
        }
        None => {
            let needed = whole_blocks(source.bytes);
            let blocks = arguments.size.map_or(needed, |size| size.blocks);
            if blocks < needed {
                return Err(too_small(name, blocks * BLOCK_SIZE_U64, source.bytes));
            }
            if arguments.dry_run {
                let (volume, bytes) = (ByteSize(blocks * BLOCK_SIZE_U64), ByteSize(source.bytes));
                say(&format!(
                    "would make volume '{name}' of {volume}, serve it, and copy {bytes} into it meanwhile"
                ));
                return Ok(());
            }
            drop(volumes.create(name, blocks, arguments.copies).await?);
        }
    }
    let served = serve(arguments, &volumes, &source).await;
    if served.is_err() && created {
        volumes.remove(name).await?;
    }
    let volume = served?;
    let usable = format!("{name} can be used: {}", volume.uri.as_deref().unwrap_or_default());
    if stays {
        eprintln!("{usable}");
        let volume = follow(&volumes, volume).await?;
        announce(arguments.output, &volume, &format!("all of {} is in {name}", arguments.source));
    } else {
        let how_far = command(&volumes.dir, &format!("volume show {name}"));
        announce(arguments.output, &volume, &format!("{usable}\nit is imported meanwhile: {how_far}"));
    }
    Ok(())
}

/// What the volume is to be filled from.
struct Source {
    /// Good for the volume's engine, wherever it runs on this machine.
    uri: String,
    bytes: u64,
    fingerprint: u32,
}

impl Source {
    async fn look_at(text: &str, uri: &Uri) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::new(
                format!("cannot read from {text}"),
                error,
                "see whether its server runs, has that export, and can be reached from here: nbdinfo URI",
            )
        };
        let mut client = NbdClient::connect(uri, Wanted::Data).await.map_err(failed)?;
        let bytes = client.export().size;
        if bytes == 0 {
            return Err(Failure::new("cannot import that", "the export is empty", "").exit(Exit::Data));
        }
        let fingerprint = read_fingerprint(&mut client, bytes).await.map_err(failed)?;
        client.disconnect().await.map_err(failed)?;
        let uri = match &uri.server {
            Server::Unix(path) if path.is_relative() => {
                unix_uri(&uri.export, &std::path::absolute(path).map_err(failed)?)
            }
            Server::Unix(_) | Server::Tcp(_) => text.to_owned(),
        };
        Ok(Self { uri, bytes, fingerprint })
    }
}

async fn read_fingerprint(client: &mut NbdClient, bytes: u64) -> io::Result<u32> {
    for (handle, (offset, length)) in (0..).zip(fingerprint_runs(bytes)) {
        client.submit(handle, Request::Read { offset, length })?;
    }
    let mut runs = Vec::new();
    while client.in_flight() > 0 {
        // It waits only while there is nothing that it could hand over.
        let mut finished = Vec::new();
        client.progress(&mut finished).await?;
        runs.append(&mut finished);
    }
    runs.sort_unstable_by_key(|run| run.handle);
    match runs.iter().find(|run| run.error != 0) {
        Some(run) => Err(io::Error::from_raw_os_error(i32::try_from(run.error).unwrap_or(i32::MAX))),
        None => Ok(fingerprint([&runs[0].data, &runs[1].data])),
    }
}

/// Has the volume filled from its source, and serves it.
async fn serve(arguments: &ImportArgs, volumes: &Volumes, source: &Source) -> Result<VolumeView, Failure> {
    let name = &arguments.volume;
    volumes
        .import(v1::ImportVolumeRequest {
            name: name.clone(),
            source: source.uri.clone(),
            bytes: source.bytes,
            fingerprint: source.fingerprint,
        })
        .await?;
    volumes.attach(name, false, &arguments.key).await
}

/// Waits until all of the source is in the volume.
#[allow(clippy::disallowed_methods, reason = "people are told rates")]
async fn follow(volumes: &Volumes, mut volume: VolumeView) -> Result<VolumeView, Failure> {
    let began = Instant::now();
    let start = volume.import.as_ref().map_or(0, |import| import.imported_bytes);
    let end = volume.import.as_ref().map_or(0, |import| import.source_bytes);
    let mut progress = Run::of_bytes(end.saturating_sub(start));
    let mut trouble = String::new();
    while let Some(import) = &volume.import {
        progress.tell_bytes(import.imported_bytes.saturating_sub(start), began.elapsed());
        if !volume.attached {
            let next = format!("attach it, and it goes on: trivet volume attach {}", volume.name);
            let cause = "it was detached meanwhile";
            return Err(Failure::new(format!("the import into '{}' rests", volume.name), cause, next));
        }
        if volume.trouble != trouble {
            trouble.clone_from(&volume.trouble);
            eprintln!("{trouble}");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        volume = volumes.get(&volume.name).await?;
    }
    Ok(volume)
}
