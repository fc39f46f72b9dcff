//! What tells an export from another one of the same size: how it begins and how it ends, where partition
//! tables and file systems keep their identities. NBD itself has nothing that stays the same from one
//! connection to the next.

use bytes::Bytes;

/// What is looked at of either end, at most; the last run begins where a block does.
const END_BYTES: u64 = 64 << 10;
const ALIGNMENT: u64 = 4096;

/// The two runs of bytes, offset and length, that are looked at of an export of so many bytes.
#[must_use]
pub fn fingerprint_runs(size: u64) -> [(u64, u32); 2] {
    let start = size.saturating_sub(END_BYTES) / ALIGNMENT * ALIGNMENT;
    let short = |length: u64| u32::try_from(length).unwrap_or(u32::MAX);
    [(0, short(size.min(END_BYTES))), (start, short(size - start))]
}

/// The fingerprint of what those runs hold.
#[must_use]
pub fn fingerprint(runs: [&Bytes; 2]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    runs.into_iter().for_each(|run| hasher.update(run));
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_ends_count() {
        let runs = ["begins", "ends", "ENDS"].map(|text| Bytes::from_static(text.as_bytes()));
        let of = |last: usize| fingerprint([&runs[0], &runs[last]]);
        assert_eq!(of(1), crc32fast::hash(b"beginsends"));
        assert_ne!(of(1), of(2));
    }

    proptest! {
        #[test]
        fn runs_lie_within_and_reach_both_ends(size in 1u64..1 << 50) {
            let [(first, short), (last, long)] = fingerprint_runs(size);
            prop_assert_eq!((first, last % ALIGNMENT), (0, 0));
            prop_assert!(u64::from(short) == size.min(END_BYTES));
            prop_assert_eq!(last + u64::from(long), size);
            prop_assert!(u64::from(long) < END_BYTES + ALIGNMENT);
        }
    }
}
