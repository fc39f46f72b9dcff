//! Where a copy comes from.

use super::confine::launcher;
use super::failures::{CopyError, errno};
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::nbd::NbdClient;
use bytes::Bytes;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use trivet_images::format::{Format, FormatError};
use trivet_images::inspect::{self, DESCRIPTION_BYTES_MAX, InspectError};
use trivet_images::qemu;
use trivet_images::raw::{RawError, RawImage};
use trivet_images::schedule::{Piece, Run};
use trivet_nbd::{Finished, Request, Uri, Wanted};

/// The handle of questions for what holds data; pieces have their offsets, which are below.
const QUESTION: u64 = u64::MAX;
/// A reader in the jail answers sooner, or is caught in a hostile image.
const JAIL_PATIENCE: Duration = Duration::from_secs(60);
/// Looking at a large image takes longer.
const INSPECTION_PATIENCE: Duration = Duration::from_secs(600);

/// What is kept of what a process said before it ended.
const LAST_WORDS_BYTES: usize = 4096;

/// What a source has to say.
#[derive(Debug)]
pub(super) enum SourceEvent {
    /// What holds data, from where the question began.
    Runs(Vec<Run>),
    /// A piece, by its offset.
    Data { offset: u64, data: Bytes },
}

/// What is copied from.
pub(super) enum Source {
    /// A file or a device, read as it is.
    Raw { image: RawImage, path: PathBuf, ready: Vec<SourceEvent> },
    /// An NBD server: another machine's, a volume's, or QEMU in its jail.
    Nbd(Box<NbdSource>),
}

pub(super) struct NbdSource {
    client: NbdClient,
    name: String,
    /// Lengths of what was asked about, for a server that cannot say what holds data.
    ready: Vec<SourceEvent>,
    finished: Vec<Finished>,
    jail: Option<Child>,
}

impl Source {
    pub(super) const fn raw(image: RawImage, path: PathBuf) -> Self {
        Self::Raw { image, path, ready: Vec::new() }
    }

    /// An NBD server.
    pub(super) async fn nbd(uri: &Uri, name: &str) -> Result<Self, Failure> {
        let client = NbdClient::connect(uri, Wanted::DataAndAllocation).await.map_err(|error| {
            Failure::new(
                format!("cannot connect to {name}"),
                error,
                "see whether its server runs, has that export, and can be reached from here: nbdinfo URI",
            )
        })?;
        Ok(Self::served(client, name, None))
    }

    pub(super) fn served(client: NbdClient, name: &str, jail: Option<Child>) -> Self {
        let name = name.to_owned();
        Self::Nbd(Box::new(NbdSource { client, name, ready: Vec::new(), finished: Vec::new(), jail }))
    }

    /// An image that QEMU reads in a jail.
    pub(super) async fn jailed(path: &Path, format: Format, most: u64) -> Result<Self, Failure> {
        let size = inspect(path, format, most).await?;
        let (client, jail) = serve(path, format, size, false).await?;
        if client.export().size != size {
            return Err(unusable(path, "what it holds has another size than it says", Exit::Data));
        }
        Ok(Self::served(client, &path.display().to_string(), Some(jail)))
    }

    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Raw { image, .. } => image.size(),
            Self::Nbd(nbd) => nbd.client.export().size,
        }
    }

    /// Asks what holds data.
    pub(super) fn ask(&mut self, offset: u64, length: u64) -> Result<(), CopyError> {
        match self {
            Self::Raw { image, path, ready } => {
                let runs = image.runs(offset, length).map_err(|error| unreadable(path, &error))?;
                ready.push(SourceEvent::Runs(runs));
                Ok(())
            }
            Self::Nbd(nbd) if nbd.client.export().has_allocation => {
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                let asked = nbd.client.submit(QUESTION, Request::Allocation { offset, length });
                asked.map_err(|error| nbd.broken(&error))
            }
            Self::Nbd(nbd) => {
                nbd.ready.push(SourceEvent::Runs(vec![Run { length, zero: false }]));
                Ok(())
            }
        }
    }

    /// Reads a piece.
    pub(super) fn read(&mut self, piece: Piece) -> Result<(), CopyError> {
        match self {
            Self::Raw { image, path, ready } => {
                let mut data = vec![0; usize::try_from(piece.length).unwrap_or(0)];
                image.read(piece.offset, &mut data).map_err(|error| unreadable(path, &error))?;
                ready.push(SourceEvent::Data { offset: piece.offset, data: data.into() });
                Ok(())
            }
            Self::Nbd(nbd) => {
                let length = u32::try_from(piece.length).unwrap_or(u32::MAX);
                let asked = nbd.client.submit(piece.offset, Request::Read { offset: piece.offset, length });
                asked.map_err(|error| nbd.broken(&error))
            }
        }
    }

    /// Waits until there is something to say; adds all of it. Nothing is lost when it is cancelled.
    pub(super) async fn progress(&mut self, events: &mut Vec<SourceEvent>) -> Result<(), CopyError> {
        match self {
            Self::Raw { ready, .. } => {
                if ready.is_empty() {
                    std::future::pending::<()>().await;
                }
                events.append(ready);
                Ok(())
            }
            Self::Nbd(nbd) => nbd.progress(events).await,
        }
    }

    /// Waits for what was asked, and forgets it: whoever asked has gone.
    pub(super) async fn settle(&mut self) -> Result<(), CopyError> {
        let mut forgotten = Vec::new();
        match self {
            Self::Raw { ready, .. } => ready.clear(),
            Self::Nbd(nbd) => {
                nbd.ready.clear();
                while nbd.client.in_flight() > 0 {
                    nbd.progress(&mut forgotten).await?;
                }
            }
        }
        Ok(())
    }

    /// Whether it is still what it was, as far as that shows.
    pub(super) fn check_unchanged(&self) -> Result<(), Failure> {
        let Self::Raw { image, path, .. } = self else { return Ok(()) };
        match image.has_changed() {
            Ok(false) => Ok(()),
            Ok(true) => Err(unusable(path, "it was changed while it was read", Exit::Data)),
            Err(error) => Err(explain::system("cannot read the image", path, &error)),
        }
    }
}

impl NbdSource {
    async fn progress(&mut self, events: &mut Vec<SourceEvent>) -> Result<(), CopyError> {
        if !self.ready.is_empty() {
            events.append(&mut self.ready);
            return Ok(());
        }
        if self.client.in_flight() == 0 {
            std::future::pending::<()>().await;
        }
        let progress = self.client.progress(&mut self.finished);
        let progress = if self.jail.is_some() {
            tokio::time::timeout(JAIL_PATIENCE, progress).await.map_err(|_elapsed| {
                let cause = format!("QEMU did not answer for {} s", JAIL_PATIENCE.as_secs());
                CopyError::Unusable(unusable(Path::new(&self.name), &cause, Exit::Data))
            })?
        } else {
            progress.await
        };
        progress.map_err(|error| self.broken(&error))?;
        for finished in std::mem::take(&mut self.finished) {
            if finished.error != 0 {
                return Err(self.refused(&finished));
            }
            events.push(match finished.handle {
                QUESTION => {
                    let runs = finished.extents.iter();
                    SourceEvent::Runs(
                        runs.map(|extent| Run { length: extent.length.into(), zero: extent.zero }).collect(),
                    )
                }
                offset => SourceEvent::Data { offset, data: finished.data },
            });
        }
        Ok(())
    }

    fn broken(&self, error: &io::Error) -> CopyError {
        if self.jail.is_some() {
            // QEMU ended: the image made it, or the jail's limits did.
            let cause = format!("QEMU gave up reading it: {error}");
            return CopyError::Unusable(unusable(Path::new(&self.name), &cause, Exit::Data));
        }
        CopyError::Interrupted(Failure::new(
            format!("the connection to {} broke", self.name),
            error,
            "when its server is back, run the same command again: it goes on where it was",
        ))
    }

    fn refused(&self, finished: &Finished) -> CopyError {
        let at =
            if finished.handle == QUESTION { String::new() } else { format!(" at byte {}", finished.handle) };
        let cause = format!("reading{at}: {}", errno(finished.error));
        if self.jail.is_some() {
            return CopyError::Unusable(unusable(Path::new(&self.name), &cause, Exit::Data));
        }
        CopyError::Interrupted(Failure::new(
            format!("{} cannot be read", self.name),
            cause,
            "repair it, then run the same command again: it goes on where it was",
        ))
    }
}

fn unreadable(path: &Path, error: &io::Error) -> CopyError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return CopyError::Unusable(unusable(path, "it became shorter while it was read", Exit::Data));
    }
    CopyError::Interrupted(Failure::new(
        format!("cannot read {}", path.display()),
        error,
        "repair it, then run the same command again: it goes on where it was",
    ))
}

/// An image that is of no use.
pub(super) fn unusable(path: &Path, cause: &str, exit: Exit) -> Failure {
    let next = "nothing of it was kept; get another copy of it, or look at it with: qemu-img check";
    Failure::new(format!("cannot import {}", path.display()), cause, next).exit(exit)
}

/// Opens a file or device and decides what it is.
pub(super) fn open(path: &Path, said: Option<Format>) -> Result<(RawImage, Format), Failure> {
    let what = || format!("cannot import {}", path.display());
    let image = RawImage::open(path).map_err(|error| match error {
        RawError::Io(error) => match error.kind() {
            io::ErrorKind::PermissionDenied => {
                Failure::new(what(), error, "run it as someone who may read it")
            }
            io::ErrorKind::NotFound => {
                Failure::new(what(), error, "check the path; a URL begins with http://, https:// or nbd://")
                    .exit(Exit::NotFound)
            }
            _ => Failure::new(what(), error, "see the cause above"),
        },
        RawError::OtherKind => {
            Failure::new(what(), error, "name an image, or a device such as /dev/sdb").exit(Exit::Usage)
        }
        _ => Failure::new(what(), error, "check the path").exit(Exit::Usage),
    })?;
    let decided = image.with_edges(|edges| Format::decide(said, path, edges));
    let decided = decided.map_err(|error| explain::system(what(), path, &error))?;
    let format = decided.map_err(|error| {
        let next = match error {
            FormatError::Ambiguous { named, seen } => format!(
                "say which it is: --format {seen}, or --format {named} if it is a disk whose content looks so by chance or by intent"
            ),
            FormatError::NotSuch { .. } => "say what it is with --format, or get another copy of it".to_owned(),
            FormatError::OnlyDescription | FormatError::Differencing => {
                "make one file of it: qemu-img convert -O qcow2 IMAGE NEW.qcow2".to_owned()
            }
            _ => String::new(),
        };
        Failure::new(what(), error, next).exit(Exit::Data)
    })?;
    if image.is_device() && format != Format::Raw {
        let next = "copy it to a file first; what a device holds is taken as it is: --format raw";
        return Err(Failure::new(what(), "images on devices are not read", next).exit(Exit::Usage));
    }
    Ok((image, format))
}

/// Where one of QEMU's programs is.
pub(super) fn find(program: &str) -> Result<PathBuf, Failure> {
    qemu::find(program).ok_or_else(|| {
        Failure::new(
            format!("{program} is not installed"),
            "QEMU's tools read and write the formats other than raw, and serve images to instant imports",
            "install them: apt-get install qemu-utils",
        )
        .exit(Exit::Machine)
    })
}

/// The size of what an image holds, if it stands alone and is whole.
pub(super) async fn inspect(path: &Path, format: Format, most: u64) -> Result<u64, Failure> {
    let described = look(path, &qemu::inspection(format)).await?;
    if described.code != Some(0) {
        return Err(described.complaint(path));
    }
    let judged = inspect::judge(&described.said, format, most);
    let found = judged.map_err(|error| {
        let next = match error {
            InspectError::HasParent(_) | InspectError::DataElsewhere(_) | InspectError::OtherVmdk(_) => {
                "if you trust it, make one file of it: qemu-img convert -O qcow2 IMAGE NEW.qcow2"
            }
            InspectError::Encrypted => "decrypt it first: qemu-img convert with its secret",
            InspectError::TooLarge { .. } => {
                "if it is meant, name a larger --size; else get another copy of it"
            }
            _ => "get another copy of it, or look at it with: qemu-img check",
        };
        Failure::new(format!("cannot import {}", path.display()), error, next).exit(Exit::Data)
    })?;
    let checked = look(path, &qemu::checking(format)).await?;
    if !checked.code.is_some_and(|code| qemu::CHECKED.contains(&code)) {
        return Err(checked.complaint(path));
    }
    Ok(found.size)
}

/// What QEMU's inspector says in its jail.
struct Looked {
    code: Option<i32>,
    said: Vec<u8>,
    complained: Vec<u8>,
}

impl Looked {
    fn complaint(&self, path: &Path) -> Failure {
        let silent = "QEMU ended without saying why: it may need more memory or time than it is given";
        Complaint::of(&self.complained, silent).of_image(path)
    }
}

/// Why QEMU has ended that should have read an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Complaint {
    pub(super) cause: String,
    /// The image has nothing to do with it.
    pub(super) of_machine: bool,
}

impl Complaint {
    /// By what it said, or if it said nothing.
    pub(super) fn of(said: &[u8], silent: &str) -> Self {
        let text = String::from_utf8_lossy(said);
        // The jail's own words, not the reader's.
        if let Some(own) = text.strip_prefix("error: ") {
            return Self { cause: own.trim().replace("\n  ", "; "), of_machine: true };
        }
        let cause = if said.is_empty() { silent.to_owned() } else { inspect::complaint(said).to_string() };
        Self { cause, of_machine: false }
    }

    /// As what it means for an import that has made nothing yet.
    pub(super) fn of_image(&self, path: &Path) -> Failure {
        if self.of_machine {
            return explain::process("cannot read the image", &self.cause).exit(Exit::Machine);
        }
        unusable(path, &self.cause, Exit::Data)
    }
}

async fn look(path: &Path, arguments: &[String]) -> Result<Looked, Failure> {
    let jail = qemu::inspection_jail(path);
    let mut command = Command::from(jail.command(&launcher()?, &find(qemu::INSPECTOR)?, arguments));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |error: io::Error| Failure::new("cannot look at the image", error, "").exit(Exit::Machine);
    let mut child = command.spawn().map_err(failed)?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let looked = tokio::time::timeout(INSPECTION_PATIENCE, async {
        let (said, complained) = tokio::try_join!(read_some(out), read_some(err))?;
        Ok((child.wait().await?, said, complained))
    });
    match looked.await {
        Ok(looked) => {
            let (status, said, complained) = looked.map_err(failed)?;
            Ok(Looked { code: status.code(), said, complained })
        }
        Err(_elapsed) => Err(unusable(path, "QEMU does not get to an end with looking at it", Exit::Data)),
    }
}

/// What a stream brings, as far as it is believed to be of use; then it is closed.
async fn read_some(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let most = u64::try_from(DESCRIPTION_BYTES_MAX).unwrap_or(u64::MAX);
        stream.take(most).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// The last that a stream brings before its end.
pub(super) async fn last_words(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let (mut kept, mut part) = (Vec::new(), [0; 1024]);
    if let Some(mut stream) = stream {
        while let Ok(count @ 1..) = stream.read(&mut part).await {
            kept.extend_from_slice(&part[..count]);
            kept.drain(..kept.len().saturating_sub(LAST_WORDS_BYTES));
        }
    }
    kept
}

/// Has QEMU serve an image out of a jail.
pub(super) async fn serve(
    path: &Path,
    format: Format,
    size: u64,
    writable: bool,
) -> Result<(NbdClient, Child), Failure> {
    let failed = |error: io::Error| Failure::new("cannot start QEMU", error, "").exit(Exit::Machine);
    let folder = tempfile::tempdir().map_err(failed)?;
    let socket = folder.path().join("nbd");
    let listener = UnixListener::bind(&socket).map_err(failed)?;
    let jail = qemu::serving_jail(path, size, writable);
    let arguments = qemu::serving(format, writable);
    let command = jail.server(&launcher()?, &find(qemu::SERVER)?, &arguments, listener.into());
    let mut command = Command::from(command);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let stream = tokio::net::UnixStream::connect(&socket).await.map_err(failed)?;
    // Nobody else comes.
    drop(folder);
    let agreed = NbdClient::over(stream, "", Wanted::DataAndAllocation);
    match tokio::time::timeout(JAIL_PATIENCE, agreed).await {
        Ok(Ok(client)) => {
            if let Some(mut stderr) = child.stderr.take() {
                // It is only to be kept from waiting until somebody listens.
                tokio::spawn(async move { tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await });
            }
            Ok((client, child))
        }
        Ok(Err(_broken)) => {
            let complained = tokio::time::timeout(Duration::from_secs(1), read_some(child.stderr.take()));
            let complained = complained.await.ok().and_then(Result::ok).unwrap_or_default();
            Err(Looked { code: None, said: Vec::new(), complained }.complaint(path))
        }
        Err(_elapsed) => Err(unusable(path, "QEMU does not get to an end with opening it", Exit::Data)),
    }
}
