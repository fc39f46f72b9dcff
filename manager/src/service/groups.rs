//! Snapshots over several volumes, by their engines and in one commit.

use super::ManagerService;
use super::snapshots::named;
use crate::control::Refusal;
use crate::control::volumes::{find, random_id};
use crate::engine_report::order;
use crate::group::{self, Volumes};
use crate::records::{self, RecordError};
use crate::store::{CommitError, RecordStore};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::time::Instant;
use trivet_api::v1;
use trivet_model::{
    GroupId, GroupStep, Revision, SnapshotOrder, SnapshotRecord, Stamp, VolumeId, VolumeRecord,
};

/// The label by which the snapshots of a group are found.
const GROUP_LABEL: &str = "group";

impl ManagerService {
    pub(super) async fn take_group_snapshot(
        &self,
        request: &v1::CreateGroupSnapshotRequest,
    ) -> Result<v1::CreateGroupSnapshotReply, Refusal> {
        let id = GroupId::from_random_bytes(random_id()?);
        let mut labels = request.labels.clone();
        labels.insert(GROUP_LABEL.to_owned(), id.to_string());
        let mut engines = Engines {
            store: self.store.as_ref(),
            id,
            volumes: Vec::new(),
            began: Instant::now(),
            held_until: AtomicU64::new(0),
        };
        let mut wanted: Vec<SnapshotRecord> = Vec::new();
        for name in &request.volumes {
            let (record, _) = find(self.store.as_ref(), name)?;
            if engines.volumes.iter().any(|(volume, ..)| *volume == record.id) {
                return Err(Refusal::NamedTwice(name.clone()));
            }
            wanted.push(named(&record, &request.name, &labels)?);
            self.check_served(&record)?;
            engines.volumes.push((record.id, name.clone(), self.layout.engine_control_socket(name)?));
        }
        engines.began = Instant::now();
        group::take(&engines, &wanted).await?;
        let held_microseconds = engines.held_until.load(Ordering::Relaxed);
        tracing::info!(volumes = ?request.volumes, snapshot = %request.name, held_microseconds, "taken");
        let mut volumes = Vec::new();
        for name in &request.volumes {
            volumes.push(self.volume_status(name).await?);
        }
        Ok(v1::CreateGroupSnapshotReply { volumes, held_microseconds })
    }
}

struct Engines<'a> {
    store: &'a dyn RecordStore,
    id: GroupId,
    volumes: Vec<(VolumeId, String, PathBuf)>,
    /// When they began to hold, and until when one did, in microseconds from then.
    began: Instant,
    held_until: AtomicU64,
}

impl Volumes for Engines<'_> {
    async fn tell(&self, volume: usize, step: GroupStep) -> Result<Option<Stamp>, Refusal> {
        let (_, name, socket) = &self.volumes[volume];
        let cuts = matches!(step, GroupStep::Cut(_));
        let told = order(socket, &SnapshotOrder::Group { group: self.id, step }).await;
        if cuts {
            let held = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.held_until.fetch_max(held, Ordering::Relaxed);
        }
        told.map_err(|cause| Refusal::GroupNotTaken { volume: name.clone(), cause })
    }

    fn read(&self) -> Result<Vec<(VolumeRecord, Revision)>, Refusal> {
        let one = |(volume, name, _): &(VolumeId, String, PathBuf)| {
            let found: Result<_, RecordError> =
                records::read::<VolumeRecord>(self.store, &volume.to_string());
            found?.ok_or_else(|| Refusal::NoSuchVolume(name.clone()))
        };
        self.volumes.iter().map(one).collect()
    }

    fn commit(&self, records: &[(VolumeRecord, Revision)]) -> Result<bool, Refusal> {
        let changes: Vec<_> =
            records.iter().map(|(record, revision)| records::put(record, Some(*revision))).collect();
        match self.store.commit(&changes) {
            Ok(_) => Ok(true),
            Err(CommitError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
