//! `trivet import`.

mod download;
mod image_server;
mod instant;
mod steps;

use super::copy::{Copied, Watcher, copy};
use super::failures::CopyError;
use super::source::{Source, open};
use super::target::Target;
use super::volume::Volumes;
use crate::args::{Output, Place, VolumeSize};
use crate::cluster::command;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::announce;
use crate::progress::Run;
use crate::volume::check_name;
use crate::volume::key::KeyArgs;
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::Duration;
use steps::Import;
use trivet_images::checksum::{Checksum, Hasher};
use trivet_images::fingerprint::Fingerprint;
use trivet_images::format::Format;
use trivet_images::raw::RawImage;
use trivet_images::record::{RecordError, Records};
use trivet_images::schedule::Schedule;
use trivet_model::size::ByteSize;
use trivet_model::{BLOCK_SIZE_U64, VOLUME_BLOCKS_MAX};
use trivet_nbd::Uri;

/// Copy a disk image into a volume
#[derive(Args, Debug)]
#[command(after_help = "\
Images are raw, qcow2, VMDK (of one file), VHD and VHDX; what a block device or an NBD server holds is
taken as it is. An image that needs other files (a backing file, extents) is refused. Formats other than
raw are read by QEMU (qemu-utils) in a jail, where it sees that one file and nothing else.
Interrupted, the same command run again goes on where it was.
To import into an encrypted volume, make it first (trivet volume create --encrypt); it is attached with the key given.
With --instant the volume can be used at once, while the source is copied into it in the background; nothing may write
to that meanwhile. An NBD server's export is read by the volume itself. An image file is served by this command, which
stays until all is imported; ended earlier, what is not imported yet waits until it is run again.

Examples:
  trivet import debian-12.qcow2 web1 --checksum sha256:6856277491c234fa1bc6f250cbd9f0d44f77524479536ecbc0ac536bc07322cd
  trivet import https://example.org/images/disk.raw data --size 100GiB
  trivet import nbd://oldarray:10809/lun7 lun7
  trivet import nbd://oldarray:10809/lun7 lun7 --instant
  trivet import debian-12.qcow2 web1 --instant
  trivet import /dev/sdb usb --copies 2")]
pub(crate) struct ImportArgs {
    /// A file, a block device, an http:// or https:// URL, or an nbd:// or nbd+unix:// URI
    source: String,
    /// Into which volume; made if there is none of this name
    volume: String,
    /// What the source is, where its name does not say it: raw, qcow2, vmdk, vhd or vhdx
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Size of the volume to make [default: the image's]
    #[arg(long, value_name = "SIZE")]
    size: Option<VolumeSize>,
    /// Copies of the volume to make [default: 3, or as many as there are servers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    copies: Option<u32>,
    /// What the source's bytes must add up to: sha256:HEX or sha512:HEX
    #[arg(long, value_name = "CHECKSUM")]
    checksum: Option<Checksum>,
    /// Read both again at the end, and compare them
    #[arg(long)]
    verify: bool,
    /// Serve the new volume at once, and copy the source into it in the background
    #[arg(long, conflicts_with_all = ["checksum", "verify", "restart", "yes", "attach"])]
    instant: bool,
    /// Stay until all is imported, and show how far it is; for an image file it does
    #[arg(long, requires = "instant")]
    wait: bool,
    /// Leave the volume attached
    #[arg(long)]
    attach: bool,
    /// Forget an interrupted import into this volume, and begin anew
    #[arg(long)]
    restart: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before overwriting a volume
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

/// Where an image comes from, as the user said it.
enum Origin {
    Path(PathBuf),
    Url(String),
    Nbd(Uri),
}

fn origin(text: &str) -> Result<Origin, Failure> {
    if text.starts_with("nbd") && text.contains("://") {
        let uri = text.parse::<Uri>();
        return uri
            .map(Origin::Nbd)
            .map_err(|error| Failure::new("cannot import that", error, "correct the URI").exit(Exit::Usage));
    }
    match text.split_once("://") {
        Some(("http" | "https", _)) => Ok(Origin::Url(text.to_owned())),
        Some((scheme, _)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+') => {
            let next = "name a file, a device, or an http, https, nbd or nbd+unix URL";
            Err(Failure::new(format!("cannot import from {text}"), format!("'{scheme}' is not known"), next)
                .exit(Exit::Usage))
        }
        _ => Ok(Origin::Path(PathBuf::from(text))),
    }
}

pub(super) async fn run(arguments: &ImportArgs) -> Result<(), Failure> {
    let name = &arguments.volume;
    check_name(name)?;
    let origin = origin(&arguments.source)?;
    let layout = arguments.place.layout()?;
    if arguments.instant {
        return instant::run(arguments, &origin, layout).await;
    }
    let records = Records::open(&layout.imports(), name).map_err(|error| record_failure(&error))?;
    if arguments.restart && !arguments.dry_run {
        records.forget().map_err(|error| record_failure(&error))?;
    }
    let mut import = Import { arguments, volumes: Volumes::of(layout)?, records };
    import.run(&origin).await
}

fn record_failure(error: &RecordError) -> Failure {
    match error {
        RecordError::InUse => {
            Failure::new("cannot import into this volume", error, "wait until it is done, or stop it")
                .exit(Exit::Conflict)
        }
        RecordError::Damaged { .. } => {
            Failure::new("cannot go on with the import", error, "begin anew: the same command with --restart")
                .exit(Exit::Data)
        }
        RecordError::Io { path, cause } => explain::system("cannot note how far the import is", path, cause),
        _ => Failure::new("cannot note how far the import is", error, ""),
    }
}

/// Shows how far a copy is, and notes it down where that is of use.
struct Progress<F> {
    run: Run,
    start: u64,
    note: F,
}

impl<F: FnMut(u64) -> Result<(), Failure>> Progress<F> {
    fn new(start: u64, end: u64, note: F) -> Self {
        Self { run: Run::of_bytes(end.saturating_sub(start)), start, note }
    }
}

impl<F: FnMut(u64) -> Result<(), Failure>> Watcher for Progress<F> {
    fn copied(&mut self, cursor: u64, elapsed: Duration) {
        self.run.tell_bytes(cursor.saturating_sub(self.start), elapsed);
    }

    fn stable(&mut self, cursor: u64) -> Result<(), Failure> {
        (self.note)(cursor)
    }
}

/// Compares the bytes of a source with their published checksum.
async fn check(source: &mut Source, wanted: &Checksum, name: &str) -> Result<(), Failure> {
    let hasher = HashingStream::default();
    hasher.0.replace(Some(wanted.hasher()));
    let mut target = Target::stream(Box::new(hasher.clone()), "the checksum");
    let size = source.size();
    eprintln!("computing the checksum of {name}");
    let mut progress = Progress::new(0, size, |_| Ok(()));
    let hashed =
        copy(source, &mut target, Schedule::new(0, size), &mut progress, &mut Copied::default()).await;
    hashed.map_err(CopyError::into_failure)?;
    let found = hasher.0.take().map(Hasher::finish);
    match found {
        Some(found) if found == *wanted => Ok(()),
        found => {
            let found = found.map_or_else(String::new, |found| found.to_string());
            Err(Failure::new(
                format!("{name} is not what it should be"),
                format!("its checksum is {found}, not {wanted}"),
                "get another copy of it, or compare the checksum with the published one; nothing was imported",
            )
            .exit(Exit::Data))
        }
    }
}

/// A hasher that is written to, and asked at the end.
#[derive(Clone, Default)]
struct HashingStream(std::rc::Rc<std::cell::RefCell<Option<Hasher>>>);

impl std::io::Write for HashingStream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(hasher) = &mut *self.0.borrow_mut() {
            hasher.update(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Sizes in whole blocks.
const fn whole_blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_SIZE_U64)
}

/// Opens what is on this machine: as it is, or through QEMU.
async fn open_local(
    path: &Path,
    (image, format): (RawImage, Format),
    size: Option<VolumeSize>,
) -> Result<Source, Failure> {
    let most = size.map_or(VOLUME_BLOCKS_MAX, |size| size.blocks) * BLOCK_SIZE_U64;
    match format {
        Format::Raw => Ok(Source::raw(image, path.to_owned())),
        format => Source::jailed(path, format, most).await,
    }
}

/// What is told at the end.
fn report(arguments: &ImportArgs, volume: &crate::view::VolumeView, copied: Copied, size: u64, dir: &Path) {
    let next = volume.uri.clone().filter(|_| volume.attached).unwrap_or_else(|| {
        format!("serve it with {}", command(dir, &format!("volume attach {}", volume.name)))
    });
    let line = format!(
        "{}: {} imported, {} of it data; {next}",
        volume.name,
        ByteSize(size),
        ByteSize(copied.data_bytes)
    );
    announce(arguments.output, volume, &line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart() {
        assert!(matches!(origin("https://x/a.qcow2"), Ok(Origin::Url(_))));
        assert!(matches!(origin("nbd://x/a"), Ok(Origin::Nbd(_))));
        assert!(matches!(origin("nbd+unix:///a?socket=/s"), Ok(Origin::Nbd(_))));
        assert!(matches!(origin("nbd.img"), Ok(Origin::Path(_))));
        assert!(matches!(origin("/a/b c://d"), Ok(Origin::Path(_))));
        for (text, words) in
            [("nbds://x/a", "TLS"), ("ftp://x/a", "'ftp' is not known"), ("rbd://p/i", "rbd")]
        {
            let Err(failure) = origin(text) else { panic!("{text} was taken") };
            assert!(failure.to_string().contains(words), "{failure}");
            assert_eq!(failure.exit, Exit::Usage);
        }
    }
}
