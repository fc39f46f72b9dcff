//! From bytes to frames, without I/O: the decoder says where the next bytes are to be received.
//!
//! Invariants:
//! - Memory is held only for what has passed its checks: at most the stage, which never exceeds
//!   [`STAGE_BYTES_MAX`], and one payload, which never exceeds `IO_BLOCKS_MAX` blocks.
//! - Payload ends up in block-aligned memory: copied there once from the stage, or, when much of
//!   it is still to come, received there.
//! - After an error nothing more is decoded: the position of the next frame is not known.

use crate::body;
use crate::error_code::ErrorCode;
use crate::frame::Frame;
use crate::header::{HEADER_BYTES, Header};
use crate::kind::Kind;
use bytes::BytesMut;
use trivet_model::{BLOCK_SIZE, BlockArena};

/// Why bytes are not a frame. The connection closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The peer speaks another protocol, or the stream has slipped.
    #[error("the frame begins with {found:#010x}, not with \"TRVT\"")]
    Magic {
        /// As received.
        found: u32,
    },
    /// The header has changed on its way.
    #[error("the header's checksum is {found:#010x} where {expected:#010x} was sent")]
    HeaderChecksum {
        /// As received.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// Another version of the protocol.
    #[error("the frame has protocol version {found}")]
    Version {
        /// As received.
        found: u16,
    },
    /// A message that this version does not have.
    #[error("there is no message of kind {found}")]
    Kind {
        /// As received.
        found: u16,
    },
    /// Flags that the message does not have.
    #[error("{kind:?} does not have all of the flags {found:#x}")]
    Flags {
        /// The message.
        kind: Kind,
        /// As received.
        found: u32,
    },
    /// A length outside the message's caps.
    #[error("the {part} of {kind:?} is said to have {found} bytes")]
    Length {
        /// The message.
        kind: Kind,
        /// Which length.
        part: &'static str,
        /// As received.
        found: usize,
    },
    /// The fixed part has changed on its way.
    #[error("the checksum of {kind:?} is {found:#010x} where {expected:#010x} was sent")]
    BodyChecksum {
        /// The message.
        kind: Kind,
        /// As received.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// A field's value makes no sense.
    #[error("the field '{field}' of {kind:?} makes no sense")]
    Field {
        /// The message.
        kind: Kind,
        /// Which field.
        field: &'static str,
    },
}

impl DecodeError {
    /// What to tell the peer before closing.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Version { .. } => ErrorCode::Version,
            _ => ErrorCode::Malformed,
        }
    }
}

/// The stage of a connection that says little.
const STAGE_BYTES_MIN: usize = 16 * 1024;
/// Of one whose receives come back full, or that receives a long fixed part.
const STAGE_BYTES_MAX: usize = 256 * 1024;
/// Payload still to come above which it is received where it is to stay. Below it, one more
/// receive costs more than copying.
const DIRECT_BYTES_MIN: usize = 64 * 1024;

const _: () = assert!(*Kind::PoolReport.fixed_bytes().end() <= STAGE_BYTES_MAX);
const _: () = assert!(DIRECT_BYTES_MIN <= STAGE_BYTES_MAX);

/// One direction of one connection.
///
/// Lend out [`Decoder::buffer`], receive into its spare capacity, give it back with
/// [`Decoder::filled`], then call [`Decoder::next`] until it has no more.
#[derive(Debug)]
pub struct Decoder {
    /// Bytes received; those before `read` have been decoded.
    stage: BytesMut,
    read: usize,
    stage_bytes: usize,
    arena: BlockArena,
    state: State,
    lent: Lent,
}

/// What the next byte belongs to.
///
/// ```text
/// Header --> Fixed --> Payload --> Header
///              '------- no payload --^       any --> Failed
/// ```
#[derive(Debug)]
enum State {
    Header,
    Fixed(Header),
    Payload { frame: Frame, payload: BytesMut, bytes: usize },
    Failed(DecodeError),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lent {
    Nothing,
    Stage,
    Payload,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the beginning of a stream; holds no memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            stage: BytesMut::new(),
            read: 0,
            stage_bytes: STAGE_BYTES_MIN,
            arena: BlockArena::new(),
            state: State::Header,
            lent: Lent::Nothing,
        }
    }

    /// Lends the empty buffer into whose spare capacity the next bytes are to be received.
    ///
    /// # Panics
    /// When one is lent out already.
    #[must_use]
    pub fn buffer(&mut self) -> BytesMut {
        assert_eq!(self.lent, Lent::Nothing, "one buffer is lent at a time");
        if let State::Payload { payload, bytes, .. } = &mut self.state
            && *bytes - payload.len() > DIRECT_BYTES_MIN
        {
            self.lent = Lent::Payload;
            return payload.split_off(payload.len());
        }
        self.make_room();
        self.lent = Lent::Stage;
        self.stage.split_off(self.stage.len())
    }

    /// Whether the lent buffer has room for exactly what is still to come of a payload: to be waited
    /// for in one piece.
    #[must_use]
    pub fn lends_payload(&self) -> bool {
        self.lent == Lent::Payload
    }

    /// Takes the lent buffer back with the bytes received, which may be none.
    ///
    /// # Panics
    /// When none is lent out.
    pub fn filled(&mut self, buffer: BytesMut) {
        match (std::mem::replace(&mut self.lent, Lent::Nothing), &mut self.state) {
            (Lent::Stage, _) => {
                let full = !buffer.is_empty() && buffer.len() == buffer.capacity();
                if full && self.stage_bytes < STAGE_BYTES_MAX {
                    self.stage_bytes *= 2;
                }
                self.stage.unsplit(buffer);
            }
            (Lent::Payload, State::Payload { payload, .. }) => payload.unsplit(buffer),
            (lent, state) => unreachable!("buffer given back with {lent:?} lent in {state:?}"),
        }
    }

    /// The next frame that has arrived whole. Its blocks are not yet verified:
    /// [`BlockData::verify`](crate::BlockData::verify).
    ///
    /// # Errors
    /// [`DecodeError`], and the same again whenever asked later.
    // Not an iterator: `None` means "not yet".
    #[allow(clippy::should_implement_trait, reason = "an iterator would end at the first None")]
    pub fn next(&mut self) -> Result<Option<Frame>, DecodeError> {
        let result = self.advance();
        if let Err(error) = result {
            self.state = State::Failed(error);
        }
        result
    }

    /// Bytes of memory held, the lent buffer not counted.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let payload = match &self.state {
            State::Payload { payload, .. } => payload.capacity(),
            _ => 0,
        };
        self.stage.capacity() + payload
    }

    fn advance(&mut self) -> Result<Option<Frame>, DecodeError> {
        loop {
            let unread = &self.stage[self.read..];
            match &mut self.state {
                State::Failed(error) => return Err(*error),
                State::Header => {
                    let Some(bytes) = unread.first_chunk() else { return Ok(None) };
                    self.state = State::Fixed(Header::decode(bytes)?);
                    self.read += HEADER_BYTES;
                }
                State::Fixed(header) => {
                    let Some(fixed) = unread.get(..header.fixed_bytes) else { return Ok(None) };
                    let frame = decode_fixed(header, fixed)?;
                    let bytes = header.payload_bytes;
                    self.read += header.fixed_bytes;
                    if bytes == 0 {
                        self.state = State::Header;
                        return Ok(Some(frame));
                    }
                    let payload = self.arena.allocate(bytes / BLOCK_SIZE);
                    self.state = State::Payload { frame, payload, bytes };
                }
                State::Payload { payload, bytes, .. } => {
                    let moved = unread.len().min(*bytes - payload.len());
                    payload.extend_from_slice(&unread[..moved]);
                    self.read += moved;
                    if payload.len() < *bytes {
                        return Ok(None);
                    }
                    return Ok(self.finish_payload());
                }
            }
        }
    }

    fn finish_payload(&mut self) -> Option<Frame> {
        let State::Payload { mut frame, payload, .. } = std::mem::replace(&mut self.state, State::Header)
        else {
            unreachable!("only a payload can be finished");
        };
        let kind = frame.message.kind();
        match frame.message.data_mut() {
            Some(data) => data.segments.push(payload.freeze()),
            None => unreachable!("{kind:?} has no payload"),
        }
        Some(frame)
    }

    /// Makes room in the stage for what is missing of the present part, and for as much more as
    /// the connection has shown to use.
    fn make_room(&mut self) {
        let unread = self.stage.len() - self.read;
        let part = match &self.state {
            State::Header | State::Failed(_) => HEADER_BYTES,
            State::Fixed(header) => header.fixed_bytes,
            State::Payload { payload, bytes, .. } => *bytes - payload.len(),
        };
        let want = self.stage_bytes.max(part);
        if self.stage.capacity() < want {
            let mut larger = BytesMut::with_capacity(want);
            larger.extend_from_slice(&self.stage[self.read..]);
            self.stage = larger;
            self.read = 0;
        } else if unread == 0 || self.stage.capacity() - self.read < want {
            self.stage.copy_within(self.read.., 0);
            self.stage.truncate(unread);
            self.read = 0;
        }
    }
}

fn decode_fixed(header: &Header, fixed: &[u8]) -> Result<Frame, DecodeError> {
    let found = crc32fast::hash(fixed);
    if found != header.fixed_crc {
        return Err(DecodeError::BodyChecksum { kind: header.kind, expected: header.fixed_crc, found });
    }
    Ok(Frame {
        request: header.request,
        generation: header.generation,
        epoch: header.epoch,
        message: body::decode(header, fixed)?,
    })
}
