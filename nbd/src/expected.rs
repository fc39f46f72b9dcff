//! Requests in flight, and what has come of their answers.

use crate::{ProtocolError, Request};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A finished request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finished {
    /// The handle it was sent with.
    pub handle: u64,
    /// The error number; 0 is success.
    pub error: u32,
    /// What was read, as long as was asked for; empty for anything else, and after an error.
    pub data: Bytes,
    /// What a question for allocation was answered; empty for anything else, and after an error.
    pub extents: Vec<Extent>,
}

/// A run of bytes alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Bytes.
    pub length: u32,
    /// Whether they surely read as zeros.
    pub zero: bool,
}

const CONTEXT_BYTES: usize = 4;
const EXTENT_BYTES: usize = 8;
const STATE_ZERO: u32 = 1 << 1;

#[derive(Debug)]
enum Answer {
    Nothing,
    Forgotten,
    Data(Vec<u8>),
    Extents(Vec<Extent>),
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Expected {
    offset: u64,
    length: u64,
    answer: Answer,
    /// Runs of bytes that have come, first to behind the last, by their first.
    placed: BTreeMap<u64, u64>,
    placed_bytes: u64,
    error: u32,
}

impl Expected {
    pub(crate) fn new(request: &Request) -> Self {
        let (offset, length, answer) = match *request {
            Request::Read { offset, length } => {
                // Only what we asked for is allocated, whatever the server says.
                (offset, length, Answer::Data(vec![0; usize::try_from(length).unwrap_or(0)]))
            }
            Request::ReadAndForget { offset, length } => (offset, length, Answer::Forgotten),
            Request::Allocation { offset, length } => (offset, length, Answer::Extents(Vec::new())),
            Request::Write { .. } | Request::WriteZeroes { .. } | Request::Flush => (0, 0, Answer::Nothing),
        };
        Self { offset, length: u64::from(length), answer, placed: BTreeMap::new(), placed_bytes: 0, error: 0 }
    }

    /// Bytes that a simple reply brings.
    pub(crate) const fn read_length(&self) -> u64 {
        match self.answer {
            Answer::Data(_) | Answer::Forgotten => self.length,
            Answer::Nothing | Answer::Extents(_) => 0,
        }
    }

    pub(crate) const fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) const fn is_question(&self) -> bool {
        matches!(self.answer, Answer::Extents(_))
    }

    pub(crate) fn fail(&mut self, error: u32) {
        self.error = error;
    }

    /// Claims a run of bytes, which comes now or is zeros. None may come twice.
    pub(crate) fn claim(&mut self, handle: u64, offset: u64, length: u64) -> Result<(), ProtocolError> {
        let bad = ProtocolError::BadPlace { handle, offset, length };
        let Some(end) = offset.checked_add(length).filter(|_| length > 0) else { return Err(bad) };
        let asked_end = self.offset.saturating_add(self.read_length());
        let before = self.placed.range(..end).next_back().map(|(&start, &end)| (start, end));
        if offset < self.offset || end > asked_end || before.is_some_and(|(_, other)| other > offset) {
            return Err(bad);
        }
        self.placed_bytes += length;
        match before.filter(|(_, other)| *other == offset) {
            Some((start, _)) => self.placed.insert(start, end),
            None => self.placed.insert(offset, end),
        };
        Ok(())
    }

    /// Puts bytes where they were claimed.
    pub(crate) fn put(&mut self, offset: u64, bytes: &[u8]) {
        let Answer::Data(data) = &mut self.answer else { return };
        let at = usize::try_from(offset - self.offset).unwrap_or(usize::MAX);
        match at.checked_add(bytes.len()).and_then(|end| data.get_mut(at..end)) {
            Some(place) => place.copy_from_slice(bytes),
            None => unreachable!("what is put was claimed"),
        }
    }

    /// Takes the answer to a question for allocation.
    pub(crate) fn take_extents(&mut self, handle: u64, chunk: &[u8]) -> Result<(), ProtocolError> {
        let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        let bad = ProtocolError::BadChunk { handle, kind: 5, length };
        let Some((_, descriptors)) = chunk.split_first_chunk::<CONTEXT_BYTES>() else { return Err(bad) };
        let (descriptors, []) = descriptors.as_chunks::<EXTENT_BYTES>() else { return Err(bad) };
        let Answer::Extents(extents) = &mut self.answer else { return Err(bad) };
        if descriptors.is_empty() || !extents.is_empty() {
            return Err(bad);
        }
        let mut rest = self.length;
        for [l0, l1, l2, l3, flags @ ..] in descriptors {
            let length = u32::from_be_bytes([*l0, *l1, *l2, *l3]);
            if length == 0 {
                return Err(bad);
            }
            // The last one may reach beyond what was asked about.
            let kept = u32::try_from(u64::from(length).min(rest)).unwrap_or(length);
            rest -= u64::from(kept);
            if kept > 0 {
                extents.push(Extent { length: kept, zero: u32::from_be_bytes(*flags) & STATE_ZERO != 0 });
            }
        }
        Ok(())
    }

    pub(crate) fn finish(self, handle: u64) -> Result<Finished, ProtocolError> {
        if self.error != 0 {
            return Ok(Finished { handle, error: self.error, data: Bytes::new(), extents: Vec::new() });
        }
        let wanted = self.read_length();
        if self.placed_bytes != wanted {
            return Err(ProtocolError::Incomplete { handle, found: self.placed_bytes, wanted });
        }
        let (data, extents) = match self.answer {
            Answer::Data(data) => (data.into(), Vec::new()),
            Answer::Extents(extents) if extents.is_empty() => {
                return Err(ProtocolError::Incomplete { handle, found: 0, wanted: self.length });
            }
            Answer::Extents(extents) => (Bytes::new(), extents),
            Answer::Nothing | Answer::Forgotten => (Bytes::new(), Vec::new()),
        };
        Ok(Finished { handle, error: 0, data, extents })
    }
}
