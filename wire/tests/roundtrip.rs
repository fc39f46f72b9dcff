//! What is encoded is decoded the same, however the stream is cut.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod samples;

use bytes::{BufMut, Bytes};
use proptest::prelude::*;
use samples::frames;
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{BLOCK_SIZE, BlockCrc, BlockRange, BlockTag, Epoch, Generation, PoolId, Stamp, VolumeId};
use trivet_wire::frame::{ADDRESS_BYTES_MAX, DETAIL_BYTES_MAX, DIVERGED_MAX, EXTENTS_MAX, TAIL_ENTRIES_MAX};
use trivet_wire::{
    BlockData, Decoder, Encoder, Envelope, ErrorCode, Extent, Frame, Message, PoolReport, Progress,
    PullReport, PullState, TailEntry, VolumeReport,
};

/// Feeds `stream` in receives of at most `cuts` bytes, in turn, and collects what comes out.
fn decode(stream: &[u8], cuts: &[usize]) -> Vec<Frame> {
    let mut decoder = Decoder::new();
    let mut rest = stream;
    let mut out = Vec::new();
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let mut buffer = decoder.buffer();
        assert!(buffer.is_empty() && buffer.capacity() > 0, "there must be room to receive into");
        let take = (*cuts.next().unwrap()).min(buffer.capacity()).min(rest.len());
        buffer.put_slice(&rest[..take]);
        rest = &rest[take..];
        decoder.filled(buffer);
        while let Some(frame) = decoder.next().unwrap() {
            out.push(frame);
        }
    }
    out
}

/// Frames differ in how their payload is cut into segments; what counts is the bytes.
fn joined(mut frame: Frame) -> Frame {
    if let Some(data) = frame.message.data_mut()
        && data.blocks() > 0
    {
        *data =
            BlockData::new(data.crcs.clone(), data.tags.clone(), vec![Bytes::from(data.segments.concat())]);
    }
    frame
}

#[test]
fn every_message_comes_back_whole_and_byte_by_byte() {
    let mut encoder = Encoder::new();
    for frame in frames() {
        encoder.push(&frame);
    }
    let total = encoder.bytes();
    let stream = encoder.take().concat();
    assert_eq!(stream.len(), total);
    assert!(encoder.is_empty());
    for cut in [1, 47, 48, 4096, usize::MAX] {
        assert_eq!(decode(&stream, &[cut]), frames(), "cut every {cut}");
    }
}

#[test]
fn consecutive_heads_share_a_segment_and_payload_is_passed_by_reference() {
    let write = frames().into_iter().find(|f| matches!(f.message, Message::Write { .. })).unwrap();
    let Message::Write { data, .. } = &write.message else { unreachable!() };
    let mut encoder = Encoder::new();
    encoder.push(&samples::frame(Message::Done));
    encoder.push(&samples::frame(Message::PoolStatus));
    encoder.push(&write);
    encoder.push(&samples::frame(Message::Done));
    let segments = encoder.take();
    assert_eq!(segments.len(), 3);
    assert_eq!(segments[1].as_ptr(), data.segments[0].as_ptr());
}

#[test]
fn one_message_goes_to_several_peers() {
    let message = frames().remove(8).message;
    let (mut first, mut second) = (Encoder::new(), Encoder::new());
    first.push_message(Envelope { request: 1, ..Envelope::default() }, &message);
    second.push_message(Envelope { request: 2, ..Envelope::default() }, &message);
    for (encoder, request) in [(&mut first, 1), (&mut second, 2)] {
        let frames = decode(&encoder.take().concat(), &[usize::MAX]);
        assert_eq!((frames[0].request, &frames[0].message), (request, &message));
    }
}

#[test]
fn payload_lies_aligned_however_it_arrives() {
    let fills: Vec<u8> = (0..=255).collect();
    let write = samples::frame(Message::Write {
        start: 0,
        stamp: samples::stamp(7, 1),
        progress: Progress::default(),
        force_unit_access: false,
        data: samples::blocks(&fills),
    });
    let stream = samples::encoded(&write);
    for cut in [1000, 5000, 100_000, usize::MAX] {
        let frames = decode(&stream, &[cut]);
        let Message::Write { data, .. } = &frames[0].message else { panic!("not a write") };
        assert_eq!(data.verify(), Ok(()));
        assert!(data.segments.iter().all(|s| s.as_ptr().align_offset(BLOCK_SIZE) == 0));
        assert_eq!(frames, std::slice::from_ref(&write));
    }
}

#[test]
fn a_large_payload_is_received_where_it_stays() {
    let write = samples::frame(Message::Write {
        start: 0,
        stamp: samples::stamp(7, 1),
        progress: Progress::default(),
        force_unit_access: false,
        data: samples::blocks(&[5; 64]),
    });
    let stream = samples::encoded(&write);
    let head = stream.len() - 64 * BLOCK_SIZE;
    let mut decoder = Decoder::new();
    let mut buffer = decoder.buffer();
    buffer.put_slice(&stream[..head + 1000]);
    decoder.filled(buffer);
    assert_eq!(decoder.next(), Ok(None));
    let mut buffer = decoder.buffer();
    assert_eq!(buffer.capacity(), 64 * BLOCK_SIZE - 1000, "exactly what is missing");
    let received_at = buffer.as_ptr();
    buffer.put_slice(&stream[head + 1000..]);
    decoder.filled(buffer);
    let frame = decoder.next().unwrap().unwrap();
    let Message::Write { data, .. } = &frame.message else { panic!("not a write") };
    assert_eq!(data.segments[0][1000..].as_ptr(), received_at);
    assert_eq!(frame, write);
}

fn stamps() -> impl Strategy<Value = Stamp> {
    (0..=Generation::MAX.get(), 0..1u64 << 39).prop_map(|(g, s)| samples::stamp(g, s))
}

fn ranges(count_max: u32) -> impl Strategy<Value = BlockRange> {
    (0..1u64 << 40, 1..=count_max).prop_map(|(start, count)| BlockRange::new(start, count))
}

fn progress() -> impl Strategy<Value = Progress> {
    (stamps(), stamps()).prop_map(|(committed, stable)| Progress { committed, stable })
}

fn data(present: usize) -> impl Strategy<Value = BlockData> {
    (any::<u64>(), 0..3usize, any::<bool>()).prop_map(move |(seed, cut, tagged)| {
        let bytes: Vec<u8> = (0..present)
            .flat_map(|i| [(seed.rotate_left(u32::try_from(i).unwrap()) & 0xff) as u8; BLOCK_SIZE])
            .collect();
        let bytes = Bytes::from(bytes);
        let at = present * cut / 3 * BLOCK_SIZE;
        let segments = [bytes.slice(..at), bytes.slice(at..)];
        let data = BlockData::checksummed(segments.into_iter().filter(|s| !s.is_empty()).collect());
        let tag = |at: usize| BlockTag([u8::try_from(at % 256).unwrap(); 16]);
        let tags = (0..if tagged { present } else { 0 }).map(tag).collect();
        BlockData { tags, ..data }
    })
}

fn read_replies() -> impl Strategy<Value = Message> {
    proptest::collection::vec(any::<u8>(), 1..=4).prop_flat_map(|present| {
        let ones = present.iter().map(|b| b.count_ones() as usize).sum();
        data(ones).prop_map(move |data| {
            let stamps = (1..).take(data.tags.len()).map(Stamp::from_u64).collect();
            Message::ReadReply { present: Bytes::from(present.clone()), stamps, data }
        })
    })
}

/// Versions in the order of blocks within `IO_BLOCKS_MAX` blocks, and how many blocks hold data.
fn versions() -> impl Strategy<Value = (Vec<TailEntry>, usize)> {
    let runs = proptest::collection::vec((0..3u64, 1..=5u32, stamps(), any::<bool>()), 0..24);
    (0..1u64 << 40, runs).prop_map(|(mut at, runs)| {
        let mut blocks = 0;
        let entry = |(gap, count, stamp, discard): (u64, u32, Stamp, bool)| {
            let range = BlockRange::new(at + gap, count);
            at = range.end();
            blocks += if discard { 0 } else { count as usize };
            TailEntry { range, stamp, discard }
        };
        let entries = runs.into_iter().map(entry).collect();
        (entries, blocks)
    })
}

fn sync_messages() -> impl Strategy<Value = Message> {
    let pool = any::<[u8; 16]>().prop_map(PoolId::from_bytes);
    let address = "\\PC{1,100}";
    let entries = proptest::collection::vec((ranges(u32::MAX), stamps(), any::<bool>()), 0..50);
    prop_oneof![
        (stamps(), any::<u64>()).prop_map(|(since, start)| Message::Changed { since, start }),
        (entries, proptest::option::of(0..1u64 << 40)).prop_map(|(entries, next)| Message::ChangedReply {
            entries: entries
                .into_iter()
                .map(|(range, stamp, discard)| TailEntry { range, stamp, discard })
                .collect(),
            next,
        }),
        ranges(IO_BLOCKS_MAX).prop_map(|range| Message::Fetch { range }),
        (ranges(IO_BLOCKS_MAX), any::<bool>())
            .prop_map(|(range, stamps_only)| Message::Verify { range, stamps_only }),
        versions().prop_flat_map(|(versions, blocks)| {
            data(blocks).prop_map(move |data| Message::FetchReply { versions: versions.clone(), data })
        }),
        (versions(), proptest::collection::vec((0..3u64, 1..=5u32), 0..24)).prop_map(
            |((versions, blocks), runs)| {
                let mut at = versions.first().map_or(0, |first| first.range.start);
                let range = |(gap, count): (u64, u32)| {
                    let range = BlockRange::new(at + gap, count);
                    at = range.end();
                    range
                };
                let failed = runs.into_iter().map(range).collect();
                let crcs = (0..blocks).map(|at| BlockCrc(u32::try_from(at).unwrap())).collect();
                Message::VerifyReply { versions, crcs, failed }
            }
        ),
        (pool.clone(), any::<[u8; 16]>(), address, stamps(), stamps(), stamps()).prop_map(
            |(source, boot, address, since, floor, stable)| Message::Pull {
                source,
                boot: trivet_model::BootId::from_bytes(boot),
                address,
                since,
                floor,
                stable,
            }
        ),
        (ranges(IO_BLOCKS_MAX), pool, address).prop_map(|(range, source, address)| Message::Repair {
            range,
            source,
            address
        }),
        (
            1..=3u8,
            any::<u64>(),
            any::<u64>(),
            proptest::collection::vec(ranges(u32::MAX), 0..50),
            "\\PC{0,300}"
        )
            .prop_map(|(state, position, copied_blocks, diverged, detail)| {
                let state = PullState::from_number(state).unwrap();
                Message::PullReport(PullReport { state, position, copied_blocks, diverged, detail })
            }),
    ]
}

fn messages() -> impl Strategy<Value = Message> {
    let volume = any::<[u8; 16]>().prop_map(VolumeId::from_bytes);
    prop_oneof![
        4 => (0..1u64 << 40, stamps(), progress(), any::<bool>(), (1..=IO_BLOCKS_MAX as usize).prop_flat_map(data))
            .prop_map(|(start, stamp, progress, force_unit_access, data)| Message::Write {
                start, stamp, progress, force_unit_access, data
            }),
        4 => read_replies(),
        1 => (ranges(1 << 20), stamps(), progress(), any::<bool>()).prop_map(
            |(range, stamp, progress, force_unit_access)| Message::Discard { range, stamp, progress, force_unit_access }
        ),
        1 => ranges(IO_BLOCKS_MAX).prop_map(|range| Message::Read { range }),
        1 => (volume, any::<bool>(), any::<u64>())
            .prop_map(|(volume, writable, session)| Message::Open { volume, writable, session }),
        1 => "\\PC{0,300}".prop_map(|detail| Message::Error { code: ErrorCode::Medium, detail }),
        1 => (proptest::collection::vec((ranges(u32::MAX), stamps(), any::<bool>()), 0..50), any::<bool>()).prop_map(
            |(entries, more)| Message::TailReply {
                entries: entries.into_iter().map(|(range, stamp, discard)| TailEntry { range, stamp, discard }).collect(),
                more,
            }
        ),
        1 => proptest::collection::vec((1..u32::MAX, any::<bool>()), 1..50).prop_map(|extents| {
            Message::AllocationReply {
                extents: extents.into_iter().map(|(count, allocated)| Extent { count, allocated }).collect(),
            }
        }),
        5 => sync_messages(),
        2 => proptest::sample::select(frames()).prop_map(|frame| frame.message),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_stream_survives_any_cut(
        messages in proptest::collection::vec(
            (any::<u64>(), 0..=Generation::MAX.get(), any::<u64>(), messages()), 1..6),
        cuts in proptest::collection::vec(prop_oneof![1..100usize, 1..10_000usize, 1..2_000_000usize], 1..8),
    ) {
        let frames: Vec<Frame> = messages
            .into_iter()
            .map(|(request, generation, epoch, message)| Frame {
                request, generation: samples::generation(generation), epoch: Epoch(epoch), message,
            })
            .collect();
        let mut encoder = Encoder::new();
        for frame in &frames {
            encoder.push(frame);
        }
        let decoded = decode(&encoder.take().concat(), &cuts);
        prop_assert_eq!(decoded, frames.into_iter().map(joined).collect::<Vec<_>>());
    }
}

fn every_tag(data: BlockData) -> BlockData {
    BlockData { tags: vec![BlockTag([9; 16]); data.blocks()], ..data }
}

#[test]
fn the_longest_of_every_message() {
    let entry = TailEntry { range: BlockRange::new(1, 1), stamp: samples::stamp(1, 1), discard: true };
    let reports = frames().into_iter().filter_map(|frame| match frame.message {
        Message::PoolReport(report) => Some(report),
        _ => None,
    });
    let report = reports.last().unwrap();
    let volume: VolumeReport = report.volumes[0].clone();
    let single = |block| TailEntry { range: BlockRange::new(block, 1), discard: false, ..entry };
    let apart: Vec<TailEntry> = (7..7 + 256).map(single).collect();
    let messages = [
        Message::TailReply { entries: vec![entry; TAIL_ENTRIES_MAX], more: false },
        Message::AllocationReply { extents: vec![Extent { count: 1, allocated: true }; EXTENTS_MAX] },
        Message::PoolReport(PoolReport {
            volumes: vec![volume; 4096],
            failed: "x".repeat(DETAIL_BYTES_MAX),
            ..report
        }),
        Message::ReadReply {
            present: Bytes::from(vec![0xff; 32]),
            stamps: vec![Stamp::ZERO; 256],
            data: every_tag(samples::blocks(&[9; 256])),
        },
        Message::ChangedReply { entries: vec![entry; TAIL_ENTRIES_MAX], next: Some(0) },
        Message::FetchReply { versions: apart.clone(), data: every_tag(samples::blocks(&[9; 256])) },
        Message::VerifyReply {
            versions: apart.clone(),
            crcs: vec![BlockCrc(1); 256],
            failed: apart.iter().map(|entry| entry.range).collect(),
        },
        Message::Pull {
            source: PoolId::from_bytes([1; 16]),
            boot: trivet_model::BootId::from_bytes([2; 16]),
            address: "x".repeat(ADDRESS_BYTES_MAX),
            since: Stamp::ZERO,
            floor: Stamp::ZERO,
            stable: Stamp::ZERO,
        },
        Message::PullReport(PullReport {
            state: PullState::Failed,
            position: 1,
            copied_blocks: 2,
            diverged: vec![BlockRange::new(1, 1); DIVERGED_MAX],
            detail: "x".repeat(DETAIL_BYTES_MAX),
        }),
    ];
    for message in messages {
        let frame = samples::frame(message);
        for cut in [700, usize::MAX] {
            assert_eq!(decode(&samples::encoded(&frame), &[cut]), std::slice::from_ref(&frame));
        }
    }
}

#[test]
fn a_long_detail_is_cut_at_a_character() {
    let detail = format!("{}é", "x".repeat(DETAIL_BYTES_MAX - 1));
    let frame = samples::frame(Message::Error { code: ErrorCode::Medium, detail });
    let decoded = decode(&samples::encoded(&frame), &[usize::MAX]);
    let expected = Message::Error { code: ErrorCode::Medium, detail: "x".repeat(DETAIL_BYTES_MAX - 1) };
    assert_eq!(decoded[0].message, expected);
}
