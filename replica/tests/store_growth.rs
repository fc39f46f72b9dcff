//! Growth of the pool file: ahead of writers with zeros, hurried when they catch up and at the end.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops at the first surprise")]

mod pool;

use bytes::BytesMut;
use pool::{Pool, VOLUME, formatted};
use trivet_disk::{Disk, DiskCompletion, DiskOp, DiskToken};
use trivet_model::Stamp;
use trivet_replica::store::{Action, Request};

#[derive(Clone, Copy, PartialEq, Debug)]
struct Growth {
    token: DiskToken,
    length: u64,
    written: bool,
}

/// Does all that the store asks for until it asks for nothing more, growth apart, which is answered.
fn turn_without_growth(pool: &mut Pool) -> Vec<Growth> {
    let mut growth = Vec::new();
    loop {
        let mut actions = Vec::new();
        pool.store.poll_actions(&mut actions);
        for action in actions {
            match action {
                Action::Disk(token, DiskOp::Extend { length, written }) => {
                    growth.push(Growth { token, length, written });
                }
                Action::Disk(token, operation) => pool.disk.submit(token, operation),
                Action::Checkpoint(job) => pool.checkpoints.push(*job),
                Action::Complete(_, answer) => assert!(answer.is_ok(), "{answer:?}"),
                other => panic!("nobody asked for {other:?}"),
            }
        }
        let mut completions = Vec::new();
        pool.disk.reap(true, &mut completions);
        let done = completions.len();
        for completion in completions {
            pool.store.disk_completed(completion);
        }
        if done == 0 && !pool.background() {
            return growth;
        }
    }
}

fn finish(pool: &mut Pool, growth: Growth) {
    pool.store.disk_completed(DiskCompletion { token: growth.token, result: Ok(BytesMut::new()) });
}

fn opened() -> Pool {
    let (image, meta) = formatted(1 << 18);
    Pool::open(image, meta, 1, 1).unwrap()
}

#[test]
fn growth_writes_zeros_until_writers_catch_up() {
    let mut pool = opened();
    pool.submit(Request::CreateVolume { volume: VOLUME, blocks: 1 << 18, parent: None, tagged: false });
    let [growth] = turn_without_growth(&mut pool)[..] else { panic!("no growth, or more than one") };
    assert!(growth.written);
    let mut hurried = Vec::new();
    for batch in 0..64 {
        assert_eq!(hurried, [], "more than what is scarce was free before batch {batch}");
        pool.write(batch * 256, &[1; 256], Stamp::from_u64(1 << 40 | (batch * 256 + 1)), false);
        hurried = turn_without_growth(&mut pool);
        if !hurried.is_empty() {
            break;
        }
    }
    let [hurried] = hurried[..] else { panic!("{hurried:?}") };
    assert_eq!(hurried, Growth { written: false, token: hurried.token, length: growth.length });
    finish(&mut pool, hurried);
    let next = turn_without_growth(&mut pool);
    assert!(matches!(next[..], [Growth { written: true, .. }]), "{next:?}");
    assert!(next[0].length > growth.length);
}

#[test]
fn a_store_that_closes_hurries_growth_waits_for_it_and_starts_none() {
    let mut pool = opened();
    let under_way = turn_without_growth(&mut pool)[0];
    pool.store.close();
    let hurried = turn_without_growth(&mut pool);
    let [hurried] = hurried[..] else { panic!("{hurried:?}") };
    assert_eq!(hurried, Growth { written: false, ..under_way });
    assert!(!pool.store.is_quiescent(), "the device is still at work");
    finish(&mut pool, under_way);
    assert_eq!(turn_without_growth(&mut pool), []);
    assert!(pool.store.is_quiescent());
    finish(&mut pool, hurried);
    assert_eq!(turn_without_growth(&mut pool), []);
    assert!(pool.store.is_quiescent());
}
