//! What is shown of a cluster: the same facts as JSON and as tables. Sizes in JSON are bytes.

use crate::failure::Failure;
use crate::nbd::uri::unix_uri;
use serde::Serialize;
use std::path::Path;
use trivet_api::convert::{pool_id, record_from_wire};
use trivet_api::{MalformedRecord, v1};
use trivet_model::size::ByteSize;
use trivet_model::{BLOCK_SIZE_U64, MemberState};

#[derive(Serialize, Debug)]
pub(crate) struct ClusterView {
    pub(crate) dir: String,
    pub(crate) node: String,
    pub(crate) version: String,
    pub(crate) manager_pid: u32,
    pub(crate) healthy: bool,
    pub(crate) replicas: Vec<ReplicaView>,
    pub(crate) volumes: Vec<VolumeView>,
    /// Deleted volumes whose copies still take space.
    pub(crate) deletions_pending: u32,
}

#[derive(Serialize, Debug)]
pub(crate) struct ReplicaView {
    pub(crate) name: String,
    pub(crate) pool: Option<String>,
    pub(crate) address: String,
    pub(crate) dir: String,
    pub(crate) process: ProcessView,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) used_bytes: Option<u64>,
    pub(crate) checksum_errors: Option<u64>,
    /// What is wrong; empty when nothing is.
    pub(crate) trouble: String,
}

#[derive(Serialize, Debug)]
pub(crate) struct ProcessView {
    /// `starting`, `running`, `died` or `stopped`.
    pub(crate) state: &'static str,
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u32,
    pub(crate) last_failure: Option<String>,
    pub(crate) log: String,
}

#[derive(Serialize, Debug)]
pub(crate) struct VolumeView {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) size_bytes: u64,
    /// On the member that holds most; unknown while none answers.
    pub(crate) used_bytes: Option<u64>,
    pub(crate) attached: bool,
    pub(crate) serving: bool,
    /// `detached`; the engine's own word, such as `open`, `opening` or `paused`; or that of its
    /// process: `starting`, `died`, `stopped`.
    pub(crate) state: String,
    /// Why it is not simply open; empty when it is.
    pub(crate) trouble: String,
    pub(crate) uri: Option<String>,
    pub(crate) tcp_uri: Option<String>,
    pub(crate) read_only: bool,
    pub(crate) connections: u32,
    pub(crate) generation: u32,
    pub(crate) epoch: u64,
    pub(crate) owner: String,
    pub(crate) members: Vec<MemberView>,
    pub(crate) engine: Option<ProcessView>,
}

#[derive(Serialize, Debug)]
pub(crate) struct MemberView {
    pub(crate) replica: String,
    pub(crate) address: String,
    /// `in-sync`, `syncing` or `stale`.
    pub(crate) state: &'static str,
    pub(crate) reachable: bool,
    pub(crate) used_bytes: Option<u64>,
}

impl From<MalformedRecord> for Failure {
    fn from(error: MalformedRecord) -> Self {
        Self::new(
            "the manager's answer makes no sense",
            error,
            "it may be of another version: trivet down, then trivet up, restarts it",
        )
    }
}

pub(crate) fn cluster(status: v1::ClusterStatus) -> Result<ClusterView, Failure> {
    let replicas: Vec<ReplicaView> =
        status.replicas.into_iter().map(replica).collect::<Result<_, MalformedRecord>>()?;
    let volumes: Vec<VolumeView> = status.volumes.into_iter().map(volume).collect::<Result<_, _>>()?;
    let healthy = replicas.iter().all(|replica| replica.trouble.is_empty())
        && volumes.iter().all(|volume| volume.attached == volume.serving);
    Ok(ClusterView {
        dir: status.dir,
        node: status.node,
        version: status.version,
        manager_pid: status.manager_pid,
        healthy,
        replicas,
        volumes,
        deletions_pending: status.deletions_pending,
    })
}

fn replica(status: v1::ReplicaStatus) -> Result<ReplicaView, MalformedRecord> {
    let process = process(status.process.unwrap_or_default());
    let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_SIZE_U64);
    let trouble = match (&status.figures, &process) {
        (Some(figures), _) if !figures.failed.is_empty() => {
            format!("the pool has stopped: {}", figures.failed)
        }
        (Some(_), _) => String::new(),
        (None, ProcessView { state: "running", .. }) => status.unreachable,
        (None, ProcessView { last_failure: Some(failure), .. }) => failure.clone(),
        (None, _) => status.unreachable,
    };
    Ok(ReplicaView {
        name: format!("replica-{}", status.number),
        pool: if status.pool.is_empty() { None } else { Some(pool_id(&status.pool)?.to_string()) },
        address: status.address,
        dir: status.dir,
        size_bytes: status.figures.as_ref().map(|figures| bytes(figures.blocks_total)),
        used_bytes: status.figures.as_ref().map(|figures| bytes(figures.blocks_used)),
        checksum_errors: status.figures.as_ref().map(|figures| figures.checksum_errors),
        process,
        trouble,
    })
}

fn process(status: v1::ProcessStatus) -> ProcessView {
    use v1::process_status::State;
    let state = match status.state() {
        State::Unspecified | State::Starting => "starting",
        State::Running => "running",
        State::Backoff => "died",
        State::Stopped => "stopped",
    };
    ProcessView {
        state,
        pid: (status.pid != 0).then_some(status.pid),
        restarts: status.restarts,
        last_failure: (!status.last_failure.is_empty()).then_some(status.last_failure),
        log: status.log,
    }
}

pub(crate) fn volume(status: v1::VolumeStatus) -> Result<VolumeView, Failure> {
    let record = record_from_wire(status.record.ok_or(MalformedRecord { field: "record" })?)?;
    let figures = |replica: &[u8]| status.figures.iter().find(|figures| figures.replica == replica);
    let members: Vec<MemberView> = record
        .members
        .iter()
        .map(|member| {
            let figures = figures(member.replica.as_bytes()).filter(|figures| figures.reachable);
            MemberView {
                replica: member.replica.to_string(),
                address: member.address.clone(),
                state: match member.state {
                    MemberState::InSync => "in-sync",
                    MemberState::Syncing { .. } => "syncing",
                    MemberState::Stale { .. } => "stale",
                },
                reachable: figures.is_some(),
                used_bytes: figures.map(|figures| figures.blocks_used * BLOCK_SIZE_U64),
            }
        })
        .collect();
    let attachment = status.attachment.as_ref();
    let engine = status.engine.unwrap_or_default();
    let process = attachment.map(|_| process(engine.process.unwrap_or_default()));
    let (state, trouble) = match (&process, engine.state.as_str()) {
        (None, _) => ("detached".to_owned(), String::new()),
        (Some(process), "") => {
            let failure = process.last_failure.as_ref().filter(|_| process.state == "died");
            let trouble = failure.map_or_else(
                || format!("its engine is {} and does not answer", process.state),
                |failure| format!("its engine died: {failure}"),
            );
            (process.state.to_owned(), trouble)
        }
        (Some(_), word) => (word.to_owned(), engine.reason),
    };
    Ok(VolumeView {
        id: record.id.to_string(),
        size_bytes: record.blocks * BLOCK_SIZE_U64,
        used_bytes: members.iter().filter_map(|member| member.used_bytes).max(),
        attached: attachment.is_some(),
        serving: engine.serving,
        state,
        trouble,
        uri: attachment.map(|attachment| unix_uri(&record.name, Path::new(&attachment.socket))),
        tcp_uri: attachment
            .filter(|attachment| !attachment.listen.is_empty())
            .map(|attachment| format!("nbd://{}/{}", attachment.listen, record.name)),
        read_only: attachment.is_some_and(|attachment| attachment.read_only),
        connections: engine.connections,
        generation: record.generation.get(),
        epoch: record.epoch.0,
        owner: record.owner,
        members,
        engine: process,
        name: record.name,
    })
}

/// A size for a table; `-` when unknown.
pub(crate) fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| ByteSize(bytes).to_string())
}

/// `2 of 3 in sync`, or `3 in sync`.
pub(crate) fn copies(members: &[MemberView]) -> String {
    let sound = members.iter().filter(|member| member.state == "in-sync" && member.reachable).count();
    if sound == members.len() { format!("{sound}") } else { format!("{sound} of {}", members.len()) }
}
