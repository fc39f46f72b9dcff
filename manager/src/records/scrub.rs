//! A volume's scrubs: when, how fast, how far, and what the last one found. What an engine forgets at its
//! end stands here.

use super::Record;
use serde::{Deserialize, Serialize};
use trivet_model::{ScrubCounts, VolumeId};

/// The scrubs of a volume. Times are in seconds since 1970, by the manager's clock; nothing depends on
/// them but when a scrub begins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ScrubRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// From the end of one to the beginning of the next; `None`: only when someone asks.
    pub every_seconds: Option<u64>,
    /// Since when that is counted where none has ended yet.
    pub scheduled_at: u64,
    /// What each member may read a second.
    pub bytes_per_second: u64,
    /// How many were begun: numbers them.
    pub runs: u64,
    /// The one under way.
    pub running: Option<RunningScrub>,
    /// The last that came to its end.
    pub last: Option<FinishedScrub>,
}

/// A scrub under way, as its engine said last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RunningScrub {
    /// Its number.
    pub run: u64,
    /// When.
    pub started_at: u64,
    /// Everything before this block is done: where it is resumed.
    pub position: u64,
    /// What was found before that block.
    pub counts: ScrubCounts,
}

/// A scrub that came to its end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FinishedScrub {
    /// Its number.
    pub run: u64,
    /// When.
    pub started_at: u64,
    /// When.
    pub finished_at: u64,
    /// What was found.
    pub counts: ScrubCounts,
}

impl ScrubRecord {
    /// Whether one should begin by the schedule.
    #[must_use]
    pub fn is_due(&self, now: u64) -> bool {
        let since = self.last.as_ref().map_or(self.scheduled_at, |last| last.finished_at);
        let since = since.max(self.scheduled_at);
        self.running.is_none() && self.every_seconds.is_some_and(|every| now >= since.saturating_add(every))
    }

    /// Begins one.
    pub fn begin(&mut self, now: u64) {
        self.runs += 1;
        let counts = ScrubCounts::default();
        self.running = Some(RunningScrub { run: self.runs, started_at: now, position: 0, counts });
    }
}

impl Record for ScrubRecord {
    const KIND: &'static str = "scrub";
    const VERSION: u32 = 1;

    fn id(&self) -> String {
        self.volume.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_layout;
    use super::*;

    fn record() -> ScrubRecord {
        let counts = ScrubCounts {
            compared: 9,
            unrepairable: 1,
            unrepairable_blocks: vec![4],
            ..ScrubCounts::default()
        };
        ScrubRecord {
            volume: VolumeId::from_bytes([1; 16]),
            every_seconds: Some(100),
            scheduled_at: 1000,
            bytes_per_second: 4096,
            runs: 2,
            running: Some(RunningScrub {
                run: 2,
                started_at: 1300,
                position: 7,
                counts: ScrubCounts::default(),
            }),
            last: Some(FinishedScrub { run: 1, started_at: 1100, finished_at: 1200, counts }),
        }
    }

    #[test]
    fn layout() {
        assert_layout(
            &record(),
            concat!(
                r#"{"version":1,"volume":"01010101-0101-0101-0101-010101010101","every_seconds":100,"#,
                r#""scheduled_at":1000,"bytes_per_second":4096,"runs":2,"running":{"run":2,"started_at":1300,"#,
                r#""position":7,"counts":{"compared":0,"repaired":0,"mismatched":0,"unrepairable":0,"#,
                r#""unrepairable_blocks":[]}},"last":{"run":1,"started_at":1100,"finished_at":1200,"counts":"#,
                r#"{"compared":9,"repaired":0,"mismatched":0,"unrepairable":1,"unrepairable_blocks":[4]}}}"#,
            ),
        );
    }

    #[test]
    fn due_when_the_last_or_the_schedule_is_old_enough_and_none_runs() {
        let mut record = record();
        assert!(!record.is_due(5000), "one runs");
        record.running = None;
        assert!(!record.is_due(1299) && record.is_due(1300));
        record.scheduled_at = 1250;
        assert!(!record.is_due(1349) && record.is_due(1350));
        record.last = None;
        assert!(!record.is_due(1349) && record.is_due(1350));
        record.every_seconds = None;
        assert!(!record.is_due(u64::MAX));
        record.begin(1400);
        assert_eq!(record.running.as_ref().map(|running| (running.run, running.position)), Some((3, 0)));
    }
}
