//! The loop itself: timers, wakers, sources, spinning, and its end with operations in flight.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::{Bytes, BytesMut};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::{Loop, is_cancelled, pattern, pipe, tight_pair};
use trivet_reactor::{Handle, Options, Output, Reactor, Sent, Wait};

#[test]
fn timers_fire_in_the_order_of_their_deadlines_and_not_early() {
    let reactor = Reactor::new(Options::default()).unwrap();
    let source = reactor.source();
    let start = reactor.now();
    for (token, millis) in [(3, 30), (1, 10), (2, 20), (4, 30), (0, 0)] {
        reactor.timer(source, token, Duration::from_millis(millis));
    }
    let mut fired = Vec::new();
    while fired.len() < 5 {
        reactor.poll(Wait::Forever).unwrap();
        while let Some(completion) = reactor.take(source) {
            assert!(matches!(completion.result, Ok(Output::Done)));
            let due = [0, 10, 20, 30, 30].into_iter().zip(0..).find(|(_, token)| *token == completion.token);
            assert!(reactor.now() - start >= Duration::from_millis(due.unwrap().0));
            fired.push(completion.token);
        }
    }
    assert_eq!(fired, [0, 1, 2, 3, 4]);
}

#[test]
fn a_bounded_wait_ends_with_nothing() {
    let reactor = Reactor::new(Options::default()).unwrap();
    let source = reactor.source();
    let start = reactor.now();
    reactor.poll(Wait::For(Duration::from_millis(5))).unwrap();
    assert!(reactor.now() - start >= Duration::from_millis(5));
    reactor.poll(Wait::No).unwrap();
    assert!(reactor.take(source).is_none());
}

#[test]
fn completions_go_to_their_sources_and_do_not_end_another_ones_wait() {
    let (read_end, write_end) = pipe();
    let mut l = Loop::new();
    let other = l.reactor.source();
    l.reactor.timer(other, 7, Duration::ZERO);
    l.reactor.poll(Wait::Forever).unwrap();
    l.reactor.read_at(l.source, 7, &read_end, 0, BytesMut::with_capacity(1));
    l.reactor.poll(Wait::Forever).unwrap();
    assert!(!l.has(7), "a mailbox that holds something must keep the loop from waiting");
    l.reactor.write_at(other, 8, &write_end, 0, vec![Bytes::from_static(b"x")]);
    l.reactor.poll_source(l.source, Wait::Forever).unwrap();
    assert_eq!(l.buffer(7)[..], *b"x");
    assert_eq!(l.reactor.take(other).map(|c| c.token), Some(7));
    assert_eq!(l.reactor.take(other).map(|c| c.token), Some(8));
}

#[test]
fn gathering_is_for_one_poll_whether_it_slept_or_not() {
    const DEADLINE: Duration = Duration::from_secs(60);
    let zeros = Handle::from(OwnedFd::from(std::fs::File::open("/dev/zero").unwrap()));
    let mut l = Loop::new();
    let waker = l.reactor.waker(l.source, 9);
    waker.wake();
    l.reactor.gather(2);
    l.reactor.poll(Wait::For(DEADLINE)).unwrap();
    assert!(l.has(9), "a wake-up that is there already leaves nothing to sleep for");
    let start = l.reactor.now();
    l.reactor.read_at(l.source, 7, &zeros, 0, BytesMut::with_capacity(1));
    l.reactor.poll(Wait::For(DEADLINE)).unwrap();
    assert!(l.has(7));
    assert!(l.reactor.now() < start + DEADLINE, "one completion must end the next poll");
}

#[test]
fn a_closed_source_neither_receives_nor_keeps_the_loop_awake() {
    let (_read_end, write_end) = pipe();
    let mut l = Loop::new();
    let other = l.reactor.source();
    l.reactor.timer(other, 1, Duration::ZERO);
    l.reactor.poll(Wait::Forever).unwrap();
    l.reactor.write_at(other, 2, &write_end, 0, vec![Bytes::from_static(b"x")]);
    l.reactor.close_source(other);
    l.reactor.timer(l.source, 1, Duration::from_millis(1));
    l.reactor.poll(Wait::Forever).unwrap();
    assert!(l.has(1), "the wait must last until a completion that somebody takes");
    assert!(l.reactor.take(other).is_none());
}

fn wakes_from_other_threads_arrive(spin: Duration) {
    const ROUNDS: u64 = 20_000;
    let reactor = Reactor::new(Options { spin, ..Options::default() }).unwrap();
    let source = reactor.source();
    let sent = AtomicU64::new(0);
    let seen = AtomicU64::new(0);
    let wakers = [reactor.waker(source, 0), reactor.waker(source, 1)];
    std::thread::scope(|scope| {
        let waker = &wakers[1];
        let (sent, seen) = (&sent, &seen);
        scope.spawn(move || {
            for round in 1..=ROUNDS {
                sent.store(round, Ordering::SeqCst);
                waker.wake();
                // Every eighth time let it fall asleep: a lost wake-up then hangs both.
                while round % 8 == 0 && seen.load(Ordering::SeqCst) < round {
                    std::thread::yield_now();
                }
            }
        });
        while seen.load(Ordering::SeqCst) < ROUNDS {
            reactor.poll(Wait::Forever).unwrap();
            while let Some(completion) = reactor.take(source) {
                assert_eq!(completion.token, 1);
                seen.store(sent.load(Ordering::SeqCst), Ordering::SeqCst);
            }
        }
    });
    wakers[0].wake();
    wakers[0].wake();
    reactor.poll(Wait::Forever).unwrap();
    assert_eq!(reactor.take(source).map(|c| c.token), Some(0));
    reactor.poll(Wait::No).unwrap();
    assert!(reactor.take(source).is_none(), "two wakes before a turn are one");
}

#[test]
fn no_wake_is_lost_when_sleeping() {
    wakes_from_other_threads_arrive(Duration::ZERO);
}

#[test]
fn no_wake_is_lost_when_spinning() {
    wakes_from_other_threads_arrive(Duration::from_micros(50));
}

#[test]
fn a_waker_outlives_its_reactor() {
    let reactor = Reactor::new(Options::default()).unwrap();
    let waker = reactor.waker(reactor.source(), 1);
    drop(reactor);
    waker.wake();
}

#[test]
fn a_spinning_loop_carries_out_everything_a_sleeping_one_does() {
    let (a, b) = tight_pair();
    let mut l = Loop::with(Options { spin: Duration::from_micros(100), ..Options::default() });
    let data = pattern(200_000, 1);
    l.send(1, &a, vec![data.clone()]);
    let mut received = BytesMut::with_capacity(data.len());
    while received.len() < data.len() {
        l.reactor.receive(l.source, 2, &b, received);
        received = l.buffer(2);
    }
    assert!(received == data);
    l.done(1);
    l.reactor.timer(l.source, 3, Duration::from_millis(2));
    l.done(3);
}

#[test]
fn a_cancellation_hits_all_operations_of_its_token_and_source_only() {
    let mut l = Loop::new();
    let other = l.reactor.source();
    l.reactor.timer(other, 1, Duration::from_millis(1));
    l.reactor.timer(l.source, 1, Duration::from_secs(3600));
    l.reactor.timer(l.source, 2, Duration::from_millis(1));
    l.reactor.cancel(l.source, 1);
    assert!(is_cancelled(&l.error(1)));
    l.done(2);
    assert!(matches!(l.reactor.take(other).map(|c| c.result), Some(Ok(Output::Done))));
}

/// Whether the kernel has let go of a pipe's other end: reading it sees the end.
fn drop_in_flight(entries: u32, submit: bool) {
    let reactor = Reactor::new(Options { entries, ..Options::default() }).unwrap();
    let source = reactor.source();
    let (read_end, write_end) = pipe();
    let (a, b) = tight_pair();
    for token in 0..40 {
        reactor.read_at(source, token, &read_end, 0, BytesMut::with_capacity(1 << 16));
        reactor.receive(source, token, &a, BytesMut::with_capacity(1 << 16));
        assert_eq!(reactor.send(source, token, &b, vec![pattern(1 << 20, token)]), Sent::UnderWay);
    }
    if submit {
        reactor.poll(Wait::No).unwrap();
    }
    let watch: std::os::fd::OwnedFd = std::os::fd::AsFd::as_fd(&write_end).try_clone_to_owned().unwrap();
    drop((read_end, write_end, a, b));
    drop(reactor);
    // The last read end is closed once no operation holds it: writing fails at once.
    let mut file = std::fs::File::from(watch);
    let error = std::io::Write::write(&mut file, b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_dropped_reactor_lets_go_of_everything_in_flight() {
    drop_in_flight(256, true);
    drop_in_flight(256, false);
    drop_in_flight(4, false);
    drop_in_flight(4, true);
}

#[test]
fn clones_drive_the_same_loop() {
    let mut l = Loop::new();
    let clone = l.reactor.clone();
    clone.timer(l.source, 1, Duration::ZERO);
    l.done(1);
    let (a, _b) = tight_pair();
    let same: Handle = a.clone();
    clone.receive(l.source, 2, &same, BytesMut::with_capacity(1));
    drop(clone);
    l.reactor.cancel(l.source, 2);
    assert!(is_cancelled(&l.error(2)));
}

#[test]
fn a_signal_ends_a_wait_without_an_error() {
    extern "C" fn ignore(_: i32) {}
    // SAFETY: the handler does nothing; an all-zero sigaction has no flags and an empty mask.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
    let reactor = Reactor::new(Options::default()).unwrap();
    let source = reactor.source();
    // SAFETY: takes nothing.
    let this = unsafe { libc::pthread_self() };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let over = &over;
        scope.spawn(move || {
            while !over.load(Ordering::SeqCst) {
                // SAFETY: the scope keeps the thread alive until this one has ended.
                assert_eq!(unsafe { libc::pthread_kill(this, libc::SIGUSR1) }, 0);
                std::thread::yield_now();
            }
        });
        reactor.poll(Wait::Forever).unwrap();
        over.store(true, Ordering::SeqCst);
    });
    assert!(reactor.take(source).is_none());
}
