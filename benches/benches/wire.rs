//! The codec and the checksum: the cost of each hand-over between engine and replica.

use bytes::{BufMut, Bytes};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use trivet_model::checksum::block_crcs;
use trivet_model::{BLOCK_SIZE, Epoch, Generation, Stamp};
use trivet_wire::{BlockData, Decoder, Encoder, Frame, Message, Progress};

fn write_frame(blocks: usize) -> Frame {
    let data: Bytes = (0..blocks * BLOCK_SIZE).map(|at| at.to_le_bytes()[0]).collect();
    let generation = Generation::new(1).expect("one is allowed");
    Frame {
        request: 1,
        generation,
        epoch: Epoch(1),
        message: Message::Write {
            start: 5,
            stamp: Stamp::new(generation, 7).expect("seven is allowed"),
            progress: Progress::default(),
            force_unit_access: false,
            data: BlockData::checksummed(vec![data]),
        },
    }
}

/// Feeds bytes as a socket would, a lent buffer at a time.
fn decode(decoder: &mut Decoder, mut bytes: &[u8]) -> Frame {
    loop {
        let mut buffer = decoder.buffer();
        let count = (buffer.capacity() - buffer.len()).min(bytes.len());
        buffer.put_slice(&bytes[..count]);
        bytes = &bytes[count..];
        decoder.filled(buffer);
        if let Some(frame) = decoder.next().expect("an encoded frame decodes") {
            return frame;
        }
    }
}

fn wire(criterion: &mut Criterion) {
    for blocks in [1, 256] {
        let mut group = criterion.benchmark_group(format!("write of {blocks} blocks"));
        group.throughput(Throughput::Bytes((blocks * BLOCK_SIZE) as u64));
        let frame = write_frame(blocks);
        let Message::Write { data, .. } = &frame.message else { unreachable!("it is a write") };
        group.bench_function("checksums", |bencher| {
            bencher.iter(|| block_crcs(black_box(&data.segments[0])).fold(0, |all, crc| all ^ crc.0));
        });
        group.bench_function("encode", |bencher| {
            let mut encoder = Encoder::new();
            bencher.iter(|| {
                encoder.push(black_box(&frame));
                encoder.take()
            });
        });
        let mut encoder = Encoder::new();
        encoder.push(&frame);
        let bytes = encoder.take().concat();
        group.bench_function("decode", |bencher| {
            let mut decoder = Decoder::new();
            bencher.iter_batched(|| (), |()| decode(&mut decoder, black_box(&bytes)), BatchSize::SmallInput);
        });
        group.finish();
    }
}

criterion_group!(benches, wire);
criterion_main!(benches);
