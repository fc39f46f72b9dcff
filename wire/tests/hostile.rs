//! What is not a frame is refused, with a reason, and holds no memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod samples;

use bytes::BufMut;
use samples::{encoded, frames};
use trivet_model::BLOCK_SIZE;
use trivet_wire::header::HEADER_BYTES;
use trivet_wire::{BlockData, DecodeError, Decoder, ErrorCode, Frame, Kind, Message};

/// The result of decoding `stream`, and the decoder after it.
fn outcome(stream: &[u8]) -> (Result<Vec<Frame>, DecodeError>, Decoder) {
    let mut decoder = Decoder::new();
    let mut rest = stream;
    let mut out = Vec::new();
    loop {
        match decoder.next() {
            Ok(Some(frame)) => out.push(frame),
            Err(error) => return (Err(error), decoder),
            Ok(None) if rest.is_empty() => return (Ok(out), decoder),
            Ok(None) => {
                let mut buffer = decoder.buffer();
                let take = buffer.capacity().min(rest.len());
                buffer.put_slice(&rest[..take]);
                rest = &rest[take..];
                decoder.filled(buffer);
            }
        }
    }
}

/// A frame with one header field changed and the header's checksum made to match again.
fn forged(frame: &Frame, at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = encoded(frame);
    bytes[at..at + value.len()].copy_from_slice(value);
    reseal(&mut bytes);
    bytes
}

fn reseal(bytes: &mut [u8]) {
    let crc = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
}

/// A frame with bytes of its fixed part changed and both checksums made to match again.
fn forged_fixed(frame: &Frame, at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = encoded(frame);
    let at = HEADER_BYTES + at;
    bytes[at..at + value.len()].copy_from_slice(value);
    let fixed_bytes = u32::from_le_bytes(bytes[32..36].try_into().unwrap()) as usize;
    let crc = crc32fast::hash(&bytes[HEADER_BYTES..HEADER_BYTES + fixed_bytes]);
    bytes[40..44].copy_from_slice(&crc.to_le_bytes());
    reseal(&mut bytes);
    bytes
}

fn sample(kind: Kind) -> Frame {
    frames().into_iter().find(|frame| frame.message.kind() == kind).unwrap()
}

#[test]
fn a_flipped_bit_anywhere_in_a_head_is_refused() {
    for frame in frames() {
        let whole = encoded(&frame);
        let payload = frame.message.data().map_or(0, BlockData::bytes);
        for bit in 0..(whole.len() - payload) * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (result, _) = outcome(&bytes);
            assert!(result.is_err(), "bit {bit} of {:?}", frame.message.kind());
        }
    }
}

#[test]
fn a_flipped_bit_in_a_block_is_found_by_verifying() {
    let whole = encoded(&sample(Kind::Write));
    for at in [whole.len() - 1, whole.len() - BLOCK_SIZE, whole.len() - 2 * BLOCK_SIZE] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let (frames, _) = outcome(&bytes);
        let Message::Write { data, .. } = &frames.unwrap()[0].message else { panic!("not a write") };
        let index = usize::from(at >= whole.len() - BLOCK_SIZE);
        assert_eq!(data.verify(), Err(index));
    }
}

#[test]
fn huge_lengths_are_refused_before_anything_is_allocated() {
    let (_, untouched) = outcome(&encoded(&sample(Kind::Done)));
    for frame in frames() {
        for at in [32, 36] {
            for value in [u32::MAX, 1 << 31, (256 << 12) + 4096, 1 << 20 | 1] {
                let (result, decoder) = outcome(&forged(&frame, at, &value.to_le_bytes()));
                assert!(matches!(result, Err(DecodeError::Length { .. })), "{result:?}");
                assert_eq!(decoder.held_bytes(), untouched.held_bytes());
            }
        }
    }
}

#[test]
fn a_decoder_that_receives_the_longest_frames_stays_small() {
    let mut stream = Vec::new();
    let data = samples::blocks(&[3; 256]);
    for _ in 0..4 {
        let Message::Write { start, stamp, progress, force_unit_access, .. } = sample(Kind::Write).message
        else {
            panic!("not a write")
        };
        let data = data.clone();
        stream.extend(encoded(&samples::frame(Message::Write {
            start,
            stamp,
            progress,
            force_unit_access,
            data,
        })));
    }
    stream.truncate(stream.len() - 1);
    let (frames, decoder) = outcome(&stream);
    assert_eq!(frames.unwrap().len(), 3);
    assert!(decoder.held_bytes() <= (256 << 10) + (1 << 20));
}

#[test]
fn an_error_stays() {
    let mut stream = vec![0; HEADER_BYTES];
    stream.extend(encoded(&sample(Kind::Done)));
    let (result, mut decoder) = outcome(&stream);
    assert_eq!(result, Err(DecodeError::Magic { found: 0 }));
    let mut buffer = decoder.buffer();
    buffer.put_slice(&encoded(&sample(Kind::Done)));
    decoder.filled(buffer);
    assert_eq!(decoder.next(), Err(DecodeError::Magic { found: 0 }));
}

#[test]
fn forged_headers_are_refused_with_their_reason() {
    let done = sample(Kind::Done);
    let refused = |bytes: &[u8]| outcome(bytes).0.unwrap_err();
    let version = refused(&forged(&done, 4, &[1, 0]));
    assert_eq!(version, DecodeError::Version { found: 1 });
    assert_eq!(version.code(), ErrorCode::Version);
    for number in [0u16, 5, 15, 31, 56, 70, u16::MAX] {
        let error = refused(&forged(&done, 6, &number.to_le_bytes()));
        assert_eq!(error, DecodeError::Kind { found: number });
        assert_eq!(error.code(), ErrorCode::Malformed);
    }
    assert_eq!(refused(&forged(&done, 8, &[1])), DecodeError::Flags { kind: Kind::Done, found: 1 });
    let flagged = refused(&forged(&sample(Kind::Write), 8, &[3]));
    assert_eq!(flagged, DecodeError::Flags { kind: Kind::Write, found: 3 });
    let generation = refused(&forged(&done, 15, &[1]));
    assert_eq!(generation, DecodeError::Field { kind: Kind::Done, field: "generation" });
}

#[test]
fn forged_fields_are_refused_with_their_reason() {
    let most = u64::MAX.to_le_bytes();
    let cases: [(Kind, usize, &[u8], &str); 42] = [
        (Kind::Error, 0, &[0, 0], "code"),
        (Kind::Error, 0, &[21, 0], "code"),
        (Kind::Error, 2, &[0xff], "detail"),
        (Kind::Write, 0, &most, "range"),
        (Kind::Write, 8, &[0xff, 0xff, 0xff, 0xff, 0xff], "stamp"),
        (Kind::Discard, 0, &most, "range"),
        (Kind::Discard, 8, &[0; 4], "range"),
        (Kind::Discard, 8, &[1, 0, 0x10, 0], "range"),
        (Kind::Discard, 12, &[0xff, 0xff, 0xff, 0xff, 0xff], "stamp"),
        (Kind::Read, 8, &[1, 1, 0, 0], "range"),
        (Kind::Read, 8, &[0, 0, 0, 0], "range"),
        (Kind::ReadReply, 0, &[0], "present"),
        (Kind::ReadReply, 0, &[0xff], "present"),
        (Kind::AllocationReply, 0, &[0; 4], "count"),
        (Kind::AllocationReply, 4, &[2], "allocated"),
        (Kind::TailReply, 20, &[7], "discard"),
        (Kind::ChangedReply, 16, &[0; 4], "range"),
        (Kind::ChangedReply, 28, &[2], "discard"),
        (Kind::Fetch, 8, &[1, 1, 0, 0], "range"),
        (Kind::Verify, 8, &[0, 0, 0, 0], "range"),
        // How many versions there are decides how many checksums and blocks must follow.
        (Kind::FetchReply, 0, &[1, 0], "length"),
        (Kind::FetchReply, 0, &[1, 1], "versions"),
        (Kind::FetchReply, 0, &[3, 0], "length"),
        // The second begins within the first, or lies too far from it.
        (Kind::FetchReply, 23, &[6], "versions"),
        (Kind::FetchReply, 24, &[0, 1], "versions"),
        (Kind::FetchReply, 10, &[0, 0, 0x10, 0], "versions"),
        (Kind::FetchReply, 22, &[1], "payload"),
        (Kind::VerifyReply, 0, &[1, 1], "versions"),
        (Kind::VerifyReply, 22, &[1], "length"),
        // One checksum more leaves too little for the ranges behind them.
        (Kind::VerifyReply, 43, &[0], "length"),
        (Kind::VerifyReply, 31, &[200, 0, 0, 0, 3, 0, 0, 0, 0, 7, 0, 0, 0], "checksums"),
        // The second that failed begins within the first, or covers nothing; one is too long.
        (Kind::VerifyReply, 64, &[5], "failed"),
        (Kind::VerifyReply, 72, &[0], "range"),
        (Kind::VerifyReply, 73, &[2], "range"),
        (Kind::Pull, 56, &[0xff], "address"),
        (Kind::Repair, 8, &[1, 1, 0, 0], "range"),
        (Kind::PullReport, 0, &[5], "state"),
        // The cut of the second snapshot is that of the first.
        (Kind::OpenReply, 56 + 24 + 16, &[9, 0, 0, 0, 0, 6, 0, 0], "snapshots"),
        (Kind::PullReport, 17, &[1, 4], "detail"),
        (Kind::PullReport, 19, &[0xff], "detail"),
        (Kind::PoolReport, 48, &[0xff, 0xff], "failed"),
        (Kind::PoolReport, 50, &[0xff], "failed"),
    ];
    for (kind, at, value, field) in cases {
        let (result, _) = outcome(&forged_fixed(&sample(kind), at, value));
        assert_eq!(result, Err(DecodeError::Field { kind, field }), "{kind:?} at {at}");
    }
}

#[test]
fn tags_that_do_not_agree_are_refused() {
    for frame in samples::frames() {
        let Some(data) = frame.message.data() else { continue };
        let flags = encoded(&frame)[8];
        assert_eq!(flags & 8 != 0, !data.tags.is_empty());
        let (result, _) = outcome(&forged(&frame, 8, &[flags ^ 8]));
        assert!(matches!(result, Err(DecodeError::Field { .. })), "{:?}: {result:?}", frame.message.kind());
    }
    // There is one way to say that no block is there.
    let (present, stamps) = (vec![0].into(), Vec::new());
    let nothing = samples::frame(Message::ReadReply { present, stamps, data: BlockData::default() });
    let (result, _) = outcome(&forged(&nothing, 8, &[8]));
    assert_eq!(result, Err(DecodeError::Field { kind: Kind::ReadReply, field: "tags" }));
}

#[test]
fn lengths_that_do_not_agree_are_refused() {
    let write = sample(Kind::Write);
    for payload in [0u32, 4096, 3 * 4096] {
        let (result, _) = outcome(&forged(&write, 36, &payload.to_le_bytes()));
        assert!(matches!(result, Err(DecodeError::Field { kind: Kind::Write, .. })), "{payload}: {result:?}");
    }
    let (result, _) = outcome(&forged(&write, 36, &4097u32.to_le_bytes()));
    assert_eq!(result, Err(DecodeError::Length { kind: Kind::Write, part: "payload", found: 4097 }));
}
