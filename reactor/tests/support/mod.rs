//! What the tests share: a reactor with one source, and waiting for a token's completion.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "all of this is test code")]

use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;
use trivet_reactor::{Handle, Options, Output, Reactor, Sent, Source, Wait};

/// Far above what anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Loop {
    pub(crate) reactor: Reactor,
    pub(crate) source: Source,
    done: HashMap<u64, io::Result<Output>>,
}

impl Loop {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let reactor = Reactor::new(options).unwrap();
        let source = reactor.source();
        Self { reactor, source, done: HashMap::new() }
    }

    /// Sends; what left at once counts as completed.
    pub(crate) fn send(&mut self, token: u64, socket: &Handle, segments: Vec<Bytes>) {
        if self.reactor.send(self.source, token, socket, segments) == Sent::Whole {
            self.done.insert(token, Ok(Output::Done));
        }
    }

    /// Turns the loop until the operation under `token` has completed.
    pub(crate) fn wait(&mut self, token: u64) -> io::Result<Output> {
        let deadline = self.reactor.now() + PATIENCE;
        loop {
            if let Some(result) = self.done.remove(&token) {
                return result;
            }
            assert!(self.reactor.now() < deadline, "operation {token} does not complete");
            self.reactor.poll(Wait::For(PATIENCE)).unwrap();
            self.collect();
        }
    }

    pub(crate) fn collect(&mut self) -> usize {
        let mut count = 0;
        while let Some(completion) = self.reactor.take(self.source) {
            let before = self.done.insert(completion.token, completion.result);
            assert!(before.is_none(), "operation {} completed twice", completion.token);
            count += 1;
        }
        count
    }

    pub(crate) fn has(&mut self, token: u64) -> bool {
        self.collect();
        self.done.contains_key(&token)
    }

    pub(crate) fn buffer(&mut self, token: u64) -> BytesMut {
        match self.wait(token) {
            Ok(Output::Buffer(buffer)) => buffer,
            other => panic!("operation {token} yielded {other:?}"),
        }
    }

    pub(crate) fn done(&mut self, token: u64) {
        assert!(matches!(self.wait(token), Ok(Output::Done)), "operation {token}");
    }

    pub(crate) fn error(&mut self, token: u64) -> io::Error {
        self.wait(token).expect_err("should fail")
    }
}

pub(crate) fn is_cancelled(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

/// A connected pair of stream sockets with the smallest buffers the system gives.
pub(crate) fn tight_pair() -> (Handle, Handle) {
    let mut fds = [0; 2];
    // SAFETY: the array has room for both descriptors.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, fds.as_mut_ptr()) }, 0);
    let pair = fds.map(|fd| {
        // SAFETY: just opened, and nobody else's.
        unsafe { OwnedFd::from_raw_fd(fd) }
    });
    for fd in &pair {
        let size = 1_i32;
        // SAFETY: the value is live and four bytes long.
        let set = unsafe {
            libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw const size).cast(), 4)
        };
        assert_eq!(set, 0);
    }
    let [a, b] = pair.map(Handle::from);
    (a, b)
}

/// A pipe: (read end, write end).
pub(crate) fn pipe() -> (Handle, Handle) {
    let (read, write) = io::pipe().unwrap();
    (Handle::from(OwnedFd::from(read)), Handle::from(OwnedFd::from(write)))
}

/// Bytes without a short period.
pub(crate) fn pattern(length: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let byte = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(byte).collect()
}
