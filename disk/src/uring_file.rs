//! A pool file or block device, opened O_DIRECT and driven by the thread's reactor.

mod extension;

use crate::{Disk, DiskCompletion, DiskError, DiskOp, DiskToken, OpenError};
use bytes::BytesMut;
use extension::{Extension, Step};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;
use trivet_model::BLOCK_SIZE_U64;
use trivet_reactor::{Handle, Output, Reactor, Source, Wait};

/// A file as a device. It is locked (`flock`) while open, so that two processes cannot share it.
///
/// Submitting queues on the reactor; whoever owns the loop polls that, and reaps here without
/// waiting. [`Disk::reap`] with `wait` polls the reactor itself; completions of others stay in
/// their mailboxes meanwhile.
pub struct UringFile {
    reactor: Reactor,
    source: Source,
    file: Handle,
    length: u64,
    /// Bytes that extensions leave to others on the file system.
    reserve: u64,
    pending: Pending,
    /// The first is being carried out; extensions go one after the other.
    extensions: VecDeque<Extension>,
    /// Ended without the reactor having to say so.
    ready: Vec<DiskCompletion>,
}

const LOCK_ATTEMPTS: u32 = 400;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// The reactor token of all steps of extensions; other tokens are indices into `Pending`.
const EXTENSION: u64 = u64::MAX;

impl UringFile {
    /// Opens what is there. Its length is the file's, cut to whole blocks.
    ///
    /// # Errors
    /// [`OpenError`] with the cause and the next step.
    pub fn open(reactor: &Reactor, path: &Path) -> Result<Self, OpenError> {
        Self::with(reactor, path, OpenOptions::new().read(true).write(true))
    }

    /// Makes an empty file, which must not be there yet; extend it next. Its name is stable only
    /// once the caller has synced the folder.
    ///
    /// # Errors
    /// [`OpenError`] with the cause and the next step.
    pub fn create(reactor: &Reactor, path: &Path) -> Result<Self, OpenError> {
        let opened = Self::with(reactor, path, OpenOptions::new().read(true).write(true).create_new(true));
        if let Err(OpenError::NoDirectIo { .. }) = &opened {
            // The kernel makes the file first and then finds out.
            std::fs::remove_file(path).map_err(|e| OpenError::diagnose("unlink", path, e))?;
        }
        opened
    }

    fn with(reactor: &Reactor, path: &Path, options: &mut OpenOptions) -> Result<Self, OpenError> {
        let fail = |operation| move |e| OpenError::diagnose(operation, path, e);
        let file = options.mode(0o600).custom_flags(libc::O_DIRECT).open(path).map_err(fail("open"))?;
        let metadata = file.metadata().map_err(fail("stat"))?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(OpenError::NotAFile { path: path.to_path_buf() });
        }
        lock(&file).map_err(fail("flock"))?;
        let bytes = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(fail("seek"))?;
        Ok(Self {
            reactor: reactor.clone(),
            source: reactor.source(),
            file: Handle::from(OwnedFd::from(file)),
            length: bytes / BLOCK_SIZE_U64 * BLOCK_SIZE_U64,
            reserve: 0,
            pending: Pending::default(),
            extensions: VecDeque::new(),
            ready: Vec::new(),
        })
    }

    /// From now on an extension that would leave less than `bytes` free on the file system ends in
    /// [`DiskError::NoSpace`]: what else lies there needs room when this file has taken all it may.
    pub fn keep_free(&mut self, bytes: u64) {
        self.reserve = bytes;
    }

    fn has_room_for(&self, length: u64) -> io::Result<bool> {
        let mut statistics = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: the descriptor is open, and the kernel fills the structure it is given.
        if unsafe { libc::fstatvfs(self.file.as_raw_fd(), statistics.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so the structure is filled.
        let statistics = unsafe { statistics.assume_init() };
        let free = statistics.f_bavail.saturating_mul(statistics.f_frsize);
        Ok(free >= length.saturating_sub(self.length).saturating_add(self.reserve))
    }

    fn begin(&mut self, token: DiskToken, operation: DiskOp) {
        let (reactor, source) = (&self.reactor, self.source);
        let name = operation.name();
        match operation {
            DiskOp::Read { offset, buffer } => {
                let index = self.pending.add(token, name, offset);
                reactor.read_at(source, index, &self.file, offset, buffer);
            }
            DiskOp::Write { offset, segments } => {
                let index = self.pending.add(token, name, offset);
                reactor.write_at(source, index, &self.file, offset, segments);
            }
            DiskOp::Flush => {
                let index = self.pending.add(token, name, 0);
                reactor.sync_data(source, index, &self.file);
            }
            // Where the file system cannot say, the allocation itself will.
            DiskOp::Extend { length, .. }
                if self.reserve > 0 && matches!(self.has_room_for(length), Ok(false)) =>
            {
                let result = Err(DiskError::NoSpace { length });
                self.ready.push(DiskCompletion { token, result });
            }
            DiskOp::Extend { length, written } => {
                if !written {
                    self.extensions.iter_mut().for_each(Extension::hurry);
                }
                self.extensions.push_back(Extension::new(token, length, written));
                if self.extensions.len() == 1 {
                    self.continue_extension(None);
                }
            }
        }
    }

    /// Tells the extension at work how its last step ended, and starts its next ones; goes on to
    /// the next extension where one ends.
    fn continue_extension(&mut self, mut ended: Option<io::Result<()>>) {
        while let Some(extension) = self.extensions.front_mut() {
            match extension.advance(self.length, ended.take()) {
                Step::Run(requests) => {
                    for request in requests {
                        request.start(&self.reactor, self.source, EXTENSION, &self.file);
                    }
                    return;
                }
                Step::Finished => {
                    self.length = self.length.max(extension.length());
                    self.end_extension(Ok(BytesMut::new()));
                }
                Step::Failed(error) => {
                    // Blocks briefly, on a path that ends in an error anyway. When even this
                    // fails, the file stays longer than its device, which harms nobody.
                    let error = match self.cut_to_length() {
                        Ok(()) => error,
                        Err(cut) => extension::also(error, &cut),
                    };
                    self.end_extension(Err(error));
                }
            }
        }
    }

    fn end_extension(&mut self, result: Result<BytesMut, DiskError>) {
        if let Some(extension) = self.extensions.pop_front() {
            self.ready.push(DiskCompletion { token: extension.token(), result });
        }
    }

    fn cut_to_length(&self) -> io::Result<()> {
        let length = libc::off_t::try_from(self.length).map_err(io::Error::other)?;
        // SAFETY: takes no memory; the descriptor is open as long as the handle.
        match unsafe { libc::ftruncate(self.file.as_raw_fd(), length) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Takes what the reactor has for us.
    fn collect(&mut self) {
        while let Some(completion) = self.reactor.take(self.source) {
            if completion.token == EXTENSION {
                self.continue_extension(Some(completion.result.map(drop)));
                continue;
            }
            let Some((token, name, offset)) = self.pending.remove(completion.token) else {
                continue;
            };
            let result = match completion.result {
                Ok(Output::Buffer(buffer)) => Ok(buffer),
                Ok(_) => Ok(BytesMut::new()),
                Err(error) => Err(DiskError::Io { operation: name, offset, cause: error.to_string() }),
            };
            self.ready.push(DiskCompletion { token, result });
        }
    }

    /// Operations that the kernel has and will complete by itself.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.in_flight
    }

    fn is_busy(&self) -> bool {
        !self.pending.is_empty() || !self.extensions.is_empty()
    }

    /// The ring itself has failed, and no completion will come any more.
    fn abandon_all(&mut self, error: &io::Error) {
        let cause = error.to_string();
        for (token, operation, offset) in self.pending.abandon_all() {
            let result = Err(DiskError::Io { operation, offset, cause: cause.clone() });
            self.ready.push(DiskCompletion { token, result });
        }
        while !self.extensions.is_empty() {
            let error = DiskError::Io { operation: "extend", offset: self.length, cause: cause.clone() };
            self.end_extension(Err(error));
        }
    }
}

/// Takes the file's lock. Tries for a moment, since the kernel's workers let go of a file a little after
/// they have said that an operation on it is done.
#[allow(clippy::disallowed_methods, reason = "nobody tells when the kernel has let go")]
fn lock(file: &File) -> io::Result<()> {
    for _ in 0..LOCK_ATTEMPTS {
        // SAFETY: takes no memory; the descriptor is open.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error);
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(io::Error::from_raw_os_error(libc::EWOULDBLOCK))
}

impl Drop for UringFile {
    /// What is in flight goes on, and its completions go to nobody; the kernel keeps the lock until then.
    /// Otherwise the next to open need not wait for its workers, which let go of files when they get to it.
    fn drop(&mut self) {
        self.reactor.close_source(self.source);
        if !self.is_busy() && !self.pending.abandoned {
            // SAFETY: takes no memory; the descriptor is open.
            unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_UN) };
        }
    }
}

impl Disk for UringFile {
    fn length(&self) -> u64 {
        self.length
    }

    fn submit(&mut self, token: DiskToken, operation: DiskOp) {
        match operation.check(self.length) {
            Ok(()) => self.begin(token, operation),
            Err(error) => self.ready.push(DiskCompletion { token, result: Err(error) }),
        }
    }

    fn reap(&mut self, wait: bool, completions: &mut Vec<DiskCompletion>) {
        self.collect();
        while wait && self.ready.is_empty() && self.is_busy() {
            if let Err(error) = self.reactor.poll_source(self.source, Wait::Forever) {
                self.abandon_all(&error);
            }
            self.collect();
        }
        completions.append(&mut self.ready);
    }
}

/// What is in flight: the caller's token, and what an error says. Indices are reactor tokens.
#[derive(Default)]
struct Pending {
    slots: Vec<Option<(DiskToken, &'static str, u64)>>,
    free: Vec<u64>,
    in_flight: usize,
    abandoned: bool,
}

impl Pending {
    fn add(&mut self, token: DiskToken, operation: &'static str, offset: u64) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u64 - 1
        });
        *self.slot(index) = Some((token, operation, offset));
        self.in_flight += 1;
        index
    }

    fn slot(&mut self, index: u64) -> &mut Option<(DiskToken, &'static str, u64)> {
        &mut self.slots[usize::try_from(index).expect("an index into memory")]
    }

    /// `None` for one that has been abandoned.
    fn remove(&mut self, index: u64) -> Option<(DiskToken, &'static str, u64)> {
        let entry = self.slot(index).take();
        assert!(entry.is_some() || self.abandoned, "a completion for nothing in flight");
        if entry.is_some() {
            self.free.push(index);
            self.in_flight -= 1;
        }
        entry
    }

    fn is_empty(&self) -> bool {
        self.in_flight == 0
    }

    /// Their slots are not used again: late completions must not hit new operations.
    fn abandon_all(&mut self) -> impl Iterator<Item = (DiskToken, &'static str, u64)> {
        self.abandoned = true;
        self.in_flight = 0;
        self.slots.iter_mut().filter_map(Option::take)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use trivet_reactor::Options;

    #[test]
    fn the_lock_is_given_back_although_the_kernel_still_holds_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        let reactor = Reactor::new(Options::default()).unwrap();
        let file = UringFile::create(&reactor, &path).unwrap();
        let held = file.file.as_fd().try_clone_to_owned().unwrap();
        drop(file);
        UringFile::open(&reactor, &path).unwrap();
        drop(held);
    }
}
