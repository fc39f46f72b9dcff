//! The engine as a library: the example that a hypervisor's author reads first, run for real.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use trivet_tests::replica::ReplicaServer;
use trivet_tests::{Scratch, command};

const VOLUME: &str = "6f9c1c1e-4a55-4d0e-9a55-0d6a5b1f2c3d";

/// `cargo test --workspace` builds examples beside the tests.
fn example() -> Command {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).unwrap();
    Command::new(folder.join("examples/embedded"))
}

fn on_members(servers: &[ReplicaServer], blocks: &str) -> command::Outcome {
    let mut run = example();
    for server in servers {
        run.arg("--member").arg(format!("?={}", server.address()));
    }
    run.args(["--volume", VOLUME, "--blocks", blocks]);
    command::run(&mut run, Duration::from_secs(60))
}

#[test]
fn the_example_reads_back_what_it_wrote_again_and_again() {
    let scratch = Scratch::new();
    let servers: Vec<ReplicaServer> =
        ["a", "b", "c"].iter().map(|name| ReplicaServer::start(&scratch.join(name))).collect();
    for _ in 0..2 {
        drop(on_members(&servers, "65536").succeeded());
    }
    drop(on_members(&servers, "1024").failed_saying(&["size"]));
}
