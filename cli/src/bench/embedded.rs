//! The bench over the embedded library: the engine runs in this process.

use super::target::Done;
use super::workload::{Kind, Pattern, Step};
use crate::args::Place;
use crate::cluster::manager_address;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::view;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use trivet_api::{ManagerAddress, ManagerAuthority, v1};
use trivet_engine::{IoRequest, OpenError, OpenOptions, Volume};
use trivet_model::VolumeId;

const OPEN_PATIENCE: Duration = Duration::from_secs(30);
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// A volume under load, opened by this process.
pub(super) struct EmbeddedTarget {
    inner: Volume,
    /// The volume's name.
    pub(super) volume: String,
    /// For people.
    pub(super) name: String,
    size: u64,
    // Unbounded, because a completion must not wait on the volume's thread; the bench's depth
    // bounds it.
    completed: UnboundedSender<Done>,
    completions: UnboundedReceiver<Done>,
}

impl EmbeddedTarget {
    pub(super) async fn open(place: &Place, volume: &str, pattern: Pattern) -> Result<Self, Failure> {
        let what = format!("cannot open volume '{volume}'");
        let (client, dir) = place.connect()?;
        let request = v1::GetVolumeRequest { name: volume.to_owned() };
        let status = client.get_volume(request).await.map_err(|error| explain::api(&dir, &what, &error))?;
        let view = view::volume(status)?;
        if view.attached {
            let next = format!("detach it (trivet volume detach {volume}), or measure its --uri");
            return Err(Failure::new(what, "it is attached", next).exit(Exit::Conflict));
        }
        if !view.owner.is_empty() {
            let next =
                format!("close it there; if that is gone for good: trivet volume attach {volume} --force");
            return Err(Failure::new(what, format!("it is open: {}", view.owner), next).exit(Exit::Conflict));
        }
        let id: VolumeId =
            view.id.parse().map_err(|error| Failure::new(&what, format!("its id is no id: {error}"), ""))?;
        let address = manager_address(&place.layout()?)?;
        let read_only = !pattern.writes();
        let opened = tokio::task::spawn_blocking(move || open(&address, id, read_only)).await;
        let inner = opened
            .map_err(|error| Failure::new(&what, error, ""))?
            .map_err(|cause| explain::data_path(&what, &cause))?;
        let (completed, completions) = unbounded_channel();
        Ok(Self {
            inner,
            volume: volume.to_owned(),
            name: format!("{volume} over the embedded library"),
            size: view.size_bytes,
            completed,
            completions,
        })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn submit(&self, handle: u64, step: Step, length: u32) {
        let request = match step.kind {
            Kind::Read => IoRequest::Read { offset: step.offset, length },
            Kind::Write => {
                IoRequest::Write { offset: step.offset, segments: vec![step.data], force_unit_access: false }
            }
            Kind::Flush => IoRequest::Flush,
        };
        let completed = self.completed.clone();
        self.inner.submit(request, move |result| {
            let done = Done { handle, error: result.err().map(|error| error.to_string()) };
            if completed.send(done).is_err() {
                tracing::debug!("the bench has given up already");
            }
        });
    }

    pub(super) async fn progress(&mut self, done: &mut Vec<Done>) {
        // This side holds a sender itself, so that the channel never ends.
        done.extend(self.completions.recv().await);
        while let Ok(one) = self.completions.try_recv() {
            done.push(one);
        }
    }

    pub(super) async fn close(self) -> Result<(), Failure> {
        let what = format!("cannot close volume '{}' in good order", self.volume);
        let closed = tokio::task::spawn_blocking(move || self.inner.close(CLOSE_PATIENCE)).await;
        closed
            .map_err(|error| Failure::new(&what, error, ""))?
            .map_err(|error| Failure::new(&what, error, "see whether its replica servers run: trivet status"))
    }
}

/// Blocks, as the authority and the opening do. An error in words: the explanation goes by them.
fn open(address: &ManagerAddress, volume: VolumeId, read_only: bool) -> Result<Volume, String> {
    let authority = ManagerAuthority::new(address).map_err(|error| error.to_string())?;
    let options = OpenOptions {
        authority: Arc::new(authority),
        volume,
        owner: format!("trivet bench, process {}", std::process::id()),
        read_only,
        snapshot: None,
        key: None,
        patience: Some(OPEN_PATIENCE),
        spin: Duration::ZERO,
    };
    Volume::open(options).map_err(|error: OpenError| error.to_string())
}
