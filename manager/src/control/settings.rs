//! Settings: of a volume, kept in its record, which its engine follows; and of the cluster.

use super::volumes::find;
use super::{Control, Refusal};
use crate::records::{self, ClusterRecord, ReplicaRecord};
use trivet_api::convert::durability_from_wire;
use trivet_api::v1;
use trivet_model::settings::{LimitError, Limited, SNAPSHOT_LIMIT_DEFAULT};
use trivet_model::{RateLimit, VolumeSettings};

impl Control {
    /// Puts settings into the record. Whether an engine follows them yet is another matter.
    pub(super) fn set_volume(&self, request: &v1::SetVolumeRequest) -> Result<u32, Refusal> {
        let (found, _) = find(self.store.as_ref(), &request.name)?;
        let iops = wanted_limit(Limited::Iops, request.iops_limit)?;
        let bandwidth = wanted_limit(Limited::Bandwidth, request.bandwidth_limit)?;
        let snapshots = wanted_snapshots(request.snapshot_limit)?;
        if request.verified_reads == Some(true) && found.key.is_none() {
            return Err(Refusal::NothingToVerify(found.name));
        }
        let known = records::list::<ReplicaRecord>(self.store.as_ref())?.len();
        if usize::try_from(request.copies).unwrap_or(usize::MAX) > known {
            return Err(Refusal::TooFewReplicas { asked: request.copies, running: known, known });
        }
        self.change_record(found.id, |record| {
            let settings = &mut record.settings;
            if let Some(durability) = durability_from_wire(request.durability()) {
                settings.durability = durability;
            }
            if let Some(limit) = iops {
                settings.iops_limit = limit;
            }
            if let Some(limit) = bandwidth {
                settings.bandwidth_limit = limit;
            }
            if request.snapshot_limit > 0 {
                settings.snapshot_limit = snapshots;
            }
            if let Some(verified) = request.verified_reads {
                settings.verified_reads = verified;
            }
            if request.copies > 0 {
                record.copies = request.copies;
            }
            Ok(Vec::new())
        })?;
        tracing::info!(volume = %found.name, "its settings are changed");
        Ok(0)
    }

    /// Changes what is chosen for the whole cluster.
    pub(super) fn set_cluster(&self, request: &v1::SetClusterRequest) -> Result<u32, Refusal> {
        let store = self.store.as_ref();
        let found = records::read::<ClusterRecord>(store, ClusterRecord::ID)?;
        let (mut record, revision) =
            found.map_or((ClusterRecord::default(), None), |(record, revision)| (record, Some(revision)));
        if let Some(seconds) = request.replace_after_seconds {
            record.replace_after_seconds = seconds;
        }
        records::write(store, &record, revision)?;
        Ok(0)
    }
}

/// What a limit shall be, if anything is said of it.
fn wanted_limit(
    limited: Limited,
    asked: Option<v1::RateLimit>,
) -> Result<Option<Option<RateLimit>>, LimitError> {
    let Some(asked) = asked else { return Ok(None) };
    if asked.per_second == 0 {
        return Ok(Some(None));
    }
    limited.limit(asked.per_second, Some(asked.burst)).map(|limit| Some(Some(limit)))
}

/// How many snapshots a volume may have; as many as any where nothing is said.
fn wanted_snapshots(asked: u32) -> Result<u32, LimitError> {
    match asked {
        0 => Ok(SNAPSHOT_LIMIT_DEFAULT),
        1..=SNAPSHOT_LIMIT_DEFAULT => Ok(asked),
        more => Err(LimitError::TooHigh(format!("{more} snapshots"))),
    }
}

/// The settings of a volume to be made.
pub(super) fn of_new_volume(request: &v1::CreateVolumeRequest) -> Result<VolumeSettings, Refusal> {
    let asked = request.settings.unwrap_or_default();
    Ok(VolumeSettings {
        durability: durability_from_wire(asked.durability()).unwrap_or_default(),
        iops_limit: wanted_limit(Limited::Iops, asked.iops_limit)?.flatten(),
        bandwidth_limit: wanted_limit(Limited::Bandwidth, asked.bandwidth_limit)?.flatten(),
        snapshot_limit: wanted_snapshots(asked.snapshot_limit)?,
        verified_reads: asked.verified_reads,
    })
}
