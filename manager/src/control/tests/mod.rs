//! Changes of members against a real store and servers that only keep the list of their copies. What
//! an engine would do is written into the record by hand.

mod clones;
mod healing;
mod imports;
mod members;
mod scrubs;
mod server;

use super::pools::{PoolAnswer, ask_all};
use super::{Control, Refusal};
use crate::records::{
    self, AttachmentRecord, ClusterRecord, DeletionRecord, ReplacementRecord, ReplicaRecord, VolumeNameRecord,
};
use crate::store::{RecordStore, RocksStore};
use crate::supervisor::Supervisor;
use server::Server;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;
use trivet_api::Layout;
use trivet_model::{
    Epoch, Generation, Member, MemberState, NodeId, PoolId, Revision, Stamp, VolumeId, VolumeRecord,
    VolumeSettings,
};

const IN_SYNC: MemberState = MemberState::InSync;
const STALE: MemberState = MemberState::Stale { since: Stamp::ZERO };
const ID: VolumeId = VolumeId::from_bytes([1; 16]);

struct World {
    control: Control,
    servers: Vec<Server>,
    _temp: TempDir,
}

impl World {
    /// So many servers, and the volume `data` with members on the first of them. A member away for
    /// any time at all is replaced.
    async fn new(servers: u8, members: &[MemberState]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::create(&temp.path().join("c")).unwrap();
        let store = Arc::new(RocksStore::open(&layout.records()).unwrap());
        let program = PathBuf::from("/bin/false");
        records::write(store.as_ref(), &ClusterRecord { replace_after_seconds: 0 }, None).unwrap();
        let control = Control::new(store, layout, program, Supervisor::spawn());
        let mut world = Self { control, servers: Vec::new(), _temp: temp };
        for number in 1..=servers {
            let server = Server::spawn(pool(number)).await;
            let replica = ReplicaRecord {
                number: number.into(),
                node: NodeId("here".into()),
                address: server.address.clone(),
                capacity_bytes: None,
                pool: Some(pool(number)),
            };
            records::write(world.store(), &replica, None).unwrap();
            world.servers.push(server);
        }
        let members_wanted = members.len();
        let members = members.iter().zip(&world.servers).map(|(&state, server)| {
            server.put(ID, Stamp::ZERO);
            Member { replica: server.pool, address: server.address.clone(), state }
        });
        let record = VolumeRecord {
            id: ID,
            name: "data".into(),
            blocks: 1024,
            generation: Generation::ZERO,
            owner: String::new(),
            epoch: Epoch(0),
            wait_owed: false,
            members: members.collect(),
            snapshots: Vec::new(),
            lineage: Vec::new(),
            sharing: trivet_model::Sharing::Nothing,
            is_image: false,
            settings: VolumeSettings::default(),
            copies: u32::try_from(members_wanted).unwrap(),
            key: None,
            next_key: None,
            older_keys: Vec::new(),
            reverting: None,
            import: None,
        };
        let index = VolumeNameRecord { name: "data".into(), volume: ID };
        let store = world.store();
        store.commit(&[records::put(&record, None), records::put(&index, None)]).unwrap();
        world
    }

    fn store(&self) -> &dyn RecordStore {
        self.control.store.as_ref()
    }

    fn record(&self) -> (VolumeRecord, Revision) {
        records::read::<VolumeRecord>(self.store(), &ID.to_string()).unwrap().unwrap()
    }

    /// Numbers of the members' servers, and whether they are in sync.
    fn members(&self) -> Vec<(u8, bool)> {
        let number = |member: &Member| member.replica.as_bytes()[0];
        self.record().0.members.iter().map(|m| (number(m), m.state == IN_SYNC)).collect()
    }

    fn deletion(&self) -> Vec<PoolId> {
        let found = records::read::<DeletionRecord>(self.store(), &ID.to_string()).unwrap();
        found.map(|(deletion, _)| deletion.pools).unwrap_or_default()
    }

    fn replacement(&self) -> Option<ReplacementRecord> {
        records::read(self.store(), &ID.to_string()).unwrap().map(|(replacement, _)| replacement)
    }

    /// As an engine does.
    fn set(&self, number: u8, state: MemberState) {
        let (mut record, revision) = self.record();
        record.members.iter_mut().find(|member| member.replica == pool(number)).unwrap().state = state;
        record.epoch = Epoch(record.epoch.0 + 1);
        records::write(self.store(), &record, Some(revision)).unwrap();
    }

    fn attach(&self) {
        let attachment = AttachmentRecord { volume: ID, listen: None, read_only: false };
        records::write(self.store(), &attachment, None).unwrap();
    }

    async fn answers(&self) -> Vec<PoolAnswer> {
        ask_all(self.store()).await.unwrap()
    }

    /// What a round of the owner does, with fresh answers.
    async fn round(&mut self) {
        let answers = self.answers().await;
        self.control.carry_out_deletions(&answers).await.unwrap();
        self.control.heal(&answers).await.unwrap();
    }
}

fn pool(number: u8) -> PoolId {
    PoolId::from_bytes([number; 16])
}

fn words<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
    result.unwrap_err().to_string()
}
