//! What the manager asks of a replica server, answered from a list of copies.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use trivet_model::{BootId, Generation, PoolId, SnapshotId, Stamp, VolumeId};
use trivet_wire::{
    Decoder, ErrorCode, Frame, HelloReply, Message, OpenReply, PROTOCOL_VERSION, PoolReport, Progress,
    PullReport, PullState, SnapshotEntry, VolumeReport, encode,
};

/// Blocks of every pool, and of every copy.
pub(super) const POOL_BLOCKS: u64 = 100;
pub(super) const COPY_BLOCKS: u64 = 60;

#[derive(Default)]
struct Pool {
    snapshots: Vec<SnapshotEntry>,
    /// And the highest stamp of each.
    copies: BTreeMap<VolumeId, Stamp>,
    /// What is committed, if that is not all that is there.
    committed: Option<Stamp>,
    on_create: Option<Box<dyn FnOnce() + Send>>,
    others_used: u64,
    away: bool,
    busy: bool,
}

pub(super) struct Server {
    pub(super) pool: PoolId,
    pub(super) address: String,
    state: Arc<Mutex<Pool>>,
    task: JoinHandle<()>,
}

impl Server {
    pub(super) async fn spawn(pool: PoolId) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(Pool::default()));
        let task = tokio::spawn({
            let state = state.clone();
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(serve(stream, pool, state.clone()));
                }
            }
        });
        Self { pool, address, state, task }
    }

    pub(super) fn put(&self, volume: VolumeId, last: Stamp) {
        self.state.lock().unwrap().copies.insert(volume, last);
    }

    pub(super) fn copies(&self) -> usize {
        self.state.lock().unwrap().copies.len()
    }

    pub(super) fn snapshots(&self) -> Vec<SnapshotId> {
        self.state.lock().unwrap().snapshots.iter().map(|kept| kept.id).collect()
    }

    /// It knows only this to be on all members.
    pub(super) fn unsettled(&self, committed: Stamp) {
        self.state.lock().unwrap().committed = Some(committed);
    }

    /// What happens when the next copy is made.
    pub(super) fn on_create(&self, happens: impl FnOnce() + Send + 'static) {
        self.state.lock().unwrap().on_create = Some(Box::new(happens));
    }

    pub(super) fn keep(&self, snapshot: SnapshotEntry) {
        self.state.lock().unwrap().snapshots.push(snapshot);
    }

    pub(super) fn holds(&self, volume: VolumeId) -> bool {
        self.state.lock().unwrap().copies.contains_key(&volume)
    }

    /// Hangs up on whoever connects, or no longer.
    pub(super) fn away(&self, away: bool) {
        self.state.lock().unwrap().away = away;
    }

    /// Refuses to delete, as where an engine has the copy open.
    pub(super) fn busy(&self, busy: bool) {
        self.state.lock().unwrap().busy = busy;
    }

    pub(super) fn fill(&self) {
        self.state.lock().unwrap().others_used = POOL_BLOCKS;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, pool: PoolId, state: Arc<Mutex<Pool>>) {
    let mut decoder = Decoder::new();
    loop {
        while let Some(frame) = decoder.next().unwrap() {
            if state.lock().unwrap().away {
                return;
            }
            let message = answer(&frame.message, pool, &mut state.lock().unwrap());
            let mut out = Vec::new();
            encode(&Frame { message, ..frame }, &mut out);
            for segment in out {
                stream.write_all(&segment).await.unwrap();
            }
        }
        let mut buffer = decoder.buffer();
        let read = stream.read_buf(&mut buffer).await;
        decoder.filled(buffer);
        if !matches!(read, Ok(1..)) {
            return;
        }
    }
}

fn answer(message: &Message, pool: PoolId, state: &mut Pool) -> Message {
    match message {
        Message::Hello(_) => Message::HelloReply(HelloReply { version: PROTOCOL_VERSION, pool }),
        Message::CreateVolume { volume, .. } => {
            assert!(state.copies.insert(*volume, Stamp::ZERO).is_none(), "made over an old copy");
            state.on_create.take().into_iter().for_each(|happens| happens());
            Message::Done
        }
        Message::DeleteVolume { .. } if state.busy => {
            Message::Error { code: ErrorCode::Busy, detail: "it is open for writing".into() }
        }
        Message::DeleteVolume { volume } => {
            state.copies.remove(volume);
            Message::Done
        }
        Message::ResizeVolume { .. } => Message::Done,
        Message::CreateSnapshot { id, cut } => {
            state.snapshots.push(SnapshotEntry { id: *id, cut: *cut });
            Message::Done
        }
        Message::DeleteSnapshot { id } => {
            state.snapshots.retain(|kept| kept.id != *id);
            Message::Done
        }
        Message::Close { .. } => Message::Done,
        Message::Flatten { .. } => Message::PullReport(PullReport {
            state: PullState::Finished,
            position: 1024,
            copied_blocks: 0,
            diverged: Vec::new(),
            detail: String::new(),
        }),
        Message::Open { volume, .. } => Message::OpenReply(OpenReply {
            blocks: 1024,
            last: state.copies.get(volume).copied().unwrap_or_default(),
            intact: Stamp::MAX,
            progress: {
                let committed = state.committed.or(state.copies.get(volume).copied()).unwrap_or_default();
                Progress { committed, stable: committed }
            },
            boot: BootId::from_bytes([1; 16]),
            snapshots: state.snapshots.clone(),
        }),
        Message::PoolStatus => {
            let copy = |(&volume, &last): (&VolumeId, &Stamp)| VolumeReport {
                volume,
                blocks: 1024,
                blocks_used: COPY_BLOCKS,
                generation: Generation::ZERO,
                last,
                tied: false,
            };
            Message::PoolReport(PoolReport {
                pool,
                blocks_total: POOL_BLOCKS,
                blocks_used: state.others_used,
                blocks_kept: 0,
                checksum_errors: 0,
                failed: String::new(),
                volumes: state.copies.iter().map(copy).collect(),
            })
        }
        other => unreachable!("the manager asks for {other:?}"),
    }
}
