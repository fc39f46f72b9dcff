//! The fuzz target's corpus, replayed: what once was found stays fixed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../fuzz/harness/keys.rs"]
mod harness;

#[test]
fn the_corpus_of_wrapped_key_is_harmless() {
    let mut cases = 0;
    for entry in std::fs::read_dir("../fuzz/corpus/wrapped_key").unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        harness::run(&std::fs::read(&path).unwrap());
        cases += 1;
    }
    assert!(cases >= 20, "only {cases} cases: is the corpus there?");
}
