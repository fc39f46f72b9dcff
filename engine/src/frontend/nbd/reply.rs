//! Replies of the transmission phase. Payloads are passed on by reference, never copied.

use super::BLOCK_BYTES;
use super::context::Context;
use super::output::Output;
use super::protocol::{Errno, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};
use super::requests::Request;
use crate::request::IoError;
use bytes::Bytes;

/// Between data, zeros are sent as a hole from this length on: a chunk has its price.
const HOLE_BYTES_MIN: u64 = 32 * 1024;
/// Most extents in a reply: the client asks again from where it ends.
const EXTENTS_MAX: usize = 16 * 1024;
const CHUNK_HEAD_BYTES: usize = 4 + 2 + 2 + 8 + 4;

/// A run of a read's bytes: zeros, or data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    length: u64,
    zero: bool,
}

/// Encodes replies; holds nothing but room to work in.
#[derive(Debug, Default)]
pub(super) struct Replies {
    runs: Vec<Run>,
}

impl Replies {
    /// Success without payload, or an error where structured replies were not agreed on.
    pub(super) fn simple(output: &mut Output, cookie: u64, error: u32) {
        output.head(16).u32(SIMPLE_REPLY_MAGIC).u32(error).u64(cookie).end();
    }

    /// An error, with a reason for people where the client can take it.
    pub(super) fn error(output: &mut Output, structured: bool, cookie: u64, errno: Errno, reason: &str) {
        if !structured {
            return Self::simple(output, cookie, errno as u32);
        }
        let mut end = reason.len().min(1024);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let length = u16::try_from(end).expect("cut above");
        let reason = &reason.as_bytes()[..end];
        chunk_head(output, chunk::FLAG_DONE, chunk::ERROR, cookie, 6 + u32::from(length));
        output.head(6 + reason.len()).u32(errno as u32).u16(length).slice(reason).end();
    }

    /// A read's data after a simple head.
    pub(super) fn simple_data(output: &mut Output, cookie: u64, segments: impl Iterator<Item = Bytes>) {
        Self::simple(output, cookie, 0);
        segments.for_each(|segment| output.payload(segment));
    }

    /// A read's data as the one content chunk of a reply: a hole if there is nothing but zeros.
    pub(super) fn unfragmented(
        output: &mut Output,
        request: &Request,
        segments: impl Iterator<Item = Bytes>,
    ) {
        let segments: Vec<Bytes> = segments.collect();
        if segments.iter().all(|segment| is_zero(segment)) {
            hole_head(output, chunk::FLAG_DONE, request.cookie, request.offset, request.length);
            return;
        }
        data_head(output, chunk::FLAG_DONE, request.cookie, request.offset, request.length);
        segments.into_iter().for_each(|segment| output.payload(segment));
    }

    /// A part of a read's data, as chunks of data and of holes. `last` completes the reply.
    pub(super) fn chunks(
        &mut self,
        output: &mut Output,
        cookie: u64,
        offset: u64,
        segments: Vec<Bytes>,
        last: bool,
    ) {
        find_runs(offset, &segments, &mut self.runs);
        let mut segments = segments.into_iter();
        let mut segment = Bytes::new();
        let mut at = offset;
        for (i, run) in self.runs.iter().enumerate() {
            let flags = if last && i + 1 == self.runs.len() { chunk::FLAG_DONE } else { 0 };
            let length = u32::try_from(run.length).expect("a part is short");
            if run.zero {
                hole_head(output, flags, cookie, at, length);
            } else {
                data_head(output, flags, cookie, at, length);
            }
            at += run.length;
            let mut left = length as usize;
            while left > 0 {
                if segment.is_empty() {
                    segment = segments.next().expect("runs are as long as the segments");
                }
                let piece = segment.split_to(left.min(segment.len()));
                left -= piece.len();
                if !run.zero {
                    output.payload(piece);
                }
            }
        }
    }

    /// Extents of a context, cut to what was asked for; the last context's complete the reply.
    pub(super) fn block_status(
        output: &mut Output,
        request: &Request,
        context: Context,
        one_extent: bool,
        extents: &[(u64, bool)],
    ) {
        let mut merged: Vec<(u32, bool)> = Vec::new();
        let mut left = request.length;
        for &(length, is) in extents {
            let length = u32::try_from(length).unwrap_or(u32::MAX).min(left);
            left -= length;
            let full = merged.len() == if one_extent { 1 } else { EXTENTS_MAX };
            match merged.last_mut() {
                _ if length == 0 => {}
                Some((sum, same)) if *same == is => *sum += length,
                Some(_) if full => break,
                _ => merged.push((length, is)),
            }
        }
        assert!(!merged.is_empty(), "a reply about a range covers at least a sector");
        let length = u32::try_from(4 + 8 * merged.len()).expect("the number of extents is bounded");
        let flags = if request.is_over() { chunk::FLAG_DONE } else { 0 };
        chunk_head(output, flags, chunk::BLOCK_STATUS, request.cookie, length);
        let mut head = output.head(length as usize).u32(context.id());
        for (length, is) in merged {
            head = head.u32(length).u32(context.flags(is));
        }
        head.end();
    }
}

/// The protocol's number for a volume's error.
pub(super) fn errno(error: &IoError) -> Errno {
    match error {
        IoError::Invalid(_) => Errno::Invalid,
        IoError::NoSpace => Errno::NoSpace,
        IoError::Medium { .. } => Errno::Io,
        IoError::Fenced | IoError::Closed => Errno::Shutdown,
    }
}

fn chunk_head(output: &mut Output, flags: u16, kind: u16, cookie: u64, length: u32) {
    let head = output.head(CHUNK_HEAD_BYTES).u32(STRUCTURED_REPLY_MAGIC);
    head.u16(flags).u16(kind).u64(cookie).u32(length).end();
}

fn data_head(output: &mut Output, flags: u16, cookie: u64, offset: u64, length: u32) {
    chunk_head(output, flags, chunk::OFFSET_DATA, cookie, 8 + length);
    output.head(8).u64(offset).end();
}

fn hole_head(output: &mut Output, flags: u16, cookie: u64, offset: u64, length: u32) {
    chunk_head(output, flags, chunk::OFFSET_HOLE, cookie, 12);
    output.head(12).u64(offset).u32(length).end();
}

/// Data that is not all zeros nearly always shows it in its first bytes; zeros are compared at
/// memory speed.
fn is_zero(data: &[u8]) -> bool {
    match data {
        [] => true,
        [first, rest @ ..] => *first == 0 && *rest == data[..rest.len()],
    }
}

/// Splits segments into runs, at block boundaries of the export. Zeros too short to be worth a
/// chunk count as data, unless there is nothing else.
fn find_runs(offset: u64, segments: &[Bytes], runs: &mut Vec<Run>) {
    runs.clear();
    let mut at = offset;
    for segment in segments {
        let mut rest = segment.as_ref();
        while !rest.is_empty() {
            let to_block_end = usize::try_from(BLOCK_BYTES - at % BLOCK_BYTES).unwrap_or(usize::MAX);
            let (piece, after) = rest.split_at(to_block_end.min(rest.len()));
            push_run(runs, Run { length: piece.len() as u64, zero: is_zero(piece) });
            at += piece.len() as u64;
            rest = after;
        }
    }
    if runs.len() <= 1 {
        return;
    }
    let mut kept = 0;
    for i in 0..runs.len() {
        let run = Run { zero: runs[i].zero && runs[i].length >= HOLE_BYTES_MIN, ..runs[i] };
        if kept > 0 && runs[kept - 1].zero == run.zero {
            runs[kept - 1].length += run.length;
        } else {
            runs[kept] = run;
            kept += 1;
        }
    }
    runs.truncate(kept);
}

fn push_run(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.zero == run.zero => last.length += run.length,
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(offset: u64, segments: &[&[u8]]) -> Vec<(u64, bool)> {
        let segments: Vec<Bytes> = segments.iter().map(|s| Bytes::copy_from_slice(s)).collect();
        let mut runs = Vec::new();
        find_runs(offset, &segments, &mut runs);
        runs.iter().map(|run| (run.length, run.zero)).collect()
    }

    #[test]
    fn zeros_between_data_become_holes_when_long() {
        let zeros = vec![0; 64 * 1024];
        let ones = vec![1; 8192];
        assert_eq!(runs(0, &[&zeros[..512]]), [(512, true)]);
        assert_eq!(runs(0, &[&zeros, &zeros]), [(128 * 1024, true)]);
        assert_eq!(runs(0, &[&ones, &zeros, &ones]), [(8192, false), (64 * 1024, true), (8192, false)]);
        assert_eq!(runs(0, &[&ones, &zeros[..4096], &ones]), [(8192 + 4096 + 8192, false)]);
        assert_eq!(runs(512, &[&zeros, &ones]), [(64 * 1024, true), (8192, false)]);
        assert_eq!(runs(0, &[&zeros, &zeros[..1], &[9]]), [(64 * 1024 + 1, true), (1, false)]);
    }

    #[test]
    fn zero_is_every_byte_zero() {
        assert!(is_zero(&[]) && is_zero(&[0]) && is_zero(&[0; 4097]));
        for i in [0, 1, 7, 4095, 4096] {
            let mut data = [0; 4097];
            data[i] = 1;
            assert!(!is_zero(&data));
        }
    }
}
