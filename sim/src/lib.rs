//! A whole cluster in one thread, on a virtual clock, out of a seed: the real core of the engine, the
//! real sessions and stores of replica servers on faulty disks, a record under compare-and-swap, and
//! clients that know what they were told. See `docs/testing.md`, "The simulator".
#![forbid(unsafe_code)]

mod checkers;
mod cloning;
mod copying;
mod encryption;
mod engine_host;
mod faults;
mod groups;
mod host;
mod importing;
mod lost_disk;
mod network;
mod past;
mod planted;
mod random;
mod readers;
mod record_store;
mod rekeys;
mod reverts;
mod run;
mod scrubbing;
mod settings;
mod shrink;
mod stages;
mod swarm;
mod template;
mod trace;
mod workload;
mod world;

pub use planted::{Planted, UnknownPlanted};
pub use run::{Check, Failure, Figures, Outcome, run, run_printing};
pub use shrink::{Shrunk, shrink};
pub use swarm::{Fault, Profile, UnknownFault};
