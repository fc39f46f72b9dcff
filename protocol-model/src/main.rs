//! Checks.
#![forbid(unsafe_code)]
use stateright::{Checker, Model};
use trivet_protocol_model::{bounds, model::Protocol, variant::Variant, symmetry::representative};
fn show(p: Protocol, limit: usize) -> bool {
    let c = p.checker().threads(2).finish_when(stateright::HasDiscoveries::AnyFailures).target_state_count(limit).spawn_bfs().join();
    let n = c.unique_state_count();
    for (name, path) in c.discoveries() {
        println!("  FAILED {name} ({n})");
        if std::env::var("TRACE").is_ok() {
        let last = path.last_state().clone();
        for a in path.into_actions() { println!("   {a:?}"); }
        if std::env::var("STATE").is_ok() { println!("{last:#?}"); }
        }
        return true;
    }
    false
}
fn main() {
    let arg = std::env::args().nth(1).unwrap_or_default();
    if arg == "variants" {
        let only = std::env::args().nth(2);
        for v in Variant::ALL {
            if only.as_ref().is_some_and(|o| *o != format!("{v:?}")) { continue; }
            println!("{v:?}");
            let mut found = false;
            for b in bounds::SMALL {
                let t = std::time::Instant::now();
                if show(Protocol::new(b).with(v), 8_000_000) { println!("      in {} {:?}", b.name, t.elapsed()); found = true; break; }
            }
            if !found { println!("  NOT FOUND"); }
        }
        return;
    }
    for b in bounds::SMALL {
        if !arg.is_empty() && arg != b.name { continue; }
        let t = std::time::Instant::now();
        let c = Protocol::new(b).checker().threads(2).finish_when(stateright::HasDiscoveries::AnyFailures).symmetry_fn(representative)
            .target_state_count(200_000_000).spawn_dfs().join();
        println!("{}: {} unique, {} total, depth {}, {:?}", b.name, c.unique_state_count(), c.state_count(), c.max_depth(), t.elapsed());
        if !c.discoveries().is_empty() { show(Protocol::new(b), 100_000_000); }
    }
}
