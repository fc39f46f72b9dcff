//! What is known from outside: who wrote what when, what was acknowledged, what a flush covered, and
//! what a loss of power may have taken.
//!
//! A write that was acknowledged and not flushed is *volatile*: it lives in the caches of the members
//! that took it. Each that loses power takes it away from there, each that is dropped while others
//! have it counts no more, and only when none is left that has it may the write be gone. The last that
//! has it may be dropped only by an engine that could not yet know of the others' loss of power.
//! When a volume is opened, everything that lived anywhere is on every member again, and stable. What a
//! write of an older engine was to become, it has become by then: one that takes effect later is a
//! failure.

use super::history::{Interval, SectorHistory};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use trivet_model::{BLOCK_SIZE, Generation, SECTOR_SIZE};

/// Sectors in a block.
pub(crate) const SECTORS: usize = BLOCK_SIZE / SECTOR_SIZE;
/// A value names its sector in its low bits.
const SECTOR_BITS: u32 = 16;

/// Names a run of an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OpeningId(usize);

/// Names a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WriteId(pub(super) usize);

impl WriteId {
    /// What the volume begins with.
    pub(crate) const FIRST: Self = Self(0);
}

/// What counts of a write when histories are judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteFact {
    pub(crate) begin: Duration,
    /// It has taken effect by then, if it does at all.
    pub(crate) end: Duration,
    pub(crate) acknowledged: bool,
    /// It was acknowledged, not flushed, and no member is left that kept it.
    pub(crate) lost: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Opening {
    generation: Generation,
    /// When a volume of a higher generation was open.
    superseded: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    opening: Option<OpeningId>,
    begin: Duration,
    acknowledged: Option<Duration>,
    /// When it was known to have happened: acknowledged, or seen.
    settled: Duration,
    lost: bool,
    /// Those that have it in their caches, while it is volatile.
    holders: u64,
    /// When it was last lost somewhere.
    dwindled: Duration,
}

impl Write {
    /// What is there since this moment, for good, whoever put it there.
    const fn known(now: Duration) -> Self {
        Self {
            opening: None,
            begin: now,
            acknowledged: Some(now),
            settled: now,
            lost: false,
            holders: 0,
            dwindled: Duration::ZERO,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Oracle {
    openings: Vec<Opening>,
    writes: Vec<Write>,
    sectors: Vec<SectorHistory>,
    volatile: Vec<WriteId>,
    /// What the volume is cannot be known.
    forgotten: bool,
    /// Blocks that anything was ever asked of.
    pub(crate) touched: BTreeSet<u64>,
}

/// The value that a sector of a write holds.
pub(crate) fn value_of(write: WriteId, sector: usize) -> u64 {
    ((write.0 as u64 + 1) << SECTOR_BITS) | sector as u64
}

/// What a sector of whole words of one value says; an error when they differ, or name another sector.
pub(crate) fn read_sector(bytes: &[u8], sector: usize) -> Result<u64, String> {
    let mut words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
    let value = words.next().unwrap_or_default();
    if words.any(|word| word != value) {
        return Err(format!("sector {sector} is torn"));
    }
    if value != 0 && value & ((1 << SECTOR_BITS) - 1) != sector as u64 {
        return Err(format!("sector {sector} holds {value:#x}, of another sector"));
    }
    Ok(value)
}

impl Oracle {
    /// A volume that begins with the values of the first write in some of its blocks, and with zeros elsewhere.
    pub(crate) fn new(blocks: u64, begins_with_data: impl Fn(u64) -> bool) -> Self {
        let begin = Write::known(Duration::ZERO);
        let touched: BTreeSet<u64> = (0..blocks).filter(|block| begins_with_data(*block)).collect();
        let beginning = |sector: usize| {
            let holds = touched.contains(&((sector / SECTORS) as u64));
            let mut history = SectorHistory::default();
            history.write(if holds { value_of(WriteId::FIRST, sector) } else { 0 }, WriteId::FIRST);
            history
        };
        let sectors = usize::try_from(blocks).expect("a small volume") * SECTORS;
        Self {
            openings: Vec::new(),
            writes: vec![begin],
            sectors: (0..sectors).map(beginning).collect(),
            volatile: Vec::new(),
            forgotten: false,
            touched,
        }
    }

    pub(crate) fn sectors(&self) -> usize {
        self.sectors.len()
    }

    pub(crate) fn new_opening(&mut self) -> OpeningId {
        self.openings.push(Opening::default());
        OpeningId(self.openings.len() - 1)
    }

    pub(crate) fn superseded(&self, opening: OpeningId) -> Option<Duration> {
        self.openings[opening.0].superseded
    }

    fn touch(&mut self, sectors: &std::ops::Range<usize>) {
        self.touched.extend((sectors.start / SECTORS) as u64..sectors.end.div_ceil(SECTORS) as u64);
    }

    /// A write of unique values, or of zeros, begins.
    pub(crate) fn write_began(
        &mut self,
        opening: OpeningId,
        sectors: std::ops::Range<usize>,
        zeros: bool,
        now: Duration,
    ) -> WriteId {
        self.touch(&sectors);
        let id = WriteId(self.writes.len());
        self.writes.push(Write {
            opening: Some(opening),
            begin: now,
            acknowledged: None,
            settled: Duration::MAX,
            lost: false,
            holders: 0,
            dwindled: Duration::ZERO,
        });
        for sector in sectors {
            let value = if zeros { 0 } else { value_of(id, sector) };
            self.sectors[sector].write(value, id);
        }
        id
    }

    /// Whether a sector with this value can have been written by a write that began then.
    pub(crate) fn may_follow(&self, sector: usize, value: u64, begin: Duration) -> bool {
        self.sectors[sector].may_follow(value, begin, &|id| fact(&self.openings, &self.writes[id.0]))
    }

    /// A write is acknowledged; `holders` have it, in their caches or for good (`stable`).
    pub(crate) fn write_ended(&mut self, id: WriteId, now: Duration, stable: bool, holders: u64) {
        let write = &mut self.writes[id.0];
        write.acknowledged = Some(now);
        write.settled = write.settled.min(now);
        write.holders = holders;
        // Everyone may have lost it while the last answer was on its way.
        write.lost |= !stable && holders == 0;
        if stable {
            self.volatile.retain(|volatile| *volatile != id);
        } else if !self.volatile.contains(&id) {
            self.volatile.push(id);
        }
    }

    /// A flush that began then has ended well.
    pub(crate) fn flushed(&mut self, opening: OpeningId, began: Duration) {
        let generation = self.openings[opening.0].generation;
        let (openings, writes) = (&self.openings, &self.writes);
        self.volatile.retain(|id| {
            let write = &writes[id.0];
            let own = write.opening.is_some_and(|opening| openings[opening.0].generation <= generation);
            !(own && write.settled <= began)
        });
    }

    pub(crate) fn host_lost_power(&mut self, host: usize, now: Duration) {
        for id in &self.volatile {
            let write = &mut self.writes[id.0];
            if write.holders & 1 << host != 0 {
                (write.holders, write.dwindled) = (write.holders & !(1 << host), now);
            }
            write.lost |= write.holders == 0;
        }
    }

    /// A member is in sync no more: the others go on without what it holds. `knew`: what had happened
    /// by then, the engine that dropped it had to know.
    pub(crate) fn member_left(&mut self, host: usize, knew: Duration) {
        for id in &self.volatile {
            let write = &mut self.writes[id.0];
            let others = write.holders & !(1 << host);
            if others != 0 {
                write.holders = others;
            } else if write.dwindled >= knew {
                (write.holders, write.lost) = (0, true);
            }
        }
    }

    /// A read has returned this. `holders`: who must have it then.
    pub(crate) fn read(
        &mut self,
        sector: usize,
        value: u64,
        during: Interval,
        holders: u64,
    ) -> Result<(), String> {
        self.touch(&(sector..sector + 1));
        if self.forgotten {
            return Ok(());
        }
        if self.sectors[sector].unknown {
            return self.resolve(sector, value, during.end);
        }
        let (openings, writes) = (&self.openings, &self.writes);
        let facts = |id: WriteId| fact(openings, &writes[id.0]);
        self.sectors[sector].read(value, during, &facts).map_err(|why| format!("sector {sector}: {why}"))?;
        // What was seen has happened, though nobody has acknowledged it.
        if let Some(id) = self.sectors[sector].source(value).filter(|_| value != 0) {
            let write = &mut self.writes[id.0];
            if write.settled == Duration::MAX {
                (write.settled, write.holders) = (during.end, holders);
                self.volatile.push(id);
            }
        }
        Ok(())
    }

    /// After a loss, this is found: it must be something that may have survived, and it stays.
    fn resolve(&mut self, sector: usize, value: u64, now: Duration) -> Result<(), String> {
        let (openings, writes) = (&self.openings, &self.writes);
        let facts = |id: WriteId| fact(openings, &writes[id.0]);
        if !self.sectors[sector].may_hold(value, now, &facts) {
            return Err(format!(
                "sector {sector} holds {value:#x} after a loss of power: a flushed version is gone"
            ));
        }
        let id = WriteId(self.writes.len());
        let keep = |id: WriteId| {
            writes[id.0].opening.is_some_and(|opening| openings[opening.0].superseded.is_none())
                && writes[id.0].acknowledged.is_none()
        };
        self.sectors[sector].begin_with(value, id, keep);
        self.writes.push(Write::known(now));
        Ok(())
    }

    /// The volume has become what nobody can be asked for now: until that is known, anything may be read.
    pub(crate) const fn forget(&mut self) {
        self.forgotten = true;
    }

    /// The volume became this then, for good. What had been asked for before may still come, and what was
    /// written since stands.
    pub(crate) fn reverted(&mut self, values: &BTreeMap<usize, u64>, then: Duration) {
        self.forgotten = false;
        let (openings, writes) = (&self.openings, &self.writes);
        let id = WriteId(writes.len());
        let keep = |id: WriteId| {
            let write = &writes[id.0];
            let present = write.opening.is_some_and(|opening| openings[opening.0].superseded.is_none());
            write.begin >= then || (present && write.acknowledged.is_none())
        };
        for (sector, value) in values {
            self.sectors[*sector].begin_with(*value, id, keep);
        }
        self.volatile.retain(|id| writes[id.0].begin >= then);
        self.writes.push(Write::known(then));
    }

    /// A volume is open in a new generation. What older openings wrote has become what it is.
    pub(crate) fn opened(&mut self, opening: OpeningId, generation: Generation, now: Duration) {
        self.openings[opening.0].generation = generation;
        for older in &mut self.openings {
            if older.generation < generation && older.generation > Generation::ZERO {
                older.superseded.get_or_insert(now);
            }
        }
        for sector in 0..self.sectors.len() {
            let lost = self.sectors[sector].writes().any(|id| self.writes[id.0].lost);
            self.sectors[sector].unknown |= lost;
        }
        let (openings, writes) = (&self.openings, &self.writes);
        self.volatile.retain(|id| {
            writes[id.0].opening.is_some_and(|opening| openings[opening.0].superseded.is_none())
        });
    }

    /// The blocks touched in which nothing is going on.
    pub(crate) fn settled_blocks(&self) -> Vec<u64> {
        let settled = |id: WriteId| fact(&self.openings, &self.writes[id.0]).end != Duration::MAX;
        let quiet = |block: &u64| {
            let first = usize::try_from(*block).unwrap_or(usize::MAX) * SECTORS;
            self.sectors[first..first + SECTORS].iter().all(|sector| sector.writes().all(settled))
        };
        self.touched.iter().copied().filter(quiet).collect()
    }

    /// Whether a sector's history is worth a look at what members hold.
    pub(crate) fn is_touched(&self, sector: usize) -> bool {
        self.touched.contains(&((sector / SECTORS) as u64))
    }
}

fn fact(openings: &[Opening], write: &Write) -> WriteFact {
    let superseded = write.opening.and_then(|opening| openings[opening.0].superseded);
    let end = write.acknowledged.unwrap_or(Duration::MAX);
    WriteFact {
        begin: write.begin,
        end: end.min(superseded.unwrap_or(Duration::MAX)),
        acknowledged: write.acknowledged.is_some(),
        lost: write.lost,
    }
}
