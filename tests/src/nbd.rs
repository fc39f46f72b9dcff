//! A small blocking NBD client, written from the protocol's specification and apart from the
//! product's code (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>).
//!
//! Requests are pipelined: [`NbdClient::submit`] sends, [`NbdClient::next_reply`] takes replies in
//! the order in which they come. A thread reads the socket, so that a full socket buffer in one
//! direction cannot block the other.

mod handshake;
mod reply;
mod transport;

pub use handshake::TransmissionFlags;
pub use reply::{Extent, Reply};

use reply::Expected;
use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use transport::Transport;

/// A request. Offsets and lengths are in bytes.
#[derive(Clone, Debug)]
pub enum Request {
    /// `NBD_CMD_READ`.
    Read {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// `NBD_CMD_WRITE`.
    Write {
        /// Byte offset.
        offset: u64,
        /// What to write.
        data: Vec<u8>,
        /// Answer only when it is stable.
        force_unit_access: bool,
    },
    /// `NBD_CMD_FLUSH`.
    Flush,
    /// `NBD_CMD_TRIM`.
    Trim {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// `NBD_CMD_WRITE_ZEROES`.
    WriteZeroes {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// `NBD_CMD_BLOCK_STATUS` of `base:allocation`.
    BlockStatus {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        length: u32,
    },
}

/// `ENOSPC` as NBD sends it.
pub const ENOSPC: u32 = 28;

/// A connection in its transmission phase.
#[derive(Debug)]
pub struct NbdClient {
    transport: Transport,
    replies: mpsc::Receiver<io::Result<Reply>>,
    expected: Arc<Mutex<HashMap<u64, Expected>>>,
    next_handle: u64,
    size: u64,
    flags: TransmissionFlags,
}

impl NbdClient {
    /// Connects to `nbd+unix:///NAME?socket=PATH` or `nbd://HOST:PORT/NAME`, asks for structured
    /// replies and for `base:allocation`, and opens the export.
    ///
    /// # Errors
    /// When there is no server, or it refuses.
    pub fn connect(uri: &str) -> io::Result<Self> {
        let (mut transport, export) = Transport::connect(uri)?;
        let agreed = handshake::negotiate(&mut transport, &export)?;
        let expected = Arc::new(Mutex::new(HashMap::new()));
        let (sender, replies) = mpsc::channel();
        let reader = transport.try_clone()?;
        let shared = Arc::clone(&expected);
        std::thread::spawn(move || reply::read_all(reader, &shared, &sender));
        Ok(Self { transport, replies, expected, next_handle: 1, size: agreed.size, flags: agreed.flags })
    }

    /// The export's size in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// What the server offers.
    #[must_use]
    pub const fn flags(&self) -> TransmissionFlags {
        self.flags
    }

    /// Sends a request and answers the handle that its reply will carry.
    ///
    /// # Errors
    /// When the connection is gone.
    ///
    /// # Panics
    /// When the reading thread has panicked.
    pub fn submit(&mut self, request: &Request) -> io::Result<u64> {
        let handle = self.next_handle;
        self.next_handle += 1;
        let (kind, flags, offset, length): (u16, u16, u64, u32) = match request {
            Request::Read { offset, length } => (0, 0, *offset, *length),
            Request::Write { offset, data, force_unit_access } => {
                let length = u32::try_from(data.len()).expect("a request's length fits 32 bits");
                (1, u16::from(*force_unit_access), *offset, length)
            }
            Request::Flush => (3, 0, 0, 0),
            Request::Trim { offset, length } => (4, 0, *offset, *length),
            Request::WriteZeroes { offset, length } => (6, 0, *offset, *length),
            Request::BlockStatus { offset, length } => (7, 0, *offset, *length),
        };
        let read = if matches!(request, Request::Read { .. }) { length } else { 0 };
        self.expected
            .lock()
            .expect("the reader has not panicked")
            .insert(handle, Expected::new(offset, read));
        let mut frame = Vec::with_capacity(28);
        frame.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        frame.extend_from_slice(&flags.to_be_bytes());
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&handle.to_be_bytes());
        frame.extend_from_slice(&offset.to_be_bytes());
        frame.extend_from_slice(&length.to_be_bytes());
        if let Request::Write { data, .. } = request {
            frame.extend_from_slice(data);
        }
        self.transport.write_all(&frame)?;
        Ok(handle)
    }

    /// The next reply, in the server's order.
    ///
    /// # Errors
    /// When the connection is gone, or nothing came within `bound` (`TimedOut`).
    pub fn next_reply(&mut self, bound: Duration) -> io::Result<Reply> {
        match self.replies.recv_timeout(bound) {
            Ok(reply) => reply,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no reply within {bound:?}")))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Sends a request and waits for its reply; nothing else may be in flight.
    ///
    /// # Errors
    /// When the connection is gone, or the server's error number.
    ///
    /// # Panics
    /// When the reply belongs to another request.
    pub fn call(&mut self, request: &Request) -> io::Result<Reply> {
        let handle = self.submit(request)?;
        let reply = self.next_reply(crate::patience::SOON)?;
        assert_eq!(reply.handle, handle, "one request is in flight");
        match reply.error {
            0 => Ok(reply),
            error => Err(io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(libc::EIO))),
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// As [`NbdClient::call`].
    pub fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        Ok(self.call(&Request::Read { offset, length })?.data)
    }

    /// Writes.
    ///
    /// # Errors
    /// As [`NbdClient::call`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(&Request::Write { offset, data: data.to_vec(), force_unit_access: false }).map(drop)
    }

    /// Flushes.
    ///
    /// # Errors
    /// As [`NbdClient::call`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.call(&Request::Flush).map(drop)
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        self.transport.disconnect();
    }
}
