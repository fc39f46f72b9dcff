//! What is shown of a volume's scrubs. Times in JSON are seconds since 1970.

use serde::Serialize;
use std::fmt;
use trivet_api::v1;
use trivet_model::BLOCK_SIZE_U64;
use trivet_model::size::ByteSize;

#[derive(Clone, PartialEq, Serialize, Debug)]
pub(crate) struct ScrubView {
    /// From the end of one to the beginning of the next; `null`: only when someone asks.
    pub(crate) every_seconds: Option<u64>,
    /// What each copy's server may read.
    pub(crate) bytes_per_second_max: u64,
    pub(crate) running: Option<RunningView>,
    /// The last that came to its end.
    pub(crate) last: Option<FinishedView>,
}

#[derive(Clone, PartialEq, Serialize, Debug)]
pub(crate) struct RunningView {
    pub(crate) run: u64,
    pub(crate) started_at: u64,
    pub(crate) position_bytes: u64,
    pub(crate) total_bytes: u64,
    pub(crate) bytes_per_second: u64,
    /// Unknown at first.
    pub(crate) seconds_left: Option<u64>,
    pub(crate) counts: CountsView,
    /// Why it does not get on; empty when it does.
    pub(crate) waits: String,
}

#[derive(Clone, PartialEq, Serialize, Debug)]
pub(crate) struct FinishedView {
    pub(crate) run: u64,
    pub(crate) started_at: u64,
    pub(crate) finished_at: u64,
    pub(crate) counts: CountsView,
}

#[derive(Clone, PartialEq, Serialize, Debug)]
pub(crate) struct CountsView {
    pub(crate) compared_blocks: u64,
    /// Copies of blocks.
    pub(crate) repaired: u64,
    pub(crate) mismatched: u64,
    pub(crate) unrepairable: u64,
    /// The first of those.
    pub(crate) unrepairable_blocks: Vec<u64>,
}

impl From<v1::Scrub> for ScrubView {
    fn from(scrub: v1::Scrub) -> Self {
        let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_SIZE_U64);
        Self {
            every_seconds: (scrub.every_seconds > 0).then_some(scrub.every_seconds),
            bytes_per_second_max: scrub.bytes_per_second_max,
            running: scrub.running.map(|running| RunningView {
                run: running.run,
                started_at: running.started_at,
                position_bytes: bytes(running.position.min(running.total)),
                total_bytes: bytes(running.total),
                bytes_per_second: running.bytes_per_second,
                seconds_left: running.seconds_left,
                counts: running.counts.unwrap_or_default().into(),
                waits: running.waits,
            }),
            last: scrub.last.map(|last| FinishedView {
                run: last.run,
                started_at: last.started_at,
                finished_at: last.finished_at,
                counts: last.counts.unwrap_or_default().into(),
            }),
        }
    }
}

impl From<v1::ScrubCounts> for CountsView {
    fn from(counts: v1::ScrubCounts) -> Self {
        let v1::ScrubCounts { compared, repaired, mismatched, unrepairable, unrepairable_blocks } = counts;
        Self { compared_blocks: compared, repaired, mismatched, unrepairable, unrepairable_blocks }
    }
}

impl fmt::Display for RunningView {
    #[allow(clippy::cast_precision_loss, reason = "a percentage for people")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.position_bytes as f64 * 100.0 / self.total_bytes.max(1) as f64;
        let (position, total) = (ByteSize(self.position_bytes), ByteSize(self.total_bytes));
        write!(f, "{percent:.0} %, {position} of {total}, {}/s", ByteSize(self.bytes_per_second))?;
        if let Some(seconds) = self.seconds_left {
            write!(f, ", {seconds} s left")?;
        }
        if !self.waits.is_empty() {
            write!(f, "; waits: {}", self.waits)?;
        }
        write!(f, "; {}", self.counts)
    }
}

impl fmt::Display for CountsView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repaired, mismatched, unrepairable, .. } = self;
        write!(f, "{repaired} repaired, {mismatched} mismatched, {unrepairable} unrepairable")?;
        if let Some((first, rest)) = self.unrepairable_blocks.split_first() {
            write!(f, " (blocks {first}")?;
            rest.iter().try_for_each(|block| write!(f, ", {block}"))?;
            let more = self.unrepairable - self.unrepairable_blocks.len() as u64;
            write!(f, "{})", if more > 0 { format!(" and {more} more") } else { String::new() })?;
        }
        Ok(())
    }
}

impl ScrubView {
    /// When the next begins, in words.
    pub(crate) fn schedule(&self) -> String {
        let every = self.every_seconds.map_or("only when asked".to_owned(), |every| {
            let (count, unit) = [(86400, "d"), (3600, "h"), (60, "m"), (1, "s")]
                .into_iter()
                .find(|(length, _)| every.is_multiple_of(*length))
                .map_or((every, "s"), |(length, unit)| (every / length, unit));
            format!("every {count}{unit}")
        });
        format!("{every}, at most {}/s", ByteSize(self.bytes_per_second_max))
    }
}

/// How long ago that was, in words.
pub(crate) fn ago(at: u64, now: u64) -> String {
    let seconds = now.saturating_sub(at);
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_in_words() {
        let counts = v1::ScrubCounts {
            compared: 1,
            repaired: 2,
            mismatched: 0,
            unrepairable: 3,
            unrepairable_blocks: vec![7, 9],
        };
        let running = v1::RunningScrub {
            run: 1,
            started_at: 5,
            position: 256,
            total: 1024,
            counts: Some(counts),
            bytes_per_second: 1 << 20,
            seconds_left: Some(3),
            waits: String::new(),
        };
        let view = ScrubView::from(v1::Scrub {
            every_seconds: 7 * 86400,
            bytes_per_second_max: 100 << 20,
            running: Some(running),
            last: None,
        });
        assert_eq!(view.schedule(), "every 7d, at most 100 MiB/s");
        let words = "25 %, 1 MiB of 4 MiB, 1 MiB/s, 3 s left; 2 repaired, 0 mismatched, 3 unrepairable \
                     (blocks 7, 9 and 1 more)";
        assert_eq!(view.running.unwrap().to_string(), words);
        let never = ScrubView::from(v1::Scrub { bytes_per_second_max: 1 << 20, ..v1::Scrub::default() });
        assert_eq!(never.schedule(), "only when asked, at most 1 MiB/s");
        assert_eq!(
            (ago(100, 130), ago(0, 7200), ago(9, 3)),
            ("30 s ago".into(), "2 h ago".into(), "0 s ago".into())
        );
    }
}
