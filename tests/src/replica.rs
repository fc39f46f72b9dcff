//! Looking at a stopped cluster's members one by one: each replica's server is started alone and
//! read over the data protocol, without promising anything.

mod client;

pub use client::ReplicaClient;

use crate::cluster::{Cluster, trivet};
use crate::{command, patience, process};
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Stdio};
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{BlockRange, VolumeId};

/// A replica server outside any cluster; killed on drop.
#[derive(Debug)]
pub struct ReplicaServer {
    child: Child,
    address: SocketAddr,
}

/// An address on loopback that nobody listens on.
///
/// # Panics
/// When there is no port left.
#[must_use]
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("a listener has an address")
}

impl ReplicaServer {
    /// Starts `trivet replica` on a pool and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(pool: &Path) -> Self {
        let address = free_address();
        let log = pool.with_extension("alone.log");
        let log_file = File::create(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let mut server = trivet();
        server.arg("replica").arg("--dir").arg(pool).arg("--listen").arg(address.to_string());
        server.stdin(Stdio::null()).stdout(log_file.try_clone().expect("a file handle")).stderr(log_file);
        let child = server.spawn().expect("the binary can be started");
        let mut started = Self { child, address };
        patience::wait_for("the replica server to answer", patience::SOON, || {
            let ended = started.child.try_wait().expect("a child can be waited for");
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "the replica server of {} has ended: {}", pool.display(), said());
            ReplicaClient::connect(address).ok()
        });
        started
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new connection.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn connect(&self) -> ReplicaClient {
        ReplicaClient::connect(self.address).unwrap_or_else(|e| panic!("{}: {e}", self.address))
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// When that cannot be found out.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }
}

impl Drop for ReplicaServer {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Checks that all members of a stopped cluster hold the same volumes, the same data in every
/// block, and the same holes.
///
/// # Panics
/// When they differ, with the first place where they do.
pub fn assert_members_identical(cluster: &Cluster) {
    assert!(cluster.processes().is_empty(), "members are compared at rest");
    let servers: Vec<ReplicaServer> = cluster.pools().iter().map(|pool| ReplicaServer::start(pool)).collect();
    let mut clients: Vec<ReplicaClient> = servers.iter().map(ReplicaServer::connect).collect();
    let volumes: Vec<Vec<(VolumeId, u64)>> = clients.iter_mut().map(volumes_of).collect();
    assert!(!volumes[0].is_empty(), "a cluster without volumes proves nothing");
    for others in &volumes[1..] {
        assert_eq!(others, &volumes[0], "the members keep different volumes");
    }
    drop(clients);
    for &(volume, blocks) in &volumes[0] {
        // One volume a connection.
        let mut clients: Vec<ReplicaClient> = servers.iter().map(ReplicaServer::connect).collect();
        for client in &mut clients {
            client.open_to_look(volume).unwrap_or_else(|e| panic!("volume {volume}: {e}"));
        }
        compare(&mut clients, volume, blocks);
    }
}

fn volumes_of(client: &mut ReplicaClient) -> Vec<(VolumeId, u64)> {
    let report = client.report().unwrap_or_else(|e| panic!("a server should report its pool: {e}"));
    assert_eq!(report.failed, "", "the pool has stopped");
    let mut volumes: Vec<_> = report.volumes.iter().map(|volume| (volume.volume, volume.blocks)).collect();
    volumes.sort();
    volumes
}

fn compare(clients: &mut [ReplicaClient], volume: VolumeId, blocks: u64) {
    let mut start = 0;
    while start < blocks {
        let count = u32::try_from(blocks - start).map_or(IO_BLOCKS_MAX, |rest| rest.min(IO_BLOCKS_MAX));
        let range = BlockRange::new(start, count);
        let mut members = clients.iter_mut().enumerate().map(|(number, client)| {
            client.read(range).unwrap_or_else(|e| panic!("member {} cannot read {range}: {e}", number + 1))
        });
        let first = members.next().expect("a volume has members");
        for (number, other) in members.enumerate() {
            let differing = range.blocks().zip(first.iter().zip(&other)).find(|(_, (a, b))| a != b);
            if let Some((block, (a, b))) = differing {
                let show =
                    |block: &Option<Vec<u8>>| block.as_ref().map(|bytes| format!("{:02x?}", &bytes[..48]));
                panic!(
                    "volume {volume} block {block}: member 1 has {:?}, member {} has {:?}",
                    show(a),
                    number + 2,
                    show(b)
                );
            }
        }
        start += u64::from(count);
    }
}

/// Checks every pool of a stopped cluster with `trivet check`.
///
/// # Panics
/// When it finds anything.
pub fn assert_pools_sound(cluster: &Cluster) {
    assert!(
        process::of_cluster(&crate::cluster::binary(), cluster.directory()).is_empty(),
        "pools are checked at rest"
    );
    for pool in cluster.pools() {
        let _sound = command::run(trivet().arg("check").arg(pool), patience::LONG).succeeded();
    }
}
