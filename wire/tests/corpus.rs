//! The fuzz targets' corpora, replayed: what once was found stays fixed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

#[path = "../../fuzz/harness/wire.rs"]
mod harness;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new("../fuzz/corpus").join(target);
    let mut cases = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        run(&std::fs::read(&path).unwrap());
        cases += 1;
    }
    assert!(cases >= 20, "only {cases} cases of {target}: is the corpus there?");
}

#[test]
fn the_corpus_of_wire_stream_is_harmless() {
    replay("wire_stream", harness::run_stream);
}

#[test]
fn the_corpus_of_wire_sealed_is_harmless() {
    replay("wire_sealed", harness::run_sealed);
}
