//! Replies from the byte stream: simple and structured, payload skipped. Pure.

use super::handshake::bad;
use bytes::{Buf, BytesMut};
use std::collections::HashMap;
use std::io;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const SIMPLE_BYTES: usize = 16;
const CHUNK_BYTES: usize = 20;
const CHUNK_DONE: u16 = 1;
const CHUNK_ERROR: u16 = 1 << 15;
/// Longest chunk that is believed: the longest read and its offset.
const CHUNK_BYTES_MAX: u32 = (32 << 20) + 8;

/// A finished request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Finished {
    /// The handle it was sent with.
    pub(crate) handle: u64,
    /// The error number; 0 is success.
    pub(crate) error: u32,
}

/// What has arrived and is not yet understood.
#[derive(Debug, Default)]
pub(super) struct Replies {
    pub(super) received: BytesMut,
    /// Payload still to be thrown away.
    skip: usize,
    /// Finished with the end of that payload.
    after_skip: Option<Finished>,
    /// Errors that chunks have brought, by handle, until the reply's last chunk.
    errors: HashMap<u64, u32>,
}

impl Replies {
    /// The next finished request, if it has arrived whole. `read_length` answers how many bytes a
    /// simple reply to this handle brings: what the request asked for, 0 if it was no read.
    pub(super) fn next(&mut self, read_length: impl Fn(u64) -> usize) -> io::Result<Option<Finished>> {
        loop {
            let skipped = self.skip.min(self.received.len());
            self.received.advance(skipped);
            self.skip -= skipped;
            if self.skip > 0 {
                return Ok(None);
            }
            if let Some(finished) = self.after_skip.take() {
                return Ok(Some(finished));
            }
            let understood = match self.received.first_chunk::<4>().map(|magic| u32::from_be_bytes(*magic)) {
                None => false,
                Some(SIMPLE_MAGIC) => self.simple(&read_length),
                Some(STRUCTURED_MAGIC) => self.chunk()?,
                Some(_) => return Err(bad("the server's reply makes no sense")),
            };
            if !understood {
                return Ok(None);
            }
        }
    }

    fn simple(&mut self, read_length: impl Fn(u64) -> usize) -> bool {
        let Some(mut header) = self.received.get(4..SIMPLE_BYTES) else { return false };
        let error = header.get_u32();
        let handle = header.get_u64();
        self.received.advance(SIMPLE_BYTES);
        self.skip = if error == 0 { read_length(handle) } else { 0 };
        self.after_skip = Some(Finished { handle, error });
        true
    }

    fn chunk(&mut self) -> io::Result<bool> {
        let Some(mut header) = self.received.get(4..CHUNK_BYTES) else { return Ok(false) };
        let flags = header.get_u16();
        let kind = header.get_u16();
        let handle = header.get_u64();
        let length = header.get_u32();
        if length > CHUNK_BYTES_MAX {
            return Err(bad("the server's reply is too long"));
        }
        if kind & CHUNK_ERROR != 0 {
            let Some(mut number) = self.received.get(CHUNK_BYTES..CHUNK_BYTES + 4) else { return Ok(false) };
            self.errors.insert(handle, number.get_u32());
        }
        self.received.advance(CHUNK_BYTES);
        self.skip = usize::try_from(length).or(Err(bad("the server's reply is too long")))?;
        if flags & CHUNK_DONE != 0 {
            let error = self.errors.remove(&handle).unwrap_or(0);
            self.after_skip = Some(Finished { handle, error });
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn simple(handle: u64, error: u32, data: &[u8]) -> Vec<u8> {
        [&SIMPLE_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &handle.to_be_bytes(), data].concat()
    }

    fn chunk(handle: u64, kind: u16, flags: u16, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap().to_be_bytes();
        let fields = [&flags.to_be_bytes()[..], &kind.to_be_bytes(), &handle.to_be_bytes(), &length].concat();
        [&STRUCTURED_MAGIC.to_be_bytes()[..], &fields, data].concat()
    }

    proptest! {
        #[test]
        fn replies_are_found_however_the_stream_is_cut(cuts in proptest::collection::vec(1..40_usize, 1..200)) {
            let stream = [
                simple(1, 0, &[7; 100]),
                chunk(2, 1, 0, &[1; 58]),
                simple(3, 5, &[]),
                chunk(4, CHUNK_ERROR | 1, CHUNK_DONE, &[0, 0, 0, 28, 0, 0]),
                chunk(2, 2, CHUNK_DONE, &[0; 12]),
                chunk(5, CHUNK_ERROR | 2, 0, &[0, 0, 0, 5, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
                chunk(5, 0, CHUNK_DONE, &[]),
            ]
            .concat();
            let mut replies = Replies::default();
            let mut found = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.into_iter().cycle() {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                rest = later;
                replies.received.extend_from_slice(now);
                while let Some(finished) = replies.next(|handle| if handle == 1 { 100 } else { 0 }).unwrap() {
                    found.push((finished.handle, finished.error));
                }
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, [(1, 0), (3, 5), (4, 28), (2, 0), (5, 5)]);
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        let mut replies = Replies::default();
        replies.received.extend_from_slice(b"GET / HTTP/1.1");
        assert!(replies.next(|_| 0).is_err());
        let mut long = Replies::default();
        long.received.extend_from_slice(&STRUCTURED_MAGIC.to_be_bytes());
        long.received.extend_from_slice(&[0xff; 16]);
        assert!(long.next(|_| 0).is_err());
    }
}
