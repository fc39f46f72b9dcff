//! Is what a sector's readers and writers saw linearizable?
//!
//! Values written are unique, so the test of Gibbons and Korach (*Testing Shared Memories*, SIAM J.
//! Comput. 1997) applies: a value's zone spans from the earliest end to the latest beginning of its
//! write and reads; a history is linearizable exactly when no two forward zones overlap and no
//! backward zone lies inside a forward one. Zeros are written many times, so reads of zeros are only
//! checked for staleness, and left out of the zones.

use std::collections::BTreeMap;

/// The end of what has not ended.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Access {
    value: u64,
    begin: u64,
    end: u64,
    write: bool,
}

/// One sector's accesses.
#[derive(Debug)]
pub(super) struct SectorHistory {
    accesses: Vec<Access>,
}

/// A write's place in a history.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteMark(usize);

impl SectorHistory {
    pub(super) fn beginning_with(value: u64) -> Self {
        Self { accesses: vec![Access { value, begin: 0, end: 0, write: true }] }
    }

    pub(super) fn write_began(&mut self, value: u64, begin: u64) -> WriteMark {
        self.accesses.push(Access { value, begin, end: NEVER, write: true });
        WriteMark(self.accesses.len() - 1)
    }

    pub(super) fn write_ended(&mut self, mark: WriteMark, end: u64) {
        self.accesses[mark.0].end = end;
    }

    pub(super) fn read(&mut self, value: u64, begin: u64, end: u64) {
        self.accesses.push(Access { value, begin, end, write: false });
    }

    /// What a loss of all that was not flushed may leave: any version that no flushed one followed.
    /// `flushed`: when the last flush that ended well began.
    pub(super) fn survivors(&self, flushed: u64) -> Vec<u64> {
        let writes = || self.accesses.iter().filter(|access| access.write);
        let outlived = |w: &Access| writes().any(|later| later.end < flushed && w.end < later.begin);
        writes().filter(|write| !outlived(write)).map(|write| write.value).collect()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        for read in self.accesses.iter().filter(|access| !access.write) {
            self.check_read(read)?;
        }
        let mut zones: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for access in self.accesses.iter().filter(|access| access.value != 0) {
            let (finish, start) = zones.entry(access.value).or_insert((NEVER, 0));
            *finish = (*finish).min(access.end);
            *start = (*start).max(access.begin);
        }
        for (a, &(a_finish, a_start)) in zones.iter().filter(|(_, (finish, start))| finish < start) {
            for (b, &(b_finish, b_start)) in zones.iter().filter(|(b, _)| *b != a) {
                let (low, high) = (b_finish.min(b_start), b_finish.max(b_start));
                let forward = b_finish < b_start;
                let clash =
                    if forward { low < a_start && a_finish < high } else { a_finish < low && high < a_start };
                if clash {
                    return Err(format!(
                        "versions {a} ({a_finish}..{a_start}) and {b} ({low}..{high}) do not follow each other"
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_read(&self, read: &Access) -> Result<(), String> {
        let sources =
            || self.accesses.iter().filter(|a| a.write && a.value == read.value && a.begin < read.end);
        if sources().next().is_none() {
            return Err(format!("read {read:?} returns what was never written"));
        }
        let overwritten = |source: &Access| {
            let mut writes = self.accesses.iter().filter(|access| access.write);
            writes.any(|later| source.end < later.begin && later.end < read.begin)
        };
        if sources().all(overwritten) {
            return Err(format!("read {read:?} returns what had been overwritten"));
        }
        Ok(())
    }
}

#[test]
fn tells_right_histories_from_wrong_ones() {
    let history = |accesses: &[(u64, u64, u64, bool)]| SectorHistory {
        accesses: accesses
            .iter()
            .map(|&(value, begin, end, write)| Access { value, begin, end, write })
            .collect(),
    };
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
        history(&accesses).check().unwrap();
    }
    for accesses in wrong {
        assert!(history(&accesses).check().is_err(), "{accesses:?}");
    }
}
