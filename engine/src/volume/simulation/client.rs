//! A consumer that asks at random and remembers what it was told.

use super::Random;
use super::checker::{SectorHistory, WriteMark};
use crate::request::{IoError, IoReply, IoRequest};
use bytes::Bytes;
use std::collections::BTreeMap;

const SECTOR: usize = 512;

/// Of the source that a volume is imported from: less than the volume, and no whole blocks.
pub(super) const SOURCE_BYTES: u64 = 4 * 4096 + 3 * 512;

/// What the source has in a sector; some of its blocks are zeros.
fn source_value(sector: usize) -> u64 {
    if (sector * SECTOR) as u64 >= SOURCE_BYTES || sector / 8 == 2 { 0 } else { (1 << 40) + sector as u64 }
}

/// What the source answers.
pub(super) fn source_data(offset: u64, length: u32) -> Bytes {
    let first = usize::try_from(offset).unwrap() / SECTOR;
    let sectors = first..first + length as usize / SECTOR;
    sectors
        .flat_map(|sector| source_value(sector).to_le_bytes().repeat(SECTOR / 8))
        .collect::<Vec<u8>>()
        .into()
}

#[derive(Debug)]
enum Kind {
    Read { first: usize, count: usize },
    Change(Vec<(usize, WriteMark)>),
    Flush,
    Other,
}

#[derive(Debug)]
struct Asked {
    kind: Kind,
    begin: u64,
}

#[derive(Debug)]
pub(super) struct Client {
    sectors: Vec<SectorHistory>,
    asked: BTreeMap<u64, Asked>,
    next_tag: u64,
    next_value: u64,
    /// When the last flush that ended well began.
    flushed: u64,
    pub(super) answered: u64,
    pub(super) refused: u64,
}

impl Client {
    /// Of a volume that holds zeros, or what its source has.
    pub(super) fn new(blocks: u64, has_source: bool) -> Self {
        let sectors = usize::try_from(blocks).unwrap() * 8;
        let first = |sector| if has_source { source_value(sector) } else { 0 };
        Self {
            sectors: (0..sectors).map(|sector| SectorHistory::beginning_with(first(sector))).collect(),
            asked: BTreeMap::new(),
            next_tag: 0,
            next_value: 1,
            flushed: 0,
            answered: 0,
            refused: 0,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.asked.len()
    }

    pub(super) fn ask(&mut self, time: u64, random: &mut Random) -> (u64, IoRequest) {
        let whole = random.once_in(2);
        let unit = if whole { 8 } else { 1 };
        let units = self.sectors.len() / unit;
        let first = random.below(units) * unit;
        let count = ((1 + random.below(if whole { 4 } else { 20 })) * unit).min(self.sectors.len() - first);
        let (offset, length) = ((first * SECTOR) as u64, (count * SECTOR) as u64);
        let (kind, request) = match random.below(12) {
            0..4 => {
                let length = u32::try_from(length).unwrap();
                (Kind::Read { first, count }, IoRequest::Read { offset, length })
            }
            4..8 => {
                let value = self.new_value();
                let force_unit_access = random.once_in(6);
                let data = pattern(value, count, random);
                let marks = self.begin_change(first..first + count, value, time);
                (Kind::Change(marks), IoRequest::Write { offset, segments: data, force_unit_access })
            }
            8 => {
                let marks = self.begin_change(first..first + count, 0, time);
                (Kind::Change(marks), IoRequest::Discard { offset, length })
            }
            9 => {
                let marks = self.begin_change(first..first + count, 0, time);
                let zeroes =
                    IoRequest::WriteZeroes { offset, length, force_unit_access: false, may_unmap: true };
                (Kind::Change(marks), zeroes)
            }
            10 => (Kind::Flush, IoRequest::Flush),
            _ => (Kind::Other, IoRequest::Allocation { offset, length }),
        };
        self.note(kind, time, request)
    }

    /// To zero so many sectors, from the first.
    pub(super) fn ask_to_zero(&mut self, time: u64, sectors: usize) -> (u64, IoRequest) {
        let marks = self.begin_change(0..sectors, 0, time);
        let (offset, length) = (0, (sectors * SECTOR) as u64);
        let zeroes = IoRequest::WriteZeroes { offset, length, force_unit_access: false, may_unmap: true };
        self.note(Kind::Change(marks), time, zeroes)
    }

    pub(super) fn ask_flush(&mut self, time: u64) -> (u64, IoRequest) {
        self.note(Kind::Flush, time, IoRequest::Flush)
    }

    pub(super) fn ask_all(&mut self, time: u64) -> (u64, IoRequest) {
        let count = self.sectors.len();
        let length = u32::try_from(count * SECTOR).unwrap();
        self.note(Kind::Read { first: 0, count }, time, IoRequest::Read { offset: 0, length })
    }

    fn note(&mut self, kind: Kind, begin: u64, request: IoRequest) -> (u64, IoRequest) {
        self.next_tag += 1;
        self.asked.insert(self.next_tag, Asked { kind, begin });
        (self.next_tag, request)
    }

    fn new_value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    fn begin_change(
        &mut self,
        sectors: std::ops::Range<usize>,
        value: u64,
        time: u64,
    ) -> Vec<(usize, WriteMark)> {
        sectors.map(|sector| (sector, self.sectors[sector].write_began(value, time))).collect()
    }

    pub(super) fn answered(&mut self, time: u64, tag: u64, result: Result<IoReply, IoError>) {
        let asked = self.asked.remove(&tag).expect("a request is answered once");
        self.answered += 1;
        match (asked.kind, result) {
            (Kind::Read { first, count }, Ok(IoReply::Data(segments))) => {
                let bytes: Vec<u8> = segments.iter().flat_map(|segment| segment.iter().copied()).collect();
                assert_eq!(bytes.len(), count * SECTOR);
                for (i, sector) in bytes.chunks_exact(SECTOR).enumerate() {
                    self.sectors[first + i].read(value_of(sector), asked.begin, time);
                }
            }
            (Kind::Change(marks), Ok(IoReply::Done)) => {
                for (sector, mark) in marks {
                    self.sectors[sector].write_ended(mark, time);
                }
            }
            (Kind::Flush, Ok(IoReply::Done)) => self.flushed = self.flushed.max(asked.begin),
            (Kind::Other, Ok(IoReply::Allocation(extents))) => {
                assert!(extents.iter().all(|&(length, _)| length > 0) && !extents.is_empty());
            }
            // Not acknowledged: it may have happened or not, now or later.
            (Kind::Flush, Err(IoError::Invalid(_))) => {}
            // Asked for in its name (`World::submit`).
            (Kind::Flush, Ok(IoReply::Data(_))) => {}
            (_, Err(IoError::NoSpace | IoError::Fenced | IoError::Closed | IoError::Medium { .. })) => {
                self.refused += 1;
            }
            (kind, result) => panic!("{kind:?} was answered {result:?}"),
        }
    }

    /// The engine died: nothing more will be answered.
    pub(super) fn forget(&mut self) {
        self.asked.clear();
    }

    /// Everything lost power. What is read next, whole, must be what a flush left or what came later;
    /// it begins a new history.
    pub(super) fn check_survivors(&mut self, image: &[u8]) -> Result<(), String> {
        for (index, sector) in image.chunks_exact(SECTOR).enumerate() {
            let value = value_of(sector);
            let allowed = self.sectors[index].survivors(self.flushed);
            if !allowed.contains(&value) {
                return Err(format!("sector {index} has {value}, not one of {allowed:?}"));
            }
            self.sectors[index] = SectorHistory::beginning_with(value);
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), String> {
        for (index, sector) in self.sectors.iter().enumerate() {
            sector.check().map_err(|error| format!("sector {index}: {error}"))?;
        }
        Ok(())
    }
}

/// Sectors that each carry `value`, in segments of odd lengths.
fn pattern(value: u64, sectors: usize, random: &mut Random) -> Vec<Bytes> {
    let mut data = Vec::with_capacity(sectors * SECTOR);
    for _ in 0..sectors * SECTOR / 8 {
        data.extend_from_slice(&value.to_le_bytes());
    }
    let mut rest = Bytes::from(data);
    let mut segments = Vec::new();
    while random.once_in(2) && rest.len() > 1 {
        segments.push(rest.split_to(random.below(rest.len())));
    }
    segments.push(rest);
    segments
}

fn value_of(sector: &[u8]) -> u64 {
    let mut words = sector.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    let value = words.next().unwrap();
    assert!(words.all(|word| word == value), "a sector is torn");
    value
}
