//! Stamps, and the writes that are on their way, in stamp order.
//!
//! Invariants:
//! - every stamp handed out is above all before it;
//! - `committed` is below the first stamp of the oldest write that is not settled, never goes back,
//!   and does not move before members are known to be alike ([`WriteLog::members_are_alike`]);
//! - `stable <= committed`.

use super::OperationId;
use std::collections::VecDeque;
use trivet_model::stamp::SEQUENCE_MAX;
use trivet_model::{Generation, Stamp};
use trivet_wire::frame::Progress;

/// A write's place in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LogSlot(u64);

#[derive(Debug)]
struct Entry {
    operation: OperationId,
    last: Stamp,
    /// Whether it is, and then whether the members hold it or none does.
    settled: Option<Fate>,
}

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// Every in-sync member holds it.
    Held,
    /// No in-sync member does.
    Refused,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct WriteLog {
    generation: Generation,
    sequence: u64,
    entries: VecDeque<Entry>,
    removed: u64,
    settled: Stamp,
    alike: bool,
    progress: Progress,
}

/// Room for the stamps of what may be in flight when a generation's are declared used up.
const SEQUENCE_RESERVE: u64 = 1 << 34;

impl WriteLog {
    /// Begins a generation, with what members know of the volume's progress and the highest stamp that
    /// any of them holds. (Not the highest that was handed out: what is called stable must be found on
    /// every member, so that one which lacks it is known to have lost it.)
    pub(super) fn begin(&mut self, generation: Generation, known: Progress, held: Stamp) {
        assert!(self.entries.is_empty(), "a new generation begins with nothing in flight");
        if generation != self.generation {
            self.generation = generation;
            self.sequence = 0;
        }
        self.alike = false;
        self.settled = held;
        self.progress.stable = self.progress.stable.max(known.stable);
        self.progress.committed = self.progress.committed.max(known.committed).max(self.progress.stable);
    }

    /// Every in-sync member holds the same below the stamps handed out since `begin`.
    pub(super) fn members_are_alike(&mut self) {
        self.alike = true;
        self.advance();
    }

    /// Hands out `count` consecutive stamps.
    pub(super) fn append(&mut self, operation: OperationId, count: u32) -> (LogSlot, Stamp) {
        let first = Stamp::new(self.generation, self.sequence + 1).expect("renewed before they run out");
        self.sequence += u64::from(count);
        let last = first.plus(u64::from(count) - 1);
        self.entries.push_back(Entry { operation, last, settled: None });
        (LogSlot(self.removed + self.entries.len() as u64 - 1), first)
    }

    /// Hands out a stamp that no write will have.
    pub(super) fn take_cut(&mut self) -> Stamp {
        self.sequence += 1;
        self.last()
    }

    /// Every in-sync member holds this write, or none does.
    pub(super) fn settle(&mut self, slot: LogSlot, fate: Fate) {
        let index = usize::try_from(slot.0 - self.removed).expect("slots in use are in memory");
        let entry = &mut self.entries[index];
        assert!(entry.settled.is_none(), "a write settles once");
        entry.settled = Some(fate);
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.settled.is_some()) {
            self.removed += 1;
            // A stamp that nobody holds must not be called stable: see `begin`.
            if entry.settled == Some(Fate::Held) {
                self.settled = entry.last;
            }
        }
        self.advance();
    }

    /// A flush that began when `covers` was committed has ended on every in-sync member.
    pub(super) fn flushed(&mut self, covers: Stamp) {
        assert!(covers <= self.progress.committed, "a flush covers committed writes only");
        self.progress.stable = self.progress.stable.max(covers);
    }

    /// Forgets what is on its way: the members' next answer to `Open` says what became of it.
    pub(super) fn abandon(&mut self) {
        self.removed += self.entries.len() as u64;
        self.entries.clear();
    }

    /// The highest stamp handed out.
    pub(super) fn last(&self) -> Stamp {
        Stamp::new(self.generation, self.sequence).expect("sequences stay within 40 bits")
    }

    pub(super) const fn progress(&self) -> Progress {
        self.progress
    }

    /// Writes that are not settled, in stamp order.
    pub(super) fn unsettled(&self) -> impl Iterator<Item = OperationId> {
        self.entries.iter().filter(|entry| entry.settled.is_none()).map(|entry| entry.operation)
    }

    /// Whether everything up to this stamp is settled.
    pub(super) fn is_settled_to(&self, stamp: Stamp) -> bool {
        self.entries.front().is_none_or(|entry| entry.last > stamp)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the generation's stamps run out soon.
    pub(super) const fn is_used_up(&self) -> bool {
        self.sequence > SEQUENCE_MAX - SEQUENCE_RESERVE
    }

    #[cfg(test)]
    pub(super) fn use_up(&mut self) {
        self.sequence = self.sequence.max(SEQUENCE_MAX - SEQUENCE_RESERVE);
    }

    fn advance(&mut self) {
        if self.alike {
            self.progress.committed = self.progress.committed.max(self.settled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(generation: u32, sequence: u64) -> Stamp {
        Stamp::new(Generation::new(generation).unwrap(), sequence).unwrap()
    }

    #[test]
    fn committed_waits_for_the_oldest_write() {
        let mut log = WriteLog::default();
        log.begin(Generation::new(3).unwrap(), Progress::default(), stamp(2, 6));
        log.members_are_alike();
        assert_eq!(log.progress().committed, stamp(2, 6));
        let (a, first) = log.append(OperationId(1), 4);
        let (b, second) = log.append(OperationId(2), 1);
        assert_eq!((first, second), (stamp(3, 1), stamp(3, 5)));
        log.settle(b, Fate::Held);
        assert_eq!(log.progress().committed, stamp(2, 6));
        assert!(log.is_settled_to(stamp(3, 0)) && !log.is_settled_to(stamp(3, 4)));
        assert_eq!(log.unsettled().collect::<Vec<_>>(), [OperationId(1)]);
        log.settle(a, Fate::Held);
        assert_eq!(log.progress().committed, stamp(3, 5));
        log.flushed(stamp(3, 5));
        assert_eq!(log.progress().stable, stamp(3, 5));
    }

    #[test]
    fn committed_stands_still_until_members_are_alike() {
        let mut log = WriteLog::default();
        let known = Progress { committed: stamp(2, 9), stable: stamp(2, 7) };
        log.begin(Generation::new(3).unwrap(), known, stamp(2, 9));
        let (slot, _) = log.append(OperationId(1), 1);
        log.settle(slot, Fate::Held);
        assert_eq!(log.progress(), known);
        log.members_are_alike();
        assert_eq!(log.progress().committed, stamp(3, 1));
    }

    #[test]
    fn stamps_never_come_twice_in_a_generation() {
        let mut log = WriteLog::default();
        log.begin(Generation::new(1).unwrap(), Progress::default(), Stamp::ZERO);
        let (_, first) = log.append(OperationId(1), 3);
        log.abandon();
        log.begin(Generation::new(1).unwrap(), Progress::default(), Stamp::ZERO);
        let (_, second) = log.append(OperationId(2), 1);
        assert!(second > first.plus(2));
    }
}
