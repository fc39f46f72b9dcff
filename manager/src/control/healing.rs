//! What the manager does about members by itself: it finishes replacements, begins one for a member
//! that has been stale, with its server not answering, for too long, and sees to it that a volume has as
//! many members as it shall have.
//!
//! Invariants:
//! - the old member leaves only when the new one is in sync, and one that is too many only when as many as
//!   are wanted are in sync without it: never fewer copies than were asked for;
//! - one replacement of a volume at a time;
//! - nothing here waits for a server that hangs: they are asked on a task of its own.

use super::members::{Server, Wanted, destination, number_of, read};
use super::pools::{PoolAnswer, ask_all, of_pool};
use super::volumes::attachment;
use super::{Control, Refusal};
use crate::records::{
    self, ClusterRecord, DeletionRecord, RecordError, ReplacementReason, ReplacementRecord, ReplicaRecord,
};
use crate::store::RecordStore;
use std::cmp::{Ordering, Reverse};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use trivet_model::{Member, MemberState, PoolId, Revision, VolumeId, VolumeRecord};

/// What the owner remembers between its rounds. A new manager begins to count anew.
#[derive(Debug, Default)]
pub(super) struct Healing {
    /// As the cluster's record says.
    replace_after: Duration,
    asking: Option<JoinHandle<Result<Vec<PoolAnswer>, RecordError>>>,
    /// Members that are not in sync and whose servers do not answer, and since when.
    away: HashMap<(VolumeId, PoolId), Instant>,
    /// Volumes of which it has been said that there is no room for another copy.
    told: HashSet<VolumeId>,
    /// The same of volumes with too few members.
    told_too_few: HashSet<VolumeId>,
}

impl Healing {
    /// What the servers have said, if they were asked and are done; asks them where there is need.
    pub(super) async fn answers(
        &mut self,
        store: &Arc<dyn RecordStore>,
    ) -> Result<Option<Vec<PoolAnswer>>, Refusal> {
        if let Some(asking) = self.asking.take_if(|asking| asking.is_finished()) {
            return match asking.await {
                Ok(answers) => Ok(Some(answers?)),
                Err(error) => {
                    tracing::error!(%error, "asking the replica servers came to no end");
                    Ok(None)
                }
            };
        }
        if self.asking.is_none() && is_needed(store.as_ref())? {
            let store = store.clone();
            self.asking = Some(tokio::spawn(async move { ask_all(store.as_ref()).await }));
        }
        Ok(None)
    }

    /// Notes who is away.
    fn look(&mut self, volumes: &[(VolumeRecord, Revision)], answers: &[PoolAnswer], now: Instant) {
        let mut away = HashMap::new();
        for (volume, _) in volumes {
            for member in volume.members.iter().filter(|member| member.state != MemberState::InSync) {
                let works = of_pool(answers, member.replica).is_some_and(|answer| answer.working().is_ok());
                if !works {
                    let place = (volume.id, member.replica);
                    away.insert(place, self.away.get(&place).copied().unwrap_or(now));
                }
            }
        }
        self.away = away;
    }

    fn is_lost(&self, volume: VolumeId, pool: PoolId, now: Instant) -> bool {
        self.away.get(&(volume, pool)).is_some_and(|&since| now.duration_since(since) >= self.replace_after)
    }
}

fn is_needed(store: &dyn RecordStore) -> Result<bool, RecordError> {
    if !records::list::<DeletionRecord>(store)?.is_empty()
        || !records::list::<ReplacementRecord>(store)?.is_empty()
    {
        return Ok(true);
    }
    for (volume, _) in records::list::<VolumeRecord>(store)? {
        let ailing = volume.members.iter().any(|member| member.state != MemberState::InSync);
        let another = match missing(&volume) {
            Ordering::Less => is_written(store, volume.id)?,
            Ordering::Equal => false,
            Ordering::Greater => true,
        };
        if ailing || another {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How the number of a volume's members compares with how many it shall have.
fn missing(volume: &VolumeRecord) -> Ordering {
    let members = u32::try_from(volume.members.len()).unwrap_or(u32::MAX);
    if volume.copies == 0 { Ordering::Equal } else { members.cmp(&volume.copies) }
}

/// Whether an engine is wanted that writes the volume: without one, nobody would bring a new copy in sync.
fn is_written(store: &dyn RecordStore, volume: VolumeId) -> Result<bool, RecordError> {
    let attached = attachment(store, volume)?;
    Ok(attached.is_some_and(|(attachment, _)| !attachment.read_only))
}

/// The member that a volume can best do without, if as many as it shall have are in sync without it.
fn surplus(volume: &VolumeRecord, answers: &[PoolAnswer]) -> Option<PoolId> {
    let answering = |pool| of_pool(answers, pool).is_some_and(|answer| answer.copy(volume.id).is_ok());
    let counts = |member: &&Member| member.state == MemberState::InSync && answering(member.replica);
    let sound = volume.members.iter().filter(counts).count();
    let free = |pool| {
        let report = of_pool(answers, pool)?.working().ok()?;
        Some(report.blocks_total.saturating_sub(report.blocks_used))
    };
    // What does not count first; then where space is scarce.
    let worth = |member: &&Member| {
        (counts(member), free(member.replica), Reverse(number_of(answers, member.replica)))
    };
    let least = volume.members.iter().min_by_key(worth)?;
    let left = sound - usize::from(counts(&least));
    (left >= usize::try_from(volume.copies).unwrap_or(usize::MAX)).then_some(least.replica)
}

impl Control {
    /// One round.
    pub(super) async fn heal(&mut self, answers: &[PoolAnswer]) -> Result<(), Refusal> {
        let now = Instant::now();
        let cluster = records::read::<ClusterRecord>(self.store.as_ref(), ClusterRecord::ID)?;
        let cluster = cluster.map(|(cluster, _)| cluster).unwrap_or_default();
        self.healing.replace_after = Duration::from_secs(cluster.replace_after_seconds);
        let volumes = records::list::<VolumeRecord>(self.store.as_ref())?;
        self.healing.look(&volumes, answers, now);
        let replacements = records::list::<ReplacementRecord>(self.store.as_ref())?;
        for (replacement, revision) in &replacements {
            self.go_on_replacing(replacement, *revision, answers, now)?;
        }
        for (volume, _) in &volumes {
            let replacing = replacements.iter().any(|(replacement, _)| replacement.volume == volume.id);
            if !replacing && !self.replace_who_is_lost(volume, answers, now).await? {
                self.meet_number(volume, answers).await?;
            }
        }
        Ok(())
    }

    fn go_on_replacing(
        &self,
        replacement: &ReplacementRecord,
        revision: Revision,
        answers: &[PoolAnswer],
        now: Instant,
    ) -> Result<(), Refusal> {
        let ReplacementRecord { volume, from, to, reason } = *replacement;
        let record = match read(self.store.as_ref(), volume) {
            Ok((record, _)) => Some(record),
            Err(Refusal::NoSuchVolume(_)) => None,
            Err(error) => return Err(error),
        };
        let state = |pool| {
            let members = &record.as_ref()?.members;
            Some(members.iter().find(|member| member.replica == pool)?.state)
        };
        let name = record.as_ref().map_or("", |record| &record.name);
        let (leaver, why) = match (state(from), state(to)) {
            (None, _) | (_, None) => {
                self.store.commit(&[records::remove(replacement, revision)])?;
                return Ok(());
            }
            (_, Some(MemberState::InSync)) => (from, "its substitute is in sync"),
            (Some(MemberState::InSync), _) if reason == ReplacementReason::Away => {
                (to, "the member that it was to replace is back in sync")
            }
            _ if self.healing.is_lost(volume, to, now) => (to, "its server has been away for too long"),
            _ => return Ok(()),
        };
        let server = self.server_of(leaver)?;
        match self.remove_member(volume, &server, answers, Wanted::AsBefore) {
            Ok(()) => tracing::info!(volume = name, replica = server.number, "a copy is removed: {why}"),
            // Until an in-sync copy answers.
            Err(error) => tracing::debug!(volume = name, replica = server.number, %error, "it stays for now"),
        }
        Ok(())
    }

    /// Whether a replacement has begun.
    async fn replace_who_is_lost(
        &mut self,
        volume: &VolumeRecord,
        answers: &[PoolAnswer],
        now: Instant,
    ) -> Result<bool, Refusal> {
        let lost = volume.members.iter().find(|member| {
            matches!(member.state, MemberState::Stale { .. })
                && self.healing.is_lost(volume.id, member.replica, now)
        });
        let Some(lost) = lost else {
            self.healing.told.remove(&volume.id);
            return Ok(false);
        };
        if !is_written(self.store.as_ref(), volume.id)? {
            return Ok(false);
        }
        let from = self.server_of(lost.replica)?;
        let to = match destination(volume, answers, 0) {
            Ok(to) => to,
            Err(error) => {
                if self.healing.told.insert(volume.id) {
                    tracing::warn!(volume = %volume.name, replica = from.number, %error,
                        "a member has been away for too long and cannot be replaced");
                }
                return Ok(false);
            }
        };
        tracing::warn!(
            volume = %volume.name, from = from.number, to = to.number, after = ?self.healing.replace_after,
            "a member has been away for too long: replacing it"
        );
        let reason = ReplacementReason::Away;
        let replacement = ReplacementRecord { volume: volume.id, from: lost.replica, to: to.pool, reason };
        self.add_member(volume.id, &to, Some(&replacement), Wanted::AsBefore).await?;
        Ok(true)
    }

    /// Makes a copy that is missing, or takes one away that is too many.
    async fn meet_number(&mut self, volume: &VolumeRecord, answers: &[PoolAnswer]) -> Result<(), Refusal> {
        let order = missing(volume);
        if order != Ordering::Less {
            self.healing.told_too_few.remove(&volume.id);
        }
        match order {
            Ordering::Equal => {}
            Ordering::Less if is_written(self.store.as_ref(), volume.id)? => {
                match destination(volume, answers, 0) {
                    Ok(to) => {
                        self.add_member(volume.id, &to, None, Wanted::AsBefore).await?;
                        tracing::info!(volume = %volume.name, replica = to.number, copies = volume.copies,
                            "a copy is added: the volume has too few");
                    }
                    Err(error) if self.healing.told_too_few.insert(volume.id) => {
                        tracing::warn!(volume = %volume.name, copies = volume.copies, %error,
                            "the volume has too few copies, and there can be no other");
                    }
                    Err(_told_before) => {}
                }
            }
            Ordering::Less => {}
            Ordering::Greater => {
                if let Some(leaver) = surplus(volume, answers) {
                    let server = self.server_of(leaver)?;
                    self.remove_member(volume.id, &server, answers, Wanted::AsBefore)?;
                    tracing::info!(volume = %volume.name, replica = server.number, copies = volume.copies,
                        "a copy is removed: the volume has too many");
                }
            }
        }
        Ok(())
    }

    /// The server with this pool; a nameless one when the cluster has it no more.
    fn server_of(&self, pool: PoolId) -> Result<Server, RecordError> {
        let replicas = records::list::<ReplicaRecord>(self.store.as_ref())?;
        let found = replicas.into_iter().find(|(replica, _)| replica.pool == Some(pool));
        Ok(found.map_or(Server { number: 0, address: String::new(), pool }, |(replica, _)| Server {
            number: replica.number,
            address: replica.address,
            pool,
        }))
    }
}
