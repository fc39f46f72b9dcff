//! The fuzz target's corpus, replayed: what once was found stays fixed.

use super::harness;
use std::fs;
use std::path::Path;

#[test]
fn the_corpus_of_nbd_connection_is_harmless() {
    let folder = Path::new("../fuzz/corpus/nbd_connection");
    let mut cases = 0;
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        harness::run(&fs::read(entry.unwrap().path()).unwrap());
        cases += 1;
    }
    assert!(cases >= 20, "only {cases} cases in {}", folder.display());
}
