//! Planted faults are found. Needs the feature `planted-faults`; `make sim-planted` runs all of them.
#![cfg(feature = "planted-faults")]

use trivet_sim::{Planted, Profile, run};

#[test]
fn planted_faults_are_found() {
    for planted in Planted::ALL {
        let found =
            (0..20_000).find(|&seed| run(seed, &Profile::draw(seed), Some(planted)).failure.is_some());
        assert!(found.is_some(), "{planted} was not found");
    }
}
