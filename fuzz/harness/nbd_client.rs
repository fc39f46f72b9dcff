//! A server says anything to the NBD client. The fuzz target `nbd_client` and the tests of the crate
//! include this file.

use bytes::Bytes;
use trivet_nbd::{Connection, Event, Finished, ProtocolError, Request, Wanted};

const EXPORT_BYTES: u64 = 1 << 30;
/// What may be kept until it is understood: a chunk that must be whole, or an answer in the handshake.
const HELD_BYTES_MAX: usize = (1 << 20) + (1 << 16);

/// What is in flight as soon as all is agreed, by handle.
pub(crate) fn requests() -> Vec<Request> {
    vec![
        Request::Read { offset: 0, length: 4096 },
        Request::Read { offset: 8192, length: 64 },
        Request::ReadAndForget { offset: 4096, length: 512 },
        Request::Write { offset: 0, data: Bytes::from_static(b"data") },
        Request::WriteZeroes { offset: 0, length: 1 << 20 },
        Request::Flush,
        Request::Allocation { offset: 1 << 20, length: 1 << 30 },
    ]
}

/// A handshake in which the server has everything.
pub(crate) fn handshake() -> Vec<u8> {
    let reply = |option: u32, kind: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap();
        [
            &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
            &option.to_be_bytes(),
            &kind.to_be_bytes(),
            &length.to_be_bytes(),
            data,
        ]
        .concat()
    };
    let export = [&[0, 0][..], &EXPORT_BYTES.to_be_bytes(), &[0, 0x45]].concat();
    [
        b"NBDMAGICIHAVEOPT\x00\x03".to_vec(),
        reply(8, 1, &[]),
        reply(10, 4, b"\x00\x00\x00\x01base:allocation"),
        reply(10, 1, &[]),
        reply(7, 3, &export),
        reply(7, 1, &[]),
    ]
    .concat()
}

/// What comes of a stream that is received in pieces of the lengths that `splits` repeats.
pub(crate) fn converse(stream: &[u8], splits: &[usize]) -> (Vec<Event>, Option<ProtocolError>) {
    let mut connection = Connection::new("disk0", Wanted::DataAndAllocation);
    let mut splits = splits.iter().copied().cycle();
    let mut rest = stream;
    let mut events = Vec::new();
    loop {
        loop {
            match connection.advance() {
                Ok(Some(event)) => {
                    if matches!(event, Event::Agreed(_)) {
                        for (handle, request) in (0..).zip(requests()) {
                            connection.submit(handle, request).unwrap();
                        }
                    }
                    events.push(event);
                }
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            }
        }
        let (buffer, _) = connection.halves();
        assert!(buffer.len() <= HELD_BYTES_MAX, "{} bytes are held", buffer.len());
        if rest.is_empty() {
            return (events, None);
        }
        let count = splits.next().unwrap_or(usize::MAX).clamp(1, 1 << 16).min(rest.len());
        buffer.extend_from_slice(&rest[..count]);
        rest = &rest[count..];
    }
}

/// What is answered is what was asked, in kind and length.
fn check(finished: &Finished) {
    let request = &requests()[usize::try_from(finished.handle).unwrap()];
    let (data, most) = match request {
        Request::Read { length, .. } => (*length, 0),
        Request::Allocation { length, .. } => (0, u64::from(*length)),
        _ => (0, 0),
    };
    let data = if finished.error == 0 { usize::try_from(data).unwrap() } else { 0 };
    assert_eq!(finished.data.len(), data);
    let told: u64 = finished.extents.iter().map(|extent| u64::from(extent.length)).sum();
    assert!(told <= most, "{told} bytes told of, {most} asked about");
    assert_eq!(told > 0, most > 0 && finished.error == 0);
}

/// One case: the first byte chooses whether the handshake is put before the rest, the second how all
/// is cut.
pub(crate) fn run(case: &[u8]) {
    let [options, split, rest @ ..] = case else { return };
    let stream = if options & 1 == 0 { [&handshake(), rest].concat() } else { rest.to_vec() };
    let whole = converse(&stream, &[usize::MAX]);
    let cut = converse(&stream, &[usize::from(*split) % 61 + 1, usize::from(*split) * 7 + 1]);
    assert_eq!(whole, cut, "the outcome depends on how the stream is cut");
    let mut answered = std::collections::HashSet::new();
    for event in &whole.0 {
        if let Event::Finished(finished) = event {
            assert!(answered.insert(finished.handle), "request {} is answered twice", finished.handle);
            check(finished);
        }
    }
}
