//! Links that are slow, damaged, or break in the middle of a frame: a proxy of our own before each
//! replica server.
//!
//! Named after the rows of the failure table (docs/failure-model.md).

use std::time::Duration;
use trivet_tests::loaded::rounds;
use trivet_tests::proxy::{Proxies, Proxy, Way};
use trivet_tests::{Cluster, Loaded, Random, Scratch, Setup, patience, process};

/// A loaded cluster behind proxies, and what must outlive it.
fn start() -> (Loaded, Vec<Proxy>, Scratch) {
    let proxies = Proxies::prepare(3, Random::seed_from_environment());
    let mut setup = Setup::new(3, "1GiB");
    setup.launcher = Some(proxies.launcher());
    let cluster = Cluster::start_as(setup);
    let (proxies, launcher) = proxies.take();
    (Loaded::on(cluster), proxies, launcher)
}

fn one_of<'a>(proxies: &'a [Proxy], loaded: &mut Loaded) -> &'a Proxy {
    &proxies[usize::try_from(loaded.random.below(proxies.len() as u64)).expect("few")]
}

#[test]
fn f17_a_slow_replica_is_left_behind_and_returns() {
    let (mut loaded, proxies, _launcher) = start();
    let slow = one_of(&proxies, &mut loaded);
    // What counts as slow is measured by its peers, which are slow too where a machine has much else to
    // do: then it becomes slower still.
    let (mut delay, mut looks) = (Duration::from_millis(200), 0_u32);
    patience::wait_for("the slow member to be left behind", patience::LONG, || {
        slow.delay(delay);
        looks += 1;
        if looks.is_multiple_of(400) {
            delay = (delay * 2).min(Duration::from_millis(900));
            eprintln!("still in sync: {delay:?} from now on");
        }
        loaded.cluster.member_states().iter().any(|state| state != "in-sync").then_some(())
    });
    loaded.goes_on();
    slow.delay(Duration::ZERO);
    loaded.finish();
}

/// While it is brought back in vain, its late answers fill the engine's window; giving up must empty it.
#[test]
fn f17_a_replica_that_stays_slow_is_tried_again_and_holds_nobody_up() {
    let (mut loaded, proxies, _launcher) = start();
    let slow = one_of(&proxies, &mut loaded);
    slow.delay(Duration::from_millis(450));
    let log = loaded.cluster.directory().join("log/engine-disk0.log");
    patience::wait_for("an attempt to bring it back to end", patience::LONG, || {
        let text = std::fs::read_to_string(&log).expect("the engine's log");
        (text.matches("bringing back ended early").count() >= 2).then_some(())
    });
    loaded.goes_on();
    slow.delay(Duration::ZERO);
    loaded.goes_on();
    loaded.finish();
}

/// It answers what waits in its sockets, and for 50 ms whatever comes, before it stops again for a
/// quarter of a second: five sixths of the time nobody's writes are acknowledged.
#[test]
fn f17_a_replica_that_stutters_is_left_behind_and_returns() {
    let mut loaded = Loaded::start();
    let stuttering = loaded.one_replica();
    patience::wait_for("the stuttering member to be dropped", 2 * patience::SOON, || {
        process::pause(&stuttering, true);
        patience::until(patience::now() + Duration::from_millis(250));
        process::pause(&stuttering, false);
        patience::until(patience::now() + Duration::from_millis(50));
        loaded.cluster.member_states().iter().any(|state| state != "in-sync").then_some(())
    });
    loaded.goes_on();
    loaded.finish();
}

#[test]
fn f18_a_server_that_does_not_answer_is_left_behind_and_returns() {
    let (mut loaded, proxies, _launcher) = start();
    let mute = one_of(&proxies, &mut loaded);
    mute.clog(Way::Out, true);
    loaded.cluster.wait_until_one_is_left_behind();
    loaded.goes_on();
    mute.clog(Way::Out, false);
    loaded.finish();
}

#[test]
fn f23_links_that_clog_in_turn_hold_nothing_up_for_ever() {
    let (mut loaded, proxies, _launcher) = start();
    for round in 0..rounds(3) {
        eprintln!("round {round}");
        for proxy in &proxies {
            let way = if loaded.random.chance(50) { Way::In } else { Way::Out };
            proxy.clog(way, true);
            patience::until(patience::now() + Duration::from_millis(loaded.random.below(3000)));
            proxy.clog(way, false);
            loaded.load.wait_for_progress(200, 2 * patience::SOON);
        }
    }
    loaded.finish();
}

#[test]
fn f24_connections_that_break_in_the_middle_of_a_frame_lose_nothing() {
    let (mut loaded, proxies, _launcher) = start();
    for _ in 0..10 * rounds(3) {
        one_of(&proxies, &mut loaded).cut();
        loaded.load.wait_for_progress(100 + loaded.random.below(400), 2 * patience::SOON);
    }
    loaded.finish();
}

#[test]
fn f25_frames_with_flipped_bits_are_refused_and_nothing_wrong_is_read_or_kept() {
    let (mut loaded, proxies, _launcher) = start();
    let flipped = || proxies.iter().map(Proxy::flipped).sum::<u64>();
    for round in 0..rounds(3) {
        let bad = one_of(&proxies, &mut loaded);
        let before = flipped();
        bad.flip_one_in(256 << 10);
        // A member that was left behind is seldom sent anything, and so little is flipped from then on.
        patience::wait_for("bits to be flipped", 2 * patience::SOON, || {
            let behind =
                flipped() > before && loaded.cluster.member_states().iter().any(|state| state != "in-sync");
            (behind || flipped() >= before + 30).then_some(())
        });
        loaded.load.wait_for_progress(200, 2 * patience::SOON);
        bad.flip_one_in(0);
        eprintln!("round {round}: {} bits flipped", flipped());
        loaded.load.wait_for_progress(200, 2 * patience::SOON);
    }
    loaded.finish();
}
