//! Links that are slow, damaged, clogged or cut: a proxy before each replica server.
//!
//! The cluster's launcher has each server listen at 127.0.0.2 instead of the recorded 127.0.0.1, where
//! the proxy listens. So everything that engine, manager and other replicas say to a server passes here.

use crate::{Random, Scratch, cluster, launcher, patience};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One of the two ways through a proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Towards the server.
    In = 0,
    /// From the server.
    Out = 1,
}

const CHUNK: usize = 64 << 10;

/// What a proxy does to what passes; the same for all its connections.
#[derive(Debug, Default)]
struct Faults {
    delay: Duration,
    /// On average one bit in so many bytes is turned over; zero for none.
    flip_one_in: u64,
    clogged: [bool; 2],
    over: bool,
}

#[derive(Debug, Default)]
struct Shared {
    faults: Mutex<Faults>,
    changed: Condvar,
    connections: Mutex<Vec<TcpStream>>,
    flipped: AtomicU64,
}

impl Shared {
    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults());
        self.changed.notify_all();
    }

    /// Waits while this way is clogged; false when all is over.
    fn may_pass(&self, way: Way) -> bool {
        let clogged = |faults: &mut Faults| faults.clogged[way as usize] && !faults.over;
        let faults = self.changed.wait_while(self.faults(), clogged).unwrap_or_else(PoisonError::into_inner);
        !faults.over
    }
}

/// A proxy before one server.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    over: Arc<AtomicBool>,
}

impl Proxy {
    /// Listens at `address` and connects to `server` for whoever comes.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(address: SocketAddr, server: SocketAddr, seed: u64) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let (shared, over) = (Arc::new(Shared::default()), Arc::new(AtomicBool::new(false)));
        let (for_all, ending) = (Arc::clone(&shared), Arc::clone(&over));
        std::thread::spawn(move || {
            let mut random = Random::new(seed);
            for client in listener.incoming().map_while(Result::ok) {
                if ending.load(Ordering::Acquire) {
                    return;
                }
                // Where there is no server, the client's connection ends at once.
                if let Ok(server) = TcpStream::connect(server) {
                    let ended = join(&client, &server, &for_all, &mut random);
                    drop(ended);
                }
            }
        });
        Ok(Self { address, shared, over })
    }

    /// From now on everything takes this much longer, each way.
    pub fn delay(&self, delay: Duration) {
        self.shared.change(|faults| faults.delay = delay);
    }

    /// From now on one bit in about so many bytes is turned over; zero for none.
    pub fn flip_one_in(&self, bytes: u64) {
        self.shared.change(|faults| faults.flip_one_in = bytes);
    }

    /// From now on nothing passes this way, or all that was held back and what follows does.
    pub fn clog(&self, way: Way, clogged: bool) {
        self.shared.change(|faults| faults.clogged[way as usize] = clogged);
    }

    /// Ends all connections, wherever in a frame they are.
    pub fn cut(&self) {
        let mut connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for connection in connections.drain(..) {
            // It may have ended by itself.
            drop(connection.shutdown(Shutdown::Both));
        }
    }

    /// How many bits have been turned over.
    #[must_use]
    pub fn flipped(&self) -> u64 {
        self.shared.flipped.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        self.shared.change(|faults| faults.over = true);
        self.cut();
        // Wakes the listening thread, which then sees that it is over.
        drop(TcpStream::connect(self.address));
    }
}

/// Starts to pass bytes both ways.
fn join(client: &TcpStream, server: &TcpStream, shared: &Arc<Shared>, random: &mut Random) -> io::Result<()> {
    for stream in [client, server] {
        stream.set_nodelay(true)?;
        let mut connections = shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.push(stream.try_clone()?);
    }
    for (way, from, to) in [(Way::In, client, server), (Way::Out, server, client)] {
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        let (sender, chunks) = mpsc::sync_channel(256);
        let flips = Flips { shared: Arc::clone(shared), random: Random::new(random.next_u64()) };
        std::thread::spawn(move || receive(from, &sender, flips));
        let shared = Arc::clone(shared);
        std::thread::spawn(move || pass_on(to, &chunks, &shared, way));
    }
    Ok(())
}

struct Flips {
    shared: Arc<Shared>,
    random: Random,
}

impl Flips {
    fn damage(&mut self, bytes: &mut [u8]) {
        let one_in = self.shared.faults().flip_one_in;
        let length = bytes.len() as u64;
        if one_in > 0 && self.random.below(one_in) < length {
            let at = usize::try_from(self.random.below(length)).expect("an index");
            bytes[at] ^= 1 << self.random.below(8);
            self.shared.flipped.fetch_add(1, Ordering::AcqRel);
        }
    }
}

type Chunk = (Instant, Vec<u8>);

fn receive(mut from: TcpStream, chunks: &mpsc::SyncSender<Chunk>, mut flips: Flips) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..count].to_vec();
        flips.damage(&mut bytes);
        let due = patience::now() + flips.shared.faults().delay;
        if chunks.send((due, bytes)).is_err() {
            break;
        }
    }
    // Nothing more comes; the other thread passes on what is there, and then ends the other side.
}

fn pass_on(mut to: TcpStream, chunks: &mpsc::Receiver<Chunk>, shared: &Shared, way: Way) {
    for (due, bytes) in chunks {
        patience::until(due);
        if !shared.may_pass(way) || to.write_all(&bytes).is_err() {
            break;
        }
    }
    // It may have ended by itself.
    drop(to.shutdown(Shutdown::Both));
}

/// A launcher for a cluster, and the proxies that it has appear.
#[derive(Debug)]
pub struct Proxies {
    scratch: Scratch,
    starting: JoinHandle<VecDeque<Proxy>>,
}

impl Proxies {
    /// Prepares proxies for a cluster of so many replica servers, which is started next, with
    /// [`Proxies::launcher`].
    ///
    /// # Panics
    /// When no script can be written.
    #[must_use]
    pub fn prepare(replicas: u32, seed: u64) -> Self {
        let scratch = Scratch::new();
        let script = SCRIPT
            .replace("NOTES", &scratch.path().to_string_lossy())
            .replace("TRIVET", &cluster::binary().to_string_lossy());
        launcher::write(&scratch.join("launcher"), &script);
        let notes: Vec<PathBuf> =
            (1..=replicas).map(|number| scratch.join(&format!("replica-{number}"))).collect();
        let starting = std::thread::spawn(move || {
            notes.iter().zip(seed..).map(|(note, seed)| start_beside(note, seed)).collect()
        });
        Self { scratch, starting }
    }

    /// What the cluster is to be started with.
    #[must_use]
    pub fn launcher(&self) -> PathBuf {
        self.scratch.join("launcher")
    }

    /// The proxies of a cluster that is up, by number of replica server, with the folder of the
    /// launcher, which is needed as long as the cluster is.
    ///
    /// # Panics
    /// When they have not come up.
    #[must_use]
    pub fn take(self) -> (Vec<Proxy>, Scratch) {
        let proxies = self.starting.join().expect("the proxies have come up");
        (proxies.into(), self.scratch)
    }
}

/// Each server notes the address at which it should listen, and listens at the same port of another.
const SCRIPT: &str = r#"case "$name" in
replica-*)
    echo "$listen" > "NOTES/$name.new" && mv "NOTES/$name.new" "NOTES/$name"
    count=$#
    while [ "$count" -gt 0 ]; do
        argument=$1
        shift
        [ "$argument" = "$listen" ] && argument=127.0.0.2:${listen##*:}
        set -- "$@" "$argument"
        count=$((count - 1))
    done
    ;;
esac
exec "TRIVET" "$@"
"#;

fn start_beside(note: &Path, seed: u64) -> Proxy {
    let address: SocketAddr = patience::wait_for("a replica server to be started", patience::SOON, || {
        std::fs::read_to_string(note).ok()?.trim().parse().ok()
    });
    let server = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), address.port()));
    Proxy::start(address, server, seed).unwrap_or_else(|e| panic!("no proxy can listen at {address}: {e}"))
}
