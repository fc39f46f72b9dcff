use super::*;
use trivet_api::v1;
use trivet_model::{SnapshotId, SnapshotRecord};
use trivet_wire::SnapshotEntry;

fn add(to: u32) -> v1::AddReplicaRequest {
    v1::AddReplicaRequest { volume: "data".into(), to }
}

fn remove(from: u32, dry_run: bool) -> v1::RemoveReplicaRequest {
    v1::RemoveReplicaRequest { volume: "data".into(), from, dry_run }
}

fn salvage(from: u32, dry_run: bool, force: bool) -> v1::SalvageVolumeRequest {
    v1::SalvageVolumeRequest { name: "data".into(), from, dry_run, force }
}

#[tokio::test]
async fn a_copy_is_made_before_the_record_names_it_and_goes_after_the_record_forgets_it() {
    let mut world = World::new(3, &[IN_SYNC, IN_SYNC]).await;
    assert_eq!(world.control.add_replica(&add(0)).await.unwrap(), 3);
    assert_eq!(world.members(), [(1, true), (2, true), (3, false)]);
    assert_eq!(world.record().0.members[2].state, STALE);
    assert_eq!((world.record().0.epoch, world.deletion()), (Epoch(1), vec![]));
    assert!(world.servers[2].holds(ID));

    assert_eq!(world.control.remove_replica(&remove(1, true)).await.unwrap(), 1);
    assert_eq!(world.members().len(), 3, "a dry run");
    world.servers[0].busy(true);
    world.control.remove_replica(&remove(1, false)).await.unwrap();
    assert_eq!((world.members(), world.deletion()), (vec![(2, true), (3, false)], vec![pool(1)]));
    world.round().await;
    assert_eq!(world.deletion(), [pool(1)], "an engine still has it open");
    let refused = words(world.control.add_replica(&add(1)).await);
    assert_eq!(refused, "an engine still uses the old copy of volume 'data' on replica-1");
    world.servers[0].busy(false);
    // Added again before the deletion was carried out: the old copy goes, the new one stays.
    world.control.add_replica(&add(1)).await.unwrap();
    assert_eq!((world.members()[2], world.deletion()), ((1, false), vec![]));
    world.round().await;
    assert!(world.servers[0].holds(ID));
}

#[tokio::test]
async fn a_failed_addition_leaves_a_deletion_and_no_member() {
    let mut world = World::new(2, &[IN_SYNC]).await;
    world.servers[1].busy(true);
    words(world.control.add_replica(&add(2)).await);
    assert_eq!((world.members(), world.deletion()), (vec![(1, true)], vec![pool(2)]));
    world.servers[1].busy(false);
    world.round().await;
    assert_eq!(world.deletion(), []);
}

#[tokio::test]
async fn what_an_engine_changes_meanwhile_is_never_lost() {
    let world = World::new(3, &[IN_SYNC, IN_SYNC]).await;
    let once = std::cell::Cell::new(true);
    world
        .control
        .change_record(ID, |record| {
            if once.replace(false) {
                world.set(2, STALE);
            }
            record.owner = "x".into();
            Ok(vec![])
        })
        .unwrap();
    assert_eq!((world.members(), world.record().0.owner), (vec![(1, true), (2, false)], "x".to_owned()));
}

#[tokio::test]
async fn an_in_sync_copy_that_answers_always_remains() {
    let world = World::new(3, &[IN_SYNC, IN_SYNC, STALE]).await;
    world.servers[0].away(true);
    let refused = words(world.control.remove_replica(&remove(2, false)).await);
    assert_eq!(refused, "without replica-2, no copy of volume 'data' that is in sync would answer");
    world.control.remove_replica(&remove(1, false)).await.unwrap();
    let refused = words(world.control.remove_replica(&remove(2, false)).await);
    assert_eq!(refused, "replica-2 holds the only copy of volume 'data' that is in sync");
    let refused = words(world.control.remove_replica(&remove(1, false)).await);
    assert_eq!(refused, "volume 'data' has no copy on replica-1");
    assert_eq!(world.members(), [(2, true), (3, false)]);
}

#[tokio::test]
async fn new_copies_go_where_there_is_room() {
    let world = World::new(4, &[IN_SYNC]).await;
    world.servers[1].fill();
    world.servers[2].away(true);
    let refused = words(world.control.add_replica(&add(2)).await);
    assert_eq!(refused, "replica-2 has 0 B free, and a copy of volume 'data' takes 240 KiB");
    assert!(words(world.control.add_replica(&add(3)).await).contains("replica-3 takes no copy now"));
    assert!(words(world.control.add_replica(&add(1)).await).contains("on replica-1 already"));
    assert_eq!(words(world.control.add_replica(&add(5)).await), "there is no replica server replica-5");
    assert_eq!(world.control.add_replica(&add(0)).await.unwrap(), 4);
    let refused = words(world.control.add_replica(&add(0)).await);
    assert!(refused.contains("no replica server without a copy of volume 'data'"), "{refused}");
}

fn snapshot_record(cut: Stamp) -> SnapshotRecord {
    let id = SnapshotId::from_bytes(u128::from(cut.as_u64()).to_le_bytes());
    SnapshotRecord { id, name: format!("s{}", cut.as_u64()), cut, created: 0, labels: Default::default() }
}

#[tokio::test]
async fn salvage_keeps_one_copy_and_has_the_others_deleted() {
    let stale = MemberState::Stale { since: Stamp::from_u64(7) };
    let mut world = World::new(3, &[IN_SYNC, stale, stale]).await;
    let refused = words(world.control.salvage_volume(&salvage(2, false, false)).await);
    assert!(refused.contains("the copy of volume 'data' on replica-1 is in sync and answers"), "{refused}");
    world.control.salvage_volume(&salvage(2, true, true)).await.unwrap();
    world.servers[0].away(true);
    world.servers[2].away(true);
    let refused = words(world.control.salvage_volume(&salvage(3, false, false)).await);
    assert!(refused.contains("on replica-3 cannot be had"), "{refused}");
    world.control.salvage_volume(&salvage(2, true, false)).await.unwrap();
    assert_eq!(world.record().0.epoch, Epoch(0), "dry runs");

    let (mut record, revision) = world.record();
    let cuts = [5, 9].map(Stamp::from_u64);
    record.snapshots = cuts.map(snapshot_record).to_vec();
    records::write(world.store(), &record, Some(revision)).unwrap();
    let SnapshotRecord { id, cut, .. } = record.snapshots[0].clone();
    world.servers[1].keep(SnapshotEntry { id, cut });

    world.control.salvage_volume(&salvage(2, false, false)).await.unwrap();
    let record = world.record().0;
    let kept: Vec<Stamp> = record.snapshots.iter().map(|kept| kept.cut).collect();
    assert_eq!(kept, cuts[..1], "the other was taken while this copy was away");
    assert_eq!((record.epoch, record.generation.get(), world.members()), (Epoch(1), 1, vec![(2, true)]));
    assert_eq!(world.deletion(), [pool(1), pool(3)]);
    world.servers[0].away(false);
    world.round().await;
    assert_eq!((world.servers[0].holds(ID), world.deletion()), (false, vec![pool(3)]));
    world.control.add_replica(&add(1)).await.unwrap();
    assert_eq!(world.members(), [(2, true), (1, false)]);
    assert_eq!(world.deletion(), [pool(3)], "what is still to be deleted is not forgotten");
}

#[tokio::test]
async fn salvage_is_for_volumes_that_nobody_uses() {
    let world = World::new(2, &[STALE, STALE]).await;
    let (mut record, revision) = world.record();
    record.owner = "someone".into();
    records::write(world.store(), &record, Some(revision)).unwrap();
    let refused = words(world.control.salvage_volume(&salvage(1, false, false)).await);
    assert!(refused.contains("is open: someone"), "{refused}");
    world.control.salvage_volume(&salvage(1, false, true)).await.unwrap();
    assert_eq!(world.record().0.owner, "");
    world.attach();
    let refused = words(world.control.salvage_volume(&salvage(1, false, true)).await);
    assert_eq!(refused, "volume 'data' is attached");
}
