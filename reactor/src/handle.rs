//! Files and sockets as the reactor holds them.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

/// An open file or socket, shared by its owner and the operations in flight on it; it closes when
/// the last of them lets go. To end a connection at once, [`shut_down`](Handle::shut_down) it:
/// its operations then complete and release it.
#[derive(Clone, Debug)]
pub struct Handle(Rc<OwnedFd>);

impl From<OwnedFd> for Handle {
    /// Takes the descriptor, and makes it blocking: io_uring waits for a socket only if that is
    /// not in non-blocking mode; else it would answer `EAGAIN`.
    fn from(fd: OwnedFd) -> Self {
        // SAFETY: F_GETFL and F_SETFL take no memory, and `fd` is open.
        unsafe {
            let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
            if flags >= 0 && flags & libc::O_NONBLOCK != 0 {
                let changed = libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK);
                debug_assert_eq!(changed, 0, "clearing a status flag of an open descriptor cannot fail");
            }
        }
        Self(Rc::new(fd))
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Handle {
    /// Ends a connection: receives in flight complete with what has arrived or nothing, sends
    /// fail.
    ///
    /// # Errors
    /// The system's: `NotConnected` if the peer was first.
    pub fn shut_down(&self, how: Shutdown) -> io::Result<()> {
        let how = match how {
            Shutdown::Read => libc::SHUT_RD,
            Shutdown::Write => libc::SHUT_WR,
            Shutdown::Both => libc::SHUT_RDWR,
        };
        // SAFETY: takes no memory, and the descriptor is open as long as `self`.
        match unsafe { libc::shutdown(self.as_raw_fd(), how) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
