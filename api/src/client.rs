//! The manager's client: one connection, made when it is first needed and again when it breaks.

use crate::failure::ApiError;
use crate::v1::{self, manager_client::ManagerClient};
use std::path::PathBuf;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// Where a manager listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ManagerAddress {
    /// A unix socket's absolute path, in UTF-8.
    Socket(PathBuf),
    /// `host:port`, on the loopback interface: the protocol has no authentication yet.
    Tcp(String),
}

impl std::fmt::Display for ManagerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// Time for the manager to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a call to be answered; making a volume waits for several replica servers.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A client of the manager. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    address: String,
    inner: ManagerClient<Channel>,
}

impl Client {
    /// A client of the manager at `address`. Connects with the first call; must be made within a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`ApiError::Unreachable`] when the address cannot be one.
    pub fn new(address: &ManagerAddress) -> Result<Self, ApiError> {
        let text = address.to_string();
        let uri = match address {
            ManagerAddress::Socket(_) => format!("unix://{text}"),
            ManagerAddress::Tcp(_) => format!("http://{text}"),
        };
        let endpoint = Endpoint::from_shared(uri)
            .map_err(|error| ApiError::Unreachable { address: text.clone(), cause: error.to_string() })?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT);
        Ok(Self { address: text, inner: ManagerClient::new(endpoint.connect_lazy()) })
    }

    fn answer<T>(&self, result: Result<Response<T>, Status>) -> Result<T, ApiError> {
        match result {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(ApiError::from_status(&self.address, &status)),
        }
    }
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $reply:ident;)*) => {
        impl Client {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// [`ApiError`]: refused, unreachable or malformed.
                pub async fn $name(&self, request: v1::$request) -> Result<v1::$reply, ApiError> {
                    let result = self.inner.clone().$name(request).await;
                    self.answer(result)
                }
            )*
        }
    };
}

calls! {
    /// Reads a volume's record, by id or by name.
    read_volume_record(ReadVolumeRecordRequest) -> VersionedVolumeRecord;
    /// Swaps a volume's record if its revision is still the expected one.
    swap_volume_record(SwapVolumeRecordRequest) -> SwapVolumeRecordReply;
    /// The whole cluster's state.
    get_status(GetStatusRequest) -> ClusterStatus;
    /// Changes what is chosen for the whole cluster.
    set_cluster(SetClusterRequest) -> SetClusterReply;
    /// Makes the cluster's replica servers, once.
    ensure_replicas(EnsureReplicasRequest) -> EnsureReplicasReply;
    /// One volume's state.
    get_volume(GetVolumeRequest) -> VolumeStatus;
    /// Makes a volume.
    create_volume(CreateVolumeRequest) -> VolumeStatus;
    clone_volume(CloneVolumeRequest) -> VolumeStatus;
    flatten_volume(FlattenVolumeRequest) -> VolumeStatus;
    /// Has a new volume filled from a source while it is used.
    import_volume(ImportVolumeRequest) -> VolumeStatus;
    set_image(SetImageRequest) -> VolumeStatus;
    /// Deletes a volume, or says what that would lose.
    delete_volume(DeleteVolumeRequest) -> DeleteVolumeReply;
    /// Grows a volume.
    resize_volume(ResizeVolumeRequest) -> VolumeStatus;
    /// Changes a volume's settings.
    set_volume(SetVolumeRequest) -> VolumeStatus;
    /// Wraps a volume's data key otherwise.
    rekey_volume(RekeyVolumeRequest) -> VolumeStatus;
    /// Serves a volume over NBD.
    attach_volume(AttachVolumeRequest) -> VolumeStatus;
    /// Stops serving a volume.
    detach_volume(DetachVolumeRequest) -> VolumeStatus;
    /// Makes one copy the volume's only one, or says whether that could be.
    salvage_volume(SalvageVolumeRequest) -> VolumeStatus;
    /// Begins, ends or schedules scrubs.
    scrub_volume(ScrubVolumeRequest) -> VolumeStatus;
    /// Serves a snapshot over NBD.
    export_snapshot(ExportSnapshotRequest) -> VolumeStatus;
    /// Stops serving a snapshot.
    unexport_snapshot(UnexportSnapshotRequest) -> VolumeStatus;
    /// Has a volume become again what a snapshot shows, or says whether that could be.
    revert_volume(RevertVolumeRequest) -> VolumeStatus;
    /// Takes a snapshot.
    create_snapshot(CreateSnapshotRequest) -> VolumeStatus;
    /// Changes what is said of a snapshot.
    label_snapshot(LabelSnapshotRequest) -> VolumeStatus;
    /// Takes a snapshot of several volumes at one moment.
    create_group_snapshot(CreateGroupSnapshotRequest) -> CreateGroupSnapshotReply;
    /// Deletes a snapshot, or says whether that could be.
    delete_snapshot(DeleteSnapshotRequest) -> VolumeStatus;
    /// Lists what has changed between two moments.
    list_changes(ListChangesRequest) -> ListChangesReply;
    /// Gives a volume one more copy.
    add_replica(AddReplicaRequest) -> ReplicaChange;
    /// Takes a copy away, or says whether that could be.
    remove_replica(RemoveReplicaRequest) -> ReplicaChange;
    /// Begins to replace a copy by a new one.
    replace_replica(ReplaceReplicaRequest) -> ReplicaChange;
}
