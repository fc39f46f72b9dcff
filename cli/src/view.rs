//! What is shown of a cluster: the same facts as JSON and as tables. Sizes in JSON are bytes.

use crate::bad_reads_view::BadReadsView;
use crate::failure::Failure;
use crate::keys_view::{OlderKeyView, ResealView};
use crate::revert_view::RevertView;
use crate::scrub_view::ScrubView;
use crate::settings_view::SettingsView;
use crate::snapshot_view::SnapshotView;
use serde::Serialize;
use std::path::Path;
use trivet_api::convert::{pool_id, record_from_wire};
use trivet_api::{MalformedRecord, v1};
use trivet_keys::WrappedKey;
use trivet_model::size::ByteSize;
use trivet_model::{BLOCK_SIZE_U64, InstantImport, KeyId, Member, MemberState, Sharing, Stamp, VolumeRecord};
use trivet_nbd::unix_uri;

#[derive(Serialize, Debug)]
pub(crate) struct ClusterView {
    pub(crate) dir: String,
    pub(crate) node: String,
    pub(crate) version: String,
    pub(crate) manager_pid: u32,
    pub(crate) healthy: bool,
    pub(crate) replicas: Vec<ReplicaView>,
    pub(crate) volumes: Vec<VolumeView>,
    /// Volumes with fewer copies in sync than they have members: the next fault may pause them.
    pub(crate) degraded_volumes: Vec<String>,
    /// Volumes of which deleted or removed copies still take space.
    pub(crate) deletions_pending: u32,
    /// So long a server may be away before its copies are replaced.
    pub(crate) replace_after_seconds: u64,
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
    /// Of those used, what deleted volumes still hold because clones read it.
    pub(crate) kept_bytes: Option<u64>,
    pub(crate) checksum_errors: Option<u64>,
    /// What is wrong; empty when nothing is.
    pub(crate) trouble: String,
}

#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
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
    /// How many it shall have; 0 where nobody sees to that.
    pub(crate) copies: u32,
    pub(crate) members: Vec<MemberView>,
    pub(crate) replacement: Option<ReplacementView>,
    pub(crate) scrub: Option<ScrubView>,
    pub(crate) snapshots: Vec<SnapshotView>,
    /// A golden image: it is read and cloned, and never written.
    pub(crate) image: bool,
    /// What it is a clone of.
    pub(crate) parent: Option<ParentView>,
    /// Where the blocks lie that a clone began with: `nothing` is shared, they lie with the `parent`, or they
    /// are becoming its own (`flattening`).
    pub(crate) sharing: &'static str,
    /// Volumes that were made of this one and share its blocks.
    pub(crate) clones: Vec<String>,
    #[serde(flatten)]
    pub(crate) settings: SettingsView,
    /// Of an encrypted volume.
    pub(crate) encryption: Option<EncryptionView>,
    pub(crate) revert: Option<RevertView>,
    /// What it is being filled from while it is used.
    pub(crate) import: Option<ImportView>,
    /// Since its engine started; absent if there was none.
    pub(crate) bad_reads: Option<BadReadsView>,
    pub(crate) engine: Option<ProcessView>,
}

impl VolumeView {
    /// Whether its engine waits for its key.
    pub(crate) fn is_locked(&self) -> bool {
        self.encryption.as_ref().is_some_and(|encryption| encryption.locked)
    }
}

/// What a clone was made of.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub(crate) struct ParentView {
    pub(crate) volume: String,
    pub(crate) volume_deleted: bool,
    /// Unknown if it was taken for the clone alone.
    pub(crate) snapshot: Option<String>,
    pub(crate) snapshot_deleted: bool,
    /// What was written to the parent up to this stamp, the clone began with.
    pub(crate) stamp: String,
}

impl std::fmt::Display for ParentView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.volume)?;
        if let Some(snapshot) = &self.snapshot {
            write!(f, "@{snapshot}")?;
        }
        match (self.volume_deleted, self.snapshot_deleted && self.snapshot.is_some()) {
            (true, _) => f.write_str(", which is deleted"),
            (false, true) => f.write_str(", a snapshot that is deleted"),
            (false, false) => Ok(()),
        }
    }
}

#[derive(Serialize, Debug)]
pub(crate) struct EncryptionView {
    /// The name of its data key.
    pub(crate) key: String,
    /// `a key`, `a passphrase` or `an age identity`; `nothing` once its key has been destroyed.
    pub(crate) unlocked_by: String,
    /// Its engine waits for somebody to unlock it.
    pub(crate) locked: bool,
    /// The name of the data key that it shall have next, which its engine has not gone over to.
    pub(crate) next_key: Option<String>,
    pub(crate) resealing: Option<ResealView>,
    /// The oldest first.
    pub(crate) older_keys: Vec<OlderKeyView>,
}

#[derive(Serialize, Debug)]
pub(crate) struct MemberView {
    /// `replica-N`; the pool's id where the cluster has no such server.
    pub(crate) name: String,
    /// The pool's id.
    pub(crate) replica: String,
    pub(crate) address: String,
    /// By the volume's record: `in-sync`, `syncing` or `stale`.
    pub(crate) state: &'static str,
    /// The stamp up to which a member that is not in sync surely holds everything.
    pub(crate) since: Option<String>,
    /// The highest stamp on it; unknown when its server does not answer.
    pub(crate) last: Option<String>,
    /// The same state in the engine's eyes; unknown while none answers.
    pub(crate) engine_state: Option<String>,
    /// The engine's connection to it: `ready`, or how far it has got.
    pub(crate) connection: Option<String>,
    /// Whether its server answers the manager.
    pub(crate) reachable: bool,
    pub(crate) used_bytes: Option<u64>,
    /// It reads from the parent's copy in the same pool where it has nothing of its own.
    pub(crate) tied: bool,
    /// While it is flattened: so much of the volume has been looked through.
    pub(crate) flattened_bytes: Option<u64>,
    /// How far it has been brought back, while that is under way.
    pub(crate) sync: Option<SyncView>,
    /// Why it is not in sync, or cannot be had; empty when nothing is wrong.
    pub(crate) trouble: String,
    #[serde(skip)]
    pub(crate) stamps: Stamps,
}

/// An instant import under way.
#[derive(Clone, PartialEq, Serialize, Debug)]
pub(crate) struct ImportView {
    pub(crate) source: String,
    pub(crate) source_bytes: u64,
    /// How much of the source is in the volume: as its engine says, or at least, by the record.
    pub(crate) imported_bytes: u64,
    pub(crate) percent: f64,
    /// By this engine; absent when none answers.
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) seconds_left: Option<u64>,
}

impl ImportView {
    #[allow(clippy::cast_precision_loss, reason = "a percentage for people")]
    fn new(import: InstantImport, seen: Option<v1::SyncProgress>) -> Self {
        let blocks = seen.as_ref().map_or(import.hydrated, |seen| seen.position.max(import.hydrated));
        let imported_bytes = blocks.saturating_mul(BLOCK_SIZE_U64).min(import.bytes);
        let bytes_per_second = seen.map(|seen| {
            let copied = u128::from(seen.copied_blocks) * u128::from(BLOCK_SIZE_U64);
            u64::try_from(copied * 1000 / u128::from(seen.since_ms.max(1))).unwrap_or(u64::MAX)
        });
        Self {
            source: import.source,
            source_bytes: import.bytes,
            imported_bytes,
            percent: imported_bytes as f64 * 100.0 / import.bytes.max(1) as f64,
            bytes_per_second,
            seconds_left: bytes_per_second.and_then(|rate| (import.bytes - imported_bytes).checked_div(rate)),
        }
    }
}

impl std::fmt::Display for ImportView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (imported, all) = (ByteSize(self.imported_bytes), ByteSize(self.source_bytes));
        write!(f, "{:.0} %, {imported} of {all} of {}", self.percent, self.source)?;
        if let Some(rate) = self.bytes_per_second {
            write!(f, ", {}/s", ByteSize(rate))?;
        }
        self.seconds_left.map_or(Ok(()), |seconds| write!(f, ", {seconds} s left"))
    }
}

/// Stamps as they compare.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamps {
    pub(crate) state: MemberState,
    pub(crate) last: Option<Stamp>,
}

/// A copy being brought in sync.
#[derive(Clone, Copy, PartialEq, Serialize, Debug)]
pub(crate) struct SyncView {
    /// Of the walk over the volume; most of it may need no copying.
    pub(crate) percent: f64,
    pub(crate) copied_bytes: u64,
    pub(crate) bytes_per_second: u64,
    /// Unknown at first.
    pub(crate) seconds_left: Option<u64>,
}

/// One copy on its way out, another on its way in.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub(crate) struct ReplacementView {
    pub(crate) from: String,
    pub(crate) to: String,
    /// Whether someone asked for it; else the member has been away too long.
    pub(crate) asked: bool,
}

impl SyncView {
    #[allow(clippy::cast_precision_loss, reason = "a percentage for people")]
    fn new(sync: v1::SyncProgress, blocks: u64) -> Self {
        let position = sync.position.min(blocks);
        let per_second = |amount: u64| u128::from(amount) * 1000 / u128::from(sync.since_ms.max(1));
        let copied_bytes = sync.copied_blocks.saturating_mul(BLOCK_SIZE_U64);
        let left = u128::from(blocks - position) * u128::from(sync.since_ms);
        Self {
            percent: position as f64 * 100.0 / blocks.max(1) as f64,
            copied_bytes,
            bytes_per_second: u64::try_from(per_second(copied_bytes)).unwrap_or(u64::MAX),
            seconds_left: left
                .checked_div(u128::from(position) * 1000)
                .map(|seconds| u64::try_from(seconds).unwrap_or(u64::MAX)),
        }
    }
}

impl std::fmt::Display for SyncView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (copied, rate) = (ByteSize(self.copied_bytes), ByteSize(self.bytes_per_second));
        write!(f, "{:.0} %, {copied} copied, {rate}/s", self.percent)?;
        self.seconds_left.map_or(Ok(()), |seconds| write!(f, ", {seconds} s left"))
    }
}

/// What people call a replica server.
pub(crate) fn replica_name(number: u32) -> String {
    format!("replica-{number}")
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
    let degraded = volumes.iter().filter(|volume| volume.is_degraded());
    let degraded_volumes = degraded.map(|volume| volume.name.clone()).collect();
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
        degraded_volumes,
        deletions_pending: status.deletions_pending,
        replace_after_seconds: status.replace_after_seconds,
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
        name: replica_name(status.number),
        pool: if status.pool.is_empty() { None } else { Some(pool_id(&status.pool)?.to_string()) },
        address: status.address,
        dir: status.dir,
        size_bytes: status.figures.as_ref().map(|figures| bytes(figures.blocks_total)),
        used_bytes: status.figures.as_ref().map(|figures| bytes(figures.blocks_used)),
        kept_bytes: status.figures.as_ref().map(|figures| bytes(figures.blocks_kept)),
        checksum_errors: status.figures.as_ref().map(|figures| figures.checksum_errors),
        process,
        trouble,
    })
}

pub(crate) fn process(status: v1::ProcessStatus) -> ProcessView {
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

fn encryption(record: &VolumeRecord, key: KeyId, found: v1::Encryption) -> EncryptionView {
    let kept = WrappedKey::parse(&found.wrapped_key);
    let unlocked_by = kept.map_or("nothing: its key has been destroyed", |kept| kept.method().kind());
    EncryptionView {
        key: key.to_string(),
        unlocked_by: unlocked_by.to_owned(),
        locked: found.locked,
        next_key: record.next_key.map(|next| next.to_string()),
        resealing: found.resealing.map(|resealing| ResealView::new(resealing, record.blocks)),
        older_keys: OlderKeyView::all(record),
    }
}

pub(crate) fn volume(status: v1::VolumeStatus) -> Result<VolumeView, Failure> {
    let record = record_from_wire(status.record.ok_or(MalformedRecord { field: "record" })?)?;
    let attachment = status.attachment.as_ref();
    let engine = status.engine.unwrap_or_default();
    let members: Vec<MemberView> =
        record.members.iter().map(|found| member(found, &status.figures, &engine, record.blocks)).collect();
    let reverting = status.revert.is_some();
    let process = engine.process.filter(|_| attachment.is_some() || reverting).map(process);
    let encryption = record.key.map(|key| encryption(&record, key, status.encryption.unwrap_or_default()));
    let locked = encryption.as_ref().is_some_and(|encryption| encryption.locked);
    let (state, trouble) = match &process {
        None => ("detached".to_owned(), String::new()),
        Some(_) if locked => {
            let unlock = match &status.revert {
                None => format!("trivet volume attach {}", record.name),
                Some(revert) => format!("trivet snapshot revert {} {}", record.name, revert.to),
            };
            let trouble = format!("its engine waits for its key: {unlock}, with its key, unlocks it");
            ("locked".to_owned(), trouble)
        }
        Some(process) if reverting && attachment.is_none() => {
            ("reverting".to_owned(), standing(process, &engine.state, &engine.reason).1)
        }
        Some(process) => standing(process, &engine.state, &engine.reason),
    };
    let import = record.import.clone().map(|import| ImportView::new(import, engine.import));
    // Served like any other, and more than open.
    let state = if import.is_some() && state == "open" { "hydrating".to_owned() } else { state };
    let parent = record.parent().map(|of| ParentView {
        volume: of.name.clone(),
        volume_deleted: status.parent_deleted,
        snapshot: (!of.snapshot_name.is_empty()).then(|| of.snapshot_name.clone()),
        snapshot_deleted: status.parent_snapshot_deleted,
        stamp: of.cut.to_string(),
    });
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
        copies: record.copies,
        members,
        replacement: status.replacement.map(|replacement| ReplacementView {
            from: replica_name(replacement.from),
            to: replica_name(replacement.to),
            asked: replacement.asked,
        }),
        scrub: status.scrub.map(ScrubView::from),
        snapshots: record
            .snapshots
            .iter()
            .map(|taken| SnapshotView::new(&record.name, taken, &status.exports))
            .collect(),
        image: record.is_image,
        parent,
        sharing: match record.sharing {
            Sharing::Nothing => "nothing",
            Sharing::Parent => "parent",
            Sharing::Flattening => "flattening",
        },
        clones: status.clones,
        settings: SettingsView::from(&record.settings),
        encryption,
        revert: status.revert.map(|revert| RevertView::new(revert, record.blocks)),
        import,
        bad_reads: engine.bad_reads.and_then(BadReadsView::new),
        engine: process,
        name: record.name,
    })
}

/// What is said of an engine, and why it is not simply open: in its own words, or by its process.
pub(crate) fn standing(process: &ProcessView, state: &str, reason: &str) -> (String, String) {
    if !state.is_empty() {
        return (state.to_owned(), reason.to_owned());
    }
    let failure = process.last_failure.as_ref().filter(|_| process.state == "died");
    let trouble = failure.map_or_else(
        || format!("its engine is {} and does not answer", process.state),
        |failure| format!("its engine died: {failure}"),
    );
    (process.state.to_owned(), trouble)
}

fn member(
    member: &Member,
    figures: &[v1::MemberFigures],
    engine: &v1::EngineStatus,
    blocks: u64,
) -> MemberView {
    let id = member.replica.as_bytes();
    let figures = figures.iter().find(|figures| figures.replica == id);
    let seen = engine.members.iter().find(|seen| seen.replica == id);
    let (state, since) = match member.state {
        MemberState::InSync => ("in-sync", None),
        MemberState::Syncing { since } => ("syncing", Some(since)),
        MemberState::Stale { since } => ("stale", Some(since)),
    };
    let said = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned();
    let trouble =
        said(seen.map(|seen| &seen.fault)).or_else(|| said(figures.map(|figures| &figures.trouble)));
    let reached = figures.filter(|figures| figures.reachable);
    // Where the copy is not there, nothing is known of it either.
    let last =
        reached.filter(|figures| figures.trouble.is_empty()).map(|figures| Stamp::from_u64(figures.last));
    MemberView {
        name: figures
            .filter(|figures| figures.number != 0)
            .map_or_else(|| member.replica.to_string(), |figures| replica_name(figures.number)),
        replica: member.replica.to_string(),
        address: member.address.clone(),
        state,
        since: since.map(|since| since.to_string()),
        last: last.map(|last| last.to_string()),
        engine_state: seen.map(|seen| seen.role.clone()),
        connection: seen.map(|seen| seen.connection.clone()),
        reachable: reached.is_some(),
        used_bytes: reached.map(|figures| figures.blocks_used * BLOCK_SIZE_U64),
        tied: reached.is_some_and(|figures| figures.tied),
        flattened_bytes: reached.and_then(|figures| figures.flattened).map(|blocks| blocks * BLOCK_SIZE_U64),
        sync: seen.and_then(|seen| seen.sync).map(|sync| SyncView::new(sync, blocks)),
        trouble: trouble.unwrap_or_default(),
        stamps: Stamps { state: member.state, last },
    }
}

impl VolumeView {
    /// Whether a copy is not in sync, by the record or in the engine's eyes.
    pub(crate) fn is_degraded(&self) -> bool {
        let behind = |member: &MemberView| {
            member.state != "in-sync" || member.engine_state.as_ref().is_some_and(|state| state != "in-sync")
        };
        self.members.iter().any(behind)
    }

    /// The member on this replica server.
    pub(crate) fn member(&self, number: u32) -> Option<&MemberView> {
        let name = replica_name(number);
        self.members.iter().find(|member| member.name == name)
    }
}

/// A size for a table; `-` when unknown.
pub(crate) fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| ByteSize(bytes).to_string())
}

/// `2 of 3` in sync, or `3`.
pub(crate) fn copies(volume: &VolumeView) -> String {
    let members = &volume.members;
    let sound = members.iter().filter(|member| member.state == "in-sync" && member.reachable).count();
    let wanted = members.len().max(usize::try_from(volume.copies).unwrap_or(usize::MAX));
    if sound == wanted { format!("{sound}") } else { format!("{sound} of {wanted}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_goes_by_its_engine_and_without_one_by_the_record() {
        let import =
            InstantImport { source: "nbd://h/x".into(), bytes: 4 << 20, fingerprint: 0, hydrated: 64 };
        let seen = v1::SyncProgress { position: 512, copied_blocks: 256, since_ms: 2000 };
        let view = ImportView::new(import.clone(), Some(seen));
        assert_eq!(view.to_string(), "50 %, 2 MiB of 4 MiB of nbd://h/x, 512 KiB/s, 4 s left");
        let begun = ImportView::new(import.clone(), Some(v1::SyncProgress::default()));
        assert_eq!(begun.to_string(), "6 %, 256 KiB of 4 MiB of nbd://h/x, 0 B/s");
        assert_eq!(ImportView::new(import, None).to_string(), "6 %, 256 KiB of 4 MiB of nbd://h/x");
    }

    #[test]
    fn progress_has_a_rate_and_an_estimate() {
        let sync = v1::SyncProgress { position: 256, copied_blocks: 512, since_ms: 2000 };
        let view = SyncView::new(sync, 1024);
        assert_eq!(view.to_string(), "25 %, 2 MiB copied, 1 MiB/s, 6 s left");
        let begun = SyncView::new(v1::SyncProgress::default(), 1024);
        assert_eq!(begun.to_string(), "0 %, 0 B copied, 0 B/s");
        let beyond = SyncView::new(v1::SyncProgress { position: u64::MAX, ..sync }, 1024);
        assert_eq!((beyond.percent, beyond.seconds_left), (100.0, Some(0)));
    }
}
