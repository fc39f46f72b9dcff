//! A peer says anything to the data protocol's decoder. See `harness/wire.rs` for what must hold.

#![no_main]

#[path = "../harness/wire.rs"]
#[allow(dead_code)]
mod harness;

libfuzzer_sys::fuzz_target!(|case: &[u8]| harness::run_stream(case));
