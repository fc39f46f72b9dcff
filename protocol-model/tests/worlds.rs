//! The protocol holds in every state of the small worlds, and these are not empty.

use trivet_protocol_model::bounds::{SMALL, named};
use trivet_protocol_model::check;
use trivet_protocol_model::model::{Protocol, SIGHTS};

#[test]
fn the_protocol_holds() {
    for bounds in SMALL {
        match check::exhaust(&Protocol::new(bounds)) {
            Ok(seen) => println!("{}: {seen:?}", bounds.name),
            Err(found) => panic!("{}: {found:#?}", bounds.name),
        }
    }
}

#[test]
fn interesting_situations_are_reached() {
    for (sight, world) in SIGHTS
        .into_iter()
        .zip(["takeover", "diverged", "takeover", "diverged", "takeover", "takeover", "power", "outage"])
    {
        let bounds = named(world).expect("a world");
        let steps = check::see(bounds, sight.1).unwrap_or_else(|| panic!("{world}: never: {}", sight.0));
        println!("{} ({world}): {steps:?}", sight.0);
    }
}
