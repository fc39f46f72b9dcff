//! Clones: where their copies lie, what their records say, and what becomes of a clone that cannot be made.

use super::*;
use trivet_api::v1;
use trivet_model::{Sharing, SnapshotId, SnapshotRecord};

fn asked(of: &str, snapshot: &str, name: &str) -> v1::CloneVolumeRequest {
    v1::CloneVolumeRequest {
        of: of.into(),
        snapshot: snapshot.into(),
        name: name.into(),
        copies: 0,
        to: Vec::new(),
        full: false,
    }
}

fn of_record(world: &World, name: &str) -> VolumeRecord {
    crate::control::volumes::find(world.store(), name).unwrap().0
}

fn stamp(generation: u32, sequence: u64) -> Stamp {
    Stamp::new(Generation::new(generation).unwrap(), sequence).unwrap()
}

/// Gives the volume a snapshot called `s`.
fn snapshotted(world: &World) -> SnapshotRecord {
    let (mut record, revision) = world.record();
    let snapshot = SnapshotRecord {
        id: SnapshotId::from_bytes([7; 16]),
        name: "s".into(),
        cut: stamp(5, 9),
        created: 0,
        labels: Default::default(),
    };
    record.snapshots.push(snapshot.clone());
    record.generation = Generation::new(8).unwrap();
    records::write(world.store(), &record, Some(revision)).unwrap();
    snapshot
}

#[tokio::test]
async fn a_clones_copies_lie_where_the_parents_are_in_sync() {
    let world = World::new(4, &[IN_SYNC, MemberState::Stale { since: Stamp::ZERO }, IN_SYNC]).await;
    let snapshot = snapshotted(&world);
    world.control.clone_volume(&asked("data", "s", "new")).await.unwrap();
    let clone = of_record(&world, "new");
    let places: Vec<u8> = clone.members.iter().map(|member| member.replica.as_bytes()[0]).collect();
    assert_eq!(places, [1, 3]);
    assert!(clone.members.iter().all(|member| member.state == IN_SYNC));
    assert_eq!((clone.generation, clone.sharing), (snapshot.cut.generation(), Sharing::Parent));
    let parent = clone.parent().unwrap();
    assert_eq!((parent.volume, parent.snapshot, parent.cut), (ID, snapshot.id, snapshot.cut));
    assert_eq!((parent.name.as_str(), parent.snapshot_name.as_str()), ("data", "s"));
    assert!(records::read::<DeletionRecord>(world.store(), &clone.id.to_string()).unwrap().is_none());
    for (asked_for, error) in [(3, true), (1, false)] {
        let request = v1::CloneVolumeRequest { copies: asked_for, ..asked("data", "s", "other") };
        assert_eq!(world.control.clone_volume(&request).await.is_err(), error, "{asked_for} copies");
    }
    assert_eq!(of_record(&world, "other").members.len(), 1);
}

#[tokio::test]
async fn a_volume_that_nobody_has_open_is_cloned_as_it_was_closed() {
    let world = World::new(3, &[IN_SYNC, IN_SYNC, IN_SYNC]).await;
    for server in &world.servers {
        server.put(ID, stamp(3, 7));
    }
    let before = world.record().0;
    world.control.clone_volume(&asked("data", "", "new")).await.unwrap();
    let (parent, clone) = (world.record().0, of_record(&world, "new"));
    assert_eq!(parent.generation, before.generation.next().unwrap(), "an older engine can do nothing more");
    assert_eq!((parent.snapshots, parent.owner), (Vec::new(), String::new()));
    let of = clone.parent().unwrap();
    assert_eq!((of.cut.generation(), of.snapshot_name.as_str()), (parent.generation, ""));
    assert!(world.servers.iter().all(|server| server.snapshots().is_empty() && server.holds(clone.id)));
}

#[tokio::test]
async fn copies_that_may_differ_are_an_engines_business_first() {
    let world = World::new(3, &[IN_SYNC, IN_SYNC, IN_SYNC]).await;
    world.servers[1].put(ID, stamp(3, 7));
    let refused = world.control.clone_volume(&asked("data", "", "new")).await;
    assert!(matches!(refused, Err(Refusal::NotClosed(_))), "{refused:?}");
    world.servers.iter().for_each(|server| server.put(ID, stamp(3, 7)));
    world.servers[0].unsettled(stamp(3, 6));
    let refused = world.control.clone_volume(&asked("data", "", "new")).await;
    assert!(matches!(refused, Err(Refusal::NotClosed(_))), "{refused:?}");
    assert_eq!(world.record().0.snapshots, []);
    let (record, revision) = world.record();
    let open = VolumeRecord { owner: "someone else".into(), ..record };
    records::write(world.store(), &open, Some(revision)).unwrap();
    let refused = world.control.clone_volume(&asked("data", "", "new")).await;
    assert!(matches!(refused, Err(Refusal::Open { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_copy_that_began_anew_meanwhile_is_not_cloned() {
    let mut world = World::new(2, &[IN_SYNC, IN_SYNC]).await;
    snapshotted(&world);
    // An engine changes the members as soon as the first copy is made.
    let store = world.control.store.clone();
    world.servers[0].on_create(move || {
        let (record, revision) =
            records::read::<VolumeRecord>(store.as_ref(), &ID.to_string()).unwrap().unwrap();
        let changed = VolumeRecord { epoch: Epoch(record.epoch.0 + 1), ..record };
        records::write(store.as_ref(), &changed, Some(revision)).unwrap();
    });
    let refused = world.control.clone_volume(&asked("data", "s", "new")).await;
    assert!(matches!(refused, Err(Refusal::Raced)), "{refused:?}");
    assert!(matches!(crate::control::volumes::find(world.store(), "new"), Err(Refusal::NoSuchVolume(_))));
    let copies = |world: &World| world.servers.iter().map(Server::copies).sum::<usize>();
    assert_eq!(copies(&world), 4);
    world.round().await;
    assert_eq!(copies(&world), 2, "what was made is deleted");
}

#[tokio::test]
async fn copies_elsewhere_are_made_by_the_engine_and_the_one_that_shares_goes() {
    let world = World::new(4, &[IN_SYNC, IN_SYNC]).await;
    snapshotted(&world);
    let to = |numbers: &[u32]| v1::CloneVolumeRequest { to: numbers.into(), ..asked("data", "s", "new") };
    for numbers in [&[1][..], &[3, 3], &[9]] {
        assert!(world.control.clone_volume(&to(numbers)).await.is_err(), "{numbers:?}");
    }
    world.control.clone_volume(&to(&[3, 4])).await.unwrap();
    let clone = of_record(&world, "new");
    let places: Vec<(u8, bool)> =
        clone.members.iter().map(|m| (m.replica.as_bytes()[0], m.state == IN_SYNC)).collect();
    assert_eq!(places, [(1, true), (3, false), (4, false)]);
    let leaving =
        records::read::<ReplacementRecord>(world.store(), &clone.id.to_string()).unwrap().unwrap().0;
    assert_eq!((leaving.from, leaving.to), (pool(1), pool(3)));
}

#[tokio::test]
async fn a_golden_image_has_a_snapshot_and_cannot_be_changed() {
    let world = World::new(2, &[IN_SYNC, IN_SYNC]).await;
    let set = |is_image| v1::SetImageRequest { name: "data".into(), is_image };
    world.control.set_image(&set(true)).await.unwrap();
    let record = world.record().0;
    assert!(record.is_image);
    assert_eq!(record.snapshots[0].name, "image");
    assert!(world.servers.iter().all(|server| server.snapshots() == [record.snapshots[0].id]));
    world.control.clone_volume(&asked("data", "", "new")).await.unwrap();
    let clone = of_record(&world, "new");
    assert_eq!((clone.is_image, clone.parent().unwrap().snapshot_name.as_str()), (false, "image"));
    let delete = v1::DeleteVolumeRequest { name: "data".into(), dry_run: false, force: false };
    assert!(matches!(world.control.delete_volume(&delete).await, Err(Refusal::IsImage(_))));
    world.control.set_image(&set(false)).await.unwrap();
    world.control.delete_volume(&delete).await.unwrap();
}

#[tokio::test]
async fn a_clone_is_flat_when_every_copy_says_so() {
    let mut world = World::new(2, &[IN_SYNC, IN_SYNC]).await;
    snapshotted(&world);
    world.control.clone_volume(&asked("data", "s", "new")).await.unwrap();
    world.servers[1].away(true);
    world.control.flatten_volume("new").unwrap();
    let round = async |world: &mut World| {
        world.control.follow_flattening();
        while world.control.flattening.is_busy() {
            tokio::task::yield_now().await;
        }
        of_record(world, "new").sharing
    };
    assert_eq!(round(&mut world).await, Sharing::Flattening);
    world.servers[1].away(false);
    assert_eq!(round(&mut world).await, Sharing::Nothing);
    assert_eq!(of_record(&world, "new").lineage.len(), 1, "what it began with is told for ever");
    world.control.flatten_volume("new").unwrap();
    assert_eq!(of_record(&world, "new").sharing, Sharing::Nothing);
}
