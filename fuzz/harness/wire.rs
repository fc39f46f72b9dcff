//! Feeds a stream to the data protocol's decoder and checks what must hold of any. The fuzz targets
//! `wire_stream` and `wire_sealed` and the tests of the crate include this file.

use bytes::BufMut;
use trivet_wire::header::HEADER_BYTES;
use trivet_wire::{DecodeError, Decoder, Encoder, Frame};

const BLOCK: usize = 4096;
/// The stage and one payload, each at its cap.
const HELD_BYTES_MAX: usize = (256 << 10) + (1 << 20);
/// Where the header has what sealing repairs.
const MAGIC_AND_VERSION: [u8; 6] = *b"TRVT\x02\x00";
const FIXED_BYTES_AT: usize = 32;
const PAYLOAD_BYTES_AT: usize = 36;
const FIXED_CRC_AT: usize = 40;
const CRC_AT: usize = 44;
/// Frames in one case; each may bring a payload of a mebibyte.
const SEALED_FRAMES_MAX: usize = 8;

/// Decodes `stream`, received in pieces of the lengths that `splits` repeats.
fn decode(stream: &[u8], splits: &[usize]) -> (Vec<Frame>, Option<DecodeError>) {
    let mut decoder = Decoder::new();
    let mut splits = splits.iter().copied().cycle();
    let mut rest = stream;
    let mut frames = Vec::new();
    loop {
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next(), Err(error), "an error stays");
                    return (frames, Some(error));
                }
            }
        }
        if rest.is_empty() {
            return (frames, None);
        }
        let mut buffer = decoder.buffer();
        assert!(buffer.is_empty() && buffer.capacity() > 0, "no room to receive into");
        assert!(decoder.held_bytes() + buffer.capacity() <= HELD_BYTES_MAX + BLOCK);
        let count = splits.next().unwrap_or(usize::MAX).clamp(1, buffer.capacity()).min(rest.len());
        buffer.put_slice(&rest[..count]);
        rest = &rest[count..];
        decoder.filled(buffer);
    }
}

/// However the stream is cut, the same comes out; and it is what was put in, byte by byte.
fn check(stream: &[u8], split: usize) {
    let (frames, error) = decode(stream, &[usize::MAX]);
    let cut = decode(stream, &[split % 61 + 1, split * 97 + 1]);
    assert_eq!(cut, (frames.clone(), error), "the outcome depends on how the stream is cut");
    let mut encoder = Encoder::new();
    for frame in &frames {
        encoder.push(frame);
        if let Some(data) = frame.message.data() {
            // Whether blocks have changed is the receiver's to ask; the answer names one of them.
            assert!(data.verify().err().is_none_or(|index| index < data.blocks()));
            assert!(data.segments.iter().all(|s| s.as_ptr().align_offset(BLOCK) == 0));
        }
    }
    let again = encoder.take().concat();
    assert!(stream.starts_with(&again), "decoding and encoding changes bytes");
}

/// One case of `wire_stream`: the first byte chooses how the rest is cut.
pub(crate) fn run_stream(case: &[u8]) {
    let [split, stream @ ..] = case else { return };
    check(stream, usize::from(*split));
}

/// One case of `wire_sealed`: as `wire_stream`, with magic, version, lengths and checksums made
/// right first, so that what lies behind the checksums is reached. Payload is not in the case: it
/// is put in, zeros, as long as the header says.
pub(crate) fn run_sealed(case: &[u8]) {
    let [split, rest @ ..] = case else { return };
    check(&sealed(rest), usize::from(*split));
}

fn sealed(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..SEALED_FRAMES_MAX {
        let Some((header, after)) = rest.split_first_chunk::<HEADER_BYTES>() else { break };
        let length = |at: usize| {
            let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            u32::from_le_bytes(bytes) as usize
        };
        let fixed = &after[..length(FIXED_BYTES_AT).min(after.len())];
        let payload = length(PAYLOAD_BYTES_AT).min(256 * BLOCK) / BLOCK * BLOCK;
        rest = &after[fixed.len()..];
        let start = out.len();
        out.extend_from_slice(header);
        let mut put = |at: usize, value: &[u8]| {
            out[start + at..start + at + value.len()].copy_from_slice(value);
        };
        put(0, &MAGIC_AND_VERSION);
        put(FIXED_BYTES_AT, &u32::try_from(fixed.len()).unwrap().to_le_bytes());
        put(PAYLOAD_BYTES_AT, &u32::try_from(payload).unwrap().to_le_bytes());
        put(FIXED_CRC_AT, &crc32fast::hash(fixed).to_le_bytes());
        let crc = crc32fast::hash(&out[start..start + CRC_AT]);
        out[start + CRC_AT..start + HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(fixed);
        out.resize(out.len() + payload, 0);
    }
    out.extend_from_slice(rest);
    out
}
