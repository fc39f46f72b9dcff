//! Partitions, both ways and one way, between processes in network namespaces of their own: one side
//! goes on, and healing loses nothing that was acknowledged.
//!
//! Named after the rows of the failure table (docs/failure-model.md). Needs root and nft.

use trivet_tests::loaded::rounds;
use trivet_tests::namespaces::{Network, Node, obstacle};
use trivet_tests::{Cluster, Loaded, not_run, patience};

/// `None` where there can be no namespaces, which it says.
fn start() -> Option<(Network, Loaded)> {
    if let Some(why) = obstacle() {
        not_run(&why);
        return None;
    }
    let network = Network::new(3);
    let loaded = Loaded::on(Cluster::start_as(network.setup("1GiB")));
    Some((network, loaded))
}

/// What `trivet volume show` says of the volume as a whole.
fn state(loaded: &Loaded) -> String {
    loaded.cluster.trivet_json(&["volume", "show", "disk0"])["state"].as_str().unwrap_or_default().to_owned()
}

/// Waits until the volume is paused, and sees that nothing is answered any more.
fn wait_until_paused(loaded: &Loaded) {
    patience::wait_for("the volume to pause", patience::SOON, || (state(loaded) == "paused").then_some(()));
    let before = loaded.load.acknowledged();
    // Three questions to the engine later at the least.
    for _ in 0..3 {
        assert_eq!(state(loaded), "paused");
    }
    assert_eq!(loaded.load.acknowledged(), before, "a paused volume answered");
}

fn a_replica(loaded: &mut Loaded) -> Node {
    Node::Replica(1 + u32::try_from(loaded.random.below(3)).expect("few"))
}

#[test]
fn f21_a_replica_that_is_cut_off_is_left_behind_and_returns() {
    let Some((network, mut loaded)) = start() else { return };
    for round in 0..rounds(2) {
        let alone = a_replica(&mut loaded);
        eprintln!("round {round}: {alone}");
        network.cut_off(alone);
        loaded.cluster.wait_until_one_is_left_behind();
        loaded.goes_on();
        network.heal();
        loaded.cluster.wait_until_in_sync();
    }
    loaded.finish();
}

#[test]
fn f21_an_engine_cut_off_from_every_replica_pauses_and_goes_on() {
    let Some((network, loaded)) = start() else { return };
    network.cut_off(Node::Engine);
    wait_until_paused(&loaded);
    network.heal();
    loaded.goes_on();
    loaded.finish();
}

#[test]
fn f21_replicas_that_do_not_hear_each_other_come_back_when_they_do() {
    let Some((network, loaded)) = start() else { return };
    for (one, other) in [(1, 2), (2, 3), (1, 3)] {
        network.part(Node::Replica(one), Node::Replica(other));
    }
    network.part(Node::Engine, Node::Replica(2));
    loaded.cluster.wait_until_one_is_left_behind();
    // The engine hears it again, but nobody lets it copy.
    network.heal();
    for other in [1, 3] {
        network.part(Node::Replica(2), Node::Replica(other));
    }
    loaded.goes_on();
    network.heal();
    loaded.finish();
}

/// Between the engine and one replica, `block` lets nothing pass one way.
fn one_way(block: impl Fn(&Network, Node)) {
    let Some((network, mut loaded)) = start() else { return };
    let half_heard = a_replica(&mut loaded);
    block(&network, half_heard);
    loaded.cluster.wait_until_one_is_left_behind();
    loaded.goes_on();
    network.heal();
    loaded.finish();
}

#[test]
fn f22_a_replica_whose_answers_are_lost_is_left_behind_and_returns() {
    one_way(|network, mute| network.block(mute, Node::Engine));
}

#[test]
fn f22_a_replica_that_hears_nothing_is_left_behind_and_returns() {
    one_way(|network, deaf| network.block(Node::Engine, deaf));
}

#[test]
fn f22_an_engine_that_hears_no_answer_pauses_and_goes_on() {
    let Some((network, loaded)) = start() else { return };
    for number in 1..=3 {
        network.block(Node::Replica(number), Node::Engine);
    }
    wait_until_paused(&loaded);
    network.heal();
    loaded.goes_on();
    loaded.finish();
}
