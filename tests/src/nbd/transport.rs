//! The socket under a connection: unix or TCP.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

#[derive(Debug)]
pub(super) enum Transport {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Transport {
    /// Connects, and answers the export's name too.
    pub(super) fn connect(uri: &str) -> io::Result<(Self, String)> {
        if let Some(rest) = uri.strip_prefix("nbd+unix:///") {
            let (name, path) = rest.split_once("?socket=").ok_or_else(|| not_a_uri(uri))?;
            return Ok((Self::Unix(UnixStream::connect(path)?), name.to_owned()));
        }
        let rest = uri.strip_prefix("nbd://").ok_or_else(|| not_a_uri(uri))?;
        let (address, name) = rest.split_once('/').unwrap_or((rest, ""));
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok((Self::Tcp(stream), name.to_owned()))
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    /// Ends the connection in both directions, so that the thread that reads it ends too.
    pub(super) fn disconnect(&self) {
        let result = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
        // It fails only when the peer was faster.
        drop(result);
    }
}

fn not_a_uri(uri: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("not an NBD URI that this client knows: {uri}"))
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buffer),
            Self::Tcp(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
