//! The bench over NBD.

use super::target::Done;
use super::workload::{Kind, Step};
use crate::explain;
use crate::failure::Failure;
use crate::nbd::NbdClient;
use std::io;
use std::path::{Path, PathBuf};
use trivet_nbd::{Finished, Request, Server, Uri, Wanted};

/// An NBD export under load.
pub(super) struct NbdTarget {
    client: NbdClient,
    pub(super) name: String,
    /// Its unix socket, by which a cluster's volume is known.
    pub(super) socket: Option<PathBuf>,
    finished: Vec<Finished>,
}

impl NbdTarget {
    pub(super) async fn connect(uri: &Uri) -> Result<Self, Failure> {
        let (server, socket) = match &uri.server {
            Server::Unix(path) => (path.display().to_string(), Some(path.clone())),
            Server::Tcp(address) => (address.clone(), None),
        };
        let client = NbdClient::connect(uri, Wanted::Data).await.map_err(|error| {
            let what = format!("cannot connect to export '{}'", uri.export);
            match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Failure::new(
                    what,
                    format!("nobody listens at {server}"),
                    "see whether the volume is attached: trivet volume list",
                ),
                _ => explain::system(what, Path::new(&server), &error),
            }
        })?;
        let name = format!("{} over NBD", uri.export);
        Ok(Self { client, name, socket, finished: Vec::new() })
    }

    pub(super) fn size(&self) -> u64 {
        self.client.export().size
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.client.export().read_only
    }

    pub(super) fn can_flush(&self) -> bool {
        self.client.export().can_flush
    }

    pub(super) fn server_pid(&self) -> Option<u32> {
        self.client.server_pid()
    }

    pub(super) fn submit(&mut self, handle: u64, step: Step, length: u32) -> Result<(), Failure> {
        let request = match step.kind {
            Kind::Read => Request::ReadAndForget { offset: step.offset, length },
            Kind::Write => Request::Write { offset: step.offset, data: step.data },
            Kind::Flush => Request::Flush,
        };
        self.client.submit(handle, request).map_err(|error| self.broken(&error))
    }

    pub(super) async fn progress(&mut self, done: &mut Vec<Done>) -> Result<(), Failure> {
        let progress = self.client.progress(&mut self.finished).await;
        progress.map_err(|error| self.broken(&error))?;
        done.extend(self.finished.drain(..).map(|finished| {
            Done {
                handle: finished.handle,
                error: i32::try_from(finished.error)
                    .ok()
                    .filter(|&number| number != 0)
                    .map(|number| io::Error::from_raw_os_error(number).to_string()),
            }
        }));
        Ok(())
    }

    pub(super) async fn close(self) -> Result<(), Failure> {
        let name = self.name.clone();
        let closed = self.client.disconnect().await;
        closed.map_err(|error| Failure::new(format!("the connection to {name} broke"), error, ""))
    }

    fn broken(&self, error: &io::Error) -> Failure {
        Failure::new(
            format!("the connection to {} broke", self.name),
            error,
            "see whether its engine runs, and its log: trivet status",
        )
    }
}
