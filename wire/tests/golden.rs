//! The bytes of every message are fixed: a change here is a change of the protocol.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod samples;

use samples::{encoded, frames};
use trivet_wire::{BlockData, Kind};

/// Heads as they go over the wire, one line a message, in the order of [`frames`].
const HEADS: &str = include_str!("golden/heads.hex");

fn head_bytes(frame: &trivet_wire::Frame) -> usize {
    let payload = frame.message.data().map_or(0, BlockData::bytes);
    encoded(frame).len() - payload
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn heads_of_every_message() {
    let found: Vec<String> = frames()
        .iter()
        .map(|frame| format!("{:?} {}", frame.message.kind(), hex(&encoded(frame)[..head_bytes(frame)])))
        .collect();
    let expected: Vec<&str> = HEADS.lines().collect();
    for (index, found) in found.iter().enumerate() {
        assert_eq!(Some(&found.as_str()), expected.get(index), "message {index}");
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn payload_follows_the_head_unchanged() {
    for frame in frames() {
        if let Some(data) = frame.message.data() {
            assert_eq!(encoded(&frame)[head_bytes(&frame)..], data.segments.concat());
        }
    }
}

#[test]
fn a_header_byte_by_byte() {
    let done = &encoded(&frames()[3]);
    assert_eq!(frames()[3].message.kind(), Kind::Done);
    assert_eq!(&done[..4], b"TRVT");
    assert_eq!(done[4..6], [2, 0], "version");
    assert_eq!(done[6..8], [4, 0], "kind");
    assert_eq!(done[8..12], [0; 4], "flags");
    assert_eq!(done[12..16], [7, 0, 0, 0], "generation");
    assert_eq!(done[16..24], [8, 7, 6, 5, 4, 3, 2, 1], "request");
    assert_eq!(done[24..32], [9, 0, 0, 0, 0, 0, 0, 0], "epoch");
    assert_eq!(done[32..44], [0; 12], "an empty body, whose checksum is zero");
    assert_eq!(done.len(), 48);
}
