//! Byte sizes as people write and read them: `10GiB`, `512M`, `1.5T`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes. Suffixes are powers of 1024, with or without `iB` or `B`, in any case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ByteSize(pub u64);

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a size: {reason}. Write a number and a unit, such as 10GiB, 512M or 1.5T")]
pub struct SizeError {
    text: String,
    reason: &'static str,
}

const UNITS: [(&str, u32); 7] = [("", 0), ("k", 10), ("m", 20), ("g", 30), ("t", 40), ("p", 50), ("e", 60)];

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let fail = |reason| SizeError { text: text.to_owned(), reason };
        let trimmed = text.trim().to_ascii_lowercase();
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let unit = unit.trim();
        let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
        let shift = UNITS
            .iter()
            .find_map(|&(name, shift)| (name == unit).then_some(shift))
            .ok_or_else(|| fail("the unit is not one of B, K, M, G, T, P, E"))?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return Err(fail("there is no number"));
        }
        let parse = |digits: &str| -> Result<u128, SizeError> {
            match digits {
                "" => Ok(0),
                digits if digits.len() > 18 || !digits.bytes().all(|b| b.is_ascii_digit()) => {
                    Err(fail("the number cannot be read"))
                }
                digits => digits.parse().or(Err(fail("the number cannot be read"))),
            }
        };
        let scale = 10u128.pow(u32::try_from(fraction.len().min(18)).or(Err(fail("too many digits")))?);
        let scaled = parse(whole)? * scale + parse(fraction)?;
        let bytes = (scaled << shift) / scale;
        u64::try_from(bytes).map(ByteSize).or(Err(fail("it is larger than 16 EiB")))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, shift) = UNITS.iter().rev().find(|&&(_, shift)| self.0 >> shift > 0).unwrap_or(&UNITS[0]);
        if *shift == 0 {
            return write!(f, "{} B", self.0);
        }
        let name = name.to_ascii_uppercase();
        let tenths = (u128::from(self.0) * 10) >> shift;
        if tenths.is_multiple_of(10) {
            write!(f, "{} {name}iB", tenths / 10)
        } else {
            write!(f, "{}.{} {name}iB", tenths / 10, tenths % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("10GiB", 10 << 30),
            ("512M", 512 << 20),
            ("1.5T", 3 << 39),
            ("4096", 4096),
            (" 4 kb ", 4096),
            ("0", 0),
            ("64TiB", 64 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "ten", "1..5G", "-1", "99999999E", "1Q", "0x10", "1e9", "9999999999999999999"]
        {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.to_string().contains("10GiB"), "{error}");
        }
    }

    #[test]
    fn shows_what_people_read() {
        assert_eq!(ByteSize(10 << 30).to_string(), "10 GiB");
        assert_eq!(ByteSize(3 << 39).to_string(), "1.5 TiB");
        assert_eq!(ByteSize(100).to_string(), "100 B");
    }
}
