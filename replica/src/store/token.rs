//! The store's names for its operations in flight: kind (8 bits) ‖ number (40) ‖ part (16).

use trivet_disk::DiskToken;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Batch = 1,
    Read = 2,
    Flush = 3,
    Extend = 4,
}

const NUMBER_BITS: u32 = 40;
const PART_BITS: u32 = 16;

pub(super) fn token(kind: Kind, number: u64, part: u32) -> DiskToken {
    assert!(part < 1 << PART_BITS, "an operation has at most 65,536 parts");
    let number = number & ((1 << NUMBER_BITS) - 1);
    DiskToken((kind as u64) << (NUMBER_BITS + PART_BITS) | number << PART_BITS | u64::from(part))
}

/// Kind, number and part of a token made here.
pub(super) fn parse(token: DiskToken) -> (Option<Kind>, u64, usize) {
    let kind = match token.0 >> (NUMBER_BITS + PART_BITS) {
        1 => Some(Kind::Batch),
        2 => Some(Kind::Read),
        3 => Some(Kind::Flush),
        4 => Some(Kind::Extend),
        _ => None,
    };
    let number = token.0 >> PART_BITS & ((1 << NUMBER_BITS) - 1);
    let part = usize::try_from(token.0 & ((1 << PART_BITS) - 1)).unwrap_or(usize::MAX);
    (kind, number, part)
}
