//! What the manager does about members by itself: it finishes replacements, and begins one for a member
//! that has been stale, with its server not answering, for too long.
//!
//! Invariants:
//! - the old member leaves only when the new one is in sync: never fewer copies than were asked for;
//! - one replacement of a volume at a time;
//! - nothing here waits for a server that hangs: they are asked on a task of its own.

use super::members::{Server, destination, read};
use super::pools::{PoolAnswer, ask_all, of_pool};
use super::volumes::attachment;
use super::{Control, Refusal};
use crate::records::{
    self, DeletionRecord, RecordError, ReplacementReason, ReplacementRecord, ReplicaRecord,
};
use crate::store::RecordStore;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use trivet_model::{MemberState, PoolId, Revision, VolumeId, VolumeRecord};

/// How long a member's server may be away before the member is replaced, unless someone says otherwise.
pub const REPLACE_AFTER_DEFAULT: Duration = Duration::from_secs(600);

/// What the owner remembers between its rounds. A new manager begins to count anew.
#[derive(Debug)]
pub(super) struct Healing {
    replace_after: Duration,
    asking: Option<JoinHandle<Result<Vec<PoolAnswer>, RecordError>>>,
    /// Members that are not in sync and whose servers do not answer, and since when.
    away: HashMap<(VolumeId, PoolId), Instant>,
    /// Volumes of which it has been said that there is no room for another copy.
    told: HashSet<VolumeId>,
}

impl Healing {
    pub(super) fn new(replace_after: Duration) -> Self {
        Self { replace_after, asking: None, away: HashMap::new(), told: HashSet::new() }
    }

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
    let ailing = |(volume, _): &(VolumeRecord, Revision)| {
        volume.members.iter().any(|member| member.state != MemberState::InSync)
    };
    Ok(!records::list::<DeletionRecord>(store)?.is_empty()
        || !records::list::<ReplacementRecord>(store)?.is_empty()
        || records::list::<VolumeRecord>(store)?.iter().any(ailing))
}

impl Control {
    /// One round.
    pub(super) async fn heal(&mut self, answers: &[PoolAnswer]) -> Result<(), Refusal> {
        let now = Instant::now();
        let volumes = records::list::<VolumeRecord>(self.store.as_ref())?;
        self.healing.look(&volumes, answers, now);
        let replacements = records::list::<ReplacementRecord>(self.store.as_ref())?;
        for (replacement, revision) in &replacements {
            self.go_on_replacing(replacement, *revision, answers, now)?;
        }
        for (volume, _) in &volumes {
            if replacements.iter().all(|(replacement, _)| replacement.volume != volume.id) {
                self.replace_who_is_lost(volume, answers, now).await?;
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
        match self.remove_member(volume, &server, answers) {
            Ok(()) => tracing::info!(volume = name, replica = server.number, "a copy is removed: {why}"),
            // Until an in-sync copy answers.
            Err(error) => tracing::debug!(volume = name, replica = server.number, %error, "it stays for now"),
        }
        Ok(())
    }

    async fn replace_who_is_lost(
        &mut self,
        volume: &VolumeRecord,
        answers: &[PoolAnswer],
        now: Instant,
    ) -> Result<(), Refusal> {
        let lost = volume.members.iter().find(|member| {
            matches!(member.state, MemberState::Stale { .. })
                && self.healing.is_lost(volume.id, member.replica, now)
        });
        let Some(lost) = lost else {
            self.healing.told.remove(&volume.id);
            return Ok(());
        };
        // Without an engine that writes, nobody would bring the new copy in sync.
        let attached = attachment(self.store.as_ref(), volume.id)?;
        if attached.is_none_or(|(attachment, _)| attachment.read_only) {
            return Ok(());
        }
        let from = self.server_of(lost.replica)?;
        let to = match destination(volume, answers, 0) {
            Ok(to) => to,
            Err(error) => {
                if self.healing.told.insert(volume.id) {
                    tracing::warn!(volume = %volume.name, replica = from.number, %error,
                        "a member has been away for too long and cannot be replaced");
                }
                return Ok(());
            }
        };
        tracing::warn!(
            volume = %volume.name, from = from.number, to = to.number, after = ?self.healing.replace_after,
            "a member has been away for too long: replacing it"
        );
        let reason = ReplacementReason::Away;
        let replacement = ReplacementRecord { volume: volume.id, from: lost.replica, to: to.pool, reason };
        self.add_member(volume.id, &to, Some(&replacement)).await
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
