//! A fast part of what `make sim` runs; about twenty seconds.

use trivet_sim::{Profile, run};

/// Runs seeds, and says how to run the first that fails.
fn run_all(seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        let profile = Profile::draw(seed);
        let outcome = run(seed, &profile, None);
        if let Some(failure) = outcome.failure {
            let tail = outcome.tail.join("\n");
            panic!("{tail}\n{failure}\nmake it small: trivet-sim --seed {seed} {profile}");
        }
    }
}

#[test]
fn even_seeds_hold() {
    run_all((0..700).step_by(2));
}

#[test]
fn odd_seeds_hold() {
    run_all((1..700).step_by(2));
}

#[test]
fn a_seed_gives_one_trace() {
    for seed in 0..40 {
        let profile = Profile::draw(seed);
        assert_eq!(run(seed, &profile, None), run(seed, &profile, None), "seed {seed}");
    }
}

#[test]
fn another_seed_gives_another_trace() {
    let trace = |seed| run(seed, &Profile::draw(seed), None).trace;
    assert_ne!(trace(1), trace(2));
}
