//! Reading simple and structured replies.

use super::handshake::{protocol, read_array};
use super::transport::Transport;
use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Mutex, mpsc};

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const CHUNK_BYTES_MAX: u32 = 64 << 20;

/// A request's answer.
#[derive(Debug)]
pub struct Reply {
    /// The request's.
    pub handle: u64,
    /// NBD's error number; 0 is success.
    pub error: u32,
    /// What was read.
    pub data: Vec<u8>,
    /// What `NBD_CMD_BLOCK_STATUS` answered.
    pub extents: Vec<Extent>,
}

/// A run of bytes alike, in the answer to `NBD_CMD_BLOCK_STATUS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Bytes.
    pub length: u32,
    /// `NBD_STATE_HOLE`.
    pub hole: bool,
    /// `NBD_STATE_ZERO`.
    pub zero: bool,
}

/// A request in flight, and what has come of its answer.
#[derive(Debug)]
pub(super) struct Expected {
    offset: u64,
    data: Vec<u8>,
    /// Which bytes have come, to find those that the server forgot.
    received: usize,
    error: u32,
    extents: Vec<Extent>,
}

impl Expected {
    pub(super) fn new(offset: u64, read_bytes: u32) -> Self {
        // A pattern that no answer holds by chance.
        let data = vec![0xa5; usize::try_from(read_bytes).expect("64-bit machines only")];
        Self { offset, data, received: 0, error: 0, extents: Vec::new() }
    }

    fn place(&mut self, offset: u64, length: usize) -> io::Result<&mut [u8]> {
        let at = offset.checked_sub(self.offset).and_then(|at| usize::try_from(at).ok());
        self.received += length;
        at.and_then(|at| self.data.get_mut(at..at.checked_add(length)?))
            .ok_or_else(|| protocol(format!("a chunk of {length} bytes at {offset} was not asked for")))
    }

    fn into_reply(self, handle: u64) -> io::Result<Reply> {
        if self.error == 0 && self.received != self.data.len() {
            return Err(protocol(format!("{} of {} bytes came", self.received, self.data.len())));
        }
        Ok(Reply { handle, error: self.error, data: self.data, extents: self.extents })
    }
}

/// Reads replies until the connection ends; the end itself is the last thing sent.
pub(super) fn read_all(
    mut transport: Transport,
    expected: &Mutex<HashMap<u64, Expected>>,
    replies: &mpsc::Sender<io::Result<Reply>>,
) {
    loop {
        let result = read_chunk(&mut transport, expected).transpose();
        let ended = matches!(result, Some(Err(_)));
        if let Some(result) = result
            && (replies.send(result).is_err() || ended)
        {
            return;
        }
    }
}

/// One chunk; a reply when it was the last of one.
fn read_chunk(
    transport: &mut Transport,
    expected: &Mutex<HashMap<u64, Expected>>,
) -> io::Result<Option<Reply>> {
    match u32::from_be_bytes(read_array(transport)?) {
        SIMPLE_MAGIC => {
            let error = u32::from_be_bytes(read_array(transport)?);
            let handle = u64::from_be_bytes(read_array(transport)?);
            let mut entry = take(expected, handle)?;
            entry.error = error;
            if error == 0 && !entry.data.is_empty() {
                return Err(protocol("a simple reply to a read after structured replies were agreed".into()));
            }
            entry.into_reply(handle).map(Some)
        }
        STRUCTURED_MAGIC => read_structured(transport, expected),
        magic => Err(protocol(format!("reply magic {magic:#x}"))),
    }
}

fn read_structured(
    transport: &mut Transport,
    expected: &Mutex<HashMap<u64, Expected>>,
) -> io::Result<Option<Reply>> {
    let flags = u16::from_be_bytes(read_array(transport)?);
    let kind = u16::from_be_bytes(read_array(transport)?);
    let handle = u64::from_be_bytes(read_array(transport)?);
    let length = u32::from_be_bytes(read_array(transport)?);
    if length > CHUNK_BYTES_MAX {
        return Err(protocol(format!("a chunk of {length} bytes")));
    }
    let mut body = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    transport.read_exact(&mut body)?;
    let mut entry = take(expected, handle)?;
    absorb(&mut entry, kind, &body)?;
    if flags & 1 != 0 {
        return entry.into_reply(handle).map(Some);
    }
    expected.lock().expect("the writer has not panicked").insert(handle, entry);
    Ok(None)
}

fn absorb(entry: &mut Expected, kind: u16, body: &[u8]) -> io::Result<()> {
    let short = || protocol(format!("a chunk of type {kind} with {} bytes", body.len()));
    match kind {
        0 if body.is_empty() => {}
        1 => {
            let (offset, data) = body.split_first_chunk().ok_or_else(short)?;
            entry.place(u64::from_be_bytes(*offset), data.len())?.copy_from_slice(data);
        }
        2 => {
            let (offset, rest) = body.split_first_chunk().ok_or_else(short)?;
            let (length, []) = rest.split_first_chunk().ok_or_else(short)? else { return Err(short()) };
            let length = usize::try_from(u32::from_be_bytes(*length)).map_err(io::Error::other)?;
            entry.place(u64::from_be_bytes(*offset), length)?.fill(0);
        }
        5 => {
            let (_context, extents) = body.split_first_chunk::<4>().ok_or_else(short)?;
            for extent in extents.as_chunks::<8>().0 {
                let [length, flags] = [&extent[..4], &extent[4..]]
                    .map(|half| u32::from_be_bytes([half[0], half[1], half[2], half[3]]));
                entry.extents.push(Extent { length, hole: flags & 1 != 0, zero: flags & 2 != 0 });
            }
        }
        kind if kind & 0x8000 != 0 => {
            let (error, _text) = body.split_first_chunk().ok_or_else(short)?;
            entry.error = u32::from_be_bytes(*error);
        }
        _ => return Err(short()),
    }
    Ok(())
}

fn take(expected: &Mutex<HashMap<u64, Expected>>, handle: u64) -> io::Result<Expected> {
    let entry = expected.lock().expect("the writer has not panicked").remove(&handle);
    entry.ok_or_else(|| protocol(format!("a reply to request {handle}, which is not in flight")))
}
