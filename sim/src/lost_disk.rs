//! Disks that are not what they were: older copies of themselves, and pools that do not open any more. What
//! only such a disk had is gone for good; so one at a time is struck, while everyone else has everything.

use crate::random::Random;
use crate::swarm::Fault;
use crate::template::{self, Template};
use crate::trace::Happening;
use crate::world::{Event, World};
use std::sync::Arc;
use std::time::Duration;
use trivet_disk::{DiskImage, FaultyDisk};
use trivet_model::{BLOCK_SIZE_U64, Generation, MemberState};
use trivet_replica::meta::MemoryMeta;
use trivet_replica::store::SUPERBLOCK_OFFSETS;

/// So long after a disk was struck the engine has noticed what it lacks.
const NOTICED: Duration = Duration::from_secs(4);
/// How long a server is away whose disk is changed.
const AWAY: Duration = Duration::from_millis(200);

/// A disk as it was.
#[derive(Debug)]
pub(crate) struct Kept {
    image: DiskImage,
    meta: MemoryMeta,
}

impl World {
    /// Whether all members are in sync and there, and whatever was struck before is mended.
    fn may_lose_a_disk(&self) -> bool {
        let members = &self.records.record.members;
        let settled = self.lost_disk_at.is_none_or(|at| self.now >= at + NOTICED);
        settled
            && self.hosts.iter().all(|host| host.process.is_some())
            && members.len() > 1
            && members.iter().all(|member| member.state == MemberState::InSync)
            && self.engines[self.desired].is_whole()
            && self.is_connected(self.desired)
    }

    /// Keeps a copy of a host's disk, or puts the one kept in its place, or an empty one.
    pub(crate) fn exchange_disk(&mut self, index: usize, random: &mut Random) {
        if !self.may_lose_a_disk() {
            return;
        }
        self.kill_replica(index, "its disk is exchanged");
        match self.hosts[index].kept.take() {
            None => {
                let host = &mut self.hosts[index];
                host.kept = Some(Kept { image: host.disk.image().clone(), meta: (*host.meta).clone() });
            }
            Some(kept) => {
                self.count(Fault::OlderDisk);
                if random.one_in(3) {
                    self.empty_disk(index);
                } else {
                    self.lose_disk(index, kept);
                }
            }
        }
        self.schedule(AWAY, Event::StartReplica { host: index });
    }

    /// Turns a bit over in a superblock or in the journal as far as an opening needs it.
    pub(crate) fn rot_metadata(&mut self, index: usize, random: &mut Random) {
        let Some(process) = self.hosts[index].process.as_ref().filter(|_| self.may_lose_a_disk()) else {
            return;
        };
        let mut blocks = SUPERBLOCK_OFFSETS.to_vec();
        blocks.extend(process.store.live_journal());
        self.lost_disk_at = Some(self.now);
        self.kill_replica(index, "its metadata rots");
        let at = random.below(BLOCK_SIZE_U64);
        let bit = u8::try_from(random.below(8)).unwrap_or_default();
        self.hosts[index].disk.flip_bit(random.pick(&blocks) + at, bit);
        self.schedule(AWAY, Event::StartReplica { host: index });
    }

    /// A pool does not open: whether the operator has it made anew.
    pub(crate) fn make_anew(&mut self, index: usize) -> bool {
        let may = self.profile.has(Fault::RottenMetadata);
        if may {
            self.note(Happening::Note("a pool does not open, and is made anew"));
            self.count(Fault::RottenMetadata);
            self.empty_disk(index);
        }
        may
    }

    fn empty_disk(&mut self, index: usize) {
        let (worn, blocks, encrypted) = (self.profile.worn, self.profile.blocks, self.profile.encrypted);
        let (image, meta) =
            template::pool(Template { index, fill: 0, worn, blocks, cloned: None, encrypted });
        self.lose_disk(index, Kept { image, meta });
    }

    fn lose_disk(&mut self, index: usize, found: Kept) {
        let seed = self.disk_random.next();
        let host = &mut self.hosts[index];
        host.disk = FaultyDisk::new(found.image, seed);
        host.meta = Arc::new(found.meta);
        host.restarted();
        host.promised = Generation::ZERO;
        (host.lost_power, host.lost_disk) = (Some(self.now), Some(self.now));
        self.lost_disk_at = Some(self.now);
        self.oracle.host_lost_power(index, self.now);
    }
}
