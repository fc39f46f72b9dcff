//! What has changed between two snapshots, asked of a replica server by stamps: no data is read.

use super::ManagerService;
use super::snapshots::snapshot_of;
use crate::control::volumes::find;
use crate::control::{Refusal, check_imported};
use crate::replica_client::{ReplicaConnection, ReplicaError};
use trivet_api::v1;
use trivet_model::{MemberState, Sharing, SnapshotId, Stamp, VolumeId, VolumeRecord};
use trivet_wire::TailEntry;

/// Extents in an answer, about; and how much of a volume is looked at for one.
const EXTENTS_MAX: usize = 16 << 10;
const PAGES_MAX: usize = 4096;

/// Between which moments.
struct Span {
    since: Stamp,
    until: Option<SnapshotId>,
}

impl ManagerService {
    pub(super) async fn changes(
        &self,
        request: &v1::ListChangesRequest,
    ) -> Result<v1::ListChangesReply, Refusal> {
        let (record, _) = find(self.store.as_ref(), &request.volume)?;
        check_imported(&record)?;
        let span = span(&record, &request.since, &request.until)?;
        let in_sync = record.members.iter().filter(|member| member.state == MemberState::InSync);
        let mut failure = None;
        for member in in_sync {
            let listed = async {
                let mut connection =
                    ReplicaConnection::connect(&member.address, Some(member.replica)).await?;
                list(&mut connection, record.id, &span, request.start).await
            };
            match listed.await {
                Ok(reply) => return Ok(reply),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.map_or_else(|| Refusal::NoCopyInSync(record.name), Refusal::Replica))
    }
}

fn span(record: &VolumeRecord, since: &str, until: &str) -> Result<Span, Refusal> {
    let named = |name: &str| if name.is_empty() { Ok(None) } else { snapshot_of(record, name).map(Some) };
    let (since, until) = (named(since)?, named(until)?);
    match (since, until) {
        (Some(since), Some(until)) if since.cut > until.cut => Err(Refusal::SnapshotOrder {
            volume: record.name.clone(),
            since: since.name.clone(),
            until: until.name.clone(),
        }),
        _ => Ok(Span {
            since: since.map_or_else(|| began(record), |since| since.cut),
            until: until.map(|until| until.id),
        }),
    }
}

/// What is its own has a higher stamp.
fn began(record: &VolumeRecord) -> Stamp {
    let shares = record.sharing != Sharing::Nothing;
    record.parent().filter(|_| shares).map_or(Stamp::ZERO, |of| of.cut)
}

async fn list(
    connection: &mut ReplicaConnection,
    volume: VolumeId,
    span: &Span,
    start: u64,
) -> Result<v1::ListChangesReply, ReplicaError> {
    connection.look_at(volume, span.until).await?;
    let mut extents: Vec<v1::ChangedExtent> = Vec::new();
    let mut next = Some(start);
    for _ in 0..PAGES_MAX {
        let Some(from) = next.filter(|_| extents.len() < EXTENTS_MAX) else { break };
        let (entries, after) = connection.changed(span.since, from).await?;
        entries.iter().for_each(|entry| add(&mut extents, entry));
        next = after;
    }
    Ok(v1::ListChangesReply { extents, next })
}

/// Runs that belong to different writes are one extent here.
fn add(extents: &mut Vec<v1::ChangedExtent>, entry: &TailEntry) {
    let (start, blocks) = (entry.range.start, u64::from(entry.range.count));
    match extents.last_mut() {
        Some(last) if last.start + last.blocks == start && last.discarded == entry.discard => {
            last.blocks += blocks;
        }
        _ => extents.push(v1::ChangedExtent { start, blocks, discarded: entry.discard }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trivet_model::BlockRange;

    #[test]
    fn neighbours_alike_are_one_extent() {
        let mut extents = Vec::new();
        for (start, count, discard) in
            [(0, 2, false), (2, 1, false), (3, 5, true), (8, 1, true), (10, 1, true)]
        {
            let range = BlockRange::new(start, count);
            add(&mut extents, &TailEntry { range, stamp: Stamp::from_u64(1), discard });
        }
        let found: Vec<_> = extents.iter().map(|e| (e.start, e.blocks, e.discarded)).collect();
        assert_eq!(found, [(0, 3, false), (3, 6, true), (10, 1, true)]);
    }
}
