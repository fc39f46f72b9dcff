//! Checks.
#![forbid(unsafe_code)]
use stateright::{Checker, Model};
use trivet_protocol_model::{bounds, model::Protocol};
fn main() {
    for b in bounds::SMALL {
        if std::env::args().nth(1).is_some_and(|name| name != b.name) { continue; }
        let t = std::time::Instant::now();
        let c = Protocol::new(b).checker().threads(2).finish_when(stateright::HasDiscoveries::AnyFailures)
            .target_state_count(60_000_000).symmetry_fn(trivet_protocol_model::symmetry::representative).spawn_dfs().join();
        println!("{}: {} unique, {} total, depth {}, {:?}", b.name, c.unique_state_count(), c.state_count(), c.max_depth(), t.elapsed());
        let found: Vec<_> = c.discoveries().into_keys().collect();
        if !found.is_empty() {
            let c = Protocol::new(b).checker().threads(1).finish_when(stateright::HasDiscoveries::AnyFailures).spawn_bfs().join();
            for (name, path) in c.discoveries() {
                println!("FAILED {name}");
                let last = path.last_state().clone();
                for a in path.into_actions() { println!("   {a:?}"); }
                println!("{last:#?}");
            }
        }
    }
}
