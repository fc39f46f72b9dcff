//! What a source may answer, and what is made of it.

use super::*;
use bytes::Bytes;
use trivet_model::{BLOCK_SIZE, Stamp};
use trivet_wire::{ErrorCode, PullState};

fn stamp(generation: u32, sequence: u64) -> Stamp {
    Stamp::new(Generation::new(generation).unwrap(), sequence).unwrap()
}

fn entry(start: u64, count: u32, stamp: Stamp, discard: bool) -> TailEntry {
    TailEntry { range: BlockRange::new(start, count), stamp, discard }
}

fn data(blocks: usize) -> BlockData {
    BlockData::checksummed(vec![Bytes::from(vec![5; blocks * BLOCK_SIZE])])
}

fn order() -> PullOrder {
    PullOrder {
        volume: VolumeId::from_bytes([1; 16]),
        blocks: 1000,
        since: stamp(1, 10),
        floor: stamp(3, 1),
        generation: Generation::new(3).unwrap(),
    }
}

/// A pull, driven without limits.
struct Driven {
    pull: Pull,
    /// Ours, by now.
    snapshots: Vec<Snapshot>,
    asked: Vec<(u64, Message)>,
    submitted: Vec<(u64, Request)>,
}

impl Driven {
    fn new() -> Self {
        let mut driven = Self {
            pull: Pull::new(order(), &[]),
            snapshots: Vec::new(),
            asked: Vec::new(),
            submitted: Vec::new(),
        };
        driven.poll();
        driven
    }

    fn poll(&mut self) {
        let mut out = Vec::new();
        let Self { pull, snapshots, .. } = self;
        pull.poll(Duration::ZERO, &mut Pace::default(), || snapshots.clone(), &mut out);
        for output in out {
            match output {
                Output::Ask(id, message) => self.asked.push((id, message)),
                Output::Submit(id, request) => self.submitted.push((id, request)),
            }
        }
    }

    fn answer(&mut self, message: Message) {
        let (id, _) = self.asked.remove(0);
        self.pull.source_answered(id, message);
        self.poll();
    }

    /// The source lists these, and we have nothing.
    fn listed(&mut self, entries: Vec<TailEntry>) {
        self.answer(Message::ChangedReply { entries, next: None });
        let (id, _) = self.submitted.remove(0);
        self.pull.store_answered(id, Ok(Reply::Changed(crate::store::ChangedPage::default())));
        self.poll();
    }

    fn failure(&self) -> &PullError {
        self.pull.failure().expect("it must have failed")
    }
}

#[test]
fn a_source_that_lists_nonsense_is_given_up() {
    let cases = [
        (vec![entry(5, 1, stamp(4, 1), false)], None),
        (vec![entry(5, 1, stamp(1, 10), false)], None),
        (vec![entry(5, 2, stamp(2, 1), false), entry(6, 1, stamp(2, 9), false)], None),
        (vec![entry(999, 2, stamp(2, 1), false)], None),
        (vec![entry(50, 1, stamp(2, 1), false)], Some(50)),
        (vec![], Some(0)),
        (vec![], Some(1001)),
    ];
    for (entries, next) in cases {
        let mut driven = Driven::new();
        driven.answer(Message::ChangedReply { entries, next });
        assert!(matches!(driven.failure(), PullError::Nonsense(_)), "{:?}", driven.failure());
        assert_eq!(driven.pull.report().state, PullState::Failed);
    }
    let mut driven = Driven::new();
    driven.answer(Message::Error { code: ErrorCode::Medium, detail: "bad".to_owned() });
    assert!(matches!(driven.failure(), PullError::Refused { code: ErrorCode::Medium, .. }));
}

#[test]
fn only_what_was_asked_for_and_arrived_whole_is_placed() {
    let good = entry(5, 2, stamp(2, 1), false);
    let mut flipped = data(2);
    flipped.crcs[1].0 ^= 1;
    let cases = [
        (vec![entry(4, 2, stamp(2, 1), false)], data(2)),
        (vec![entry(6, 2, stamp(2, 1), false)], data(2)),
        (vec![entry(5, 2, stamp(4, 1), false)], data(2)),
        (vec![good], flipped),
    ];
    for (versions, data) in cases {
        let mut driven = Driven::new();
        driven.listed(vec![good]);
        driven.answer(Message::FetchReply { versions, data });
        assert!(driven.submitted.is_empty() && driven.pull.is_over());
        if let PullError::Changed(block) = driven.failure() {
            assert_eq!(*block, 6);
        }
    }
    let mut driven = Driven::new();
    driven.listed(vec![good]);
    driven.answer(Message::FetchReply { versions: vec![good], data: data(2) });
    let Some((id, Request::Place { placement, .. })) = driven.submitted.pop() else { panic!("not placed") };
    assert_eq!((placement.crcs.len(), placement.repair), (2, false));
    assert_eq!((driven.pull.report().position, driven.pull.is_over()), (5, false));
    driven.pull.store_answered(id, Ok(Reply::Done));
    assert_eq!(
        driven.pull.report().state,
        PullState::Running,
        "which snapshots there are is still to be seen"
    );
    driven.poll();
    let report = driven.pull.report();
    assert_eq!((report.state, report.position, report.copied_blocks), (PullState::Finished, 1000, 2));
}

#[test]
fn what_a_snapshot_shows_that_was_taken_meanwhile_is_copied_too() {
    let snapshot = Snapshot { id: SnapshotId::from_bytes([7; 16]), cut: stamp(2, 50) };
    let overwritten = entry(5, 1, stamp(2, 1), false);
    let mut driven = Driven::new();
    driven.snapshots.push(snapshot);
    driven.listed(Vec::new());
    let [(_, Message::View { at })] = driven.asked[..] else { panic!("{:?}", driven.asked) };
    assert_eq!((at, driven.pull.is_over()), (Some(snapshot.id), false));
    driven.answer(Message::Done);
    let [(_, Message::Changed { since, start: 0 })] = driven.asked[..] else { panic!("{:?}", driven.asked) };
    assert_eq!(since, order().since);
    driven.listed(vec![overwritten]);
    driven.answer(Message::FetchReply { versions: vec![overwritten], data: data(1) });
    let (id, _) = driven.submitted.remove(0);
    driven.pull.store_answered(id, Ok(Reply::Done));
    driven.poll();
    assert_eq!(driven.pull.report().state, PullState::Finished);
}

#[test]
fn what_is_in_flight_is_bounded() {
    let mut driven = Driven::new();
    // Blocks apart from each other, and as many as fit.
    driven.listed((0..500).map(|at| entry(at * 2, 1, stamp(2, at + 1), false)).collect());
    assert_eq!(driven.asked.len(), 128, "requests");
    let (mut pull, mut out) = (Pull::new(PullOrder { blocks: 1 << 20, ..order() }, &[]), Vec::new());
    let mut pace = Pace::default();
    pull.poll(Duration::ZERO, &mut pace, Vec::new, &mut out);
    pull.source_answered(
        1,
        Message::ChangedReply { entries: vec![entry(0, 4096, stamp(2, 1), false)], next: None },
    );
    pull.poll(Duration::ZERO, &mut pace, Vec::new, &mut out);
    pull.store_answered(2, Ok(Reply::Changed(crate::store::ChangedPage::default())));
    out.clear();
    pull.poll(Duration::ZERO, &mut pace, Vec::new, &mut out);
    assert_eq!(out.len(), 8, "of 256 blocks each");
}

#[test]
fn the_walk_waits_for_diverged_ranges_to_be_told() {
    let mut pull = Pull::new(PullOrder { blocks: 1 << 20, ..order() }, &[]);
    let (mut out, mut pace) = (Vec::new(), Pace::default());
    let mut told = 0;
    for at in 0..40u64 {
        out.clear();
        pull.poll(Duration::ZERO, &mut pace, Vec::new, &mut out);
        let Some(Output::Ask(id, _)) = out.pop() else {
            // It waits; a report lets it go on.
            let report = pull.report();
            assert_eq!(report.state, PullState::Running);
            told += report.diverged.len();
            continue;
        };
        let next = Some((at + 1) * 4096);
        pull.source_answered(id, Message::ChangedReply { entries: Vec::new(), next });
        pull.poll(Duration::ZERO, &mut pace, Vec::new, &mut out);
        let Some(Output::Submit(id, Request::Changed { start, .. })) = out.pop() else { panic!("{out:?}") };
        let run = |at: u64| TailExtent {
            range: BlockRange::new(start + at * 2, 1),
            stamp: stamp(2, at + 1),
            discard: false,
        };
        let page =
            crate::store::ChangedPage { versions: (0..2000).map(run).collect(), next: Some(start + 4096) };
        pull.store_answered(id, Ok(Reply::Changed(page)));
    }
    assert!(told >= 10 * 1024, "it never waited: {told}");
}

#[test]
fn a_repair_places_what_the_source_has_over_the_same_stamp() {
    let order = RepairOrder {
        volume: VolumeId::from_bytes([1; 16]),
        range: BlockRange::new(5, 2),
        generation: Generation::new(3).unwrap(),
    };
    let mut repair = Repair::new(order);
    let (mut out, mut pace) = (Vec::new(), Pace::default());
    repair.poll(Duration::ZERO, &mut pace, &mut out);
    assert!(matches!(out.pop(), Some(Output::Ask(0, Message::Fetch { range })) if range == order.range));
    let versions = vec![entry(5, 2, stamp(2, 1), false)];
    repair.source_answered(0, Message::FetchReply { versions, data: data(2) });
    repair.poll(Duration::ZERO, &mut pace, &mut out);
    let Some(Output::Submit(0, Request::Place { placement, .. })) = out.pop() else { panic!("not placed") };
    assert!(placement.repair && repair.result().is_none());
    repair.fail(PullError::Link("the session has ended".to_owned()));
    assert!(repair.result().is_none(), "the store has it: its answer counts");
    repair.store_answered(0, Ok(Reply::Done));
    assert_eq!(repair.result(), Some(&Ok(())));
}

#[test]
fn repairs_beside_foreground_work_keep_to_the_pace() {
    let range = BlockRange::new(0, 256);
    let (volume, generation) = (VolumeId::from_bytes([1; 16]), Generation::new(3).unwrap());
    let mut pace = Pace::default();
    let begun_within = |pace: &mut Pace, from: Duration, busy: bool| {
        let mut begun = 0;
        let mut repair = Repair::new(RepairOrder { volume, range, generation });
        for ms in 0..1000 {
            let now = from + Duration::from_millis(ms);
            if busy {
                pace.note_foreground(now);
            }
            let mut out = Vec::new();
            repair.poll(now, pace, &mut out);
            if !out.is_empty() {
                begun += 1;
                repair = Repair::new(RepairOrder { volume, range, generation });
            }
        }
        begun
    };
    assert_eq!(begun_within(&mut pace, Duration::from_secs(1), false), 1000, "with nobody else, as it goes");
    let beside = begun_within(&mut pace, Duration::from_secs(10), true);
    assert!((8..24).contains(&beside), "{beside} MiB in a second, where a copy begins with 16");
}
