//! One frame of every message, for tests that go through all of them.
#![allow(dead_code, reason = "each test binary uses its part")]

use bytes::Bytes;
use trivet_model::{
    BLOCK_SIZE, BlockCrc, BlockRange, BlockTag, BootId, Epoch, Generation, PoolId, SnapshotId, Stamp,
    VolumeId,
};
use trivet_wire::{
    BlockData, ErrorCode, Extent, FlushReply, Frame, Hello, HelloReply, Message, OpenReply, PROTOCOL_VERSION,
    PoolReport, Progress, PullReport, PullState, SnapshotEntry, TailEntry, VolumeReport,
};

pub(crate) fn generation(value: u32) -> Generation {
    Generation::new(value).unwrap()
}

pub(crate) fn stamp(in_generation: u32, sequence: u64) -> Stamp {
    Stamp::new(generation(in_generation), sequence).unwrap()
}

pub(crate) fn blocks(fills: &[u8]) -> BlockData {
    let bytes: Vec<u8> = fills.iter().flat_map(|&fill| [fill; BLOCK_SIZE]).collect();
    BlockData::checksummed(vec![Bytes::from(bytes)])
}

/// The blocks as those of an encrypted volume.
pub(crate) fn tagged(data: BlockData) -> BlockData {
    let tags = (1..).take(data.blocks()).map(|at: u8| BlockTag([at; 16])).collect();
    BlockData { tags, ..data }
}

pub(crate) fn frame(message: Message) -> Frame {
    Frame { request: 0x0102_0304_0506_0708, generation: generation(7), epoch: Epoch(9), message }
}

/// Every message once, in order of its number on the wire.
pub(crate) fn frames() -> Vec<Frame> {
    let volume = VolumeId::from_bytes([0x11; 16]);
    let pool = PoolId::from_bytes([0x22; 16]);
    let progress = Progress { committed: stamp(7, 5), stable: stamp(6, 4) };
    let versions = vec![
        TailEntry { range: BlockRange::new(5, 2), stamp: stamp(7, 1), discard: false },
        TailEntry { range: BlockRange::new(9, 1), stamp: stamp(7, 3), discard: true },
    ];
    let messages = vec![
        Message::Hello(Hello { version_min: PROTOCOL_VERSION, version_max: 3 }),
        Message::HelloReply(HelloReply { version: PROTOCOL_VERSION, pool }),
        Message::Error { code: ErrorCode::Fenced, detail: "generation 8 was promised".into() },
        Message::Done,
        Message::Open { volume, writable: true, session: 0xfeed_beef },
        Message::OpenReply(OpenReply {
            blocks: 1 << 20,
            last: stamp(7, 6),
            intact: stamp(7, 3),
            progress,
            boot: BootId::from_bytes([0x33; 16]),
            snapshots: vec![
                SnapshotEntry { id: SnapshotId::from_bytes([4; 16]), cut: stamp(6, 9) },
                SnapshotEntry { id: SnapshotId::from_bytes([5; 16]), cut: stamp(7, 10) },
            ],
        }),
        Message::Close { progress },
        Message::Progress(progress),
        Message::Write {
            start: 0x1000,
            stamp: stamp(7, 10),
            progress,
            force_unit_access: true,
            data: blocks(&[0xaa, 0xbb]),
        },
        Message::Write {
            start: 0x1000,
            stamp: stamp(7, 10),
            progress,
            force_unit_access: true,
            data: tagged(blocks(&[0xaa, 0xbb])),
        },
        Message::Discard {
            range: BlockRange::new(64, 1 << 20),
            stamp: stamp(7, 12),
            progress,
            force_unit_access: false,
        },
        Message::Flush { progress },
        Message::FlushReply(FlushReply { stable: stamp(7, 11) }),
        Message::Read { range: BlockRange::new(5, 256) },
        Message::ReadReply {
            present: Bytes::from_static(&[0b0000_0101, 1]),
            stamps: Vec::new(),
            data: blocks(&[1, 2, 3]),
        },
        Message::ReadReply {
            present: Bytes::from_static(&[0b0000_0101]),
            stamps: vec![stamp(7, 4), stamp(6, 2)],
            data: tagged(blocks(&[1, 2])),
        },
        Message::Allocation { range: BlockRange::new(0, u32::MAX) },
        Message::AllocationReply {
            extents: vec![Extent { count: 10, allocated: true }, Extent { count: 99, allocated: false }],
        },
        Message::Tail { since: stamp(6, 4), skip: 4096 },
        Message::TailReply {
            entries: vec![
                TailEntry { range: BlockRange::new(3, 2), stamp: stamp(7, 1), discard: false },
                TailEntry { range: BlockRange::new(9, 1), stamp: stamp(7, 3), discard: true },
            ],
            more: true,
        },
        Message::Changed { since: stamp(6, 4), start: 1 << 14 },
        Message::ChangedReply {
            entries: vec![
                TailEntry { range: BlockRange::new(1 << 14, 300), stamp: stamp(7, 1), discard: false },
                TailEntry { range: BlockRange::new(1 << 15, 1 << 20), stamp: stamp(7, 301), discard: true },
            ],
            next: Some(1 << 21),
        },
        Message::Fetch { range: BlockRange::new(5, 256) },
        Message::FetchReply { versions: versions.clone(), data: blocks(&[1, 2]) },
        Message::FetchReply { versions: versions.clone(), data: tagged(blocks(&[1, 2])) },
        Message::Verify { range: BlockRange::new(5, 256), stamps_only: false },
        Message::Verify { range: BlockRange::new(5, 256), stamps_only: true },
        Message::VerifyReply {
            versions,
            crcs: vec![BlockCrc(3), BlockCrc(4)],
            failed: vec![BlockRange::new(5, 1), BlockRange::new(6, 1)],
        },
        Message::Pull {
            source: pool,
            boot: BootId::from_bytes([8; 16]),
            address: "replica-2.example:7001".into(),
            since: stamp(6, 4),
            floor: stamp(7, 9),
            stable: stamp(7, 3),
        },
        Message::PullStatus { stable: stamp(7, 8) },
        Message::PullReport(PullReport {
            state: PullState::Running,
            position: 1 << 20,
            copied_blocks: 1000,
            diverged: vec![BlockRange::new(9, 1), BlockRange::new(20, 4)],
            detail: "é".into(),
        }),
        Message::Repair { range: BlockRange::new(5, 2), source: pool, address: "[::1]:7001".into() },
        Message::CreateSnapshot { id: SnapshotId::from_bytes([5; 16]), cut: stamp(7, 10) },
        Message::DeleteSnapshot { id: SnapshotId::from_bytes([5; 16]) },
        Message::View { at: Some(SnapshotId::from_bytes([5; 16])) },
        Message::View { at: None },
        Message::Reset,
        Message::CreateVolume { volume, blocks: 1 << 18, parent: None, tagged: false },
        Message::CreateVolume { volume, blocks: 1 << 18, parent: None, tagged: true },
        Message::CreateVolume {
            volume,
            blocks: 1 << 18,
            parent: Some((VolumeId::from_bytes([0x12; 16]), SnapshotId::from_bytes([5; 16]))),
            tagged: false,
        },
        Message::DeleteVolume { volume },
        Message::ResizeVolume { volume, blocks: 1 << 19 },
        Message::PoolStatus,
        Message::PoolReport(PoolReport {
            pool,
            blocks_total: 1000,
            blocks_used: 10,
            blocks_kept: 4,
            checksum_errors: 1,
            failed: "flush: EIO".into(),
            volumes: vec![VolumeReport {
                volume,
                blocks: 1 << 20,
                blocks_used: 10,
                generation: generation(7),
                last: stamp(7, 11),
                tied: true,
            }],
        }),
        Message::Flatten { volume },
    ];
    messages.into_iter().map(frame).collect()
}

pub(crate) fn encoded(frame: &Frame) -> Vec<u8> {
    let mut segments = Vec::new();
    trivet_wire::encode(frame, &mut segments);
    segments.concat()
}
