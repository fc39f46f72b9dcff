//! Is what a sector's readers and writers saw linearizable?
//!
//! Values written are unique, so the test of Gibbons and Korach (*Testing Shared Memories*, SIAM J.
//! Comput. 1997) applies: a value's zone spans from the earliest end to the latest beginning of its
//! write and reads; a history is linearizable exactly when no two forward zones overlap and no
//! backward zone lies inside a forward one. Zeros are written many times: reads of zeros are only
//! checked for staleness.

use super::oracle::{WriteFact, WriteId};
use std::time::Duration;

/// One sector's writes, and when each one's value was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct SectorHistory {
    versions: Vec<Version>,
    /// What it held may be lost, and what it holds is not known yet.
    pub(crate) unknown: bool,
}

#[derive(Clone, Copy, Debug)]
struct Version {
    value: u64,
    write: WriteId,
    first_read_end: Duration,
    last_read_begin: Duration,
    was_read: bool,
}

/// When something was going on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Interval {
    pub(crate) begin: Duration,
    pub(crate) end: Duration,
}

#[derive(Clone, Copy)]
struct Zone {
    finish: Duration,
    start: Duration,
}

impl Zone {
    fn is_forward(self) -> bool {
        self.finish < self.start
    }

    /// Whether this zone, a forward one, forbids the other.
    fn clashes_with(self, other: Self) -> bool {
        let (low, high) = (other.finish.min(other.start), other.finish.max(other.start));
        if other.is_forward() {
            low < self.start && self.finish < high
        } else {
            self.finish < low && high < self.start
        }
    }
}

impl SectorHistory {
    pub(crate) fn write(&mut self, value: u64, write: WriteId) {
        self.versions.push(Version {
            value,
            write,
            first_read_end: Duration::MAX,
            last_read_begin: Duration::ZERO,
            was_read: false,
        });
    }

    /// Begins anew: it holds `value` since `write`. Writes for which `keep` holds may still come.
    pub(crate) fn begin_with(&mut self, value: u64, write: WriteId, keep: impl Fn(WriteId) -> bool) {
        self.unknown = false;
        self.versions.retain(|version| keep(version.write));
        self.write(value, write);
    }

    pub(crate) fn writes(&self) -> impl Iterator<Item = WriteId> + '_ {
        self.versions.iter().map(|version| version.write)
    }

    /// The write that put a value there, if it is known.
    pub(crate) fn source(&self, value: u64) -> Option<WriteId> {
        self.versions.iter().find(|version| version.value == value).map(|version| version.write)
    }

    /// Whether what put `value` there had not ended at `begin`: it may have come after a write that
    /// began then.
    pub(crate) fn may_follow(
        &self,
        value: u64,
        begin: Duration,
        facts: &dyn Fn(WriteId) -> WriteFact,
    ) -> bool {
        self.versions.iter().any(|version| version.value == value && facts(version.write).end >= begin)
    }

    /// Whether the sector may hold `value` now, when of acknowledged writes those that `facts` call
    /// lost may be gone.
    pub(crate) fn may_hold(&self, value: u64, at: Duration, facts: &dyn Fn(WriteId) -> WriteFact) -> bool {
        self.stale(value, Interval { begin: at, end: at }, facts).is_none()
    }

    /// A read has returned `value`.
    pub(crate) fn read(
        &mut self,
        value: u64,
        during: Interval,
        facts: &dyn Fn(WriteId) -> WriteFact,
    ) -> Result<(), String> {
        if let Some(why) = self.stale(value, during, facts) {
            return Err(why);
        }
        if value == 0 {
            return Ok(());
        }
        let Some(at) = self.versions.iter().position(|version| version.value == value) else { return Ok(()) };
        let version = &mut self.versions[at];
        version.was_read = true;
        version.first_read_end = version.first_read_end.min(during.end);
        version.last_read_begin = version.last_read_begin.max(during.begin);
        let mine = zone(*version, facts(version.write));
        for other in &self.versions {
            let fact = facts(other.write);
            let happened = other.was_read || (fact.acknowledged && !fact.lost);
            if other.value == 0 || other.value == value || !happened {
                continue;
            }
            let theirs = zone(*other, fact);
            if (mine.is_forward() && mine.clashes_with(theirs))
                || (theirs.is_forward() && theirs.clashes_with(mine))
            {
                return Err(format!(
                    "versions {value:#x} ({:?}..{:?}) and {:#x} ({:?}..{:?}) do not follow each other",
                    mine.finish, mine.start, other.value, theirs.finish, theirs.start
                ));
            }
        }
        Ok(())
    }

    fn stale(&self, value: u64, during: Interval, facts: &dyn Fn(WriteId) -> WriteFact) -> Option<String> {
        let all = || self.versions.iter().map(|version| (version.value, facts(version.write)));
        let sources = || all().filter(|(written, fact)| *written == value && fact.begin <= during.end);
        if sources().next().is_none() {
            return Some(format!("{value:#x} was never written there"));
        }
        let overwritten = |source: &WriteFact| {
            all().any(|(_, later)| {
                later.acknowledged && !later.lost && source.end < later.begin && later.end < during.begin
            })
        };
        sources().all(|(_, source)| overwritten(&source)).then(|| {
            format!("{value:#x}, read during {:?}..{:?}, had been overwritten", during.begin, during.end)
        })
    }
}

fn zone(version: Version, fact: WriteFact) -> Zone {
    Zone { finish: fact.end.min(version.first_read_end), start: fact.begin.max(version.last_read_begin) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: u64 = u64::MAX;

    /// Accesses as (value, begin, end, is a write), in the order of their ends.
    fn check(accesses: &[(u64, u64, u64, bool)]) -> Result<(), String> {
        let time = |at: u64| if at == NEVER { Duration::MAX } else { Duration::from_secs(at) };
        let facts = |id: WriteId| {
            let (_, begin, end, _) = accesses[id.0];
            WriteFact { begin: time(begin), end: time(end), acknowledged: end != NEVER, lost: false }
        };
        let mut history = SectorHistory::default();
        for (index, (value, ..)) in accesses.iter().enumerate().filter(|(_, access)| access.3) {
            history.write(*value, WriteId(index));
        }
        for (value, begin, end, _) in accesses.iter().filter(|access| !access.3) {
            history.read(*value, Interval { begin: time(*begin), end: time(*end) }, &facts)?;
        }
        Ok(())
    }

    #[test]
    fn tells_right_histories_from_wrong_ones() {
        let (w, r) = (true, false);
        let right = [
            vec![(1, 0, 1, w), (1, 2, 3, r), (2, 4, 9, w), (1, 5, 6, r), (2, 7, 8, r)],
            vec![(1, 0, 1, w), (2, 2, NEVER, w), (1, 3, 4, r), (2, 5, 6, r), (2, 8, 9, r)],
        ];
        let wrong = [
            vec![(1, 0, 1, w), (2, 2, 3, w), (1, 4, 5, r)],
            vec![(1, 0, 1, w), (2, 2, NEVER, w), (2, 3, 4, r), (1, 5, 6, r)],
            vec![(1, 0, 9, w), (2, 0, 9, w), (1, 10, 11, r), (2, 12, 13, r)],
            vec![(1, 0, 1, w), (3, 2, 3, r)],
        ];
        for accesses in right {
            check(&accesses).unwrap();
        }
        for accesses in wrong {
            assert!(check(&accesses).is_err(), "{accesses:?}");
        }
    }
}
