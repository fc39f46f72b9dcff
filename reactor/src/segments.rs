//! The bytes of a vectored write or send, and how far it has come.

use bytes::Bytes;

/// The kernel refuses longer vectors with EINVAL; what does not fit follows in the next call.
const IOVECS_MAX: usize = 1024;
/// A single call moves at most this much, so that lengths fit the kernel's 32 bits.
pub(crate) const CALL_BYTES_MAX: usize = 1 << 30;

/// Invariant: `skip` is below `list[first].len()` unless nothing remains.
#[derive(Debug)]
pub(crate) struct Segments {
    list: Vec<Bytes>,
    first: usize,
    skip: usize,
    remaining: usize,
}

impl Segments {
    pub(crate) fn new(list: Vec<Bytes>) -> Self {
        let remaining = list.iter().map(Bytes::len).sum();
        let mut segments = Self { list, first: 0, skip: 0, remaining };
        segments.advance(0);
        segments
    }

    pub(crate) fn remaining(&self) -> usize {
        self.remaining
    }

    /// Notes that `count` more bytes have been moved.
    pub(crate) fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining, "the kernel moved {count} bytes of {}", self.remaining);
        self.remaining -= count;
        self.skip += count;
        while self.first < self.list.len() && self.skip >= self.list[self.first].len() {
            self.skip -= self.list[self.first].len();
            self.first += 1;
        }
    }

    /// Describes the remaining bytes, up to the limits of one call. Segments that lie next to
    /// each other in memory become one entry: fewer entries cost the kernel less, and may save
    /// the device a scatter list.
    pub(crate) fn describe(&self, iovecs: &mut Vec<libc::iovec>) {
        iovecs.clear();
        let mut room = CALL_BYTES_MAX;
        let mut skip = self.skip;
        for segment in &self.list[self.first..] {
            let rest = &segment[skip..];
            skip = 0;
            let part = &rest[..rest.len().min(room)];
            if part.is_empty() {
                continue;
            }
            room -= part.len();
            let full = iovecs.len() == IOVECS_MAX;
            match iovecs.last_mut() {
                Some(last) if last.iov_base.addr() + last.iov_len == part.as_ptr().addr() => {
                    last.iov_len += part.len();
                }
                _ if full => return,
                _ => iovecs
                    .push(libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }),
            }
            if room == 0 {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(segments: &Segments) -> Vec<usize> {
        let mut iovecs = Vec::new();
        segments.describe(&mut iovecs);
        iovecs.iter().map(|v| v.iov_len).collect()
    }

    #[test]
    fn adjacent_segments_merge_and_others_do_not() {
        let whole = Bytes::from(vec![1; 100]);
        let list = vec![whole.slice(..10), whole.slice(10..50), whole.slice(60..100), Bytes::new()];
        let mut segments = Segments::new(list);
        assert_eq!(lengths(&segments), [50, 40]);
        segments.advance(10);
        assert_eq!(lengths(&segments), [40, 40]);
        segments.advance(41);
        assert_eq!(lengths(&segments), [39]);
        assert_eq!(segments.remaining(), 39);
        segments.advance(39);
        assert!(lengths(&segments).is_empty());
    }

    #[test]
    fn a_long_vector_is_cut_at_the_kernels_limit() {
        let whole = Bytes::from(vec![1; 3 * 2000]);
        let list: Vec<_> = (0..2000).map(|i| whole.slice(3 * i..3 * i + 2)).collect();
        let mut segments = Segments::new(list);
        assert_eq!(lengths(&segments).len(), IOVECS_MAX);
        segments.advance(2 * IOVECS_MAX);
        assert_eq!(lengths(&segments).len(), 2000 - IOVECS_MAX);
    }

    #[test]
    fn leading_empty_segments_are_passed_over() {
        let segments = Segments::new(vec![Bytes::new(), Bytes::new(), Bytes::from_static(b"x")]);
        assert_eq!(lengths(&segments), [1]);
        assert_eq!(Segments::new(vec![Bytes::new()]).remaining(), 0);
    }
}
