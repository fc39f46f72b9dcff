//! What encryption costs: sealing and opening a block, and a mebibyte of them.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use trivet_crypto::{BlockCipher, DataKey};
use trivet_model::{BLOCK_SIZE, Generation, Stamp, VolumeId};

fn crypto(criterion: &mut Criterion) {
    let cipher = BlockCipher::new(&DataKey::take(&mut [7; 32]), VolumeId::from_bytes([1; 16]));
    let generation = Generation::new(1).expect("one is allowed");
    for blocks in [1, 256] {
        let mut group = criterion.benchmark_group(format!("encryption of {blocks} blocks"));
        group.throughput(Throughput::Bytes((blocks * BLOCK_SIZE) as u64));
        let plain = vec![0x5a; blocks * BLOCK_SIZE];
        let mut out = vec![0; blocks * BLOCK_SIZE];
        let mut sequence = 0;
        let mut next = || {
            sequence += 1;
            Stamp::new(generation, sequence).expect("a bench is short")
        };
        group.bench_function("seal", |bencher| {
            bencher.iter(|| {
                for (plain, out) in plain.chunks_exact(BLOCK_SIZE).zip(out.chunks_exact_mut(BLOCK_SIZE)) {
                    black_box(cipher.seal(5, next(), black_box(plain), out));
                }
            });
        });
        let stamp = next();
        let mut sealed = vec![0; BLOCK_SIZE];
        let tag = cipher.seal(5, stamp, &plain[..BLOCK_SIZE], &mut sealed);
        group.bench_function("open", |bencher| {
            bencher.iter(|| {
                for block in out.chunks_exact_mut(BLOCK_SIZE) {
                    block.copy_from_slice(black_box(&sealed));
                    cipher.open(5, stamp, block, &tag).expect("it is as it was sealed");
                }
            });
        });
        group.finish();
    }
}

criterion_group!(benches, crypto);
criterion_main!(benches);
