//! What people are shown: records, processes, pools and engines, put together.

use super::ManagerService;
use crate::control::flattening::go_on;
use crate::control::members::number_of;
use crate::control::pools::{PoolAnswer, ask_all, of_pool};
use crate::control::{Refusal, engine_name, export, export_process, volumes};
use crate::engine_report::{
    self, CountersReport, MemberReport, ResealReport, RevertReport, ScrubReport, SyncReport, VolumeReport,
};
use crate::records::{
    self, AttachmentRecord, ClusterRecord, DeletionRecord, EncryptionRecord, NodeRecord, ReplacementReason,
    ReplacementRecord, ScrubRecord,
};
use crate::supervisor::{Phase, ProcessState, ProcessStates};
use std::path::Path;
use trivet_api::convert::record_to_wire;
use trivet_api::layout::export_name;
use trivet_api::v1;
use trivet_keys::WrappedKey;
use trivet_model::{Member, Revision, ScrubCounts, Sharing, VolumeRecord};

impl ManagerService {
    pub(super) async fn cluster_status(&self) -> Result<v1::ClusterStatus, Refusal> {
        let store = self.store.as_ref();
        let states = self.supervisor.states();
        let answers = ask_all(store).await?;
        let replacements = records::list::<ReplacementRecord>(store)?;
        let mut shown = Vec::new();
        let volumes = records::list::<VolumeRecord>(store)?;
        for (record, revision) in volumes.clone() {
            let mut volume = self.describe(record, revision, &states, &answers, &replacements).await?;
            tell_kin(&mut volume, &volumes);
            shown.push(volume);
        }
        shown.sort_by(|a, b| name_of(a).cmp(name_of(b)));
        let node = records::list::<NodeRecord>(store)?.into_iter().next();
        let deletions = records::list::<DeletionRecord>(store)?.len();
        let cluster = records::read::<ClusterRecord>(store, ClusterRecord::ID)?;
        let cluster = cluster.map(|(cluster, _)| cluster).unwrap_or_default();
        Ok(v1::ClusterStatus {
            replace_after_seconds: cluster.replace_after_seconds,
            node: node.map(|(node, _)| node.id.0).unwrap_or_default(),
            dir: self.layout.dir().display().to_string(),
            manager_pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            replicas: answers.iter().map(|answer| self.replica(answer, &states)).collect(),
            volumes: shown,
            deletions_pending: u32::try_from(deletions).unwrap_or(u32::MAX),
        })
    }

    pub(super) async fn volume_status(&self, name: &str) -> Result<v1::VolumeStatus, Refusal> {
        let store = self.store.as_ref();
        // What is not there needs no question.
        volumes::find(store, name)?;
        let answers = ask_all(store).await?;
        // Before the volume, so that who sees none of it sees what became of it.
        let replacements = records::list::<ReplacementRecord>(store)?;
        let (record, revision) = volumes::find(store, name)?;
        let flattening = record.clone();
        let states = self.supervisor.states();
        let mut volume = self.describe(record, revision, &states, &answers, &replacements).await?;
        tell_kin(&mut volume, &records::list::<VolumeRecord>(store)?);
        if flattening.sharing == Sharing::Flattening {
            tell_flattening(&mut volume, &flattening).await;
        }
        Ok(volume)
    }

    async fn describe(
        &self,
        record: VolumeRecord,
        revision: Revision,
        states: &ProcessStates,
        answers: &[PoolAnswer],
        replacements: &[(ReplacementRecord, Revision)],
    ) -> Result<v1::VolumeStatus, Refusal> {
        let attached = volumes::attachment(self.store.as_ref(), record.id)?;
        let mut seen = VolumeReport::default();
        let mut engine = None;
        if attached.is_some() || record.reverting.is_some() {
            let status = self.layout.engine_status_socket(&record.name)?;
            let (found, report) = self.engine(&engine_name(&record.name), &status, states).await;
            (engine, seen) = (Some(found), report);
        }
        let attachment = match attached {
            None => None,
            Some((AttachmentRecord { listen, read_only, .. }, _)) => {
                Some(described(&self.layout.volume_socket(&record.name)?, listen, read_only))
            }
        };
        let revert = describe_revert(&record, seen.revert);
        let exports = self.exports(&record, states).await?;
        let replacement = replacements.iter().find(|(replacement, _)| replacement.volume == record.id);
        let replacement = replacement.map(|(replacement, _)| v1::Replacement {
            from: number_of(answers, replacement.from),
            to: number_of(answers, replacement.to),
            asked: replacement.reason == ReplacementReason::Asked,
        });
        // After the engine was asked, so that one that has ended meanwhile is seen so.
        let scrub = records::read::<ScrubRecord>(self.store.as_ref(), &record.id.to_string())?;
        let scrub = scrub.map(|(scrub, _)| describe_scrub(scrub, seen.scrub, record.blocks));
        let encryption = match record.key {
            Some(_) => Some(self.encryption(&record, engine.as_ref(), seen.resealing)?),
            None => None,
        };
        Ok(v1::VolumeStatus {
            scrub,
            encryption,
            figures: record.members.iter().map(|member| figures(&record, member, answers)).collect(),
            record: Some(record_to_wire(&record)),
            revision: revision.0,
            attachment,
            engine,
            replacement,
            exports,
            // Of others' records.
            clones: Vec::new(),
            parent_deleted: false,
            parent_snapshot_deleted: false,
            revert,
        })
    }

    /// The snapshots that are served beside the volume.
    async fn exports(
        &self,
        record: &VolumeRecord,
        states: &ProcessStates,
    ) -> Result<Vec<v1::SnapshotExport>, Refusal> {
        let mut exports = Vec::new();
        for snapshot in &record.snapshots {
            let Some((found, _)) = export(self.store.as_ref(), snapshot.id)? else { continue };
            let name = export_name(&record.name, &snapshot.name, snapshot.id);
            let status = self.layout.export_status_socket(&name)?;
            let (engine, _) = self.engine(&export_process(&record.name, snapshot), &status, states).await;
            exports.push(v1::SnapshotExport {
                snapshot: snapshot.name.clone(),
                attachment: Some(described(&self.layout.export_socket(&name)?, found.listen, true)),
                engine: Some(engine),
            });
        }
        Ok(exports)
    }

    fn encryption(
        &self,
        record: &VolumeRecord,
        engine: Option<&v1::EngineStatus>,
        seen: Option<ResealReport>,
    ) -> Result<v1::Encryption, Refusal> {
        let kept = records::read::<EncryptionRecord>(self.store.as_ref(), &record.id.to_string())?;
        let silent = engine.is_some_and(|engine| engine.state.is_empty());
        let wrapped = |key| {
            let kept = kept.as_ref().and_then(|(kept, _)| kept.wrapped(key));
            kept.map(WrappedKey::to_text).unwrap_or_default()
        };
        Ok(v1::Encryption {
            wrapped_key: wrapped(record.key),
            locked: silent && !self.control.has_key(record),
            next_wrapped_key: record.next_key.map(|next| wrapped(Some(next))).unwrap_or_default(),
            resealing: describe_resealing(record, seen),
        })
    }

    /// An engine's process, and what it says of itself at its status socket.
    async fn engine(
        &self,
        name: &str,
        status: &Path,
        states: &ProcessStates,
    ) -> (v1::EngineStatus, VolumeReport) {
        let report = engine_report::ask(status).await;
        let process = Some(process(states.get(name), &self.layout.log(name).display().to_string()));
        let Some(report) = report else {
            return (v1::EngineStatus { process, ..v1::EngineStatus::default() }, VolumeReport::default());
        };
        let (state, reason) = report.state.split_once(": ").unwrap_or((&report.state, ""));
        let engine = v1::EngineStatus {
            process,
            state: state.to_owned(),
            reason: reason.to_owned(),
            serving: report.serving,
            connections: report.connections,
            members: report.volume.members.iter().map(engine_member).collect(),
            import: report.volume.import.map(sync_progress),
            bad_reads: Some(bad_reads(report.volume.counters)),
        };
        (engine, report.volume)
    }

    fn replica(&self, answer: &PoolAnswer, states: &ProcessStates) -> v1::ReplicaStatus {
        let replica = &answer.replica;
        let name = replica.process_name();
        let (figures, unreachable) = match &answer.report {
            None => (None, "it has not been up yet".to_owned()),
            Some(Err(error)) => (None, error.to_string()),
            Some(Ok(report)) => (
                Some(v1::PoolFigures {
                    blocks_total: report.blocks_total,
                    blocks_used: report.blocks_used,
                    checksum_errors: report.checksum_errors,
                    blocks_kept: report.blocks_kept,
                    failed: report.failed.clone(),
                }),
                String::new(),
            ),
        };
        v1::ReplicaStatus {
            number: replica.number,
            pool: replica.pool.map(|pool| pool.as_bytes().to_vec()).unwrap_or_default(),
            address: replica.address.clone(),
            dir: self.layout.replica(replica.number).display().to_string(),
            process: Some(process(states.get(&name), &self.layout.log(&name).display().to_string())),
            figures,
            unreachable,
        }
    }
}

fn described(socket: &Path, listen: Option<String>, read_only: bool) -> v1::Attachment {
    let listen = listen.unwrap_or_default();
    v1::Attachment { socket: socket.display().to_string(), listen, read_only }
}

fn name_of(status: &v1::VolumeStatus) -> &str {
    status.record.as_ref().map_or("", |record| &record.name)
}

fn figures(record: &VolumeRecord, member: &Member, answers: &[PoolAnswer]) -> v1::MemberFigures {
    let answer = of_pool(answers, member.replica);
    let report = answer.and_then(|answer| answer.report.as_ref()?.as_ref().ok());
    let copy = report.and_then(|report| report.volumes.iter().find(|copy| copy.volume == record.id));
    let trouble = match answer {
        None => "the cluster has no such replica server".to_owned(),
        Some(answer) => answer.copy(record.id).err().unwrap_or_default(),
    };
    v1::MemberFigures {
        replica: member.replica.as_bytes().to_vec(),
        reachable: report.is_some(),
        blocks_used: copy.map_or(0, |copy| copy.blocks_used),
        number: number_of(answers, member.replica),
        last: copy.map_or(0, |copy| copy.last.as_u64()),
        trouble,
        tied: copy.is_some_and(|copy| copy.tied),
        flattened: None,
    }
}

/// What other volumes' records say: which are made of this one, and what is left of what it is made of.
fn tell_kin(status: &mut v1::VolumeStatus, volumes: &[(VolumeRecord, Revision)]) {
    let Some(shown) = &status.record else { return };
    let Some((record, _)) = volumes.iter().find(|(record, _)| record.id.as_bytes()[..] == shown.id) else {
        return;
    };
    let of_this = |other: &&(VolumeRecord, Revision)| {
        let parent = other.0.parent().filter(|_| other.0.sharing != Sharing::Nothing);
        parent.is_some_and(|parent| parent.volume == record.id)
    };
    status.clones = volumes.iter().filter(of_this).map(|(clone, _)| clone.name.clone()).collect();
    status.clones.sort();
    if let Some(of) = record.parent() {
        let parent = volumes.iter().map(|(other, _)| other).find(|other| other.id == of.volume);
        let snapshot =
            parent.and_then(|parent| parent.snapshots.iter().find(|known| known.id == of.snapshot));
        (status.parent_deleted, status.parent_snapshot_deleted) = (parent.is_none(), snapshot.is_none());
    }
}

/// How far the copies are that are flattened.
async fn tell_flattening(status: &mut v1::VolumeStatus, record: &VolumeRecord) {
    for (figures, member) in status.figures.iter_mut().zip(&record.members) {
        if figures.tied
            && let Ok(report) = go_on(member, record.id).await
        {
            figures.flattened = Some(report.position);
        }
    }
}

const fn bad_reads(counters: CountersReport) -> v1::BadReads {
    v1::BadReads {
        medium_blocks: counters.checksum_errors_medium,
        device_errors: counters.medium_errors,
        wire_answers: counters.checksum_errors_wire,
        forged_blocks: counters.blocks_forged,
        stale_blocks: counters.blocks_stale,
    }
}

fn engine_member(member: &MemberReport) -> v1::EngineMember {
    v1::EngineMember {
        replica: member.replica.as_bytes().to_vec(),
        role: member.role.clone(),
        connection: member.state.clone(),
        fault: member.fault.clone().unwrap_or_default(),
        sync: member.sync.map(sync_progress),
    }
}

const fn sync_progress(sync: SyncReport) -> v1::SyncProgress {
    v1::SyncProgress { position: sync.position, copied_blocks: sync.copied_blocks, since_ms: sync.since_ms }
}

/// What the record says of blocks that are sealed anew, and the engine.
fn describe_resealing(record: &VolumeRecord, seen: Option<ResealReport>) -> Option<v1::Resealing> {
    let newest = record.older_keys.last().filter(|_| record.is_resealing())?;
    let seen = seen.unwrap_or(ResealReport {
        position: newest.position,
        changed: newest.changed,
        bytes_per_second: 0,
        seconds_left: None,
        waits: Some("the volume is not open".to_owned()),
    });
    Some(v1::Resealing {
        position: seen.position,
        changed: seen.changed,
        bytes_per_second: seen.bytes_per_second,
        seconds_left: seen.seconds_left,
        waits: seen.waits.unwrap_or_default(),
    })
}

/// What the record says of a revert under way, and the engine.
fn describe_revert(record: &VolumeRecord, seen: Option<RevertReport>) -> Option<v1::Revert> {
    let reverting = record.reverting.as_ref()?;
    let to = record.snapshots.iter().find(|known| known.id == reverting.to);
    let seen = seen.filter(|seen| seen.to == reverting.to).unwrap_or(RevertReport {
        to: reverting.to,
        position: reverting.position,
        changed: reverting.changed,
        bytes_per_second: 0,
        waits: None,
    });
    Some(v1::Revert {
        to: to.map(|to| to.name.clone()).unwrap_or_default(),
        position: seen.position,
        changed: seen.changed,
        bytes_per_second: seen.bytes_per_second,
        waits: seen.waits.unwrap_or_default(),
    })
}

/// What the record says of scrubs, and the engine of the one under way.
fn describe_scrub(record: ScrubRecord, seen: Option<ScrubReport>, total: u64) -> v1::Scrub {
    let running = record.running.map(|running| {
        let seen = seen.filter(|seen| seen.run == running.run);
        let seen = seen.unwrap_or(ScrubReport {
            run: running.run,
            finished: false,
            position: running.position,
            counts: running.counts,
            bytes_per_second: 0,
            seconds_left: None,
            waits: Some("its engine does not scrub yet".to_owned()),
        });
        v1::RunningScrub {
            run: running.run,
            started_at: running.started_at,
            position: seen.position,
            total,
            counts: Some(scrub_counts(seen.counts)),
            bytes_per_second: seen.bytes_per_second,
            seconds_left: seen.seconds_left,
            waits: seen.waits.unwrap_or_default(),
        }
    });
    let last = record.last.map(|last| v1::FinishedScrub {
        run: last.run,
        started_at: last.started_at,
        finished_at: last.finished_at,
        counts: Some(scrub_counts(last.counts)),
    });
    let (every_seconds, bytes_per_second_max) = (record.every_seconds.unwrap_or(0), record.bytes_per_second);
    v1::Scrub { every_seconds, bytes_per_second_max, running, last }
}

fn scrub_counts(counts: ScrubCounts) -> v1::ScrubCounts {
    let ScrubCounts { compared, repaired, mismatched, unrepairable, unrepairable_blocks } = counts;
    v1::ScrubCounts { compared, repaired, mismatched, unrepairable, unrepairable_blocks }
}

fn process(state: Option<&ProcessState>, log: &str) -> v1::ProcessStatus {
    use v1::process_status::State;
    let Some(state) = state else {
        return v1::ProcessStatus {
            state: State::Stopped.into(),
            log: log.to_owned(),
            ..v1::ProcessStatus::default()
        };
    };
    let phase = match state.phase {
        Phase::Starting => State::Starting,
        Phase::Running => State::Running,
        Phase::Backoff => State::Backoff,
        Phase::Stopping => State::Stopped,
    };
    v1::ProcessStatus {
        state: phase.into(),
        pid: state.pid.unwrap_or(0),
        restarts: state.restarts,
        last_failure: state.last_failure.clone().unwrap_or_default(),
        log: log.to_owned(),
    }
}
