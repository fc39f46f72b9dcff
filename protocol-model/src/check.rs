//! Running the checker: exhaustively, or until something is found.

use crate::action::Action;
use crate::bounds::Bounds;
use crate::model::Protocol;
use crate::state::State;
use crate::symmetry::representative;
use stateright::{Checker, HasDiscoveries, Model, Path};

const THREADS: usize = 2;

/// What an exhaustive check has seen.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Different states, those that differ only in the numbers of replicas counted once (nearly: two that are
    /// reached at the same time may both be counted).
    pub states: usize,
    /// Steps taken, of which most lead to a state that is known.
    pub steps: usize,
    /// The longest path that was followed, in states.
    pub depth: usize,
}

/// Visits every state of a world.
///
/// # Errors
/// A short counterexample.
pub fn exhaust(protocol: &Protocol) -> Result<Seen, Counterexample> {
    let checker = protocol.clone().checker().threads(THREADS).finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.symmetry_fn(representative).spawn_dfs().join();
    if !checker.discoveries().is_empty()
        && let Some(found) = find(protocol, "")
    {
        return Err(found);
    }
    let (states, steps, depth) = (checker.unique_state_count(), checker.state_count(), checker.max_depth());
    Ok(Seen { states, steps, depth })
}

/// A path that ends where a property does not hold.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// Which.
    pub property: &'static str,
    /// The steps to it.
    pub steps: Vec<Action>,
    /// Where they lead.
    pub state: Box<State>,
}

/// A short counterexample to a property whose name begins so, if there is one.
#[must_use]
pub fn find(protocol: &Protocol, property: &str) -> Option<Counterexample> {
    let names = protocol.properties().into_iter().map(|property| property.name);
    let wanted = HasDiscoveries::AnyOf(names.filter(|name| name.starts_with(property)).collect());
    let checker = protocol.clone().checker().finish_when(wanted).spawn_bfs().join();
    let found = checker.discoveries().into_iter().filter(|(name, _)| name.starts_with(property));
    let (name, path) = found.min_by_key(|(name, path)| (path.clone().into_actions().len(), *name))?;
    let property = protocol.property(name);
    let fails =
        |steps: &[Action]| replay(protocol, steps).is_some_and(|end| !(property.condition)(protocol, &end));
    let steps = without_detours(Path::into_actions(path), fails);
    let state = Box::new(replay(protocol, &steps)?);
    Some(Counterexample { property: name, steps, state })
}

/// Takes out steps as long as the rest still fails. (The checker looks at a batch of states at a time, and
/// keeps the last path of the batch.)
fn without_detours(mut steps: Vec<Action>, fails: impl Fn(&[Action]) -> bool) -> Vec<Action> {
    let mut index = 0;
    while index < steps.len() {
        let mut fewer = steps.clone();
        fewer.remove(index);
        if fails(&fewer) {
            steps = fewer;
            index = 0;
        } else {
            index += 1;
        }
    }
    steps
}

/// Where these steps lead, if they can be taken.
fn replay(protocol: &Protocol, steps: &[Action]) -> Option<State> {
    let mut state = protocol.init_states().into_iter().next()?;
    for step in steps {
        let mut possible = Vec::new();
        protocol.actions(&state, &mut possible);
        state = possible.contains(step).then(|| protocol.next_state(&state, *step))??;
    }
    Some(state)
}

/// A way to a state that `sight` is true for.
#[must_use]
pub fn see(bounds: Bounds, sight: fn(&Protocol, &State) -> bool) -> Option<Vec<Action>> {
    let protocol = Protocol { bounds, variants: Vec::new(), sight: Some(sight) };
    let found = HasDiscoveries::AnyOf([crate::model::SIGHT].into());
    let checker = protocol.checker().finish_when(found).spawn_bfs().join();
    Some(Path::into_actions(checker.discovery(crate::model::SIGHT)?))
}
