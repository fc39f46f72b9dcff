//! One connection to an NBD server, over a socket of tokio's.
//!
//! Sending and receiving go on side by side in [`NbdClient::progress`], so that a server that
//! waits for us to read never waits for ever because we wait for it to read.

use std::io::{self, IoSlice};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use trivet_nbd::{Connection, Event, Export, Finished, ProtocolError, Request, Server, Uri, Wanted};

const RECEIVE_BYTES: usize = 256 << 10;
const SLICES_MAX: usize = 64;
/// A server that says nothing for so long is not worth waiting for.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A connection.
pub(crate) struct NbdClient {
    reader: Box<dyn AsyncRead + Unpin + Send>,
    writer: Box<dyn AsyncWrite + Unpin + Send>,
    connection: Connection,
    export: Export,
    server_pid: Option<u32>,
}

type Halves = (Box<dyn AsyncRead + Unpin + Send>, Box<dyn AsyncWrite + Unpin + Send>);

impl NbdClient {
    /// Connects, and agrees on everything.
    pub(crate) async fn connect(uri: &Uri, wanted: Wanted) -> io::Result<Self> {
        let connected = tokio::time::timeout(ANSWER_MAX, Self::connect_in_time(uri, wanted)).await;
        connected.unwrap_or_else(|_elapsed| {
            let cause = format!("it does not answer within {} s", ANSWER_MAX.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, cause))
        })
    }

    async fn connect_in_time(uri: &Uri, wanted: Wanted) -> io::Result<Self> {
        match &uri.server {
            Server::Unix(path) => Self::over(UnixStream::connect(path).await?, &uri.export, wanted).await,
            Server::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let (reader, writer) = stream.into_split();
                Self::agree((Box::new(reader), Box::new(writer)), None, &uri.export, wanted).await
            }
        }
    }

    /// The same over a socket that is connected.
    pub(crate) async fn over(stream: UnixStream, export: &str, wanted: Wanted) -> io::Result<Self> {
        let pid = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
        let (reader, writer) = stream.into_split();
        Self::agree((Box::new(reader), Box::new(writer)), pid, export, wanted).await
    }

    async fn agree(
        (mut reader, mut writer): Halves,
        server_pid: Option<u32>,
        export: &str,
        wanted: Wanted,
    ) -> io::Result<Self> {
        let mut connection = Connection::new(export, wanted);
        loop {
            match connection.advance().map_err(broken)? {
                Some(Event::Agreed(export)) => {
                    return Ok(Self { reader, writer, connection, export, server_pid });
                }
                Some(Event::Finished(_)) => unreachable!("nothing is asked before all is agreed"),
                None => pass(&mut connection, &mut reader, &mut writer).await?,
            }
        }
    }

    /// What was agreed upon.
    pub(crate) const fn export(&self) -> Export {
        self.export
    }

    /// The server's process, on a unix socket.
    pub(crate) const fn server_pid(&self) -> Option<u32> {
        self.server_pid
    }

    /// How many requests are in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.connection.in_flight()
    }

    /// Queues a request under a handle that no other in flight has. [`NbdClient::progress`] sends it.
    pub(crate) fn submit(&mut self, handle: u64, request: Request) -> io::Result<()> {
        self.connection.submit(handle, request).map_err(broken)
    }

    /// Sends and receives until at least one request has finished; adds all that have. When it is
    /// cancelled, nothing is lost.
    pub(crate) async fn progress(&mut self, finished: &mut Vec<Finished>) -> io::Result<()> {
        loop {
            while let Some(Event::Finished(one)) = self.connection.advance().map_err(broken)? {
                finished.push(one);
            }
            if !finished.is_empty() {
                // What is queued goes out with the next requests, in one call.
                return Ok(());
            }
            pass(&mut self.connection, &mut self.reader, &mut self.writer).await?;
        }
    }

    /// Says goodbye. Nothing may be in flight.
    pub(crate) async fn disconnect(mut self) -> io::Result<()> {
        self.connection.disconnect();
        for segment in self.connection.halves().1 {
            self.writer.write_all(segment).await?;
        }
        self.writer.shutdown().await
    }
}

/// Sends or receives something.
async fn pass(
    connection: &mut Connection,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let (buffer, to_send) = connection.halves();
    buffer.reserve(RECEIVE_BYTES);
    let slices: Vec<IoSlice<'_>> =
        to_send.iter().take(SLICES_MAX).map(|segment| IoSlice::new(segment)).collect();
    let sent = tokio::select! {
        biased;
        sent = writer.write_vectored(&slices), if !slices.is_empty() => sent?,
        received = reader.read_buf(buffer) => {
            if received? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            0
        }
    };
    connection.sent(sent);
    Ok(())
}

fn broken(error: ProtocolError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
