//! Replies from the byte stream: simple and structured.

use crate::ProtocolError;
use crate::expected::{Expected, Finished};
use bytes::{Buf, BytesMut};
use std::collections::HashMap;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const SIMPLE_BYTES: usize = 16;
const CHUNK_BYTES: usize = 20;
const FLAG_DONE: u16 = 1;
const KIND_NONE: u16 = 0;
const KIND_OFFSET_DATA: u16 = 1;
const KIND_OFFSET_HOLE: u16 = 2;
const KIND_BLOCK_STATUS: u16 = 5;
const KIND_ERROR: u16 = 1 << 15;
const OFFSET_BYTES: u32 = 8;
const HOLE_BYTES: u32 = OFFSET_BYTES + 4;
/// An error's number and the length of its text.
const ERROR_BYTES: u32 = 6;
/// Longest chunk of data that is believed: the longest read and its offset.
const DATA_BYTES_MAX: u32 = (32 << 20) + OFFSET_BYTES;
/// Longest chunk that is kept until it is whole.
const WHOLE_BYTES_MAX: u32 = 1 << 20;

/// Payload on its way.
#[derive(Clone, Copy, Debug)]
struct Payload {
    handle: u64,
    /// Where the next of its bytes belongs.
    offset: u64,
    left: u64,
    /// Whether the reply ends with it.
    last: bool,
}

/// Where in the stream of replies we are.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    payload: Option<Payload>,
}

impl Replies {
    /// The next finished request, if it has arrived whole.
    pub(crate) fn next(
        &mut self,
        received: &mut BytesMut,
        in_flight: &mut HashMap<u64, Expected>,
    ) -> Result<Option<Finished>, ProtocolError> {
        loop {
            if let Some(payload) = self.payload.take() {
                match Self::take_payload(payload, received, in_flight)? {
                    Err(rest) => {
                        self.payload = Some(rest);
                        return Ok(None);
                    }
                    Ok(finished @ Some(_)) => return Ok(finished),
                    Ok(None) => {}
                }
            }
            let understood = match received.first_chunk::<4>().map(|magic| u32::from_be_bytes(*magic)) {
                None => None,
                Some(SIMPLE_MAGIC) => self.simple(received, in_flight)?,
                Some(STRUCTURED_MAGIC) => self.chunk(received, in_flight)?,
                Some(found) => return Err(ProtocolError::BadMagic { found }),
            };
            match understood {
                None => return Ok(None),
                Some(finished @ Some(_)) => return Ok(finished),
                Some(None) => {}
            }
        }
    }

    /// Puts what has come into its place; what is still to come is the error.
    fn take_payload(
        mut payload: Payload,
        received: &mut BytesMut,
        in_flight: &mut HashMap<u64, Expected>,
    ) -> Result<Result<Option<Finished>, Payload>, ProtocolError> {
        let now = usize::try_from(payload.left).unwrap_or(usize::MAX).min(received.len());
        if let Some(expected) = in_flight.get_mut(&payload.handle) {
            expected.put(payload.offset, &received[..now]);
        }
        received.advance(now);
        payload.offset += now as u64;
        payload.left -= now as u64;
        if payload.left > 0 {
            return Ok(Err(payload));
        }
        if payload.last { finish(payload.handle, in_flight).map(|done| Ok(Some(done))) } else { Ok(Ok(None)) }
    }

    fn simple(
        &mut self,
        received: &mut BytesMut,
        in_flight: &mut HashMap<u64, Expected>,
    ) -> Result<Option<Option<Finished>>, ProtocolError> {
        let Some(mut header) = received.get(4..SIMPLE_BYTES) else { return Ok(None) };
        let error = header.get_u32();
        let handle = header.get_u64();
        received.advance(SIMPLE_BYTES);
        let expected = in_flight.get_mut(&handle).ok_or(ProtocolError::NotAsked { handle })?;
        if error != 0 || expected.read_length() == 0 {
            expected.fail(error);
            return finish(handle, in_flight).map(|done| Some(Some(done)));
        }
        let (offset, left) = (expected.offset(), expected.read_length());
        expected.claim(handle, offset, left)?;
        self.payload = Some(Payload { handle, offset, left, last: true });
        Ok(Some(None))
    }

    /// Nothing if the chunk is not there as far as it must be.
    fn chunk(
        &mut self,
        received: &mut BytesMut,
        in_flight: &mut HashMap<u64, Expected>,
    ) -> Result<Option<Option<Finished>>, ProtocolError> {
        let Some(mut header) = received.get(4..CHUNK_BYTES) else { return Ok(None) };
        let flags = header.get_u16();
        let kind = header.get_u16();
        let handle = header.get_u64();
        let length = header.get_u32();
        let is_data = kind == KIND_OFFSET_DATA;
        if length > if is_data { DATA_BYTES_MAX } else { WHOLE_BYTES_MAX } {
            return Err(ProtocolError::ChunkTooLong { length });
        }
        let bad = ProtocolError::BadChunk { handle, kind, length };
        let expected = in_flight.get_mut(&handle).ok_or(ProtocolError::NotAsked { handle })?;
        let last = flags & FLAG_DONE != 0;
        // Of data only the offset is waited for.
        let waited = if is_data { length.min(OFFSET_BYTES) } else { length };
        let waited = CHUNK_BYTES + usize::try_from(waited).unwrap_or(usize::MAX);
        let Some(mut body) = received.get(CHUNK_BYTES..waited) else { return Ok(None) };
        match kind {
            KIND_NONE if length == 0 && last => {}
            KIND_OFFSET_DATA if length > OFFSET_BYTES => {
                let (offset, left) = (body.get_u64(), u64::from(length - OFFSET_BYTES));
                expected.claim(handle, offset, left)?;
                received.advance(waited);
                self.payload = Some(Payload { handle, offset, left, last });
                return Ok(Some(None));
            }
            KIND_OFFSET_HOLE if length == HOLE_BYTES => {
                let (offset, hole) = (body.get_u64(), u64::from(body.get_u32()));
                expected.claim(handle, offset, hole)?;
            }
            KIND_BLOCK_STATUS if expected.is_question() => expected.take_extents(handle, body)?,
            kind if kind & KIND_ERROR != 0 && length >= ERROR_BYTES => {
                // An error that has no number is one all the same.
                expected.fail(body.get_u32().max(1));
            }
            _ => return Err(bad),
        }
        received.advance(waited);
        if last { finish(handle, in_flight).map(|done| Some(Some(done))) } else { Ok(Some(None)) }
    }
}

fn finish(handle: u64, in_flight: &mut HashMap<u64, Expected>) -> Result<Finished, ProtocolError> {
    let expected = in_flight.remove(&handle).ok_or(ProtocolError::NotAsked { handle })?;
    expected.finish(handle)
}
