//! Real replica servers on threads of this process, and a volume on them.
#![allow(clippy::unwrap_used, dead_code, reason = "it is test code: each test uses a part")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use trivet_crypto::DataKey;
use trivet_engine::admin::Admin;
use trivet_engine::{MemoryAuthority, OpenOptions, Volume};
use trivet_model::{
    Authority, Epoch, Generation, Member, MemberState, PoolId, Reverting, SnapshotId, VolumeId, VolumeRecord,
    VolumeSettings,
};
use trivet_replica::pool::PoolOptions;
use trivet_replica::server::{ServerError, ServerOptions, StopHandle, run};

pub(crate) const VOLUME: VolumeId = VolumeId::from_bytes([7; 16]);
const BLOCKS: u64 = 1024;
const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    directory: PathBuf,
    address: SocketAddr,
    pool: PoolId,
    stop: StopHandle,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

/// Servers with one volume, and the authority that keeps its record.
pub(crate) struct Servers {
    scratch: tempfile::TempDir,
    servers: Vec<Server>,
    authority: Arc<MemoryAuthority>,
    key: Option<DataKey>,
}

impl Servers {
    pub(crate) fn start(count: usize) -> Self {
        Self::start_with(count, None)
    }

    /// With a volume that is encrypted under a key, if there is one.
    pub(crate) fn start_with(count: usize, key: Option<DataKey>) -> Self {
        let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let servers: Vec<Server> =
            (0..count).map(|i| Server::start(scratch.path().join(i.to_string()), any)).collect();
        let authority = Arc::new(MemoryAuthority::new());
        let members = servers.iter().map(|server| Member {
            replica: server.pool,
            address: server.address.to_string(),
            state: MemberState::InSync,
        });
        authority.insert(VolumeRecord {
            id: VOLUME,
            name: "test".to_owned(),
            blocks: BLOCKS,
            generation: Generation::ZERO,
            owner: String::new(),
            epoch: Epoch(1),
            wait_owed: false,
            members: members.collect(),
            snapshots: Vec::new(),
            lineage: Vec::new(),
            sharing: trivet_model::Sharing::Nothing,
            is_image: false,
            settings: VolumeSettings::default(),
            copies: 0,
            key: key.as_ref().map(DataKey::id),
            next_key: None,
            older_keys: Vec::new(),
            reverting: None,
            import: None,
        });
        for server in &servers {
            Admin::connect(&server.address.to_string())
                .unwrap()
                .create_volume(VOLUME, BLOCKS, key.is_some())
                .unwrap();
        }
        Self { scratch, servers, authority, key }
    }

    pub(crate) fn options(&self, read_only: bool) -> OpenOptions {
        OpenOptions {
            authority: Arc::clone(&self.authority) as Arc<dyn Authority>,
            volume: VOLUME,
            owner: "a test".to_owned(),
            read_only,
            snapshot: None,
            key: self.key.clone(),
            patience: Some(PATIENCE),
            spin: Duration::ZERO,
        }
    }

    pub(crate) fn open(&self) -> Volume {
        Volume::open(self.options(false)).unwrap()
    }

    pub(crate) fn open_read_only(&self) -> Volume {
        Volume::open(self.options(true)).unwrap()
    }

    pub(crate) fn record(&self) -> VolumeRecord {
        self.authority.read(VOLUME).unwrap().0
    }

    /// As somebody else would.
    pub(crate) fn set(&self, settings: VolumeSettings) {
        self.authority.insert(VolumeRecord { settings, ..self.record() });
    }

    /// Somebody has it reverted by whoever opens it next.
    pub(crate) fn revert_to(&self, to: SnapshotId) {
        let reverting = Some(Reverting { to, safety: None, position: 0, changed: 0 });
        self.authority.insert(VolumeRecord { reverting, ..self.record() });
    }

    /// Somebody has it go over to another data key; whoever opens it from now on has that.
    pub(crate) fn rekey_to(&mut self, key: &DataKey) {
        self.authority.insert(VolumeRecord { next_key: Some(key.id()), ..self.record() });
        self.key = Some(key.clone());
    }

    /// What the manager does once nothing needs a key any more.
    pub(crate) fn destroy_older_keys(&self) {
        self.authority.insert(VolumeRecord { older_keys: Vec::new(), ..self.record() });
    }

    pub(crate) fn address(&self, index: usize) -> SocketAddr {
        self.servers[index].address
    }

    /// Somebody opens the volume: answers the generation.
    pub(crate) fn claim(&self) -> Generation {
        let (mut record, revision) = self.authority.read(VOLUME).unwrap();
        record.generation = record.generation.next().unwrap();
        self.authority.swap(revision, &record).unwrap();
        record.generation
    }

    pub(crate) fn pool(&self, index: usize) -> PoolId {
        self.servers[index].pool
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub(crate) fn stop(&mut self, index: usize) {
        self.servers[index].stop();
    }

    pub(crate) fn restart(&mut self, index: usize) {
        let Server { directory, address, .. } = &self.servers[index];
        self.servers[index] = Server::start(directory.clone(), *address);
    }
}

impl Server {
    fn start(directory: PathBuf, listen: SocketAddr) -> Self {
        std::fs::create_dir_all(&directory).unwrap();
        let pool = PoolOptions { map_budget_bytes: 32 << 20, capacity_bytes: Some(256 << 20) };
        let options = ServerOptions { directory: directory.clone(), listen, pool };
        let stop = StopHandle::new();
        let (ready, started) = channel();
        let handle = stop.clone();
        let thread =
            std::thread::spawn(move || run(&options, &handle, |address| ready.send(address).unwrap()));
        let Ok(address) = started.recv_timeout(PATIENCE) else {
            panic!("a replica server does not start: {:?}", thread.join());
        };
        let pool = Admin::connect(&address.to_string()).unwrap().pool();
        Self { directory, address, pool, stop, thread: Some(thread) }
    }

    fn stop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Looks again and again, without a pause that would be guessed, until `condition` holds.
#[allow(clippy::disallowed_methods, reason = "a test bounds its waits by the clock")]
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::yield_now();
    }
}
