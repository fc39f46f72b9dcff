//! Making a failing run small: fewer faults, less time.

use crate::planted::Planted;
use crate::run::{Outcome, run};
use crate::swarm::Profile;
use std::time::Duration;

/// Runs spent on shrinking at most.
const RUNS_MAX: u32 = 80;

/// The smallest failing run that was found.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// Its world.
    pub profile: Profile,
    /// What comes of it.
    pub outcome: Outcome,
    /// Runs that it took to find it.
    pub runs: u32,
}

/// Shrinks a run that fails, as long as it fails in any way.
#[must_use]
pub fn shrink(seed: u64, profile: &Profile, planted: Option<Planted>, outcome: Outcome) -> Shrunk {
    let mut best = Shrunk { profile: profile.clone(), outcome, runs: 0 };
    let attempt = |best: &mut Shrunk, profile: Profile| {
        if best.runs >= RUNS_MAX || profile == best.profile {
            return false;
        }
        best.runs += 1;
        let outcome = run(seed, &profile, planted);
        let fails = outcome.failure.is_some();
        if fails {
            (best.profile, best.outcome) = (profile, outcome);
        }
        fails
    };
    loop {
        let before = best.profile.clone();
        for fault in &before.faults {
            let mut without = best.profile.clone();
            without.faults.remove(fault);
            attempt(&mut best, without);
        }
        let failed_at = best.outcome.failure.as_ref().map_or(Duration::MAX, |failure| failure.at);
        let run_for = best.profile.run_for;
        for shorter in [failed_at.min(run_for), run_for / 2, run_for * 3 / 4, run_for * 7 / 8] {
            let shorter = Profile { run_for: shorter, ..best.profile.clone() };
            if attempt(&mut best, shorter) {
                break;
            }
        }
        if best.profile == before {
            return best;
        }
    }
}
