//! `trivet-protocol-model`: checks the larger worlds too, or shows what a mistake leads to.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;
use trivet_protocol_model::bounds::{Bounds, LARGE, SMALL, named};
use trivet_protocol_model::check::{self, Counterexample};
use trivet_protocol_model::model::Protocol;
use trivet_protocol_model::variant::Variant;

const USAGE: &str = "\
usage: trivet-protocol-model                         check every world, small and large
       trivet-protocol-model WORLD                   check one
       trivet-protocol-model WORLD VARIANT...        show what mistakes lead to there";

const VARIANTS: [&[Variant]; 3] = [&Variant::MISTAKES, &Variant::AS_WRITTEN, &Variant::HALF_MEASURES];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, variants)) = arguments.split_first() else {
        return check_all(SMALL.into_iter().chain(LARGE));
    };
    let Some(bounds) = named(name) else {
        eprintln!("{USAGE}\n\nworlds:");
        SMALL.iter().chain(&LARGE).for_each(|bounds| eprintln!("  {:?}", bounds.name));
        return ExitCode::FAILURE;
    };
    if variants.is_empty() {
        return check_all([bounds]);
    }
    let mut protocol = Protocol::new(bounds);
    for name in variants {
        let mut all = VARIANTS.into_iter().flatten();
        let Some(variant) = all.find(|variant| format!("{variant:?}") == *name) else {
            eprintln!("{USAGE}\n\nvariants: {VARIANTS:#?}");
            return ExitCode::FAILURE;
        };
        protocol = protocol.with(*variant);
    }
    match check::find(&protocol, "") {
        Some(found) => show(&found),
        None => println!("no counterexample in this world"),
    }
    ExitCode::SUCCESS
}

fn check_all(worlds: impl IntoIterator<Item = Bounds>) -> ExitCode {
    for bounds in worlds {
        let start = now();
        match check::exhaust(&Protocol::new(bounds)) {
            Ok(seen) => println!(
                "{:32} {:>11} states {:>12} steps  depth {:>3} {:>7.1} s",
                bounds.name,
                seen.states,
                seen.steps,
                seen.depth,
                start.elapsed().as_secs_f64()
            ),
            Err(found) => {
                println!("{}:", bounds.name);
                show(&found);
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn show(found: &Counterexample) {
    println!("does not hold: {}", found.property);
    for step in &found.steps {
        println!("  {step:?}");
    }
    println!("{:#?}", found.state);
}

#[allow(clippy::disallowed_methods, reason = "a program's own shell says how long it took")]
fn now() -> Instant {
    Instant::now()
}
