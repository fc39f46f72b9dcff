//! An NBD server of an image that takes its time, goes away and comes back.

use crate::patience;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The server: qemu-nbd, since nbdkit 1.32 aborts when a client is killed while it delays requests.
#[derive(Debug)]
pub struct SlowSource {
    server: Child,
    socket: PathBuf,
}

impl SlowSource {
    /// Serves an image at so many bytes a second, or at 0 as fast as it can be. Its URI is the same each time.
    ///
    /// # Panics
    /// When it cannot be served.
    #[must_use]
    pub fn start(image: &Path, bytes_per_second: u64) -> Self {
        let socket = image.with_extension("sock");
        if socket.exists() {
            fs::remove_file(&socket).expect("its last server has gone");
        }
        let group = format!("throttle-group,id=slow,x-bps-read={bytes_per_second}");
        let file = format!("file.driver=raw,file.file.driver=file,file.file.filename={}", image.display());
        let node = format!("driver=throttle,throttle-group=slow,{file}");
        let mut server = Command::new("qemu-nbd");
        server.args(["--object", &group, "--image-opts", &node, "--read-only", "--persistent", "--shared=8"]);
        server.arg(format!("--socket={}", socket.display())).stderr(Stdio::null());
        let server = server.spawn().expect("qemu-nbd starts");
        patience::wait_for("qemu-nbd to listen", patience::SOON, || socket.exists().then_some(()));
        Self { server, socket }
    }

    /// Where it serves.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

impl Drop for SlowSource {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.server.kill());
        drop(self.server.wait());
    }
}
