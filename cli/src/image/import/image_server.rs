//! An image that nobody serves is served by its instant import, out of the jail, until all of it is in the
//! volume. The socket has the same name whenever the import is run again: the volume's record says it.

use super::{
    BLOCK_SIZE_U64, Exit, Failure, Format, ImportArgs, RawImage, Records, VOLUME_BLOCKS_MAX, open,
    record_failure,
};
use crate::explain;
use crate::image::confine::launcher;
use crate::image::source::{Complaint, find, inspect, last_words, unusable};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use trivet_api::Layout;
use trivet_images::qemu;
use trivet_images::record::ImportRecord;
use trivet_nbd::{Server, Uri, unix_uri};

/// One that has ended so often, each time within [`WELL`], will not serve by being started again.
const DEATHS_HOPELESS: u32 = 3;
const WELL: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);
/// How long QEMU may take to end once it has broken a connection.
const DYING: Duration = Duration::from_secs(1);

/// An image, and where it is served.
pub(super) struct Image {
    path: PathBuf,
    image: RawImage,
    format: Format,
    socket: PathBuf,
    /// Nobody else imports into the volume meanwhile.
    records: Records,
}

/// QEMU, which serves it, started again whenever it ends.
pub(super) struct Serving {
    /// Ends when that is of no use.
    task: JoinHandle<Complaint>,
    /// Why it last ended.
    ended: watch::Receiver<Option<Complaint>>,
}

impl Image {
    /// Looks at the image, and has it served.
    pub(super) async fn serve(
        arguments: &ImportArgs,
        path: &Path,
        layout: &Layout,
    ) -> Result<(Self, Serving), Failure> {
        let volume = &arguments.volume;
        let records = Records::open(&layout.imports(), volume).map_err(|error| record_failure(&error))?;
        let (image, format) = open(path, arguments.format)?;
        if image.is_device() {
            let next = format!(
                "serve it: qemu-nbd --read-only --persistent --shared=4 --fork -f raw -k /run/device.sock {}; \
                 then import 'nbd+unix:///?socket=/run/device.sock'. Or leave --instant away",
                path.display()
            );
            let cause = "a device is not served by the import itself";
            return Err(Failure::new("cannot import that instantly", cause, next).exit(Exit::Usage));
        }
        let most = arguments.size.map_or(VOLUME_BLOCKS_MAX, |size| size.blocks) * BLOCK_SIZE_U64;
        let size = match format {
            Format::Raw => image.size(),
            format => inspect(path, format, most).await?,
        };
        if size == 0 {
            return Err(unusable(path, "it is empty", Exit::Data));
        }
        let socket = layout.import_socket(volume).map_err(|error| explain::layout(&error))?;
        let listener =
            listen(&socket).map_err(|error| explain::system("cannot serve the image", &socket, &error))?;
        let (launcher, program) = (launcher()?, find(qemu::SERVER)?);
        let (jail, arguments) = (qemu::serving_jail(path, size, false), qemu::serving_all(format));
        let (opened, of_path) = (image.fingerprint().clone(), path.to_owned());
        let command = move || {
            // QEMU opens what has this name by now.
            let now = RawImage::open(&of_path).map_err(|error| io::Error::other(error.to_string()))?;
            if *now.fingerprint() != opened {
                return Err(io::Error::other("the image was changed, or another has its name"));
            }
            let listener = listener.try_clone()?;
            Ok(jail.server(&launcher, &program, &arguments, listener.into()))
        };
        let (tell, ended) = watch::channel(None);
        let task = tokio::spawn(serve(command, tell));
        Ok((Self { path: path.to_owned(), image, format, socket, records }, Serving { task, ended }))
    }

    /// Where it is served.
    pub(super) fn uri(&self) -> (String, Uri) {
        let server = Server::Unix(self.socket.clone());
        (unix_uri("", &self.socket), Uri { server, export: String::new() })
    }

    /// Notes that this volume is filled from this image as it is now.
    pub(super) fn keep(&self, arguments: &ImportArgs, volume: &str) -> Result<(), Failure> {
        let (source, format) = (arguments.source.clone(), self.format.name().to_owned());
        let record = ImportRecord::new(source, self.image.fingerprint().clone(), format, volume.to_owned());
        self.records.keep_import(&record).map_err(|error| record_failure(&error))
    }

    /// Refuses to go on with another image than that which the volume has parts of.
    pub(super) fn check_same(&self, name: &str, volume: &str) -> Result<(), Failure> {
        let kept = self.records.import().map_err(|error| record_failure(&error))?;
        let Some(kept) = kept.filter(|kept| kept.volume == volume) else {
            eprintln!("note: whether the image is still what it was cannot be seen: nothing was noted of it");
            return Ok(());
        };
        if kept.fingerprint == *self.image.fingerprint() && kept.format == self.format.name() {
            return Ok(());
        }
        let next = format!("put it back as it was; or delete the volume and begin anew: {}", delete(name));
        let cause = format!("{} is not what it was when that began", self.path.display());
        Err(Failure::new(format!("cannot go on with the import into '{name}'"), cause, next)
            .exit(Exit::Conflict))
    }

    /// All is imported; whether the image was the same all the time.
    pub(super) fn finish(&self, name: &str) -> Result<(), Failure> {
        match self.image.has_changed() {
            Ok(false) => self.records.forget().map_err(|error| record_failure(&error)),
            Ok(true) => Err(Failure::new(
                format!("'{name}' may hold parts of different images"),
                format!("{} was changed while it was imported", self.path.display()),
                format!("delete the volume ({}), and import it again", delete(name)),
            )
            .exit(Exit::Data)),
            Err(error) => Err(explain::system("cannot read the image", &self.path, &error)),
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(socket = %self.socket.display(), %error, "not removed");
        }
    }
}

impl Serving {
    /// Waits until there is no hope that it serves.
    pub(super) async fn hopeless(&mut self) -> Complaint {
        match (&mut self.task).await {
            Ok(complaint) => complaint,
            Err(error) => Complaint { cause: error.to_string(), of_machine: true },
        }
    }

    /// Why it has broken a connection, if it has ended.
    pub(super) async fn complaint(&mut self) -> Option<Complaint> {
        let ended = tokio::time::timeout(DYING, self.ended.wait_for(Option::is_some)).await;
        ended.ok()?.ok()?.clone()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn delete(name: &str) -> String {
    format!("trivet volume delete {name}")
}

/// Listens where an import that was killed may have listened.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(socket)
}

/// Has QEMU serve it, again whenever it ends. Answers why that is of no use.
async fn serve(
    command: impl Fn() -> io::Result<std::process::Command>,
    ended: watch::Sender<Option<Complaint>>,
) -> Complaint {
    let mut deaths = 0;
    loop {
        let began = Instant::now();
        let complaint = match run(&command).await {
            Ok(complaint) => complaint,
            Err(error) => {
                return Complaint { cause: format!("QEMU cannot be started: {error}"), of_machine: true };
            }
        };
        ended.send_replace(Some(complaint.clone()));
        deaths = if began.elapsed() < WELL { deaths + 1 } else { 1 };
        if deaths >= DEATHS_HOPELESS {
            return complaint;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn run(command: &impl Fn() -> io::Result<std::process::Command>) -> io::Result<Complaint> {
    let mut command = Command::from(command()?);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let words = last_words(child.stderr.take()).await;
    let status = child.wait().await?;
    Ok(Complaint::of(&words, &format!("QEMU, which reads it, has ended: {status}")))
}
