//! Requests, and their bytes.

use crate::ProtocolError;
use bytes::{BufMut, Bytes, BytesMut};

const MAGIC: u32 = 0x2560_9513;
const BYTES: usize = 28;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

/// A request. Offsets and lengths are bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Reads, and hands the data over.
    Read {
        /// Where.
        offset: u64,
        /// How much.
        length: u32,
    },
    /// Reads, and throws the data away: a load generator's.
    ReadAndForget {
        /// Where.
        offset: u64,
        /// How much.
        length: u32,
    },
    /// Writes.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// Makes zeros of a range, which may become a hole.
    WriteZeroes {
        /// Where.
        offset: u64,
        /// How much.
        length: u32,
    },
    /// Makes everything stable that was written before.
    Flush,
    /// Asks what holds data; the answer may cover less than was asked about.
    Allocation {
        /// From where.
        offset: u64,
        /// How much.
        length: u32,
    },
}

impl Request {
    fn fields(&self) -> Result<(u16, u64, u32), ProtocolError> {
        Ok(match self {
            Self::Read { offset, length } | Self::ReadAndForget { offset, length } => {
                (READ, *offset, *length)
            }
            Self::Write { offset, data } => {
                let length = u32::try_from(data.len());
                (WRITE, *offset, length.or(Err(ProtocolError::TooLong { what: "a write" }))?)
            }
            Self::WriteZeroes { offset, length } => (WRITE_ZEROES, *offset, *length),
            Self::Flush => (FLUSH, 0, 0),
            Self::Allocation { offset, length } => (BLOCK_STATUS, *offset, *length),
        })
    }

    /// Its bytes, but for the data that a write sends behind them.
    pub(crate) fn header(&self, handle: u64) -> Result<Bytes, ProtocolError> {
        let (command, offset, length) = self.fields()?;
        Ok(header(command, handle, offset, length))
    }
}

fn header(command: u16, handle: u64, offset: u64, length: u32) -> Bytes {
    let mut header = BytesMut::with_capacity(BYTES);
    header.put_u32(MAGIC);
    header.put_u16(0);
    header.put_u16(command);
    header.put_u64(handle);
    header.put_u64(offset);
    header.put_u32(length);
    header.freeze()
}

/// What says goodbye.
pub(crate) fn goodbye() -> Bytes {
    header(DISCONNECT, 0, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_bytes_of_the_protocol() {
        let write = Request::Write { offset: 0x1000, data: Bytes::from_static(&[7; 512]) };
        let golden = [
            0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0,
        ];
        assert_eq!(write.header(9).unwrap(), golden[..]);
        let status = Request::Allocation { offset: 1 << 40, length: 1 << 30 }.header(1).unwrap();
        assert_eq!(status[4..8], [0, 0, 0, 7]);
        assert_eq!(status[16..], [0, 0, 1, 0, 0, 0, 0, 0, 0x40, 0, 0, 0]);
        assert_eq!(goodbye()[6..8], [0, 2]);
    }
}
