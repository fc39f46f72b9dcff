//! The coordination against engines of a few lines, in every order that a seed gives: a writer that writes
//! to one volume and, once that is acknowledged, to the other; engines that give up holding, are opened
//! anew, or do not hear; records that others change; and a coordinator that dies.

use super::*;
use std::cell::RefCell;
use std::pin::{Pin, pin};
use std::task::{Context, Waker};
use trivet_model::{Epoch, Generation, Sharing, SnapshotId, VolumeId, VolumeSettings};

const VOLUMES: usize = 2;

/// What is done wrong, to see that it is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mistake {
    None,
    /// An engine that is to hold goes on.
    SkipHold,
    /// An engine that has given up holding cuts all the same.
    ForgetLapse,
    /// An engine that gives up does not change the record.
    WithdrawSilently,
    /// The records are read when the engines have said that they are ready.
    ReadLate,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Something that was cut: of which snapshot, in which generation, and the last write that it shows.
#[derive(Clone, Copy)]
struct Cut {
    snapshot: SnapshotId,
    shows: u64,
}

#[derive(Default)]
struct Engine {
    group: bool,
    held: bool,
    cut: Option<Cut>,
    /// The last write sent to members.
    sent: u64,
}

struct World {
    random: Random,
    mistake: Mistake,
    troubled: bool,
    engines: Vec<Engine>,
    records: Vec<(VolumeRecord, Revision)>,
    /// What every cut ever taken shows, and whether members may have let it go.
    cuts: Vec<(Cut, bool)>,
    sequence: u64,
}

fn volume(index: usize) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId::from_bytes([u8::try_from(index).unwrap(); 16]),
        name: format!("v{index}"),
        blocks: 1,
        generation: Generation::new(1).unwrap(),
        owner: "an engine".to_owned(),
        epoch: Epoch(0),
        wait_owed: false,
        members: Vec::new(),
        snapshots: Vec::new(),
        lineage: Vec::new(),
        sharing: Sharing::Nothing,
        is_image: false,
        settings: VolumeSettings::default(),
        copies: 0,
        key: None,
        next_key: None,
        older_keys: Vec::new(),
        reverting: None,
        import: None,
    }
}

impl World {
    fn loses_message(&mut self) -> bool {
        self.troubled && self.random.below(40) == 0
    }

    fn let_go(&mut self, volume: usize) {
        if let Some(cut) = self.engines[volume].cut.take() {
            self.cuts
                .iter_mut()
                .filter(|(known, _)| known.snapshot == cut.snapshot)
                .for_each(|(_, gone)| *gone = true);
        }
    }

    fn is_recorded(&self, volume: usize, cut: Cut) -> bool {
        self.records[volume].0.snapshots.iter().any(|known| known.id == cut.snapshot)
    }

    /// An engine gives up: what is not recorded never will be.
    fn withdraw(&mut self, volume: usize) {
        let engine = &mut self.engines[volume];
        (engine.held, engine.group) = (false, false);
        let Some(cut) = engine.cut else { return };
        if self.is_recorded(volume, cut) {
            self.engines[volume].cut = None;
            return;
        }
        if self.mistake != Mistake::WithdrawSilently {
            self.records[volume].1.0 += 1;
        }
        self.let_go(volume);
    }

    /// Another engine opens the volume.
    fn open_anew(&mut self, volume: usize) {
        let (record, revision) = &mut self.records[volume];
        record.generation = record.generation.next().unwrap();
        revision.0 += 1;
        let cut = self.engines[volume].cut;
        if cut.is_some_and(|cut| self.is_recorded(volume, cut)) {
            self.engines[volume].cut = None;
        }
        self.let_go(volume);
        self.engines[volume] = Engine { sent: self.engines[volume].sent, ..Engine::default() };
    }

    fn step(&mut self, volume: usize, step: GroupStep) -> Result<Option<Stamp>, Refusal> {
        let refused = || Err(Refusal::Raced);
        let mistake = self.mistake;
        let heedless = matches!(mistake, Mistake::SkipHold | Mistake::ForgetLapse);
        let engine = &mut self.engines[volume];
        match step {
            GroupStep::Hold { .. } => (engine.held, engine.group) = (mistake != Mistake::SkipHold, true),
            GroupStep::Cut(snapshot) if engine.held || engine.group && heedless => {
                let cut = Cut { snapshot: snapshot.id, shows: engine.sent };
                engine.cut = Some(cut);
                engine.held = false;
                self.cuts.push((cut, false));
                self.sequence += 1;
                return Ok(Stamp::new(self.records[volume].0.generation, self.sequence));
            }
            GroupStep::Confirm if engine.cut.is_some() => {}
            GroupStep::Cut(_) | GroupStep::Confirm => return refused(),
            GroupStep::Settle | GroupStep::Abandon => self.withdraw(volume),
        }
        Ok(None)
    }

    /// What goes wrong at a moment.
    fn strike(&mut self) {
        let volume = usize::try_from(self.random.below(2)).unwrap();
        match self.random.below(4) {
            // A hold that has lasted too long without a cut ends without a trace.
            0 if self.mistake == Mistake::ForgetLapse => self.engines[volume].held = false,
            0 | 1 => self.withdraw(volume),
            2 => self.open_anew(volume),
            _ => self.records[volume].1.0 += 1,
        }
    }

    /// All or none, at one moment, and nothing that members have let go.
    fn check(&self) -> Result<(), String> {
        let of = |volume: usize| &self.records[volume].0.snapshots;
        if of(0).len() != of(1).len() {
            return Err("a snapshot is recorded of one volume alone".to_owned());
        }
        for (first, second) in of(0).iter().zip(of(1)) {
            let cut = |id| self.cuts.iter().find(|(cut, _)| cut.snapshot == id).unwrap();
            let ((first, gone), (second, also)) = (cut(first.id), cut(second.id));
            if *gone || *also {
                return Err("what members have let go is recorded".to_owned());
            }
            if first.shows < second.shows {
                return Err(format!("the first volume shows {}, the second {}", first.shows, second.shows));
            }
        }
        Ok(())
    }
}

trait Message {
    async fn take_a_while(&self);
}

impl Message for RefCell<World> {
    async fn take_a_while(&self) {
        let pauses = self.borrow_mut().random.below(3);
        for _ in 0..pauses {
            pause().await;
        }
    }
}

/// Lets others go first.
async fn pause() {
    let mut waited = false;
    std::future::poll_fn(
        |_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending },
    )
    .await;
}

impl Volumes for RefCell<World> {
    async fn tell(&self, volume: usize, step: GroupStep) -> Result<Option<Stamp>, Refusal> {
        self.take_a_while().await;
        if self.borrow_mut().loses_message() {
            return Err(Refusal::Stopping);
        }
        let answer = self.borrow_mut().step(volume, step);
        self.take_a_while().await;
        if self.borrow_mut().loses_message() { Err(Refusal::Stopping) } else { answer }
    }

    fn read(&self) -> Result<Vec<(VolumeRecord, Revision)>, Refusal> {
        Ok(self.borrow().records.clone())
    }

    fn commit(&self, records: &[(VolumeRecord, Revision)]) -> Result<bool, Refusal> {
        let mut world = self.borrow_mut();
        let late = world.mistake == Mistake::ReadLate;
        let stale = records.iter().zip(&world.records).any(|(new, known)| new.1 != known.1);
        if stale && !late {
            return Ok(false);
        }
        for ((new, _), (known, revision)) in records.iter().zip(&mut world.records) {
            known.snapshots.clone_from(&new.snapshots);
            revision.0 += 1;
        }
        Ok(true)
    }
}

async fn write(world: &RefCell<World>) {
    for number in 1.. {
        for volume in 0..VOLUMES {
            while world.borrow().engines[volume].held {
                pause().await;
            }
            world.borrow_mut().engines[volume].sent = number;
            // It is on its way, and acknowledged.
            pause().await;
        }
    }
}

fn wanted(world: &mut World, name: u64) -> Vec<SnapshotRecord> {
    let snapshot = |volume: usize| SnapshotRecord {
        id: SnapshotId::from_bytes((u128::from(name) << 8 | volume as u128).to_le_bytes()),
        name: format!("s{name}-{}", world.sequence),
        cut: Stamp::ZERO,
        created: 0,
        labels: Default::default(),
    };
    (0..VOLUMES).map(snapshot).collect()
}

/// Takes snapshots in a world that a seed chooses, `troubled` or not; how many came about.
fn run(seed: u64, mistake: Mistake, troubled: bool) -> Result<usize, String> {
    let world = RefCell::new(World {
        random: Random(seed),
        mistake,
        troubled,
        engines: (0..VOLUMES).map(|_| Engine::default()).collect(),
        records: (0..VOLUMES).map(|index| (volume(index), Revision(1))).collect(),
        cuts: Vec::new(),
        sequence: 0,
    });
    let mut writer: Pin<&mut dyn Future<Output = ()>> = pin!(write(&world));
    let mut context = Context::from_waker(Waker::noop());
    for name in 0..6 {
        let wanted = wanted(&mut world.borrow_mut(), name);
        let mut taking = Box::pin(take(&world, &wanted));
        let dies_at = if troubled { world.borrow_mut().random.below(80) } else { u64::MAX };
        for turn in 0..10_000 {
            if turn == dies_at {
                break;
            }
            let (writes, strikes) = {
                let random = &mut world.borrow_mut().random;
                (random.below(2) == 0, troubled && random.below(25) == 0)
            };
            if strikes {
                world.borrow_mut().strike();
            }
            if writes {
                assert!(writer.as_mut().poll(&mut context).is_pending());
            } else if taking.as_mut().poll(&mut context).is_ready() {
                break;
            }
        }
        drop(taking);
        // Engines that hear nothing more give up in the end.
        (0..VOLUMES).for_each(|volume| world.borrow_mut().withdraw(volume));
        world.borrow().check()?;
    }
    let taken = world.borrow().records[0].0.snapshots.len();
    Ok(taken)
}

#[test]
fn snapshots_are_of_one_moment_and_of_all_volumes_or_none() {
    for seed in 0..3000 {
        let taken = run(seed, Mistake::None, true);
        assert!(taken.is_ok(), "seed {seed}: {taken:?}");
        assert_eq!(run(seed, Mistake::None, false), Ok(6), "seed {seed}");
    }
}

#[test]
fn planted_mistakes_are_found() {
    for mistake in [Mistake::SkipHold, Mistake::ForgetLapse, Mistake::WithdrawSilently, Mistake::ReadLate] {
        assert!((0..3000).any(|seed| run(seed, mistake, true).is_err()), "{mistake:?} was not found");
    }
}
