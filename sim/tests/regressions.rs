//! Worlds that failed once. Each says what was wrong, in the product or in the simulator itself.
//!
//! A seed means another world when what is drawn changes: these name their faults, and are worth keeping
//! for as long as they still come near what they found.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;
use trivet_sim::{Fault, Outcome, Profile, run};

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

/// The replica: a server that was started again on the same boot after its device had failed a flush
/// believed what the device's cache still showed, and called it stable. A loss of power then took it
/// away from below the stable mark.
#[test]
fn what_a_failed_device_shows_is_written_again_after_a_restart() {
    let faults = format!("flush-error,kill-replica,replica-power,{}", Fault::RestartOnFailedDisk);
    for seed in 0..60 {
        holds(seed, &faults, 20.0);
    }
}

/// The engine: a member that lost power while its promotion was on its way to the record.
#[test]
fn a_member_that_loses_power_while_it_is_promoted_is_found_out() {
    let faults = "break-link,corrupt-frame,kill-replica,write-error,flush-error,kill-engine,record-loss,\
                  total-power,clock-drift";
    holds(378, faults, 15.995);
}

/// The engine: the member that others were copied from had lost power, and the connection said nothing.
#[test]
fn what_has_lost_power_unnoticed_is_no_source() {
    holds(5753, "kill-replica,replica-power", 5.132);
}

/// The engine: a slow member was dropped in favour of one that had lost power unnoticed.
#[test]
fn a_slow_member_stays_while_no_other_is_heard_of() {
    holds(13306, "break-link,kill-replica,replica-power,slow-disk,crowded-pool,grow", 16.781);
}

/// The engine: while members were made alike, nobody asked whether the others were still there.
#[test]
fn a_full_member_is_dropped_while_members_are_made_alike() {
    let mut profile = Profile::draw(12272);
    profile.faults.remove(&Fault::RestartOnFailedDisk);
    assert_eq!(run(12272, &profile, None).failure, None);
}

/// The engine: a member that was away grew to the volume's size, and the volume grew once more before it
/// had answered.
#[test]
fn a_member_has_the_size_that_it_was_asked_for() {
    holds(17634, "kill-replica,slow-disk,grow", 8.714);
    holds(138_522, "clog-link,kill-replica,grow", 12.980);
}

/// The engine: a member was dropped in favour of others that had been heard of since it went, and had lost
/// power since then.
#[test]
fn who_stays_is_asked_when_a_drop_is_due() {
    holds(43989, "kill-replica,replica-power", 8.794);
    holds(79730, "kill-replica,replica-power", 1.407);
    holds(117_982, "kill-replica,replica-power,crowded-pool,scrub", 3.346);
}

/// The engine: one hang of ten seconds was held against an idle member for a hundred.
#[test]
fn a_hang_long_ago_keeps_no_idle_member_out() {
    holds(7798, "record-loss,isolation", 34.262);
}

/// The engine: the refusal by which a member said that a newer engine had it was taken for a sign of life,
/// and what had waited for that was answered.
#[test]
fn a_refusal_renews_no_lease() {
    holds(12352, "contention,isolation", 131.258);
}

/// The engine: writes that had waited while a snapshot was taken went on waiting.
#[test]
fn writes_go_on_when_a_snapshot_is_taken() {
    holds(308, "snapshot", 18.827);
}

/// The engine: a snapshot was recorded although a member in sync kept it without a write that it had had no
/// space for.
#[test]
fn a_snapshot_is_recorded_when_all_below_it_is_settled() {
    holds(2682, "replica-power,crowded-pool,snapshot", 110.547);
}

/// The engine: a snapshot was taken while a member that was brought back had a block that nobody had
/// acknowledged, and was to be written anew above the cut.
#[test]
fn a_snapshot_shows_no_block_that_is_still_to_be_written_alike() {
    holds(16652, "contention,record-loss,isolation,snapshot,reader", 108.619);
}

/// The engine: a reader that learnt at once that one member was in sync and the other no more let go of the
/// one first, and told its clients that nobody could answer.
#[test]
fn a_reader_that_missed_a_record_is_never_without_members() {
    holds(12107, "kill-replica,replica-power,crowded-pool,scrub,snapshot,reader", 55.014);
}

/// The replica: a snapshot was taken while a member was brought back, and what it shows was overwritten at the
/// source before it was copied.
#[test]
fn a_member_brought_back_has_what_a_snapshot_shows_that_was_taken_meanwhile() {
    holds(17622, "kill-replica,slow-disk,snapshot", 5.571);
}

/// The engine: a revert's snapshot was taken again by the next engine, at another cut, and a member that had been
/// away and kept the first was asked to keep the second, again and again.
#[test]
fn a_member_lets_go_of_a_snapshot_that_was_taken_anew_at_another_cut() {
    holds(20476, "kill-replica,kill-engine,close-engine,snapshot,reader,revert", 35.189);
    holds(20188, "replica-power,total-power,grow,scrub,snapshot,revert", 88.360);
}

/// The simulator: a revert was recorded while all hosts were off, and what its snapshot shows was taken for zeros.
#[test]
fn a_revert_is_judged_by_what_its_snapshot_shows_even_if_nobody_can_be_asked_when_it_is_done() {
    holds(11650, "total-power,snapshot,revert", 67.806);
    holds(15974, "kill-replica,replica-power,write-error,crowded-pool,snapshot,revert", 16.030);
}

/// The replica: a clone let go of its parent before what it had copied from there was stable.
#[test]
fn a_clone_has_what_it_read_before_its_parent_goes() {
    holds(3915, "kill-replica,write-error,total-power,clock-drift,cloned", 5.815);
}

/// The replica: a clone that let go of its parent forgot the discards that hid what the parent showed, and
/// could not tell a member that had been away of them.
#[test]
fn a_flattened_clone_remembers_what_it_has_discarded() {
    holds(3498, "replica-power,write-error,restart-on-failed-disk,cloned,settings", 8.039);
}
