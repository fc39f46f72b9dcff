//! The rows of the failure table (docs/failure-model.md) that the simulator can show, a test each: worlds
//! with faults of that row alone, which must all hold, and in which the faults must have struck.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::time::Duration;
use trivet_sim::{Fault, Profile, run};

/// Runs worlds of `seconds` with these faults, and sees that each struck so often at least, in all of
/// the worlds together.
fn holds(faults: &[Fault], seconds: u64, least: u64) {
    let mut struck: BTreeMap<Fault, u64> = BTreeMap::new();
    for seed in 0..SEEDS {
        let mut profile = Profile::draw(seed);
        profile.faults = faults.iter().copied().collect();
        profile.run_for = Duration::from_secs(seconds);
        let outcome = run(seed, &profile, None);
        if let Some(failure) = outcome.failure {
            panic!("{}\n{failure}\ntrivet-sim --seed {seed} {profile}", outcome.tail.join("\n"));
        }
        for (fault, count) in outcome.struck {
            *struck.entry(fault).or_default() += count;
        }
    }
    for fault in faults {
        let count = struck.get(fault).copied().unwrap_or(0);
        assert!(count >= least, "{fault} struck {count} times: a test without its fault shows nothing");
    }
}

const SEEDS: u64 = 16;

#[test]
fn f01_replicas_are_killed() {
    holds(&[Fault::KillReplica], 40, 20);
}

#[test]
fn f02_engines_are_killed() {
    holds(&[Fault::KillEngine, Fault::EnginePower], 40, 20);
}

#[test]
fn f03_all_hosts_lose_power() {
    holds(&[Fault::TotalPower], 40, 20);
}

#[test]
fn f04_writes_are_torn_by_a_loss_of_power() {
    holds(&[Fault::ReplicaPower, Fault::TotalPower, Fault::SlowDisk], 40, 20);
}

#[test]
fn f05_unflushed_writes_survive_out_of_order() {
    holds(&[Fault::ReplicaPower, Fault::TotalPower], 60, 20);
}

#[test]
fn f06_flushes_and_writes_fail() {
    holds(&[Fault::FlushError, Fault::WriteError], 40, 20);
}

#[test]
fn f07_reads_fail() {
    holds(&[Fault::ReadError], 40, 20);
}

#[test]
fn f10_bits_of_data_rot() {
    holds(&[Fault::RottenData], 40, 20);
}

#[test]
fn f11_bits_of_metadata_rot() {
    // What counts is pools that did not open.
    holds(&[Fault::RottenMetadata], 60, 20);
}

#[test]
fn f12_reads_return_another_place() {
    holds(&[Fault::MisdirectedRead], 40, 20);
}

#[test]
fn f13_an_older_copy_of_a_disk_comes_back() {
    holds(&[Fault::OlderDisk], 60, 20);
}

#[test]
fn f14_every_member_has_blocks_that_rot_on_it_alone_and_a_scrub_mends_them() {
    holds(&[Fault::RottenData, Fault::Scrub], 40, 20);
}

#[test]
fn verified_reads_bear_a_copy_that_gives_back_the_past() {
    holds(&[Fault::OldVersions], 60, 20);
}

#[test]
fn f17_disks_and_servers_are_slow() {
    holds(&[Fault::SlowDisk, Fault::PauseReplica], 60, 20);
}

#[test]
fn f18_disks_hang_while_servers_answer() {
    holds(&[Fault::SlowDisk], 120, 40);
}

#[test]
fn f19_processes_pause_and_resume() {
    holds(&[Fault::PauseEngine, Fault::PauseReplica, Fault::Takeover], 60, 20);
}

#[test]
fn f20_old_engines_wake_after_a_takeover() {
    holds(&[Fault::PauseEngine, Fault::Takeover], 60, 40);
}

#[test]
fn f21_hosts_and_engines_are_cut_off() {
    holds(&[Fault::Partition, Fault::Takeover], 60, 20);
}

/// Two of three partitions and clogs are one-way.
#[test]
fn f22_partitions_are_one_way() {
    holds(&[Fault::Partition, Fault::ClogLink], 60, 40);
}

#[test]
fn f23_links_clog_and_unclog() {
    holds(&[Fault::ClogLink], 60, 40);
}

#[test]
fn f24_connections_break_in_the_middle_of_a_frame() {
    holds(&[Fault::BreakLink, Fault::Takeover], 40, 20);
}

#[test]
fn f25_bits_flip_on_the_wire() {
    holds(&[Fault::CorruptFrame], 40, 20);
}

#[test]
fn f27_everyone_crashes_during_rebuilds() {
    holds(&[Fault::KillReplica, Fault::KillEngine, Fault::BreakLink], 60, 20);
}

#[test]
fn f28_writes_go_on_during_rebuilds() {
    holds(&[Fault::PauseReplica, Fault::KillReplica], 60, 20);
}

#[test]
fn f29_a_volume_grows_during_failures() {
    holds(&[Fault::Grow, Fault::KillReplica, Fault::KillEngine, Fault::RecordOutage], 60, 20);
}

#[test]
fn f29_snapshots_come_and_go_during_failures() {
    holds(&[Fault::Snapshot, Fault::KillReplica, Fault::KillEngine, Fault::RecordOutage], 60, 20);
    holds(&[Fault::Snapshot, Fault::ReplicaPower, Fault::TotalPower, Fault::RecordLoss], 60, 20);
}

#[test]
fn f29_clones_are_used_flattened_and_orphaned_during_failures() {
    holds(&[Fault::Cloned, Fault::Snapshot, Fault::KillReplica, Fault::KillEngine], 60, 20);
    holds(&[Fault::Cloned, Fault::ReplicaPower, Fault::TotalPower, Fault::RecordLoss], 60, 20);
}

#[test]
fn f31_clocks_run_fast_and_slow() {
    holds(&[Fault::ClockDrift, Fault::Takeover, Fault::PauseEngine], 60, 10);
}

#[test]
fn f34_the_record_is_away() {
    holds(&[Fault::RecordOutage, Fault::RecordLoss, Fault::KillReplica], 60, 20);
}

#[test]
fn f35_everything_restarts_in_any_order() {
    holds(&[Fault::TotalPower, Fault::KillReplica, Fault::KillEngine], 60, 20);
}
