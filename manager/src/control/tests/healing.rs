use super::*;
use crate::records::ReplacementReason;
use trivet_api::v1;

#[tokio::test]
async fn a_member_that_is_away_is_replaced_and_leaves_when_its_substitute_is_in_sync() {
    let mut world = World::new(4, &[IN_SYNC, IN_SYNC]).await;
    world.servers[1].away(true);
    world.attach();
    world.round().await;
    assert_eq!(world.members().len(), 2, "the engine decides who is in sync");
    world.set(2, STALE);
    world.round().await;
    let replacement = world.replacement().unwrap();
    assert_eq!(replacement.reason, ReplacementReason::Away);
    assert_eq!((replacement.from, replacement.to), (pool(2), pool(3)));
    world.round().await;
    assert_eq!(world.members(), [(1, true), (2, false), (3, false)], "one at a time, and none leaves yet");
    world.set(3, IN_SYNC);
    world.round().await;
    assert_eq!((world.members(), world.replacement()), (vec![(1, true), (3, true)], None));
    assert_eq!(world.deletion(), [pool(2)]);
    world.servers[1].away(false);
    world.round().await;
    assert!(!world.servers[1].holds(ID));
}

#[tokio::test]
async fn a_member_that_comes_back_in_sync_sends_its_substitute_away() {
    let mut world = World::new(3, &[IN_SYNC, STALE]).await;
    world.servers[1].away(true);
    world.attach();
    world.round().await;
    assert_eq!(world.members().len(), 3);
    world.servers[1].away(false);
    world.round().await;
    assert_eq!(world.members().len(), 3, "back, but not in sync");
    world.set(2, IN_SYNC);
    world.round().await;
    assert_eq!((world.members(), world.replacement()), (vec![(1, true), (2, true)], None));
}

#[tokio::test]
async fn a_substitute_that_goes_away_itself_is_given_up_for_another() {
    let mut world = World::new(4, &[IN_SYNC, STALE]).await;
    world.servers[1].away(true);
    world.attach();
    world.round().await;
    assert_eq!(world.replacement().unwrap().to, pool(3));
    world.servers[2].away(true);
    world.round().await;
    world.round().await;
    assert_eq!(world.replacement().unwrap().to, pool(4));
    assert_eq!(world.members(), [(1, true), (2, false), (4, false)]);
}

#[tokio::test]
async fn nobody_is_replaced_without_an_engine_or_room_or_while_the_server_answers() {
    let mut world = World::new(3, &[IN_SYNC, STALE]).await;
    world.servers[1].away(true);
    world.round().await;
    assert_eq!(world.replacement(), None, "no engine");
    world.attach();
    world.servers[1].away(false);
    world.round().await;
    assert_eq!(world.replacement(), None, "it answers: the engine brings it back");
    world.servers[1].away(true);
    world.servers[2].fill();
    world.round().await;
    assert_eq!((world.replacement(), world.members().len()), (None, 2), "no room");
}

#[tokio::test]
async fn a_replacement_that_was_asked_for_moves_a_copy_that_is_well() {
    let mut world = World::new(3, &[IN_SYNC, IN_SYNC]).await;
    let request = |to| v1::ReplaceReplicaRequest { volume: "data".into(), from: 1, to };
    assert_eq!(world.control.replace_replica(&request(0)).await.unwrap(), 3);
    let refused = words(world.control.replace_replica(&request(3)).await);
    assert_eq!(refused, "a copy of volume 'data' is being replaced already");
    world.round().await;
    assert_eq!(world.members(), [(1, true), (2, true), (3, false)]);
    world.set(3, IN_SYNC);
    world.servers[1].away(true);
    world.servers[2].away(true);
    world.round().await;
    assert_eq!(world.members().len(), 3, "no other in-sync copy answers now");
    world.servers[2].away(false);
    world.round().await;
    assert_eq!((world.members(), world.replacement()), (vec![(2, true), (3, true)], None));
}

#[tokio::test]
async fn a_replacement_of_a_volume_that_is_gone_is_forgotten() {
    let mut world = World::new(2, &[IN_SYNC]).await;
    let request = v1::ReplaceReplicaRequest { volume: "data".into(), from: 1, to: 2 };
    world.control.replace_replica(&request).await.unwrap();
    let request = v1::DeleteVolumeRequest { name: "data".into(), dry_run: false, force: false };
    world.control.delete_volume(&request).await.unwrap();
    world.round().await;
    assert_eq!((world.replacement(), world.deletion()), (None, vec![]));
    assert!(world.servers.iter().all(|server| !server.holds(ID)));
}

fn copies(copies: u32) -> v1::SetVolumeRequest {
    v1::SetVolumeRequest { name: "data".into(), copies, ..Default::default() }
}

#[tokio::test]
async fn a_volume_with_too_few_members_gets_more_while_it_is_written() {
    let mut world = World::new(4, &[IN_SYNC]).await;
    world.control.set_volume(&copies(3)).unwrap();
    world.round().await;
    assert_eq!(world.members().len(), 1, "nobody would bring it in sync");
    world.attach();
    world.servers[1].fill();
    world.round().await;
    assert_eq!(world.members(), [(1, true), (3, false)]);
    world.round().await;
    assert_eq!(world.members(), [(1, true), (3, false), (4, false)]);
    world.round().await;
    assert_eq!(world.members().len(), 3, "as many as it shall have");
    let refused = words(world.control.set_volume(&copies(5)));
    assert_eq!(refused, "5 copies need as many replica servers: 4 of 4 answer");
}

#[tokio::test]
async fn a_member_too_many_leaves_once_as_many_as_are_wanted_are_in_sync_without_it() {
    let mut world = World::new(3, &[IN_SYNC, STALE, IN_SYNC]).await;
    world.attach();
    world.control.set_volume(&copies(2)).unwrap();
    world.servers[2].away(true);
    world.round().await;
    assert_eq!(world.members().len(), 3, "only one that is in sync answers");
    world.servers[2].away(false);
    world.round().await;
    assert_eq!((world.members(), world.deletion()), (vec![(1, true), (3, true)], vec![pool(2)]));
    world.control.set_volume(&copies(1)).unwrap();
    world.servers[0].away(true);
    world.round().await;
    assert_eq!(world.members(), [(3, true)], "the one that does not answer leaves");
}

#[tokio::test]
async fn one_that_is_added_or_removed_by_hand_is_not_taken_away_or_made_again() {
    let mut world = World::new(4, &[IN_SYNC, IN_SYNC]).await;
    world.attach();
    let add = v1::AddReplicaRequest { volume: "data".into(), to: 0 };
    assert_eq!(world.control.add_replica(&add).await.unwrap(), 3);
    world.set(3, IN_SYNC);
    world.round().await;
    assert_eq!((world.members().len(), world.record().0.copies), (3, 3));
    // The substitute of a replacement is not one more.
    let replace = v1::ReplaceReplicaRequest { volume: "data".into(), from: 1, to: 4 };
    world.control.replace_replica(&replace).await.unwrap();
    let remove = |from| v1::RemoveReplicaRequest { volume: "data".into(), from, dry_run: false };
    world.control.remove_replica(&remove(2)).await.unwrap();
    world.round().await;
    assert_eq!((world.members().len(), world.record().0.copies), (3, 2));
    world.control.remove_replica(&remove(4)).await.unwrap();
    world.round().await;
    assert_eq!((world.members(), world.record().0.copies), (vec![(1, true), (3, true)], 2));
}
