//! A disk that fails on demand, under a replica that knows nothing of it: its pool file is a file of
//! nbdfuse, whose NBD server is here. It can have a volatile cache, and lose its power. Needs `/dev/fuse`
//! and nbdfuse.

mod medium;

use crate::blockdev::FuseFile;
use crate::command::is_installed;
use crate::{Random, Scratch, patience};
use medium::Medium;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What the disk does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Faults {
    /// Reads fail.
    pub reads: bool,
    /// Writes fail.
    pub writes: bool,
    /// Flushes fail.
    pub flushes: bool,
    /// Nothing is answered any more.
    pub hangs: bool,
}

#[derive(Debug)]
struct Shared {
    medium: Medium,
    faults: Mutex<Faults>,
    changed: Condvar,
    failed: AtomicU64,
    held_up: AtomicU64,
    flushes: AtomicU64,
}

impl Shared {
    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present faults, once it does not hang.
    fn wait(&self) -> Faults {
        let mut faults = self.faults();
        if faults.hangs {
            self.held_up.fetch_add(1, Ordering::AcqRel);
        }
        while faults.hangs {
            faults = self.changed.wait(faults).unwrap_or_else(PoisonError::into_inner);
        }
        *faults
    }
}

/// Why there can be none on this machine; `None` when there can.
#[must_use]
pub fn obstacle() -> Option<String> {
    if let Some(missing) = ["nbdfuse", "fusermount3"].into_iter().find(|program| !is_installed(program)) {
        return Some(format!("{missing} is not installed (make deps)"));
    }
    (!Path::new("/dev/fuse").exists()).then(|| "there is no /dev/fuse".to_owned())
}

/// See the module's documentation. Drop it when the replica has ended.
#[derive(Debug)]
pub struct BadDisk {
    shared: Arc<Shared>,
    // Unmounted before the scratch directory is removed.
    _file: FuseFile,
    _scratch: Scratch,
}

impl BadDisk {
    /// Puts the pool of a stopped replica, which may come to hold `bytes`, on a disk that may fail.
    ///
    /// # Panics
    /// When that cannot be done; see [`obstacle`].
    #[must_use]
    pub fn under(pool: &Path, bytes: u64) -> Self {
        Self::that(pool, bytes, false)
    }

    /// The same on a disk that keeps in a volatile cache what has not been flushed.
    ///
    /// # Panics
    /// When that cannot be done; see [`obstacle`].
    #[must_use]
    pub fn with_volatile_cache(pool: &Path, bytes: u64) -> Self {
        Self::that(pool, bytes, true)
    }

    fn that(pool: &Path, bytes: u64, volatile: bool) -> Self {
        let scratch = Scratch::new();
        let image = scratch.join("image");
        fs::copy(pool.join("pool"), &image).expect("a stopped pool can be copied");
        let image = OpenOptions::new().read(true).write(true).open(&image).expect("just copied");
        image.set_len(bytes).expect("a file can grow");
        let socket = scratch.join("nbd");
        let listener = UnixListener::bind(&socket).unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
        let shared = Arc::new(Shared {
            medium: Medium::new(image, volatile),
            faults: Mutex::default(),
            changed: Condvar::new(),
            failed: AtomicU64::new(0),
            held_up: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        });
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&served);
                // A client ends it by going away.
                std::thread::spawn(move || drop(serve(client, &shared)));
            }
        });
        let file = FuseFile::mount(&format!("nbd+unix:///?socket={}", socket.display()), &scratch);
        fs::remove_file(pool.join("pool")).expect("a file can be removed");
        std::os::unix::fs::symlink(file.path(), pool.join("pool")).expect("a link can be made");
        Self { shared, _file: file, _scratch: scratch }
    }

    /// From now on it does this wrong, and nothing else.
    pub fn set(&self, faults: Faults) {
        *self.shared.faults() = faults;
        self.shared.changed.notify_all();
    }

    /// Nothing that it is asked for from now on is done.
    pub fn cut_power(&self) {
        self.shared.medium.cut_power();
    }

    /// Gives it power again: of what it had not been asked to flush some is lost, and some is torn.
    ///
    /// # Panics
    /// When its file cannot be written.
    pub fn restore_power(&self, random: &mut Random) {
        self.shared.medium.restore_power(random).expect("a file that can be written");
    }

    /// How many flushes it has been asked for.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.shared.flushes.load(Ordering::Acquire)
    }

    /// Waits until something has failed, or hangs, since it was made.
    ///
    /// # Panics
    /// When nothing does.
    pub fn wait_until_struck(&self) {
        patience::wait_for("the disk to be asked for something", patience::SOON, || {
            let Shared { failed, held_up, .. } = &*self.shared;
            (failed.load(Ordering::Acquire) + held_up.load(Ordering::Acquire) > 0).then_some(())
        });
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        self.set(Faults::default());
    }
}

fn array<const N: usize>(client: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn skip(client: &mut UnixStream, length: u32) -> io::Result<()> {
    io::copy(&mut client.take(u64::from(length)), &mut io::sink()).map(drop)
}

const OPTION_GO: u32 = 7;
/// Flags are there; flushes and FUA are known.
const FLAGS: u16 = 1 | 1 << 2 | 1 << 3;
const EIO: u32 = 5;

/// The handshake, as much of it as libnbd needs: fixed newstyle, `NBD_OPT_GO`.
fn greet(client: &mut UnixStream, size: u64) -> io::Result<()> {
    client.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let _flags: [u8; 4] = array(client)?;
    loop {
        let _magic: [u8; 8] = array(client)?;
        let option = u32::from_be_bytes(array(client)?);
        let length = u32::from_be_bytes(array(client)?);
        skip(client, length)?;
        let mut reply = |kind: u32, data: &[u8]| {
            let length = u32::try_from(data.len()).expect("short").to_be_bytes();
            let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
            client
                .write_all(&[&magic[..], &option.to_be_bytes(), &kind.to_be_bytes(), &length, data].concat())
        };
        if option != OPTION_GO {
            // NBD_REP_ERR_UNSUP
            reply(1 << 31 | 1, &[])?;
            continue;
        }
        reply(3, &[&[0, 0][..], &size.to_be_bytes(), &FLAGS.to_be_bytes()].concat())?;
        return reply(1, &[]);
    }
}

fn serve(mut client: UnixStream, shared: &Shared) -> io::Result<()> {
    let medium = &shared.medium;
    greet(&mut client, medium.size()?)?;
    loop {
        let _magic: [u8; 4] = array(&mut client)?;
        let force_unit_access = u16::from_be_bytes(array(&mut client)?) & 1 != 0;
        let kind = u16::from_be_bytes(array(&mut client)?);
        let handle: [u8; 8] = array(&mut client)?;
        let offset = u64::from_be_bytes(array(&mut client)?);
        let length = u32::from_be_bytes(array(&mut client)?);
        let mut data = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        if kind == 1 {
            client.read_exact(&mut data)?;
        }
        let faults = shared.wait();
        if kind == 3 {
            shared.flushes.fetch_add(1, Ordering::AcqRel);
        }
        let done = match kind {
            0 if !faults.reads => medium.read(&mut data, offset),
            1 if !faults.writes => {
                let written = medium.write(std::mem::take(&mut data), offset);
                if force_unit_access { written.and_then(|()| medium.flush()) } else { written }
            }
            2 => return Ok(()),
            3 if !faults.flushes => medium.flush(),
            _ => Err(io::Error::other("it is to fail")),
        };
        let fails = done.is_err();
        if fails {
            shared.failed.fetch_add(1, Ordering::AcqRel);
        }
        let error = if fails { EIO } else { 0 }.to_be_bytes();
        client.write_all(&[&0x6744_6698_u32.to_be_bytes()[..], &error, &handle].concat())?;
        if kind == 0 && !fails {
            client.write_all(&data)?;
        }
    }
}
