//! Processor time of the processes that take part, from `/proc/PID/stat`.

use std::path::Path;
use std::time::Duration;

/// Linux shows times in hundredths of a second to user space, on every architecture.
const TICKS_PER_SECOND: u64 = 100;

/// A process that takes part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Participant {
    pub(crate) name: String,
    pub(crate) pid: u32,
}

/// Processor time of each, so far; `None` for one that has ended.
pub(crate) fn times(participants: &[Participant]) -> Vec<Option<Duration>> {
    participants.iter().map(|participant| time(participant.pid)).collect()
}

fn time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    parse(&stat)
}

/// `utime` and `stime` are the 14th and 15th fields (proc(5)). The second, the name in
/// parentheses, may hold blanks and parentheses itself.
fn parse(stat: &str) -> Option<Duration> {
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 13 14 15 16";
        assert_eq!(parse(stat), Some(Duration::from_secs(2)));
        assert_eq!(parse("42 (a"), None);
        assert!(time(std::process::id()).is_some());
        assert_eq!(time(0), None);
    }
}
