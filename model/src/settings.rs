//! What people choose of a volume, and may change while it is served: how durable a write is when it is
//! acknowledged, how much of its members' time a volume may take, and how many snapshots it may have.

use crate::size::ByteSize;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What an acknowledgement of a write promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Every in-sync member's device has accepted it; a flush makes it stable, as with any disk.
    #[default]
    WriteBack,
    /// It is stable on every in-sync member.
    WriteThrough,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WriteBack => "write-back",
            Self::WriteThrough => "write-through",
        })
    }
}

/// How much may pass: `per_second` on the long run, and `burst` at once after a pause. In I/Os or bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RateLimit {
    /// What is allowed a second.
    pub per_second: u64,
    /// How much of what was not used is kept, at most.
    pub burst: u64,
}

/// Settings of a volume, part of its record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeSettings {
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// I/Os of its consumers, reads and writes together; `None` for as many as they will.
    pub iops_limit: Option<RateLimit>,
    /// The same in bytes.
    pub bandwidth_limit: Option<RateLimit>,
    /// How many snapshots it may have; those that it has already stay. At most
    /// [`SNAPSHOTS_MAX`](crate::SNAPSHOTS_MAX).
    pub snapshot_limit: u32,
    /// What one copy answers to a read is held against another's stamps. Of an encrypted volume only.
    pub verified_reads: bool,
}

/// The snapshots that a volume may have unless something else is chosen: all that a record holds.
pub const SNAPSHOT_LIMIT_DEFAULT: u32 = 1000;
const _: () = assert!(SNAPSHOT_LIMIT_DEFAULT as usize == crate::SNAPSHOTS_MAX);

impl Default for VolumeSettings {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            iops_limit: None,
            bandwidth_limit: None,
            snapshot_limit: SNAPSHOT_LIMIT_DEFAULT,
            verified_reads: false,
        }
    }
}

/// The lowest limits. Below, a client's queue would wait for longer than clients have patience.
pub const IOPS_LIMIT_MIN: u64 = 10;
/// As [`IOPS_LIMIT_MIN`].
pub const BANDWIDTH_LIMIT_MIN: u64 = 1 << 20;
/// What an engine lets pass at once is at most this large, so that a burst must be.
pub const BANDWIDTH_BURST_MIN: u64 = 1 << 20;
/// The highest rate and burst: far above any device.
pub const LIMIT_MAX: u64 = 1 << 50;

/// Why a limit cannot be one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LimitError {
    /// Not a number, or not a size.
    #[error("'{text}' is no limit: {expected}")]
    Unreadable {
        /// As written.
        text: String,
        /// How one is written.
        expected: &'static str,
    },
    /// A client's queue would wait too long.
    #[error("a limit of {found} a second is too low: it is at least {least} a second")]
    TooLow {
        /// As asked.
        found: String,
        /// The least.
        least: String,
    },
    /// More than makes sense.
    #[error("{0} is too much for a limit")]
    TooHigh(String),
    /// The engine looks at limits a hundred times a second at worst, and lets a request pass whole.
    #[error("a burst of {found} is too small for this limit: it is at least {least}")]
    BurstTooSmall {
        /// As asked.
        found: String,
        /// The least.
        least: String,
    },
}

/// What a limit counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limited {
    /// I/Os.
    Iops,
    /// Bytes.
    Bandwidth,
}

impl Limited {
    /// A limit, if it makes sense; without a `burst`, of what it allows in a second.
    ///
    /// # Errors
    /// [`LimitError`].
    pub fn limit(self, per_second: u64, burst: Option<u64>) -> Result<RateLimit, LimitError> {
        let least = match self {
            Self::Iops => IOPS_LIMIT_MIN,
            Self::Bandwidth => BANDWIDTH_LIMIT_MIN,
        };
        if per_second < least {
            return Err(LimitError::TooLow { found: self.show(per_second), least: self.show(least) });
        }
        let whole = match self {
            Self::Iops => 1,
            Self::Bandwidth => BANDWIDTH_BURST_MIN,
        };
        let least = whole.max(per_second / 100);
        let burst = burst.unwrap_or_else(|| per_second.max(least));
        if let Some(high) = [per_second, burst].into_iter().find(|&high| high > LIMIT_MAX) {
            return Err(LimitError::TooHigh(self.show(high)));
        }
        if burst < least {
            return Err(LimitError::BurstTooSmall { found: self.show(burst), least: self.show(least) });
        }
        Ok(RateLimit { per_second, burst })
    }

    /// Reads `LIMIT[,burst=BURST]`; `None` is written `none` or `0`.
    ///
    /// # Errors
    /// [`LimitError`].
    pub fn parse(self, text: &str) -> Result<Option<RateLimit>, LimitError> {
        let unreadable = || LimitError::Unreadable {
            text: text.to_owned(),
            expected: match self {
                Self::Iops => "write a number, such as 1000 or 1000,burst=5000, or none",
                Self::Bandwidth => "write a size, such as 100MiB or 100MiB,burst=1GiB, or none",
            },
        };
        if matches!(text, "none" | "0") {
            return Ok(None);
        }
        let (rate, burst) = match text.split_once(',') {
            None => (text, None),
            Some((rate, burst)) => (rate, Some(burst.strip_prefix("burst=").ok_or_else(unreadable)?)),
        };
        let number = |text: &str| match self {
            Self::Iops => text.parse().or(Err(unreadable())),
            Self::Bandwidth => text.parse::<ByteSize>().map(|size| size.0).or(Err(unreadable())),
        };
        let rate = number(rate.strip_suffix("/s").unwrap_or(rate))?;
        let burst = burst.map(number).transpose()?;
        self.limit(rate, burst).map(Some)
    }

    fn show(self, amount: u64) -> String {
        match self {
            Self::Iops => format!("{amount} I/Os"),
            Self::Bandwidth => ByteSize(amount).to_string(),
        }
    }

    /// A limit in words.
    #[must_use]
    pub fn describe(self, limit: RateLimit) -> String {
        let burst = match self {
            Self::Iops => limit.burst.to_string(),
            Self::Bandwidth => ByteSize(limit.burst).to_string(),
        };
        format!("{} a second, {burst} at once", self.show(limit.per_second))
    }
}

/// Is neither of the two.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a volume's durability is write-back or write-through, not '{0}'")]
pub struct DurabilityError(String);

impl FromStr for Durability {
    type Err = DurabilityError;

    fn from_str(text: &str) -> Result<Self, DurabilityError> {
        let found = [Self::WriteBack, Self::WriteThrough].into_iter().find(|known| known.to_string() == text);
        found.ok_or_else(|| DurabilityError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_as_people_write_them() {
        let limit = |per_second, burst| Ok(Some(RateLimit { per_second, burst }));
        assert_eq!(Limited::Iops.parse("1000"), limit(1000, 1000));
        assert_eq!(Limited::Iops.parse("1000/s,burst=5000"), limit(1000, 5000));
        assert_eq!(Limited::Bandwidth.parse("100MiB"), limit(100 << 20, 100 << 20));
        assert_eq!(Limited::Bandwidth.parse("1.5MiB/s,burst=1GiB"), limit(3 << 19, 1 << 30));
        for text in ["none", "0"] {
            assert_eq!((Limited::Iops.parse(text), Limited::Bandwidth.parse(text)), (Ok(None), Ok(None)));
        }
    }

    #[test]
    fn what_cannot_be_a_limit_is_refused_with_the_reason() {
        let refused = |limited: Limited, text: &str| limited.parse(text).unwrap_err().to_string();
        for text in
            ["", "ten", "-1", "1k", "1000,5000", "1000,burst=", "1000,burst=x", "1000,burst=1,burst=1"]
        {
            let error = refused(Limited::Iops, text);
            assert!(error.contains("such as 1000 or 1000,burst=5000"), "{error}");
        }
        assert!(refused(Limited::Bandwidth, "fast").contains("such as 100MiB"));
        assert!(refused(Limited::Iops, "9").contains("at least 10 I/Os a second"));
        assert!(refused(Limited::Bandwidth, "1023KiB").contains("at least 1 MiB a second"));
        assert!(refused(Limited::Iops, "1000,burst=9").contains("at least 10 I/Os"));
        assert!(refused(Limited::Bandwidth, "10MiB,burst=4k").contains("at least 1 MiB"));
        assert!(refused(Limited::Bandwidth, "15E").contains("too much"));
        assert!(refused(Limited::Iops, "10,burst=18446744073709551615").contains("too much"));
    }

    #[test]
    fn durabilities_have_names() {
        for durability in [Durability::WriteBack, Durability::WriteThrough] {
            assert_eq!(durability.to_string().parse(), Ok(durability));
        }
        assert!("safe".parse::<Durability>().unwrap_err().to_string().contains("write-through"));
    }
}
