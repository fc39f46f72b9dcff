//! A replica server reduced to what the protocol promises.

use super::Random;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use trivet_model::checksum::block_crc;
use trivet_model::{BlockRange, BlockTag, BootId, Generation, PoolId, SnapshotId, Stamp};
use trivet_wire::frame::Progress;
use trivet_wire::{
    BlockData, ErrorCode, Extent, FlushReply, Frame, HelloReply, Message, OpenReply, PROTOCOL_VERSION,
    PullReport, PullState, SnapshotEntry, TailEntry,
};

/// A block's version; no data for a tombstone, and a tag with that of an encrypted volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Version {
    pub(super) stamp: Stamp,
    pub(super) data: Option<Bytes>,
    pub(super) tag: Option<BlockTag>,
}

/// A walk over the source's and the own versions.
#[derive(Debug)]
struct Pull {
    source: PoolId,
    since: Stamp,
    floor: Stamp,
    next: u64,
    diverged: Vec<BlockRange>,
    failed: bool,
}

#[derive(Debug)]
pub(super) struct ModelMember {
    pub(super) pool: PoolId,
    boot: u8,
    pub(super) size: u64,
    pub(super) blocks: BTreeMap<u64, Version>,
    /// Blocks whose versions of these stamps have rotted on the medium.
    rotten: BTreeMap<u64, Stamp>,
    /// Blocks to be fetched from a peer.
    repair: Option<(PoolId, BlockRange)>,
    stable: BTreeMap<u64, Version>,
    promised: (Generation, u64),
    progress: Progress,
    last: Stamp,
    intact: Option<Stamp>,
    /// Taken off the link and not carried out yet, in any order.
    pending: Vec<Frame>,
    /// What a connection left behind that broke.
    orphans: Vec<Frame>,
    /// A copy from a peer, bound to the session.
    pull: Option<Pull>,
    /// By their cuts: stable at once. What they show is the whole simulator's to check.
    pub(super) snapshots: BTreeMap<Stamp, SnapshotId>,
    /// Blocks that it says it does not have.
    pub(super) hides: BTreeSet<u64>,
    /// Writes find no space, once in so many times.
    pub(super) full: u32,
    /// Reads fail, or answer changed data, once in so many times.
    pub(super) bad_read: u32,
}

impl ModelMember {
    pub(super) fn new(index: u8, size: u64) -> Self {
        Self {
            pool: PoolId::from_bytes([index + 1; 16]),
            boot: 1,
            size,
            blocks: BTreeMap::new(),
            rotten: BTreeMap::new(),
            repair: None,
            stable: BTreeMap::new(),
            promised: (Generation::ZERO, 0),
            progress: Progress::default(),
            last: Stamp::ZERO,
            intact: None,
            pending: Vec::new(),
            orphans: Vec::new(),
            pull: None,
            snapshots: BTreeMap::new(),
            hides: BTreeSet::new(),
            full: 0,
            bad_read: 0,
        }
    }

    /// Whether it has lost nothing.
    pub(super) fn is_whole(&self) -> bool {
        self.intact.is_none()
    }

    pub(super) fn take(&mut self, frame: Frame) {
        // A replica closes the connection then.
        let known = self.pending.iter().find(|known| known.request == frame.request);
        assert!(known.is_none(), "asked for {:?} by the number of {known:?}", frame.message);
        self.pending.push(frame);
    }

    pub(super) fn pending(&self) -> &[Frame] {
        &self.pending
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.pending.is_empty() || !self.orphans.is_empty()
    }

    /// The connection broke: what is pending may still land, until the next `Open` drains it.
    pub(super) fn disconnected(&mut self) {
        self.pull = None;
        let left = self.pending.drain(..);
        let changes =
            |frame: &Frame| matches!(frame.message, Message::Write { .. } | Message::Discard { .. });
        self.orphans.extend(left.filter(changes));
    }

    /// The server is killed; the host, and what the device took, stay.
    pub(super) fn killed(&mut self) {
        self.pending.clear();
        self.orphans.clear();
        self.pull = None;
    }

    /// Whom it copies from, and which block comes next.
    pub(super) fn pulls(&self) -> Option<(PoolId, u64)> {
        let pull = self.pull.as_ref().filter(|pull| !pull.failed && pull.next < self.size)?;
        Some((pull.source, pull.next))
    }

    /// Takes the source's version of the block that comes next; `None` where the source has none.
    pub(super) fn pull_block(&mut self, version: Option<Version>) {
        let Some(pull) = &mut self.pull else { return };
        let block = pull.next;
        pull.next += 1;
        let theirs = version.as_ref().map_or(Stamp::ZERO, |version| version.stamp);
        let ours = self.blocks.get(&block).map_or(Stamp::ZERO, |version| version.stamp);
        if theirs <= pull.since && ours <= pull.since {
            return;
        }
        if ours > theirs && ours < pull.floor {
            pull.diverged.push(BlockRange::new(block, 1));
        }
        if let Some(version) = version {
            self.put(block, version, false);
        }
    }

    /// The source cannot be read from.
    pub(super) fn pull_failed(&mut self) {
        if let Some(pull) = &mut self.pull {
            pull.failed = true;
        }
    }

    /// The host loses power: of what is not flushed, each block keeps its new version or not.
    pub(super) fn power_lost(&mut self, random: &mut Random) {
        self.killed();
        self.boot += 1;
        for (block, version) in std::mem::take(&mut self.blocks) {
            let old = self.stable.get(&block);
            let survives = old.is_some_and(|old| old.stamp == version.stamp) || random.once_in(2);
            match old {
                _ if survives => drop(self.blocks.insert(block, version)),
                Some(old) => drop(self.blocks.insert(block, old.clone())),
                None => {}
            }
        }
        self.last = self.blocks.values().map(|version| version.stamp).max().unwrap_or_default();
        // What opening accepts, it makes stable; what it had told to be committed is whole.
        self.stable = self.blocks.clone();
        self.intact =
            Some(self.intact.map_or(self.progress.stable, |intact| intact.min(self.progress.stable)));
    }

    /// Carries out one pending request. Nothing to answer when it came on an older connection.
    pub(super) fn execute(&mut self, random: &mut Random) -> Option<Frame> {
        let which = random.below(self.pending.len() + self.orphans.len());
        let orphan = which >= self.pending.len();
        let frame = if orphan {
            self.orphans.swap_remove(which - self.pending.len())
        } else {
            self.pending.swap_remove(which)
        };
        let Frame { request, generation, epoch, message } = frame;
        let message = self.answer(generation, message, random);
        (!orphan).then_some(Frame { request, generation, epoch, message })
    }

    fn answer(&mut self, generation: Generation, message: Message, random: &mut Random) -> Message {
        if let Message::Hello(_) = message {
            return Message::HelloReply(HelloReply { version: PROTOCOL_VERSION, pool: self.pool });
        }
        if let Message::Open { session, writable, .. } = message {
            return self.opened(generation, session, writable, random);
        }
        if generation < self.promised.0 {
            return Message::Error { code: ErrorCode::Fenced, detail: String::new() };
        }
        match message {
            Message::Write { start, stamp, progress, force_unit_access, data } => {
                data.verify().expect("checksums match what is sent");
                if random.once_in(self.full) {
                    return Message::Error { code: ErrorCode::NoSpace, detail: String::new() };
                }
                self.note(progress);
                let blocks =
                    data.segments.iter().flat_map(|s| s.chunks_exact(4096).map(Bytes::copy_from_slice));
                let mut tags = data.tags.iter().copied();
                for (i, block) in (0..).zip(blocks) {
                    let version = Version { stamp: stamp.plus(i), data: Some(block), tag: tags.next() };
                    self.put(start + i, version, force_unit_access);
                }
                Message::Done
            }
            Message::Discard { range, stamp, progress, force_unit_access } => {
                self.note(progress);
                for (i, block) in (0..).zip(range.blocks()) {
                    let version = Version { stamp: stamp.plus(i), data: None, tag: None };
                    self.put(block, version, force_unit_access);
                }
                Message::Done
            }
            Message::Flush { progress } => {
                self.stable = self.blocks.clone();
                self.note(progress);
                Message::FlushReply(FlushReply { stable: self.last })
            }
            Message::Progress(progress) | Message::Close { progress } => {
                self.note(progress);
                Message::Done
            }
            Message::CreateSnapshot { id, cut } => {
                self.snapshots.insert(cut, id);
                Message::Done
            }
            Message::DeleteSnapshot { id } => {
                self.snapshots.retain(|_, known| *known != id);
                Message::Done
            }
            Message::ResizeVolume { blocks, .. } => {
                self.size = self.size.max(blocks);
                Message::Done
            }
            Message::Read { range } => self.read(range.start, range.count, random),
            Message::Allocation { range } => {
                let allocated = |block| self.shown(block).is_some_and(|version| version.data.is_some());
                let extents =
                    range.blocks().map(|block| Extent { count: 1, allocated: allocated(block) }).collect();
                Message::AllocationReply { extents }
            }
            Message::Pull { source, since, floor, .. } => {
                let diverged = Vec::new();
                self.pull = Some(Pull { source, since, floor, next: 0, diverged, failed: false });
                Message::Done
            }
            Message::PullStatus { .. } => self.pull_report(),
            Message::Repair { range, source, .. } => {
                self.repair = Some((source, range));
                Message::Done
            }
            Message::Verify { range, .. } => self.verify(range),
            Message::Tail { since, skip } => self.tail(since, skip as usize),
            other => panic!("the engine does not send {other:?}"),
        }
    }

    fn opened(
        &mut self,
        generation: Generation,
        session: u64,
        writable: bool,
        random: &mut Random,
    ) -> Message {
        if writable {
            let (promised, known) = self.promised;
            if generation < promised || (generation == promised && session != known) {
                return Message::Error { code: ErrorCode::Fenced, detail: String::new() };
            }
            self.pull = None;
            // An older session's requests land or are cancelled before the promise is answered.
            for frame in std::mem::take(&mut self.orphans) {
                if random.once_in(2) {
                    self.answer(frame.generation, frame.message, random);
                }
            }
            self.promised = (generation, session);
        }
        Message::OpenReply(OpenReply {
            blocks: self.size,
            last: self.last,
            intact: self.intact.unwrap_or(Stamp::MAX),
            progress: self.progress,
            boot: BootId::from_bytes([self.boot; 16]),
            snapshots: self.snapshots.iter().map(|(cut, id)| SnapshotEntry { id: *id, cut: *cut }).collect(),
        })
    }

    fn pull_report(&mut self) -> Message {
        let size = self.size;
        let Some(pull) = &mut self.pull else {
            return Message::Error { code: ErrorCode::Unexpected, detail: "nothing is pulled".to_owned() };
        };
        let state = match pull {
            Pull { failed: true, .. } => PullState::Failed,
            Pull { next, .. } if *next >= size => PullState::Finished,
            _ => PullState::Running,
        };
        Message::PullReport(PullReport {
            state,
            position: pull.next,
            copied_blocks: 0,
            diverged: std::mem::take(&mut pull.diverged),
            detail: String::new(),
        })
    }

    fn note(&mut self, progress: Progress) {
        self.progress.committed = self.progress.committed.max(progress.committed);
        self.progress.stable = self.progress.stable.max(progress.stable);
        if self.intact.is_some_and(|intact| self.progress.stable > intact) {
            self.intact = None;
        }
    }

    fn put(&mut self, block: u64, version: Version, stable: bool) {
        self.last = self.last.max(version.stamp);
        if self.blocks.get(&block).is_some_and(|known| known.stamp >= version.stamp) {
            return;
        }
        if stable {
            self.stable.insert(block, version.clone());
        }
        self.blocks.insert(block, version);
    }

    fn shown(&self, block: u64) -> Option<&Version> {
        self.blocks.get(&block).filter(|_| !self.hides.contains(&block))
    }

    /// The block's bytes change on the medium.
    pub(super) fn rot(&mut self, block: u64) {
        if let Some(version) = self.blocks.get(&block) {
            self.rotten.insert(block, version.stamp);
        }
    }

    /// All can be read again.
    pub(super) fn heal(&mut self) {
        self.rotten.clear();
    }

    /// Whether it can be read no more as it was written.
    pub(super) fn is_rotten(&self, block: u64) -> bool {
        let version = self.blocks.get(&block).filter(|version| version.data.is_some());
        version.is_some_and(|version| self.rotten.get(&block) == Some(&version.stamp))
    }

    /// What it was told to fetch from whom.
    pub(super) fn take_repair(&mut self) -> Option<(PoolId, BlockRange)> {
        self.repair.take()
    }

    /// Places what a peer has where it is not older.
    pub(super) fn repaired(&mut self, block: u64, version: Option<Version>) {
        let ours = self.blocks.get(&block).map_or(Stamp::ZERO, |version| version.stamp);
        if let Some(version) = version.filter(|version| version.stamp >= ours) {
            self.rotten.remove(&block);
            self.last = self.last.max(version.stamp);
            self.blocks.insert(block, version);
        }
    }

    fn verify(&self, range: BlockRange) -> Message {
        let present = || range.blocks().filter_map(|block| Some((block, self.shown(block)?)));
        let versions = present().map(|(block, version)| TailEntry {
            range: BlockRange::new(block, 1),
            stamp: version.stamp,
            discard: version.data.is_none(),
        });
        let crcs = present().filter_map(|(_, version)| version.data.as_deref().map(block_crc));
        let failed = range.blocks().filter(|&block| self.is_rotten(block));
        Message::VerifyReply {
            versions: versions.collect(),
            crcs: crcs.collect(),
            failed: failed.map(|block| BlockRange::new(block, 1)).collect(),
        }
    }

    fn read(&self, start: u64, count: u32, random: &mut Random) -> Message {
        let fails = random.once_in(self.bad_read);
        let rotten = BlockRange::new(start, count).blocks().any(|block| self.is_rotten(block));
        if rotten || fails && random.once_in(2) {
            return Message::Error { code: ErrorCode::ChecksumOnMedium, detail: "changed".to_owned() };
        }
        let mut present = vec![0; (count as usize).div_ceil(8)];
        let (mut segments, mut stamps, mut tags) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..count as usize {
            if let Some(version) = self.shown(start + i as u64)
                && let Some(data) = version.data.clone()
            {
                present[i / 8] |= 1 << (i % 8);
                segments.push(data);
                stamps.extend(version.tag.map(|_| version.stamp));
                tags.extend(version.tag);
            }
        }
        let mut data = BlockData { tags, ..BlockData::checksummed(segments) };
        if fails && let Some(segment) = data.segments.first_mut() {
            let mut changed = segment.to_vec();
            changed[77] ^= 4;
            *segment = changed.into();
        }
        Message::ReadReply { present: present.into(), stamps, data }
    }

    fn tail(&self, since: Stamp, skip: usize) -> Message {
        let newer = self.blocks.iter().filter(|(_, version)| version.stamp > since);
        let entry = |(&block, version): (&u64, &Version)| TailEntry {
            range: BlockRange::new(block, 1),
            stamp: version.stamp,
            discard: version.data.is_none(),
        };
        let mut entries: Vec<TailEntry> = newer.skip(skip).take(4).map(entry).collect();
        let more = entries.len() == 4;
        entries.truncate(3);
        Message::TailReply { entries, more }
    }
}
