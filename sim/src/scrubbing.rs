//! Scrubs: at any time beside everything else, when they must find nothing that differs; and at rest,
//! over blocks that have rotted on one member each, when they must mend all of them.

use crate::Check;
use crate::random::Random;
use crate::swarm::Fault;
use crate::trace::Happening;
use crate::world::World;
use trivet_engine::volume::{ScrubCounts, ScrubOrder, ScrubStatus};

/// The byte of a block that rots, and the bit in it.
pub(crate) const ROTTEN: (usize, u8) = (8, 3);
/// Blocks that rot at rest.
const ROTTEN_MAX: usize = 12;

impl World {
    pub(crate) fn begin_scrub(&mut self, engine: usize, bytes_per_second: u64) {
        let run = self.clients.next_scrub();
        let order = ScrubOrder { run, position: 0, bytes_per_second, counts: ScrubCounts::default() };
        self.note(Happening::Note("a scrub begins"));
        self.with_core(engine, |core, now| core.scrub(now, order));
    }

    fn scrub_status(&self, engine: usize) -> Option<ScrubStatus> {
        let engine = self.engines[engine].engine.as_ref()?;
        engine.core.scrub_status(self.now)
    }

    /// Whatever goes wrong besides, members never differ in what is settled.
    pub(crate) fn check_scrubs(&mut self) {
        for engine in 0..self.engines.len() {
            if let Some(counts) = self.scrub_status(engine).map(|status| status.counts)
                && counts.mismatched > 0
            {
                let detail = format!("a scrub of engine {engine} finds members that differ: {counts:?}");
                return self.fail(Check::Alike, detail);
            }
            let stale = self.engines[engine].engine.as_ref().map_or(0, |e| e.core.counters().blocks_stale);
            if stale > 0 && !self.profile.has(Fault::OldVersions) {
                let detail =
                    format!("verified reads of engine {engine} find members that differ in {stale} blocks");
                return self.fail(Check::Alike, detail);
            }
        }
    }

    /// Blocks change on disks that all are right: each on one member, and on every member some.
    pub(crate) fn rot_disjointly(&mut self) {
        let members = self.records.in_sync();
        if members.len() < 2 {
            return;
        }
        let touched: Vec<u64> = self.oracle.touched.iter().copied().take(ROTTEN_MAX).collect();
        for (at, block) in touched.into_iter().enumerate() {
            // One that has rotted before has done so where it always does.
            let always = self.profile.has(Fault::RottenData);
            let host = if always { self.rots_on(block) } else { members[at % members.len()] };
            self.rot(host, block);
        }
    }

    fn rot(&mut self, host: usize, block: u64) {
        if let Some(offset) = self.place_of(host, block) {
            self.hosts[host].disk.flip_bit(offset + ROTTEN.0 as u64, ROTTEN.1);
        }
    }

    /// Some blocks change, each on the one member where it always does: there is a good one besides.
    pub(crate) fn rot_some(&mut self, random: &mut Random) {
        let touched: Vec<u64> = self.oracle.touched.iter().copied().collect();
        if touched.is_empty() || self.hosts.len() < 2 {
            return;
        }
        for _ in 0..4 {
            let block = random.pick(&touched);
            self.rot(self.rots_on(block), block);
        }
    }

    /// The host on which a block rots, where blocks do.
    fn rots_on(&self, block: u64) -> usize {
        usize::try_from(block).unwrap_or(0) % self.hosts.len()
    }

    /// Whether a scrub is under way.
    pub(crate) fn is_scrubbing(&self) -> bool {
        self.scrub_status(self.desired).is_some_and(|status| !status.finished)
    }

    /// Whether the scrub at rest has come to its end.
    pub(crate) fn is_scrubbed(&self) -> bool {
        self.scrub_status(self.desired).is_some_and(|status| status.finished)
    }

    /// It has: everything is mended. Or it went with its engine, and begins anew.
    pub(crate) fn check_scrub_at_rest(&mut self) {
        match self.scrub_status(self.desired).map(|status| status.counts) {
            Some(counts) if counts.unrepairable > 0 => {
                let detail = format!("a scrub leaves what a member has right: {counts:?}");
                self.fail(Check::Alike, detail);
            }
            Some(_) => {}
            None => self.begin_scrub(self.desired, 1 << 30),
        }
    }
}
