//! `trivet import --instant`: the volume's engine reads from the source what the volume does not have
//! yet, and copies it in the background (`engine/src/volume/hydration.rs`).

use super::image_server::Image;
use super::steps::{check_fits, too_small};
use super::{
    BLOCK_SIZE_U64, ByteSize, Exit, Failure, Format, ImportArgs, Origin, Volumes, announce, whole_blocks,
};
use crate::cluster::command;
use crate::image::source::Complaint;
use crate::nbd::{ANSWER_MAX, NbdClient};
use crate::output::say;
use crate::progress::Run;
use crate::view::VolumeView;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use trivet_api::{Layout, v1};
use trivet_crypto::DataKey;
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
        Origin::Nbd(uri) => {
            let text = arguments.source.as_str();
            let source = Source::look_at(text, (text, uri)).await?;
            Import { arguments, volumes: Volumes::of(layout)?, source, image: None }.run().await
        }
        Origin::Path(path) => import_image(arguments, path, layout).await,
        Origin::Url(_) => {
            let next = "download it, and import the file; or leave --instant away";
            let cause = "what is downloaded is there only when all of it is";
            Err(Failure::new("cannot import that instantly", cause, next).exit(Exit::Usage))
        }
    }
}

/// Serves an image while the volume is filled from it.
async fn import_image(arguments: &ImportArgs, path: &Path, layout: Layout) -> Result<(), Failure> {
    let name = &arguments.volume;
    let (image, mut serving) = Image::serve(arguments, path, &layout).await?;
    let (text, uri) = image.uri();
    let looked = Source::look_at(&path.display().to_string(), (&text, &uri)).await;
    let source = match looked {
        Ok(source) => source,
        Err(failure) => {
            let complaint = serving.complaint().await;
            return Err(complaint.map_or(failure, |complaint| complaint.of_image(path)));
        }
    };
    let import = Import { arguments, volumes: Volumes::of(layout)?, source, image: Some(&image) };
    tokio::select! {
        imported = import.run() => imported?,
        complaint = serving.hopeless() => return Err(import.hopeless(path, complaint).await),
    }
    if arguments.dry_run { Ok(()) } else { image.finish(name) }
}

/// An import, before anything is made.
struct Import<'a> {
    arguments: &'a ImportArgs,
    volumes: Volumes,
    source: Source,
    /// What is served by this command.
    image: Option<&'a Image>,
}

/// What there is to import into.
enum Destination {
    /// A volume that is filled from the source already.
    UnderWay(VolumeView),
    /// A volume that was never used.
    Present(VolumeView),
    /// A volume that is to be made, of so many blocks.
    New(u64),
}

impl Import<'_> {
    async fn run(&self) -> Result<(), Failure> {
        let Self { arguments, volumes, source, image } = self;
        let name = &arguments.volume;
        let to = self.judge(volumes.find(name).await?)?;
        let key = self.data_key(&to).await?;
        if let Destination::UnderWay(_) | Destination::Present(_) = to {
            volumes.import(self.request(true)).await?;
        }
        if let (Some(image), Destination::UnderWay(volume)) = (image, &to) {
            image.check_same(name, &volume.id)?;
        }
        if arguments.dry_run {
            say(&to.would_be(name, source.bytes));
            return Ok(());
        }
        let served = self.serve(to, key.as_ref()).await?;
        let usable = format!("{name} can be used: {}", served.uri.as_deref().unwrap_or_default());
        if image.is_some() || arguments.wait {
            eprintln!("{usable}");
            let volume = follow(volumes, served).await?;
            announce(arguments.output, &volume, &format!("all of {} is in {name}", arguments.source));
        } else {
            let how_far = command(&volumes.dir, &format!("volume show {name}"));
            announce(arguments.output, &served, &format!("{usable}\nit is imported meanwhile: {how_far}"));
        }
        Ok(())
    }

    /// Whether the volume of that name, if there is one, can be imported into as far as that shows from here; the
    /// manager knows the rest.
    fn judge(&self, found: Option<VolumeView>) -> Result<Destination, Failure> {
        let Self { arguments, source, .. } = self;
        let name = &arguments.volume;
        match found {
            None => {
                let needed = whole_blocks(source.bytes);
                let blocks = arguments.size.map_or(needed, |size| size.blocks);
                if blocks < needed {
                    return Err(too_small(name, blocks * BLOCK_SIZE_U64, source.bytes));
                }
                Ok(Destination::New(blocks))
            }
            Some(volume) => {
                let size =
                    arguments.size.is_none_or(|size| size.blocks * BLOCK_SIZE_U64 == volume.size_bytes);
                if !size || arguments.copies.is_some_and(|copies| copies != volume.copies) {
                    let what = format!("cannot make volume '{name}'");
                    let cause = "there is such a volume, of another size or number of copies";
                    let next = "leave --size and --copies away, or name another volume";
                    return Err(Failure::new(what, cause, next).exit(Exit::Conflict));
                }
                if volume.import.is_some() {
                    return Ok(Destination::UnderWay(volume));
                }
                check_fits(&volume, source.bytes)?;
                Ok(Destination::Present(volume))
            }
        }
    }

    /// Takes the data key out before anything is made: without it nothing could be served.
    async fn data_key(&self, to: &Destination) -> Result<Option<DataKey>, Failure> {
        let name = &self.arguments.volume;
        let what = format!("cannot import into volume '{name}'");
        let holder = self.arguments.key.holder(&what)?;
        match (holder, to) {
            (None, Destination::UnderWay(volume) | Destination::Present(volume))
                if volume.encryption.is_some() && !volume.attached =>
            {
                let next = "give it: trivet import --help lists how";
                Err(Failure::new(what, "it is encrypted, and its key was not given", next).exit(Exit::Usage))
            }
            (None, _) => Ok(None),
            (Some(_), Destination::New(_)) => {
                let cause = "a key was given, and what an import makes is not encrypted";
                let next = "make it first: trivet volume create --help; or leave the key away";
                Err(Failure::new(what, cause, next).exit(Exit::Usage))
            }
            (Some(holder), Destination::UnderWay(_) | Destination::Present(_)) => {
                self.volumes.unlock(name, holder.as_ref()).await.map(Some)
            }
        }
    }

    fn request(&self, dry_run: bool) -> v1::ImportVolumeRequest {
        v1::ImportVolumeRequest {
            name: self.arguments.volume.clone(),
            source: self.source.uri.clone(),
            bytes: self.source.bytes,
            fingerprint: self.source.fingerprint,
            dry_run,
        }
    }

    /// Has the volume filled from its source, and serves it. One that was made for it goes if that fails.
    async fn serve(&self, to: Destination, key: Option<&DataKey>) -> Result<VolumeView, Failure> {
        let Self { arguments, volumes, .. } = self;
        let name = &arguments.volume;
        let blocks = match &to {
            Destination::New(blocks) => *blocks,
            Destination::Present(volume) => {
                self.keep(volume)?;
                return self.fill(key).await;
            }
            Destination::UnderWay(_) => return self.fill(key).await,
        };
        let made = volumes.create(name, blocks, arguments.copies).await?;
        let served = async {
            self.keep(&made)?;
            self.fill(key).await
        };
        match served.await {
            Ok(volume) => Ok(volume),
            Err(failure) => {
                if let Err(left) = volumes.remove(name).await {
                    // What went wrong first is what counts.
                    tracing::warn!(volume = %name, failure = ?left, "it was made for the import, and stays");
                }
                Err(failure)
            }
        }
    }

    fn keep(&self, volume: &VolumeView) -> Result<(), Failure> {
        self.image.map_or(Ok(()), |image| image.keep(self.arguments, &volume.id))
    }

    async fn fill(&self, key: Option<&DataKey>) -> Result<VolumeView, Failure> {
        self.volumes.import(self.request(false)).await?;
        self.volumes.attach_unlocked(&self.arguments.volume, false, key).await
    }

    /// What it means that the image is not served any more.
    async fn hopeless(&self, path: &Path, complaint: Complaint) -> Failure {
        let name = &self.arguments.volume;
        let found = self.volumes.find(name).await.ok().flatten();
        if found.is_none_or(|volume| volume.import.is_none()) {
            return complaint.of_image(path);
        }
        let what = format!("the import of {} into '{name}' rests", path.display());
        let next = "run the same command again: what is not imported yet waits for it";
        let exit = if complaint.of_machine { Exit::Machine } else { Exit::Data };
        Failure::new(what, complaint.cause, next).exit(exit)
    }
}

impl Destination {
    /// What would be done, for people.
    fn would_be(&self, name: &str, bytes: u64) -> String {
        let bytes = ByteSize(bytes);
        match self {
            Self::UnderWay(_) => format!("would go on with the import into '{name}'"),
            Self::Present(_) => {
                format!("would serve volume '{name}', which is there, and copy {bytes} into it meanwhile")
            }
            Self::New(blocks) => {
                let size = ByteSize(blocks * BLOCK_SIZE_U64);
                format!("would make volume '{name}' of {size}, serve it, and copy {bytes} into it meanwhile")
            }
        }
    }
}

/// What the volume is to be filled from.
struct Source {
    /// Good for the volume's engine, wherever it runs on this machine.
    uri: String,
    bytes: u64,
    fingerprint: u32,
}

impl Source {
    /// What is called `name`, and found at a URI, of which `text` is the text.
    async fn look_at(name: &str, (text, uri): (&str, &Uri)) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::new(
                format!("cannot read from {name}"),
                error,
                "see whether its server runs, has that export, and can be reached from here: nbdinfo URI",
            )
        };
        let mut client = NbdClient::connect(uri, Wanted::Data).await.map_err(failed)?;
        let bytes = client.export().size;
        if bytes == 0 {
            return Err(Failure::new("cannot import that", "the export is empty", "").exit(Exit::Data));
        }
        let fingerprint = tokio::time::timeout(ANSWER_MAX, read_fingerprint(&mut client, bytes)).await;
        let fingerprint = fingerprint.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
        let fingerprint = fingerprint.map_err(failed)?;
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
        tokio::time::sleep(LOOK_AGAIN).await;
        let found = volumes.get_if_answered(&volume.name).await?;
        // The volume goes on without a manager, and what this command serves must be there for it.
        let now =
            found.as_ref().map_or("no manager answers; the import goes on meanwhile", |found| &found.trouble);
        if now != trouble {
            now.clone_into(&mut trouble);
            if !trouble.is_empty() {
                eprintln!("{trouble}");
            }
        }
        volume = found.unwrap_or(volume);
    }
    Ok(volume)
}
