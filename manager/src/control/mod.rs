//! The one owner of changes to the cluster: commands come one after the other, become records,
//! and the records become running processes and copies in pools.
//!
//! Invariants:
//! - what runs follows from the records alone: after a crash at any point, reading them again and
//!   acting on them leads to the same state;
//! - a copy in a pool is named by a volume's record or by a deletion's, before it is made and until
//!   it is gone.

mod attach;
mod deletions;
pub mod pools;
mod ports;
mod processes;
mod refusal;
mod replicas;
pub mod volumes;

pub use processes::{ENGINE_OWNER, engine_name};
pub use refusal::Refusal;

use crate::store::RecordStore;
use crate::supervisor::{Supervisor, known_processes, stop_holders};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use trivet_api::{Layout, v1};

/// How often the records are compared with the world.
const TICK: Duration = Duration::from_millis(500);

/// What the owner holds.
pub struct Control {
    store: Arc<dyn RecordStore>,
    layout: Layout,
    program: PathBuf,
    supervisor: Supervisor,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("layout", &self.layout).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Change {
    EnsureReplicas(v1::EnsureReplicasRequest),
    Create(v1::CreateVolumeRequest),
    Delete(v1::DeleteVolumeRequest),
    Resize(v1::ResizeVolumeRequest),
    Attach(v1::AttachVolumeRequest),
    Detach(v1::DetachVolumeRequest),
}

#[derive(Debug)]
struct Command {
    change: Change,
    /// Told how many things were made anew.
    reply: oneshot::Sender<Result<u32, Refusal>>,
}

/// Gives commands to the owner. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    commands: mpsc::Sender<Command>,
}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident($variant:ident, $request:ident);)*) => {
        impl ControlHandle {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// [`Refusal`] says why nothing, or not all of it, took place.
                pub async fn $name(&self, request: v1::$request) -> Result<u32, Refusal> {
                    self.change(Change::$variant(request)).await
                }
            )*
        }
    };
}

commands! {
    /// Makes the cluster's replica servers, once; answers how many were made now.
    ensure_replicas(EnsureReplicas, EnsureReplicasRequest);
    /// Makes a volume.
    create(Create, CreateVolumeRequest);
    /// Deletes a volume; with `dry_run`, only says whether it could be.
    delete(Delete, DeleteVolumeRequest);
    /// Grows a volume.
    resize(Resize, ResizeVolumeRequest);
    /// Has a volume served.
    attach(Attach, AttachVolumeRequest);
    /// Has a volume no longer served, and waits until its engine has ended.
    detach(Detach, DetachVolumeRequest);
}

impl ControlHandle {
    async fn change(&self, change: Change) -> Result<u32, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command { change, reply }).await.or(Err(Refusal::Stopping))?;
        answer.await.or(Err(Refusal::Stopping))?
    }
}

impl Control {
    /// An owner of the cluster in `layout`, whose processes run `program`.
    #[must_use]
    pub fn new(
        store: Arc<dyn RecordStore>,
        layout: Layout,
        program: PathBuf,
        supervisor: Supervisor,
    ) -> Self {
        Self { store, layout, program, supervisor }
    }

    /// Brings the processes in line with the records, then starts to take commands on the present
    /// tokio runtime. The task ends, and gives the store back, when the last handle is gone.
    ///
    /// # Errors
    /// [`Refusal`] when the records cannot be read.
    pub async fn spawn(self) -> Result<(ControlHandle, JoinHandle<()>), Refusal> {
        self.stop_strays().await?;
        self.apply_processes().await?;
        let (commands, receiver) = mpsc::channel(16);
        let owner = tokio::spawn(self.run(receiver));
        Ok((ControlHandle { commands }, owner))
    }

    async fn run(self, mut commands: mpsc::Receiver<Command>) {
        loop {
            match tokio::time::timeout(TICK, commands.recv()).await {
                Ok(Some(command)) => {
                    let result = self.carry_out(command.change).await;
                    if let Err(refusal) = &result {
                        tracing::info!("refused: {refusal}");
                    }
                    // The caller may have given up; what was done is in the records.
                    if command.reply.send(result).is_err() {
                        tracing::debug!("nobody waits for the answer any more");
                    }
                }
                Ok(None) => return,
                Err(_elapsed) => self.reconcile().await,
            }
        }
    }

    async fn carry_out(&self, change: Change) -> Result<u32, Refusal> {
        match change {
            Change::EnsureReplicas(request) => self.ensure_replicas(&request).await,
            Change::Create(request) => self.create_volume(&request).await,
            Change::Delete(request) => self.delete_volume(&request).await,
            Change::Resize(request) => self.resize_volume(&request).await,
            Change::Attach(request) => self.attach_volume(&request).await,
            Change::Detach(request) => self.detach_volume(&request.name).await,
        }
    }

    async fn reconcile(&self) {
        for (what, result) in
            [("replica servers", self.meet_replicas().await), ("deletions", self.carry_out_deletions().await)]
        {
            if let Err(error) = result {
                tracing::warn!("{what}: {error}");
            }
        }
    }

    async fn apply_processes(&self) -> Result<(), Refusal> {
        let specs = processes::wanted(self.store.as_ref(), &self.layout, &self.program)?;
        self.supervisor.want(specs).await;
        Ok(())
    }

    /// Stops what runs though the records do not ask for it: its manager died between the change
    /// and the stop.
    async fn stop_strays(&self) -> Result<(), Refusal> {
        let wanted = processes::wanted(self.store.as_ref(), &self.layout, &self.program)?;
        let run = self.layout.run();
        let failed = |cause| trivet_api::LayoutError::Io {
            operation: "look for processes in",
            path: run.clone(),
            cause,
        };
        let strays: Vec<PathBuf> = known_processes(&run)
            .map_err(failed)?
            .into_iter()
            .filter(|name| name.starts_with("engine-") || name.starts_with("replica-"))
            .filter(|name| wanted.iter().all(|spec| spec.name != *name))
            .map(|name| self.layout.lock(&name))
            .collect();
        let stopped = stop_holders(&strays).await.map_err(failed)?;
        if stopped > 0 {
            tracing::info!(stopped, "stopped processes that nothing asks for");
        }
        Ok(())
    }
}
