//! Clients next to each engine: they write, discard, flush and read at random, and tell the oracle
//! what they were told.

use crate::Check;
use crate::checkers::history::Interval;
use crate::checkers::oracle::{OpeningId, SECTORS, WriteId, read_sector, value_of};
use crate::groups::GroupAsked;
use crate::random::Random;
use crate::stages::Stage;
use crate::swarm::Fault;
use crate::trace::Happening;
use crate::world::{Event, World};
use bytes::Bytes;
use std::ops::Range;
use std::time::Duration;
use trivet_engine::volume::Tag;
use trivet_engine::{IoError, IoReply, IoRequest};
use trivet_model::{GroupId, SECTOR_SIZE, SnapshotId, SnapshotOrder, SnapshotRecord, Stamp, VolumeSettings};

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Read(Range<usize>),
    /// Of a snapshot.
    View(Range<usize>),
    Change {
        write: WriteId,
        sectors: Range<usize>,
        zeros: bool,
        stable: bool,
    },
    Flush,
    Grow,
    Snapshot(SnapshotId),
    DeleteSnapshot,
    Settings,
    Rekey,
    /// A step of one over several volumes.
    Group(Box<GroupAsked>),
    Other,
}

/// A request that was not answered yet.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    engine: usize,
    incarnation: u64,
    opening: OpeningId,
    begin: Duration,
    kind: Kind,
}

/// All clients' requests in flight, by tag.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    in_flight: std::collections::BTreeMap<u64, Asked>,
    next_tag: u64,
    pub(crate) answered: u64,
    scrubs: u64,
}

impl Clients {
    /// A number for a scrub.
    pub(crate) const fn next_scrub(&mut self) -> u64 {
        self.scrubs += 1;
        self.scrubs
    }

    fn of(&self, engine: usize, incarnation: u64) -> usize {
        let mine = |asked: &&Asked| asked.engine == engine && asked.incarnation == incarnation;
        self.in_flight.values().filter(mine).count()
    }
}

impl World {
    /// How many of an engine's present requests are not answered.
    pub(crate) fn requests_in_flight(&self, engine: usize) -> usize {
        self.clients.of(engine, self.engines[engine].incarnation)
    }

    pub(crate) fn client(&mut self, engine: usize) {
        if !matches!(self.stage, Stage::Faults | Stage::Calm { .. }) {
            return;
        }
        // Busy for a while, then quiet for a while.
        let pause = if self.client_random.one_in(20) { self.profile.gap * 15 } else { self.profile.gap / 3 };
        let after = self.client_random.exponential(pause);
        self.schedule(after, Event::Client { engine });
        let host = &self.engines[engine];
        let serves = host.held.is_none() && host.state().is_some_and(|state| !state.is_over());
        if serves && self.requests_in_flight(engine) < self.profile.depth {
            self.ask(engine);
        }
    }

    fn ask(&mut self, engine: usize) {
        let random = &mut self.client_random;
        let (first, length) = random.pick(&self.profile.hot);
        let whole = random.one_in(2);
        let unit = if whole { SECTORS } else { 1 };
        let most = usize::try_from(length).unwrap_or(1) * SECTORS / unit;
        let start = random.index(most);
        let count = (1 + random.index(if whole { 4 } else { 12 })).min(most - start);
        let base = usize::try_from(first).unwrap_or(0) * SECTORS;
        let sectors = base + start * unit..base + (start + count) * unit;
        let stable = random.one_in(8);
        let choice = random.below(12);
        let flush = random.one_in(self.profile.flush_one_in);
        match choice {
            _ if self.is_reader(engine) => self.ask_read(engine, sectors),
            // Its writes are not answered, and would soon be all that it has in flight.
            1.. if self.records.is_cut_off(engine) => self.ask_read(engine, sectors),
            _ if flush => self.request(engine, Kind::Flush, IoRequest::Flush),
            0..4 => self.ask_read(engine, sectors),
            4..9 => self.ask_write(engine, sectors, stable),
            9 => self.ask_zeros(engine, sectors, None),
            10 => self.ask_zeros(engine, sectors, Some(stable)),
            _ => {
                let (offset, length) = bytes_of(&sectors);
                self.request(engine, Kind::Other, IoRequest::Allocation { offset, length });
            }
        }
    }

    pub(crate) fn ask_read(&mut self, engine: usize, sectors: Range<usize>) {
        let (offset, length) = bytes_of(&sectors);
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let kind = if self.is_reader(engine) { Kind::View(sectors) } else { Kind::Read(sectors) };
        self.request(engine, kind, IoRequest::Read { offset, length });
    }

    /// Reads all that was ever touched, and flushes.
    pub(crate) fn ask_everything(&mut self, engine: usize) {
        let touched: Vec<usize> =
            (0..self.oracle.sectors()).filter(|at| self.oracle.is_touched(*at)).collect();
        for run in touched.chunk_by(|a, b| a + 1 == *b) {
            self.ask_read(engine, run[0]..run[run.len() - 1] + 1);
        }
        self.request(engine, Kind::Flush, IoRequest::Flush);
    }

    /// Grows the volume, by nothing at times.
    pub(crate) fn ask_to_grow(&mut self, engine: usize, by: u64) {
        if let Some(tag) = self.note_request(engine, Kind::Grow) {
            self.with_core(engine, |core, now| {
                let blocks = core.blocks() + by;
                core.grow(now, tag, blocks);
            });
        }
    }

    /// Takes a snapshot, or deletes one that is recorded.
    pub(crate) fn ask_to_snapshot(&mut self, engine: usize, random: &mut Random) {
        let recorded: Vec<SnapshotId> = self.records.record.snapshots.iter().map(|known| known.id).collect();
        if recorded.len() > 1 && random.one_in(2) {
            let id = random.pick(&recorded);
            if let Some(tag) = self.note_request(engine, Kind::DeleteSnapshot) {
                self.with_core(engine, |core, now| core.order_snapshot(now, tag, SnapshotOrder::Delete(id)));
            }
            return;
        }
        let mut bytes = [7; 16];
        bytes[..8].copy_from_slice(&random.next().to_le_bytes());
        let (id, name) = (SnapshotId::from_bytes(bytes), format!("s{}", random.next()));
        if let Some(tag) = self.note_request(engine, Kind::Snapshot(id)) {
            let (cut, created, labels) = (Stamp::ZERO, 0, Default::default());
            let snapshot = SnapshotRecord { id, name, cut, created, labels };
            let order = SnapshotOrder::Create(snapshot);
            self.with_core(engine, |core, now| core.order_snapshot(now, tag, order));
        }
    }

    pub(crate) fn request_settings(&mut self, engine: usize, settings: VolumeSettings) {
        if let Some(tag) = self.note_request(engine, Kind::Settings) {
            self.with_core(engine, |core, now| core.change_settings(now, tag, Some(settings)));
        }
    }

    fn opening_of(&self, engine: usize) -> Option<OpeningId> {
        self.engines[engine].engine.as_ref().map(|engine| engine.opening)
    }

    fn ask_write(&mut self, engine: usize, sectors: Range<usize>, stable: bool) {
        let Some(opening) = self.opening_of(engine) else { return };
        let write = self.oracle.write_began(opening, sectors.clone(), false, self.now);
        let segments = pattern(write, &sectors, &mut self.client_random);
        let (offset, _) = bytes_of(&sectors);
        let kind = Kind::Change { write, sectors, zeros: false, stable };
        self.request(engine, kind, IoRequest::Write { offset, segments, force_unit_access: stable });
    }

    /// A discard, or with `force_unit_access` a write of zeros.
    fn ask_zeros(&mut self, engine: usize, sectors: Range<usize>, force_unit_access: Option<bool>) {
        let Some(opening) = self.opening_of(engine) else { return };
        let write = self.oracle.write_began(opening, sectors.clone(), true, self.now);
        let (offset, length) = bytes_of(&sectors);
        let request = match force_unit_access {
            None => IoRequest::Discard { offset, length },
            Some(force_unit_access) => {
                IoRequest::WriteZeroes { offset, length, force_unit_access, may_unmap: true }
            }
        };
        let stable = force_unit_access.unwrap_or(false);
        self.request(engine, Kind::Change { write, sectors, zeros: true, stable }, request);
    }

    fn request(&mut self, engine: usize, kind: Kind, request: IoRequest) {
        if let Some(tag) = self.note_request(engine, kind) {
            self.submit(engine, tag, request);
        }
    }

    /// Whether an engine has not answered yet that it holds writes for this group.
    pub(crate) fn waits_for_hold(&self, group: GroupId) -> bool {
        let holds = |asked: &Asked| matches!(&asked.kind, Kind::Group(asked) if asked.holds_for(group));
        self.clients.in_flight.values().any(holds)
    }

    pub(crate) fn note_request(&mut self, engine: usize, kind: Kind) -> Option<Tag> {
        let opening = self.opening_of(engine)?;
        self.clients.next_tag += 1;
        let tag = self.clients.next_tag;
        let (what, sectors, value) = match &kind {
            Kind::Read(sectors) => ("read", sectors.clone(), 0),
            Kind::View(sectors) => ("view", sectors.clone(), 0),
            Kind::Change { write, sectors, zeros: false, .. } => {
                ("write", sectors.clone(), value_of(*write, sectors.start))
            }
            Kind::Change { sectors, .. } => ("zeros", sectors.clone(), 0),
            Kind::Flush => ("flush", 0..0, 0),
            Kind::Grow => ("grow", 0..0, 0),
            Kind::Snapshot(_) => ("snapshot", 0..0, 0),
            Kind::DeleteSnapshot => ("delete snapshot", 0..0, 0),
            Kind::Settings => ("set", 0..0, 0),
            Kind::Rekey => ("rekey", 0..0, 0),
            Kind::Group(_) => ("group", 0..0, 0),
            Kind::Other => ("query", 0..0, 0),
        };
        let (sector, sectors) = (sectors.start, sectors.len());
        self.note(Happening::Asked { engine, tag, what, sector, sectors, value });
        let incarnation = self.engines[engine].incarnation;
        self.clients.in_flight.insert(tag, Asked { engine, incarnation, opening, begin: self.now, kind });
        Some(Tag(tag))
    }

    /// The engine has answered.
    pub(crate) fn completed(&mut self, engine: usize, tag: Tag, result: Result<IoReply, IoError>) {
        let outcome = match &result {
            Ok(_) => "done",
            Err(IoError::Invalid(_)) => "invalid",
            Err(IoError::NoSpace) => "no space",
            Err(IoError::Medium { .. }) => "medium",
            Err(IoError::Fenced) => "fenced",
            Err(IoError::Closed) => "closed",
        };
        self.note(Happening::Answered { engine, tag: tag.0, outcome });
        self.clients.answered += 1;
        let Some(asked) = self.clients.in_flight.remove(&tag.0) else {
            return self.fail(Check::Answers, format!("request {} was answered twice", tag.0));
        };
        if let Kind::Group(group) = &asked.kind {
            return self.group_answered(GroupAsked::clone(group), result);
        }
        let reply = match result {
            Ok(reply) => reply,
            // One at a time, and not while the volume is opened.
            Err(_)
                if matches!(
                    asked.kind,
                    Kind::Grow | Kind::Snapshot(_) | Kind::DeleteSnapshot | Kind::Settings | Kind::Rekey
                ) =>
            {
                return;
            }
            // It may have happened or not, now or later.
            Err(IoError::Fenced | IoError::Closed) => return,
            Err(IoError::NoSpace) if self.profile.has(Fault::CrowdedPool) => return,
            Err(IoError::Medium { .. }) if self.profile.has(Fault::ReadError) => return,
            Err(IoError::Medium { .. }) if self.profile.has(Fault::CorruptFrame) => return,
            Err(IoError::Medium { .. }) if self.profile.has(Fault::MisdirectedRead) => return,
            Err(error) => return self.fail(Check::Answers, format!("request {} failed: {error}", tag.0)),
        };
        let superseded = self.oracle.superseded(asked.opening);
        if let Some(at) = superseded.filter(|at| *at < asked.begin)
            && matches!(asked.kind, Kind::Read(_) | Kind::Change { .. })
        {
            let detail = format!("request {} of engine {engine} was asked after {at:?}, and done", tag.0);
            return self.fail(Check::Fencing, detail);
        }
        if matches!(asked.kind, Kind::Read(_) | Kind::Change { .. }) {
            self.check_limit(engine);
        }
        let during = Interval { begin: asked.begin, end: superseded.unwrap_or(self.now).min(self.now) };
        match (asked.kind, reply) {
            (Kind::Read(sectors), IoReply::Data(segments)) => self.check_read(during, sectors, &segments),
            (Kind::View(sectors), IoReply::Data(segments)) => {
                let viewed = self.engines[engine].engine.as_ref().and_then(|engine| engine.viewed);
                self.check_view(viewed, sectors, &segments);
            }
            (Kind::Change { write, sectors, zeros, stable }, IoReply::Done) => {
                let stable = stable || self.write_through;
                let value = |sector| if zeros { 0 } else { value_of(write, sector) };
                let holders = self.check_acknowledged(asked.opening, during, sectors, (value, stable));
                self.oracle.write_ended(write, self.now, stable, holders);
            }
            (Kind::Grow | Kind::DeleteSnapshot | Kind::Rekey, IoReply::Done) => {}
            (Kind::Settings, IoReply::Done) => {
                // Whatever was acknowledged until now is stable, and what will be.
                self.oracle.flushed(asked.opening, self.now);
                self.write_through = true;
            }
            (Kind::Snapshot(id), IoReply::Done) => self.snapshot_taken(id, during),
            (Kind::Flush, IoReply::Done) => self.oracle.flushed(asked.opening, asked.begin),
            (Kind::Other, IoReply::Allocation(extents)) if !extents.is_empty() => {}
            (kind, reply) => self.fail(Check::Answers, format!("{kind:?} was answered {reply:?}")),
        }
    }

    fn check_read(&mut self, during: Interval, sectors: Range<usize>, segments: &[Bytes]) {
        let bytes: Vec<u8> = segments.concat();
        if bytes.len() != sectors.len() * SECTOR_SIZE {
            return self.fail(Check::Answers, format!("{} bytes for {sectors:?}", bytes.len()));
        }
        let holders = self.in_sync_mask();
        for (sector, bytes) in sectors.zip(bytes.chunks_exact(SECTOR_SIZE)) {
            let outcome =
                read_sector(bytes, sector).and_then(|value| self.oracle.read(sector, value, during, holders));
            if let Err(why) = outcome {
                return self.fail(Check::Linearizable, why);
            }
        }
    }
}

fn bytes_of(sectors: &Range<usize>) -> (u64, u64) {
    ((sectors.start * SECTOR_SIZE) as u64, (sectors.len() * SECTOR_SIZE) as u64)
}

/// Sectors of a write's values, at times in segments of odd lengths.
fn pattern(write: WriteId, sectors: &Range<usize>, random: &mut Random) -> Vec<Bytes> {
    let mut data = Vec::with_capacity(sectors.len() * SECTOR_SIZE);
    for sector in sectors.clone() {
        let word = value_of(write, sector).to_le_bytes();
        (0..SECTOR_SIZE / word.len()).for_each(|_| data.extend_from_slice(&word));
    }
    let mut rest = Bytes::from(data);
    let mut segments = Vec::new();
    while random.one_in(4) && rest.len() > 1 {
        segments.push(rest.split_to(random.index(rest.len())));
    }
    segments.push(rest);
    segments
}
