//! The manager as its clients see it: over a unix socket in a folder of its own. No replica server
//! runs here: what needs one is tested end to end, with the real ones.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests may")]

use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use trivet_api::{Client, FailureKind, Layout, ManagerAddress, ManagerAuthority, v1};
use trivet_manager::records::{self, VolumeNameRecord};
use trivet_manager::store::{RecordStore, RocksStore};
use trivet_manager::{ManagerOptions, ServerError, server};
use trivet_model::{
    Authority, AuthorityError, Epoch, Generation, Member, MemberState, PoolId, VolumeId, VolumeRecord,
    VolumeSettings,
};

struct Manager {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServerError>>,
    address: ManagerAddress,
}

fn options(temp: &TempDir) -> ManagerOptions {
    let layout = Layout::create(&temp.path().join("c")).unwrap();
    // No replica server comes up: what the manager starts ends at once.
    ManagerOptions { layout, program: PathBuf::from("/bin/false"), listen: None, replace_after: None }
}

async fn start(temp: &TempDir) -> Manager {
    let options = options(temp);
    let address = ManagerAddress::Socket(options.layout.manager_socket().unwrap());
    let (stop, stopped) = oneshot::channel();
    let (ready, is_ready) = oneshot::channel();
    let task = tokio::spawn(server::run(options, async { stopped.await.unwrap_or(()) }, move || {
        ready.send(()).unwrap()
    }));
    is_ready.await.unwrap();
    Manager { stop, task, address }
}

impl Manager {
    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn volume(name: &str) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId::from_bytes([name.len() as u8; 16]),
        name: name.to_owned(),
        blocks: 1024,
        generation: Generation::ZERO,
        owner: String::new(),
        epoch: Epoch(0),
        wait_owed: false,
        members: vec![Member {
            replica: PoolId::from_bytes([9; 16]),
            address: "127.0.0.1:1".to_owned(),
            state: MemberState::InSync,
        }],
        snapshots: Vec::new(),
        lineage: Vec::new(),
        sharing: trivet_model::Sharing::Nothing,
        is_image: false,
        settings: VolumeSettings::default(),
        copies: 0,
        key: None,
        next_key: None,
        older_keys: Vec::new(),
        reverting: None,
        import: None,
    }
}

fn put_volume(temp: &TempDir, record: &VolumeRecord) {
    let store = RocksStore::open(&options(temp).layout.records()).unwrap();
    let index = VolumeNameRecord { name: record.name.clone(), volume: record.id };
    store.commit(&[records::put(record, None), records::put(&index, None)]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_swap_by_revision_and_one_of_them_wins() {
    let temp = tempfile::tempdir().unwrap();
    let record = volume("disk0");
    put_volume(&temp, &record);
    let manager = start(&temp).await;
    let address = manager.address.clone();
    tokio::task::spawn_blocking(move || {
        let authority = Arc::new(ManagerAuthority::new(&address).unwrap());
        let (read, first) = authority.read_by_name("disk0").unwrap();
        assert_eq!(read, record);
        assert_eq!(authority.read(record.id).unwrap(), (record.clone(), first));

        let rivals: Vec<_> = (0..4)
            .map(|n| {
                let authority = authority.clone();
                let mine = VolumeRecord { owner: format!("engine {n}"), ..record.clone() };
                std::thread::spawn(move || (authority.swap(first, &mine), mine))
            })
            .collect();
        let results: Vec<_> = rivals.into_iter().map(|rival| rival.join().unwrap()).collect();
        let won: Vec<_> = results.iter().filter(|(result, _)| result.is_ok()).collect();
        assert_eq!(won.len(), 1);
        let (present, second) = authority.read(record.id).unwrap();
        assert_eq!((Ok(second), present), won[0].clone());
        let lost = results.iter().find_map(|(result, _)| result.clone().err()).unwrap();
        assert_eq!(lost, AuthorityError::Conflict { volume: record.id, actual: second });

        let unknown = VolumeId::from_bytes([0xff; 16]);
        assert_eq!(authority.read(unknown), Err(AuthorityError::NotFound(unknown)));
        let smaller = VolumeRecord { blocks: 1023, ..record.clone() };
        assert!(matches!(authority.swap(second, &smaller), Err(AuthorityError::Unreachable(_))));
        assert_eq!(authority.read(record.id).unwrap().1, second, "nothing has changed");
    })
    .await
    .unwrap();
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_survives_its_manager() {
    let temp = tempfile::tempdir().unwrap();
    let record = volume("disk0");
    put_volume(&temp, &record);
    let manager = start(&temp).await;
    let address = manager.address.clone();
    let (authority, revision) = tokio::task::spawn_blocking(move || {
        let authority = ManagerAuthority::new(&address).unwrap();
        let (_, revision) = authority.read_by_name("disk0").unwrap();
        (authority, revision)
    })
    .await
    .unwrap();
    manager.stop().await;
    let id = record.id;
    let (authority, gone) = tokio::task::spawn_blocking(move || {
        let gone = authority.read(id);
        (authority, gone)
    })
    .await
    .unwrap();
    assert!(matches!(gone, Err(AuthorityError::Unreachable(_))), "{gone:?}");
    let manager = start(&temp).await;
    let again = tokio::task::spawn_blocking(move || authority.read(id)).await.unwrap();
    assert_eq!(again, Ok((record, revision)), "records and revisions survive");
    manager.stop().await;
}

#[tokio::test]
async fn refusals_have_kinds_and_name_what_they_refuse() {
    let temp = tempfile::tempdir().unwrap();
    let open = VolumeRecord { owner: "someone else".into(), ..volume("used") };
    put_volume(&temp, &open);
    let manager = start(&temp).await;
    let client = Client::new(&manager.address).unwrap();

    let missing = client.get_volume(v1::GetVolumeRequest { name: "disk7".into() }).await.unwrap_err();
    assert_eq!(missing.kind(), Some(FailureKind::NotFound));
    assert_eq!(missing.to_string(), "there is no volume 'disk7'");

    for (name, blocks, kind, words) in [
        ("Disk", 1, FailureKind::Invalid, "is no volume name"),
        ("disk1", 0, FailureKind::Invalid, "from 4 KiB to 64 TiB"),
        ("disk1", (64 << 28) + 1, FailureKind::Invalid, "from 4 KiB to 64 TiB"),
        ("used", 1, FailureKind::Exists, "there is a volume 'used' already"),
        ("disk1", 1, FailureKind::Replica, "0 of 0 answer"),
    ] {
        let request = v1::CreateVolumeRequest { name: name.into(), blocks, copies: 1, ..Default::default() };
        let error = client.create_volume(request).await.unwrap_err();
        assert_eq!(error.kind(), Some(kind), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }

    let delete = v1::DeleteVolumeRequest { name: "used".into(), dry_run: false, force: false };
    let error = client.delete_volume(delete.clone()).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::InUse));
    assert!(error.to_string().contains("someone else"), "{error}");
    let shrink = v1::ResizeVolumeRequest { name: "used".into(), blocks: 1 };
    let error = client.resize_volume(shrink).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "volume 'used' has 4 MiB, and a volume cannot go to 4 KiB: it grows only, up to 64 TiB"
    );

    let dry = v1::DeleteVolumeRequest { dry_run: true, force: true, ..delete.clone() };
    client.delete_volume(dry).await.unwrap();
    client.get_volume(v1::GetVolumeRequest { name: "used".into() }).await.expect("a dry run deletes nothing");
    let forced = v1::DeleteVolumeRequest { force: true, ..delete };
    client.delete_volume(forced).await.unwrap();
    let gone = client.get_volume(v1::GetVolumeRequest { name: "used".into() }).await.unwrap_err();
    assert_eq!(gone.kind(), Some(FailureKind::NotFound));
    manager.stop().await;
}

#[tokio::test]
async fn replica_servers_are_made_once_and_their_failures_are_shown() {
    let temp = tempfile::tempdir().unwrap();
    let manager = start(&temp).await;
    let client = Client::new(&manager.address).unwrap();
    let two = v1::EnsureReplicasRequest { count: 2, capacity_bytes: 0 };
    assert_eq!(client.ensure_replicas(two).await.unwrap().created, 2);
    assert_eq!(client.ensure_replicas(two).await.unwrap().created, 0);
    let error = client.ensure_replicas(v1::EnsureReplicasRequest { count: 3, ..two }).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::InUse));

    let status = loop {
        let status = client.get_status(v1::GetStatusRequest {}).await.unwrap();
        if status.replicas.iter().all(|r| r.process.as_ref().unwrap().restarts > 0) {
            break status;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(status.replicas.len(), 2);
    for replica in &status.replicas {
        assert_eq!(replica.process.as_ref().unwrap().last_failure, "it ended with exit code 1");
    }
    manager.stop().await;
}

#[tokio::test]
async fn one_folder_has_one_manager_and_its_socket_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let temp = tempfile::tempdir().unwrap();
    let manager = start(&temp).await;
    let ManagerAddress::Socket(socket) = &manager.address else { unreachable!() };
    assert_eq!(std::fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
    let second = server::run(options(&temp), std::future::pending(), || ()).await;
    assert!(matches!(second, Err(ServerError::Lock(_))), "{second:?}");
    let socket = socket.clone();
    manager.stop().await;
    assert!(!socket.exists());
    let open = ManagerOptions { listen: Some("0.0.0.0:0".parse().unwrap()), ..options(&temp) };
    let refused = server::run(open, std::future::pending(), || ()).await;
    assert!(matches!(refused, Err(ServerError::NotLoopback(_))), "{refused:?}");
}

#[tokio::test]
async fn tcp_on_the_loopback_interface_serves_too() {
    let temp = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = ManagerOptions { listen: Some(free), ..options(&temp) };
    let (ready, is_ready) = oneshot::channel();
    let task = tokio::spawn(server::run(options, std::future::pending(), move || ready.send(()).unwrap()));
    is_ready.await.unwrap();
    let client = Client::new(&ManagerAddress::Tcp(free.to_string())).unwrap();
    assert_eq!(client.get_status(v1::GetStatusRequest {}).await.unwrap().replicas.len(), 0);
    task.abort();
}
