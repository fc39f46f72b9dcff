//! However the client's stream is cut by the network, and in whatever order the volume completes,
//! the client gets the same answers.

use super::client::{
    self, BLOCK_STATUS, CACHE, DF, DISC, FAST_ZERO, FLUSH, FUA, NO_HOLE, READ, REQ_ONE, Reader, TRIM, WRITE,
    WRITE_ZEROES, command,
};
use super::harness::{Driver, Order, export};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
struct Asked {
    flags: u16,
    kind: u16,
    offset: u64,
    length: u32,
    fill: u8,
}

fn asked() -> impl Strategy<Value = Asked> {
    let kind = prop_oneof![
        3 => Just(READ),
        4 => Just(WRITE),
        1 => Just(FLUSH),
        1 => Just(TRIM),
        1 => Just(WRITE_ZEROES),
        1 => Just(BLOCK_STATUS),
        1 => Just(CACHE),
        1 => Just(99_u16),
    ];
    let flags = prop_oneof![
        4 => Just(0),
        1 => Just(FUA),
        1 => proptest::sample::select(vec![NO_HOLE, DF, REQ_ONE, FAST_ZERO, FUA | FAST_ZERO, 1 << 9]),
    ];
    let length = prop_oneof![4 => 1..64_u32, 1 => 64..3000_u32, 1 => Just(0)];
    // Up to four sectors past the end; one in sixteen not aligned.
    let place = (0..(2 << 11) + 4_u64, 0..16_u8);
    (flags, kind, place, length, 0..4_u8).prop_map(|(flags, kind, (sector, odd), sectors, fill)| Asked {
        flags,
        kind,
        offset: if kind == FLUSH { 0 } else { sector * 512 + u64::from(odd == 0) },
        length: if kind == FLUSH { 0 } else { sectors * 512 },
        fill,
    })
}

fn stream(structured: bool, requests: &[Asked]) -> Vec<u8> {
    let mut bytes = client::hello(structured);
    for (cookie, asked) in (1..).zip(requests) {
        bytes.extend(command(asked.flags, asked.kind, cookie, asked.offset, asked.length));
        if asked.kind == WRITE {
            bytes.resize(bytes.len() + asked.length as usize, asked.fill);
        }
    }
    bytes.extend(command(0, DISC, 0, 0, 0));
    bytes
}

fn reads(requests: &[Asked]) -> BTreeMap<u64, (u64, u32)> {
    let all = (1..).zip(requests);
    all.filter(|(_, asked)| asked.kind == READ).map(|(i, asked)| (i, (asked.offset, asked.length))).collect()
}

/// What the volume must hold and the reads must return, by the shortest possible model.
fn model(requests: &[Asked], structured: bool) -> (Vec<u8>, BTreeMap<u64, Vec<u8>>) {
    let mut data = vec![0; 2 << 20];
    let mut returned = BTreeMap::new();
    for (cookie, asked) in (1..).zip(requests) {
        let end = asked.offset + u64::from(asked.length);
        let aligned = asked.offset.is_multiple_of(512) && asked.length > 0;
        let flags = asked.flags & !FUA;
        if !aligned || end > 2 << 20 {
            continue;
        }
        let start = usize::try_from(asked.offset).unwrap();
        let range = start..start + asked.length as usize;
        match asked.kind {
            READ if flags == 0 || (flags == DF && structured) => {
                returned.insert(cookie, data[range].to_vec());
            }
            WRITE if flags == 0 => data[range].fill(asked.fill),
            TRIM if flags == 0 => {
                let (start, end) = (range.start.next_multiple_of(4096), range.end / 4096 * 4096);
                if start < end {
                    data[start..end].fill(0);
                }
            }
            WRITE_ZEROES if flags & !(NO_HOLE | FAST_ZERO) == 0 => {
                let whole_blocks = range.start.is_multiple_of(4096) && range.end.is_multiple_of(4096);
                if flags & FAST_ZERO == 0 || whole_blocks {
                    data[range].fill(0);
                }
            }
            _ => {}
        }
    }
    (data, returned)
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_answer_does_not_depend_on_how_the_stream_is_cut(
        structured: bool,
        requests in prop::collection::vec(asked(), 0..40),
        splits in prop::collection::vec(1..9000_usize, 1..20),
    ) {
        let stream = stream(structured, &requests);
        let drive = |splits: &[usize]| {
            let mut driver = Driver::new(export(false));
            assert_eq!(driver.say(&stream, splits), stream.len());
            assert!(driver.connection.is_finished().is_some());
            driver
        };
        let whole = drive(&[]);
        let cut = drive(&splits);
        prop_assert!(whole.sent == cut.sent);
        let (data, returned) = model(&requests, structured);
        prop_assert!(whole.volume.contents() == data && cut.volume.contents() == data);

        let mut reader = Reader(&whole.sent);
        reader.skip_handshake();
        let replies = client::replies(reader, &reads(&requests));
        prop_assert_eq!(replies.len(), requests.len(), "every request is answered once");
        for (cookie, data) in &returned {
            prop_assert_eq!(replies[cookie].error, 0);
            prop_assert!(&replies[cookie].data == data);
        }
        let succeeded = |cookie: &&u64| replies[*cookie].error == 0;
        let all_reads = reads(&requests);
        prop_assert_eq!(all_reads.keys().filter(succeeded).count(), returned.len());
    }

    #[test]
    fn replies_in_any_order_reach_their_requests(
        structured: bool,
        requests in prop::collection::vec(asked(), 1..40),
    ) {
        // Only reads, of data written before: the order of completion must not matter.
        let mut driver = Driver::new(export(false));
        driver.say(&client::hello(structured), &[]);
        let mut pattern = Vec::new();
        for i in 0..(2_u32 << 20) / 512 {
            let fill = if i / 200 % 2 == 0 { 0 } else { u8::try_from(i % 251).unwrap() };
            pattern.resize(pattern.len() + 512, fill);
        }
        driver.say(&client::write(0, 0, 0, &pattern), &[]);
        driver.order = Order::LastFirst;
        let before = driver.sent.len();
        let requests: Vec<_> = requests.into_iter().map(|asked| Asked { kind: READ, ..asked }).collect();
        let bytes: Vec<u8> = (1..).zip(&requests)
            .flat_map(|(i, asked)| command(asked.flags, READ, i, asked.offset, asked.length)).collect();
        driver.say(&bytes, &[]);
        let replies = client::replies(Reader(&driver.sent[before..]), &reads(&requests));
        prop_assert_eq!(replies.len(), requests.len());
        for (cookie, reply) in replies {
            let asked = &requests[usize::try_from(cookie).unwrap() - 1];
            if reply.error == 0 {
                let start = usize::try_from(asked.offset).unwrap();
                prop_assert!(reply.data == pattern[start..start + asked.length as usize]);
            }
        }
    }
}
