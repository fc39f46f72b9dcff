//! The volume of an import or export: found or made, and attached while it is needed.

use crate::cluster::client;
use crate::explain;
use crate::failure::Failure;
use crate::snapshot_view::ExportView;
use crate::up::{wait_for_engine, wait_for_export};
use crate::view::{self, VolumeView};
use crate::volume::key::{KeyArgs, unlock};
use std::path::PathBuf;
use trivet_api::{ApiError, Client, FailureKind, Layout, v1};
use trivet_crypto::DataKey;
use trivet_keys::KeyHolder;
use trivet_nbd::Uri;

/// The volumes of a cluster.
pub(super) struct Volumes {
    pub(super) layout: Layout,
    pub(super) dir: PathBuf,
    client: Client,
}

impl Volumes {
    pub(super) fn of(layout: Layout) -> Result<Self, Failure> {
        Ok(Self { client: client(&layout)?, dir: layout.dir().to_owned(), layout })
    }

    /// The volume of this name, if there is one.
    pub(super) async fn find(&self, name: &str) -> Result<Option<VolumeView>, Failure> {
        match self.client.get_volume(v1::GetVolumeRequest { name: name.to_owned() }).await {
            Ok(found) => view::volume(found).map(Some),
            Err(ApiError::Refused { kind: FailureKind::NotFound, .. }) => Ok(None),
            Err(error) => Err(explain::api(&self.dir, format!("cannot look at volume '{name}'"), &error)),
        }
    }

    /// The same; that there is none is an error.
    pub(super) async fn get(&self, name: &str) -> Result<VolumeView, Failure> {
        let found = self.client.get_volume(v1::GetVolumeRequest { name: name.to_owned() }).await;
        let what = || format!("cannot look at volume '{name}'");
        view::volume(found.map_err(|error| explain::api(&self.dir, what(), &error))?)
    }

    /// The same; nothing while no manager answers.
    pub(super) async fn get_if_answered(&self, name: &str) -> Result<Option<VolumeView>, Failure> {
        match self.client.get_volume(v1::GetVolumeRequest { name: name.to_owned() }).await {
            Ok(found) => view::volume(found).map(Some),
            Err(ApiError::Unreachable { .. }) => Ok(None),
            Err(error) => Err(explain::api(&self.dir, format!("cannot look at volume '{name}'"), &error)),
        }
    }

    pub(super) async fn create(
        &self,
        name: &str,
        blocks: u64,
        copies: Option<u32>,
    ) -> Result<VolumeView, Failure> {
        let request = v1::CreateVolumeRequest {
            name: name.to_owned(),
            blocks,
            copies: copies.unwrap_or(0),
            ..Default::default()
        };
        let created = self.client.create_volume(request).await;
        let what = || format!("cannot make volume '{name}'");
        view::volume(created.map_err(|error| explain::api(&self.dir, what(), &error))?)
    }

    /// Has it filled from a source from its first opening on.
    pub(super) async fn import(&self, request: v1::ImportVolumeRequest) -> Result<(), Failure> {
        let what = format!("cannot import into volume '{}' at once", request.name);
        let asked = self.client.import_volume(request).await;
        asked.map(drop).map_err(|error| explain::api(&self.dir, what, &error))
    }

    /// Attaches it, and waits until it is served.
    pub(super) async fn attach(
        &self,
        name: &str,
        read_only: bool,
        key: &KeyArgs,
    ) -> Result<VolumeView, Failure> {
        let key = match key.holder(&cannot_attach(name))? {
            None => None,
            Some(holder) => Some(self.unlock(name, holder.as_ref()).await?),
        };
        self.attach_unlocked(name, read_only, key.as_ref()).await
    }

    /// Takes the data key of an encrypted volume out.
    pub(super) async fn unlock(&self, name: &str, holder: &dyn KeyHolder) -> Result<DataKey, Failure> {
        unlock(&self.client, &self.dir, name, &cannot_attach(name), holder).await.map(|(key, _)| key)
    }

    /// As [`Volumes::attach`], with the data key where one is needed.
    pub(super) async fn attach_unlocked(
        &self,
        name: &str,
        read_only: bool,
        key: Option<&DataKey>,
    ) -> Result<VolumeView, Failure> {
        let data_key = key.map_or_else(Vec::new, |key| key.expose().to_vec());
        let request =
            v1::AttachVolumeRequest { name: name.to_owned(), read_only, data_key, ..Default::default() };
        let asked = self.client.attach_volume(request).await;
        asked.map_err(|error| explain::api(&self.dir, cannot_attach(name), &error))?;
        self.served(name).await
    }

    /// Serves a snapshot beside its volume, and waits until it is; served already if it was.
    pub(super) async fn export(&self, volume: &str, snapshot: &str) -> Result<ExportView, Failure> {
        let listen = String::new();
        let request =
            v1::ExportSnapshotRequest { volume: volume.to_owned(), name: snapshot.to_owned(), listen };
        let asked = self.client.export_snapshot(request).await;
        let what = || format!("cannot serve snapshot '{snapshot}' of '{volume}'");
        asked.map_err(|error| explain::api(&self.dir, what(), &error))?;
        wait_for_export(&self.client, &self.layout, volume, snapshot).await
    }

    pub(super) async fn unexport(&self, volume: &str, snapshot: &str) -> Result<(), Failure> {
        let request = v1::UnexportSnapshotRequest { volume: volume.to_owned(), name: snapshot.to_owned() };
        let ended = self.client.unexport_snapshot(request).await;
        let what = || format!("cannot end the export of snapshot '{snapshot}' of '{volume}'");
        ended.map(drop).map_err(|error| explain::api(&self.dir, what(), &error))
    }

    /// Waits until an attached volume is served.
    pub(super) async fn served(&self, name: &str) -> Result<VolumeView, Failure> {
        wait_for_engine(&self.client, &self.layout, name).await
    }

    pub(super) async fn detach(&self, name: &str) -> Result<(), Failure> {
        let detached = self.client.detach_volume(v1::DetachVolumeRequest { name: name.to_owned() }).await;
        let what = || format!("cannot detach volume '{name}'");
        detached.map(drop).map_err(|error| explain::api(&self.dir, what(), &error))
    }

    /// Deletes a volume that is attached or not.
    pub(super) async fn remove(&self, name: &str) -> Result<(), Failure> {
        if self.find(name).await?.is_some_and(|found| found.attached) {
            self.detach(name).await?;
        }
        let request = v1::DeleteVolumeRequest { name: name.to_owned(), dry_run: false, force: false };
        let deleted = self.client.delete_volume(request).await;
        let what = || format!("cannot delete volume '{name}'");
        deleted.map(drop).map_err(|error| explain::api(&self.dir, what(), &error))
    }
}

/// Where something is served.
pub(super) fn parse_uri(name: &str, uri: Option<&str>) -> Result<Uri, Failure> {
    let uri = uri.unwrap_or_default();
    uri.parse().map_err(|error| Failure::new(format!("'{name}' is not served"), error, ""))
}

fn cannot_attach(name: &str) -> String {
    format!("cannot attach volume '{name}'")
}
