//! Each mistake is found. A mistake that the check did not find would mean that the check is too weak, or that
//! the rule is not needed.

use trivet_protocol_model::bounds::named;
use trivet_protocol_model::check;
use trivet_protocol_model::model::Protocol;
use trivet_protocol_model::variant::Variant;

/// In a world, mistakes lead to a state that a property (its name begins so) does not hold in.
fn lead_to(world: &str, variants: &[Variant], property: &str) {
    let mut protocol = Protocol::new(named(world).expect("a world"));
    protocol.variants.extend(variants);
    let found = check::find(&protocol, property).expect("a counterexample");
    println!("{world} {variants:?}: {}", found.property);
    found.steps.iter().for_each(|step| println!("  {step:?}"));
}

#[test]
fn acknowledge_before_drop() {
    lead_to("takeover", &[Variant::AcknowledgeBeforeDrop], "4");
}

#[test]
fn promise_not_durable() {
    lead_to("killed", &[Variant::PromiseNotDurable], "4");
}

#[test]
fn read_without_lease() {
    lead_to("takeover", &[Variant::ReadWithoutLease], "4");
}

#[test]
fn open_without_waiting() {
    lead_to("takeover", &[Variant::OpenWithoutWaiting], "4");
}

#[test]
fn promote_before_drain() {
    lead_to("takeover", &[Variant::PromoteBeforeDrain], "4");
}

#[test]
fn promote_without_flush() {
    lead_to("flush, behind", &[Variant::PromoteWithoutFlush], "what is flushed");
}

#[test]
fn reconcile_by_longest_log() {
    lead_to("takeover", &[Variant::ReconcileByLongestLog], "4");
}

#[test]
fn pull_skips_diverged() {
    lead_to("diverged", &[Variant::PullSkipsDiverged], "4");
}

#[test]
fn pull_ignores_stamps() {
    lead_to("diverged", &[Variant::PullIgnoresStamps], "4");
}

#[test]
fn pull_before_settled() {
    lead_to("takeover", &[Variant::PullBeforeSettled], "4");
}

#[test]
fn syncing_forgets_since() {
    lead_to("power", &[Variant::SyncingForgetsSince], "8");
}

#[test]
fn base_ignores_intact() {
    lead_to("power", &[Variant::BaseIgnoresIntact], "4");
}

#[test]
fn drop_last() {
    lead_to("takeover", &[Variant::DropLast], "5");
}

#[test]
fn flush_skips_joined() {
    lead_to("flush, behind", &[Variant::FlushSkipsJoined], "what is flushed");
}

#[test]
fn unknown_swap_forgotten() {
    lead_to("outage", &[Variant::UnknownSwapForgotten], "4");
}

#[test]
fn lease_without_joined() {
    lead_to("outage", &[Variant::LeaseWithoutJoined], "4");
}

#[test]
fn read_from_leaving() {
    lead_to("outage", &[Variant::ReadFromLeaving], "4");
}

#[test]
fn promoting_forgotten() {
    lead_to("outage, behind", &[Variant::PromotingForgotten], "4");
}

#[test]
fn open_without_whole() {
    lead_to("power", &[Variant::OpenWithoutWhole], "1: data is not given up");
}

#[test]
fn drop_unseen() {
    lead_to("power and a break", &[Variant::DropUnseen], "1: data is not given up");
}

#[test]
fn wait_forgotten() {
    lead_to("takeover of three", &[Variant::WaitForgotten], "4");
}

#[test]
fn lower_only_with_drop() {
    lead_to("power, behind", &[Variant::LowerOnlyWithDrop], "4");
}

#[test]
fn lower_only_stale() {
    lead_to("power, behind", &[Variant::LowerOnlyStale], "4");
}

#[test]
fn syncing_told_progress() {
    lead_to("power, behind, two blocks", &[Variant::SyncingToldProgress], "8");
}

#[test]
fn committed_jumps() {
    lead_to("flush", &[Variant::CommittedJumps], "an opener keeps");
}

#[test]
fn decide_once() {
    lead_to("power", &[Variant::DecideOnce], "6");
}

#[test]
fn reconciling_told_progress() {
    lead_to("power while reconciling", &[Variant::ReconcilingToldProgress], "8");
}

#[test]
fn whole_by_intact() {
    lead_to("power", &[Variant::WholeByIntact], "1: data is not given up");
}

#[test]
fn base_recorded_once() {
    lead_to("power, behind, two blocks", &[Variant::BaseRecordedOnce], "8");
}

/// `since` above what the member holds is made up for by what the member itself says when it comes back.
#[test]
fn since_too_high() {
    let world = Protocol::new(named("takeover").expect("a world"));
    assert!(check::exhaust(&world.clone().with(Variant::SinceTooHigh)).is_ok());
    assert!(check::exhaust(&world.with(Variant::BaseIgnoresIntact)).is_ok());
    lead_to("takeover", &[Variant::SinceTooHigh, Variant::BaseIgnoresIntact], "4");
}

#[test]
fn the_protocol_as_it_was_written() {
    lead_to("takeover", &Variant::AS_WRITTEN, "4");
}
