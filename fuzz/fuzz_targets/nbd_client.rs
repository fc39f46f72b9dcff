//! A server says anything to the NBD client. See `harness/nbd_client.rs` for what must hold.

#![no_main]

#[path = "../harness/nbd_client.rs"]
#[allow(dead_code)]
mod harness;

libfuzzer_sys::fuzz_target!(|case: &[u8]| harness::run(case));
