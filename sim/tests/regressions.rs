//! Worlds that failed once. Each says what was wrong, in the product or in the simulator itself.
//!
//! A seed means another world when what is drawn changes: these name their faults, and are worth keeping
//! for as long as they still come near what they found.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;
use trivet_sim::{Check, Fault, Outcome, Profile, run};

fn run_world(seed: u64, faults: &str, seconds: f64) -> Outcome {
    let mut profile = Profile::draw(seed);
    profile.faults = faults.split(',').map(|name| name.parse().unwrap()).collect();
    profile.run_for = Duration::from_secs_f64(seconds);
    run(seed, &profile, None)
}

fn holds(seed: u64, faults: &str, seconds: f64) {
    let outcome = run_world(seed, faults, seconds);
    assert_eq!(outcome.failure, None, "seed {seed}");
}

/// The simulator: a flush error left over from before struck at rest, and the idle engine could not
/// know yet that its member had gone.
#[test]
fn what_vanishes_without_a_word_is_noticed_later() {
    let faults = "corrupt-frame,replica-power,flush-error,crowded-pool,close-engine,takeover";
    holds(895, faults, 34.480);
}

/// The simulator: all members lost a write whose answers were still on their way to the engine.
#[test]
fn a_write_may_be_acknowledged_after_everyone_has_lost_it() {
    let faults = "clog-link,partition,corrupt-frame,replica-power,slow-disk,crowded-pool,kill-engine,\
                  pause-engine,record-loss,total-power";
    holds(2766, faults, 13.906);
}

/// The replica, not mended yet: a server that is started again on the same boot after its device
/// failed a flush believes what the device's cache still shows, and calls it stable. A loss of power
/// then takes it away from below the stable mark. It is noticed (the pool does not open), so that no
/// wrong data is served, but the member is gone.
#[test]
fn a_device_that_failed_is_trusted_after_a_restart() {
    let faults = format!("flush-error,kill-replica,replica-power,{}", Fault::TrustFailedDisk);
    let failures = (0..60).filter_map(|seed| run_world(seed, &faults, 20.0).failure);
    let found: Vec<Check> = failures.map(|failure| failure.check).collect();
    assert!(!found.is_empty(), "it is mended: draw TrustFailedDisk like other faults");
}
