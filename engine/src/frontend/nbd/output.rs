//! What is to be sent, gathered: heads side by side in one buffer, payloads by reference between.

use bytes::{BufMut, Bytes, BytesMut};

/// Heads get buffers of this size; each serves about two hundred replies.
const HEADS_BYTES: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// What stands after the last of `segments`.
    heads: BytesMut,
    segments: Vec<Bytes>,
    head_bytes: usize,
    payload_bytes: usize,
}

impl Output {
    /// Makes room for a head of at most `bytes` and hands out where to put it.
    pub(super) fn head(&mut self, bytes: usize) -> Head<'_> {
        if self.heads.capacity() - self.heads.len() < bytes {
            self.cut();
            self.heads.reserve(bytes.max(HEADS_BYTES));
        }
        let before = self.heads.len();
        Head { output: self, before }
    }

    /// Appends a payload.
    pub(super) fn payload(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.cut();
            self.payload_bytes += data.len();
            self.segments.push(data);
        }
    }

    /// Moves everything over.
    pub(super) fn take(&mut self, out: &mut Vec<Bytes>) {
        self.cut();
        out.append(&mut self.segments);
        self.head_bytes = 0;
        self.payload_bytes = 0;
    }

    /// Bytes that wait to be taken.
    pub(super) fn len(&self) -> usize {
        self.head_bytes + self.payload_bytes
    }

    /// Those of them that are not payload.
    pub(super) fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    fn cut(&mut self) {
        if !self.heads.is_empty() {
            self.segments.push(self.heads.split().freeze());
        }
    }
}

/// Writes one head; counts it when done.
pub(super) struct Head<'output> {
    output: &'output mut Output,
    before: usize,
}

impl Head<'_> {
    pub(super) fn u16(self, value: u16) -> Self {
        self.output.heads.put_u16(value);
        self
    }

    pub(super) fn u32(self, value: u32) -> Self {
        self.output.heads.put_u32(value);
        self
    }

    pub(super) fn u64(self, value: u64) -> Self {
        self.output.heads.put_u64(value);
        self
    }

    pub(super) fn slice(self, value: &[u8]) -> Self {
        self.output.heads.put_slice(value);
        self
    }

    pub(super) fn zeroes(self, count: usize) -> Self {
        self.output.heads.put_bytes(0, count);
        self
    }

    /// The head is complete.
    pub(super) fn end(self) {}
}

impl Drop for Head<'_> {
    fn drop(&mut self) {
        self.output.head_bytes += self.output.heads.len() - self.before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_without_payload_between_make_one_segment() {
        let mut output = Output::default();
        for i in 0..10 {
            output.head(16).u64(i).u32(1).u16(2).u16(3).end();
        }
        output.payload(Bytes::from_static(b"data"));
        output.head(2).u16(9).end();
        assert_eq!((output.len(), output.head_bytes()), (160 + 4 + 2, 160 + 2));
        let mut out = Vec::new();
        output.take(&mut out);
        assert_eq!(out.iter().map(Bytes::len).collect::<Vec<_>>(), [160, 4, 2]);
        assert_eq!(output.len(), 0);
    }
}
