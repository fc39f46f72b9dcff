//! The side thread that fetches what a volume under import does not have yet, from an NBD server.
//!
//! Many fetches are in flight on one connection. When it breaks, all of them have failed; who wants them
//! asks again, and the next one connects anew.

use crate::volume::SourceError;
use bytes::Bytes;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use trivet_model::InstantImport;
use trivet_nbd::{Connection, Event, Finished, Request, Server, Uri, Wanted, fingerprint, fingerprint_runs};
use trivet_reactor::Waker;

/// A server that says nothing for so long while it owes an answer is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// For each of its addresses.
const CONNECT_MAX: Duration = Duration::from_secs(10);
const RECEIVE_BYTES: usize = 256 << 10;
/// The NBD protocol's numbers for a server that has no memory for the request, and for one that is about to end.
const ENOMEM: i32 = 12;
const ESHUTDOWN: i32 = 108;

/// Bytes of the source to fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fetch {
    /// Names it.
    pub(crate) chunk: u64,
    /// Where.
    pub(crate) offset: u64,
    /// How many.
    pub(crate) length: u32,
}

/// What came of a fetch.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) chunk: u64,
    pub(crate) result: Result<Bytes, SourceError>,
}

/// The thread's two ends. It ends by itself once this is dropped and the call under way returns.
#[derive(Debug)]
pub(crate) struct ImportSource {
    uri: String,
    fetches: Sender<Fetch>,
    fetched: Receiver<Fetched>,
    unanswered: HashMap<u64, Fetch>,
}

impl ImportSource {
    /// Starts the thread; `waker` tells when something has come.
    ///
    /// # Errors
    /// The system's, when it has no thread to give.
    pub(crate) fn start(import: InstantImport, waker: Waker) -> io::Result<Self> {
        let (fetches, asked) = channel::<Fetch>();
        let (done, fetched) = channel();
        let uri = import.source.clone();
        std::thread::Builder::new().name("import".to_owned()).spawn(move || {
            let mut thread = Thread { import, asked, done, waker };
            thread.run();
        })?;
        Ok(Self { uri, fetches, fetched, unanswered: HashMap::new() })
    }

    /// Whether it is where an import's source is now.
    pub(crate) fn is_of(&self, import: &InstantImport) -> bool {
        self.uri == import.source
    }

    pub(crate) fn fetch(&mut self, fetch: Fetch) {
        self.unanswered.insert(fetch.chunk, fetch);
        self.fetches.send(fetch).expect("the import's thread ends only when it panics");
    }

    pub(crate) fn fetched(&mut self) -> Option<Fetched> {
        let fetched = self.fetched.try_recv().ok()?;
        self.unanswered.remove(&fetched.chunk);
        Some(fetched)
    }

    /// Gives it up; what it still owes is to be asked of another.
    pub(crate) fn into_unanswered(self) -> impl Iterator<Item = Fetch> {
        self.unanswered.into_values()
    }
}

/// Nobody wants to know any more.
struct NobodyWaits;

struct Thread {
    import: InstantImport,
    asked: Receiver<Fetch>,
    done: Sender<Fetched>,
    waker: Waker,
}

impl Thread {
    fn run(&mut self) {
        while let Ok(first) = self.asked.recv() {
            let mut open = HashMap::from([(first.chunk, first)]);
            let Err(error) = self.serve(&mut open) else { return };
            // Those that have come meanwhile would fare no better.
            open.extend(self.asked.try_iter().map(|fetch| (fetch.chunk, fetch)));
            for (chunk, _) in open.drain() {
                if self.tell(chunk, Err(SourceError::Away(error.to_string()))).is_err() {
                    return;
                }
            }
        }
    }

    fn tell(&self, chunk: u64, result: Result<Bytes, SourceError>) -> Result<(), NobodyWaits> {
        self.done.send(Fetched { chunk, result }).map_err(|_gone| NobodyWaits)?;
        self.waker.wake();
        Ok(())
    }

    /// Connects and fetches until nobody waits any more. `open` are fetches without an answer.
    fn serve(&self, open: &mut HashMap<u64, Fetch>) -> io::Result<()> {
        let uri: Uri = self.import.source.parse().map_err(io::Error::other)?;
        let mut stream = Stream::connect(&uri.server)?;
        let mut connection = Connection::new(&uri.export, Wanted::Data);
        agree(&mut connection, &mut stream, self.import.bytes)?;
        recognize(&mut connection, &mut stream, &self.import)?;
        for fetch in open.values() {
            submit(&mut connection, *fetch)?;
        }
        loop {
            if open.is_empty() {
                // Without an answer that is due, there is time.
                let Ok(fetch) = self.asked.recv() else { return Ok(()) };
                open.insert(fetch.chunk, fetch);
                submit(&mut connection, fetch)?;
            }
            while let Ok(fetch) = self.asked.try_recv() {
                open.insert(fetch.chunk, fetch);
                submit(&mut connection, fetch)?;
            }
            pass(&mut connection, &mut stream)?;
            while let Some(event) = connection.advance().map_err(io::Error::other)? {
                let Event::Finished(finished) = event else { continue };
                let chunk = finished.handle;
                open.remove(&chunk);
                if self.tell(chunk, data_of(finished)).is_err() {
                    return Ok(());
                }
            }
        }
    }
}

fn submit(connection: &mut Connection, fetch: Fetch) -> io::Result<()> {
    let Fetch { chunk, offset, length } = fetch;
    connection.submit(chunk, Request::Read { offset, length }).map_err(io::Error::other)
}

/// What a read has brought.
fn data_of(finished: Finished) -> Result<Bytes, SourceError> {
    let number = i32::try_from(finished.error).unwrap_or(i32::MAX);
    let cause = || format!("reading it: {}", io::Error::from_raw_os_error(number));
    match number {
        0 => Ok(finished.data),
        // These say nothing about what was to be read.
        ENOMEM | ESHUTDOWN => Err(SourceError::Away(cause())),
        _ => Err(SourceError::Refused(cause())),
    }
}

/// The handshake. A source of another size is not the one that the import began with.
fn agree(connection: &mut Connection, stream: &mut Stream, bytes: u64) -> io::Result<()> {
    loop {
        match connection.advance().map_err(io::Error::other)? {
            Some(Event::Agreed(export)) if export.size == bytes => return Ok(()),
            Some(Event::Agreed(export)) => {
                let text = format!("it has {} bytes now, and had {bytes} when the import began", export.size);
                return Err(io::Error::other(text));
            }
            Some(Event::Finished(_)) => unreachable!("nothing is asked before all is agreed"),
            None => pass(connection, stream)?,
        }
    }
}

/// Whether this is what the import began with, as far as its ends show.
fn recognize(connection: &mut Connection, stream: &mut Stream, import: &InstantImport) -> io::Result<()> {
    let runs = fingerprint_runs(import.bytes);
    for (handle, (offset, length)) in (0..).zip(runs) {
        connection.submit(handle, Request::Read { offset, length }).map_err(io::Error::other)?;
    }
    let mut found = [None, None];
    while let [None, _] | [_, None] = found {
        match connection.advance().map_err(io::Error::other)? {
            Some(Event::Finished(finished)) => {
                let run = usize::from(finished.handle == 1);
                found[run] = Some(data_of(finished).map_err(io::Error::other)?);
            }
            Some(Event::Agreed(_)) => unreachable!("it is agreed once"),
            None => pass(connection, stream)?,
        }
    }
    match found {
        [Some(first), Some(last)] if fingerprint([&first, &last]) == import.fingerprint => Ok(()),
        _ => Err(io::Error::other("it is not what the import began with: it begins or ends otherwise")),
    }
}

/// Sends all there is, and receives something.
fn pass(connection: &mut Connection, stream: &mut Stream) -> io::Result<()> {
    let mut sent = 0;
    for segment in connection.halves().1 {
        stream.write_all(segment)?;
        sent += segment.len();
    }
    connection.sent(sent);
    let (buffer, _) = connection.halves();
    let held = buffer.len();
    buffer.resize(held + RECEIVE_BYTES, 0);
    let received = stream.read(&mut buffer[held..]);
    buffer.truncate(held + received.as_ref().copied().unwrap_or(0));
    match received {
        Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its server closed the connection")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("its server did not answer for {} s", PATIENCE.as_secs()),
        )),
        Err(error) => Err(error),
    }
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn connect(server: &Server) -> io::Result<Self> {
        match server {
            Server::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Self::Unix(stream))
            }
            Server::Tcp(address) => {
                let stream = connect_any(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Self::Tcp(stream))
            }
        }
    }
}

/// A server may listen at one of its addresses only: at 127.0.0.1 of localhost, not at ::1.
fn connect_any(address: &str) -> io::Result<TcpStream> {
    let mut failure = io::Error::other(format!("{address} has no address"));
    for found in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&found, CONNECT_MAX) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_sector_is_told_from_a_server_that_is_about_to_end() {
        let finished = |error| Finished { handle: 1, error, data: Bytes::new(), extents: Vec::new() };
        assert_eq!(data_of(finished(0)), Ok(Bytes::new()));
        assert!(
            matches!(data_of(finished(5)), Err(SourceError::Refused(cause)) if cause.contains("os error 5"))
        );
        for error in [12, 108] {
            assert!(matches!(data_of(finished(error)), Err(SourceError::Away(_))), "{error}");
        }
    }
}
