//! Who may open, write and close, and when.

use super::*;
use trivet_wire::{HelloReply, OpenReply};

#[test]
fn a_version_in_common_is_agreed_or_refused() {
    let mut server = Server::new();
    let connection = server.sessions.connected();
    assert!(!server.sessions.has_greeted(connection));
    server.say(connection, 1, 0, Message::Hello(Hello { version_min: 0, version_max: 9 }));
    let pool = PoolId::from_bytes([8; 16]);
    assert_eq!(server.answer(), Message::HelloReply(HelloReply { version: PROTOCOL_VERSION, pool }));
    assert!(server.sessions.has_greeted(connection));

    let connection = server.sessions.connected();
    server.say(connection, 1, 0, Message::Hello(Hello { version_min: PROTOCOL_VERSION + 1, version_max: 9 }));
    assert_eq!(server.close_code(), (connection, ErrorCode::Version));
}

#[test]
fn messages_out_of_place_close_the_connection() {
    let hello = || Message::Hello(Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION });
    let read = || Message::Read { range: BlockRange::new(0, 1) };
    let mut server = Server::new();
    let fresh = server.sessions.connected();
    server.say(fresh, 1, 0, read());
    assert_eq!(server.close_code(), (fresh, ErrorCode::Unexpected));
    for message in
        [hello(), read(), write(1, 1), Message::Done, Message::Close { progress: Progress::default() }]
    {
        let ready = server.greeted();
        server.say(ready, 2, 0, message);
        assert_eq!(server.close_code(), (ready, ErrorCode::Unexpected));
    }
    for (of, message) in [(1, hello()), (1, open(7)), (1, Message::PoolStatus), (2, write(1, 1))] {
        let mut server = Server::new();
        let open = server.opened(1, 7);
        server.say(open, 3, of, message);
        assert_eq!(server.close_code(), (open, ErrorCode::Unexpected));
    }
    for message in [write(1, 1), Message::Flush { progress: Progress::default() }] {
        let reader = server.greeted();
        server.say(reader, 2, 0, look());
        assert!(matches!(server.answer(), Message::OpenReply(_)));
        server.say(reader, 3, 1, message);
        assert_eq!(server.close_code(), (reader, ErrorCode::Unexpected));
    }
    assert!(server.submitted.is_empty());
}

#[test]
fn the_answer_to_open_comes_only_when_the_promise_is_durable() {
    let mut server = Server::new();
    let connection = server.greeted();
    server.say(connection, 2, 5, open(77));
    assert!(server.sent.is_empty());
    let Some((_, Request::Promise { generation: promised, session: 77, .. })) = server.submitted.first()
    else {
        panic!("no promise: {:?}", server.submitted)
    };
    assert_eq!(*promised, generation(5));
    server.promise();
    let Message::OpenReply(reply) = server.answer() else { panic!("no reply") };
    let expected = OpenReply {
        blocks: 1000,
        last: stamp(1, 5),
        intact: stamp(1, 4),
        progress: Progress { committed: stamp(1, 3), stable: stamp(1, 2) },
        boot: BootId::from_bytes([9; 16]),
        snapshots: Vec::new(),
    };
    assert_eq!(reply, expected);
}

#[test]
fn lower_generations_are_refused_for_ever() {
    let mut server = Server::new();
    server.opened(5, 77);
    let late = server.greeted();
    for (of, session) in [(4, 77), (5, 78), (1, 0)] {
        server.say(late, 3, of, open(session));
        assert_eq!(server.error(), ErrorCode::Fenced);
    }
    server.receive(late, Frame { request: 4, generation: generation(9), epoch: Epoch(0), message: open(1) });
    assert_eq!(server.error(), ErrorCode::Fenced, "an epoch that goes back");
    assert!(server.submitted.is_empty() && server.closed.is_empty());
    server.say(late, 5, 0, open(0));
    assert_eq!(server.close_code(), (late, ErrorCode::Malformed));
}

#[test]
fn a_newer_open_ends_the_older_session_at_once() {
    let mut server = Server::new();
    let old = server.opened(5, 77);
    server.say(old, 3, 5, write(5, 1));
    let in_flight = server.submitted.pop().unwrap().0;
    let new = server.greeted();
    server.say(new, 2, 6, open(1));
    assert_eq!(server.close_code(), (old, ErrorCode::Fenced));

    server.say(old, 4, 5, write(5, 2));
    assert!(!server.sessions.may_receive(old));
    assert_eq!(server.submitted.len(), 1, "only the promise: nothing of the old session follows it");
    server.complete(in_flight, Ok(Reply::Done));
    assert!(server.sent.is_empty());
    server.promise();
    assert!(matches!(server.answer(), Message::OpenReply(_)));
    server.sessions.disconnected(old);
    server.say(new, 3, 6, write(6, 1));
    assert_eq!(server.submitted.len(), 1, "the old one's end takes nothing from the new one");
}

#[test]
fn a_promise_on_its_way_refuses_what_is_below() {
    let mut server = Server::new();
    let (first, second, third) = (server.greeted(), server.greeted(), server.greeted());
    server.say(first, 2, 6, open(1));
    server.say(second, 2, 5, open(2));
    assert_eq!(server.error(), ErrorCode::Fenced);
    server.say(third, 2, 7, open(3));
    assert_eq!(server.close_code(), (first, ErrorCode::Fenced));
    server.promise();
    assert!(server.sent.is_empty(), "the first opener is superseded");
    server.say(second, 3, 6, open(1));
    assert_eq!(server.error(), ErrorCode::Fenced);
    server.promise();
    assert_eq!(server.sent.len(), 1);
    assert!(matches!(server.sent[0], (to, 2, Message::OpenReply(_)) if to == third));
}

#[test]
fn the_same_opening_reconnects_and_drains_its_older_connection() {
    let mut server = Server::new();
    let old = server.opened(5, 77);
    let new = server.greeted();
    server.say(new, 2, 5, open(77));
    assert_eq!(server.close_code(), (old, ErrorCode::Fenced));
    server.promise();
    assert!(matches!(server.answer(), Message::OpenReply(_)));
    server.sessions.disconnected(old);
    let administrator = server.greeted();
    server.say(administrator, 2, 0, Message::DeleteVolume { volume: VOLUME });
    assert_eq!(server.error(), ErrorCode::Busy);
}

#[test]
fn a_promise_that_fails_leaves_the_connection_ready() {
    let mut server = Server::new();
    let connection = server.greeted();
    server.say(connection, 2, 5, open(77));
    let id = server.submitted.pop().unwrap().0;
    server.complete(id, Err(RequestError::PoolFailed("EIO".into())));
    assert_eq!(server.error(), ErrorCode::PoolFailed);
    server.say(connection, 3, 0, Message::DeleteVolume { volume: VOLUME });
    assert_eq!(server.submitted.len(), 1, "not busy: nobody writes");
}

#[test]
fn a_volume_deleted_while_it_is_opened_is_not_opened() {
    let mut server = Server::new();
    let connection = server.greeted();
    server.say(connection, 2, 5, open(77));
    let id = server.submitted.pop().unwrap().0;
    server.facts.0.remove(&VOLUME);
    server.complete(id, Ok(Reply::Done));
    assert_eq!(server.error(), ErrorCode::NoSuchVolume);
    server.say(connection, 3, 5, open(77));
    assert_eq!(server.error(), ErrorCode::NoSuchVolume);
    server.say(connection, 4, 5, look());
    assert_eq!(server.error(), ErrorCode::NoSuchVolume);
}

#[test]
fn frames_of_a_lower_generation_on_an_open_session_are_fenced() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    server.say(connection, 3, 4, write(4, 1));
    assert_eq!(server.error(), ErrorCode::Fenced);
    assert!(server.submitted.is_empty());
}

#[test]
fn close_waits_for_what_is_in_flight() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    server.say(connection, 3, 5, write(5, 1));
    let id = server.submitted.pop().unwrap().0;
    let progress = Progress { committed: stamp(5, 1), stable: stamp(5, 1) };
    server.say(connection, 4, 5, Message::Close { progress });
    assert_eq!(server.progress, [(VOLUME, VolumeProgress { committed: stamp(5, 1), stable: stamp(5, 1) })]);
    assert!(server.sent.is_empty());
    server.complete(id, Ok(Reply::Done));
    let answers: Vec<u64> = server.sent.drain(..).map(|(_, request, _)| request).collect();
    assert_eq!(answers, [3, 4]);
    server.say(connection, 5, 0, Message::DeleteVolume { volume: VOLUME });
    assert_eq!(server.submitted.len(), 1, "nobody writes any more");
}

#[test]
fn frames_after_the_end_are_ignored() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    server.say(connection, 3, 5, Message::Error { code: ErrorCode::Stopping, detail: "bye".into() });
    assert!(matches!(server.closed.pop(), Some((_, CloseReason::Peers { .. }))));
    assert!(server.sent.is_empty());
    server.say(connection, 4, 5, write(5, 1));
    server.sessions.disconnected(connection);
    server.say(connection, 5, 5, write(5, 1));
    assert!(server.submitted.is_empty() && server.sent.is_empty() && server.closed.is_empty());
    let reused = server.greeted();
    assert_eq!((reused.index(), reused.serial()), (connection.index(), connection.serial() + 1));
    server.say(connection, 6, 5, write(5, 1));
    assert!(server.sent.is_empty() && server.closed.is_empty(), "an old name never means a new connection");
}

#[test]
fn answers_to_a_connection_that_is_gone_are_dropped() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    server.say(connection, 3, 5, write(5, 1));
    let id = server.submitted.pop().unwrap().0;
    server.sessions.disconnected(connection);
    let reused = server.greeted();
    assert_eq!(reused.index(), connection.index());
    assert!(!server.sessions.is_drained());
    server.complete(id, Ok(Reply::Done));
    assert!(server.sent.is_empty() && server.sessions.is_drained());
}

#[test]
fn readers_of_a_copy_that_begins_anew_or_is_deleted_are_hung_up_on() {
    let mut server = Server::new();
    let (reader, elsewhere) = (server.greeted(), server.greeted());
    server.say(reader, 2, 0, look());
    server.say(elsewhere, 2, 0, Message::Open { volume: OTHER, writable: false, session: 0 });
    let writer = server.opened(5, 77);
    server.sent.clear();
    server.say(writer, 3, 5, Message::Reset);
    assert_eq!(server.close_code(), (reader, ErrorCode::NoSuchVolume));
    assert!(matches!(server.submitted[..], [(_, Request::ResetVolume { volume: VOLUME })]));
    let manager = server.greeted();
    server.say(manager, 2, 0, Message::DeleteVolume { volume: OTHER });
    assert_eq!(server.close_code(), (elsewhere, ErrorCode::NoSuchVolume));
}
