//! One connection to an NBD server with many requests in flight.
//!
//! Sending and receiving go on side by side in [`NbdClient::progress`], so that a server that
//! waits for us to read never waits for ever because we wait for it to read.

use super::handshake::{Agreed, bad, shake_hands};
pub(crate) use super::replies::Finished;
use super::replies::Replies;
use super::uri::{NbdServer, NbdUri};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const COMMAND_DISCONNECT: u16 = 2;
const REQUEST_BYTES: usize = 28;
const RECEIVE_BYTES: usize = 256 << 10;
const SLICES_MAX: usize = 64;

/// A request, by kind.
#[derive(Clone, Debug)]
pub(crate) enum NbdRequest {
    Read { offset: u64, length: u32 },
    Write { offset: u64, data: Bytes },
    Flush,
}

/// A connection.
pub(crate) struct NbdClient {
    reader: Box<dyn AsyncRead + Unpin + Send>,
    writer: Box<dyn AsyncWrite + Unpin + Send>,
    agreed: Agreed,
    server_pid: Option<u32>,
    replies: Replies,
    to_send: VecDeque<Bytes>,
    /// By handle: bytes that a simple reply brings.
    read_lengths: Vec<usize>,
}

impl NbdClient {
    /// Connects, and agrees on everything.
    pub(crate) async fn connect(uri: &NbdUri) -> io::Result<Self> {
        let (mut reader, mut writer, server_pid) = open(&uri.server).await?;
        let agreed = shake_hands(&mut reader, &mut writer, &uri.export).await?;
        Ok(Self {
            reader,
            writer,
            agreed,
            server_pid,
            replies: Replies::default(),
            to_send: VecDeque::new(),
            read_lengths: Vec::new(),
        })
    }

    /// The export's bytes.
    pub(crate) fn size(&self) -> u64 {
        self.agreed.size
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.agreed.read_only
    }

    pub(crate) fn can_flush(&self) -> bool {
        self.agreed.can_flush
    }

    /// The server's process, on a unix socket.
    pub(crate) fn server_pid(&self) -> Option<u32> {
        self.server_pid
    }

    /// Queues a request under a handle that no other in flight has. Handles are small: they index
    /// a table. [`NbdClient::progress`] sends it.
    pub(crate) fn submit(&mut self, handle: u64, request: NbdRequest) -> io::Result<()> {
        let index = usize::try_from(handle).or(Err(bad("the handle is too large")))?;
        if self.read_lengths.len() <= index {
            self.read_lengths.resize(index + 1, 0);
        }
        let (command, offset, length, data) = match request {
            NbdRequest::Read { offset, length } => (0, offset, length, None),
            NbdRequest::Write { offset, data } => {
                let length = u32::try_from(data.len()).or(Err(bad("the write is too long")))?;
                (1, offset, length, Some(data))
            }
            NbdRequest::Flush => (3, 0, 0, None),
        };
        self.read_lengths[index] =
            if command == 0 { usize::try_from(length).or(Err(bad("the read is too long")))? } else { 0 };
        self.push_header(command, handle, offset, length);
        self.to_send.extend(data);
        Ok(())
    }

    fn push_header(&mut self, command: u16, handle: u64, offset: u64, length: u32) {
        let mut header = BytesMut::with_capacity(REQUEST_BYTES);
        header.put_u32(REQUEST_MAGIC);
        header.put_u16(0);
        header.put_u16(command);
        header.put_u64(handle);
        header.put_u64(offset);
        header.put_u32(length);
        self.to_send.push_back(header.freeze());
    }

    /// Sends and receives until at least one request has finished; adds all that have.
    pub(crate) async fn progress(&mut self, finished: &mut Vec<Finished>) -> io::Result<()> {
        loop {
            self.take_finished(finished)?;
            if !finished.is_empty() {
                // What is queued goes out with the next requests, in one call.
                return Ok(());
            }
            self.replies.received.reserve(RECEIVE_BYTES);
            let slices: Vec<IoSlice<'_>> =
                self.to_send.iter().take(SLICES_MAX).map(|segment| IoSlice::new(segment)).collect();
            let sent = tokio::select! {
                biased;
                sent = self.writer.write_vectored(&slices), if !slices.is_empty() => sent?,
                received = self.reader.read_buf(&mut self.replies.received) => {
                    if received? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    0
                }
            };
            self.drop_sent(sent);
        }
    }

    fn take_finished(&mut self, finished: &mut Vec<Finished>) -> io::Result<()> {
        let lengths = &self.read_lengths;
        let read_length = |handle| usize::try_from(handle).ok().and_then(|index| lengths.get(index).copied());
        while let Some(one) = self.replies.next(|handle| read_length(handle).unwrap_or(0))? {
            finished.push(one);
        }
        Ok(())
    }

    fn drop_sent(&mut self, mut sent: usize) {
        while let Some(first) = self.to_send.front_mut() {
            if sent < first.len() {
                *first = first.slice(sent..);
                return;
            }
            sent -= first.len();
            self.to_send.pop_front();
        }
    }

    /// Says goodbye. Nothing may be in flight.
    pub(crate) async fn disconnect(mut self) -> io::Result<()> {
        self.push_header(COMMAND_DISCONNECT, 0, 0, 0);
        for segment in &self.to_send {
            self.writer.write_all(segment).await?;
        }
        self.writer.shutdown().await
    }
}

type Halves = (Box<dyn AsyncRead + Unpin + Send>, Box<dyn AsyncWrite + Unpin + Send>, Option<u32>);

async fn open(server: &NbdServer) -> io::Result<Halves> {
    match server {
        NbdServer::Unix(path) => {
            let stream = UnixStream::connect(path).await?;
            let pid = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
            let (reader, writer) = stream.into_split();
            Ok((Box::new(reader), Box::new(writer), pid))
        }
        NbdServer::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            Ok((Box::new(reader), Box::new(writer), None))
        }
    }
}
