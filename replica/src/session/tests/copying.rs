//! Sessions that copy from other members.

use super::*;
use crate::store::{ChangedPage, FetchedBlocks, TailExtent, VerifiedBlocks};
use trivet_wire::{PullReport, PullState, TailEntry};

fn pull() -> Message {
    let (source, address) = (PoolId::from_bytes([6; 16]), "host:7001".to_owned());
    let boot = BootId::from_bytes([3; 16]);
    Message::Pull { source, boot, address, since: stamp(1, 2), floor: stamp(5, 1), stable: stamp(4, 9) }
}

fn repair() -> Message {
    let (source, address) = (PoolId::from_bytes([6; 16]), "host:7001".to_owned());
    Message::Repair { range: BlockRange::new(3, 2), source, address }
}

#[test]
fn a_pull_is_ordered_with_what_the_session_knows() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    server.say(connection, 10, 5, pull());
    assert_eq!(server.answer(), Message::Done);
    let Some(Output::Pull(of, order, source)) = server.copying.pop() else { panic!("no pull") };
    assert_eq!((of, order.volume, order.blocks), (connection, VOLUME, 1000));
    assert_eq!((order.since, order.floor, order.generation), (stamp(1, 2), stamp(5, 1), generation(5)));
    assert_eq!((source.pool, source.address.as_str()), (PoolId::from_bytes([6; 16]), "host:7001"));
    assert_eq!(source.boot, Some(BootId::from_bytes([3; 16])));
    server.say(connection, 11, 5, Message::PullStatus { stable: stamp(5, 3) });
    assert!(matches!(server.copying.pop(), Some(Output::ReportPull(of, 11)) if of == connection));
    let report = PullReport {
        state: PullState::Running,
        position: 7,
        copied_blocks: 8,
        diverged: Vec::new(),
        detail: String::new(),
    };
    let mut out = Vec::new();
    server.sessions.pull_reported(connection, 11, report.clone(), &mut out);
    server.collect(out);
    assert_eq!(server.answer(), Message::PullReport(report));
}

#[test]
fn a_newer_session_ends_the_pull_before_its_promise_is_made() {
    let mut server = Server::new();
    let older = server.opened(5, 77);
    let newer = server.greeted();
    let mut out = Vec::new();
    let frame = Frame { request: 2, generation: generation(6), epoch: Epoch(1), message: open(1) };
    server.sessions.received(newer, frame, &server.facts, &mut out);
    let ended = out.iter().position(|output| matches!(output, Output::EndPull(of) if *of == older));
    let promised = out.iter().position(|output| matches!(output, Output::Submit(..)));
    assert!(ended.unwrap() < promised.unwrap(), "{out:?}");
}

#[test]
fn a_close_ends_the_pull_and_waits_for_the_repair() {
    let mut server = Server::new();
    let connection = server.opened(5, 77);
    server.say(connection, 10, 5, repair());
    let Some(Output::Repair(of, id, order, _)) = server.copying.pop() else { panic!("no repair") };
    assert_eq!((of, order.volume, order.range), (connection, VOLUME, BlockRange::new(3, 2)));
    server.say(connection, 11, 5, Message::Close { progress: Progress::default() });
    assert!(matches!(server.copying.pop(), Some(Output::EndPull(of)) if of == connection));
    assert!(server.sent.is_empty(), "not closed yet");
    server.complete(id, Err(RequestError::Source("gone".to_owned())));
    let close = server.sent.pop().unwrap();
    assert_eq!((close.1, close.2), (11, Message::Done));
    assert_eq!(server.error(), ErrorCode::Source);
}

#[test]
fn versions_may_be_asked_for_by_those_who_only_look_but_nothing_ordered() {
    let mut server = Server::new();
    let connection = server.greeted();
    server.say(connection, 2, 0, look());
    server.sent.clear();
    let extent = TailExtent { range: BlockRange::new(1, 1), stamp: stamp(1, 1), discard: false };
    let versions = vec![TailEntry { range: extent.range, stamp: extent.stamp, discard: false }];
    server.say(connection, 3, 0, Message::Changed { since: stamp(1, 0), start: 9 });
    let id = server.submitted.pop().unwrap().0;
    let page = ChangedPage { versions: vec![extent], next: Some(20) };
    server.complete(id, Ok(Reply::Changed(page)));
    assert_eq!(server.answer(), Message::ChangedReply { entries: versions.clone(), next: Some(20) });
    let range = BlockRange::new(0, 4);
    let fetched = FetchedBlocks {
        versions: vec![extent],
        crcs: block(9).crcs,
        tags: Vec::new(),
        segments: block(9).segments,
    };
    server.say(connection, 4, 0, Message::Fetch { range });
    let id = server.submitted.pop().unwrap().0;
    server.complete(id, Ok(Reply::Fetched(fetched)));
    assert_eq!(server.answer(), Message::FetchReply { versions: versions.clone(), data: block(9) });
    server.say(connection, 5, 0, Message::Verify { range, stamps_only: false });
    let id = server.submitted.pop().unwrap().0;
    let failed = vec![BlockRange::new(1, 1)];
    let verified = VerifiedBlocks { versions: vec![extent], crcs: block(9).crcs, failed: failed.clone() };
    server.complete(id, Ok(Reply::Verified(verified)));
    assert_eq!(server.answer(), Message::VerifyReply { versions, crcs: block(9).crcs, failed });
    server.say(connection, 6, 0, pull());
    assert_eq!(server.close_code(), (connection, ErrorCode::Unexpected));
    assert!(server.copying.is_empty());
}
