//! A member that gives back what it had before: authentic versions of blocks, with their stamps and tags, that have
//! been overwritten or discarded since. Its store is right; the engine is told otherwise, now and then, while all
//! members are in sync. Only a volume whose reads are verified stands that.

use crate::random::Random;
use crate::swarm::Fault;
use crate::trace::Happening;
use crate::world::World;
use bytes::Bytes;
use std::collections::BTreeMap;
use trivet_model::{BLOCK_SIZE, BlockCrc, BlockRange, BlockTag, Stamp};
use trivet_wire::{BlockData, Frame, Message};

/// Who does.
const LIAR: usize = 0;
/// Two of three say otherwise then, whatever it is.
const MEMBERS: usize = 3;

/// A block as it was.
#[derive(Clone, Debug)]
struct Version {
    stamp: Stamp,
    crc: BlockCrc,
    tag: BlockTag,
    bytes: Bytes,
}

/// What the member remembers.
#[derive(Debug)]
pub(crate) struct Past {
    random: Random,
    /// The first version seen of each block.
    versions: BTreeMap<u64, Version>,
    /// The reads that it has not answered, by connection and request.
    asked: BTreeMap<(usize, u64), BlockRange>,
}

impl Past {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::stream(seed, 23), versions: BTreeMap::new(), asked: BTreeMap::new() }
    }

    /// Whether the older version is told: the same of all blocks of an answer, since one lie is enough.
    fn lies(&mut self) -> bool {
        self.random.one_in(3)
    }

    /// The older version of a block, if there is one. Remembers the present one otherwise.
    fn of(&mut self, block: u64, present: Option<Version>) -> Option<Version> {
        match (self.versions.get(&block), present) {
            (Some(old), present) if present.as_ref().is_none_or(|present| present.stamp > old.stamp) => {
                Some(old.clone())
            }
            (None, Some(present)) => {
                self.versions.insert(block, present);
                None
            }
            _ => None,
        }
    }
}

impl World {
    /// The member is asked to read.
    pub(crate) fn note_asked(&mut self, host: usize, connection: usize, frame: &Frame) {
        if host == LIAR
            && self.profile.has(Fault::OldVersions)
            && let Message::Read { range } = &frame.message
        {
            self.past.asked.insert((connection, frame.request), *range);
        }
    }

    /// What the engine is told.
    pub(crate) fn told(&mut self, host: usize, connection: usize, frame: Frame) -> Frame {
        if host != LIAR || !self.profile.has(Fault::OldVersions) {
            return frame;
        }
        let engine = self.network.connections[connection].engine;
        let all_in_sync = self.records.in_sync().len() == MEMBERS && self.engines[engine].is_whole();
        let may = all_in_sync && self.is_striking() && self.past.lies();
        let Frame { request, generation, epoch, message } = frame;
        let (message, lied) = match message {
            Message::ReadReply { present, stamps, data } if !data.tags.is_empty() || data.crcs.is_empty() => {
                match self.past.asked.remove(&(connection, request)) {
                    Some(range) => {
                        let mut versions = versions(&stamps, data).into_iter();
                        let is_present = |at: usize| present[at / 8] >> (at % 8) & 1 == 1;
                        let there = range
                            .blocks()
                            .enumerate()
                            .map(|(at, block)| (block, if is_present(at) { versions.next() } else { None }));
                        let (told, lied) = self.past.as_it_was(there.collect(), may);
                        (read_reply(&told), lied)
                    }
                    None => (Message::ReadReply { present, stamps, data }, false),
                }
            }
            other => (other, false),
        };
        if lied {
            self.count(Fault::OldVersions);
            self.note(Happening::Note("an older version is told"));
        }
        Frame { request, generation, epoch, message }
    }
}

impl Past {
    /// Blocks as they are to be told, and whether one is not as it is.
    fn as_it_was(
        &mut self,
        there: Vec<(u64, Option<Version>)>,
        may: bool,
    ) -> (Vec<(u64, Option<Version>)>, bool) {
        let mut lied = false;
        let told =
            there.into_iter().map(|(block, present)| match self.of(block, present.clone()).filter(|_| may) {
                Some(old) => {
                    lied = true;
                    (block, Some(old))
                }
                None => (block, present),
            });
        (told.collect(), lied)
    }
}

fn versions(stamps: &[Stamp], data: BlockData) -> Vec<Version> {
    let bytes = data.segments.iter().flat_map(|segment| {
        (0..segment.len() / BLOCK_SIZE).map(|at| segment.slice(at * BLOCK_SIZE..(at + 1) * BLOCK_SIZE))
    });
    let seals = stamps.iter().zip(&data.crcs).zip(&data.tags);
    seals.zip(bytes).map(|(((&stamp, &crc), &tag), bytes)| Version { stamp, crc, tag, bytes }).collect()
}

fn block_data<'a>(told: impl Iterator<Item = &'a Version> + Clone) -> BlockData {
    let crcs = told.clone().map(|version| version.crc).collect();
    let tags = told.clone().map(|version| version.tag).collect();
    BlockData::new(crcs, tags, told.map(|version| version.bytes.clone()).collect())
}

fn read_reply(told: &[(u64, Option<Version>)]) -> Message {
    let mut present = vec![0; told.len().div_ceil(8)];
    for (at, (_, version)) in told.iter().enumerate() {
        present[at / 8] |= u8::from(version.is_some()) << (at % 8);
    }
    let there = told.iter().filter_map(|(_, version)| version.as_ref());
    let stamps = there.clone().map(|version| version.stamp).collect();
    Message::ReadReply { present: Bytes::from(present), stamps, data: block_data(there) }
}
