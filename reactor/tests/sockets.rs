//! Sockets: connecting, streaming through tight buffers, peers that leave, addresses in use.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::{Bytes, BytesMut};
use std::io;
use std::net::Shutdown;
use support::{Loop, is_cancelled, pattern, tight_pair};
use trivet_reactor::{
    Handle, Output, SocketAddress, SocketError, connect_shortcut, listen, listen_shortcut, local_address,
    prepare_accepted, prepare_shortcut, socket,
};

const ACCEPT: u64 = 1;
const CONNECT: u64 = 2;

fn connected(l: &mut Loop, address: &SocketAddress) -> (Handle, Handle) {
    let listener = listen(address).unwrap();
    let address = local_address(&listener).unwrap();
    let client = socket(&address).unwrap();
    l.reactor.accept(l.source, ACCEPT, &listener);
    l.reactor.connect(l.source, CONNECT, &client, &address);
    l.done(CONNECT);
    let Ok(Output::Accepted(server)) = l.wait(ACCEPT) else { panic!("no connection") };
    (prepare_accepted(server).unwrap(), client)
}

/// Receives `length` bytes.
fn receive_all(l: &mut Loop, token: u64, socket: &Handle, length: usize) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(length);
    while buffer.len() < length {
        let before = buffer.len();
        l.reactor.receive(l.source, token, socket, buffer);
        buffer = l.buffer(token);
        assert!(buffer.len() > before, "closed early");
    }
    buffer
}

/// A listener at `at` with its shortcut, and the port it got.
fn with_shortcut(at: &str) -> (Handle, Handle, u16) {
    let listener = listen(&SocketAddress::Tcp(at.parse().unwrap())).unwrap();
    let Ok(SocketAddress::Tcp(address)) = local_address(&listener) else { panic!("a TCP address") };
    let shortcut = listen_shortcut(address).unwrap();
    (listener, shortcut, address.port())
}

#[test]
fn a_shortcut_leads_where_the_address_does() {
    let mut l = Loop::new();
    for (listens_at, connects_to) in [("127.0.0.1:0", "127.0.0.1"), ("0.0.0.0:0", "127.0.0.1")] {
        let (_listener, shortcut, port) = with_shortcut(listens_at);
        let client = connect_shortcut(format!("{connects_to}:{port}").parse().unwrap()).unwrap();
        assert!(matches!(local_address(&client), Ok(SocketAddress::Unix(_))));
        l.reactor.accept(l.source, ACCEPT, &shortcut);
        let Ok(Output::Accepted(server)) = l.wait(ACCEPT) else { panic!("no connection") };
        let server = prepare_shortcut(server).unwrap();
        l.send(10, &server, vec![Bytes::from_static(b"hello")]);
        assert_eq!(receive_all(&mut l, 11, &client, 5), "hello");
        l.done(10);
    }
}

#[test]
fn there_is_no_shortcut_to_other_addresses_or_hosts() {
    let (_listener, _shortcut, port) = with_shortcut("127.0.0.1:0");
    for elsewhere in [format!("127.0.0.2:{port}"), format!("192.0.2.1:{port}")] {
        assert!(connect_shortcut(elsewhere.parse().unwrap()).is_none(), "{elsewhere}");
    }
}

#[test]
fn connections_over_tcp_and_unix_carry_bytes_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let v6 = SocketAddress::Tcp("[::1]:0".parse().unwrap());
    let unix = SocketAddress::Unix(folder.path().join("s"));
    let mut l = Loop::new();
    for address in [SocketAddress::loopback(0), v6, unix] {
        let (server, client) = connected(&mut l, &address);
        let data = pattern(3 << 20, 1);
        for (from, to) in [(&server, &client), (&client, &server)] {
            let parts = vec![data.slice(..10), data.slice(20..1 << 20), data.slice(1 << 20..)];
            let expected = parts.concat();
            l.send(10, from, parts);
            assert!(receive_all(&mut l, 11, to, expected.len()) == expected);
            l.done(10);
        }
    }
}

#[test]
fn a_send_through_a_tight_socket_arrives_whole() {
    let (a, b) = tight_pair();
    let mut l = Loop::new();
    let data = pattern(500_000, 2);
    let parts: Vec<_> = data.chunks(999).map(Bytes::copy_from_slice).collect();
    l.send(1, &a, parts);
    assert!(receive_all(&mut l, 2, &b, data.len()) == data);
    l.done(1);
}

#[test]
fn a_receive_appends_to_what_the_buffer_holds() {
    let (a, b) = tight_pair();
    let mut l = Loop::new();
    let mut buffer = BytesMut::with_capacity(16);
    buffer.extend_from_slice(b"head ");
    l.reactor.receive(l.source, 1, &b, buffer);
    l.send(2, &a, vec![Bytes::from_static(b"tail")]);
    assert_eq!(l.buffer(1)[..], *b"head tail");
    l.done(2);
    l.reactor.receive(l.source, 3, &b, BytesMut::new());
    assert_eq!(l.error(3).kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_peer_that_closes_ends_receives_and_fails_sends() {
    let (a, b) = tight_pair();
    let mut l = Loop::new();
    l.send(1, &a, vec![pattern(10_000_000, 3)]);
    receive_all(&mut l, 2, &b, 1);
    assert!(!l.has(1), "the send must be waiting for room");
    drop(b);
    let error = l.error(1);
    assert!(matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{error}");

    let (a, b) = tight_pair();
    l.reactor.receive(l.source, 3, &a, BytesMut::with_capacity(8));
    drop(b);
    assert!(l.buffer(3).is_empty());
}

#[test]
fn shutting_down_releases_operations_in_flight() {
    let (a, b) = tight_pair();
    let mut l = Loop::new();
    l.reactor.receive(l.source, 1, &a, BytesMut::with_capacity(8));
    l.reactor.timer(l.source, 2, std::time::Duration::ZERO);
    l.done(2);
    a.shut_down(Shutdown::Both).unwrap();
    assert!(l.buffer(1).is_empty());
    drop(b);
}

#[test]
fn waiting_operations_can_be_cancelled() {
    let (a, b) = tight_pair();
    let listener = listen(&SocketAddress::loopback(0)).unwrap();
    let mut l = Loop::new();
    l.reactor.receive(l.source, 1, &a, BytesMut::with_capacity(8));
    l.reactor.accept(l.source, 2, &listener);
    l.send(3, &a, vec![pattern(10_000_000, 3)]);
    l.reactor.timer(l.source, 4, std::time::Duration::from_secs(3600));
    // The first is cancelled before it is submitted, the others in flight.
    l.reactor.cancel(l.source, 1);
    receive_all(&mut l, 10, &b, 1);
    for token in [2, 3, 4] {
        assert!(!l.has(token));
        l.reactor.cancel(l.source, token);
    }
    for token in 1..=4 {
        let error = l.error(token);
        assert!(is_cancelled(&error), "operation {token}: {error}");
    }
    l.reactor.cancel(l.source, 99);
}

#[test]
fn a_cancelled_receive_leaves_the_bytes_to_the_next() {
    let (a, b) = tight_pair();
    let mut l = Loop::new();
    l.reactor.receive(l.source, 1, &b, BytesMut::with_capacity(8));
    l.reactor.cancel(l.source, 1);
    assert!(is_cancelled(&l.error(1)));
    l.send(2, &a, vec![Bytes::from_static(b"kept")]);
    assert_eq!(receive_all(&mut l, 3, &b, 4)[..], *b"kept");
}

#[test]
fn connecting_where_nobody_listens_fails() {
    let folder = tempfile::tempdir().unwrap();
    let mut l = Loop::new();
    let gone = local_address(&listen(&SocketAddress::loopback(0)).unwrap()).unwrap();
    for address in [gone, SocketAddress::Unix(folder.path().join("none"))] {
        let client = socket(&address).unwrap();
        l.reactor.connect(l.source, CONNECT, &client, &address);
        let kind = l.error(CONNECT).kind();
        assert!(matches!(kind, io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound), "{kind}");
    }
}

#[test]
fn listening_errors_name_cause_and_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let unix = |name: &str| SocketAddress::Unix(folder.path().join(name));

    let first = listen(&SocketAddress::loopback(0)).unwrap();
    let error = listen(&local_address(&first).unwrap()).unwrap_err();
    assert!(matches!(error, SocketError::Occupied { .. }), "{error}");
    assert!(error.to_string().contains("ss -ltnp"));

    let listener = listen(&unix("s")).unwrap();
    assert!(matches!(listen(&unix("s")), Err(SocketError::Occupied { .. })));
    drop(listener);
    listen(&unix("s")).expect("an abandoned socket file is replaced");

    std::fs::write(folder.path().join("file"), b"precious").unwrap();
    assert!(matches!(listen(&unix("file")), Err(SocketError::NotASocket { .. })));
    assert_eq!(std::fs::read(folder.path().join("file")).unwrap(), b"precious");

    assert!(matches!(listen(&unix("no/such/folder")), Err(SocketError::NoFolder { .. })));
    let long = unix(&"x".repeat(200));
    assert!(matches!(listen(&long), Err(SocketError::PathTooLong { max: 107, .. })));
    assert!(matches!(socket(&long), Err(SocketError::PathTooLong { .. })));
    let foreign = SocketAddress::Tcp("192.0.2.1:0".parse().unwrap());
    assert!(matches!(listen(&foreign), Err(SocketError::NotLocal { .. })));
}
