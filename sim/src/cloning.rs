//! Worlds whose volume is a clone of a clone: what it begins with, and what becomes of that while it is used.
//! Its copies are flattened, and what it was made of is deleted, on one host earlier than on another.

use crate::checkers::oracle::{SECTORS, WriteId, value_of};
use crate::encryption::data_key;
use crate::random::Random;
use crate::world::{VOLUME, World};
use std::collections::HashMap;
use std::time::Duration;
use trivet_crypto::BlockCipher;
use trivet_model::{
    BLOCK_SIZE, BlockArena, BlockRange, Epoch, Generation, Member, SECTOR_SIZE, SnapshotId, SnapshotRecord,
    Stamp, VolumeId, VolumeRecord, block_crc,
};
use trivet_replica::pull::{Flatten, Output as JobOutput, Pace};
use trivet_replica::store::{Parent, Reply, Request, RequestError, RequestId, Snapshot, Store};

/// What the volume is a clone of, and what that is one of.
const PARENT: VolumeId = VolumeId::from_bytes([8; 16]);
const ROOT: VolumeId = VolumeId::from_bytes([7; 16]);
const OF_PARENT: SnapshotId = SnapshotId::from_bytes([8; 16]);
const OF_ROOT: SnapshotId = SnapshotId::from_bytes([7; 16]);
/// Pool blocks that all of this may take.
pub(crate) const BLOCKS_TAKEN: u64 = 120;
/// Requests that flattening hands to the store have numbers from here on.
pub(crate) const REQUESTS: u64 = 1 << 62;

fn stamp(generation: u32, sequence: u64) -> Stamp {
    let generation = Generation::new(generation).expect("a small number");
    Stamp::new(generation, sequence).expect("a small number")
}

fn root_cut() -> Stamp {
    stamp(1, 1000)
}

fn parent_cut() -> Stamp {
    stamp(2, 1000)
}

/// Which of the ancestors holds a block of those that are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    Root,
    Parent,
    /// The root has it, and the parent has discarded it.
    Discarded,
    Nobody,
}

fn holder(block: u64) -> Holder {
    match block % 6 {
        0 | 3 => Holder::Root,
        1 | 4 => Holder::Parent,
        2 => Holder::Discarded,
        _ => Holder::Nobody,
    }
}

/// Whether the volume begins with data in a block.
pub(crate) fn begins_with_data(block: u64) -> bool {
    matches!(holder(block), Holder::Root | Holder::Parent)
}

/// Who wrote what the volume shows under a stamp.
pub(crate) fn writer_of(stamp: Stamp) -> VolumeId {
    if stamp <= root_cut() {
        ROOT
    } else if stamp <= parent_cut() {
        PARENT
    } else {
        VOLUME
    }
}

pub(crate) fn is_ancestor(volume: VolumeId) -> bool {
    [PARENT, ROOT].contains(&volume)
}

/// What makes the volume, in a pool that is new: the runs of blocks are those that are used.
pub(crate) fn requests(
    blocks: u64,
    hot: &[(u64, u64)],
    encrypted: bool,
    arena: &mut BlockArena,
) -> Vec<Request> {
    let used: Vec<u64> = hot.iter().flat_map(|(first, count)| *first..first + count).collect();
    let held_by = |wanted: &[Holder]| -> Vec<u64> {
        used.iter().copied().filter(|block| wanted.contains(&holder(*block))).collect()
    };
    let create = |volume, parent| Request::CreateVolume { volume, blocks, parent, tagged: encrypted };
    let mut requests = vec![create(ROOT, None)];
    let mut write = |volume, blocks: &[u64], first: Stamp, first_write: bool| -> Vec<Request> {
        let stamps = (0..).map(|at| first.plus(at));
        let cipher = encrypted.then(|| BlockCipher::new(&data_key(0), volume));
        let write = |(block, stamp): (&u64, Stamp)| {
            let plain = contents(*block, first_write);
            let (mut bytes, mut tags) = (plain.clone(), Vec::new());
            if let Some(cipher) = &cipher {
                tags.push(cipher.seal(*block, stamp, &plain, &mut bytes));
            }
            Request::Write {
                volume,
                start: *block,
                stamp,
                crcs: vec![block_crc(&bytes)],
                tags,
                segments: vec![in_arena(arena, &bytes)],
                stable: true,
            }
        };
        blocks.iter().zip(stamps).map(write).collect()
    };
    let of_root = held_by(&[Holder::Root, Holder::Discarded]);
    requests.extend(write(ROOT, &of_root, stamp(1, 1), true));
    let snapshot = |volume, id, cut| Request::CreateSnapshot { volume, snapshot: Snapshot { id, cut } };
    requests.push(snapshot(ROOT, OF_ROOT, root_cut()));
    requests.push(create(PARENT, Some(Parent { volume: ROOT, snapshot: OF_ROOT })));
    let of_parent = held_by(&[Holder::Parent]);
    requests.extend(write(PARENT, &of_parent, stamp(2, 1), true));
    let discards = held_by(&[Holder::Discarded]).into_iter().zip(500..);
    requests.extend(discards.map(|(block, at)| Request::Discard {
        volume: PARENT,
        range: BlockRange::new(block, 1),
        stamp: stamp(2, at),
        stable: true,
    }));
    requests.push(snapshot(PARENT, OF_PARENT, parent_cut()));
    requests.push(create(VOLUME, Some(Parent { volume: PARENT, snapshot: OF_PARENT })));
    // What they hold now is nothing to the clone.
    requests.extend(write(ROOT, &of_root, stamp(1, 2000), false));
    requests.extend(write(PARENT, &of_parent, stamp(2, 2000), false));
    requests
}

/// A block's contents: those of the volume's beginning, or others.
pub(crate) fn contents(block: u64, begins: bool) -> Vec<u8> {
    let first = usize::try_from(block).unwrap_or(usize::MAX) * SECTORS;
    let value = |sector| if begins { value_of(WriteId::FIRST, sector) } else { u64::MAX };
    let sectors = (first..first + SECTORS).map(|sector| value(sector).to_le_bytes().repeat(SECTOR_SIZE / 8));
    sectors.flatten().collect()
}

fn in_arena(arena: &mut BlockArena, bytes: &[u8]) -> bytes::Bytes {
    assert_eq!(bytes.len(), BLOCK_SIZE, "a block");
    let mut block = arena.allocate(1);
    block.extend_from_slice(bytes);
    block.freeze()
}

/// The volume's record, made as the manager makes a clone's.
pub(crate) fn record(plain: VolumeRecord) -> VolumeRecord {
    let snapshot =
        |id, cut| SnapshotRecord { id, name: "s".to_owned(), cut, created: 0, labels: Default::default() };
    let members: Vec<Member> = plain.members.clone();
    let root = VolumeRecord { id: ROOT, generation: root_cut().generation(), ..plain };
    let parent = root.clone_of(&snapshot(OF_ROOT, root_cut()), PARENT, "parent".to_owned(), Vec::new());
    let clone = parent.clone_of(&snapshot(OF_PARENT, parent_cut()), VOLUME, "simulated".to_owned(), members);
    VolumeRecord { epoch: Epoch(1), ..clone }
}

/// A copy being flattened: what `replica/src/server/flattening.rs` does.
#[derive(Debug, Default)]
pub(crate) struct Flattening {
    job: Option<Flatten>,
    asked: HashMap<RequestId, u64>,
    requests: u64,
}

impl Flattening {
    fn begin(&mut self, store: &Store) {
        let known = store.volume(VOLUME).filter(|known| known.tied);
        if let Some(known) = known.filter(|_| self.job.as_ref().is_none_or(Flatten::is_over)) {
            self.asked.clear();
            self.job = Some(Flatten::new(VOLUME, known.blocks));
        }
    }

    pub(crate) fn store_answered(&mut self, id: RequestId, result: Result<Reply, RequestError>) {
        if let Some(id) = self.asked.remove(&id)
            && let Some(job) = &mut self.job
        {
            job.store_answered(id, result);
        }
    }

    /// Takes the next steps; true when the store was asked for something.
    pub(crate) fn advance(&mut self, store: &mut Store, now: Duration) -> bool {
        let Some(job) = &mut self.job else { return false };
        let mut steps = Vec::new();
        // The pace is a matter of speed, and virtual time costs nothing.
        job.poll(now, &mut Pace::default(), &mut steps);
        let submitted = !steps.is_empty();
        for step in steps {
            let JobOutput::Submit(id, request) = step else { unreachable!("it has no source to ask") };
            self.requests += 1;
            let asked = RequestId(REQUESTS + self.requests);
            self.asked.insert(asked, id);
            store.submit(asked, request);
        }
        submitted
    }
}

impl World {
    /// Something happens to what the volume was made of, on one host.
    pub(crate) fn disturb_lineage(&mut self, host: usize, random: &mut Random) {
        match random.below(6) {
            0..=2 => {
                if let Some(process) = &mut self.hosts[host].process {
                    process.flattening.begin(&process.store);
                }
                self.want_turn(host);
            }
            3 => self.own_request(host, Request::DeleteSnapshot { volume: PARENT, id: OF_PARENT }),
            4 => self.own_request(host, Request::DeleteVolume { volume: PARENT }),
            _ => self.own_request(host, Request::DeleteVolume { volume: ROOT }),
        }
    }
}
