//! The time of day, as people read it.

/// Seconds since 1970.
#[allow(clippy::disallowed_methods, reason = "people are told when and how long ago something was")]
pub(crate) fn unix_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A date and time of day in UTC.
struct Utc {
    year: u64,
    month: u64,
    day: u64,
    seconds: u64,
}

/// By the civil calendar (Hinnant, *chrono-Compatible Low-Level Date Algorithms*, `civil_from_days`).
const fn utc(unix_seconds: u64) -> Utc {
    let days = unix_seconds / 86_400 + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + (month <= 2) as u64;
    Utc { year, month, day, seconds: unix_seconds % 86_400 }
}

/// As in `2026-11-24 15:04:05 UTC`.
pub(crate) fn utc_time(unix_seconds: u64) -> String {
    let Utc { year, month, day, seconds } = utc(unix_seconds);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// As in `20261124-150405`: what may be a name.
pub(crate) fn utc_name(unix_seconds: u64) -> String {
    let Utc { year, month, day, seconds } = utc(unix_seconds);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc_time(0), "1970-01-01 00:00:00 UTC");
        // As `date -u -d @N` says, around leap days.
        assert_eq!(utc_time(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(utc_time(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc_time(4_107_542_399), "2100-02-28 23:59:59 UTC");
        assert_eq!(utc_time(4_107_542_400), "2100-03-01 00:00:00 UTC");
        assert_eq!(utc_name(1_795_532_645), "20261124-150405");
    }
}
