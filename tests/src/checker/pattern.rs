//! Units that describe themselves.
//!
//! Layout, little-endian: magic (8), seed (8), unit (8), version (4), CRC-32 of the rest of the
//! unit (4), then bytes drawn from seed, unit and version. A unit put together from two versions
//! fails its checksum; a unit at the wrong place, or of another run, names itself.

use crate::Random;

const MAGIC: [u8; 8] = *b"trvtunit";
const HEADER: usize = 32;

/// What stands in a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    Zeros,
    Version(u32),
    /// Neither: with what is wrong.
    Damaged(&'static str),
}

pub(super) fn fill(bytes: &mut [u8], seed: u64, unit: u64, version: u32) {
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&seed.to_le_bytes());
    bytes[16..24].copy_from_slice(&unit.to_le_bytes());
    bytes[24..28].copy_from_slice(&version.to_le_bytes());
    Random::new(seed ^ unit.rotate_left(32) ^ u64::from(version)).fill(&mut bytes[HEADER..]);
    let crc = checksum(bytes);
    bytes[28..HEADER].copy_from_slice(&crc.to_le_bytes());
}

pub(super) fn parse(bytes: &[u8], seed: u64, unit: u64) -> Content {
    if bytes.iter().all(|&b| b == 0) {
        return Content::Zeros;
    }
    if bytes[..8] != MAGIC {
        return Content::Damaged("it does not begin like a unit");
    }
    if bytes[28..HEADER] != checksum(bytes).to_le_bytes() {
        return Content::Damaged("it is mixed from several writes: its checksum is wrong");
    }
    if bytes[8..16] != seed.to_le_bytes() {
        return Content::Damaged("it is of another run");
    }
    if bytes[16..24] != unit.to_le_bytes() {
        return Content::Damaged("it belongs at another place");
    }
    Content::Version(u32::from_le_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]))
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..28]);
    hasher.update(&bytes[HEADER..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_told_from_every_damage() {
        for size in [512, 4096] {
            let mut unit = vec![0; size];
            assert_eq!(parse(&unit, 7, 9), Content::Zeros);
            fill(&mut unit, 7, 9, 3);
            assert_eq!(parse(&unit, 7, 9), Content::Version(3));
            assert!(matches!(parse(&unit, 8, 9), Content::Damaged(_)));
            assert!(matches!(parse(&unit, 7, 10), Content::Damaged(_)));
            let mut newer = vec![0; size];
            fill(&mut newer, 7, 9, 4);
            let half = size / 2;
            let torn = [&newer[..half], &unit[half..]].concat();
            assert!(matches!(parse(&torn, 7, 9), Content::Damaged(_)));
            for at in 0..size {
                let mut flipped = unit.clone();
                flipped[at] ^= 1;
                assert!(matches!(parse(&flipped, 7, 9), Content::Damaged(_)), "byte {at}");
            }
        }
    }
}
