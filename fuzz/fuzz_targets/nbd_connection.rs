//! A client says anything to the NBD front end. See `harness/nbd.rs` for what must hold.

#![no_main]

use trivet_engine::{frontend::nbd, request};

#[path = "../harness/nbd.rs"]
#[allow(dead_code)]
mod harness;

libfuzzer_sys::fuzz_target!(|case: &[u8]| harness::run(case));
