//! [`Authority`] over the manager: the blocking facade that engine threads use.

use crate::client::{Client, ManagerAddress};
use crate::convert::{record_to_wire, versioned_from_wire};
use crate::failure::{ApiError, FailureKind};
use crate::v1;
use tokio::runtime::{Builder, Runtime};
use trivet_model::{Authority, AuthorityError, Revision, VolumeId, VolumeRecord};

/// Reads and swaps volume records at the manager. Calls block the calling thread, which must not
/// be one of a tokio runtime's.
#[derive(Debug)]
pub struct ManagerAuthority {
    client: Client,
    // An `Option` only so that dropping can hand it to `shutdown_background`.
    runtime: Option<Runtime>,
}

impl ManagerAuthority {
    /// An authority at `address`. It connects with the first call, and again after a break.
    ///
    /// # Errors
    /// [`AuthorityError::Unreachable`] when the address cannot be one or no thread can be made.
    pub fn new(address: &ManagerAddress) -> Result<Self, AuthorityError> {
        // A worker of its own keeps the connection attended to between calls.
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("trivet-authority")
            .enable_all()
            .build()
            .map_err(|error| AuthorityError::Unreachable(format!("no thread for its client: {error}")))?;
        let client = {
            let _guard = runtime.enter();
            Client::new(address).map_err(|error| AuthorityError::Unreachable(error.to_string()))?
        };
        Ok(Self { client, runtime: Some(runtime) })
    }

    /// The record of the volume called `name`: engines are started by name.
    ///
    /// # Errors
    /// [`ApiError`]: refused (`NotFound`), unreachable or malformed.
    pub fn read_by_name(&self, name: &str) -> Result<(VolumeRecord, Revision), ApiError> {
        let request = v1::ReadVolumeRecordRequest { id: Vec::new(), name: name.to_owned() };
        Ok(versioned_from_wire(self.block_on(self.client.read_volume_record(request))?)?)
    }

    fn block_on<T>(&self, call: impl Future<Output = T>) -> T {
        // Set until dropped.
        match &self.runtime {
            Some(runtime) => runtime.block_on(call),
            None => unreachable!("the runtime is taken only when dropping"),
        }
    }
}

impl Drop for ManagerAuthority {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Authority for ManagerAuthority {
    fn read(&self, volume: VolumeId) -> Result<(VolumeRecord, Revision), AuthorityError> {
        let request = v1::ReadVolumeRecordRequest { id: volume.as_bytes().to_vec(), name: String::new() };
        let reply = self
            .block_on(self.client.read_volume_record(request))
            .map_err(|error| authority_error(volume, &error))?;
        versioned_from_wire(reply).map_err(|error| AuthorityError::Unreachable(error.to_string()))
    }

    fn swap(&self, expected: Revision, record: &VolumeRecord) -> Result<Revision, AuthorityError> {
        let request = v1::SwapVolumeRecordRequest {
            expected_revision: expected.0,
            record: Some(record_to_wire(record)),
        };
        self.block_on(self.client.swap_volume_record(request))
            .map(|reply| Revision(reply.revision))
            .map_err(|error| authority_error(record.id, &error))
    }
}

fn authority_error(volume: VolumeId, error: &ApiError) -> AuthorityError {
    match error.kind() {
        Some(FailureKind::NotFound) => AuthorityError::NotFound(volume),
        Some(FailureKind::Conflict { revision }) => {
            AuthorityError::Conflict { volume, actual: Revision(revision) }
        }
        _ => AuthorityError::Unreachable(error.to_string()),
    }
}
