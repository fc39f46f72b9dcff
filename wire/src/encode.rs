//! From frames to bytes: many frames become one list of segments for one gathering send.

use crate::blocks::BlockData;
use crate::body;
use crate::frame::{Frame, Message};
use crate::header::{HEADER_BYTES, Header};
use bytes::{Bytes, BytesMut};
use trivet_model::{Epoch, Generation};

/// The header fields that are the same for every message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Envelope {
    /// As [`Frame::request`].
    pub request: u64,
    /// As [`Frame::generation`].
    pub generation: Generation,
    /// As [`Frame::epoch`].
    pub epoch: Epoch,
}

/// Gathers frames for one send. Heads of consecutive frames lie in one buffer; payload is passed
/// on by reference, so that one buffer goes to every replica.
#[derive(Debug, Default)]
pub struct Encoder {
    /// Finished segments.
    segments: Vec<Bytes>,
    /// Heads that follow the last finished segment.
    heads: BytesMut,
    bytes: usize,
}

/// Room for the heads of about a hundred small writes. Given back when all of them are sent.
const HEADS_BYTES: usize = 8 * 1024;

impl Encoder {
    /// An encoder that holds nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a frame.
    ///
    /// # Panics
    /// As [`Encoder::push_message`].
    pub fn push(&mut self, frame: &Frame) {
        let envelope = Envelope { request: frame.request, generation: frame.generation, epoch: frame.epoch };
        self.push_message(envelope, &frame.message);
    }

    /// Adds a message that is sent to several peers, and so is not owned by one frame.
    ///
    /// # Panics
    /// When the message breaks a cap, or its checksums, bitmap and blocks do not match in number:
    /// its maker is wrong, and the peer would close the connection.
    pub fn push_message(&mut self, envelope: Envelope, message: &Message) {
        let head_bytes = HEADER_BYTES + body::length(message);
        if self.heads.capacity() - self.heads.len() < head_bytes {
            self.finish_heads();
            self.heads.reserve(head_bytes.max(HEADS_BYTES));
        }
        let payload = payload(message);
        let start = self.heads.len();
        self.heads.extend_from_slice(&[0; HEADER_BYTES]);
        body::encode(message, &mut self.heads);
        let fixed = &self.heads[start + HEADER_BYTES..];
        assert_eq!(
            HEADER_BYTES + fixed.len(),
            head_bytes,
            "the length of {:?} was foreseen wrong",
            message.kind()
        );
        let header = Header {
            kind: message.kind(),
            flags: message.flags(),
            generation: envelope.generation,
            request: envelope.request,
            epoch: envelope.epoch,
            fixed_bytes: fixed.len(),
            payload_bytes: payload.map_or(0, BlockData::bytes),
            fixed_crc: crc32fast::hash(fixed),
        };
        self.heads[start..start + HEADER_BYTES].copy_from_slice(&header.encode());
        self.bytes += head_bytes + header.payload_bytes;
        if header.payload_bytes > 0 {
            self.finish_heads();
            self.segments.extend(payload.iter().flat_map(|data| &data.segments).cloned());
        }
    }

    /// Bytes held.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it holds no frame.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Everything gathered, in order; the encoder is empty then.
    #[must_use]
    pub fn take(&mut self) -> Vec<Bytes> {
        self.finish_heads();
        self.bytes = 0;
        std::mem::take(&mut self.segments)
    }

    fn finish_heads(&mut self) {
        if !self.heads.is_empty() {
            self.segments.push(self.heads.split().freeze());
        }
    }
}

/// Adds one frame's segments to `out`; for senders of single frames.
///
/// # Panics
/// As [`Encoder::push_message`].
pub fn encode(frame: &Frame, out: &mut Vec<Bytes>) {
    let mut encoder = Encoder::new();
    encoder.push(frame);
    out.append(&mut encoder.take());
}

fn payload(message: &Message) -> Option<&BlockData> {
    let data = message.data()?;
    data.assert_consistent();
    Some(data)
}
