//! Sockets, listening and to be connected, over TCP and unix paths.

use crate::socket_address::{RawAddress, UNIX_PATH_MAX, size_of_as_length};
use crate::{Handle, SocketAddress, SocketError};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// An idle TCP connection is probed after so long ...
const KEEP_ALIVE_IDLE_SECONDS: i32 = 10;
/// ... and then again, so many times, before it is given up.
const KEEP_ALIVE_INTERVAL_SECONDS: i32 = 5;
const KEEP_ALIVE_PROBES: i32 = 3;
/// Asked for in a unix socket's buffer, which the kernel does not grow by itself: one large
/// request fits. The system's limit (net.core.wmem_max) may cut it. A TCP socket's buffers are
/// left alone: setting them would end the kernel's own tuning, which goes higher.
const UNIX_BUFFER_BYTES: i32 = 2 << 20;

/// Makes a socket that listens at `address`. A unix socket's file that nobody listens behind, as a
/// killed process leaves it, is replaced.
///
/// # Errors
/// [`SocketError`] with the cause and the next step.
pub fn listen(address: &SocketAddress) -> Result<Handle, SocketError> {
    let fail = |operation| move |e| SocketError::diagnose(operation, address, e);
    let raw = raw_address(address)?;
    let fd = open(address)?;
    if matches!(address, SocketAddress::Tcp(_)) {
        // A restarted server need not wait for the old one's connections to be forgotten.
        set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).map_err(fail("setsockopt"))?;
    }
    match bind(&fd, &raw) {
        Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) => {
            remove_if_abandoned(address, &raw)?;
            bind(&fd, &raw).map_err(fail("bind"))?;
        }
        other => other.map_err(fail("bind"))?,
    }
    // SAFETY: takes no memory; the descriptor is open.
    system(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) }).map_err(fail("listen"))?;
    Ok(Handle::from(fd))
}

/// Makes a socket to [`connect`](crate::Reactor::connect) to `address`.
///
/// # Errors
/// [`SocketError`] with the cause and the next step.
pub fn socket(address: &SocketAddress) -> Result<Handle, SocketError> {
    raw_address(address)?;
    let fd = open(address)?;
    tune(&fd).map_err(|e| SocketError::diagnose("setsockopt", address, e))?;
    Ok(Handle::from(fd))
}

/// Sets an accepted connection up as [`socket`] does its end: small messages leave at once, a dead
/// peer is noticed, unix buffers are large.
///
/// # Errors
/// The system's.
pub fn prepare_accepted(connection: OwnedFd) -> io::Result<Handle> {
    tune(&connection)?;
    Ok(Handle::from(connection))
}

/// The address a socket is bound to; tells the port when the system chose it.
///
/// # Errors
/// The system's; `Unsupported` for a socket that is neither TCP nor unix.
pub fn local_address(socket: &impl AsFd) -> io::Result<SocketAddress> {
    let mut raw = RawAddress::zeroed();
    let (storage, length) = raw.for_kernel();
    // SAFETY: the storage is as long as `length` says, and both outlive the call.
    system(unsafe { libc::getsockname(socket.as_fd().as_raw_fd(), storage, length) })?;
    raw.decode()
}

fn open(address: &SocketAddress) -> Result<OwnedFd, SocketError> {
    let family = match address {
        SocketAddress::Tcp(SocketAddr::V4(_)) => libc::AF_INET,
        SocketAddress::Tcp(SocketAddr::V6(_)) => libc::AF_INET6,
        SocketAddress::Unix(_) => libc::AF_UNIX,
    };
    // SAFETY: takes no memory.
    let fd = system(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })
        .map_err(|e| SocketError::diagnose("socket", address, e))?;
    // SAFETY: just opened, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn tune(fd: &OwnedFd) -> io::Result<()> {
    match local_address(fd)? {
        SocketAddress::Tcp(_) => {
            // A host that vanished must be noticed by those who only wait for it to speak.
            set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
            set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEP_ALIVE_IDLE_SECONDS)?;
            set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, KEEP_ALIVE_INTERVAL_SECONDS)?;
            set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEP_ALIVE_PROBES)?;
            set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
        }
        SocketAddress::Unix(_) => set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, UNIX_BUFFER_BYTES),
    }
}

fn set_option(fd: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = size_of_as_length::<i32>();
    // SAFETY: the value is live and as long as said.
    system(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), length) })
        .map(drop)
}

fn bind(fd: &OwnedFd, raw: &RawAddress) -> io::Result<()> {
    // SAFETY: the address is live and as long as said.
    system(unsafe { libc::bind(fd.as_raw_fd(), raw.pointer(), raw.length()) }).map(drop)
}

/// Removes a unix socket's file when connecting to it shows that nobody listens any more.
fn remove_if_abandoned(address: &SocketAddress, raw: &RawAddress) -> Result<(), SocketError> {
    let SocketAddress::Unix(path) = address else {
        return Err(SocketError::Occupied { address: address.clone() });
    };
    let fail = |operation| move |e| SocketError::diagnose(operation, address, e);
    if !std::fs::symlink_metadata(path).map_err(fail("stat"))?.file_type().is_socket() {
        return Err(SocketError::NotASocket { address: address.clone() });
    }
    let probe = open(address)?;
    // SAFETY: the address is live and as long as said.
    match system(unsafe { libc::connect(probe.as_raw_fd(), raw.pointer(), raw.length()) }) {
        Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => {
            std::fs::remove_file(path).map_err(fail("unlink"))
        }
        _ => Err(SocketError::Occupied { address: address.clone() }),
    }
}

fn system(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn raw_address(address: &SocketAddress) -> Result<RawAddress, SocketError> {
    RawAddress::new(address).map_err(|_too_long| {
        let length = match address {
            SocketAddress::Unix(path) => path.as_os_str().len(),
            SocketAddress::Tcp(_) => 0,
        };
        SocketError::PathTooLong { address: address.clone(), length, max: UNIX_PATH_MAX }
    })
}
