//! `trivet export`.

use super::copy::{Copied, Watcher, copy};
use super::failures::CopyError;
use super::source::{Source, serve};
use super::target::Target;
use super::volume::{Volumes, parse_uri};
use crate::args::Place;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::say;
use crate::progress::Run;
use crate::volume::key::KeyArgs;
use clap::Args;
use std::fs::{File, OpenOptions};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;
use trivet_images::format::Format;
use trivet_images::qemu;
use trivet_images::schedule::Schedule;
use trivet_model::size::ByteSize;
use trivet_nbd::Uri;

/// Copy a volume or a snapshot into a disk image
#[derive(Args, Debug)]
#[command(after_help = "\
A volume that is detached is served for reading meanwhile, a snapshot beside its volume. What is
written to an attached volume meanwhile may or may not be in its image: export a snapshot of it to
have one moment.

Examples:
  trivet export web1 web1.qcow2
  trivet export web1@before web1.raw
  trivet export web1 - | zstd > web1.raw.zst")]
pub(crate) struct ExportArgs {
    /// Which volume, or snapshot of it
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    volume: String,
    /// Where to; - for standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// raw or qcow2 [default: by the file's name; raw if that does not say]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    place: Place,
}

pub(super) async fn run(arguments: &ExportArgs) -> Result<(), Failure> {
    let to_stdout = arguments.file == Path::new("-");
    let format = arguments.format.unwrap_or_else(|| Format::of_name(&arguments.file));
    check(arguments, format, to_stdout)?;
    let (name, snapshot) = match arguments.volume.split_once('@') {
        Some((name, snapshot)) => (name, Some(snapshot)),
        None => (arguments.volume.as_str(), None),
    };
    let volumes = Volumes::of(arguments.place.layout()?)?;
    let served = serve_for_reading(&volumes, name, snapshot, &arguments.key).await?;
    let exported = export(arguments, &served.uri, format, to_stdout).await;
    match snapshot {
        Some(snapshot) if served.by_us => volumes.unexport(name, snapshot).await?,
        None if served.by_us => volumes.detach(name).await?,
        _ => {}
    }
    let (size, copied) = exported?;
    if !to_stdout {
        say(&format!(
            "{}: {}, {} of it data, as {format} in {}",
            arguments.volume,
            ByteSize(size),
            ByteSize(copied.data_bytes),
            arguments.file.display()
        ));
    }
    Ok(())
}

fn check(arguments: &ExportArgs, format: Format, to_stdout: bool) -> Result<(), Failure> {
    let what = || format!("cannot export to {}", arguments.file.display());
    if format != Format::Raw && format != Format::Qcow2 {
        let next = "export to raw or qcow2, and make one of it: qemu-img convert";
        return Err(Failure::new(what(), format!("{format} images are not written"), next).exit(Exit::Usage));
    }
    if to_stdout && format != Format::Raw {
        let cause = format!("{format} cannot be written in order");
        return Err(Failure::new(what(), cause, "export raw, or to a file").exit(Exit::Usage));
    }
    if to_stdout && std::io::stdout().is_terminal() {
        let next = "send it somewhere: trivet export VOLUME - | …";
        return Err(Failure::new(what(), "standard output is a terminal", next).exit(Exit::Usage));
    }
    if !to_stdout && !arguments.force && arguments.file.exists() {
        let next = "name another file, or replace it with --force";
        return Err(Failure::new(what(), "it is there already", next).exit(Exit::Conflict));
    }
    Ok(())
}

/// What is to be read, served.
struct Served {
    uri: Uri,
    /// It was not before.
    by_us: bool,
}

async fn serve_for_reading(
    volumes: &Volumes,
    name: &str,
    snapshot: Option<&str>,
    key: &KeyArgs,
) -> Result<Served, Failure> {
    let found = volumes.get(name).await?;
    if let Some(snapshot) = snapshot {
        let by_us = found.snapshots.iter().any(|known| known.name == snapshot && known.export.is_none());
        let export = volumes.export(name, snapshot).await?;
        return Ok(Served { uri: parse_uri(snapshot, Some(&export.uri))?, by_us });
    }
    let by_us = !found.attached;
    let volume = if by_us { volumes.attach(name, true, key).await? } else { volumes.served(name).await? };
    if volume.connections > 0 && !volume.read_only {
        eprintln!("note: '{name}' is in use; what is written to it now may or may not be in the image");
    }
    Ok(Served { uri: parse_uri(name, volume.uri.as_deref())?, by_us })
}

async fn export(
    arguments: &ExportArgs,
    uri: &Uri,
    format: Format,
    to_stdout: bool,
) -> Result<(u64, Copied), Failure> {
    let mut source = Source::nbd(uri, &format!("'{}'", arguments.volume)).await?;
    let size = source.size();
    if to_stdout {
        // Buffered by the line otherwise.
        let out = std::io::BufWriter::with_capacity(1 << 20, std::io::stdout());
        let mut target = Target::stream(Box::new(out), "standard output");
        return Ok((size, copy_all(&mut source, &mut target).await?));
    }
    let partial = Partial::new(&arguments.file)?;
    let mut target = match format {
        Format::Qcow2 => qcow2(&partial.path, size).await?,
        _ => Target::file(raw(&partial.path, size)?),
    };
    let copied = copy_all(&mut source, &mut target).await?;
    target.close().await?;
    partial.finish(&arguments.file)?;
    Ok((size, copied))
}

async fn copy_all(source: &mut Source, target: &mut Target) -> Result<Copied, Failure> {
    let size = source.size();
    let mut copied = Copied::default();
    let mut progress = ExportProgress(Run::of_bytes(size));
    let done = copy(source, target, Schedule::new(0, size), &mut progress, &mut copied).await;
    done.map(|()| copied).map_err(CopyError::into_failure)
}

struct ExportProgress(Run);

impl Watcher for ExportProgress {
    fn copied(&mut self, cursor: u64, elapsed: Duration) {
        self.0.tell_bytes(cursor, elapsed);
    }

    fn stable(&mut self, _cursor: u64) -> Result<(), Failure> {
        Ok(())
    }
}

/// An image that is not finished; removed unless it gets its name.
struct Partial {
    path: PathBuf,
    finished: bool,
}

impl Partial {
    fn new(file: &Path) -> Result<Self, Failure> {
        let Some(name) = file.file_name() else {
            let what = format!("cannot export to {}", file.display());
            return Err(Failure::new(what, "it names no file", "name a file").exit(Exit::Usage));
        };
        let mut partial = name.to_owned();
        partial.push(".partial");
        Ok(Self { path: file.with_file_name(partial), finished: false })
    }

    fn finish(mut self, file: &Path) -> Result<(), Failure> {
        std::fs::rename(&self.path, file)
            .map_err(|error| explain::system("cannot give the image its name", file, &error))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            // It may not have been made yet.
            tracing::debug!("removing {}: {error}", self.path.display());
        }
    }
}

fn raw(path: &Path, size: u64) -> Result<File, Failure> {
    let made = OpenOptions::new().write(true).create(true).truncate(true).open(path);
    let made = made.and_then(|file| file.set_len(size).map(|()| file));
    made.map_err(|error| explain::system("cannot make the image", path, &error))
}

async fn qcow2(path: &Path, size: u64) -> Result<Target, Failure> {
    // The system's own message names a wrong folder best.
    drop(raw(path, 0)?);
    let made = tokio::process::Command::from(qemu::creation(Format::Qcow2, path, size)).output().await;
    let made = made.map_err(|error| {
        let next = "install QEMU's tools: apt-get install qemu-utils";
        Failure::new("cannot make a qcow2 image", format!("qemu-img: {error}"), next).exit(Exit::Machine)
    })?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        return Err(Failure::new("cannot make a qcow2 image", said, "see the cause above"));
    }
    let (client, server) = serve(path, Format::Qcow2, size, true).await?;
    Ok(Target::nbd(client, true, Some(server)))
}
