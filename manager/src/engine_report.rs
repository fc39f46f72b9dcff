//! What an engine process says of itself on its status socket: one JSON object to whoever
//! connects, then the end of the stream. Nothing depends on it but what people are shown.

use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use trivet_crypto::{DATA_KEY_BYTES, DataKey};
use trivet_model::{PoolId, ScrubCounts, ScrubOrder, SnapshotId, SnapshotOrder, Stamp};
use zeroize::Zeroizing;

/// An engine's state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EngineReport {
    /// In words: `open`, `opening: …`, `paused: …`.
    pub state: String,
    /// Whether consumers get answers at once.
    pub serving: bool,
    /// NBD clients connected.
    pub connections: u32,
    /// The volume's part.
    #[serde(default)]
    pub volume: VolumeReport,
}

/// What an engine says of its volume, as far as people are shown it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Every member, in sync or not.
    #[serde(default)]
    pub members: Vec<MemberReport>,
    /// The scrub under way, or the last one that came to its end in this engine.
    #[serde(default)]
    pub scrub: Option<ScrubReport>,
    /// The revert under way.
    #[serde(default)]
    pub revert: Option<RevertReport>,
    /// How far the import is that fills the volume while it is used.
    #[serde(default)]
    pub import: Option<SyncReport>,
    /// While blocks are sealed anew under another data key.
    #[serde(default)]
    pub resealing: Option<ResealReport>,
    /// Since it started.
    #[serde(default)]
    pub counters: CountersReport,
}

/// What an engine was given back otherwise than it was written, and did not pass on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CountersReport {
    /// Blocks that a member found changed on its medium.
    pub checksum_errors_medium: u64,
    /// Reads that a member's device failed.
    pub medium_errors: u64,
    /// Answers that were changed on their way.
    pub checksum_errors_wire: u64,
    /// Blocks of an encrypted volume that a member gave back otherwise than they were written.
    pub blocks_forged: u64,
    /// Blocks of which verified reads found that a member has another version than stands.
    pub blocks_stale: u64,
}

/// How far blocks have been sealed anew.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ResealReport {
    /// Blocks of the volume that are done, wherever they lie.
    pub position: u64,
    /// Blocks sealed anew.
    pub changed: u64,
    /// Of the volume.
    pub bytes_per_second: u64,
    /// When it will be done.
    pub seconds_left: Option<u64>,
    /// Why it does not get on.
    pub waits: Option<String>,
}

/// How far a revert is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RevertReport {
    /// To which snapshot.
    pub to: SnapshotId,
    /// Everything before this block is done.
    pub position: u64,
    /// Blocks written or discarded for it.
    pub changed: u64,
    /// Bytes changed in a second.
    pub bytes_per_second: u64,
    /// Why it does not get on.
    pub waits: Option<String>,
}

/// How far a scrub is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ScrubReport {
    /// As ordered.
    pub run: u64,
    /// Whether it has come to its end.
    pub finished: bool,
    /// Everything before this block is done.
    pub position: u64,
    /// What it has found.
    pub counts: ScrubCounts,
    /// Of the volume.
    pub bytes_per_second: u64,
    /// When it will have ended.
    pub seconds_left: Option<u64>,
    /// Why it does not get on.
    pub waits: Option<String>,
}

/// All that is wanted of an engine beside serving.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Wanted<'a> {
    scrub: Option<&'a ScrubOrder>,
}

/// A member of a volume in its engine's eyes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberReport {
    /// Its pool.
    pub replica: PoolId,
    /// `in-sync`, `syncing`, `stale` or `removed`.
    pub role: String,
    /// Of the connection: `ready` when all is well.
    pub state: String,
    /// How far it has been brought back, while that is under way.
    pub sync: Option<SyncReport>,
    /// Why it is not ready.
    pub fault: Option<String>,
}

/// How far a member has been brought back, or an import is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SyncReport {
    /// The block that the walk over the volume has reached; of an import, how many are done.
    pub position: u64,
    /// Blocks copied.
    pub copied_blocks: u64,
    /// For how long this attempt has been under way, in milliseconds.
    pub since_ms: u64,
}

const REPORT_BYTES_MAX: u64 = 64 << 10;
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Tells the engine that has its control socket at `path` which scrub shall be under way, if one shall;
/// answers its state then, or `None` when none answers. May be said again at any time.
pub async fn want(path: &Path, scrub: Option<&ScrubOrder>) -> Option<EngineReport> {
    let mut line = match serde_json::to_vec(&Wanted { scrub }) {
        Ok(line) => line,
        Err(error) => unreachable!("an order is always JSON: {error}"),
    };
    line.push(b'\n');
    let asking = async {
        let mut stream = UnixStream::connect(path).await.ok()?;
        stream.write_all(&line).await.ok()?;
        answer(stream).await
    };
    tokio::time::timeout(REPORT_TIMEOUT, asking).await.ok().flatten()
}

/// What an engine made of an order.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
struct Outcome {
    error: Option<String>,
    cut: Option<Stamp>,
}

/// How long an order may take: a member that is away keeps a snapshot waiting until it is dropped.
const ORDER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why an order was not carried out, as far as is known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OrderError {
    /// The engine says no.
    #[error("its engine refuses: {0}")]
    Refused(String),
    /// It may have been carried out, or be yet.
    #[error("its engine has not answered in time")]
    Silent,
    /// Nobody is there, or it hung up.
    #[error("its engine cannot be reached: {0}")]
    Unreachable(String),
}

/// Has the engine that has its control socket at `path` take or delete a snapshot, and waits for that; or a
/// step of one over several volumes, which may be answered with the cut.
///
/// # Errors
/// [`OrderError`]; it may be ordered again.
pub async fn order(path: &Path, order: &SnapshotOrder) -> Result<Option<Stamp>, OrderError> {
    say(path, &serde_json::json!({ "snapshot": order }), ORDER_TIMEOUT).await
}

/// Has the engine that has its control socket at `path` put the settings in force that are recorded, and
/// waits for that.
///
/// # Errors
/// [`OrderError`]; it may be said again.
pub async fn follow_settings(path: &Path, patience: Duration) -> Result<(), OrderError> {
    say(path, &serde_json::json!({ "follow": "settings" }), patience).await.map(|_no_cut| ())
}

/// Has the engine that has its control socket at `path` grow its volume, and waits for that.
///
/// # Errors
/// [`OrderError`]; it may be ordered again.
pub async fn grow(path: &Path, blocks: u64) -> Result<(), OrderError> {
    say(path, &serde_json::json!({ "grow": blocks }), ORDER_TIMEOUT).await.map(|_no_cut| ())
}

/// Has the engine that has its control socket at `path` go over to a data key, and waits for that.
///
/// # Errors
/// [`OrderError`]; it may be ordered again.
pub async fn rekey(path: &Path, key: &DataKey, patience: Duration) -> Result<(), OrderError> {
    let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or('0');
    // Long enough at once: growing would leave a part behind.
    let mut line = Zeroizing::new(String::with_capacity(2 * DATA_KEY_BYTES + 16));
    line.push_str("{\"rekey\":\"");
    for byte in key.expose() {
        line.push(digit(byte >> 4));
        line.push(digit(byte & 0xf));
    }
    line.push_str("\"}\n");
    say_line(path, &line, patience).await.map(|_no_cut| ())
}

async fn say(
    path: &Path,
    order: &serde_json::Value,
    patience: Duration,
) -> Result<Option<Stamp>, OrderError> {
    say_line(path, &format!("{order}\n"), patience).await
}

async fn say_line(path: &Path, line: &str, patience: Duration) -> Result<Option<Stamp>, OrderError> {
    let ordering = async {
        let unreachable = |error: std::io::Error| OrderError::Unreachable(error.to_string());
        let mut stream = UnixStream::connect(path).await.map_err(unreachable)?;
        stream.write_all(line.as_bytes()).await.map_err(unreachable)?;
        let mut text = Vec::new();
        stream.take(REPORT_BYTES_MAX).read_to_end(&mut text).await.map_err(unreachable)?;
        serde_json::from_slice::<Outcome>(&text)
            .map_err(|_nothing_or_half| OrderError::Unreachable("it hung up".to_owned()))
    };
    let outcome = tokio::time::timeout(patience, ordering).await.or(Err(OrderError::Silent))??;
    outcome.error.map_or(Ok(outcome.cut), |error| Err(OrderError::Refused(error)))
}

async fn answer(stream: UnixStream) -> Option<EngineReport> {
    let mut text = Vec::new();
    stream.take(REPORT_BYTES_MAX).read_to_end(&mut text).await.ok()?;
    serde_json::from_slice(&text).ok()
}

/// Asks the engine that has its status socket at `path`; `None` when none answers.
pub async fn ask(path: &Path) -> Option<EngineReport> {
    let asking = async { answer(UnixStream::connect(path).await.ok()?).await };
    tokio::time::timeout(REPORT_TIMEOUT, asking).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_report_is_understood_and_nonsense_is_no_report() {
        let temp = tempfile::tempdir_in("/tmp").unwrap();
        let path = temp.path().join("s");
        assert_eq!(ask(&path).await, None);
        let member = MemberReport {
            replica: PoolId::from_bytes([1; 16]),
            role: "syncing".into(),
            state: "ready".into(),
            sync: Some(SyncReport { position: 7, copied_blocks: 3, since_ms: 1 }),
            fault: None,
        };
        let scrub = ScrubReport {
            run: 3,
            finished: false,
            position: 9,
            counts: ScrubCounts::default(),
            bytes_per_second: 5,
            seconds_left: None,
            waits: Some("a member is away".into()),
        };
        let revert = RevertReport {
            to: SnapshotId::from_bytes([4; 16]),
            position: 9,
            changed: 8,
            bytes_per_second: 7,
            waits: None,
        };
        let resealing =
            ResealReport { position: 9, changed: 8, bytes_per_second: 7, seconds_left: Some(6), waits: None };
        let volume = VolumeReport {
            members: vec![member],
            scrub: Some(scrub),
            revert: Some(revert),
            import: None,
            resealing: Some(resealing),
            counters: CountersReport { blocks_stale: 1, ..CountersReport::default() },
        };
        let report = EngineReport { state: "degraded: x".into(), serving: true, connections: 2, volume };
        let listener = UnixListener::bind(&path).unwrap();
        let answers = [serde_json::to_vec(&report).unwrap(), b"{".to_vec()];
        let server = tokio::spawn(async move {
            for answer in answers {
                listener.accept().await.unwrap().0.write_all(&answer).await.unwrap();
            }
        });
        assert_eq!(ask(&path).await, Some(report));
        assert_eq!(ask(&path).await, None);
        server.await.unwrap();
    }
}
