//! The gRPC face: engines' compare-and-swap straight to the store, changes through the owner,
//! and what people are shown.

mod changes;
mod groups;
mod settings;
pub(crate) mod snapshots;
mod status;

use crate::control::{ControlHandle, Refusal, volumes};
use crate::engine_report::grow;
use crate::records;
use crate::store::{CommitError, RecordStore};
use crate::supervisor::Supervisor;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use trivet_api::convert::{record_from_wire, record_to_wire, volume_id};
use trivet_api::v1::manager_server::Manager;
use trivet_api::{Layout, MalformedRecord, v1};
use trivet_model::{Revision, VOLUME_BLOCKS_MAX, VolumeRecord};

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct ManagerService {
    store: Arc<dyn RecordStore>,
    layout: Layout,
    control: ControlHandle,
    supervisor: Supervisor,
}

impl std::fmt::Debug for ManagerService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManagerService").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl ManagerService {
    /// A service over what the manager holds.
    #[must_use]
    pub fn new(
        store: Arc<dyn RecordStore>,
        layout: Layout,
        control: ControlHandle,
        supervisor: Supervisor,
    ) -> Self {
        Self { store, layout, control, supervisor }
    }

    fn read(&self, request: &v1::ReadVolumeRecordRequest) -> Result<(VolumeRecord, Revision), Status> {
        if request.id.is_empty() {
            return Ok(volumes::find(self.store.as_ref(), &request.name)?);
        }
        let id = volume_id(&request.id).map_err(malformed)?;
        let found = records::read::<VolumeRecord>(self.store.as_ref(), &id.to_string());
        let found = found.map_err(Refusal::from)?;
        Ok(found.ok_or_else(|| Refusal::NoSuchVolume(id.to_string()))?)
    }

    /// Engines change generation, owner, epoch and members, and grow the volume. What it is called
    /// is the owner of changes' to decide.
    fn swap(&self, expected: Revision, record: &VolumeRecord) -> Result<Revision, Refusal> {
        let store = self.store.as_ref();
        let found = records::read::<VolumeRecord>(store, &record.id.to_string())?;
        let (present, revision) = found.ok_or_else(|| Refusal::NoSuchVolume(record.id.to_string()))?;
        if revision != expected {
            return Err(Refusal::Conflict { revision: revision.0 });
        }
        if present.name != record.name {
            return Err(Refusal::Identity("name"));
        }
        let origin = |record: &VolumeRecord| (record.lineage.clone(), record.sharing, record.is_image);
        if origin(&present) != origin(record) {
            return Err(Refusal::Identity("origin"));
        }
        // To the key that it shall have next, and to no other.
        let goes_over = present.next_key.is_some() && record.key == present.next_key;
        let keys = if goes_over { (present.next_key, None) } else { (present.key, present.next_key) };
        if (record.key, record.next_key) != keys {
            return Err(Refusal::Identity("key"));
        }
        if !(present.blocks..=VOLUME_BLOCKS_MAX).contains(&record.blocks) {
            return Err(Refusal::Shrinks { name: present.name, now: present.blocks, asked: record.blocks });
        }
        records::write(store, record, Some(expected)).map_err(|error| match error {
            CommitError::Conflict { actual: Some(revision), .. } => {
                Refusal::Conflict { revision: revision.0 }
            }
            CommitError::Conflict { actual: None, .. } => Refusal::NoSuchVolume(record.name.clone()),
            CommitError::Store(error) => Refusal::Store(error),
        })
    }

    /// Has the engine of a volume that is served for writing grow it; whether there is one.
    async fn grow_served(&self, request: &v1::ResizeVolumeRequest) -> Result<bool, Refusal> {
        let (record, _) = volumes::find(self.store.as_ref(), &request.name)?;
        let attached = volumes::attachment(self.store.as_ref(), record.id)?;
        if attached.is_none_or(|(attachment, _)| attachment.read_only) {
            return Ok(false);
        }
        volumes::check_growth(&record, request.blocks)?;
        let grown = grow(&self.layout.engine_control_socket(&record.name)?, request.blocks).await;
        grown.map_err(|cause| Refusal::GrowthFailed { volume: record.name.clone(), cause })?;
        Ok(true)
    }

    async fn volume(&self, name: &str) -> Result<Response<v1::VolumeStatus>, Status> {
        Ok(Response::new(self.volume_status(name).await?))
    }
}

fn malformed(error: MalformedRecord) -> Status {
    trivet_api::failure::refusal(trivet_api::FailureKind::Invalid, &error.to_string(), None)
}

#[tonic::async_trait]
impl Manager for ManagerService {
    async fn read_volume_record(
        &self,
        request: Request<v1::ReadVolumeRecordRequest>,
    ) -> Result<Response<v1::VersionedVolumeRecord>, Status> {
        let (record, revision) = self.read(request.get_ref())?;
        Ok(Response::new(v1::VersionedVolumeRecord {
            record: Some(record_to_wire(&record)),
            revision: revision.0,
        }))
    }

    async fn swap_volume_record(
        &self,
        request: Request<v1::SwapVolumeRecordRequest>,
    ) -> Result<Response<v1::SwapVolumeRecordReply>, Status> {
        let request = request.into_inner();
        let record = request.record.ok_or(MalformedRecord { field: "record" }).map_err(malformed)?;
        let record = record_from_wire(record).map_err(malformed)?;
        let revision = self.swap(Revision(request.expected_revision), &record)?;
        Ok(Response::new(v1::SwapVolumeRecordReply { revision: revision.0 }))
    }

    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::ClusterStatus>, Status> {
        Ok(Response::new(self.cluster_status().await?))
    }

    async fn set_cluster(
        &self,
        request: Request<v1::SetClusterRequest>,
    ) -> Result<Response<v1::SetClusterReply>, Status> {
        self.control.set_cluster(request.into_inner()).await?;
        Ok(Response::new(v1::SetClusterReply {}))
    }

    async fn ensure_replicas(
        &self,
        request: Request<v1::EnsureReplicasRequest>,
    ) -> Result<Response<v1::EnsureReplicasReply>, Status> {
        let created = self.control.ensure_replicas(request.into_inner()).await?;
        let count =
            records::list::<records::ReplicaRecord>(self.store.as_ref()).map_err(Refusal::from)?.len();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Ok(Response::new(v1::EnsureReplicasReply { count, created }))
    }

    async fn get_volume(
        &self,
        request: Request<v1::GetVolumeRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        self.volume(&request.get_ref().name).await
    }

    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let name = request.get_ref().name.clone();
        self.control.create(request.into_inner()).await?;
        self.volume(&name).await
    }

    async fn clone_volume(
        &self,
        request: Request<v1::CloneVolumeRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let name = request.get_ref().name.clone();
        self.control.clone_of(request.into_inner()).await?;
        self.volume(&name).await
    }

    async fn flatten_volume(
        &self,
        request: Request<v1::FlattenVolumeRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let name = request.get_ref().name.clone();
        self.control.flatten(request.into_inner()).await?;
        self.volume(&name).await
    }

    async fn import_volume(
        &self,
        request: Request<v1::ImportVolumeRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let name = request.get_ref().name.clone();
        self.control.import(request.into_inner()).await?;
        self.volume(&name).await
    }

    async fn set_image(
        &self,
        request: Request<v1::SetImageRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let name = request.get_ref().name.clone();
        self.control.set_image(request.into_inner()).await?;
        self.volume(&name).await
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeReply>, Status> {
        let volume = self.volume_status(&request.get_ref().name).await?;
        self.control.delete(request.into_inner()).await?;
        Ok(Response::new(v1::DeleteVolumeReply { volume: Some(volume) }))
    }

    async fn resize_volume(
        &self,
        request: Request<v1::ResizeVolumeRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let name = request.get_ref().name.clone();
        if !self.grow_served(request.get_ref()).await? {
            self.control.resize(request.into_inner()).await?;
        }
        self.volume(&name).await
    }

    async fn set_volume(
        &self,
        request: Request<v1::SetVolumeRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let name = request.get_ref().name.clone();
        self.set(request.into_inner()).await?;
        self.volume(&name).await
    }

    async fn rekey_volume(
        &self,
        request: Request<v1::RekeyVolumeRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let name = request.get_ref().name.clone();
        self.control.rekey(request.into_inner()).await?;
        self.volume(&name).await
    }

    async fn attach_volume(
        &self,
        request: Request<v1::AttachVolumeRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let name = request.get_ref().name.clone();
        self.control.attach(request.into_inner()).await?;
        self.volume(&name).await
    }

    async fn detach_volume(
        &self,
        request: Request<v1::DetachVolumeRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let name = request.get_ref().name.clone();
        self.control.detach(request.into_inner()).await?;
        self.volume(&name).await
    }

    async fn salvage_volume(
        &self,
        request: Request<v1::SalvageVolumeRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let before = self.volume_status(&request.get_ref().name).await?;
        self.control.salvage(request.into_inner()).await?;
        Ok(Response::new(before))
    }

    async fn scrub_volume(
        &self,
        request: Request<v1::ScrubVolumeRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let name = request.get_ref().name.clone();
        self.control.scrub(request.into_inner()).await?;
        self.volume(&name).await
    }

    async fn export_snapshot(
        &self,
        request: Request<v1::ExportSnapshotRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let volume = request.get_ref().volume.clone();
        self.control.export(request.into_inner()).await?;
        self.volume(&volume).await
    }

    async fn unexport_snapshot(
        &self,
        request: Request<v1::UnexportSnapshotRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let volume = request.get_ref().volume.clone();
        self.control.unexport(request.into_inner()).await?;
        self.volume(&volume).await
    }

    async fn revert_volume(
        &self,
        request: Request<v1::RevertVolumeRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let volume = request.get_ref().volume.clone();
        self.control.revert(request.into_inner()).await?;
        self.volume(&volume).await
    }

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        self.take_snapshot(request.get_ref()).await?;
        self.volume(&request.get_ref().volume).await
    }

    async fn label_snapshot(
        &self,
        request: Request<v1::LabelSnapshotRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let volume = request.get_ref().volume.clone();
        self.control.label(request.into_inner()).await?;
        self.volume(&volume).await
    }

    async fn create_group_snapshot(
        &self,
        request: Request<v1::CreateGroupSnapshotRequest>,
    ) -> Result<Response<v1::CreateGroupSnapshotReply>, Status> {
        Ok(Response::new(self.take_group_snapshot(request.get_ref()).await?))
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::VolumeStatus>, Status> {
        let before = self.volume_status(&request.get_ref().volume).await?;
        self.delete_snapshot_of(request.get_ref()).await?;
        Ok(Response::new(before))
    }

    async fn list_changes(
        &self,
        request: Request<v1::ListChangesRequest>,
    ) -> Result<Response<v1::ListChangesReply>, Status> {
        Ok(Response::new(self.changes(request.get_ref()).await?))
    }

    async fn add_replica(
        &self,
        request: Request<v1::AddReplicaRequest>,
    ) -> Result<Response<v1::ReplicaChange>, Status> {
        let name = request.get_ref().volume.clone();
        let replica = self.control.add_replica(request.into_inner()).await?;
        Ok(Response::new(v1::ReplicaChange { volume: Some(self.volume_status(&name).await?), replica }))
    }

    async fn remove_replica(
        &self,
        request: Request<v1::RemoveReplicaRequest>,
    ) -> Result<Response<v1::ReplicaChange>, Status> {
        let volume = Some(self.volume_status(&request.get_ref().volume).await?);
        let replica = self.control.remove_replica(request.into_inner()).await?;
        Ok(Response::new(v1::ReplicaChange { volume, replica }))
    }

    async fn replace_replica(
        &self,
        request: Request<v1::ReplaceReplicaRequest>,
    ) -> Result<Response<v1::ReplicaChange>, Status> {
        let name = request.get_ref().volume.clone();
        let replica = self.control.replace_replica(request.into_inner()).await?;
        Ok(Response::new(v1::ReplicaChange { volume: Some(self.volume_status(&name).await?), replica }))
    }
}
