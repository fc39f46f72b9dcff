//! An engine that is stopped (SIGSTOP) while another takes its volume, and goes on: it neither
//! acknowledges nor serves a read, and nothing that it still has under way lands.
//!
//! Named after the rows of the failure table (docs/failure-model.md). The first engine is `trivet engine`
//! without a supervisor, which would start it again and have it take the volume back; the second is the
//! embedded library, which opens past the manager's protection as a real takeover would.
//! `TRIVET_TEST_ROUNDS=200` is what the project promises; fewer are run by default.

use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use trivet_api::{Layout, ManagerAddress, ManagerAuthority};
use trivet_engine::{Engine, EngineOptions, OpenOptions};
use trivet_tests::checker::Region;
use trivet_tests::cluster::trivet;
use trivet_tests::loaded::rounds;
use trivet_tests::nbd::{NbdClient, Request};
use trivet_tests::process::{self, Process};
use trivet_tests::{Checker, Cluster, Random, Role, patience, replica};

const MIB: u64 = 1 << 20;
/// `Exit::Conflict`: another has the volume.
const CONFLICT: i32 = 4;
const BLOCK: u64 = 4096;
/// Blocks apart from the load's, which the two engines' clients write one after the other.
const CONTESTED: u64 = 32;

/// A cluster whose volume is attached nowhere.
struct Site {
    cluster: Cluster,
    layout: Layout,
    authority: Arc<ManagerAuthority>,
    random: Random,
    region: Option<Region>,
}

impl Site {
    fn new() -> Self {
        let seed = Random::seed_from_environment();
        eprintln!("TRIVET_TEST_SEED={seed}");
        let cluster = Cluster::start(3, "256MiB");
        let _detached = cluster.trivet(&["volume", "detach", "disk0"]).succeeded();
        let layout = Layout::open(cluster.directory()).expect("the cluster's folder");
        let manager = ManagerAddress::Socket(layout.manager_socket().expect("a path"));
        let authority = Arc::new(ManagerAuthority::new(&manager).expect("a client"));
        let region = Some(Region::new(64 * MIB, 4096, 2048, seed));
        Self { cluster, layout, authority, random: Random::new(seed), region }
    }

    fn first_engine(&self) -> First {
        let mut engine = trivet();
        engine.args(["engine", "--volume", "disk0", "--dir"]).arg(self.cluster.directory());
        engine.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = engine.spawn().expect("the binary can be started");
        let mut first = First { child, uri: self.uri(&self.layout.volume_socket("disk0").expect("a path")) };
        first.connect();
        first
    }

    fn uri(&self, socket: &std::path::Path) -> String {
        format!("nbd+unix:///disk0?socket={}", socket.display())
    }

    fn second_engine(&self) -> Second {
        let socket: PathBuf = self.cluster.scratch().join("second");
        let (record, _) = self.authority.read_by_name("disk0").expect("the manager answers");
        let engine = Engine::start(EngineOptions {
            volume: OpenOptions {
                authority: self.authority.clone(),
                volume: record.id,
                owner: "the second engine".to_owned(),
                read_only: false,
                snapshot: None,
                key: None,
                patience: None,
                spin: Duration::ZERO,
            },
            export_name: None,
            nbd_socket: Some(socket.clone()),
            nbd_address: None,
            control_socket: None,
            status_socket: None,
            stop_patience: patience::SOON,
        })
        .expect("an engine can be started");
        engine.wait_open(Some(patience::SOON)).expect("the volume opens for the second engine");
        let client = NbdClient::connect(&self.uri(&socket)).expect("the second engine listens");
        Second { engine, client }
    }

    /// The first engine's process.
    fn process(&self) -> Vec<Process> {
        self.cluster.processes_of(Role::Engine)
    }
}

struct First {
    child: Child,
    uri: String,
}

impl First {
    fn connect(&mut self) -> NbdClient {
        patience::wait_for("the first engine to serve", patience::SOON, || {
            let ended = self.child.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "the first engine has ended: {ended:?}");
            NbdClient::connect(&self.uri).ok()
        })
    }

    fn wait(mut self) -> ExitStatus {
        patience::wait_for("the fenced engine to end", patience::SOON, || {
            self.child.try_wait().expect("a child can be waited for")
        })
    }
}

struct Second {
    engine: Engine,
    client: NbdClient,
}

impl Second {
    fn close(self) {
        let Self { engine, client } = self;
        drop(client);
        engine.stop_handle().stop();
        engine.wait().expect("nobody took the volume from the second engine");
    }
}

fn block(number: u64, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    Random::new(number << 32 | version).fill(&mut bytes);
    bytes
}

fn write(number: u64, version: u64) -> Request {
    Request::Write { offset: number * BLOCK, data: block(number, version), force_unit_access: false }
}

fn submit(client: &mut NbdClient, requests: impl Iterator<Item = Request>) {
    for request in requests {
        client.submit(&request).expect("the engine's socket takes it");
    }
}

/// What an engine that was fenced answers to what it was asked after that: errors, and then the end.
fn answers_nothing(mut client: NbdClient, what: &str) {
    loop {
        match client.next_reply(patience::SOON) {
            Ok(reply) => assert!(
                reply.error != 0,
                "a fenced engine answered request {} ({what}) with success and {} bytes",
                reply.handle,
                reply.data.len()
            ),
            Err(error) => {
                assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "the engine neither answers nor ends");
                return;
            }
        }
    }
}

#[test]
fn f20_an_engine_that_wakes_after_a_takeover_neither_acknowledges_nor_serves_a_read() {
    let mut site = Site::new();
    for round in 0..rounds(5) {
        let mut first = site.first_engine();
        let (mut writer, mut reader) = (first.connect(), first.connect());
        let region = site.region.take().expect("it is back after each round");
        let load = Checker::start_until_fenced(&first.uri, region, site.random.next_u64());
        load.wait_for_progress(20 + site.random.below(300), patience::SOON);
        for number in 0..CONTESTED {
            writer.call(&write(number, 2 * round)).expect("the first engine has the volume");
        }
        process::pause(&site.process(), true);

        let mut second = site.second_engine();
        for number in 0..CONTESTED / 2 {
            second.client.call(&write(number, 2 * round + 1)).expect("the second engine has the volume");
        }
        // What the first finds when it wakes was asked after the second had served.
        let half = CONTESTED / 2;
        submit(&mut reader, (0..CONTESTED).map(|n| Request::Read { offset: n * BLOCK, length: 4096 }));
        submit(&mut writer, (half..CONTESTED).map(|n| write(n, u64::from(u32::MAX))));
        submit(&mut writer, std::iter::once(Request::Flush));
        process::pause(&site.process(), false);
        answers_nothing(reader, "a read");
        answers_nothing(writer, "a write or flush");
        let status = first.wait();
        assert_eq!(status.code(), Some(CONFLICT), "round {round}: a fenced engine says so: {status}");

        let mut region = load.stop();
        region.verify(&mut second.client).expect("the second engine serves");
        site.region = Some(region);
        for number in 0..CONTESTED {
            let version = if number < half { 2 * round + 1 } else { 2 * round };
            let found = second.client.read(number * BLOCK, 4096).expect("the second engine serves");
            assert!(found == block(number, version), "round {round}: block {number} is not as it was left");
        }
        second.close();
    }
    site.cluster.down();
    replica::assert_members_identical(&site.cluster);
}

#[test]
fn f19_writes_that_a_paused_engine_and_a_paused_replica_still_hold_do_not_land() {
    let mut site = Site::new();
    for round in 0..rounds(2) {
        let mut first = site.first_engine();
        let mut writer = first.connect();
        let replicas = site.cluster.processes_of(Role::Replica);
        let paused = vec![site.random.choose(&replicas).clone()];
        // These wait in the paused replica's socket, and in the engine for its answer.
        process::pause(&paused, true);
        submit(&mut writer, (0..CONTESTED).map(|number| write(number, 2 * round)));
        patience::wait_for("the other members to have a write", patience::SOON, || {
            let mut looker = replica_that_runs(&replicas, &paused);
            let volume = site.authority.read_by_name("disk0").expect("the manager answers").0.id;
            looker.open_to_look(volume).expect("a volume can be looked at");
            let held = looker.read(trivet_model::BlockRange::new(0, 1)).expect("a read").remove(0);
            (held == Some(block(0, 2 * round))).then_some(())
        });
        process::pause(&site.process(), true);

        let mut second = site.second_engine();
        for number in 0..CONTESTED {
            second.client.call(&write(number, 2 * round + 1)).expect("the second engine has the volume");
        }
        process::pause(&paused, false);
        process::pause(&site.process(), false);
        let status = first.wait();
        assert_eq!(status.code(), Some(CONFLICT), "round {round}: a fenced engine says so: {status}");
        site.cluster.wait_until_in_sync();
        for number in 0..CONTESTED {
            let found = second.client.read(number * BLOCK, 4096).expect("the second engine serves");
            assert!(found == block(number, 2 * round + 1), "round {round}: block {number} was written over");
        }
        second.close();
    }
    site.cluster.down();
    replica::assert_members_identical(&site.cluster);
}

/// A connection to a server that is not paused.
fn replica_that_runs(replicas: &[Process], paused: &[Process]) -> replica::ReplicaClient {
    let running = replicas.iter().find(|process| !paused.contains(process)).expect("two run");
    let listen = running.arguments.iter().position(|argument| argument == "--listen").expect("it listens");
    let address = running.arguments[listen + 1].to_string_lossy().parse().expect("an address");
    replica::ReplicaClient::connect(address).expect("a replica server answers")
}
