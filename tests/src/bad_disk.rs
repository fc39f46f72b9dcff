//! A disk that fails on demand, under a replica that knows nothing of it: its pool file is a file of
//! nbdfuse, whose NBD server is here. Needs `/dev/fuse` and nbdfuse.

use crate::blockdev::FuseFile;
use crate::command::is_installed;
use crate::{Scratch, patience};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
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

#[derive(Debug, Default)]
struct Shared {
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
        let scratch = Scratch::new();
        let image = scratch.join("image");
        fs::copy(pool.join("pool"), &image).expect("a stopped pool can be copied");
        let image = OpenOptions::new().read(true).write(true).open(&image).expect("just copied");
        image.set_len(bytes).expect("a file can grow");
        let socket = scratch.join("nbd");
        let listener = UnixListener::bind(&socket).unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
        let shared = Arc::new(Shared::default());
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (image, shared) = (image.try_clone().expect("a file handle"), Arc::clone(&served));
                // A client ends it by going away.
                std::thread::spawn(move || drop(serve(client, &image, &shared)));
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

fn serve(mut client: UnixStream, image: &File, shared: &Shared) -> io::Result<()> {
    greet(&mut client, image.metadata()?.len())?;
    loop {
        let _magic: [u8; 4] = array(&mut client)?;
        let _flags: [u8; 2] = array(&mut client)?;
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
        let (fails, done) = match kind {
            0 => (faults.reads, image.read_exact_at(&mut data, offset)),
            1 if faults.writes => (true, Ok(())),
            1 => (false, image.write_all_at(&data, offset)),
            2 => return Ok(()),
            3 => (faults.flushes, Ok(())),
            _ => (true, Ok(())),
        };
        done?;
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
