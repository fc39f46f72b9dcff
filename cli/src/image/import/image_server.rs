//! An image that nobody serves is served by its instant import, out of the jail, until all of it is in the
//! volume. The socket has the same name whenever the import is run again: the volume's record says it.

use super::{
    BLOCK_SIZE_U64, Exit, Failure, Format, ImportArgs, RawImage, Records, VOLUME_BLOCKS_MAX, open,
    record_failure,
};
use crate::explain;
use crate::image::confine::launcher;
use crate::image::source::{find, inspect, unusable};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use trivet_api::Layout;
use trivet_images::qemu;
use trivet_nbd::{Server, Uri, unix_uri};

/// One that has ended so often, each time within [`WELL`], will not serve by being started again.
const DEATHS_HOPELESS: u32 = 3;
const WELL: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

pub(super) struct ImageServer {
    volume: String,
    path: PathBuf,
    image: RawImage,
    socket: PathBuf,
    /// Ends with the reason when it is hopeless.
    serving: JoinHandle<String>,
    /// Nobody else imports into the volume meanwhile.
    _records: Records,
}

impl ImageServer {
    pub(super) async fn start(arguments: &ImportArgs, path: &Path, layout: &Layout) -> Result<Self, Failure> {
        let volume = arguments.volume.clone();
        let records = Records::open(&layout.imports(), &volume).map_err(|error| record_failure(&error))?;
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
        let socket = layout.import_socket(&volume).map_err(|error| explain::layout(&error))?;
        let listener =
            listen(&socket).map_err(|error| explain::system("cannot serve the image", &socket, &error))?;
        let (launcher, program) = (launcher()?, find(qemu::SERVER)?);
        let (jail, arguments) = (qemu::serving_jail(path, size, false), qemu::serving_all(format));
        let command = move || {
            let listener = listener.try_clone()?;
            Ok(jail.server(&launcher, &program, &arguments, listener.into()))
        };
        let serving = tokio::spawn(serve(command));
        Ok(Self { volume, path: path.to_owned(), image, socket, serving, _records: records })
    }

    /// Where it serves.
    pub(super) fn uri(&self) -> (String, Uri) {
        let server = Server::Unix(self.socket.clone());
        (unix_uri("", &self.socket), Uri { server, export: String::new() })
    }

    /// Waits until there is no hope that it serves.
    pub(super) async fn hopeless(&mut self) -> Failure {
        let cause = match (&mut self.serving).await {
            Ok(cause) => cause,
            Err(error) => error.to_string(),
        };
        let what = format!("the import of {} into '{}' rests", self.path.display(), self.volume);
        Failure::new(what, cause, "run the same command again: what is not imported yet waits for it")
            .exit(Exit::Data)
    }

    /// All is imported; whether it is what the image was from the beginning.
    pub(super) fn check_unchanged(&self) -> Result<(), Failure> {
        match self.image.has_changed() {
            Ok(false) => Ok(()),
            Ok(true) => Err(Failure::new(
                format!("'{}' may hold parts of different images", self.volume),
                format!("{} was changed while it was imported", self.path.display()),
                format!("delete the volume (trivet volume delete {}), and import it again", self.volume),
            )
            .exit(Exit::Data)),
            Err(error) => Err(explain::system("cannot read the image", &self.path, &error)),
        }
    }
}

impl Drop for ImageServer {
    fn drop(&mut self) {
        self.serving.abort();
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(socket = %self.socket.display(), %error, "not removed");
        }
    }
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
async fn serve(command: impl Fn() -> io::Result<std::process::Command>) -> String {
    let mut deaths = 0;
    loop {
        let began = Instant::now();
        let cause = match run(&command).await {
            Ok(status) => format!("QEMU, which reads it, ended again and again: {status}"),
            Err(error) => format!("QEMU cannot be started: {error}"),
        };
        deaths = if began.elapsed() < WELL { deaths + 1 } else { 1 };
        if deaths >= DEATHS_HOPELESS {
            return cause;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn run(
    command: &impl Fn() -> io::Result<std::process::Command>,
) -> io::Result<std::process::ExitStatus> {
    let mut command = Command::from(command()?);
    command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn()?.wait().await
}
