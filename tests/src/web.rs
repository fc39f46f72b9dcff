//! A small HTTP server of one file, which can lie and break off.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How it behaves.
#[derive(Clone, Copy, Default, Debug)]
pub struct Manners {
    /// It hangs up after so many bytes of a file; zero for never.
    pub breaks_off_after: u64,
    /// It knows no ranges.
    pub whole_only: bool,
    /// It announces so many bytes more than it sends before it hangs up.
    pub announces_more: u64,
    /// It answers with this status; zero for what is right.
    pub status: u16,
    /// It sends other bytes than those that were asked for, and says so.
    pub other_range: bool,
}

#[derive(Debug)]
struct Shared {
    file: Mutex<(Arc<Vec<u8>>, String)>,
    manners: Mutex<Manners>,
    requests: AtomicU64,
    sent: AtomicU64,
}

/// A server. It ends with the process.
#[derive(Debug)]
pub struct WebServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl WebServer {
    /// Serves this file, whatever is asked for.
    ///
    /// # Panics
    /// When it cannot listen.
    #[must_use]
    pub fn start(file: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            file: Mutex::new((Arc::new(file), "\"first\"".to_owned())),
            manners: Mutex::new(Manners::default()),
            requests: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        });
        let for_all = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&for_all);
                // The client may hang up whenever it likes.
                std::thread::spawn(move || drop(answer(client, &shared)));
            }
        });
        Self { address, shared }
    }

    /// The URL of a file of this name.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/images/{name}?token=1", self.address)
    }

    /// From now on it behaves so.
    pub fn behave(&self, manners: Manners) {
        *self.shared.manners.lock().unwrap_or_else(PoisonError::into_inner) = manners;
    }

    /// From now on it serves another file.
    pub fn replace(&self, file: Vec<u8>) {
        *self.shared.file.lock().unwrap_or_else(PoisonError::into_inner) =
            (Arc::new(file), "\"second\"".to_owned());
    }

    /// Requests so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Acquire)
    }

    /// Bytes of the file sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Acquire)
    }
}

/// Answers one request and hangs up.
fn answer(mut client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut range = None;
    let mut condition = None;
    for line in BufReader::new(client.try_clone()?).lines() {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(first) = line.strip_prefix("range: bytes=") {
            range = first.trim_end_matches('-').parse::<usize>().ok();
        }
        if let Some(tag) = line.strip_prefix("if-range: ") {
            condition = Some(tag.to_owned());
        }
    }
    shared.requests.fetch_add(1, Ordering::AcqRel);
    let manners = *shared.manners.lock().unwrap_or_else(PoisonError::into_inner);
    let (file, tag) = shared.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if manners.status != 0 {
        return write!(
            client,
            "HTTP/1.1 {} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            manners.status
        );
    }
    let same = condition.is_none_or(|condition| condition == tag);
    let first = range.filter(|_| same && !manners.whole_only).unwrap_or(0).min(file.len());
    let body = &file[first..];
    let announced = body.len() as u64 + manners.announces_more;
    let said_first = if manners.other_range && first > 0 { first + 1 } else { first };
    let status = if first > 0 {
        format!("206 Partial Content\r\nContent-Range: bytes {said_first}-{}/{}", file.len() - 1, file.len())
    } else {
        "200 OK".to_owned()
    };
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Length: {announced}\r\nETag: {tag}\r\nConnection: close\r\n\r\n"
    )?;
    let mut left = if manners.breaks_off_after == 0 { u64::MAX } else { manners.breaks_off_after };
    for piece in body.chunks(64 << 10) {
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        client.write_all(&piece[..now])?;
        shared.sent.fetch_add(now as u64, Ordering::AcqRel);
        left -= now as u64;
        if left == 0 {
            break;
        }
    }
    Ok(())
}
