//! Reads what should be a wrapped key, and checks what must hold of any. The fuzz target `wrapped_key` and the
//! tests of the crate include this file.

use trivet_keys::{KeyHolder, Secret, WRAPPED_TEXT_BYTES_MAX, WrappedKey};
use zeroize::Zeroizing;

pub(crate) fn run(case: &[u8]) {
    let Ok(text) = std::str::from_utf8(case) else { return };
    let Ok(key) = WrappedKey::parse(text) else { return };
    assert!(text.len() <= WRAPPED_TEXT_BYTES_MAX);
    let written = key.to_text();
    let again = WrappedKey::parse(&written).expect("what is written is read");
    assert_eq!((&again, again.to_text()), (&key, written), "one key has one text");
    // Nobody guesses what it takes; finding that out is cheap, whatever it says that it costs.
    let stranger = Secret::new(Zeroizing::new(vec![1; 32])).expect("long enough");
    assert!(stranger.unwrap(&key).is_err());
}
