//! A way around the network stack for two processes of one host.
//!
//! A server that listens at a TCP address listens at a unix socket too, whose abstract name is made
//! of that address. A client that is about to connect to an address of its own host looks for the
//! name first. A round trip then costs about half of what it does over the loopback interface.
//!
//! Abstract names (unix(7)) belong to a network namespace, as TCP ports do; so the name leads where
//! the address would, and leaves no file behind. Any user could take such a name. Therefore each end
//! asks the kernel who the other is, and takes the shortcut only with its own user or root.

use crate::Handle;
use crate::socket::tune;
use crate::socket_address::size_of_as_length;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};

fn name(address: SocketAddr) -> io::Result<UnixAddress> {
    UnixAddress::from_abstract_name(format!("trivet/{address}"))
}

/// Listens for those who take the shortcut to `address`, at which the caller listens already.
///
/// # Errors
/// The system's; `AddrInUse` when somebody else has taken the name.
pub fn listen_shortcut(address: SocketAddr) -> io::Result<Handle> {
    Ok(Handle::from(OwnedFd::from(UnixListener::bind_addr(&name(address)?)?)))
}

/// Connects to who listens at `address` if that is on this host and offers the shortcut.
#[must_use]
pub fn connect_shortcut(address: SocketAddr) -> Option<Handle> {
    if !is_own_address(address.ip()) {
        return None;
    }
    let port = address.port();
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let listening = std::iter::once(address).chain(any.map(|ip| SocketAddr::new(ip, port)));
    let connection = listening.filter_map(|at| UnixStream::connect_addr(&name(at).ok()?).ok()).next()?;
    prepare_shortcut(connection.into()).ok()
}

/// Sets a connection over a shortcut up.
///
/// # Errors
/// `PermissionDenied` when the other end is of another user; else the system's.
pub fn prepare_shortcut(connection: OwnedFd) -> io::Result<Handle> {
    // SAFETY: takes no memory.
    let own = unsafe { libc::geteuid() };
    let peer = peer_user(&connection)?;
    if peer != own && peer != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {peer} is at its other end"),
        ));
    }
    tune(&connection)?;
    Ok(Handle::from(connection))
}

/// Whether the address belongs to this host: nothing can be bound to another's.
fn is_own_address(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

fn peer_user(connection: &OwnedFd) -> io::Result<libc::uid_t> {
    let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: libc::gid_t::MAX };
    let mut length = size_of_as_length::<libc::ucred>();
    let fd = connection.as_fd().as_raw_fd();
    // SAFETY: the value is as long as `length` says, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut length)
    };
    if result == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
}
