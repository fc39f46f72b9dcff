//! Whole conversations: with an oracle that answers rightly, however the stream is cut, and with
//! servers that say anything.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use std::path::Path;
use trivet_nbd::{Event, Export, ProtocolError, Request};

#[path = "../../fuzz/harness/nbd_client.rs"]
mod harness;

use harness::{converse, handshake, requests};

fn simple(handle: u64, error: u32, data: &[u8]) -> Vec<u8> {
    [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), &handle.to_be_bytes(), data].concat()
}

fn chunk(handle: u64, kind: u16, last: bool, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    let fields = [&u16::from(last).to_be_bytes()[..], &kind.to_be_bytes(), &handle.to_be_bytes(), &length];
    [&0x668e_33ef_u32.to_be_bytes()[..], &fields.concat(), data].concat()
}

fn outcome(replies: &[Vec<u8>]) -> (Vec<Event>, Option<ProtocolError>) {
    converse(&[handshake(), replies.concat()].concat(), &[usize::MAX])
}

/// What the export holds, by the oracle.
fn byte_at(offset: u64) -> u8 {
    u8::try_from(offset % 251).unwrap()
}

#[test]
fn what_the_server_has_is_agreed_upon() {
    let (events, error) = outcome(&[]);
    let export = Export {
        size: 1 << 30,
        read_only: false,
        can_flush: true,
        can_write_zeroes: true,
        structured: true,
        has_allocation: true,
    };
    assert_eq!((events, error), (vec![Event::Agreed(export)], None));
}

proptest! {
    #[test]
    fn reads_come_out_as_the_server_holds_them_in_whatever_pieces(
        cuts in proptest::collection::vec(1..700_usize, 1..20),
        edges in proptest::collection::btree_set(1..4096_u64, 0..12),
        holes in proptest::collection::vec(any::<bool>(), 13),
        backwards in any::<bool>(),
    ) {
        let edges: Vec<u64> = std::iter::once(0).chain(edges).chain([4096]).collect();
        let mut wanted = vec![0; 4096];
        let mut chunks = Vec::new();
        for (run, hole) in edges.windows(2).zip(&holes) {
            let (start, end) = (run[0], run[1]);
            if *hole {
                let length = u32::try_from(end - start).unwrap();
                chunks.push((2, [&start.to_be_bytes()[..], &length.to_be_bytes()].concat()));
            } else {
                let data: Vec<u8> = (start..end).map(byte_at).collect();
                wanted[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()].copy_from_slice(&data);
                chunks.push((1, [&start.to_be_bytes()[..], &data].concat()));
            }
        }
        if backwards {
            chunks.reverse();
        }
        let last = chunks.len() - 1;
        let replies: Vec<u8> = chunks
            .iter()
            .enumerate()
            .flat_map(|(index, (kind, data))| chunk(0, *kind, index == last, data))
            .collect();
        let (events, error) = converse(&[handshake(), replies].concat(), &cuts);
        prop_assert_eq!(error, None);
        let Some(Event::Finished(read)) = events.last() else { panic!("{events:?}") };
        prop_assert_eq!((read.handle, read.error), (0, 0));
        prop_assert_eq!(&read.data[..], &wanted[..]);
    }

    #[test]
    fn whatever_a_server_says_is_understood_or_refused(case in proptest::collection::vec(any::<u8>(), 0..300)) {
        harness::run(&case);
    }
}

#[test]
fn a_reply_that_does_not_fit_its_request_ends_the_connection() {
    let read_at = |offset: u64, length: usize| [&offset.to_be_bytes()[..], &vec![1; length]].concat();
    for (replies, expected) in [
        (vec![chunk(1, 1, true, &read_at(8192, 63))], "63 of 64 bytes"),
        (vec![chunk(1, 1, true, &read_at(8193, 64))], "not wanted"),
        (vec![chunk(1, 1, true, &read_at(8191, 8))], "not wanted"),
        (vec![chunk(1, 1, true, &read_at(u64::MAX, 8))], "not wanted"),
        (vec![chunk(1, 1, false, &read_at(8200, 9)), chunk(1, 1, true, &read_at(8192, 9))], "not wanted"),
        (vec![chunk(3, 1, true, &read_at(0, 4))], "not wanted"),
        (vec![chunk(0, 5, true, &[0; 12])], "chunk of type 5"),
        (vec![chunk(6, 5, true, &[0; 4])], "chunk of type 5"),
        (vec![chunk(6, 5, true, &[0; 13])], "chunk of type 5"),
        (vec![chunk(6, 0, true, &[])], "0 of 1073741824 bytes"),
        (vec![chunk(0, 0, false, &[])], "chunk of type 0"),
        (vec![chunk(0, 77, true, &[])], "chunk of type 77"),
        (vec![simple(9, 0, &[])], "was not asked"),
        (vec![simple(5, 0, &[]), simple(5, 0, &[])], "was not asked"),
    ] {
        let (_, error) = outcome(&replies);
        let error = error.unwrap_or_else(|| panic!("{replies:?} was taken")).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn errors_are_told_by_their_numbers_and_bring_no_data() {
    let error = [&5_u32.to_be_bytes()[..], &[0, 0]].concat();
    let half = [&8192_u64.to_be_bytes()[..], &[1; 8]].concat();
    let (events, none) =
        outcome(&[simple(3, 28, &[]), chunk(1, 1, false, &half), chunk(1, 0x8001, true, &error)]);
    assert_eq!(none, None);
    let numbers: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Finished(one) => Some((one.handle, one.error, one.data.len())),
            Event::Agreed(_) => None,
        })
        .collect();
    assert_eq!(numbers, [(3, 28, 0), (1, 5, 0)]);
}

#[test]
fn an_answer_on_allocation_is_cut_at_what_was_asked_about() {
    let Request::Allocation { length, .. } = requests()[6] else { panic!("the harness has changed") };
    let extents = [(1 << 20, 0), (u32::MAX, 3), (7, 0)];
    let data: Vec<u8> = std::iter::once(1_u32.to_be_bytes().to_vec())
        .chain(
            extents.map(|(length, flags): (u32, u32)| [length.to_be_bytes(), flags.to_be_bytes()].concat()),
        )
        .flatten()
        .collect();
    let (events, error) = outcome(&[chunk(6, 5, true, &data)]);
    assert_eq!(error, None);
    let Some(Event::Finished(told)) = events.last() else { panic!("{events:?}") };
    let told: Vec<_> = told.extents.iter().map(|extent| (extent.length, extent.zero)).collect();
    assert_eq!(told, [(1 << 20, false), (length - (1 << 20), true)]);
}

#[test]
fn nothing_fails_on_the_corpus_of_the_fuzzer() {
    let folder = Path::new("../fuzz/corpus/nbd_client");
    let cases: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(cases.len() > 10, "the corpus is not at {}", folder.display());
    for case in cases {
        harness::run(&std::fs::read(case).unwrap());
    }
}
