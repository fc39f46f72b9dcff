//! Back-pressure: a client cannot make the server hold more than it allows.

use super::client::{self, DISC, FLUSH, READ, WRITE, command, write};
use super::harness::{Driver, export};
use crate::frontend::nbd::{BYTES_IN_FLIGHT_MAX, ExportInfo, REQUESTS_MAX};
use crate::request::{IoReply, IoRequest};
use bytes::Bytes;

fn connected() -> Driver {
    let mut driver = Driver::new(ExportInfo { size_bytes: 64 << 20, ..export(false) });
    driver.say(&client::hello(true), &[]);
    driver
}

/// Receives as much of `stream` as is wanted.
fn push(driver: &mut Driver, stream: &mut &[u8]) -> bool {
    if stream.is_empty() || !driver.connection.wants_input() {
        return false;
    }
    let mut buffer = driver.connection.buffer();
    let count = (buffer.capacity() - buffer.len()).min(stream.len());
    buffer.extend_from_slice(&stream[..count]);
    *stream = &stream[count..];
    driver.connection.received(buffer);
    true
}

#[test]
fn requests_in_flight_are_bounded_and_all_are_served_in_the_end() {
    let mut driver = connected();
    let mut stream = Vec::new();
    (0..3000).for_each(|i| stream.extend(command(0, FLUSH, i, 0, 0)));
    stream.extend(command(0, DISC, 0, 0, 0));
    let mut rest = stream.as_slice();
    let mut held = Vec::new();
    let mut served = 0;
    loop {
        push(&mut driver, &mut rest);
        held.extend(std::iter::from_fn(|| driver.connection.next_request()));
        assert!(held.len() <= REQUESTS_MAX);
        if push(&mut driver, &mut rest) {
            continue;
        }
        let Some((tag, _)) = held.pop() else { break };
        driver.connection.complete(tag, Ok(IoReply::Done));
        served += 1;
    }
    assert_eq!(served, 3000);
    assert!(driver.connection.is_finished().is_some());
}

#[test]
fn bytes_in_flight_are_bounded_until_the_client_takes_them() {
    let mut driver = connected();
    let mut stream = Vec::new();
    (0..20).for_each(|i| stream.extend(command(0, READ, i, 0, 16 << 20)));
    let mut rest = stream.as_slice();
    while push(&mut driver, &mut rest) {}
    let zeros = Bytes::from(vec![1; 1 << 20]);
    let mut out = Vec::new();
    let mut read = 0;
    for _ in 0..20 {
        let asked: Vec<_> = std::iter::from_fn(|| driver.connection.next_request()).collect();
        assert!(asked.len() << 20 <= BYTES_IN_FLIGHT_MAX);
        for (tag, request) in asked {
            let IoRequest::Read { length, .. } = request else { panic!("only reads were sent") };
            read += u64::from(length);
            let data = vec![zeros.slice(..length as usize)];
            driver.connection.complete(tag, Ok(IoReply::Data(data)));
        }
        assert!(driver.connection.next_request().is_none(), "until the replies are taken");
        driver.connection.take_output(&mut out);
        assert!(out.iter().map(Bytes::len).sum::<usize>() <= BYTES_IN_FLIGHT_MAX + (1 << 20));
        out.clear();
    }
    assert_eq!(read, 20 * (16 << 20));
}

#[test]
fn refusals_are_bounded_too() {
    let mut driver = connected();
    let refused = command(0, 99, 1, 0, 0);
    let stream = refused.repeat(200_000);
    let mut rest = stream.as_slice();
    while push(&mut driver, &mut rest) {
        assert!(driver.connection.next_request().is_none());
    }
    assert!(!rest.is_empty(), "a client that does not read is not read from");
    let mut out = Vec::new();
    driver.connection.take_output(&mut out);
    assert!(out.iter().map(Bytes::len).sum::<usize>() < 512 * 1024);
    assert!(driver.connection.next_request().is_none());
    let turns = (0..1000).take_while(|_| {
        push(&mut driver, &mut rest);
        assert!(driver.connection.next_request().is_none());
        let before = out.len();
        driver.connection.take_output(&mut out);
        out.len() > before
    });
    assert!(turns.count() > 20);
    let sent: usize = out.iter().map(Bytes::len).sum();
    assert_eq!(sent, 200_000 * (20 + 6 + "unknown command".len()));
}

#[test]
fn announced_payloads_cost_nothing_until_they_come() {
    let mut driver = connected();
    driver.say(&command(0, WRITE, 1, 0, 32 << 20), &[]);
    assert!(driver.connection.buffer().capacity() <= 1 << 20);
}

#[test]
fn payloads_and_read_data_are_not_copied() {
    let mut driver = connected();
    let mut buffer = driver.connection.buffer();
    buffer.extend_from_slice(&write(0, 1, 0, &[7; 4096]));
    let received = buffer.as_ptr() as usize..buffer.as_ptr() as usize + buffer.len();
    driver.connection.received(buffer);
    let (tag, request) = driver.connection.next_request().unwrap();
    let IoRequest::Write { segments, .. } = request else { panic!("a write was sent") };
    assert_eq!(segments.len(), 1);
    assert!(received.contains(&(segments[0].as_ptr() as usize)));
    driver.connection.complete(tag, Ok(IoReply::Done));
    assert!(driver.connection.next_request().is_none());

    let mut buffer = driver.connection.buffer();
    buffer.extend_from_slice(&command(0, READ, 1, 0, 4096));
    driver.connection.received(buffer);
    let (tag, _) = driver.connection.next_request().unwrap();
    let data = Bytes::from(vec![7; 4096]);
    driver.connection.complete(tag, Ok(IoReply::Data(vec![data.clone()])));
    let mut out = Vec::new();
    driver.connection.take_output(&mut out);
    assert_eq!(out.len(), 2, "all heads so far, then the data");
    assert_eq!(out[1].as_ptr(), data.as_ptr());
}

#[test]
fn what_is_still_in_flight_keeps_its_share() {
    let mut driver = connected();
    let mut stream = Vec::new();
    (0..6).for_each(|i| stream.extend(command(0, READ, i, 0, 16 << 20)));
    assert!(push(&mut driver, &mut stream.as_slice()));
    let mut asked: Vec<_> = std::iter::from_fn(|| driver.connection.next_request()).collect();
    assert_eq!(asked.len(), 64, "four reads of sixteen parts");
    let data = Bytes::from(vec![1; 1 << 20]);
    for (tag, _) in asked.drain(..16) {
        driver.connection.complete(tag, Ok(IoReply::Data(vec![data.clone()])));
    }
    assert!(driver.connection.next_request().is_none(), "the reply has not been taken");
    driver.connection.take_output(&mut Vec::new());
    assert_eq!(std::iter::from_fn(|| driver.connection.next_request()).count(), 16);
}
