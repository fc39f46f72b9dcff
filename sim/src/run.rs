//! One run, and what came of it.

use crate::planted::Planted;
use crate::swarm::{Fault, Profile};
use crate::trace::Happening;
use crate::world::World;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::Duration;

/// What did not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// What clients read follows an order that is right.
    Linearizable,
    /// Every member in sync holds what is acknowledged.
    Acknowledged,
    /// Members in sync hold the same.
    Alike,
    /// What members hold when a volume opens is what they must hold: nothing acknowledged is lost, what
    /// was flushed survives any loss of power.
    Image,
    /// A promise never goes back.
    Promise,
    /// Nothing is done for an engine after a newer one has opened the volume.
    Fencing,
    /// The record changes as it may.
    Record,
    /// Requests are answered once, and rightly.
    Answers,
    /// A pool opens after any crash.
    Unopenable,
    /// `trivet check` finds nothing wrong with a pool.
    Pool,
    /// Without faults everything comes to its end.
    Liveness,
    /// The product's own assertions.
    Panic,
    /// A volume takes no more I/O than its limits allow.
    Limit,
    /// A snapshot is kept by every member, shows the same on all, and never changes.
    Snapshots,
    /// A volume that has been reverted is what the snapshot showed.
    Reverted,
    /// What a volume shows is sealed under a data key that it still has.
    Keys,
}

/// A run's failure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What did not hold.
    pub check: Check,
    /// How.
    pub detail: String,
    /// When, on the world's clock.
    pub at: Duration,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:.6} s: {}", self.check, self.at.as_secs_f64(), self.detail)
    }
}

/// How much happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Time that passed in the world.
    pub simulated: Duration,
    /// Events.
    pub events: u64,
    /// Requests answered.
    pub answered: u64,
}

/// What came of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// A hash of everything that happened.
    pub trace: u64,
    /// How much that was.
    pub figures: Figures,
    /// How often each fault has struck that strikes at moments or can be seen to.
    pub struck: BTreeMap<Fault, u64>,
    /// What did not hold, if anything.
    pub failure: Option<Failure>,
    /// The last that happened, one line each.
    pub tail: Vec<String>,
}

/// Runs one world.
#[must_use]
pub fn run(seed: u64, profile: &Profile, planted: Option<Planted>) -> Outcome {
    run_world(seed, profile, planted, false)
}

/// Runs one world and prints everything that happens.
#[must_use]
pub fn run_printing(seed: u64, profile: &Profile, planted: Option<Planted>) -> Outcome {
    run_world(seed, profile, planted, true)
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static CATCHING: RefCell<bool> = const { RefCell::new(false) };
}

/// Keeps what a panic of this thread's run says, in place of printing it.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if CATCHING.with_borrow(|catching| *catching) {
                PANIC.with_borrow_mut(|kept| *kept = Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

fn run_world(seed: u64, profile: &Profile, planted: Option<Planted>, print: bool) -> Outcome {
    keep_panics();
    CATCHING.set(true);
    let world = catch_unwind(AssertUnwindSafe(|| World::new(seed, profile.clone(), planted, print)));
    let outcome = match world {
        Ok(mut world) => {
            if catch_unwind(AssertUnwindSafe(|| world.run())).is_err() {
                let detail = PANIC.take().unwrap_or_default();
                world.fail(Check::Panic, detail);
            }
            if let Some(failure) = &world.failure {
                let at = failure.at;
                world.trace.note(at, Happening::Note("FAILURE"));
            }
            Outcome {
                trace: world.trace.hash(),
                figures: Figures {
                    simulated: world.now,
                    events: world.trace.events,
                    answered: world.clients.answered,
                },
                struck: std::mem::take(&mut world.struck),
                tail: if world.failure.is_some() { world.trace.tail() } else { Vec::new() },
                failure: world.failure.take(),
            }
        }
        Err(_) => Outcome {
            trace: 0,
            figures: Figures::default(),
            struck: BTreeMap::new(),
            failure: Some(Failure {
                check: Check::Panic,
                detail: PANIC.take().unwrap_or_default(),
                at: Duration::ZERO,
            }),
            tail: Vec::new(),
        },
    };
    CATCHING.set(false);
    outcome
}
