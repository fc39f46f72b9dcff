//! A consumer's bytes as whole blocks, copied only where a segment's boundary splits a block.

use bytes::{Bytes, BytesMut};
use trivet_model::checksum::block_crcs;
use trivet_model::{BLOCK_SIZE, BlockCrc};

/// Takes bytes off the front of a list of segments, without copying.
#[derive(Debug)]
pub(super) struct SegmentCursor {
    rest: std::vec::IntoIter<Bytes>,
    current: Bytes,
}

impl SegmentCursor {
    pub(super) fn new(segments: Vec<Bytes>) -> Self {
        Self { rest: segments.into_iter(), current: Bytes::new() }
    }

    /// The next `length` bytes.
    ///
    /// # Panics
    /// When fewer are left.
    pub(super) fn take(&mut self, mut length: usize) -> Vec<Bytes> {
        let mut taken = Vec::with_capacity(1);
        while length > 0 {
            if self.current.is_empty() {
                self.current = self.rest.next().expect("segments hold what the request says");
                continue;
            }
            let part = self.current.split_to(length.min(self.current.len()));
            length -= part.len();
            taken.push(part);
        }
        taken
    }
}

/// Regroups segments so that each holds whole blocks.
///
/// # Panics
/// When they do not add up to whole blocks.
pub(super) fn whole_blocks(segments: Vec<Bytes>) -> Vec<Bytes> {
    if segments.iter().all(|segment| segment.len().is_multiple_of(BLOCK_SIZE) && !segment.is_empty()) {
        return segments;
    }
    let mut blocks = Vec::with_capacity(segments.len());
    let mut split = BytesMut::new();
    for mut segment in segments {
        if !split.is_empty() {
            let missing = segment.split_to(segment.len().min(BLOCK_SIZE - split.len()));
            split.extend_from_slice(&missing);
            if split.len() == BLOCK_SIZE {
                blocks.push(split.split().freeze());
            }
        }
        let whole = segment.split_to(segment.len() / BLOCK_SIZE * BLOCK_SIZE);
        if !whole.is_empty() {
            blocks.push(whole);
        }
        if !segment.is_empty() {
            split.reserve(BLOCK_SIZE);
            split.extend_from_slice(&segment);
        }
    }
    assert!(split.is_empty(), "segments add up to whole blocks");
    blocks
}

/// The checksums of segments of whole blocks.
pub(super) fn checksums(segments: &[Bytes], count: usize) -> Vec<BlockCrc> {
    let mut crcs = Vec::with_capacity(count);
    for segment in segments {
        crcs.extend(block_crcs(segment));
    }
    crcs
}

/// One block's contents with `patch` laid over it from byte `at`.
pub(super) fn patched(block: &[Bytes], at: usize, patch: &[Bytes]) -> Bytes {
    let mut merged = BytesMut::with_capacity(BLOCK_SIZE);
    block.iter().for_each(|part| merged.extend_from_slice(part));
    assert_eq!(merged.len(), BLOCK_SIZE, "a patch is laid over one block");
    let mut at = at;
    for part in patch {
        merged[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    merged.freeze()
}

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Appends `length` zero bytes, without copying.
pub(super) fn push_zeros(segments: &mut Vec<Bytes>, mut length: usize) {
    while length > 0 {
        let part = length.min(ZEROS.len());
        segments.push(Bytes::from_static(&ZEROS[..part]));
        length -= part;
    }
}

/// Cuts `segments` down to `length` bytes from byte `skip`.
pub(super) fn trim(segments: Vec<Bytes>, skip: usize, length: usize) -> Vec<Bytes> {
    let mut cursor = SegmentCursor::new(segments);
    cursor.take(skip);
    cursor.take(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined(segments: &[Bytes]) -> Vec<u8> {
        segments.iter().flat_map(|segment| segment.iter().copied()).collect()
    }

    /// Cuts a pattern of whole blocks at arbitrary places, empty segments included.
    fn cut(blocks: usize, cuts: &[usize]) -> Vec<Bytes> {
        let data: Vec<u8> = (0..blocks * BLOCK_SIZE).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (data.len() + 1)).collect();
        cuts.extend([0, data.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| Bytes::copy_from_slice(&data[pair[0]..pair[1]])).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn regrouping_keeps_the_bytes(blocks in 1usize..6, cuts in prop::collection::vec(any::<usize>(), 0..9)) {
            let segments = cut(blocks, &cuts);
            let expected = joined(&segments);
            let regrouped = whole_blocks(segments);
            prop_assert!(regrouped.iter().all(|s| !s.is_empty() && s.len().is_multiple_of(BLOCK_SIZE)));
            prop_assert_eq!(joined(&regrouped), expected);
        }

        #[test]
        fn trimming_is_slicing(cuts in prop::collection::vec(any::<usize>(), 0..9), skip in 0usize..5000, length in 0usize..5000) {
            let segments = cut(3, &cuts);
            let expected = joined(&segments)[skip..skip + length].to_vec();
            prop_assert_eq!(joined(&trim(segments, skip, length)), expected);
        }
    }

    #[test]
    fn aligned_segments_are_passed_on_uncopied() {
        let data = Bytes::from(vec![1u8; 4 * BLOCK_SIZE]);
        let address = data.as_ptr();
        let regrouped = whole_blocks(vec![data.slice(..BLOCK_SIZE), data.slice(BLOCK_SIZE..)]);
        assert_eq!(regrouped[0].as_ptr(), address);
        assert_eq!(regrouped[1].as_ptr(), address.wrapping_add(BLOCK_SIZE));
        let split = whole_blocks(vec![data.slice(..100), data.slice(100..)]);
        assert_eq!(split[1].as_ptr(), address.wrapping_add(BLOCK_SIZE), "only the split block is copied");
    }
}
