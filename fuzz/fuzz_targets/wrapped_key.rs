//! A record says anything of how a volume's key is wrapped. See `harness/keys.rs` for what must hold.

#![no_main]

#[path = "../harness/keys.rs"]
#[allow(dead_code)]
mod harness;

libfuzzer_sys::fuzz_target!(|case: &[u8]| harness::run(case));
