//! The one owner of changes to the cluster: commands come one after the other, become records,
//! and the records become running processes and copies in pools.
//!
//! Invariants:
//! - what runs follows from the records alone: after a crash at any point, reading them again and
//!   acting on them leads to the same state;
//! - a copy in a pool is named by a volume's record or by a deletion's, before it is made and until
//!   it is gone.

mod attach;
mod clones;
mod deletions;
mod encryption;
mod exports;
pub(crate) mod flattening;
mod healing;
mod imports;
mod labels;
pub mod members;
mod next_step;
pub mod pools;
mod ports;
mod processes;
mod refusal;
mod rekeys;
mod replicas;
mod reverts;
mod salvage;
mod scrubs;
mod settings;
#[cfg(test)]
mod tests;
mod unlocked;
mod visit;
pub mod volumes;

pub(crate) use exports::export;
pub use exports::export_process;
pub(crate) use imports::check_imported;
pub(crate) use labels::check_labels;
pub use processes::{ENGINE_OWNER, engine_name};
pub use refusal::Refusal;
pub use scrubs::SCRUB_BYTES_PER_SECOND_DEFAULT;
pub use unlocked::KEY_TAKEN;

use crate::store::RecordStore;
use crate::supervisor::{Supervisor, known_processes, stop_holders};
use flattening::Flattening;
use healing::Healing;
use scrubs::Scrubs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use trivet_api::{Layout, v1};
use trivet_model::VolumeRecord;
use unlocked::Unlocked;

/// How often the records are compared with the world.
const TICK: Duration = Duration::from_millis(500);

/// What the owner holds.
pub struct Control {
    store: Arc<dyn RecordStore>,
    layout: Layout,
    program: PathBuf,
    supervisor: Supervisor,
    healing: Healing,
    scrubs: Scrubs,
    flattening: Flattening,
    unlocked: Unlocked,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("layout", &self.layout).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Change {
    SetCluster(v1::SetClusterRequest),
    EnsureReplicas(v1::EnsureReplicasRequest),
    Create(v1::CreateVolumeRequest),
    Clone(v1::CloneVolumeRequest),
    Flatten(v1::FlattenVolumeRequest),
    Import(v1::ImportVolumeRequest),
    SetImage(v1::SetImageRequest),
    Delete(v1::DeleteVolumeRequest),
    Resize(v1::ResizeVolumeRequest),
    Set(v1::SetVolumeRequest),
    Rekey(v1::RekeyVolumeRequest),
    Attach(v1::AttachVolumeRequest),
    Detach(v1::DetachVolumeRequest),
    Export(v1::ExportSnapshotRequest),
    Unexport(v1::UnexportSnapshotRequest),
    Revert(v1::RevertVolumeRequest),
    Label(v1::LabelSnapshotRequest),
    Salvage(v1::SalvageVolumeRequest),
    Scrub(v1::ScrubVolumeRequest),
    AddReplica(v1::AddReplicaRequest),
    RemoveReplica(v1::RemoveReplicaRequest),
    ReplaceReplica(v1::ReplaceReplicaRequest),
}

#[derive(Debug)]
struct Command {
    change: Change,
    /// Told how many things were made anew, or the number of the replica server that was chosen.
    reply: oneshot::Sender<Result<u32, Refusal>>,
}

/// Gives commands to the owner. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    commands: mpsc::Sender<Command>,
    unlocked: Unlocked,
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
    /// Changes what is chosen for the whole cluster.
    set_cluster(SetCluster, SetClusterRequest);
    /// Makes the cluster's replica servers, once; answers how many were made now.
    ensure_replicas(EnsureReplicas, EnsureReplicasRequest);
    /// Makes a volume.
    create(Create, CreateVolumeRequest);
    /// Makes a clone of a volume.
    clone_of(Clone, CloneVolumeRequest);
    /// Begins to flatten a clone.
    flatten(Flatten, FlattenVolumeRequest);
    /// Has a new volume filled from a source while it is used.
    import(Import, ImportVolumeRequest);
    /// Makes a volume a golden image, or a usual one again.
    set_image(SetImage, SetImageRequest);
    /// Deletes a volume; with `dry_run`, only says whether it could be.
    delete(Delete, DeleteVolumeRequest);
    /// Grows a volume.
    resize(Resize, ResizeVolumeRequest);
    /// Puts settings into a volume's record.
    set(Set, SetVolumeRequest);
    /// Wraps a volume's data key otherwise, or has its data encrypted anew under another one; with `dry_run`, only
    /// says whether that could be.
    rekey(Rekey, RekeyVolumeRequest);
    /// Has a volume served.
    attach(Attach, AttachVolumeRequest);
    /// Has a volume no longer served, and waits until its engine has ended.
    detach(Detach, DetachVolumeRequest);
    /// Has a snapshot served for reading.
    export(Export, ExportSnapshotRequest);
    /// Has a snapshot no longer served, and waits until its process has ended.
    unexport(Unexport, UnexportSnapshotRequest);
    /// Changes what is said of a snapshot.
    label(Label, LabelSnapshotRequest);
    /// Has a volume become again what a snapshot shows; with `dry_run`, only says whether that could be.
    revert(Revert, RevertVolumeRequest);
    /// Makes one copy the volume's only one; with `dry_run`, only says whether that could be.
    salvage(Salvage, SalvageVolumeRequest);
    /// Begins, ends or schedules scrubs.
    scrub(Scrub, ScrubVolumeRequest);
    /// Gives a volume one more copy; answers the number of its server.
    add_replica(AddReplica, AddReplicaRequest);
    /// Takes a copy away; with `dry_run`, only says whether that could be. Answers the number of its
    /// server.
    remove_replica(RemoveReplica, RemoveReplicaRequest);
    /// Begins to replace a copy; answers the number of the new one's server.
    replace_replica(ReplaceReplica, ReplaceReplicaRequest);
}

impl ControlHandle {
    /// Whether a volume's data key is here.
    #[must_use]
    pub fn has_key(&self, record: &VolumeRecord) -> bool {
        self.unlocked.has(record)
    }

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
        Self {
            store,
            layout,
            program,
            supervisor,
            healing: Healing::default(),
            scrubs: Scrubs::default(),
            flattening: Flattening::default(),
            unlocked: Unlocked::default(),
        }
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
        let unlocked = self.unlocked.clone();
        let owner = tokio::spawn(self.run(receiver));
        Ok((ControlHandle { commands, unlocked }, owner))
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
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
            Change::SetCluster(request) => self.set_cluster(&request),
            Change::EnsureReplicas(request) => self.ensure_replicas(&request).await,
            Change::Create(request) => self.create_volume(&request).await,
            Change::Clone(request) => self.clone_volume(&request).await,
            Change::Flatten(request) => self.flatten_volume(&request.name),
            Change::Import(request) => self.import_volume(&request),
            Change::SetImage(request) => self.set_image(&request).await,
            Change::Delete(request) => self.delete_volume(&request).await,
            Change::Resize(request) => self.resize_volume(&request).await,
            Change::Set(request) => self.set_volume(&request),
            Change::Rekey(request) => self.rekey_volume(request).await,
            Change::Attach(request) => self.attach_volume(request).await,
            Change::Detach(request) => self.detach_volume(&request.name).await,
            Change::Export(request) => self.export_snapshot(&request).await,
            Change::Unexport(request) => self.unexport_snapshot(&request).await,
            Change::Revert(request) => self.revert_volume(request).await,
            Change::Label(request) => self.label_snapshot(&request),
            Change::Salvage(request) => self.salvage_volume(&request).await,
            Change::Scrub(request) => self.scrub_volume(&request).await,
            Change::AddReplica(request) => self.add_replica(&request).await,
            Change::RemoveReplica(request) => self.remove_replica(&request).await,
            Change::ReplaceReplica(request) => self.replace_replica(&request).await,
        }
    }

    async fn reconcile(&mut self) {
        if let Err(error) = self.meet_replicas().await {
            tracing::warn!("replica servers: {error}");
        }
        if let Err(error) = self.hand_over_keys().await {
            tracing::warn!("keys of volumes: {error}");
        }
        self.follow_scrubs().await;
        if let Err(error) = self.end_exports().await {
            tracing::warn!("exports: {error}");
        }
        self.follow_flattening();
        if let Err(error) = self.follow_reverts().await {
            tracing::warn!("reverts: {error}");
        }
        if let Err(error) = self.follow_keys().await {
            tracing::warn!("keys: {error}");
        }
        let answers = match self.healing.answers(&self.store).await {
            Ok(Some(answers)) => answers,
            Ok(None) => return,
            Err(error) => return tracing::warn!("replica servers: {error}"),
        };
        if let Err(error) = self.carry_out_deletions(&answers).await {
            tracing::warn!("deletions: {error}");
        }
        if let Err(error) = self.heal(&answers).await {
            tracing::warn!("members: {error}");
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
            .filter(|name| ["engine-", "export-", "replica-"].iter().any(|kind| name.starts_with(kind)))
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
