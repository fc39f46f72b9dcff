//! Looking into the members' stores: what each holds of a block, and whether they are alike.

use super::history::Interval;
use super::oracle::{OpeningId, SECTORS, read_sector};
use crate::Check;
use crate::encryption::opened;
use crate::scrubbing::ROTTEN;
use crate::swarm::Fault;
use crate::world::{VOLUME, World};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;
use trivet_disk::MemoryDisk;
use trivet_model::{BLOCK_SIZE, Generation, SECTOR_SIZE, SnapshotId, Stamp, block_crc};
use trivet_replica::store::{Finding, verify};

/// A block as a member holds it; without bytes for a hole. A hole's stamp does not count: members
/// forget tombstones at different times.
type Held = Option<(Stamp, Vec<u8>)>;

fn contents(held: &Held) -> Vec<u8> {
    held.as_ref().map_or_else(|| vec![0; BLOCK_SIZE], |held| held.1.to_vec())
}

impl World {
    /// What a running replica holds of a block, as a cut shows it.
    fn held(&self, host: usize, block: u64, cut: Stamp) -> Result<Held, String> {
        let host_ = &self.hosts[host];
        let Some(process) = &host_.process else { return Err(format!("host {host} does not run")) };
        let version = process
            .store
            .version(&*host_.meta, VOLUME, block, cut)
            .map_err(|error| format!("host {host}: {error}"))?;
        let Some((version, offset)) = version.and_then(|version| Some((version, version.offset?))) else {
            return Ok(None);
        };
        let mut bytes = vec![0; BLOCK_SIZE];
        host_.disk.image().read(offset, &mut bytes);
        if block_crc(&bytes) != version.crc && self.profile.has(Fault::RottenData) {
            // What it held before it rotted; that reads and scrubs mend it is seen elsewhere.
            bytes[ROTTEN.0] ^= 1 << ROTTEN.1;
        }
        if block_crc(&bytes) != version.crc {
            return Err(format!(
                "host {host}: block {block} (stamp {}) is not what was written",
                version.stamp
            ));
        }
        if self.profile.encrypted {
            let cloned = self.profile.has(Fault::Cloned);
            let writer = if cloned { crate::cloning::writer_of(version.stamp) } else { VOLUME };
            let key = self.key_number(version.stamp);
            bytes = opened((writer, key), block, &version, &bytes)
                .map_err(|why| format!("host {host}: {why}"))?;
        }
        Ok(Some((version.stamp, bytes)))
    }

    /// Where a running replica's device holds a block's data.
    pub(crate) fn place_of(&self, host: usize, block: u64) -> Option<u64> {
        let host = &self.hosts[host];
        host.process.as_ref()?.store.version(&*host.meta, VOLUME, block, Stamp::MAX).ok()??.offset
    }

    fn sector_value(&self, host: usize, sector: usize) -> Result<u64, String> {
        let block = (sector / SECTORS) as u64;
        let at = sector % SECTORS * SECTOR_SIZE;
        match self.held(host, block, Stamp::MAX)? {
            None => Ok(0),
            Some((_, bytes)) => read_sector(&bytes[at..at + SECTOR_SIZE], sector),
        }
    }

    /// Whether a running replica holds these values of a write that began then, or what another wrote
    /// over them meanwhile: a write is not atomic over its blocks.
    fn holds(&self, host: usize, values: &[(usize, u64)], begin: Duration) -> Result<bool, String> {
        for (sector, value) in values {
            let held = self.sector_value(host, *sector)?;
            if held != *value && !self.oracle.may_follow(*sector, held, begin) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A write is acknowledged: every member in sync must hold it. Answers who does.
    pub(crate) fn check_acknowledged(
        &mut self,
        opening: OpeningId,
        during: Interval,
        sectors: Range<usize>,
        (value, stable): (impl Fn(usize) -> u64, bool),
    ) -> u64 {
        let values: Vec<(usize, u64)> = sectors.map(|sector| (sector, value(sector))).collect();
        let mut holders = 0;
        for host in self.records.in_sync() {
            let since = |when: Option<Duration>| when.is_some_and(|at| at >= during.begin);
            let lost_power =
                (!stable && since(self.hosts[host].lost_power)) || since(self.hosts[host].lost_disk);
            let holds = match &self.hosts[host].process {
                // A newer engine may have written something else by now.
                Some(_) if self.oracle.superseded(opening).is_none() => {
                    self.holds(host, &values, during.begin)
                }
                _ => Ok(!lost_power),
            };
            match holds {
                Ok(true) => holders |= 1 << host,
                Ok(false) if lost_power => {}
                Ok(false) => self.fail(
                    Check::Acknowledged,
                    format!("host {host} is in sync and lacks sectors {values:x?}, acknowledged just now"),
                ),
                Err(why) => self.fail(Check::Acknowledged, why),
            }
        }
        holders
    }

    /// Everyone in sync who runs holds the same; and it is what the history allows.
    fn check_alike(&mut self, who: &[usize], blocks: Vec<u64>, check: Check) {
        self.check_alike_by(who, blocks, check, |known, held| known == held);
    }

    fn check_alike_by(
        &mut self,
        who: &[usize],
        blocks: Vec<u64>,
        check: Check,
        is_same: impl Fn(&Held, &Held) -> bool,
    ) {
        for block in blocks {
            let mut first: Option<(usize, Held)> = None;
            for host in who {
                match (self.held(*host, block, Stamp::MAX), &first) {
                    (Err(why), _) => return self.fail(check, why),
                    (Ok(held), None) => first = Some((*host, held)),
                    (Ok(held), Some((other, known))) if !is_same(known, &held) => {
                        let stamps = (known.as_ref().map(|held| held.0), held.map(|held| held.0));
                        let detail = format!(
                            "block {block} differs between hosts {other} and {host}: stamps {stamps:?}"
                        );
                        return self.fail(check, detail);
                    }
                    (Ok(_), Some(_)) => {}
                }
            }
            let Some((_, held)) = first else { return };
            if self.records.record.reverting.is_some() {
                // Neither what it was nor what it will be.
                continue;
            }
            for index in 0..SECTORS {
                let sector = usize::try_from(block).unwrap_or(usize::MAX) * SECTORS + index;
                let value = match &held {
                    None => Ok(self.beginning_of(sector)),
                    Some((_, bytes)) => read_sector(&bytes[index * SECTOR_SIZE..][..SECTOR_SIZE], sector),
                };
                let during = Interval { begin: self.now, end: self.now };
                let holders = self.in_sync_mask();
                let outcome = value.and_then(|value| self.oracle.read(sector, value, during, holders));
                if let Err(why) = outcome {
                    return self.fail(Check::Image, format!("members hold: {why}"));
                }
            }
        }
    }

    pub(crate) fn in_sync_mask(&self) -> u64 {
        self.records.in_sync().into_iter().fold(0, |mask, host| mask | 1 << host)
    }

    /// A volume has just been opened: the members in sync are alike, and hold what they must.
    pub(crate) fn volume_opened(&mut self, opening: OpeningId, generation: Generation) {
        self.see_revert();
        self.oracle.opened(opening, generation, self.now);
        let promised = |host: &usize| {
            let process = self.hosts[*host].process.as_ref();
            let known = process.and_then(|process| process.store.volume(VOLUME));
            known.is_some_and(|known| known.generation == generation)
        };
        let who: Vec<usize> = self.records.in_sync().into_iter().filter(promised).collect();
        let touched = self.oracle.touched.iter().copied().collect();
        self.check_alike(&who, touched, Check::Alike);
        self.strike_soon();
    }

    /// Everything is at rest.
    pub(crate) fn check_rest(&mut self) {
        let touched = self.oracle.touched.iter().copied().collect();
        self.check_alike(&self.records.in_sync(), touched, Check::Alike);
        self.check_snapshots();
        self.check_keys();
    }

    /// Every member in sync has the snapshots that are recorded, and no others; each shows the same on all,
    /// and what it showed when it was taken.
    fn check_snapshots(&mut self) {
        let recorded: Vec<(SnapshotId, Stamp)> =
            self.records.record.snapshots.iter().map(|snapshot| (snapshot.id, snapshot.cut)).collect();
        for host in self.records.in_sync() {
            let Some(process) = &self.hosts[host].process else { continue };
            let kept: Vec<(SnapshotId, Stamp)> =
                process.store.snapshots(VOLUME).iter().map(|snapshot| (snapshot.id, snapshot.cut)).collect();
            if kept != recorded {
                return self.fail(Check::Snapshots, format!("host {host} keeps {kept:?}, not {recorded:?}"));
            }
        }
        for (id, cut) in recorded {
            match self.shown(cut) {
                Ok(shown) => {
                    let taken = self.snapshots.get(&id).filter(|taken| **taken != shown);
                    let differs =
                        taken.and_then(|taken| taken.iter().find(|(at, was)| shown.get(at) != Some(was)));
                    if let Some((sector, was)) = differs {
                        let now = shown.get(sector);
                        let detail = format!("snapshot {id}: sector {sector} was {was:x?}, and is {now:x?}");
                        return self.fail(Check::Snapshots, detail);
                    }
                }
                Err(why) => return self.fail(Check::Snapshots, format!("snapshot {id}: {why}")),
            }
        }
    }

    /// The values that a cut shows of all sectors touched, the same on every member in sync that runs.
    pub(crate) fn shown(&self, cut: Stamp) -> Result<BTreeMap<usize, u64>, String> {
        let mut shown = BTreeMap::new();
        for block in self.oracle.touched.iter().copied() {
            let mut first: Option<(usize, Held)> = None;
            for host in self.records.in_sync() {
                if self.hosts[host].process.is_none() {
                    continue;
                }
                let held = self.held(host, block, cut)?;
                match &first {
                    None => first = Some((host, held)),
                    Some((other, known)) if *known != held => {
                        let stamps = (known.as_ref().map(|held| held.0), held.map(|held| held.0));
                        return Err(format!("block {block} differs on hosts {other} and {host}: {stamps:?}"));
                    }
                    Some(_) => {}
                }
            }
            let Some((_, held)) = first else { continue };
            for index in 0..SECTORS {
                let sector = usize::try_from(block).unwrap_or(usize::MAX) * SECTORS + index;
                let value = match &held {
                    None => 0,
                    Some((_, bytes)) => read_sector(&bytes[index * SECTOR_SIZE..][..SECTOR_SIZE], sector)?,
                };
                shown.insert(sector, value);
            }
        }
        Ok(shown)
    }

    /// A snapshot has been taken: it shows what could be read at some moment while it was, and keeps that.
    pub(crate) fn snapshot_taken(&mut self, id: SnapshotId, during: Interval) {
        let recorded = self.records.record.snapshots.iter().find(|snapshot| snapshot.id == id);
        let Some(cut) = recorded.map(|snapshot| snapshot.cut) else {
            // A newer engine may have deleted it already.
            return;
        };
        let shown = match self.shown(cut) {
            Ok(shown) => shown,
            Err(why) => return self.fail(Check::Snapshots, format!("snapshot {id}: {why}")),
        };
        let holders = self.in_sync_mask();
        for (sector, value) in &shown {
            if let Err(why) = self.oracle.read(*sector, *value, during, holders) {
                return self.fail(Check::Snapshots, format!("snapshot {id} shows: {why}"));
            }
        }
        self.snapshots.insert(id, shown);
    }

    /// An engine has taken a member back that was away: where nothing is going on, it must be like the
    /// others again.
    pub(crate) fn check_returned(&mut self) {
        if self.records.record.import.is_some() {
            // The engine may be writing what the source has.
            return;
        }
        let settled = self.oracle.settled_blocks();
        if !self.is_rekeyed() {
            // The engine writes of itself.
            let who = self.records.in_sync();
            return self.check_alike_by(&who, settled, Check::Alike, |known, held| {
                contents(known) == contents(held)
            });
        }
        self.check_alike(&self.records.in_sync(), settled, Check::Alike);
    }

    /// The record has just called a member in sync that was not: it has everything acknowledged, now
    /// and not a moment later. Worlds in which it may have lost that again unnoticed tell nothing. Stamps may
    /// differ: what the engine writes alike, it may still be writing.
    pub(crate) fn check_promoted(&mut self) {
        let losing = [Fault::ReplicaPower, Fault::TotalPower, Fault::WriteError, Fault::FlushError];
        let imports = self.records.record.import.is_some();
        if losing.into_iter().any(|fault| self.profile.has(fault)) || !self.is_striking() || imports {
            return;
        }
        let mut running = self.records.in_sync();
        running.retain(|host| self.hosts[*host].process.is_some());
        let settled = self.oracle.settled_blocks();
        self.check_alike_by(&running, settled, Check::Alike, |known, held| contents(known) == contents(held));
    }

    /// What `trivet check --data` says of every pool.
    pub(crate) fn check_pools(&mut self) {
        for index in 0..self.hosts.len() {
            let host = &self.hosts[index];
            let mut disk = MemoryDisk::from(host.disk.image().clone());
            let detail = match verify(&mut disk, &*host.meta, true, &mut |_, _| ()) {
                Ok(report) => {
                    // A block that rotted where the volume reads it from an ancestor, the volume has mended for
                    // itself; nobody looks after the ancestor.
                    let of_ancestor = |finding: &Finding| matches!(finding, Finding::Data { volume, .. } if crate::cloning::is_ancestor(*volume));
                    match report.findings.into_iter().find(|finding| !of_ancestor(finding)) {
                        None => continue,
                        Some(finding) => format!("host {index}: {finding:?}"),
                    }
                }
                Err(error) => format!("host {index}: {error}"),
            };
            return self.fail(Check::Pool, detail);
        }
    }
}
