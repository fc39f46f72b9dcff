//! As `wire_stream`, behind the checksums: frames whose fields are anything, well sealed.

#![no_main]

#[path = "../harness/wire.rs"]
#[allow(dead_code)]
mod harness;

libfuzzer_sys::fuzz_target!(|case: &[u8]| harness::run_sealed(case));
